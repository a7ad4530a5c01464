"""The process that takes requests: it checks them, has them answered in batches, and puts passages to the ids."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from genret.config import ReplicasConfig, ServingConfig
from genret.errors import EngineError, InputError
from genret.installed import installed_versions
from genret.retrieval.fusion import FUSION
from genret.serving.asks import Answer, Ask
from genret.serving.batching import Batcher, UnavailableError
from genret.serving.gates import Gate
from genret.serving.keys import own_keys
from genret.serving.listening import Listener
from genret.serving.logs import request_log
from genret.serving.members import Member
from genret.serving.metrics import Family, Meters
from genret.serving.plans import Setup
from genret.serving.routes import build_app
from genret.serving.schemas import DocumentRequest
from genret.serving.versions import (
    Change,
    Collection,
    Version,
    metadata_fields,
    read_config,
    retriever_kind,
    version_records,
)

# What a replica gets beyond the deadline of a query: to stop, and to send what it found.
_GRACE_SECONDS = 2.0
_RETRY_SECONDS = 0.1
# A query that this long nobody looked for, and for which nothing was found then, fails by the service, not by its own
# deadline.
_LOST_SECONDS = 1.0
_PACKAGES = ("torch", "transformers", "ray", "bm25s", "numpy")

_logger = logging.getLogger("ray.serve")


@dataclass
class _Reader:
    """A version as the ingress has it: passages, and what is told of the run."""

    version: str
    collection: Collection
    measures: list[dict[str, Any]]
    names: tuple[str, ...]
    parts: tuple[str, ...]
    lacking: bool
    _fields: list[dict[str, Any]] | None = None

    def changed(self, change: Change) -> "_Reader":
        """After a change."""
        return replace(self, collection=self.collection.changed(change), _fields=None)

    def fields(self) -> list[dict[str, Any]]:
        """The metadata fields; counted once."""
        if self._fields is None:
            self._fields = metadata_fields(self.collection.metadata(self.collection.ids()))
        return self._fields


class _IngressMember(Member):
    meters: Meters

    def load(self, found: Version) -> _Reader:
        """Read passages and measures."""
        records = version_records(self.store, found)
        measures = []
        if "evaluation" in records:
            measures = self.store.read_table(records["evaluation"], "measures").to_pylist()
        return _Reader(
            found.id,
            Collection(self.store.read_table(records["corpus"], "passages")),
            measures,
            found.retrievers,
            found.settings.fusion.parts,
            read_config(self.store).identifiers.type == "atomic",
        )

    def counted(self) -> tuple[Family, ...]:
        """The counters."""
        return tuple(self.meters.families())


@serve.ingress()
class Ingress:
    """Takes requests, has them answered in batches, and writes the answers."""

    async def __init__(  # type: ignore[misc]
        self, setup: Setup, retrievers: dict[str, DeploymentHandle], versions: DeploymentHandle, listens: bool
    ) -> None:
        """Load what is served now: passages. Who `listens` answers HTTP itself; before others stands Serve's proxy."""
        self._setup, self._versions = setup, versions
        self._answer = {name: _direct(handle).answer for name, handle in retrievers.items()}
        self._meters, self._closing = Meters(), False
        self._log = request_log(_logger)
        self._member = _IngressMember(setup, "", versions)
        self._member.meters = self._meters
        await self._member.join()
        self._batchers = {name: self._batcher(name) for name in retrievers}
        self._app = self._build()
        self._listener = Listener(self._app, setup.config, setup.service) if listens else None
        if self._listener is not None:
            await self._listener.start()

    def _build(self) -> ASGIApp:
        config = self._setup.config
        own = own_keys(config)
        # A key that is set where the ingress is, and was not where the service was started, guards it too.
        keys = own if self._setup.keys is None else self._setup.keys.completed(own)
        return Gate(build_app(self, config), config, keys, self._meters.request, self._log.write)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application that Ray Serve calls."""
        return self._app

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces who does not listen any more."""
        if self._listener is not None and not self._listener.alive and not self._closing:
            raise RuntimeError("the HTTP server has stopped")

    async def close(self) -> None:
        """Take no new request, and come back when those that have begun are answered."""
        self._closing = True
        if self._listener is not None:
            await self._listener.stop()

    async def __del__(self) -> None:
        try:
            await self.close()
            await self._member.leave()
        finally:
            self._log.close()  # with the lines of requests that were cut off

    def _batcher(self, name: str) -> Batcher[_Reader]:
        async def send(asks: list[Ask]) -> tuple[_Reader, list[Answer]]:
            return await self._send(name, asks)

        config = replicas_of(self._setup.config, name)
        return Batcher(
            send,
            config.batch_size,
            self._setup.config.places,
            lambda: self._workers(name),
        )

    def _workers(self, name: str) -> int:
        # Where the version could not be loaded, who sends the batch says so.
        served = self._member.loaded(self._member.plan.active)
        return workers_of(name, self._member.plan.replicas, served.parts if served is not None else ())

    async def ask(self, retriever: str, asks: Sequence[Ask]) -> tuple[_Reader, list[Answer]]:
        """Answer queries of one request, all from one version.

        Raises:
            FullError: There is no room for them.
            UnavailableError: Nobody looked for them in time.
        """
        begin, batcher = time.monotonic(), self._batchers[retriever]
        self._meters.queue(retriever, len(batcher) + len(asks))
        while True:
            found = await batcher.ask(asks)
            if len({served.version for served, _ in found}) == 1:
                break
        self._meters.queue(retriever, len(batcher))
        seconds = time.monotonic() - begin
        for _, answer in found:
            self._meters.answer(retriever, answer, seconds)
        if all(is_lost(answer, seconds) for _, answer in found):
            raise UnavailableError(f"no replica of {retriever} was free in time")
        return found[-1][0], [answer for _, answer in found]

    async def _send(self, name: str, asks: list[Ask]) -> tuple[_Reader, list[Answer]]:
        """Ask a replica, and another one where it dies: a query changes nothing and can be asked again.

        But not when its time is over: a replica would answer that it found nothing, though nobody has looked.
        """
        begin, spent = time.monotonic(), 0.0
        most = max(ask.timeout for ask in asks)
        while True:
            served = self.served()
            left = [replace(ask, timeout=ask.timeout - spent) for ask in asks] if spent else asks
            try:
                async with asyncio.timeout(most + _GRACE_SECONDS - spent):
                    answers = await self._answer[name].remote(served.version, left)
                if answers is not None:
                    return served, answers
            except TimeoutError:
                break
            # Before what a replica raised itself, which has the classes of its cause too: the fusion asks others.
            except (RayActorError, BackPressureError, DeploymentUnavailableError) as error:
                _logger.warning("%s: asked again: %s", name, type(error).__name__)
            except RayTaskError as error:
                raise error.cause from error
            await asyncio.sleep(_RETRY_SECONDS)
            if (spent := time.monotonic() - begin) >= most:
                break
        raise UnavailableError(f"no replica of {name} answered in time")

    def served(self) -> _Reader:
        """What is served now."""
        found: _Reader | None = self._member.loaded(self._member.plan.active)
        if found is None:
            raise UnavailableError("the version that is served could not be loaded")
        return found

    def retrievers(self) -> list[dict[str, Any]]:
        """The retrievers, the default first."""
        return [
            {
                "name": name,
                "kind": retriever_kind(name),
                "default": number == 0,
                "filters": True,
                "explain": retriever_kind(name) == "generative",
                "replicas": self._member.plan.replicas.get(name, 0),
            }
            for number, name in enumerate(self.served().names)
        ]

    def fields(self) -> list[dict[str, Any]]:
        """The metadata fields."""
        return self.served().fields()

    def info(self) -> dict[str, Any]:
        """What is served, but for the limits."""
        served = self.served()
        there, added, removed = served.collection.counts
        return {
            "run": self._member.store.address(),
            "version": served.version,
            "previous_version": self._member.plan.previous,
            "passages": there,
            "added": added,
            "removed": removed,
            "versions": installed_versions(_PACKAGES),
            "measures": served.measures,
        }

    async def metrics(self) -> str:
        """The counters of all processes."""
        text: str = await self._versions.metrics.remote(self._member.member, tuple(self._meters.families()))
        return text

    async def reload(self) -> dict[str, Any]:
        """Load the run's current version."""
        return await accepted(self._versions.reload.remote())

    async def rollback(self) -> dict[str, Any]:
        """Go back to the version before."""
        return await accepted(self._versions.rollback.remote())

    async def add(self, document: DocumentRequest) -> dict[str, Any]:
        """Add a document."""
        outcome = await accepted(
            self._versions.add.remote(document.doc_id, document.text, document.title, document.metadata)
        )
        served = self.served()
        reasons = lacks(served.names, served.parts, served.lacking, outcome.pop("late"))
        return outcome | {
            "doc_id": document.doc_id,
            "found_by": [name for name in served.names if name not in reasons],
            "not_found_by": reasons,
        }

    async def remove(self, doc_id: str) -> dict[str, Any] | None:
        """Remove a document; None where there is none."""
        outcome = await accepted(self._versions.remove.remote(doc_id))
        if outcome["passages"] is None:
            return None
        # What replicas still find, the ingress leaves out of its answers.
        late = "" in outcome.pop("late")
        return outcome | {"doc_id": doc_id, "still_found_by": list(self.served().names) if late else []}


