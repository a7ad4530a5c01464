"""One driver a run: who works on it, and what happens when that process is gone.

On a local disk the driver holds a lock of the operating system on `driver.lock`, which dies with the process.

In an object store it holds a lease: the file `lease/NUMBER.json`, created with a conditional write, so that of two
drivers that reach for the same number one fails. The highest number counts. Its holder writes a new count of
heartbeats into it every few seconds. Who wants the run watches that file: when it changes, somebody works and the
watcher gives up; when it does not change for `EXPIRY_SECONDS` of the watcher's own time, the holder is dead or cut off
and the watcher takes the next number. So no two clocks are ever compared. A holder that finds a higher number, or could
write no heartbeat for two thirds of `EXPIRY_SECONDS`, stops: Gray and Cheriton, "Leases", SOSP 1989.

What a paused holder may still do after it lost its lease is bounded by `StageWriter.commit`, whose manifest is written
with the same conditional write: the first one stays.
"""

import fcntl
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TextIO

from genret.errors import InputError, RunBusyError
from genret.storage import Storage, attempt_name

HEARTBEAT_SECONDS = 5.0
"""Seconds between two heartbeats."""
EXPIRY_SECONDS = 30.0
"""Seconds without a heartbeat after which a lease counts no more."""

_LOCK = "driver.lock"
_FOLDER = "lease"


@dataclass(frozen=True)
class Holder:
    """Who drives a run.

    Attributes:
        owner: A name that no other driver has.
        host: Its machine.
        pid: Its process.
        since: When it began: ISO 8601, UTC, by its own clock.
        job: The submitted job that it is, or empty.
        beats: Heartbeats so far.
        released: Whether it is done.
    """

    owner: str
    host: str
    pid: int
    since: str
    job: str = ""
    beats: int = 0
    released: bool = False

    @classmethod
    def this_process(cls, job: str = "") -> "Holder":
        """A new holder: this process."""
        return cls(
            attempt_name(), socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"), job
        )

    def __str__(self) -> str:
        job = f"job {self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}, since {self.since}"


class Driving:
    """That this process drives a run; made by `driving`."""

    def __init__(self) -> None:
        self._lost = ""

    def lose(self, reason: str) -> None:
        """Note that another may drive the run from now on."""
        self._lost = reason

    def check(self) -> None:
        """See that this process still drives the run.

        Raises:
            RunBusyError: It does not.
        """
        if self._lost:
            raise RunBusyError(self._lost)


@contextmanager
def driving(
    url: str, job: str = "", heartbeat: float = HEARTBEAT_SECONDS, expiry: float = EXPIRY_SECONDS
) -> Iterator[Driving]:
    """Drive a run for the time of a `with` block.

    Args:
        url: Of the run.
        job: Name of the submitted job that this process is, to be shown to others.
        heartbeat: Seconds between two heartbeats, in an object store.
        expiry: Seconds without a heartbeat after which a lease counts no more.

    Raises:
        RunBusyError: Another process drives it, or took over because this one was cut off from the store.
        InputError: The store cannot be written to.
    """
    storage = Storage(url)
    holder = Holder.this_process(job)
    if storage.local is not None:
        with _locked(storage, holder):
            yield Driving()
        return
    number = _take(storage, holder, heartbeat, expiry)
    state = Driving()
    keeper = _Keeper(storage, number, holder, state, heartbeat, expiry)
    with _interrupted(state):
        keeper.start()
        try:
            yield state
        finally:
            keeper.stop()
    state.check()


