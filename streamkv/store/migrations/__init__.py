"""The catalog's tables from release to release, by Alembic. A catalog that is opened for writing is brought up to date.

To change a table: change `tables.py`, add a step to `versions/`, and name it in `HEAD`.
"""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import Connection, inspect, text

HEAD = "0007"
"""The last step: what this program's tables are."""

BEFORE = "0000"
"""Of a catalog from before there were steps."""

_POSTGRESQL_LOCK = 0x5354524B56  # any number that is ours
_alembic = threading.Lock()  # keeps what it works on in globals


def revision(connection: Connection) -> str:
    """Of a catalog that is there."""
    if not inspect(connection).has_table("alembic_version"):
        return BEFORE
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or BEFORE)


def upgrade(connection: Connection) -> None:
    """Makes the tables, or brings them up to date, within the connection's transaction; one process does at a time."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    # Unlike SQLite, PostgreSQL lets two processes make tables at once, and one of them fails.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRESQL_LOCK})
    with _alembic:
        command.upgrade(config, HEAD)
