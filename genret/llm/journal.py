"""The journal of a run: what a language model wrote, kept by the digest of what it was asked.

It is the checkpoint of every engine with a model behind it. A completion is in the journal before anybody counts
it as done, so that no prompt is paid for twice: not after a kill, not by another stage, not under another
configuration that asks the same.

A folder of files with one JSON object a line. On a disk each writer appends to a file of its own, one `write` a
record: a killed process loses nothing that it had received. Object stores cannot append: there a writer puts up a
new file every so many records or seconds, and a kill loses at most those that were not yet in one. (A power cut
may take what the operating system had not written yet; nothing waits for the disk.)
"""

import json
import os
import re
import secrets
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from genret.errors import InputError
from genret.storage import Storage

_ID = re.compile("[0-9a-f]{32}")
_KEY = np.dtype("S16")
_SEGMENT_RECORDS = 256
_SEGMENT_SECONDS = 20.0
# Segments that are fetched at a time, and bytes of the last ones that are kept: who reads a journal needs each segment
# for its records several times, one time soon after another.
_FETCHES = 16
_KEPT_BYTES = 64 << 20
# A record's place in the journal is one number: its file in the bits above these, its offset in them.
_OFFSET_BITS = 40
_LAST_PLACE = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of one prompt.

    Attributes:
        id: 32 hexadecimal digits that stand for the prompt, the model and how it was sampled.
        text: What the model wrote.
        finished: Whether the model came to its end; false where it was cut short.
        error: Why there is no text; empty where there is one.
        prompt_tokens: As the engine counted them; 0 where it did not.
        completion_tokens: Likewise.
    """

    id: str
    text: str = ""
    finished: bool = True
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


# `asdict` would copy what it finds, for each completion.
_FIELDS = tuple(field.name for field in fields(Completion))


class JournalWriter:
    """Adds completions to a journal. One thread at a time; any number of writers side by side.

    Args:
        url: Folder of the journal.
        session: Begins the names of the writer's files.
        clock: Seconds; for segments in an object store.

    Raises:
        InputError: The folder cannot be written to. All methods raise it.
    """

    def __init__(self, url: str, session: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = Storage(url)
        self._stem = f"{session}-{secrets.token_hex(4)}"
        self._clock = clock
        self._descriptor = -1
        self._segment: list[bytes] = []
        self._segments = 0
        self._begun = 0.0

    @property
    def is_local(self) -> bool:
        """Whether the journal is on a disk, where `append` is one short write."""
        return self._storage.local is not None

    def append(self, completion: Completion) -> None:
        """Add a completion. On a disk it is kept when this returns, in an object store after the next `flush`."""
        line = (json.dumps({name: getattr(completion, name) for name in _FIELDS}) + "\n").encode("ascii")
        if self._storage.local is not None:
            self._write(self._storage.local, line)
            return
        if not self._segment:
            self._begun = self._clock()
        self._segment.append(line)
        if len(self._segment) >= _SEGMENT_RECORDS or self._clock() - self._begun >= _SEGMENT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put up what an object store has not got yet."""
        if self._segment:
            self._storage.put(f"{self._stem}-{self._segments:06}.jsonl", b"".join(self._segment))
            self._segments += 1
            self._segment = []

    def close(self) -> None:
        """Flush, and close the file."""
        self.flush()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, folder: Path, line: bytes) -> None:
        try:
            if self._descriptor < 0:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{self._stem}.jsonl"
                self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise InputError(f"{self._storage.address('')}: cannot be written: {error}") from error
        if written < len(line):
            # What comes next must not stand in the same line.
            self._stem += "x"
            self.close()
            raise InputError(f"{self._storage.address('')}: cannot be written: the disk is full")


