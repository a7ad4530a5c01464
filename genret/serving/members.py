"""The processes that retrieve, and how each follows the one that leads them."""

import asyncio
import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from genret.config import ReplicasConfig, RetrievalConfig
from genret.errors import InputError
from genret.retrieval.fusion import FUSION, fuse, fusion_depth
from genret.runs import RunStore
from genret.serving.asks import Answer, Ask
from genret.serving.metrics import Family
from genret.serving.plans import GONE_SECONDS, POLL_SECONDS, Edition, Plan, Report, Setup
from genret.serving.searching import Searcher, open_bm25, probe
from genret.serving.versions import Change, Version, check_files, mark_after
from genret.types import ScoredPassage

_LEAVE_SECONDS = 1.0
_logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class _Loaded:
    """A version that is loaded: as its run made it, and as it is with the changes that a mark stands for."""

    original: Any
    state: Any
    mark: str


@dataclass
class Member(ABC):
    """A process that follows `Versions`. A subclass loads what it needs of a version."""

    setup: Setup
    name: str
    versions: DeploymentHandle
    store: RunStore = field(init=False)
    plan: Plan = field(init=False)

    async def join(self) -> None:
        """Load what is served now, and follow from then on.

        Raises:
            InputError: It cannot be loaded.
        """
        self.store = RunStore.open_existing(self.setup.run_url)
        self.member = secrets.token_hex(8)
        self._loaded: dict[str, _Loaded] = {}
        # The mark of what could not be loaded, and why, by version.
        self._failed: dict[str, tuple[str, str]] = {}
        self.plan = Plan(0, "", None, (), {})
        plan = await self.versions.beat.remote(self._report())
        await self._follow(plan)
        if plan.active in self._failed:
            raise InputError(self._failed[plan.active][1])
        self._following = asyncio.create_task(self._go_on())

    async def leave(self) -> None:
        """Say that this process stops, to a leader that may have stopped before it."""
        self._following.cancel()
        with suppress(TimeoutError, RayError, RayServeException):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await self.versions.leave.remote(self.member)

    def loaded(self, version: str) -> Any | None:
        """What `load` made of a version, with its changes; None where it is not here."""
        entry = self._loaded.get(version)
        return None if entry is None else entry.state

    @abstractmethod
    def load(self, found: Version) -> Any:
        """Open a version, in another thread than the one that answers."""

    def counted(self) -> tuple[Family, ...]:
        """What this process has counted."""
        return ()

    def _report(self) -> Report:
        active = self.plan.active if self.plan.active in self._loaded else ""
        marks = {name: entry.mark for name, entry in self._loaded.items()}
        failed = dict(self._failed.values())
        return Report(self.member, self.name, self.plan.revision, active, marks, failed, self.counted())

    async def _go_on(self) -> None:
        while True:
            try:
                async with asyncio.timeout(GONE_SECONDS):
                    plan = await self.versions.beat.remote(self._report())
                await self._follow(plan)
            except Exception as error:  # the service goes on as it is, whatever happened to its leader
                _logger.warning("no plan: %s: %s", type(error).__name__, error)
                await asyncio.sleep(1)

    async def _while_alive(self, loading: Coroutine[Any, Any, Any]) -> Any:
        """Wait for a version or a change, which may take minutes, and keep the leader from taking this for gone."""
        task = asyncio.create_task(loading)
        while not (await asyncio.wait([task], timeout=POLL_SECONDS))[0]:
            with suppress(TimeoutError, RayError, RayServeException):
                async with asyncio.timeout(POLL_SECONDS):
                    await self.versions.alive.remote(self.member)
        return task.result()

    async def _follow(self, plan: Plan) -> None:
        for edition in plan.editions:
            name = edition.version.id
            if name in self._failed and self._failed[name][0] == edition.mark:
                continue
            self._failed.pop(name, None)
            try:
                self._loaded[name] = await self._brought(edition)
            except Exception as error:  # a damaged file may break in any way: it is told, and the old version stays
                _logger.exception("version %s cannot be loaded", name)
                self._failed[name] = (edition.mark, str(error) or type(error).__name__)
        wanted = {edition.version.id for edition in plan.editions}
        # Where the version to answer from could not be loaded, the one before it serves on.
        active = plan.active if plan.active in self._loaded else self.plan.active
        self._loaded = {name: entry for name, entry in self._loaded.items() if name in wanted or name == active}
        self._failed = {name: reason for name, reason in self._failed.items() if name in wanted}
        self.plan = replace(plan, active=active)

    async def _brought(self, edition: Edition) -> _Loaded:
        """A version with its changes, from what is loaded of it."""
        entry = self._loaded.get(edition.version.id)
        if entry is None:
            original = await self._while_alive(asyncio.to_thread(self.load, edition.version))
            entry = _Loaded(original, original, edition.version.id)
        if edition.anew:
            entry = replace(entry, state=entry.original, mark=edition.version.id)
        for change in edition.changes:
            state = await self._while_alive(asyncio.to_thread(entry.state.changed, change))
            entry = replace(entry, state=state, mark=mark_after(entry.mark, change))
        return entry


