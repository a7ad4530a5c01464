"""One driver a run, on a disk and in a store of objects."""

import json
import multiprocessing
import signal
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from genret.errors import RunBusyError
from genret.leases import driving
from genret.storage import Storage

# One that expires soon, for tests in which it does, and one that no stall of the machine makes expire.
FAST = {"heartbeat": 0.05, "expiry": 0.6}
LASTING = {"heartbeat": 0.05, "expiry": 120.0}


@pytest.fixture(params=["disk", "objects"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "disk" else f"memory://bucket/{uuid4().hex}"


def test_the_second_driver_is_told_who_the_first_is(url: str):
    with (
        driving(url, "raysubmit_1", **LASTING),
        pytest.raises(RunBusyError, match=r"another driver works.*raysubmit_1, process \d+"),
        driving(url, **LASTING),
    ):
        raise AssertionError("must not be reached")


def test_what_is_given_back_is_free_at_once(url: str):
    for _ in range(3):
        begin = time.monotonic()
        with driving(url, heartbeat=5.0, expiry=120.0) as state:
            state.check()
        assert time.monotonic() - begin < 60  # far from the 120 s after which a dead driver's lease ends


def test_of_many_that_start_at_once_one_works(url: str):
    Storage(url).make_folder("")
    working, busy, most = [], [], []
    gate = threading.Barrier(6)

    def drive() -> None:
        gate.wait()
        try:
            with driving(url, **LASTING):
                working.append(1)
                most.append(len(working))
                time.sleep(0.3)
                working.pop()
        except RunBusyError:
            busy.append(1)

    threads = [threading.Thread(target=drive) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(busy) == 6


def _hold(folder: str, ready: "multiprocessing.synchronize.Event") -> None:
    with driving(folder):
        ready.set()
        time.sleep(60)


def test_a_killed_driver_leaves_no_lock_on_a_disk(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path), ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(RunBusyError, match=f"process {process.pid}"), driving(str(tmp_path)):
        raise AssertionError("must not be reached")
    process.kill()
    process.join()
    with driving(str(tmp_path)):
        pass


def _dead_lease(url: str) -> Storage:
    storage = Storage(url)
    holder = {"owner": "gone", "host": "elsewhere", "pid": 1, "since": "2026-01-01", "beats": 7}
    storage.put("lease/00000004.json", json.dumps(holder).encode())
    return storage


def test_a_lease_without_heartbeats_is_taken_over_when_it_has_expired():
    url = f"memory://bucket/{uuid4().hex}"
    storage = _dead_lease(url)
    begin = time.monotonic()
    with driving(url, **FAST):
        assert time.monotonic() - begin >= FAST["expiry"]
        assert storage.children("lease") == ["00000005.json"]


def test_a_driver_whose_lease_was_taken_over_stops():
    url = f"memory://bucket/{uuid4().hex}"
    with pytest.raises(RunBusyError, match="took over"), driving(url, **LASTING):
        Storage(url).put("lease/00000009.json", b"{}")
        time.sleep(600)  # the keeper interrupts it


def test_a_driver_in_the_background_which_ignores_interrupts_stops_as_well():
    url = f"memory://bucket/{uuid4().hex}"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(RunBusyError, match="took over"), driving(url, **LASTING):
            signal.raise_signal(signal.SIGINT)
            Storage(url).put("lease/00000009.json", b"{}")
            time.sleep(600)  # the keeper interrupts it
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_ctrl_c_while_the_run_is_held():
    # Tests that a script started in the background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), driving(f"memory://bucket/{uuid4().hex}", **LASTING):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_driver_that_is_cut_off_from_the_store_stops(monkeypatch: pytest.MonkeyPatch):
    from genret.errors import InputError

    def refuse(self: Storage, place: str, content: bytes) -> None:
        raise InputError("no network")

    with (
        pytest.raises(RunBusyError, match="no heartbeat could be written"),
        driving(f"memory://bucket/{uuid4().hex}", **FAST),
    ):
        monkeypatch.setattr(Storage, "put", refuse)
        time.sleep(600)


def test_a_file_is_created_once(url: str):
    storage = Storage(url)
    assert storage.create("stages/a.json", b"first")
    assert not storage.create("stages/a.json", b"second")
    assert storage.read("stages/a.json") == b"first"
    assert storage.children("stages") == ["a.json"]
