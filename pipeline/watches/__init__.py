"""Standing questions over HTTP: registered, listed, removed, and followed as events."""

from pipeline.watches.following import Followers
from pipeline.watches.routes import Watching, make_router

__all__ = ["Followers", "Watching", "make_router"]
