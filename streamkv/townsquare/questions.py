"""Questions whose answers follow from a world's script.

Each question names its moment by the clock, by the sign, by a thing that the world shows only once, or, in a world of
one scene, not at all.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from streamkv.townsquare.script import COLOURS, KINDS, Scene, Thing, World

COUNT_WORDS = ("none", "one", "two", "three", "four")


@dataclass(frozen=True)
class Question:
    kind: str
    question: str
    answer: str
    start_s: float  # the moment that the answer rests on
    end_s: float
    ref: str  # how the moment is named: clock, sign, thing or none
    also_s: tuple[tuple[float, float], ...] = field(default=())  # further moments (an order question has two)
    scenes: tuple[int, ...] = field(default=(), compare=False)  # what it is about, by number
    focus: str = field(default="", compare=False)  # where in the picture: a zone, sign, sky or clock


class _Asker:
    """Draws questions about one world."""

    def __init__(self, world: World, rng: random.Random):
        self.world = world
        self.rng = rng
        names = Counter(t.name for s in world.scenes for t in s.things)
        self.unique_names = {name for name, count in names.items() if count == 1}
        kinds = Counter(t.kind for s in world.scenes for t in s.things)
        self.unique_kinds = {kind for kind, count in kinds.items() if count == 1}

    def ask(self, kind: str) -> Question | None:
        """A question of that kind about a random scene, or None when that scene allows none."""
        index = self.rng.randrange(len(self.world.scenes))
        return ASKERS[kind](self, index, self.world.scenes[index])

    def when(self, scene: Scene, *, without: str = "") -> tuple[str, str]:
        """Words that name the scene, and how: (" at 14:07", "clock")."""
        ways = [w for w in ("clock", "sign") if w != without]
        only = [t for t in scene.things if t.name in self.unique_names]
        if only and without != "thing":
            ways.append("thing")
        if len(self.world.scenes) == 1:
            ways.append("none")
        way = self.rng.choice(ways)
        if way == "clock":
            return f" at {scene.clock}", way
        if way == "sign":
            return f" when the sign says {scene.sign.text}", way
        if way == "thing":
            return f" when the {self.rng.choice(only).name} is there", way
        return "", way

    def made(self, kind: str, text: str, answer: str, index: int, ref: str, focus: str = "") -> Question:
        scene = self.world.scenes[index]
        return Question(kind, text, answer, scene.start_s, scene.end_s, ref, scenes=(index,), focus=focus)

    def colour(self, index: int, scene: Scene) -> Question:
        thing = self.rng.choice(scene.things)
        if thing.kind in self.unique_kinds and self.rng.random() < 0.3:
            return self.made(
                "colour", f"what colour is the {thing.kind}?", thing.colour, index, "thing", thing.zone
            )
        when, ref = self.when(scene, without="thing")
        return self.made(
            "colour", f"what colour is the {thing.kind}{when}?", thing.colour, index, ref, thing.zone
        )

    def place(self, index: int, scene: Scene) -> Question:
        thing = self.rng.choice(scene.things)
        if thing.name in self.unique_names and self.rng.random() < 0.3:
            return self.made("place", f"where is the {thing.name}?", thing.zone, index, "thing", thing.zone)
        when, ref = self.when(scene, without="thing")
        named = thing.name if self.rng.random() < 0.5 else thing.kind
        return self.made("place", f"where is the {named}{when}?", thing.zone, index, ref, thing.zone)

    def number(self, index: int, scene: Scene) -> Question:
        when, ref = self.when(scene, without="sign")
        return self.made("number", f"what does the sign say{when}?", scene.sign.text, index, ref, "sign")

    def existence(self, index: int, scene: Scene) -> Question:
        when, ref = self.when(scene, without="thing")
        thing = self.rng.choice(scene.things)
        by_name = self.rng.random() < 0.5
        asked, answer = (thing.name if by_name else thing.kind), "yes"
        if self.rng.random() < 0.5:
            asked, answer = self._absent(scene, thing, by_name=by_name), "no"
        article = "an" if asked[0] in "aeiou" else "a"
        return self.made(
            "existence",
            f"is there {article} {asked}{when}?",
            answer,
            index,
            ref,
            thing.zone if answer == "yes" else "",
        )

    def _absent(self, scene: Scene, thing: Thing, *, by_name: bool) -> str:
        """Something that the scene does not show; by name, often the right kind in another colour."""
        present = {t.kind for t in scene.things}
        if by_name and self.rng.random() < 0.5:
            return f"{self.rng.choice([c for c in COLOURS if c != thing.colour])} {thing.kind}"
        kind = self.rng.choice([k for k in KINDS if k not in present])
        return f"{self.rng.choice(COLOURS)} {kind}" if by_name else kind

    def count(self, index: int, scene: Scene) -> Question:
        when, ref = self.when(scene)
        return self.made(
            "count", f"how many things are there{when}?", COUNT_WORDS[len(scene.things)], index, ref
        )

    def weather(self, index: int, scene: Scene) -> Question:
        when, ref = self.when(scene)
        return self.made("weather", f"what is the weather{when}?", scene.weather, index, ref, "sky")

    def order(self, index: int, scene: Scene) -> Question | None:
        if len(self.world.scenes) < 2:
            return None
        other = self.rng.choice([i for i in range(len(self.world.scenes)) if i != index])
        first, second = sorted((index, other))
        signs = [self.world.scenes[index].sign.text, self.world.scenes[other].sign.text]
        text = f"which sign comes first, {signs[0]} or {signs[1]}?"
        a, b = self.world.scenes[first], self.world.scenes[second]
        also = ((b.start_s, b.end_s),)
        return Question("order", text, a.sign.text, a.start_s, a.end_s, "sign", also, (first, second))

    def time(self, index: int, scene: Scene) -> Question:
        only = [t for t in scene.things if t.name in self.unique_names]
        if only and self.rng.random() < 0.5:
            text, ref = f"at what time is the {self.rng.choice(only).name} there?", "thing"
        else:
            text, ref = f"at what time does the sign say {scene.sign.text}?", "sign"
        return self.made("time", text, scene.clock, index, ref, "clock")


ASKERS: dict[str, Callable[[_Asker, int, Scene], Question | None]] = {
    "colour": _Asker.colour,
    "place": _Asker.place,
    "number": _Asker.number,
    "existence": _Asker.existence,
    "count": _Asker.count,
    "weather": _Asker.weather,
    "order": _Asker.order,
    "time": _Asker.time,
}
KINDS_OF_QUESTION = tuple(ASKERS)


def make_questions(world: World, count: int, seed: int) -> list[Question]:
    """`count` questions in turn of every kind that the world allows, about scenes drawn over its whole length.

    Raises:
        ValueError: count is below 1.
    """
    if count < 1:
        raise ValueError(f"count: got {count!r}, allowed 1 or more")
    asker = _Asker(world, random.Random(f"{world.seed}/{seed}"))
    found: list[Question] = []
    turn = 0
    while len(found) < count:
        question = asker.ask(KINDS_OF_QUESTION[turn % len(KINDS_OF_QUESTION)])
        turn += 1
        if question is not None:
            found.append(question)
    return found


def is_correct(answer: str, expected: str) -> bool:
    """Whether an answer says what is expected: the same words, whatever their case and spacing."""

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    return plain(answer) == plain(expected)
