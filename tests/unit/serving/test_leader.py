"""The leader and those who follow it, without Ray Serve: starts, swaps, the watched run."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from genret.config import ServingConfig, resolved_yaml
from genret.errors import InputError
from genret.runs import RunStore
from genret.serving import leader as leading
from genret.serving import members
from genret.serving.asks import Answer, Ask
from genret.serving.documents import FILE, Changes, read_changes, write_changes
from genret.serving.leader import Versions
from genret.serving.members import Member
from genret.serving.plans import Edition, Plan, Report, Setup
from genret.serving.searching import Searcher, open_bm25, probe
from genret.serving.versions import Change, Version, find_version, read_config

NAMES = ("bm25",)
WATCH_SECONDS = 0.05

New = Callable[..., RunStore]


class History:
    """A run with several versions, of which one is current."""

    def __init__(self, new_run: New, *k1: float, counts: Sequence[int] = ()) -> None:
        self.marks = []
        for value, count in zip(k1, counts or [40] * len(k1), strict=True):
            self.store = new_run(k1=value, count=count)
            self.marks.append({stage: record.fingerprint for stage, record in self.store.current().items()})
        self.ids = [self.go(number).id for number in range(len(k1))]
        self.go(0)

    def go(self, number: int) -> Version:
        self.store.set_current(self.marks[number])
        return find_version(self.store, NAMES)

    def damage(self, number: int) -> None:
        self.go(number)
        index = self.store.local_folder(self.store.current()["bm25"], "bm25") / "data.csc.index.npy"
        index.write_bytes(index.read_bytes()[:-8])
        self.go(0)


class Follower(Member):
    """Has BM25 of each version."""

    def load(self, found: Version) -> Searcher:
        searcher = open_bm25(self.store, found, "bm25")
        probe(searcher, self.store, found, "bm25", 4)
        return searcher

    def finds(self, query: str) -> list[str]:
        searcher = self.loaded(self.plan.active)
        assert searcher is not None
        return [name for name, _ in searcher.answer([Ask(query, 5, "", 60.0, explain=False)])[0].places]


class Handle:
    """What Ray Serve gives to reach a leader; it may start again behind it."""

    def __init__(self, leader: Any) -> None:
        self.leader = leader

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.leader, name))


async def lead(store: RunStore, service: str = "one", names: tuple[str, ...] = NAMES, **serving: Any) -> Versions:
    leader = Versions.__new__(Versions)
    start: Any = leader.__init__  # type: ignore[misc]
    await start(Setup(store.url, ServingConfig(**serving), service), names)
    return leader


@asynccontextmanager
async def served(store: RunStore, **serving: Any) -> AsyncIterator[tuple[Versions, Handle, list[Follower]]]:
    """A leader with an ingress and a retriever that follow it."""
    leader = await lead(store, **serving)
    handle, setup = Handle(leader), Setup(store.url, ServingConfig(**serving), "one")
    followers = [Follower(setup, name, handle) for name in ("", "bm25")]
    for follower in followers:
        await follower.join()
    yield leader, handle, followers
    for follower in followers:
        await follower.leave()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def active(leader: Versions) -> str:
    return leader._editor.version.id


def tried(leader: Versions, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which versions a leader makes ready from now on."""
    versions, prepared = list[str](), leader._prepared

    def note(target: Version, changes: Any) -> Any:
        versions.append(target.id)
        return prepared(target, changes)

    monkeypatch.setattr(leader, "_prepared", note)
    return versions


def test_a_leader_that_starts_again_goes_on_with_what_was_served(new_run: New) -> None:
    history = History(new_run, 1.2, 0.9)

    async def work() -> None:
        assert active(await lead(history.store)) == history.ids[0]
        history.go(1)
        again = await lead(history.store)
        assert active(again) == history.ids[0] and again._previous is None
        # Who starts anew gets what is current.
        assert active(await lead(history.store, "two")) == history.ids[1]
        history.go(0)
        assert active(await lead(history.store, "two")) == history.ids[1]

    run(work())


def test_a_service_that_starts_anew_keeps_the_documents(new_run: New) -> None:
    history = History(new_run, 1.2, 0.9)

    async def work() -> None:
        first = await lead(history.store)
        change = first._editor.add(leading.as_document("new", "A zeppelin floats.", "", {}))
        before = history.go(0)
        write_changes(history.store, Changes("one", before, None, (change,), (change,)))
        for number, service in enumerate(("two", "three")):
            history.go(number)
            leader = await lead(history.store, service)
            kept = read_changes(history.store)
            assert kept is not None and (kept.service, kept.version.id) == (service, history.ids[number])
            assert [passage.passage_id for entry in kept.changes for passage in entry.added] == ["new"]
            assert leader._editor.collection.get("new") is not None

    run(work())