def _direct(handle: DeploymentHandle) -> DeploymentHandle:
    """A handle whose batches and answers go straight from process to process by gRPC.

    Ray's own calls, for what may be large or go on to others, take longer on both sides.
    """
    return handle.options(_by_reference=False, request_serialization="pickle", response_serialization="pickle")


def lacks(names: Sequence[str], parts: Sequence[str], atomic: bool, late: Sequence[str]) -> dict[str, str]:
    """Which retrievers do not find a document that was added, and why.

    Args:
        names: All retrievers.
        parts: What the fusion joins.
        atomic: Whether identifiers are.
        late: Retrievers that have not taken it in yet; "" is the ingress, without which nobody finds it.
    """
    reasons = {}
    for name in names:
        if reason := _lack(name, atomic):
            reasons[name] = reason
        elif name in late or "" in late:
            reasons[name] = "not yet: it takes the change in more slowly than this answer could wait"
    if FUSION in names and reasons.keys() >= set(parts):
        reasons[FUSION] = "none of its parts finds it"
    return reasons


def _lack(name: str, atomic: bool) -> str:
    """Why a retriever never finds added documents; empty where it does."""
    kind = retriever_kind(name)
    if kind == "generative" and atomic:
        return "an atomic identifier is a token that only training can add"
    return "its index is made by a run" if kind == "dense" else ""


