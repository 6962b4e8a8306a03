"""Tokens to pieces of text."""

from __future__ import annotations

from streamkv.models.base import VideoLLM
from streamkv.question import OnToken


class TextStream:
    """Pieces of text are only handed on when later tokens cannot change them."""

    def __init__(self, model: VideoLLM, on_token: OnToken | None) -> None:
        self._model, self._on_token = model, on_token
        self.token_ids: list[int] = []
        self._said = ""
        self._sent = ""

    def say(self, words: str) -> None:
        """In place of tokens."""
        self._said = words

    def add(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        if self._on_token is not None:
            text = self._text()
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half of a character
                self._send(text)

    def finish(self) -> str:
        """The whole text; sends what was held back."""
        text = self._text()
        self._send(text)
        return text

    def _text(self) -> str:
        return self._said or self._model.decode(self.token_ids).strip()

    def _send(self, text: str) -> None:
        if self._on_token is not None and len(text) > len(self._sent) and text.startswith(self._sent):
            self._on_token(text[len(self._sent) :])
            self._sent = text
