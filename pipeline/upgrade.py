"""Another model, or other settings, for a whole server: a second one beside it encodes every archive anew, then takes
its place (docs/decisions/0013-another-model-is-another-store.md).

    HOME/store         what the server answers from
    HOME/next/         the home of the second server; `upgrade.json` says what it is for, and makes it one
    HOME/store.before  the old store, once the new one is in its place

Which of them are there says how far it is, so that a command which was cut off goes on where it was:

    next/store    store    store.before
    may be        is       -             archives are encoded, or are whole
    is            -        is            between the two renames
    -             is       is            the new store is in its place; what is left: start the server, remove next
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from actors.pool_sizes import FILE as POOLS
from actors.stream_settings import check_own
from pipeline import launch
from pipeline.home import Home, ServerRecord
from pipeline.keys import FILE as KEYS
from pipeline.settings import load_settings
from streamkv.config import PipelineConfig
from streamkv.errors import ConfigError, UpgradeError
from streamkv.live import is_live
from streamkv.store import ENDED, ModelIdentity, SegmentStore, StreamRecord, durable, is_store
from streamkv.store.layout import name_of

FILE = "upgrade.json"
BY_HAND = (
    "do it by hand: start a second server with the new settings, another --home and a store of its own, add the "
    "streams there, and send questions there when they are done"
)

Wait = Callable[[str, Sequence[str]], object]
"""Returns when none of these streams of the server at this URL is being ingested any more."""


@dataclass(frozen=True)
class Plan:
    """What the second server is for."""

    config: str
    settings: tuple[str, ...]
    live_anew: bool = False
    port: int = 0  # of the server that was stopped for the switch; 0: none was

    @cached_property
    def pipeline(self) -> PipelineConfig:
        return load_settings(self.config, self.settings)


@dataclass(frozen=True)
class Upgraded:
    """How it has ended."""

    url: str  # of the server; empty: none ran before
    old_store: Path
    failed: tuple[str, ...]  # streams without a whole memory


class Servers(Protocol):
    """`pipeline.launch`, or what starts and stops like it."""

    def running(self, home: Home) -> ServerRecord | None: ...

    def start(
        self, home: Home, config: str, overrides: Sequence[str] = (), *, on_phase: Callable[[str], None]
    ) -> launch.Started: ...

    def stop(self, home: Home) -> bool: ...


def identity_of(config: PipelineConfig) -> ModelIdentity:
    """Of the configuration's model, by loading it."""
    from pipeline.cluster import local_ray, make_temp, when_needed
    from pipeline.model_identity import identify

    with when_needed(lambda: local_ray(config, make_temp())) as need_ray:
        return identify(config.model, need_ray)