def test_a_run_that_may_only_be_read_is_served(new_run: New, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_run()

    def refuse(*_: Any) -> None:
        raise InputError("serving.json: cannot be written")

    monkeypatch.setattr(leading, "write_changes", refuse)

    async def work() -> None:
        leader = await lead(store)
        assert active(leader) == find_version(store, NAMES).id
        for refused in (await leader.add("new", "A zeppelin floats.", "", {}), await leader.remove("d1")):
            assert refused == {"refused": "serving.json: cannot be written"}
        collection = leader._editor.collection
        assert collection.get("new") is None and collection.get("d1") is not None

    run(work())
    assert read_changes(store) is None


def test_members_serve_on_while_their_leader_starts_again(new_run: New) -> None:
    history = History(new_run, 1.2, 0.9)
    history.damage(1)

    async def work() -> None:
        async with served(history.store) as (_, handle, followers):
            history.go(1)
            handle.leader = await lead(history.store)
            await until(lambda: len(handle.leader._members) == 2)
            for follower in followers:
                assert (follower.plan.active, follower.finds("the model7x")[0]) == (history.ids[0], "d7")
            outcome = await handle.leader.reload()
            assert f"version {history.ids[1]} is refused, {history.ids[0]} serves on" in outcome["refused"]
            assert [follower.finds("the model7x")[0] for follower in followers] == ["d7", "d7"]

    run(work())


def test_a_swap_that_cannot_be_kept_is_refused(new_run: New, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(new_run, 1.2, 0.9)

    def refuse(*_: Any) -> None:
        raise InputError("serving.json: cannot be written")

    async def work() -> None:
        async with served(history.store) as (leader, _, followers):
            history.go(1)
            with monkeypatch.context() as patch:
                patch.setattr(leading, "write_changes", refuse)
                assert (await leader.reload())["refused"].endswith("serves on: serving.json: cannot be written")
            assert active(leader) == history.ids[0]
            assert (await leader.reload())["changed"] is True
            await until(lambda: {follower.plan.active for follower in followers} == {history.ids[1]})

    run(work())


class Slow(Follower):
    """Takes long for versions and changes that come later."""

    seconds = 0.0

    def load(self, found: Version) -> Any:
        time.sleep(self.seconds)
        return Stubborn(super().load(found), self)

    def change(self) -> None:
        time.sleep(self.seconds)


class Sour(Slow):
    """Cannot make changes that come later."""

    reason = ""

    def change(self) -> None:
        if self.reason:
            raise RuntimeError(self.reason)


@dataclass
class Stubborn:
    """A searcher that changes as its owner can."""

    searcher: Searcher
    owner: Slow

    def changed(self, change: Change) -> "Stubborn":
        self.owner.change()
        return replace(self, searcher=self.searcher.changed(change))

    def answer(self, asks: list[Ask]) -> list[Answer]:
        return self.searcher.answer(asks)


@asynccontextmanager
async def joined(follower: Follower) -> AsyncIterator[None]:
    await follower.join()
    yield
    await follower.leave()


def test_a_swap_waits_for_who_loads_longer_than_a_silence_may_be(new_run: New, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(new_run, 1.2, 0.9)
    monkeypatch.setattr(leading, "GONE_SECONDS", 0.4)
    for module in (leading, members):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.05)

    async def work() -> None:
        async with served(history.store) as (leader, handle, _):
            late = Slow(Setup(history.store.url, ServingConfig(), "one"), "bm25", handle)
            async with joined(late):
                late.seconds = 1.5
                history.go(1)
                assert (await leader.reload())["changed"] is True
                assert late.loaded(history.ids[1]) is not None

    run(work())


@pytest.mark.parametrize("name", ["bm25", ""])
def test_who_changes_longer_than_a_silence_may_be_is_told_of_and_stays(
    new_run: New, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store = new_run()
    monkeypatch.setattr(leading, "GONE_SECONDS", 0.4)
    for module in (leading, members):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.05)

    async def work() -> None:
        leader = await lead(store)
        handle, setup = Handle(leader), Setup(store.url, ServingConfig(), "one")
        slow, other = Slow(setup, name, handle), Follower(setup, "" if name else "bm25", handle)
        async with joined(slow), joined(other):
            slow.seconds = 1.5
            added = await leader.add("new", "A zeppelin floats.", "", {})
            assert added["late"] == [name] and other.finds("zeppelin") == ["new"] and slow.finds("zeppelin") == []
            assert leader._counts() == {"bm25": 1} and len(leader._members) == 2
            await until(lambda: slow.finds("zeppelin") == ["new"])
            # It has passed the silence that it would have been taken for gone by.
            assert leader._counts() == {"bm25": 1} and len(leader._members) == 2
            removed = await leader.remove("new")
            assert removed == {"passages": ["new"], "late": [name]}
            await until(lambda: slow.finds("zeppelin") == [])
            slow.seconds = 0.0
            assert (await leader.add("more", "A submarine dives.", "", {}))["late"] == []

    run(work())


def test_a_change_that_a_replica_cannot_make_is_withdrawn(new_run: New) -> None:
    store = new_run()

    async def work() -> None:
        async with served(store) as (leader, handle, followers):
            sour = Sour(Setup(store.url, ServingConfig(), "one"), "bm25", handle)
            async with joined(sour):
                assert (await leader.add("first", "A kayak glides.", "", {}))["late"] == []
                sour.reason = "no room"
                # The same again as well: a failure is not remembered.
                for _ in range(2):
                    refused = await leader.add("new", "A zeppelin floats.", "", {})
                    assert refused == {"refused": "the change is withdrawn, as a replica cannot make it: no room"}
                    for follower in (*followers, sour):
                        assert (follower.finds("zeppelin"), follower.finds("kayak")) == ([], ["first"])
                assert "no room" in (await leader.remove("d1"))["refused"]
                kept = read_changes(store)
                assert kept is not None and [change.number for change in kept.changes + kept.history] == [1, 1]
                sour.reason = ""
                assert (await leader.add("new", "A zeppelin floats.", "", {}))["late"] == []
                for follower in (*followers, sour):
                    assert (follower.finds("zeppelin"), follower.finds("kayak")) == (["new"], ["first"])
                    assert follower.finds("the model1x")[0] == "d1"
        # Who starts after that has what was found.
        collection = (await lead(store))._editor.collection
        assert collection.get("new") is not None and collection.get("d1") is not None

    run(work())


def test_who_starts_after_a_withdrawn_change_starts(new_run: New) -> None:
    store = new_run()

    async def work() -> None:
        leader = await lead(store)
        handle, setup = Handle(leader), Setup(store.url, ServingConfig(), "one")
        sour, ingress = Sour(setup, "bm25", handle), Follower(setup, "", handle)
        async with joined(sour), joined(ingress):
            sour.reason = "no room"
            assert "no room" in (await leader.add("new", "A zeppelin floats.", "", {}))["refused"]
        handle.leader = await lead(store)
        again = Sour(setup, "bm25", handle)
        again.reason = "no room"
        async with joined(again):
            assert again.finds("the model7x")[0] == "d7"

    run(work())


def test_a_member_serves_on_where_the_version_to_answer_from_cannot_be_loaded(new_run: New) -> None:
    history = History(new_run, 1.2, 0.9)
    history.damage(1)
    versions = [history.go(number) for number in (0, 1)]

    class Leader:
        """Makes a version active that nobody has checked."""

        def __init__(self) -> None:
            self.number = 0

        async def beat(self, report: Report) -> Plan:
            await asyncio.sleep(0.02)
            found = versions[self.number]
            return Plan(self.number + 1, found.id, None, (Edition(found, found.id, True, ()),), {"bm25": 1})

        async def leave(self, _: str) -> None:
            return

    async def work() -> None:
        leader = Leader()
        setup = Setup(history.store.url, ServingConfig(), "one")
        follower = Follower(setup, "bm25", Handle(leader))
        await follower.join()
        leader.number = 1
        await until(lambda: follower.plan.revision == 2)
        assert follower.plan.active == history.ids[0] and follower.finds("the model7x")[0] == "d7"
        await asyncio.sleep(0.1)  # some plans later too
        assert follower.finds("the model7x")[0] == "d7"
        leader.number = 0
        await until(lambda: follower.plan.revision == 1)
        assert list(follower._loaded) == [history.ids[0]]
        await follower.leave()
        leader.number = 1
        with pytest.raises(InputError):
            await Follower(setup, "bm25", Handle(leader)).join()

    run(work())


def test_a_watched_run_is_swapped_by_itself(new_run: New) -> None:
    history = History(new_run, 1.2, 0.9)

    async def work() -> None:
        async with served(history.store, watch_seconds=WATCH_SECONDS) as (leader, _, followers):
            history.go(1)
            await until(lambda: {follower.plan.active for follower in followers} == {history.ids[1]})
            assert leader._previous is not None and leader._previous.id == history.ids[0]
            kept = read_changes(history.store)
            assert kept is not None and kept.version.id == history.ids[1]
            # The run may go back as well.
            history.go(0)
            await until(lambda: {follower.plan.active for follower in followers} == {history.ids[0]})

    run(work())


@pytest.mark.parametrize("stage", ["rpo_2", "retrieval"])
def test_a_watched_run_is_not_swapped_before_it_is_through(
    new_run: New, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    history, names, looks = History(new_run, 1.2, 0.9), ("rpo", "bm25"), 0
    # Of the trained model nothing is read here.
    for number, marks in enumerate(history.marks):
        history.store.begin("rpo", marks["sft"]).commit({})
        history.store.begin("rpo_2", marks["sft"]).commit({})
        history.marks[number] = {"rpo": marks["sft"], **marks}
    history.go(0)

    def look(*arguments: Any) -> Version:
        nonlocal looks
        looks += 1
        return find_version(*arguments)

    async def work() -> None:
        leader = await lead(history.store, names=names, watch_seconds=WATCH_SECONDS)
        versions = tried(leader, monkeypatch)
        config = read_config(history.store)
        preference = config.preference.model_copy(update={"rounds": 2})
        history.store.write_file("config.yaml", resolved_yaml(config.model_copy(update={"preference": preference})))
        through = history.marks[1] | {"rpo_2": history.marks[1]["rpo"]}
        history.store.set_current({name: mark for name, mark in through.items() if name != stage})
        monkeypatch.setattr(leading, "find_version", look)
        await until(lambda: looks >= 3 or bool(versions))
        assert not versions
        history.store.set_current(through)
        await until(lambda: bool(versions))
        assert versions == [find_version(history.store, names).id]

    run(work())


def test_a_broken_version_of_a_watched_run_is_tried_once(new_run: New, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(new_run, 1.2, 0.9, 0.8)
    history.damage(1)

    async def work() -> None:
        async with served(history.store, watch_seconds=WATCH_SECONDS) as (leader, _, followers):
            versions = tried(leader, monkeypatch)
            history.go(1)
            await until(lambda: bool(versions) and leader._candidate is None)
            await asyncio.sleep(6 * WATCH_SECONDS)
            assert versions == [history.ids[1]] and active(leader) == history.ids[0]
            assert [follower.finds("the model7x")[0] for follower in followers] == ["d7", "d7"]
            history.go(2)
            await until(lambda: active(leader) == history.ids[2])
            assert versions == history.ids[1:]

    run(work())


@pytest.mark.parametrize("error", [InputError("a stage is gone"), KeyError("identifiers"), OSError("away")])
def test_a_version_that_cannot_be_made_ready_is_tried_once(
    new_run: New, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    history = History(new_run, 1.2, 0.9)
    versions = []

    def fail(target: Version, _: Any) -> Any:
        versions.append(target.id)
        raise error

    async def work() -> None:
        leader = await lead(history.store, watch_seconds=WATCH_SECONDS)
        monkeypatch.setattr(leader, "_prepared", fail)
        history.go(1)
        await until(lambda: bool(versions))
        await asyncio.sleep(6 * WATCH_SECONDS)
        assert versions == [history.ids[1]] and active(leader) == history.ids[0]
        # Who asks for it has it tried again.
        assert str(error) in (await leader.reload())["refused"]
        assert len(versions) == 2

    run(work())


@pytest.mark.parametrize("error", [InputError("no retriever"), OSError("away"), RuntimeError("a defect")])
def test_the_watch_outlives_a_run_that_cannot_be_read(
    new_run: New, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    history, failures = History(new_run, 1.2, 0.9), 0

    def fail(*_: Any) -> Version:
        nonlocal failures
        failures += 1
        raise error

    async def work() -> None:
        async with served(history.store, watch_seconds=WATCH_SECONDS) as (leader, _, _):
            history.go(1)
            with monkeypatch.context() as patch:
                patch.setattr(leading, "find_version", fail)
                await until(lambda: failures >= 3)
            await until(lambda: active(leader) == history.ids[1])

    run(work())


def test_what_somebody_went_back_from_stays_left(new_run: New, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(new_run, 1.2, 0.9, 0.8)

    async def work() -> None:
        async with served(history.store, watch_seconds=WATCH_SECONDS) as (leader, handle, followers):
            history.go(1)
            await until(lambda: active(leader) == history.ids[1])
            assert (await leader.rollback())["version"] == history.ids[0]
            versions = tried(leader, monkeypatch)
            await asyncio.sleep(6 * WATCH_SECONDS)
            assert not versions and active(leader) == history.ids[0]
            # A leader that starts again knows it too.
            for task in leader._tasks:
                task.cancel()
            again = handle.leader = await lead(history.store, watch_seconds=WATCH_SECONDS)
            versions = tried(again, monkeypatch)
            await asyncio.sleep(6 * WATCH_SECONDS)
            assert not versions and active(again) == history.ids[0]
            # But not the next one.
            history.go(2)
            await until(lambda: {follower.plan.active for follower in followers} == {history.ids[2]})

    run(work())


def test_what_was_reloaded_and_left_stays_left(new_run: New) -> None:
    history = History(new_run, 1.2, 0.9)

    async def work() -> None:
        async with served(history.store, watch_seconds=0.5) as (leader, _, _):
            history.go(1)
            assert (await leader.reload())["changed"] is True
            assert (await leader.rollback())["changed"] is True
            await asyncio.sleep(1.2)
            assert active(leader) == history.ids[0]

    run(work())


async def back(leader: Versions, handle: Handle, followers: list[Follower]) -> None:
    """To the version before, while its replicas still have it; one more joins, which has not."""
    found = (await leader.rollback())["version"]
    followers.append(Follower(followers[0].setup, "bm25", handle))
    await followers[-1].join()
    await until(lambda: {follower.plan.active for follower in followers} == {found})


def test_what_was_removed_does_not_come_back_with_the_version_before(new_run: New) -> None:
    history = History(new_run, 1.2, 0.9, counts=(40, 39))

    async def work() -> None:
        async with served(history.store) as (leader, handle, followers):
            assert [follower.finds("the model39x")[0] for follower in followers] == ["d39", "d39"]
            await leader.remove("d39")
            history.go(1)
            assert (await leader.reload())["changed"] is True
            await back(leader, handle, followers)
            assert not any("d39" in follower.finds("the model39x") for follower in followers)
            assert "passages" in await leader.add("new", "A zeppelin floats.", "", {})
            assert [follower.finds("zeppelin") for follower in followers] == [["new"]] * 3
        # Nor with another service.
        history.go(1)
        await lead(history.store, "two")
        history.go(0)
        collection = (await lead(history.store, "three"))._editor.collection
        assert collection.get("d39") is None and collection.get("new") is not None

    run(work())


def test_what_was_added_stays_with_the_version_before(new_run: New) -> None:
    history = History(new_run, 1.2, 0.9, counts=(39, 40))

    async def work() -> None:
        async with served(history.store) as (leader, handle, followers):
            await leader.add("d39", "A zeppelin floats.", "", {})
            history.go(1)
            assert (await leader.reload())["changed"] is True
            await back(leader, handle, followers)
            assert [follower.finds("zeppelin") for follower in followers] == [["d39"]] * 3

    run(work())


def test_a_member_that_made_other_changes_begins_again(new_run: New) -> None:
    history = History(new_run, 1.2)

    async def work() -> None:
        async with served(history.store) as (leader, handle, followers):
            await leader.add("lost", "A zeppelin floats.", "", {})
            # A leader that starts again and knows of another change than the one that was made.
            write_changes(history.store, Changes("one", history.go(0), None, (), ()))
            handle.leader = again = await lead(history.store)
            await until(lambda: len(again._members) == 2)
            assert "passages" in await again.add("kept", "A submarine dives.", "", {})
            for follower in followers:
                assert (follower.finds("zeppelin"), follower.finds("submarine")) == ([], ["kept"])

    run(work())


def test_the_state_says_what_is_served(new_run: New) -> None:
    store = new_run()

    async def work() -> None:
        await lead(store)

    run(work())
    content = json.loads((Path(store.url) / FILE).read_text(encoding="utf-8"))
    assert (content["service"], content["previous"], content["changes"]) == ("one", None, [])
    assert content["version"]["id"] == find_version(store, NAMES).id
