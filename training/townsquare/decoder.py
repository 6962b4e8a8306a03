"""Trains the decoder: answers, and mean queries that find the frames of their scene.

    python -m training.townsquare.decoder --out out/decoder --minutes 40             from described cells, no pictures
    python -m training.townsquare.decoder --out out/joint --from out/decoder/last.pt --bank out/bank.pt ...

Two losses: cross-entropy of whole answers, and in each layer a contrast of the question's mean query against the
mean keys of all frames in the batch, both before rotary embedding, which is what retrieval will do. Pretrained
Video-LLMs have the second from their training; a model this small has to be taught it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from streamkv.townsquare.script import COLOURS, KINDS, MAX_THINGS, SIGN_LETTERS, WEATHERS, ZONES
from training.townsquare.attributes import NUM_ATTRIBUTES, OFFSETS, SLOTS
from training.townsquare.bank import Bank, BankEyes
from training.townsquare.build import FRAME_TOKENS, build_model, build_tokenizer
from training.townsquare.clips import (
    IDS,
    IGNORE,
    NEWLINE,
    PREFIX,
    Batch,
    ClipSpec,
    make_batch,
    make_clip,
    show_retrieved,
)

LOOKED_UP = ("colour", "place", "existence")
CURRICULUM = (  # accuracy on such clips at which the next ones start, latest share of the run for that, clips
    (0.92, 0.3, ClipSpec(scenes=(1, 1), frames=(1, 1), questions=8, kinds=LOOKED_UP, refs=("none", "thing"))),
    (0.92, 0.5, ClipSpec(scenes=(1, 1), frames=(1, 1), questions=8)),
    (0.90, 0.62, ClipSpec(scenes=(2, 4), frames=(1, 2), questions=12)),
    (2.00, 1.00, ClipSpec(scenes=(1, 8), frames=(1, 3), questions=14, summary=0.5, drop=0.3)),
)
LONG = ClipSpec(scenes=(12, 36), frames=(1, 2), questions=14, drop=0.7, window=8)
"""Many scenes that differ by a minute: mean queries learn to find one of them, answers to be read among few."""
LONG_ASKS: tuple[dict[str, tuple[str, ...]], ...] = (
    {},
    {"refs": ("thing",)},
    {"kinds": ("order",)},
    {"kinds": ("order",)},
    {"refs": ("clock",)},
    {"kinds": ("number", "time", "count", "weather"), "refs": ("thing", "clock")},
)
"""What the questions of such a batch are about: what is hard to find among many gets its share."""
HARD = (("time", "number", "weather", "count", "order"), ("count", "order"))
"""Kinds that some batches of several scenes are about alone: they take longest to learn."""


class Described(nn.Module):
    """Stands for the tower: a cell's feature is the sum of its attributes' vectors, with noise.

    The vectors start as those of the words, as a pretrained projector's do: a cell with a red bus by the gate starts
    as red + bus + gate. The clock's hour is turned, to tell it from the minute.
    """

    def __init__(self, words: Tensor):
        super().__init__()
        self.table = nn.EmbeddingBag(NUM_ATTRIBUTES, words.shape[1], mode="sum", padding_idx=0)
        nn.init.normal_(self.table.weight, std=float(words.std()))
        turn = torch.linalg.qr(torch.randn(words.shape[1], words.shape[1]))[0]
        named = {
            "kind": KINDS,
            "colour": COLOURS,
            "weather": WEATHERS,
            "letter": [c.lower() for c in SIGN_LETTERS],
        }
        with torch.no_grad():
            rows = self.table.weight
            for slot, names in named.items():
                for k, name in enumerate(names):
                    rows[OFFSETS[slot] + k] = words[IDS[name]]
            for k, zone in enumerate(ZONES):
                rows[OFFSETS["cell"] + 3 + k] = words[IDS[zone]]
            tens, ones = number_parts(words)
            for slot, part in (
                ("sign_tens", tens),
                ("sign_ones", ones),
                ("minute_tens", tens),
                ("minute_ones", ones),
                ("hour_tens", tens @ turn),
                ("hour_ones", ones @ turn),
            ):
                size = SLOTS[slot]
                rows[OFFSETS[slot] : OFFSETS[slot] + size] = part[:size]
            rows[0] = 0

    def forward(self, attributes: Tensor) -> Tensor:
        """(B, F, 9, 5) ids to (B, F, 9, D)."""
        features = self.table(attributes.flatten(0, -2)).unflatten(0, attributes.shape[:-1])
        return features + 0.05 * torch.randn_like(features) if self.training else features


def number_parts(words: Tensor) -> tuple[Tensor, Tensor]:
    """Two tables (10, D) of tens and of ones, whose sums are about the vectors of the words 00 to 99."""
    grid = words[IDS["00"] : IDS["99"] + 1].unflatten(0, (10, 10))
    tens = grid.mean(1)
    return tens, grid.mean(0) - tens.mean(0)


def start_words(model: nn.Module) -> Tensor:
    """Spreads the word vectors, makes each number the sum of its digits, and returns the table (vocabulary, D)."""
    words: Tensor = model.get_input_embeddings().weight
    with torch.no_grad():
        nn.init.normal_(words, std=0.12)
        tens, ones = torch.randn(2, 10, words.shape[1]) * 0.09
        words[IDS["00"] : IDS["99"] + 1] = (tens[:, None] + ones[None]).flatten(0, 1)
    return words.detach()


def start_alike(model: nn.Module, gain: float = 2.0) -> None:
    """In each layer and head group, one query head starts as its key head: a token first attends to its likes.

    Looking a thing up by its word is what every answer needs; from random weights it is the slowest step to learn.
    """
    text = model.config.text_config
    head_dim = text.hidden_size // text.num_attention_heads
    group = text.num_attention_heads // text.num_key_value_heads
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            keys = layer.self_attn.k_proj.weight.unflatten(0, (-1, head_dim)) * gain
            layer.self_attn.k_proj.weight.copy_(keys.flatten(0, 1))
            queries = layer.self_attn.q_proj.weight.unflatten(0, (-1, head_dim))
            queries[::group] = keys


NAME_SIZES = (len(SIGN_LETTERS), 100, 24, 60, len(KINDS), len(COLOURS), len(WEATHERS), MAX_THINGS + 1)
"""Letter, number, hour, minute, kind, colour, weather, count."""
FRAME_HEADS, MENTION_HEADS, COUNT_HEAD = (0, 1, 2, 3, 6, 7), (0, 1, 2, 3, 4, 5), 7
FRAME_NAMES_AT, MENTIONS_AT = 2, 3
"""Layers at whose door a cell must know its frame's sign and clock, and the last prompt token what was mentioned."""


