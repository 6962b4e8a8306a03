"""What can go wrong between processes, as opposed to what a user can cause (`streamkv.errors`)."""

from __future__ import annotations


class WorkerLostError(RuntimeError):
    """An actor died, or did not answer in time; what was asked of it may or may not have happened."""


class SilentError(WorkerLostError):
    """An actor did not answer in time; it may be at work."""


class SessionLostError(RuntimeError):
    """A stream's session is not here, or not in the state that the caller believes: it has to be resumed."""


class NotReadyError(RuntimeError):
    """The ingest plane is still starting, or failed to start; the message says which."""


def describe(exc: BaseException) -> str:
    """One line, for a status or a log."""
    return f"{type(exc).__name__}: {exc}".splitlines()[0]
