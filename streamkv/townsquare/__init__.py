"""The demo world: a town square seen by a time-lapse camera, with questions whose answers are known."""

from streamkv.townsquare.questions import Question, is_correct, make_questions
from streamkv.townsquare.script import Scene, Sign, Thing, World, make_world
from streamkv.townsquare.video import write_video

__all__ = [
    "Question",
    "Scene",
    "Sign",
    "Thing",
    "World",
    "is_correct",
    "make_questions",
    "make_world",
    "write_video",
]
