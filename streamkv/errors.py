"""Every error that a user can cause, as one tree.

StreamKVError
├── ConfigError           a setting is unknown, mistyped or out of range
├── SourceError           a video cannot be opened or read at all
│   └── SourceGoneError       it was there when its stream was added
├── ModelError            a checkpoint cannot be loaded or is of an unknown family
├── QuestionError         a question is empty or too long, or about a time without footage
├── WatchError            a watch's webhook or confidence cannot be had
├── CapacityError         the ingest plane has no place for another stream
├── BatchError            a batch's questions, footage or output cannot be used
├── UpgradeError          another store cannot take the place of a server's, or not yet
├── SuiteError            an evaluation's annotations are missing or malformed
│   └── MissingVideoError     a video that the annotations name is not in the folder
└── StoreError
    ├── UnknownStreamError    no such stream
    ├── StreamExistsError     the stream id is taken
    ├── StreamIdError         the stream id is not a safe name
    ├── ForeignStoreError     the store was written by another model or format
    ├── CorruptSegmentError   a segment file does not match its checksums
    │   ├── MissingFileError      a segment's file is not on the local disk
    │   └── MissingObjectError    a segment's object is not in the object store
    ├── SegmentGoneError      a segment was deleted while it was being read
    ├── StoreFullError        the disk is full, or a stream or a tenant has all it may have
    ├── UnknownWatchError     no such watch
    ├── WatchLimitError       the stream has all the watches that it may have, or takes none any more
    ├── LegalHoldError        the stream is held: nothing of it is deleted
    ├── ObjectStoreError      the object store does not do what was asked, for now
    └── FencedError           another writer owns the stream now

Each message says what, what was got, what is allowed, and what to do.
"""


class StreamKVError(Exception):
    """Base of all errors below; catch it to catch whatever a user can cause."""


class ConfigError(StreamKVError, ValueError):
    """A setting is unknown, mistyped or out of range."""


class SourceError(StreamKVError):
    """A video cannot be opened, holds no video, or yields no frame."""


class SourceGoneError(SourceError):
    """A stream's source is not where it was when the stream was added."""


class ModelError(StreamKVError):
    """A checkpoint cannot be loaded, or no adapter knows its family."""


class QuestionError(StreamKVError, ValueError):
    """A question is empty or longer than the configured limit, or the time that it names cannot be looked at."""


class WatchError(StreamKVError, ValueError):
    """A watch's webhook cannot be posted to or signed, or the model does not say how sure its answers are."""


class CapacityError(StreamKVError):
    """No place for another stream, or a pool is to become too small for those that it has."""


class BatchError(StreamKVError):
    """A batch's question log cannot be read, its footage is not there, or its output cannot be written."""


class UpgradeError(StreamKVError):
    """Another store cannot take the place of a server's, or not yet; neither is lost."""


class SuiteError(StreamKVError):
    """An evaluation suite is unknown, or its annotation file is missing or malformed."""


class MissingVideoError(SuiteError):
    """A video that a suite's annotations name is not in the folder of videos."""


class StoreError(StreamKVError):
    """The segment store refuses or cannot do what was asked."""


class UnknownStreamError(StoreError, KeyError):
    """No stream of that id is registered."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class StreamExistsError(StoreError):
    """A stream of that id is registered already."""


class StreamIdError(StoreError, ValueError):
    """The stream id is not a safe file name."""


class ForeignStoreError(StoreError):
    """The store was written by another model, geometry or format version."""


class CorruptSegmentError(StoreError):
    """A segment file is cut, altered or missing."""


class MissingFileError(CorruptSegmentError):
    """A segment's file is not on the local disk."""


class MissingObjectError(CorruptSegmentError):
    """A segment's object is not in the object store."""


class SegmentGoneError(StoreError):
    """Retention deleted the segment, or its stream was removed, after the reader had begun."""


class StoreFullError(StoreError):
    """No room for another segment: the disk is full, or a limit of `store.retention` is reached."""


class UnknownWatchError(StoreError):
    """No watch of that id is registered, or its stream was removed."""


class WatchLimitError(StoreError):
    """The stream has all the watches that it may have, or will show nothing more that one could see."""


class LegalHoldError(StoreError):
    """The stream is on legal hold, and what was asked would delete of it."""


class ObjectStoreError(StoreError):
    """The object store behind the disk cannot be reached, or refuses; nothing is lost, and it may work later."""


class FencedError(StoreError):
    """The writer's epoch is older than the stream's: another writer took over."""