class Upgrade:
    """Of one home. `tell` hears each step before it is taken."""

    def __init__(
        self,
        home: Home,
        wait: Wait,
        tell: Callable[[str], None],
        *,
        servers: Servers = launch,
        identify: Callable[[PipelineConfig], ModelIdentity] = identity_of,
    ) -> None:
        self._home = home
        self._next = home.next
        self._wait = wait
        self._tell = tell
        self._servers = servers
        self._identify = identify

    # ---- what users ask for

    def run(
        self,
        config: str = "",
        settings: Sequence[str] = (),
        *,
        live_anew: bool = False,
        despite_failed: bool = False,
    ) -> Upgraded:
        """From where it is to its end. No configuration and no settings: those of the upgrade that is under way."""
        with self._alone():
            plan = self._planned(config, settings, live_anew=live_anew)
            if not self._home.old_store.exists():
                self._encode(plan, retry=not despite_failed)
                self._check_whole(despite_failed=despite_failed)
                plan = self._note_port(plan)
                self._switch(plan)
            elif self._home.is_between_stores:
                self._put_in_place()
            return self._finish(plan)

    def cancel(self) -> None:
        """Stops the second server and removes it with its store; the server is as it was."""
        with self._alone():
            if self._read() is None:
                raise UpgradeError(f"{self._home.root}: no upgrade is under way; there is nothing to cancel")
            if self._home.old_store.exists():
                raise UpgradeError(
                    f"{self._home.root}: the stores have been switched; complete it with: streamkv upgrade"
                )
            self._remove_next()

    # ---- the plan

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._home.locked("upgrade") as is_mine:
            if not is_mine:
                raise UpgradeError(
                    f"{self._home.root}: another process is at this upgrade; wait for it, or end it first"
                )
            yield

    def _planned(self, config: str, settings: Sequence[str], *, live_anew: bool) -> Plan:
        """What is under way, or else a new plan, noted."""
        plan = self._read()
        if plan is None:
            if not config and not settings:
                raise UpgradeError(
                    "upgrade: got no settings, and none is under way; give what is to be, as in model.path=FOLDER"
                )
            record = self._servers.running(self._home)
            plan = Plan(config or (record and record.config) or "local", tuple(settings))
            self._check_possible(plan)
            self._remove_next()
        elif (config and config != plan.config) or (settings and tuple(settings) != plan.settings):
            raise UpgradeError(
                f"upgrade: got {_shown(config or plan.config, settings)}, but under way is "
                f"{_shown(plan.config, plan.settings)}; go on with it: streamkv upgrade; or give it up first: "
                "streamkv upgrade --cancel"
            )
        plan = replace(plan, live_anew=plan.live_anew or live_anew)
        if not self._home.old_store.exists():
            self._check_server()
            self._check_streams(plan)
        self._write(plan)
        return plan

    def _read(self) -> Plan | None:
        try:
            values = json.loads((self._next.root / FILE).read_bytes())
            return Plan(**(values | {"settings": tuple(values["settings"])}))
        except FileNotFoundError:
            return None

    def _write(self, plan: Plan) -> None:
        durable.make_folder(self._next.root)
        partial = self._next.root / f"{FILE}.tmp"
        partial.unlink(missing_ok=True)
        durable.write_temp(partial, lambda file: file.write(json.dumps(asdict(plan), indent=1).encode()))
        durable.publish(partial, self._next.root / FILE)

    # ---- what must be so

    def _check_possible(self, plan: Plan) -> None:
        elsewhere = self._home.elsewhere(plan.pipeline.store)
        if elsewhere:
            raise UpgradeError(
                f"upgrade: {', '.join(elsewhere)} would have the new store elsewhere than in {self._home.root}, where "
                f"it is to take the old one's place; {BY_HAND}"
            )
        if not is_store(self._home.store):
            raise UpgradeError(
                f"{self._home.store}: no store is there yet; start with the new settings: streamkv up"
            )
        if self._home.old_store.exists():
            raise UpgradeError(
                f"{self._home.old_store}: the old store of an earlier upgrade is there still; remove it first"
            )

    def _check_server(self) -> None:
        """That the server can be stopped and started for the switch."""
        record = self._servers.running(self._home)
        if record is None:
            return
        if record.phase != "ready":
            raise UpgradeError(f"{self._home.root}: the server is {record.phase}; wait until it is ready")
        if record.elsewhere or not record.ray_temp:
            what = (
                f"its store is elsewhere ({record.elsewhere})" if record.elsewhere else "it has joined a Ray"
            )
            raise UpgradeError(f"{self._home.root}: the server is more than this folder: {what}; {BY_HAND}")

    def _check_streams(self, plan: Plan) -> None:
        """That each can be encoded by the new settings, or that its user knows that it is not."""
        with SegmentStore.open(self._home.store, read_only=True) as old:
            again = [name_of(info.name) for info in old.streams() if info.is_next and info.state != "failed"]
            records = old.records()
        if again:
            raise UpgradeError(
                f"being encoded again: {', '.join(again)}; wait until it is done, or give it up first: "
                f"streamkv reencode {again[0]} --cancel"
            )
        live = [record.name for record in records if _is_live(record)]
        if live and not plan.live_anew:
            raise UpgradeError(
                f"live sources cannot be encoded again, since their footage is not kept: {', '.join(live)}; with "
                "--live-anew they go on with an empty memory when the new store takes its place, or remove them first"
            )
        for record in records:
            guidance, keep = str(record.config.get("guidance", "")), record.config.get("keep_ratio", 0.0)
            try:
                check_own(plan.pipeline, guidance, keep)
            except ConfigError as exc:
                raise UpgradeError(
                    f"stream {record.name!r}: {exc}; take its own settings away first: streamkv reencode "
                    f"{record.name} --guidance '' --keep 0"
                ) from exc

    def _check_whole(self, *, despite_failed: bool) -> None:
        with SegmentStore.open(self._next.store, read_only=True) as new:
            failed = [f"{r.name} ({r.detail})" for r in new.records() if r.state != "done"]
        if failed and not despite_failed:
            raise UpgradeError(
                f"not whole under the new settings: {'; '.join(failed)}; nothing was switched. Given again, the "
                "command tries them again; --despite-failed switches with what they have, --cancel gives it up"
            )

    # ---- encoding

    def _encode(self, plan: Plan, *, retry: bool) -> None:
        """Returns when the second store has what the first one has, each archive ingested to its end."""
        if not is_store(self._next.store):
            self._tell("loading the model")
            SegmentStore.open(self._next.store, identity=self._identify(plan.pipeline)).close()
        while True:
            with self._stores() as (old, new):
                has_changed = any(_differences(old, new, retry=retry))
            if has_changed:
                self._tell("registering streams with the second server")
                self._servers.stop(self._next)
                with self._stores() as (old, new):
                    come = _match(old, new, plan.pipeline, retry=retry)
                if failed := [record.name for record in come if record.state == "failed"]:
                    self._tell(f"tried again, though the server could not: {', '.join(failed)}")
                _copy(self._home.store, self._next.store, KEYS)
            with self._stores() as (_, new):
                under_way = [record.name for record in new.records() if record.state not in ENDED]
            if not under_way:
                return
            self._tell("starting the second server")
            settings = (*plan.settings, "serve.host=127.0.0.1", "serve.port=0")
            started = self._servers.start(self._next, plan.config, settings, on_phase=self._tell)
            self._tell(f"encoding {len(under_way)} streams")
            self._wait(started.record.url, under_way)
            self._check_streams(plan)
            retry = False

    @contextmanager
    def _stores(self) -> Iterator[tuple[SegmentStore, SegmentStore]]:
        with ExitStack() as stack:
            old = stack.enter_context(SegmentStore.open(self._home.store, read_only=True))
            yield old, stack.enter_context(SegmentStore.open(self._next.store))

    # ---- the switch

    def _note_port(self, plan: Plan) -> Plan:
        """So that the server is started again, whatever happens after it is stopped."""
        if (record := self._servers.running(self._home)) is not None:
            plan = replace(plan, port=urlsplit(record.url).port or 0)
            self._write(plan)
        return plan

    def _switch(self, plan: Plan) -> None:
        self._tell("stopping the second server")
        self._servers.stop(self._next)
        self._tell("stopping the server")
        self._servers.stop(self._home)
        with self._home.locked() as is_ours:
            if not is_ours:
                raise UpgradeError(
                    f"{self._home.root}: a server was started meanwhile; give the command again"
                )
            self._tell("taking over what belongs to the streams")
            with self._stores() as (old, new):
                _match(old, new, plan.pipeline, with_live=True)
                new.adoption.take_over(old.adoption)
            for name in (KEYS, POOLS):
                _copy(self._home.store, self._next.store, name)
            self._tell("putting the old store aside")
            durable.publish(self._home.store, self._home.old_store)
            self._put_in_place()

    def _put_in_place(self) -> None:
        self._tell("putting the new store in its place")
        durable.publish(self._next.store, self._home.store)

    def _finish(self, plan: Plan) -> Upgraded:
        url = ""
        if plan.port:
            self._tell("starting the server")
            settings = (f"serve.port={plan.port}", *plan.settings)
            url = self._servers.start(self._home, plan.config, settings, on_phase=self._tell).record.url
        with SegmentStore.open(self._home.store, read_only=True) as store:
            failed = tuple(record.name for record in store.records() if record.state == "failed")
        self._tell("clearing up")
        self._remove_next()
        return Upgraded(url, self._home.old_store, failed)

    def _remove_next(self) -> None:
        """The file first: what is left without it is no upgrade."""
        self._servers.stop(self._next)
        (self._next.root / FILE).unlink(missing_ok=True)
        shutil.rmtree(self._next.root, ignore_errors=True)


