"""What was said before a question. Imports nothing, so that it may travel between processes."""

from __future__ import annotations

from typing import Literal, NamedTuple

Speaker = Literal["user", "assistant"]


class Turn(NamedTuple):
    """Neighbours of one speaker count as one turn, line by line."""

    speaker: Speaker
    text: str
