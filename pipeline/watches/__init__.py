"""Standing questions over HTTP: registered, listed, removed, and followed as events."""

from pipeline.watches.following import Followers
from pipeline.watches.routes import PREFIX, Watching, last_event, make_router

__all__ = ["PREFIX", "Followers", "Watching", "last_event", "make_router"]
