"""A real Ray and Serve with the real ingress backend, whose replicas do what the question says.

    python scripted.py FOLDER TIMEOUT_S

Two replicas. Each writes what happens to it into files of FOLDER, and the address into `url`. Runs until stdin closes.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster import local_ray, make_temp
from pipeline.dialogue import Query, Reply
from pipeline.schemas import Answer
from pipeline.server import usable_port
from streamkv.config import PipelineConfig, load_config

if TYPE_CHECKING:
    from fastapi import FastAPI

REPLY = Reply(Answer(answer="a b", evidence=[], as_of_s=1.0, timings_ms={}, gaps=[]), 3, 2, "stop")
PAUSE_S = 0.02
FLOOD, PIECE = 2_000, "x" * 5_000
"""Far more than connections hold on the way."""


class Replica:
    """Answers "a b", unless the question wants something else of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def words(self, query: Query) -> AsyncGenerator[str | Reply, None]:
        if query.question == "die at first" and self._is_first("died"):
            os._exit(1)
        if query.question == "die always":
            os._exit(1)
        if query.question == "wait":
            await self._wait_for("go")
        if query.question == "hang":
            await self._wait_for("never")
        yield "a"
        if query.question == "die later":
            await asyncio.sleep(PAUSE_S)
            os._exit(1)
        if query.question == "stall":
            await self._wait_for("never")
        if query.question == "go on":
            try:
                while True:
                    await asyncio.sleep(PAUSE_S)
                    yield "."
            finally:
                (self._folder / "cancelled").touch()
        for _ in range(FLOOD if query.question == "flood" else 0):
            yield PIECE
        yield " b"
        yield REPLY

    async def reply(self, query: Query) -> Reply:
        async for piece in self.words(query):
            if isinstance(piece, Reply):
                return piece
        raise AssertionError("no reply")

    def _is_first(self, name: str) -> bool:
        try:
            (self._folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    async def _wait_for(self, name: str) -> None:
        (self._folder / f"waits {name} {os.getpid()} {id(asyncio.current_task())}").touch()
        while not (self._folder / name).exists():
            await asyncio.sleep(PAUSE_S)


class Front:
    """The ingress without an ingest plane."""

    def __init__(self, config: PipelineConfig, answer: Any) -> None:
        self._config, self._answer = config, answer

    def __serve_build_asgi_app__(self) -> FastAPI:
        from pipeline.api import make_api
        from pipeline.app import ServeBackend

        return make_api(ServeBackend(self._config, self._answer, self._answer))


def main(folder: Path, timeout_s: str) -> None:
    port = usable_port("127.0.0.1", 0)
    settings = [
        *("serve.replicas=2", "serve.batch_questions=1", "serve.max_queued=1", "serve.cpus=0.1"),
        f"serve.timeout_s={timeout_s}",
    ]
    config = load_config(None, settings)
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # its own 5 s is little on a busy machine
    with local_ray(config, make_temp()):
        from ray import serve

        from pipeline.app import answer_options
        from pipeline.deployment import QUIET

        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=QUIET)
        replicas = serve.deployment(Replica).options(**answer_options(config.serve)).bind(folder)
        front = serve.deployment(serve.ingress()(Front)).options(ray_actor_options={"num_cpus": 0.1})
        serve.run(front.bind(config, replicas), name="scripted", route_prefix="/", logging_config=QUIET)
        partial = folder / "url.tmp"
        partial.write_text(f"http://127.0.0.1:{port}")
        partial.rename(folder / "url")
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