class Journal:
    """Reads a journal.

    The index holds 33 bytes a completion (id, file, offset, length, whether it is good), and takes 150 while it is
    built; the completions stay where they are, but for the segments of an object store that were needed last.

    Args:
        url: Folder of the journal; need not be there yet.
        session: Read only files whose names begin so; empty: all.

    Attributes:
        damaged: Lines that hold no completion, so far.
        first_damaged: File and offset of the first of them; empty where there is none.

    Raises:
        InputError: The folder cannot be read. All methods raise it.
    """

    def __init__(self, url: str, session: str = "") -> None:
        self._storage = Storage(url)
        self._segments = _Segments(self._storage)
        self._session = session
        self._names: list[str] = []
        self._scanned: list[int] = []
        self._entries = _Entries()
        self.damaged = 0
        self.first_damaged = ""
        self.refresh()

    def __len__(self) -> int:
        """Number of different ids, with and without errors."""
        return self._entries.keys.size

    def address(self) -> str:
        """Path or URL, to be shown."""
        return self._storage.address("")

    def refresh(self) -> None:
        """Take in what was written since it was last read."""
        found = self._storage.children("")
        known = set(self._names)
        new = sorted(
            name for name in found if name.endswith(".jsonl") and name.startswith(self._session) and name not in known
        )
        self._names += new
        self._scanned += [0] * len(new)
        added = _Scan()
        # An object never grows: what it holds came with the first look.
        grown = [
            number for number, name in enumerate(self._names) if self._storage.local is not None or name not in known
        ]
        for number in self._fetched(grown):
            self._scanned[number] = self._scan(number, self._scanned[number], added)
        if added.keys:
            ranks = np.argsort(np.argsort(np.array(self._names)))
            self._entries = _Entries.merged(self._entries, added.entries(), ranks)

    def done(self, ids: Sequence[str]) -> np.ndarray:
        """Which ids have a completion without an error: one bool each."""
        places, found = self._entries.find(_keys(ids))
        found[found] = self._entries.good[places[found]]
        return found

    def read(self, ids: Sequence[str]) -> list[Completion]:
        """The completions of ids, in their order; those of errors too.

        Files are opened one after another and read from front to back.

        Raises:
            KeyError: An id is not in the journal.
        """
        entries = self._entries
        places, found = entries.find(_keys(ids))
        if not found.all():
            raise KeyError(ids[int(np.flatnonzero(~found)[0])])
        completions: dict[int, Completion] = {}
        order = np.lexsort((entries.offsets[places], entries.files[places]))
        for file in self._fetched(np.unique(entries.files[places]).tolist()):
            here = order[entries.files[places[order]] == file]
            with self._open(self._names[file]) as stream:
                for number in here:
                    stream.seek(int(entries.offsets[places[number]]))
                    completion = _parse(stream.read(int(entries.lengths[places[number]])))
                    if completion is None or completion.id != ids[number]:
                        raise InputError(f"{self._storage.address(self._names[file])}: changed while it was read")
                    completions[number] = completion
        return [completions[number] for number in range(len(ids))]

    def _scan(self, number: int, start: int, added: "_Scan") -> int:
        """Note the records of a file from an offset on, and return where the last whole line ends."""
        name, offset = self._names[number], start
        with self._open(name) as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn: the process was killed, or is at it
                completion = _parse(line)
                if completion is not None:
                    added.append(completion, number, offset, len(line))
                else:
                    self.damaged += 1
                    self.first_damaged = self.first_damaged or f"{self._storage.address(name)}, byte {offset}"
                offset += len(line)
        return offset

    def _fetched(self, numbers: Sequence[int]) -> Iterator[int]:
        """The numbers of files, once these are at hand: those of an object store are fetched, several at a time."""
        for start in range(0, len(numbers), _FETCHES):
            some = numbers[start : start + _FETCHES]
            if self._storage.local is None:
                self._segments.fetch([self._names[number] for number in some])
            yield from some

    @contextmanager
    def _open(self, name: str) -> Iterator[BinaryIO]:
        local = self._storage.local
        if local is None:
            # A segment, which is small; to fetch parts of it would take longer.
            yield BytesIO(self._segments.read(name))
            return
        try:
            with (local / name).open("rb") as file:
                yield file
        except OSError as error:
            raise InputError(f"{self._storage.address(name)}: cannot be read: {error}") from error