async def accepted(answer: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """What the leader answers, or its error: as it told it, without where Ray found it."""
    try:
        outcome = await answer
    except RayTaskError as error:
        raise error.cause from error
    if "refused" in outcome:
        raise InputError(outcome["refused"])
    if "unavailable" in outcome:
        raise EngineError(outcome["unavailable"])
    return outcome


def is_lost(answer: Answer, seconds: float) -> bool:
    """Whether an answer is none because the query waited, for room or for a replica, until its time was over.

    A deadline that was too short for the search itself gives an answer that says so.

    Args:
        answer: What came back.
        seconds: From the query's arrival to its answer.
    """
    return answer.timed_out and not answer.places and seconds - answer.search_seconds >= _LOST_SECONDS


def replicas_of(config: ServingConfig, name: str) -> ReplicasConfig:
    """The section of a retriever's replicas."""
    section: ReplicasConfig = getattr(config, retriever_kind(name))
    return section


def workers_of(name: str, replicas: Mapping[str, int], parts: Sequence[str]) -> int:
    """How many batches of a retriever are worked on at a time.

    Args:
        name: The retriever.
        replicas: Those that there are, by retriever.
        parts: What the fusion joins.

    Returns:
        The number of its replicas, each of which works on one. One of the fusion only waits for its parts: as many as
        the part with most of them can take, which has them because it is slow.
    """
    return max((replicas.get(part, 1) for part in (parts if name == FUSION else (name,))), default=1)
