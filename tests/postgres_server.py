"""A PostgreSQL server of the tests' own: in a folder that goes with it, on a Unix socket, never run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text

USER = "streamkv"
START_S = 60


def postgres_programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`; None when they are not installed."""
    on_path = shutil.which("postgres")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "pg_ctl").exists()), None)


class PostgresServer:
    """A server that is up."""

    def __init__(self, sockets: Path) -> None:
        self._sockets = sockets

    def new_database(self) -> str:
        """An empty one's SQLAlchemy URL."""
        name = f"t{uuid.uuid4().hex}"
        engine = create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@/{database}?host={self._sockets}"


@contextmanager
def postgres_server(programs: Path) -> Iterator[PostgresServer]:
    """Runs until the block ends."""
    # Not pytest's folder: that is closed to the other user, as whom root has to run it.
    folder = Path(tempfile.mkdtemp(prefix="streamkv-postgres-"))
    data, log = folder / "data", folder / "log"

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(data), *arguments]
        # Output to a file: the server inherits it, and a pipe would never come to its end.
        with (folder / "output").open("ab") as output:
            done = subprocess.run(command, stdout=output, stderr=output, cwd=folder, user=user, check=False)
        said = [path.read_text() for path in (folder / "output", log) if path.exists()]
        assert done.returncode == 0, f"{program} failed: {said}"

    user = None
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody").pw_uid
        os.chown(folder, user, -1)
    try:
        # What was committed need not outlive a power cut here, so nothing waits for the disk.
        run("initdb", "--auth=trust", f"--username={USER}", "--encoding=UTF8", "--locale=C", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
        run("pg_ctl", "start", "--wait", f"--timeout={START_S}", f"--log={log}", f"--options={options}")
        try:
            yield PostgresServer(folder)
        finally:
            run("pg_ctl", "stop", "--mode=immediate", "--wait")
    finally:
        shutil.rmtree(folder)
