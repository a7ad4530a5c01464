"""The one process that knows which version is served, and leads the others from one to the next."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from genret.errors import EngineError, InputError
from genret.runs import RunStore
from genret.serving.documents import Changes, Editor, as_document, read_changes, write_changes
from genret.serving.metrics import Family, exposition
from genret.serving.plans import GONE_SECONDS, POLL_SECONDS, Edition, Plan, Report, Setup
from genret.serving.versions import EVALUATED, Change, Version, find_version

# How long a version stays loaded after the next took over, for requests that began with it.
_FADE_SECONDS = 10.0

_logger = logging.getLogger("ray.serve")


class Versions:
    """Knows which version is served, and leads the replicas from one to the next. There is one."""

    async def __init__(self, setup: Setup, names: tuple[str, ...]) -> None:  # type: ignore[misc]
        """Open the version that this service has served last, or else the run's current one."""
        self._setup, self._names = setup, names
        self._store = RunStore.open_existing(setup.run_url)
        self._lock, self._news = asyncio.Lock(), asyncio.Condition()
        self._members: dict[str, tuple[Report, float]] = {}
        self._revision = 1
        self._previous: Version | None = None
        self._candidate: Editor | None = None
        self._fading: Editor | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._editor = await asyncio.to_thread(self._first)
        # The run's version that was tried last: after a start the one before, as somebody may have gone back from it.
        self._tried = self._previous.id if self._previous else ""
        if setup.config.watch_seconds:
            self._keep(asyncio.create_task(self._watch()))

    def _first(self) -> Editor:
        kept = read_changes(self._store)
        if kept is not None and kept.service == self._setup.service:
            self._previous = kept.previous
            return Editor(self._store, kept.version, kept.changes, kept.history)
        editor = self._current(kept)
        try:
            # From now on: a leader that starts again must not take a newer version, which nobody has checked.
            self._write(editor, None)
        except InputError as error:  # a run that may only be read can be served nevertheless
            _logger.warning("a leader that starts again will take the run's current version: %s", error)
        return editor

    def _current(self, kept: Changes | None) -> Editor:
        """The run's current version, with the changes that another service has kept."""
        found = find_version(self._store, self._names)
        if kept is not None and kept.version.id == found.id:
            return Editor(self._store, found, kept.changes, kept.history)
        editor = Editor(self._store, found)
        if kept is not None:
            editor.replay(kept.history)
        return editor

    async def beat(self, report: Report) -> Plan:
        """Take a report, and give the plan as soon as there is another one than the replica follows."""
        before = self._members.get(report.member)
        self._members[report.member] = (report, time.monotonic())
        if before is None or replace(before[0], families=()) != replace(report, families=()):
            await self._tell(new=before is None)
        if report.revision == self._revision:
            async with self._news:
                try:
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._news.wait_for(lambda: report.revision != self._revision)
                except TimeoutError:
                    pass
        return self._plan(report)

    def _plan(self, report: Report) -> Plan:
        wanted: dict[str, Editor] = {}
        for editor in (self._editor, self._candidate, self._fading):
            if editor is not None:
                # One that comes back while it fades is loaded with the changes that it comes back with.
                wanted.setdefault(editor.version.id, editor)
        return Plan(
            self._revision,
            self._editor.version.id,
            self._previous.id if self._previous else None,
            tuple(_edition(editor, report.loaded.get(name, "")) for name, editor in wanted.items()),
            self._counts(),
        )

    def _counts(self) -> dict[str, int]:
        names = [report.name for report in self._live()]
        return {name: names.count(name) for name in self._names}

    def _live(self) -> list[Report]:
        now = time.monotonic()
        self._members = {member: entry for member, entry in self._members.items() if now - entry[1] < GONE_SECONDS}
        return [report for report, _ in self._members.values()]

    async def alive(self, member: str) -> None:
        """A replica is loading or changing a version, and cannot report yet: others wait for it."""
        if member in self._members:
            self._members[member] = (self._members[member][0], time.monotonic())

    async def leave(self, member: str) -> None:
        """A replica stops."""
        self._members.pop(member, None)
        await self._tell(new=True)

    async def _tell(self, new: bool) -> None:
        """Wake those who wait for reports; with `new`, replicas too."""
        async with self._news:
            self._revision += new
            self._news.notify_all()

    async def _until(self, done: Callable[[Sequence[Report]], bool], seconds: float) -> bool:
        """Wait until something holds of the live replicas' reports; False where it does not in time."""
        try:
            async with asyncio.timeout(seconds):
                while not done(self._live()):
                    async with self._news:
                        # Now and then without news too: a replica may be gone.
                        try:
                            async with asyncio.timeout(1):
                                await self._news.wait()
                        except TimeoutError:
                            continue
        except TimeoutError:
            return False
        return True

    async def metrics(self, member: str, families: tuple[Family, ...]) -> str:
        """The counters of all processes, with the newest of the one that asks."""
        others = [report.families for report in self._live() if report.member != member]
        return exposition([*others, families])

    async def reload(self) -> dict[str, Any]:
        """Load the run's current version, and let it take over."""
        async with self._lock:
            try:
                found = await asyncio.to_thread(find_version, self._store, self._names)
            except InputError as error:
                return {"refused": str(error)}
            return await self._try(found)

    async def rollback(self) -> dict[str, Any]:
        """Go back to the version before."""
        async with self._lock:
            if self._previous is None:
                return {"refused": "there is no version to go back to: none was loaded since the service began"}
            return await self._change_to(self._previous)

    async def _try(self, current: Version) -> dict[str, Any]:
        """Change to the run's current version."""
        self._tried = current.id
        return await self._change_to(current)

    async def _change_to(self, target: Version) -> dict[str, Any]:
        begin = time.monotonic()
        old = self._editor
        if target.id == old.version.id:
            return self._outcome(changed=False, begin=begin)
        try:
            candidate = await asyncio.to_thread(self._prepared, target, old.history)
            await self._have_loaded(candidate)
            # Kept before anybody answers from it: a leader that starts again must not go back.
            await asyncio.to_thread(self._write, candidate, old.version)
        except Exception as error:  # a damaged file may break in any way: it is told, and the old version stays
            if not isinstance(error, InputError | EngineError):
                _logger.exception("version %s", target.id)
            self._candidate = None
            await self._tell(new=True)
            reason = str(error) or type(error).__name__
            return {"refused": f"version {target.id} is refused, {old.version.id} serves on: {reason}"}
        self._candidate, self._editor, self._fading, self._previous = None, candidate, old, old.version
        await self._tell(new=True)
        await self._until(
            lambda reports: all(report.active == target.id for report in reports if not report.name), _FADE_SECONDS
        )
        self._keep(asyncio.create_task(self._fade(old)))
        return self._outcome(changed=True, begin=begin)

    def _prepared(self, target: Version, history: Sequence[Change]) -> Editor:
        editor = Editor(self._store, target)
        editor.replay(history)
        return editor

    async def _have_loaded(self, candidate: Editor) -> None:
        """Have all replicas load and check a version.

        Raises:
            InputError: One cannot, or has not in time.
        """
        self._candidate, seconds = candidate, self._setup.config.load_seconds
        if not await self._taken(candidate, seconds):
            raise InputError(f"not loaded within {seconds:g} s")

    async def _taken(self, editor: Editor, seconds: float) -> bool:
        """Have all replicas take a version with its changes; False where they have not in time.

        Raises:
            InputError: One cannot.
        """
        mark = editor.mark
        await self._tell(new=True)

        def settled(reports: Sequence[Report]) -> bool:
            return any(mark in report.failed for report in reports) or self._all_have(editor, reports)

        in_time = await self._until(settled, seconds)
        for report in self._live():
            if mark in report.failed:
                raise InputError(report.failed[mark])
        return in_time

    def _all_have(self, editor: Editor, reports: Sequence[Report]) -> bool:
        there = {report.name for report in reports} >= {"", *self._names}
        return there and all(report.loaded.get(editor.version.id) == editor.mark for report in reports)

    async def _fade(self, old: Editor) -> None:
        await asyncio.sleep(_FADE_SECONDS)
        if self._fading is old:
            self._fading = None
            await self._tell(new=True)

    def _outcome(self, changed: bool, begin: float) -> dict[str, Any]:
        return {
            "version": self._editor.version.id,
            "previous_version": self._previous.id if self._previous else None,
            "changed": changed,
            "seconds": round(time.monotonic() - begin, 3),
        }

    async def add(self, doc_id: str, text: str, title: str, metadata: dict[str, Any]) -> dict[str, Any]:
        """Add a document, and wait until it can be found; `late` are the replicas by whom it cannot yet."""
        async with self._lock:
            try:
                document = as_document(doc_id, text, title, metadata)
                change = await asyncio.to_thread(self._editor.add, document)
                late = await self._make(change)
            except InputError as error:
                return {"refused": str(error)}
            except EngineError as error:
                return {"unavailable": str(error)}
            identifiers = change.identifiers or [None] * len(change.added)
            return {
                "passages": {
                    passage.passage_id: identifier
                    for passage, identifier in zip(change.added, identifiers, strict=True)
                },
                "late": late,
            }

    async def remove(self, doc_id: str) -> dict[str, Any]:
        """Remove a document, and wait until it is found no more; of one that there is not, `passages` is None.

        `late` are the replicas by whom it is still found, "" for those of the ingress.
        """
        async with self._lock:
            change = await asyncio.to_thread(self._editor.remove, doc_id)
            if change is None:
                return {"passages": None}
            try:
                late = await self._make(change)
            except InputError as error:
                return {"refused": str(error)}
            return {"passages": list(change.removed), "late": late}

    async def _make(self, change: Change) -> list[str]:
        """Make a change, and wait until all replicas have.

        Returns:
            The names of replicas that have not in time.

        Raises:
            InputError: It cannot be kept, or a replica cannot make it, for which it was withdrawn.
        """
        editor = self._editor
        # Kept before anybody sees it: a service that starts again must not have lost what was found.
        await asyncio.to_thread(self._write, editor, self._previous, change)
        editor.keep(change)
        try:
            if await self._taken(editor, GONE_SECONDS):
                return []
        except InputError as error:
            await self._withdraw(editor)
            raise InputError(f"the change is withdrawn, as a replica cannot make it: {error}") from error
        return [
            name
            for name in ("", *self._names)
            if {report.loaded.get(editor.version.id) for report in self._live() if report.name == name} != {editor.mark}
        ]

    async def _withdraw(self, editor: Editor) -> None:
        """Take the last change back, from replicas that could make it too."""
        editor.withdraw()
        await self._tell(new=True)
        await asyncio.to_thread(self._write, editor, self._previous)
        # The same change again is another attempt: nobody must still tell of this one's failure.
        await self._until(lambda reports: self._all_have(editor, reports), GONE_SECONDS)

    def _write(self, editor: Editor, previous: Version | None, *more: Change) -> None:
        """Keep what is served: a version with its changes, those that are about to be made too."""
        changes, history = (*editor.changes, *more), (*editor.history, *more)
        write_changes(self._store, Changes(self._setup.service, editor.version, previous, changes, history))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._setup.config.watch_seconds)
            try:
                await self._look()
            except Exception as error:  # a run that is being written to, or a store that is away: it may be well later
                _logger.warning("the run cannot be read now: %s: %s", type(error).__name__, error)

    async def _look(self) -> None:
        async with self._lock:
            found, served = await asyncio.to_thread(find_version, self._store, self._names), self._editor.version
            # A run that is still on its way to what the last one ended with.
            if any(stage in served.stages and stage not in found.stages for stage in EVALUATED):
                return
            # One that was refused, and the one that somebody went back from, are not tried again: a reload does that.
            if found.id not in (self._tried, served.id):
                _logger.info("a new version of the run: %s", await self._try(found))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _edition(editor: Editor, mark: str) -> Edition:
    """What a replica shall have loaded of a version, for one that has what a mark stands for; empty: nothing of it."""
    anew = mark not in editor.marks
    lacking = editor.changes if anew else editor.changes[editor.marks.index(mark) :]
    return Edition(editor.version, editor.mark, anew, tuple(lacking))