@contextmanager
def _interrupted(state: Driving) -> Iterator[None]:
    """Let SIGINT end the main thread's work once the run is lost; otherwise it does what it did before.

    A process that a script started in the background ignores SIGINT, and would not notice.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        state.check()
        if callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


@contextmanager
def _locked(storage: Storage, holder: Holder) -> Iterator[None]:
    assert storage.local is not None
    path = storage.local / _LOCK
    with _open_locked(storage, path) as file:
        file.truncate(0)
        file.write(_text(holder))
        file.flush()
        try:
            yield
        finally:
            # While it is locked: who opened it meanwhile finds that it is no longer there. A run in which nothing was
            # done leaves nothing.
            path.unlink(missing_ok=True)
            with suppress(OSError):
                storage.local.rmdir()


def _open_locked(storage: Storage, path: Path) -> TextIO:
    """The lock's file, locked."""
    while True:
        storage.make_folder("")
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{storage.address(_LOCK)}: cannot be written: {error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other = _parse(file.read().encode())
            file.close()
            raise _busy(storage, other) from None
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()  # its holder gave it back, and the file went with that


def _busy(storage: Storage, other: Holder | None) -> RunBusyError:
    who = f" ({other})" if other is not None else ""
    return RunBusyError(
        f"{storage.address('')}: another driver works on this run{who}; expected none. Wait for it to end, or give "
        "another --run"
    )


# --- leases in object stores ---


def _take(storage: Storage, holder: Holder, heartbeat: float, expiry: float) -> int:
    """The number of the lease that this process now holds."""
    while True:
        number, content = _latest(storage)
        if number and not _ended(storage, number, content, heartbeat, expiry):
            raise _busy(storage, _parse(storage.read(_place(number))))
        if storage.create(_place(number + 1), _text(holder).encode()):
            for name in storage.children(_FOLDER):
                if _number(name) <= number:
                    storage.delete(f"{_FOLDER}/{name}")
            return number + 1


def _ended(storage: Storage, number: int, content: bytes | None, heartbeat: float, expiry: float) -> bool:
    """Whether the holder of a lease is done, or shows no sign of life for so long."""
    begin = time.monotonic()
    while True:
        if (holder := _parse(content)) is not None and holder.released:
            return True
        if time.monotonic() - begin >= expiry:
            return True
        time.sleep(min(heartbeat, expiry) / 4)
        latest, found = _latest(storage)
        if latest != number:
            return False  # another was faster
        if found != content:
            after = _parse(found)
            return after is not None and after.released


def _latest(storage: Storage) -> tuple[int, bytes | None]:
    number = max((_number(name) for name in storage.children(_FOLDER)), default=0)
    return number, storage.read(_place(number)) if number else None


def _place(number: int) -> str:
    return f"{_FOLDER}/{number:08}.json"


def _number(name: str) -> int:
    stem = name.partition(".")[0]
    return int(stem) if stem.isdecimal() else 0


def _text(holder: Holder) -> str:
    return json.dumps(asdict(holder)) + "\n"


def _parse(content: bytes | None) -> Holder | None:
    with suppress(ValueError, TypeError):
        return Holder(**json.loads(content or b""))
    return None


class _Keeper:
    """Writes heartbeats in a thread, and says when the lease is lost."""

    def __init__(
        self, storage: Storage, number: int, holder: Holder, state: Driving, heartbeat: float, expiry: float
    ) -> None:
        self._storage = storage
        self._number = number
        self._holder = holder
        self._state = state
        self._heartbeat = heartbeat
        self._expiry = expiry
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._interrupts = threading.current_thread() is threading.main_thread()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and give the lease back where it is still held."""
        self._stopped.set()
        self._thread.join()
        with suppress(InputError):
            if _latest(self._storage)[0] == self._number:
                self._write(released=True)

    def _keep(self) -> None:
        proven = time.monotonic()
        while not self._stopped.wait(self._heartbeat):
            before = time.monotonic()
            try:
                if _latest(self._storage)[0] != self._number:
                    self._lose("another driver took over, as this one showed no sign of life")
                    return
                self._write()
                proven = before
            except InputError as error:
                # Sooner than anybody else can take it for dead.
                if (silent := time.monotonic() - proven) >= self._expiry * 2 / 3:
                    self._lose(f"no heartbeat could be written for {silent:.0f} s ({error})")
                    return

    def _write(self, released: bool = False) -> None:
        self._holder = replace(self._holder, beats=self._holder.beats + 1, released=released)
        self._storage.put(_place(self._number), _text(self._holder).encode())

    def _lose(self, reason: str) -> None:
        self._state.lose(f"{self._storage.address('')}: this driver no longer holds the run: {reason}")
        if self._interrupts and not self._stopped.is_set():
            # A real signal ends what the thread waits in, a simulated one would wait for that; see `_interrupted`.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
