"""Questions the way that OpenAI's clients put them: `/v1/chat/completions` and `/v1/models`.

A stream is named by `stream_id`, or as the model `streamkv/STREAM`. Decoding is greedy, so settings of sampling have no
effect, and a reply names them as ignored; what would change an answer's form is refused. Knows neither Ray nor the
engine.
"""

from pipeline.openai.errors import error_body, response_to
from pipeline.openai.replies import DONE, last_events
from pipeline.openai.routes import CHAT, PATHS, Asking, make_router

__all__ = ["CHAT", "DONE", "PATHS", "Asking", "error_body", "last_events", "make_router", "response_to"]