ANSWER_STEPS = 3
POINTING_LAYERS = (3, 4, 5)
"""Layers in which the last prompt token looks at what is asked."""
LOOKING_LAYERS = (3, 4, 5)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


@contextmanager
def caught_queries_and_keys(language_model: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The outputs of every layer's query and key projection (B, T, heads * d) of the forwards inside."""
    queries: list[Tensor] = []
    keys: list[Tensor] = []
    hooks = []
    for layer in language_model.layers:
        hooks.append(
            layer.self_attn.q_proj.register_forward_hook(lambda _m, _i, out: queries.append(out.float()))
        )
        hooks.append(
            layer.self_attn.k_proj.register_forward_hook(lambda _m, _i, out: keys.append(out.float()))
        )
    try:
        yield queries, keys
    finally:
        for hook in hooks:
            hook.remove()


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention in three matrix products: with a mask, and backwards, faster on a CPU than the fused one."""
    size, num_heads, length, dim = query.shape
    shape = (size, key.shape[1], -1, dim)
    scores = (query * scaling).reshape(shape) @ key.transpose(-1, -2)
    weights = (scores.view(size, num_heads, length, -1) + attention_mask.to(scores.dtype)).softmax(-1)
    out = weights.to(value.dtype).reshape(size, key.shape[1], -1, weights.shape[-1]) @ value
    return out.view(size, num_heads, length, dim).transpose(1, 2).contiguous(), None


AttentionInterface.register("plain", plain_attention)
AttentionMaskInterface.register("plain", sdpa_mask)


class Trainee(nn.Module):
    """The demo model's decoder with whatever gives its frames' features."""

    def __init__(self) -> None:
        super().__init__()
        self.model = build_model(build_tokenizer())
        start_alike(self.model)
        self.model.set_attn_implementation({"text_config": "plain"})
        self.eyes: nn.Module = Described(start_words(self.model))
        text = self.model.config.text_config
        self.head_dim = text.hidden_size // text.num_attention_heads
        self.num_kv_heads = text.num_key_value_heads
        self.names = nn.ModuleList(nn.Linear(text.hidden_size, size) for size in NAME_SIZES)
        self.contrast_scale = nn.Parameter(torch.zeros(text.num_hidden_layers))
        self.half = False
        """Train with bfloat16 matrix products: several times faster on a core that has them, far slower on others."""

    def embed(self, batch: Batch) -> Tensor:
        """(B, T, D): system prompt, video and questions in their places."""
        tokens = batch.tokens
        embeds = self.model.get_input_embeddings()(tokens.clamp(min=0))
        embeds = torch.where((tokens == NEWLINE)[..., None], self.model.model.image_newline, embeds)
        frames = self.eyes(batch.attributes)
        frames = torch.einsum("bfg,bgnd->bfnd", batch.mean_of, frames)
        at = len(PREFIX)
        video = frames.flatten(1, 2)
        return torch.cat([embeds[:, :at], video, embeds[:, at + video.shape[1] :]], dim=1)

    def forward(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Hidden states (B, T, D), and for each layer the scores (Q, B, F) of mean queries against frames."""
        lm = self.model.model.language_model
        bias = torch.zeros(batch.mask.shape).masked_fill_(~batch.mask, torch.finfo(torch.float32).min)
        self.at_door: dict[int, Tensor] = {}

        def keep(layer: int, args: tuple[Tensor, ...]) -> None:
            self.at_door[layer] = args[0].float()

        doors = [
            lm.layers[k].register_forward_pre_hook(lambda _m, args, k=k: keep(k, args))
            for k in (FRAME_NAMES_AT, MENTIONS_AT)
        ]
        with (
            caught_queries_and_keys(lm) as (queries, keys),
            torch.autocast("cpu", torch.bfloat16, enabled=self.half and self.training),
        ):
            hidden = lm(
                inputs_embeds=self.embed(batch),
                attention_mask=bias,
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
        for door in doors:
            door.remove()
        self.queries, self.keys = queries, keys
        return hidden.float(), [self._scores(batch, q, k) for q, k in zip(queries, keys, strict=True)]

    def _grouped(self, queries: Tensor) -> Tensor:
        """(Q, H * d) to (Q, G * d): summed over the heads of each group."""
        return queries.unflatten(-1, (self.num_kv_heads, -1, self.head_dim)).sum(2).flatten(1)

    def attention(self, batch: Batch, layer: int, clip: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Log of a token's attention on video in all (len(place), H), and among the video's tokens (.., H, F * 9)."""
        queries, keys = self.queries[layer], self.keys[layer]
        cos, sin = self.model.model.language_model.rotary_emb(keys, batch.positions)
        q = queries[clip, place].unflatten(-1, (self.num_kv_heads, -1, self.head_dim))
        q = _turn(q, cos[clip, place][:, None, None], sin[clip, place][:, None, None])
        k = _turn(keys.unflatten(-1, (self.num_kv_heads, self.head_dim)), cos[:, :, None], sin[:, :, None])
        scores = torch.einsum("qghd,qtgd->qght", q, k[clip]).flatten(1, 2) * self.head_dim**-0.5
        everything = scores.masked_fill(~batch.mask[clip, 0, place][:, None], -1e9).log_softmax(-1)
        video = everything[..., len(PREFIX) : len(PREFIX) + batch.focus.shape[1]]
        mass = video.logsumexp(-1)
        return mass, video - mass[..., None]

    def _scores(self, batch: Batch, queries: Tensor, keys: Tensor) -> Tensor:
        size, num_frames = batch.frame_scene.shape
        at = len(PREFIX)
        frames = keys[:, at : at + num_frames * FRAME_TOKENS].unflatten(1, (num_frames, FRAME_TOKENS)).mean(2)
        mean_query = torch.einsum("qt,qtd->qd", batch.query_of, queries[batch.clip_of])
        return (self._grouped(mean_query) @ frames.flatten(0, 1).T).unflatten(1, (size, num_frames))


def contrast_loss(batch: Batch, scores: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of finding a frame of the right scene among its rivals, mean over questions with rivals."""
    some = batch.rival.flatten(1).any(1)
    logits = (scores * (scale.exp() * 0.1)).flatten(1)[some]
    rivals = batch.rival.flatten(1)[some]
    positives = batch.positive.flatten(1)[some]
    low = torch.finfo(torch.float32).min
    everything = logits.masked_fill(~(rivals | positives), low).logsumexp(1)
    best = torch.where(positives, everything[:, None] - logits, torch.zeros(())).sum(1) / positives.sum(1)
    return best.mean()


def naming_loss(trainee: Trainee, batch: Batch) -> Tensor:
    """Cells behind the clock must know their frame's sign and clock; the last prompt token what was mentioned."""
    at, num_frames = len(PREFIX), batch.frame_scene.shape[1]
    cells = trainee.at_door[FRAME_NAMES_AT][:, at : at + num_frames * FRAME_TOKENS]
    cells = cells.unflatten(1, (num_frames, FRAME_TOKENS))[:, :, 2:]
    last = trainee.at_door[MENTIONS_AT][batch.clip_of, batch.last]
    losses = []
    for column, k in enumerate(FRAME_HEADS):
        known = cells[:, :, -1:] if k == COUNT_HEAD else cells  # only the last cell has seen all things
        truth = batch.frame_names[:, :, None, column].expand(known.shape[:3])
        losses.append(
            cross_entropy(trainee.names[k](known).flatten(0, 2), truth.flatten(), ignore_index=IGNORE)
        )
    for column, k in enumerate(MENTION_HEADS):
        if (batch.mentions[:, column] != IGNORE).any():
            losses.append(
                cross_entropy(trainee.names[k](last), batch.mentions[:, column], ignore_index=IGNORE)
            )
    return sum(losses[1:], losses[0]) / len(losses)


def pointing_loss(trainee: Trainee, batch: Batch) -> Tensor:
    """While it answers, some of the heads should look at the cells that show what is asked."""
    some = batch.focus.any(1)
    ends = torch.tensor([end for _, _, end in batch.answers])
    losses = []
    for step in range(ANSWER_STEPS):
        place = torch.minimum(batch.last + step, ends - 2)[some]
        for layer in POINTING_LAYERS:
            _, log_weights = trainee.attention(batch, layer, batch.clip_of[some], place)
            mass = log_weights.masked_fill(~batch.focus[some][:, None], -1e9).logsumexp(-1)
            losses.append((math.log(mass.shape[1]) - mass.logsumexp(1)).clamp(max=20).mean())
    return torch.stack(losses).mean()


def looking_loss(trainee: Trainee, batch: Batch) -> tuple[Tensor, Tensor]:
    """While it answers, every head of the late layers should look at frames of the right scenes alone; and those of
    the early layers, which cannot know yet which they are, at none: what they fetch is everybody's answer."""
    ends = torch.tensor([end for _, _, end in batch.answers])
    own = batch.positive[torch.arange(len(ends)), batch.clip_of].repeat_interleave(FRAME_TOKENS, 1)
    late, early = [], []
    for step in range(ANSWER_STEPS):
        place = torch.minimum(batch.last + step, ends - 2)
        for layer in range(len(trainee.queries)):
            mass, log_weights = trainee.attention(batch, layer, batch.clip_of, place)
            if layer in LOOKING_LAYERS:
                right = log_weights.masked_fill(~own[:, None], -1e9).logsumexp(-1)
                late.append(-right.clamp(min=-20).mean())
            else:
                early.append(-torch.log1p(-mass.exp().clamp(max=0.999)).mean())
    return torch.stack(late).mean(), torch.stack(early).mean()


def answer_loss(trainee: Trainee, batch: Batch, hidden: Tensor) -> Tensor:
    learnt = batch.targets != IGNORE
    return cross_entropy(trainee.model.lm_head(hidden[learnt]), batch.targets[learnt])


@torch.no_grad()
def evaluate(
    trainee: Trainee, spec: ClipSpec, clips: int, seed: int, make=make_batch
) -> dict[str, dict[str, float]]:
    """Whole answers right, by kind, beside the commonest answer's share; and retrieval by layer.

    An answer counts when every one of its tokens is the model's first choice given the ones before it, which is
    what greedy decoding says when it is right.
    """
    trainee.eval()
    rng = random.Random(seed)
    right: dict[str, list[bool]] = defaultdict(list)
    said: dict[str, list[str]] = defaultdict(list)
    found: dict[str, list[bool]] = defaultdict(list)
    for _ in range(max(1, clips // 16)):
        batch = make(rng, spec, 16)
        hidden, scores = trainee(batch)
        if spec.scenes[0] >= LONG.scenes[0]:
            show_retrieved(rng, batch, scores)
            hidden, scores = trainee(batch)
        choice = trainee.model.lm_head(hidden).argmax(-1)
        for g, (b, first, end) in enumerate(batch.answers):
            ok = bool((choice[b, first - 1 : end - 1] == batch.targets[b, first - 1 : end - 1]).all())
            right[batch.kinds[g]].append(ok)
            said[batch.kinds[g]].append(batch.questions[g].answer)
            if batch.rival[g].any():
                seen = batch.rival[g] | batch.positive[g]
                for layer, score in enumerate(scores):
                    top = score[g].masked_fill(~seen, -1e30).argmax()
                    found[f"layer{layer}"].append(bool(batch.positive[g].flatten()[top]))
    trainee.train()

    def mean(values: list[bool]) -> float:
        return round(sum(values) / max(1, len(values)), 3)

    by_kind = {k: mean(v) for k, v in right.items()}
    baseline = {k: round(max(v.count(a) for a in set(v)) / len(v), 3) for k, v in said.items()}
    overall = mean([ok for v in right.values() for ok in v])
    return {
        "accuracy": {"all": overall, **by_kind},
        "baseline": baseline,
        "top1": {k: mean(v) for k, v in found.items()},
    }


def train(trainee: Trainee, args: argparse.Namespace, make=make_batch, make_held=make_batch) -> None:
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    params = [p for p in trainee.parameters() if p.requires_grad]
    decay = [p for p in params if p.ndim > 1]
    other = [p for p in params if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": other, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    rng = random.Random(args.seed)
    began, step, last_eval, last_save, stage = time.time(), 0, time.time(), time.time(), args.stage
    sums: dict[str, float] = defaultdict(float)
    while (share := (time.time() - began) / (60 * args.minutes)) < 1:
        enough, latest, spec = CURRICULUM[stage]
        if share > latest:
            stage += 1
            continue
        size = args.clips if spec.scenes[1] <= 3 else max(4, args.clips // 2)
        rate = (
            args.lr
            * min(1, (step + 1) / args.warmup)
            * (1 if share < args.decay else max(0.03, (1 - share) / (1 - args.decay)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        asked = (
            replace(spec, kinds=rng.choice(HARD)) if spec.scenes[1] > 1 and rng.random() < args.hard else spec
        )
        if stage == len(CURRICULUM) - 1 and rng.random() < 0.4:
            asked = replace(asked, scenes=(1, 4), frames=(2, 6))
        if stage == len(CURRICULUM) - 1 and rng.random() < args.long:
            asked, size = replace(LONG, **rng.choice(LONG_ASKS)), max(3, size - 1)
        batch = make(rng, asked, size)
        if asked.scenes[0] >= LONG.scenes[0] and rng.random() < args.retrieved:
            with torch.no_grad():
                show_retrieved(rng, batch, trainee(batch)[1])
        hidden, scores = trainee(batch)
        answers = answer_loss(trainee, batch, hidden)
        contrast = (
            sum(contrast_loss(batch, s, trainee.contrast_scale[i]) for i, s in enumerate(scores))
            / max(1, len(scores))
            if spec.scenes[1] > 1 or not spec.refs
            else answers * 0
        )
        names = naming_loss(trainee, batch)
        loss = answers + args.contrast * contrast + args.naming * names
        if step % args.watch_every == 0:  # where attention goes: dear to compute, and soon learnt
            points = pointing_loss(trainee, batch)
            looks, peeks = looking_loss(trainee, batch)
            loss = loss + args.pointing * points + args.looking * (looks + 0.5 * peeks)
            sums["points"] += points.item()
            sums["peeks"] += peeks.item()
            sums["looks"] += looks.item()
            sums["watched"] += 1
        sums["names"] += names.item()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        step += 1
        sums["answers"] += answers.item()
        sums["contrast"] += contrast.item()
        sums["n"] += 1
        if time.time() - last_eval > args.eval_s:
            report = {
                "min": round((time.time() - began) / 60, 1),
                "step": step,
                "share": round(share, 3),
                "lr": rate,
                "loss": round(sums["answers"] / sums["n"], 3),
                "contrast": round(sums["contrast"] / sums["n"], 3),
                "names": round(sums["names"] / sums["n"], 3),
                "looks": round(sums["looks"] / max(1, sums["watched"]), 3),
                "peeks": round(sums["peeks"] / max(1, sums["watched"]), 3),
                "points": round(sums["points"] / max(1, sums["watched"]), 3),
                "now": evaluate(trainee, spec, 48, 7, make_held),
            }
            if spec.scenes[1] > 1:
                four = ClipSpec(scenes=(4, 4), frames=(1, 1) if spec.frames[1] < 3 else (3, 3), questions=12)
                report["long"] = evaluate(trainee, LONG, 32, 9, make_held)
                report["long"].pop("baseline")
                report["four"] = evaluate(trainee, four, 32, 8, make_held)["accuracy"]
            print(json.dumps(report), flush=True)
            stage += report["now"]["accuracy"]["all"] >= enough
            sums.clear()
            last_eval = time.time()
        if time.time() - last_save > 120:
            torch.save(trainee.state_dict(), out / "last.pt")
            last_save = time.time()
    torch.save(trainee.state_dict(), out / "last.pt")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--stage", type=int, default=0, help="part of the curriculum to start at")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--contrast", type=float, default=0.8)
    parser.add_argument(
        "--described", type=float, default=0.15, help="with a bank: share of batches that are described"
    )
    parser.add_argument(
        "--table", help="with a bank: the checkpoint whose cell vectors the tower was turned to"
    )
    parser.add_argument("--hard", type=float, default=0.3, help="share of batches of the hard kinds alone")
    parser.add_argument(
        "--decay", type=float, default=0.5, help="share of the run at which the rate begins to fall"
    )
    parser.add_argument("--long", type=float, default=0.6, help="at the end: share of clips of many scenes")
    parser.add_argument(
        "--retrieved", type=float, default=0.6, help="share of those whose questions see what they find"
    )
    parser.add_argument("--looking", type=float, default=0.4)
    parser.add_argument("--naming", type=float, default=0.5)
    parser.add_argument("--pointing", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--watch-every", type=int, default=2, help="steps between the losses of attention's place"
    )
    parser.add_argument(
        "--half", action="store_true", help="bfloat16 matrix products, for a core with avx512_bf16"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eval-s", type=float, default=45)
    parser.add_argument("--bank", nargs="+", help="features of real video instead of described cells")
    parser.add_argument("--held", type=int, default=240, help="scenes of each bank kept for the reports")
    parser.add_argument("--mixed", type=float, default=0.8, help="share of the bank's clips that are mixed")
    parser.add_argument("--from", dest="source", help="a checkpoint to continue")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    trainee = Trainee()
    trainee.half = args.half
    if args.source:
        trainee.load_state_dict(torch.load(args.source), strict=False)
    make = make_held = make_batch
    if args.bank:
        bank = Bank(*args.bank, part=slice(None, -args.held), mixed=args.mixed)
        held = Bank(*args.bank, part=slice(-args.held, None))
        seen, described = BankEyes(bank.features), trainee.eyes
        if args.table:
            described.table.weight.data = torch.load(args.table)["eyes.table.weight"]
        described.requires_grad_(False)

        def make(rng: random.Random, spec: ClipSpec, size: int) -> Batch:
            """Of the bank, or described as it is: the bank alone has too few signs, and they are learnt by heart."""
            is_described = rng.random() < args.described
            trainee.eyes = described if is_described else seen
            return make_batch(rng, spec, size, make_clip if is_described else bank.clip)

        def make_held(rng: random.Random, spec: ClipSpec, size: int) -> Batch:
            trainee.eyes = seen
            return make_batch(rng, spec, size, held.clip)

    train(trainee, args, make, make_held)


if __name__ == "__main__":
    main()