class RetrieverReplica:
    """One retriever in one process: BM25, or what a subclass opens."""

    async def __init__(  # type: ignore[misc]
        self, setup: Setup, name: str, replicas: ReplicasConfig, versions: DeploymentHandle
    ) -> None:
        """Load what is served now."""
        self.prepare(replicas)
        # One thread: a model answers one batch at a time.
        self._worker = ThreadPoolExecutor(1)
        self._member = _RetrieverMember(setup, name, versions, self.open)
        await self._member.join()

    def prepare(self, replicas: ReplicasConfig) -> None:
        """Make this process ready for what it gets."""

    def open(self, store: RunStore, version: Version, name: str) -> Searcher:
        """Load the retriever of a version."""
        return open_bm25(store, version, name)

    async def answer(self, wanted: str, asks: list[Ask]) -> list[Answer] | None:
        """Answer a batch from a version; None where this process does not have it."""
        searcher = self._member.loaded(wanted)
        if searcher is None:
            return None
        arrived = time.monotonic()

        def work() -> list[Answer]:
            answers: list[Answer] = searcher.answer(asks, time.monotonic() - arrived)
            return answers

        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def __del__(self) -> None:
        await self._member.leave()


@dataclass
class _RetrieverMember(Member):
    opener: Callable[[RunStore, Version, str], Searcher]

    def load(self, found: Version) -> Searcher:
        """Open the retriever, whose files must be as they were written, and probe it, which warms it up."""
        check_files(self.store, found, self.name)
        searcher = self.opener(self.store, found, self.name)
        probe(searcher, self.store, found, self.name, self.setup.config.probe_queries)
        return searcher


@dataclass(frozen=True)
class _FusionState:
    settings: RetrievalConfig

    def changed(self, _: Change) -> "_FusionState":
        """Its parts change; this does not."""
        return self


class _FusionMember(Member):
    def load(self, found: Version) -> _FusionState:
        """Nothing but settings."""
        return _FusionState(found.settings)


class FusionReplica:
    """Joins what other deployments find."""

    async def __init__(  # type: ignore[misc]
        self, setup: Setup, parts: dict[str, DeploymentHandle], versions: DeploymentHandle
    ) -> None:
        """Load what is served now: settings."""
        self._ask = {part: handle.answer for part, handle in parts.items()}
        self._member = _FusionMember(setup, FUSION, versions)
        await self._member.join()

    async def answer(self, wanted: str, asks: list[Ask]) -> list[Answer] | None:
        """Answer a batch from a version; None where a part does not have it."""
        state = self._member.loaded(wanted)
        if state is None:
            return None
        begin = time.monotonic()
        settings = state.settings
        deep = [replace(ask, k=fusion_depth(settings, ask.k), explain=False) for ask in asks]
        found = await asyncio.gather(*(self._ask[part].remote(wanted, deep) for part in settings.fusion.parts))
        if any(answers is None for answers in found):
            return None
        seconds = time.monotonic() - begin
        return [
            Answer(
                [
                    (place.passage_id, place.score)
                    for place in fuse(
                        [[ScoredPassage(*place) for place in part.places] for part in parts], settings.fusion, ask.k
                    )
                ],
                exact=all(part.exact for part in parts),
                timed_out=any(part.timed_out for part in parts),
                expansions=sum(part.expansions for part in parts),
                search_seconds=seconds,
                batch=len(asks),
            )
            for ask, parts in zip(asks, zip(*found, strict=True), strict=True)
        ]

    async def __del__(self) -> None:
        await self._member.leave()