def _is_live(record: StreamRecord) -> bool:
    return bool(record.config.get("is_live", is_live(record.uri)))


def _differences(
    old: SegmentStore, new: SegmentStore, *, with_live: bool = False, retry: bool = False
) -> tuple[list[str], list[StreamRecord]]:
    """Streams that are to leave the new store, and those that are to come into it from the old one.

    When it was born tells a stream from another one of its name, and from its memory before it was encoded again.
    `retry`: those that failed leave, and come anew.
    """
    there = {r.name: r for r in old.records() if with_live or not _is_live(r)}
    here = new.records()
    leave = [
        r.name
        for r in here
        if r.name not in there or r.created_at != there[r.name].created_at or (retry and r.state == "failed")
    ]
    stay = {r.name for r in here}.difference(leave)
    return leave, [r for name, r in there.items() if name not in stay]


def _match(
    old: SegmentStore,
    new: SegmentStore,
    config: PipelineConfig,
    *,
    with_live: bool = False,
    retry: bool = False,
) -> list[StreamRecord]:
    """Does what `_differences` says, and returns who came. No server has the new store open."""
    leave, come = _differences(old, new, with_live=with_live, retry=retry)
    for name in leave:
        new.release(name)
        new.remove_stream(name)
    for record in come:
        about = {**record.config, "preset": config.preset, "sample_fps": config.source.sample_fps}
        new.adoption.adopt(old.adoption, record.name, about, goes_on=_is_live(record))
    return come


def _copy(old: Path, new: Path, name: str) -> None:
    """A file of the store's folder as it is there, or none."""
    if (old / name).exists():
        shutil.copy(old / name, new / name)
    else:
        (new / name).unlink(missing_ok=True)


def _shown(config: str, settings: Sequence[str]) -> str:
    return " ".join([f"--config {config}", *settings])
