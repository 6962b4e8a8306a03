"""The server process: Ray, the ingest plane and the Serve application, until it is told to stop.

    python -m pipeline.server --home .streamkv --config local [a.b=c ...]

`streamkv up` starts it in the background; in a terminal it runs in the foreground. What it is doing stands in
`server.json` of the home folder. SIGTERM or Ctrl-C ends what it began, and nothing else.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from pipeline.cluster import joined_ray, local_ray, make_temp
from pipeline.home import Home, ServerRecord
from pipeline.keys import KeyFile, check_guarded
from pipeline.processes import this_process
from pipeline.settings import load_settings
from streamkv.config import PipelineConfig, StoreConfig
from streamkv.errors import ConfigError, StreamKVError

log = logging.getLogger("streamkv.server")


class StartError(Exception):
    """The server cannot start; the message says why."""


class _Stop(BaseException):  # not an error: nothing that catches errors may catch it
    """SIGTERM or Ctrl-C."""


@dataclass(frozen=True)
class ServerOptions:
    home: str
    config: str
    overrides: tuple[str, ...] = ()
    address: str = ""  # of a Ray that runs; empty: a Ray of our own


class Server:
    """One run, from start to stop."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._home = Home(options.home)
        me = this_process()
        self._record = ServerRecord(me.pid, me.created, "starting", config=options.config)

    def run(self) -> int:
        """The exit status."""
        signal.signal(signal.SIGTERM, _raise_stop)
        signal.signal(signal.SIGINT, _raise_stop)
        with self._home.locked() as is_mine:
            if not is_mine:
                log.error("another server is using %s", self._home.root)
                return 1
            try:
                self._serve()
            except _Stop:
                log.info("stopped")
                self._home.forget()
                return 0
            except (StartError, StreamKVError) as exc:
                self._tell("failed", str(exc))
                log.error("%s", exc)
            except Exception as exc:
                self._tell("failed", f"{type(exc).__name__}: {exc}"[:2000])
                log.exception("the server failed")
            return 1

    def _serve(self) -> None:
        self._tell("reading the configuration")
        overrides = (*self._options.overrides, *self._store_override())
        config = load_settings(self._options.config, overrides)
        check_guarded(config.serve.host, KeyFile(Path(config.store.root)))
        port = usable_port(config.serve.host, config.serve.port)
        overrides = (*overrides, f"serve.port={port}")
        config = load_settings(self._options.config, overrides)
        host = "127.0.0.1" if config.serve.host in ("0.0.0.0", "::") else config.serve.host
        self._record = replace(self._record, url=f"http://{host}:{config.serve.port}", preset=config.preset)
        if self._options.address:
            self._tell("joining Ray")
            with joined_ray(self._options.address):
                self._run_application(config, overrides, is_our_ray=False)
        else:
            temp = make_temp()
            self._record = replace(self._record, ray_temp=str(temp))
            self._tell("starting Ray")
            with local_ray(config, temp):
                self._run_application(config, overrides, is_our_ray=True)

    def _run_application(self, config: PipelineConfig, overrides: Sequence[str], *, is_our_ray: bool) -> None:
        signal.signal(signal.SIGTERM, _raise_stop)  # ray.init has put its own in its place
        from pipeline.deployment import DeployError, Deployment

        deployment = Deployment(config, self._options.config, overrides)
        try:
            self._tell("starting Serve")
            try:
                deployment.start(self._tell, self._record.url)
            except DeployError as exc:
                raise StartError(str(exc)) from exc
            self._tell("ready")
            log.info("ready at %s", self._record.url)
            while True:
                time.sleep(3600)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):  # once is enough: stopping takes a few seconds
                signal.signal(number, signal.SIG_IGN)
            with suppress(Exception):
                self._tell("stopping")
            deployment.stop(is_our_ray=is_our_ray)

    def _store_override(self) -> list[str]:
        """The home's store, unless the configuration names another."""
        config = load_settings(self._options.config, self._options.overrides)
        root = config.store.root
        self._record = replace(self._record, elsewhere=", ".join(self._home.elsewhere(config.store)))
        return [f"store.root={self._home.store if root == StoreConfig().root else Path(root).resolve()}"]

    def _tell(self, phase: str, detail: str = "") -> None:
        self._record = replace(self._record, phase=phase, detail=detail)
        self._home.write(self._record)


def usable_port(host: str, port: int) -> int:
    """The port, or any free one for 0; ConfigError when nothing can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return int(probe.getsockname()[1])
        except OSError as exc:
            raise ConfigError(
                f"serve.port: {host}:{port} cannot be used ({exc.strerror}); free it, or give another --port"
            ) from exc


def _raise_stop(number: int, frame: FrameType | None) -> None:
    raise _Stop


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.server", description=__doc__)
    parser.add_argument("--home", default=str(Home().root))
    parser.add_argument("--config", default="local")
    parser.add_argument("--address", default="")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return Server(ServerOptions(given.home, given.config, tuple(given.overrides), given.address)).run()


if __name__ == "__main__":
    sys.exit(main())
