"""How the catalog's database is opened: SQLite for one writer at a time, many readers and power cuts.

A server's URL is taken as it is.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from streamkv.errors import StoreError

WRITES = "streamkv_writes"
"""Execution option of transactions that write."""

_BUSY_S = 30.0
"""How long a transaction waits for another process's before it fails."""

_POSTGRESQL_DISK_FULL = "53100"

ABANDONED_S = 60.0
"""After which PostgreSQL ends the transaction of a process that is stopped or cut off in its midst."""


def hide_password(url: str | URL) -> str:
    """The URL as it may be shown."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "(not an SQLAlchemy URL)"


def make_engine(url: str | URL, *, read_only: bool) -> Engine:
    """An engine for any SQLAlchemy URL; no connection is made yet. Its errors show no values: URIs have passwords."""
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return _server_engine(parsed)
    except (SQLAlchemyError, ImportError) as exc:
        raise StoreError(f"store.catalog_url: cannot use it ({exc}); allowed: an SQLAlchemy URL") from exc
    if not parsed.database or parsed.database == ":memory:":
        raise StoreError(f"store.catalog_url: got {url!r}, allowed: SQLite in a file, or a server")
    path = Path(parsed.database)
    engine = create_engine(
        "sqlite://", creator=lambda: _connect(path, read_only), poolclass=QueuePool, hide_parameters=True
    )
    event.listen(engine, "begin", _begin)
    return engine


def is_full(error: object) -> bool:
    """Whether a database's error says that its disk has no room."""
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return full or getattr(error, "sqlstate", None) == _POSTGRESQL_DISK_FULL


def _server_engine(url: URL) -> Engine:
    engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
    if url.get_backend_name() == "postgresql":
        event.listen(engine, "connect", _end_abandoned)
    return engine


def _end_abandoned(connection: Any, _: object) -> None:
    """Or a writer that is stopped while it commits would keep all others from its stream."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = {round(ABANDONED_S * 1000)}")
    connection.commit()


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    mode = _mode(path) if read_only else "rwc"
    # isolation_level None: this module says when a transaction begins, not sqlite3
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA foreign_keys=ON")
        if not read_only:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous=FULL")  # what was acknowledged survives a power cut
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Readers go on while one writes. SQLite does not wait for the lock that this needs, so wait here."""
    give_up = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _mode(path: Path) -> str:
    """On a read-only disk nobody writes, and WAL's shared memory cannot be made: `immutable` does without."""
    unwritten = not path.with_name(path.name + "-wal").exists()
    return "ro&immutable=1" if unwritten and not os.access(path.parent, os.W_OK) else "ro"


def _begin(connection: Connection) -> None:
    """A transaction that writes takes SQLite's lock at once: taken after a read it would fail, not wait."""
    writes: Any = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
