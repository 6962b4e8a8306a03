"""The Serve application: `build_app` is its one builder, here and in a cluster's Serve config.

Api (FastAPI, stateless) -> by stream -> Answer (model, engine, warm streams)      both read the same store
    |-> Look (segments, pictures, clips)                                           and this one, too,
    |-> the detached supervisor, which Api starts if there is none                 which ingest writes
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.config import BackpressureConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from actors.failures import WorkerLostError
from actors.remote import plain_error
from actors.roles import ANSWER, ROLE_SHARE
from actors.spawn import ensure_supervisor, find_supervisor
from actors.views import NewWatch, PlaneState, PoolView, Reencoding, StreamView, WatchEventView, WatchView
from pipeline import schemas
from pipeline.dialogue import ClipHead, Picture, Query, Reply, SearchQuery, SearchReply
from pipeline.http_errors import RETRY_AFTER_S, DeadlineError, OverloadedError
from pipeline.keys import KeyFile, is_loopback
from pipeline.settings import load_settings
from pipeline.watches import Followers
from streamkv.config import PipelineConfig, ServeConfig, WatchConfig

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

    from pipeline.footage import Footage

T = TypeVar("T")

APP_NAME = "streamkv"
ANSWER_TRIES = 3
"""Replicas that are asked for one answer before the asker hears that there is none."""
WORDS_TRIES = 2
"""The same where the asker sees the answer come."""
REPLICA_LOST = (RayActorError, DeploymentUnavailableError)
RETRY_PAUSE_S = 0.2
ALL_STREAMS = "*"
"""Where questions to many streams go, in place of a stream: one replica then has them all warm."""
LOOKS = 16
"""Requests that a `Look` takes at once, clips on their way out among them."""
CHUNK_BYTES = 1 << 20
"""Of a clip on its way: large enough for Ray to keep it outside of anybody's heap."""
CONTROL_S = 60.0
"""Adding a stream opens its source, removing one waits for the segment at hand."""


class AppArgs(BaseModel):
    """Arguments of the application in a Serve config."""

    model_config = ConfigDict(extra="forbid")

    config: str = "local"
    """A shipped configuration's name, or a path that every node can read."""
    overrides: list[str] = []
    """`a.b=c`, over the configuration."""


def build_app(args: AppArgs) -> Application:
    """The whole application from a configuration."""
    config = load_settings(args.config, args.overrides)
    # The decorators make deployments of these classes, which mypy, that skips Ray, does not see.
    api, answer, look = cast(Any, Api), cast(Any, Answer), cast(Any, Look)
    answering = answer.options(**answer_options(config.serve)).bind(config)
    looking = look.options(**look_options(config.serve)).bind(config)
    return api.options(**api_options(config.serve, config.watch)).bind(config, answering, looking)


def api_options(config: ServeConfig, watch: WatchConfig) -> dict[str, Any]:
    """It only waits: many requests at once, little CPU."""
    return {
        "num_replicas": 1,
        "max_ongoing_requests": 4 * config.max_queued + watch.max_followers,
        "max_queued_requests": 4 * config.max_queued,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        "health_check_period_s": 10,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": config.timeout_s,
        "ray_actor_options": {"num_cpus": 0.1, "resources": {ANSWER: ROLE_SHARE}},
    }


def answer_options(config: ServeConfig) -> dict[str, Any]:
    """As many wait beside those that are answered together; the queue behind is bounded."""
    return {
        **replica_count(config),
        "max_ongoing_requests": 2 * config.batch_questions,
        "max_queued_requests": config.max_queued,
        "health_check_period_s": 10,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": config.timeout_s,
        "ray_actor_options": {
            "num_cpus": config.cpus,
            "num_gpus": config.gpus,
            "resources": {ANSWER: ROLE_SHARE},
        },
        **stream_affinity(config),
    }


def replica_count(config: ServeConfig) -> dict[str, Any]:
    """So many, or by the questions under way, looked at twice in the time after which it is acted on."""
    if config.max_replicas <= config.replicas:
        return {"num_replicas": config.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": config.replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.batch_questions,
            "upscale_delay_s": config.scale_up_s,
            "downscale_delay_s": config.scale_down_s,
            "metrics_interval_s": config.scale_up_s / 2,
            "look_back_period_s": config.scale_up_s,
        }
    }