class _Segments:
    """The segments of an object store; those that were needed last are kept."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._kept: dict[str, bytes] = {}
        self._bytes = 0

    def fetch(self, names: Sequence[str]) -> None:
        """Fetch segments that will be read soon, all at the same time."""
        missing = [name for name in names if name not in self._kept]
        with ThreadPoolExecutor(_FETCHES) as threads:
            for name, content in zip(missing, threads.map(self._storage.read, missing), strict=True):
                self._keep(name, content or b"")

    def read(self, name: str) -> bytes:
        """The content of a segment."""
        content = self._kept[name] if name in self._kept else self._storage.read(name) or b""
        self._keep(name, content)
        return content

    def _keep(self, name: str, content: bytes) -> None:
        self._bytes += len(content) - len(self._kept.pop(name, b""))
        self._kept[name] = content
        while self._bytes > _KEPT_BYTES:
            self._bytes -= len(self._kept.pop(next(iter(self._kept))))


class IdSet:
    """A set of ids that grows, at 16 bytes an id."""

    def __init__(self) -> None:
        # Sorted, each more than twice as long as the next: adding n ids one by one takes n log n steps.
        self._parts: list[np.ndarray] = []

    def add(self, ids: Sequence[str]) -> np.ndarray:
        """Add ids, and tell which of them are new: one bool each, true for the first of equal ones."""
        keys = _keys(ids)
        unique, first = np.unique(keys, return_index=True)
        new = np.zeros(len(keys), dtype=bool)
        new[first] = True
        for part in self._parts:
            new &= ~_contains(part, keys)
        self._parts.append(unique[new[first]])
        while len(self._parts) > 1 and self._parts[-2].size <= 2 * self._parts[-1].size:
            merged = np.concatenate([self._parts.pop(), self._parts.pop()])
            merged.sort()
            self._parts.append(merged)
        return new


@dataclass
class _Scan:
    """Where records are, as they are found."""

    keys: bytearray = field(default_factory=bytearray)
    files: array = field(default_factory=lambda: array("i"))
    offsets: array = field(default_factory=lambda: array("q"))
    lengths: array = field(default_factory=lambda: array("i"))
    good: bytearray = field(default_factory=bytearray)

    def append(self, completion: Completion, file: int, offset: int, length: int) -> None:
        self.keys += bytes.fromhex(completion.id)
        self.files.append(file)
        self.offsets.append(offset)
        self.lengths.append(length)
        self.good.append(not completion.error)

    def entries(self) -> "_Entries":
        return _Entries(
            np.frombuffer(self.keys, _KEY),
            np.frombuffer(self.files, np.int32),
            np.frombuffer(self.offsets, np.int64),
            np.frombuffer(self.lengths, np.int32),
            np.frombuffer(self.good, np.bool_),
        )


@dataclass
class _Entries:
    """One entry an id: the sorted ids, and where the record of each is."""

    keys: np.ndarray = field(default_factory=lambda: np.empty(0, _KEY))
    files: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    offsets: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    good: np.ndarray = field(default_factory=lambda: np.empty(0, np.bool_))

    @classmethod
    def merged(cls, ours: "_Entries", theirs: "_Entries", ranks: np.ndarray) -> "_Entries":
        """All entries, the one that counts where an id has several: its first good record, else its last error.

        `ranks` has the place of each file in the order of their names, so that what counts does not depend on when
        a file was first seen.
        """
        pairs = ((getattr(ours, name), getattr(theirs, name)) for name in vars(ours))
        every = cls(*map(np.concatenate, pairs))
        place = (ranks[every.files].astype(np.int64) << _OFFSET_BITS) + every.offsets
        place = np.where(every.good, place, _LAST_PLACE - place)
        halves = every.keys.view(">u8").reshape(-1, 2)
        order = np.lexsort((place, halves[:, 1], halves[:, 0]))
        ordered = every.keys[order]
        kept = order[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
        return cls(*(column[kept] for column in vars(every).values()))

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The place of each key, and whether it is there at all (else the place means nothing)."""
        places = np.minimum(np.searchsorted(self.keys, keys), max(0, self.keys.size - 1))
        return places, _contains(self.keys, keys)


def _contains(ordered: np.ndarray, keys: np.ndarray) -> np.ndarray:
    if not ordered.size:
        return np.zeros(keys.size, dtype=bool)
    return ordered[np.minimum(np.searchsorted(ordered, keys), ordered.size - 1)] == keys


def _keys(ids: Sequence[str]) -> np.ndarray:
    return np.array([bytes.fromhex(name) for name in ids], dtype=_KEY)


def _parse(line: bytes) -> Completion | None:
    """The completion of a line, or None where it holds none."""
    try:
        fields = json.loads(line)
        completion = Completion(**fields)
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (completion.id, completion.text, completion.error)
    counts = (completion.prompt_tokens, completion.completion_tokens)
    fits = (
        all(isinstance(text, str) for text in texts)
        and isinstance(completion.finished, bool)
        and all(type(count) is int for count in counts)
        and _ID.fullmatch(completion.id)
    )
    return completion if fits else None