def look_options(config: ServeConfig) -> dict[str, Any]:
    """One clip is made at a time, beside one picture; where questions are answered, since that sees the footage."""
    return {
        "num_replicas": 1,
        "max_ongoing_requests": LOOKS,
        "max_queued_requests": config.max_queued,
        "health_check_period_s": 10,
        "health_check_timeout_s": 30,
        "graceful_shutdown_timeout_s": config.timeout_s,
        "ray_actor_options": {"num_cpus": 0.1, "resources": {ANSWER: ROLE_SHARE}},
    }


def stream_affinity(config: ServeConfig) -> dict[str, Any]:
    """Sends a stream's questions to the replica that has it warm (experimental in Ray).

    A hint only: any replica answers for any stream, and all others are tried when that one has its hands full.
    """
    from ray.serve.config import RequestRouterConfig
    from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

    others = {"num_fallback_replicas": config.most_replicas - 1}
    router = RequestRouterConfig(request_router_class=ConsistentHashRouter, request_router_kwargs=others)
    return {"request_router_config": router}


@serve.deployment
class Answer:
    """A replica that answers. The model loads before it counts as ready."""

    def __init__(self, config: PipelineConfig) -> None:
        from actors.latest import latest_segments
        from actors.right_of_way import RightOfWay, name_of
        from pipeline.answering import Answerer  # brings torch, which only this process needs
        from pipeline.desk import Desk
        from pipeline.searching import Searcher

        answerer = Answerer(config, latest_segments)
        self._desk = Desk(answerer, config.serve.batch_questions, RightOfWay(name_of(config)))
        self._searcher = Searcher(answerer)

    def check_health(self) -> None:
        self._desk.check_health()

    async def reply(self, query: Query) -> Reply:
        """See `Answerer.answer`. Ends early when the asker has gone."""
        cancelled = threading.Event()
        try:
            return await self._begin(query, cancelled)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def words(self, query: Query) -> AsyncGenerator[str | Reply, None]:
        """The same, but each piece of the text as soon as there is one, and the reply as the last item."""
        cancelled = threading.Event()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(text: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        work = self._begin(query, cancelled, tell)
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield await work
        finally:
            cancelled.set()
            if not work.cancel() and not work.cancelled():
                work.exception()  # heard, so that asyncio does not miss a listener

    def _begin(
        self, query: Query, cancelled: threading.Event, on_text: Callable[[str], None] | None = None
    ) -> asyncio.Future[Reply]:
        return asyncio.wrap_future(self._desk.ask(query, cancelled, on_text))

    async def search(self, query: SearchQuery) -> SearchReply:
        """See `Searcher.search`; streams are asked among all other questions. Ends early when the asker has gone."""
        cancelled = threading.Event()
        try:
            found = await asyncio.wrap_future(self._desk.call(self._searcher.find, query))
            asked = [self._begin(one, cancelled) for one in found.to_ask]
            return self._searcher.reply(found, await asyncio.gather(*asked))
        except BaseException:  # the asker has gone, or one of the streams cannot answer
            cancelled.set()
            raise


@serve.deployment
class Look:
    """What was filmed and what is stored of it. A process of its own: no clip takes a question's place, and no
    malformed file the model down with the decoder that it breaks."""

    def __init__(self, config: PipelineConfig) -> None:
        self._config = config
        self._footage: Footage | None = None
        self._looks = ThreadPoolExecutor(1, "look")
        self._clips = ThreadPoolExecutor(1, "clip")

    async def segments(self, stream_id: str, after: int, limit: int) -> schemas.SegmentList:
        """See `Footage.segments`."""
        return await self._look(lambda: self._opened().segments(stream_id, after, limit))

    async def picture(self, stream_id: str, at_s: float, width: int | None) -> Picture:
        """See `Footage.picture`."""
        return await self._look(lambda: self._opened().picture(stream_id, at_s, width))

    async def thumbnails(self, stream_id: str, times_s: Sequence[float], width: int) -> list[bytes | None]:
        """See `Footage.thumbnails`."""
        return await self._look(lambda: self._opened().thumbnails(stream_id, times_s, width))

    async def clip(
        self, stream_id: str, start_s: float, end_s: float
    ) -> AsyncGenerator[ClipHead | bytes, None]:
        """See `Footage.clip`: its head, then its bytes. Ends early when the asker has gone."""
        cancelled = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            head, file = await loop.run_in_executor(
                self._clips, lambda: self._opened().clip(stream_id, start_s, end_s, cancelled)
            )
        finally:
            cancelled.set()
        with file:
            yield head
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    async def _look(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._looks, work)

    def _opened(self) -> Footage:
        from pipeline.footage import Footage  # brings torch: seconds that no start of the server waits for

        if self._footage is None:
            self._footage = Footage(self._config)
        return self._footage


@serve.deployment
@serve.ingress()
class Api:
    """The ingress."""

    def __init__(self, config: PipelineConfig, answer: DeploymentHandle, look: DeploymentHandle) -> None:
        ensure_supervisor(config)
        self._config = config
        self._backend = ServeBackend(config, answer, look)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from pipeline.api import make_api

        keys = KeyFile(Path(self._config.store.root))
        return make_api(self._backend, keys, is_open=is_loopback(self._config.serve.host))


class ServeBackend:
    """What the routes call: the supervisor for streams, an `Answer` replica for questions, `Look` for footage."""

    def __init__(self, config: PipelineConfig, answer: DeploymentHandle, look: DeploymentHandle) -> None:
        self._config = config
        self._answer = answer
        self._followers = Followers(self._watch_events, config.watch.max_followers)
        self._look = look

    async def state(self) -> PlaneState:
        try:
            state: PlaneState = await self._supervise("state")
        except WorkerLostError as exc:
            return PlaneState("starting", str(exc))
        return state

    async def streams(self) -> list[StreamView]:
        views: list[StreamView] = await self._supervise("streams")
        return views

    async def stream(self, stream_id: str) -> StreamView:
        view: StreamView = await self._supervise("stream", stream_id)
        return view

    async def add_stream(
        self, stream_id: str, uri: str, guidance: str, tenant: str, priority: int
    ) -> StreamView:
        view: StreamView = await self._supervise("add_stream", stream_id, uri, guidance, tenant, priority)
        return view

    async def remove_stream(self, stream_id: str) -> None:
        await self._supervise("remove_stream", stream_id)

    async def add_watch(self, new: NewWatch) -> tuple[WatchView, str]:
        added: tuple[WatchView, str] = await self._supervise("add_watch", new)
        return added

    async def watches(self, stream_id: str | None) -> list[WatchView]:
        views: list[WatchView] = await self._supervise("watches", stream_id)
        return views

    async def watch(self, watch_id: str) -> WatchView:
        view: WatchView = await self._supervise("watch", watch_id)
        return view

    async def remove_watch(self, watch_id: str) -> None:
        await self._supervise("remove_watch", watch_id)

    def follow(self, watch_id: str, after: int, wait_s: float) -> AsyncGenerator[WatchEventView | None, None]:
        return self._followers.follow(watch_id, after, wait_s)

    async def _watch_events(
        self, after: list[tuple[str, int]], limit: int
    ) -> list[list[WatchEventView] | None]:
        found: list[list[WatchEventView] | None] = await self._supervise("watch_events", after, limit)
        return found

    async def pools(self) -> list[PoolView]:
        pools: list[PoolView] = await self._supervise("pools")
        return pools

    async def scale(self, sizes: dict[str, int]) -> list[PoolView]:
        pools: list[PoolView] = await self._supervise("scale", sizes)
        return pools

    async def reencode(self, stream_id: str, new: Reencoding) -> StreamView:
        view: StreamView = await self._supervise("reencode", stream_id, new)
        return view

    async def cancel_reencode(self, stream_id: str) -> StreamView:
        view: StreamView = await self._supervise("cancel_reencode", stream_id)
        return view

    async def stats(self) -> dict[str, float]:
        stats: dict[str, float] = await self._supervise("stats")
        return stats

    async def reply(self, query: Query) -> Reply:
        reply: Reply = await self._ask_replica("reply", query.stream_id, query)
        return reply

    async def words(self, query: Query) -> AsyncGenerator[str | Reply, None]:
        """The answer piece by piece; the reply is the last item. Closing it cancels the answer.

        A replica that dies before the first piece costs time only; later, what came cannot be taken back, and
        WorkerLostError says that it is not the whole.
        """
        deadline = time.monotonic() + self._config.serve.timeout_s
        for attempt in range(1, WORDS_TRIES + 1):
            has_begun = False
            try:
                async with aclosing(self._words_once(query, deadline)) as pieces:
                    async for piece in pieces:
                        has_begun = True
                        yield piece
                return
            except REPLICA_LOST as exc:
                if has_begun:
                    raise WorkerLostError(
                        "the replica that answered died; the answer is not whole, ask again"
                    ) from exc
                if attempt == WORDS_TRIES:
                    raise WorkerLostError("no replica could begin the answer; ask again") from exc
                await asyncio.sleep(RETRY_PAUSE_S * attempt)

    async def _words_once(self, query: Query, deadline: float) -> AsyncGenerator[str | Reply, None]:
        replica = self._answer.options(session_id=query.stream_id, stream=True)
        with self._translated():
            reply = replica.words.remote(query)
            try:
                while True:
                    try:
                        piece = await asyncio.wait_for(anext(reply), max(deadline - time.monotonic(), 0.001))
                    except StopAsyncIteration:
                        return
                    yield piece
            finally:
                reply.cancel()

    async def search(self, query: SearchQuery) -> SearchReply:
        found: SearchReply = await self._ask_replica("search", ALL_STREAMS, query)
        return found

    async def segments(self, stream_id: str, after: int, limit: int) -> schemas.SegmentList:
        found: schemas.SegmentList = await self._try(self._look, "segments", stream_id, after, limit)
        return found

    async def picture(self, stream_id: str, at_s: float, width: int | None) -> Picture:
        picture: Picture = await self._try(self._look, "picture", stream_id, at_s, width)
        return picture

    async def thumbnails(self, stream_id: str, times_s: Sequence[float], width: int) -> list[bytes | None]:
        found: list[bytes | None] = await self._try(self._look, "thumbnails", stream_id, times_s, width)
        return found

    async def clip(
        self, stream_id: str, start_s: float, end_s: float
    ) -> AsyncGenerator[ClipHead | bytes, None]:
        """Its head, then its bytes. Closing it cancels the work."""
        with self._translated():
            pieces = self._look.options(stream=True).clip.remote(stream_id, start_s, end_s)
            try:
                while True:
                    try:
                        piece = await asyncio.wait_for(anext(pieces), self._config.serve.timeout_s)
                    except StopAsyncIteration:
                        return
                    except REPLICA_LOST as exc:
                        raise WorkerLostError("the process that made the clip died; ask again") from exc
                    yield piece
            finally:
                pieces.cancel()

    async def _ask_replica(self, method: str, stream_id: str, *args: Any) -> Any:
        """Asks the stream's own replica, if it can."""
        return await self._try(self._answer.options(session_id=stream_id), method, *args)

    async def _try(self, replica: DeploymentHandle, method: str, *args: Any) -> Any:
        """Asks a replica; another one when it dies, as long as there is time."""
        deadline = time.monotonic() + self._config.serve.timeout_s
        for attempt in range(1, ANSWER_TRIES + 1):
            try:
                with self._translated():
                    reply = getattr(replica, method).remote(*args)
                    return await asyncio.wait_for(reply, max(deadline - time.monotonic(), 0.001))
            except REPLICA_LOST as exc:
                if attempt == ANSWER_TRIES:
                    raise WorkerLostError("no replica could finish the answer; ask again") from exc
                await asyncio.sleep(RETRY_PAUSE_S * attempt)
        raise AssertionError("unreachable")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """A replica's errors as our own, but for those that another replica may not have."""
        limits = self._config.serve
        try:
            yield
        except BackPressureError as exc:
            raise OverloadedError(
                f"{limits.max_queued} requests wait already; ask again a little later"
            ) from exc
        except TimeoutError as exc:
            raise DeadlineError(
                f"no answer within {limits.timeout_s:g} s; ask again or ask for less"
            ) from exc
        except REPLICA_LOST:
            raise
        except RayError as exc:
            raise plain_error(exc) from None

    async def _supervise(self, method: str, *args: Any) -> Any:
        # Looked up each time: the supervisor may have been started anew, and the look-up is cheap and local.
        try:
            supervisor = await asyncio.to_thread(find_supervisor)
            return await asyncio.wait_for(getattr(supervisor, method).remote(*args), CONTROL_S)
        except ValueError as exc:
            if isinstance(exc, RayError):
                raise plain_error(exc) from None
            raise WorkerLostError("there is no supervisor; it is being started") from exc
        except TimeoutError as exc:
            raise WorkerLostError("the supervisor does not answer in time") from exc
        except ray.exceptions.RayError as exc:
            raise plain_error(exc) from None
