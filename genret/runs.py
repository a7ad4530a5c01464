"""The store of a run: each stage's tables and artifacts, on a local path or in an object store.

A stage's output appears whole or not at all, whenever the process dies. Its files are written first, under
the name of an attempt that nobody else uses; one small manifest, written last and atomically, makes them
visible. Manifests are named by the fingerprint of what decides the output, so that going back to an earlier
configuration finds its stages done.

    run.json                                              the stages of the latest configuration
    config.yaml, report.html                              loose files
    stages/STAGE-FINGERPRINT.json                         the manifest of a finished stage
    tables/TABLE/STAGE-FINGERPRINT-ATTEMPT.parquet
    artifacts/NAME/STAGE-FINGERPRINT-ATTEMPT/...          a folder, such as a model
    artifacts/NAME/STAGE-FINGERPRINT-ATTEMPT.html         a text
    scratch/STAGE-FINGERPRINT/...                         checkpoints of a stage that is under way
    completions/...                                       what a language model wrote, for all stages and configurations
    driver.lock, lease/...                                who drives the run (`genret.leases`)

One process at a time drives a run; any number may read it.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, NotRequired

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from genret.errors import InputError
from genret.spools import NoRoomError, Spool
from genret.storage import Storage, attempt_name
from genret.tables import SCHEMAS, check_table

FORMAT = 1
"""Version of the manifests and of run.json. A file of another version is an error, not a guess."""

_ATTEMPT_AT_END = re.compile(r"-(\d{8}T\d{6})-[0-9a-f]{8}(\.[\w-]+)?$")
_COPY_BYTES = 1 << 22
# A file of compressed columns; the table is a few times as large.
_BYTES_IN_MEMORY = 1 << 21
_ROWS_A_READ = 8_192
# A reader holds a column of one group at a time.
_ROWS_A_GROUP = 65_536


class StoredTable(TypedDict):
    """A table of a finished stage: its place in the run, and its number of rows."""

    path: str
    rows: int


class StoredFolder(TypedDict):
    """A folder of a finished stage: its place in the run, and the size in bytes and the SHA-256 of each file in it.

    Stages that finished before checksums were kept have none.
    """

    path: str
    files: dict[str, int]
    checksums: NotRequired[dict[str, str]]


class StoredText(TypedDict):
    """A text of a finished stage: its place in the run, and its size in bytes."""

    path: str
    bytes: int


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage wrote.

    Attributes:
        stage: Name of the stage.
        fingerprint: Of everything that decided its output.
        created: When it finished: ISO 8601, UTC.
        tables: By the table's name.
        folders: By name.
        texts: By name.
        details: Whatever the stage tells of itself (seconds, counts, versions); JSON-able.
    """

    stage: str
    fingerprint: str
    created: str
    tables: dict[str, StoredTable]
    folders: dict[str, StoredFolder]
    texts: dict[str, StoredText]
    details: dict[str, Any]


_RECORDS = TypeAdapter(StageRecord)
_CURRENT = TypeAdapter(dict[str, str])


def fingerprint(*parts: Any) -> str:
    """Sixteen hexadecimal digits that stand for some values.

    Args:
        parts: JSON-able values. The order of the keys of a mapping does not count, that of a list does; 1 and
            1.0 differ.

    Returns:
        The first 64 bits of the SHA-256 of the parts as canonical JSON: the same in every process, Python and
        operating system.

    Raises:
        TypeError: A part is not JSON-able.
        ValueError: A part holds NaN or an infinity.
    """
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


class RunStore:
    """The folder of one run.

    Args:
        url: A local path, or a URL that pyarrow (s3://, gs://, abfs://, file://) or fsspec (any installed
            protocol) understands. Nothing is created before something is written.

    Raises:
        InputError: No such protocol, or a file lies where the folder should be.
    """

    def __init__(self, url: str | Path) -> None:
        self._storage = Storage(str(url))
        # Files of folders that were read to their ends, with what `_state` said of them before.
        self._whole: dict[Path, tuple[int, int]] = {}

    @classmethod
    def open_existing(cls, url: str | Path) -> "RunStore":
        """The store of a run that must be there already.

        Raises:
            InputError: There is none.
        """
        store = cls(url)
        if store._storage.read("run.json") is None:
            raise InputError(f"no run at {store._storage.address('')}; expected run.json in that folder")
        return store

    @property
    def url(self) -> str:
        """The absolute local path or the URL; a store opened with it is the same store."""
        return self._storage.url

    def address(self, name: str = "") -> str:
        """Path or URL of the run, or of a file in it, to be shown: without options and passwords."""
        return self._storage.address(name)

    def find(self, stage: str, fingerprint: str) -> StageRecord | None:
        """The record of a finished stage, or None where it never finished with this fingerprint.

        Raises:
            InputError: The manifest is damaged, or of another version.
        """
        place = _manifest_place(stage, fingerprint)
        content = self._storage.read(place)
        return None if content is None else self._record(place, content)

    def begin(self, stage: str, fingerprint: str) -> "StageWriter":
        """A writer of a stage's output. What it writes stays invisible until its `commit`."""
        return StageWriter(self, self._storage, stage, fingerprint)

    def read_table(self, record: StageRecord, name: str) -> pa.Table:
        """A table that a stage wrote; a large one lies in a file that is mapped (`genret.spools`), not in memory.

        Raises:
            InputError: The stage wrote no such table, or its file is missing, damaged or does not fit the
                schema; names the file. Or there is no room for it (`genret.spools.NoRoomError`).
        """
        stored = _entry(record, "table", record.tables, name)
        try:
            with self._storage.reading(stored["path"]) as stream:
                table = _read_whole(pq.ParquetFile(stream, page_checksum_verification=True), stream.size())
            if table.num_rows != stored["rows"]:
                raise InputError(f"expected {stored['rows']} rows, found {table.num_rows}")
            return check_table(name, table)
        except NoRoomError:
            raise
        except (InputError, OSError, pa.ArrowException) as error:
            raise self._damaged(record, stored["path"], error) from error

    def read_parts(self, record: StageRecord, name: str, rows: int) -> Iterator[pa.Table]:
        """A table that a stage wrote, in parts of so many rows, of which one is held at a time.

        Raises:
            InputError: As for `read_table`; that rows are missing is only seen behind the last part.
        """
        stored, found = _entry(record, "table", record.tables, name), 0
        try:
            with self._storage.reading(stored["path"]) as stream:
                for batch in pq.ParquetFile(stream, page_checksum_verification=True).iter_batches(rows):
                    found += batch.num_rows
                    yield check_table(name, pa.Table.from_batches([batch]))
            if found != stored["rows"]:
                raise InputError(f"expected {stored['rows']} rows, found {found}")
        except (InputError, OSError, pa.ArrowException) as error:
            raise self._damaged(record, stored["path"], error) from error

    def read_text(self, record: StageRecord, name: str) -> str:
        """A text that a stage wrote.

        Raises:
            InputError: The stage wrote no such text, or its file is missing or damaged; names the file.
        """
        stored = _entry(record, "text", record.texts, name)
        content = self._storage.read(stored["path"])
        if content is None or len(content) != stored["bytes"]:
            found = "no file" if content is None else f"{len(content)} bytes"
            raise self._damaged(record, stored["path"], f"expected {stored['bytes']} bytes, found {found}")
        return content.decode("utf-8")

    def local_folder(self, record: StageRecord, name: str) -> Path:
        """A folder that a stage wrote, on this machine's disk. To be read only.

        Of a local run it is the folder itself. Of a remote one it is a copy under the user's cache folder
        ($XDG_CACHE_HOME/genret, else ~/.cache/genret), fetched once and used again.

        Raises:
            InputError: The stage wrote no such folder, or one of its files is missing or cut short.
        """
        stored = _entry(record, "folder", record.folders, name)
        if self._storage.local is not None:
            folder = self._storage.local / stored["path"]
        else:
            folder = self._cached(stored)
        problem = _difference(stored["files"], _sizes(folder))
        if problem:
            raise self._damaged(record, stored["path"], problem)
        return folder

    def check_folder(self, record: StageRecord, name: str) -> None:
        """Read every byte of a folder that a stage wrote: `local_folder` looks at the sizes of its files only.

        A file that this object has read before is not read again while its size and time of change are the same. Of a
        remote run it is the copy on this machine that is read; the remote one was when it was fetched.

        Raises:
            InputError: The stage wrote no such folder, or one of its files is not as the stage left it.
        """
        stored: StoredFolder = _entry(record, "folder", record.folders, name)
        folder = self.local_folder(record, name)
        for file, expected in stored.get("checksums", {}).items():
            path = folder / file
            if self._whole.get(path) == (state := _state(path)):
                continue
            if problem := _damage(path, expected):
                if self._storage.local is not None:
                    raise self._damaged(record, stored["path"], f"{file}: {problem}")
                raise InputError(f"{path}: damaged copy ({problem}); delete {folder} to have it fetched again")
            self._whole[path] = state

    def set_current(self, stages: Mapping[str, str]) -> None:
        """Write run.json: the fingerprint of each stage of the latest configuration, in the order given."""
        content = {"format": FORMAT, "updated": _now(), "stages": dict(stages)}
        self._storage.put("run.json", _json(content))

    def current(self) -> dict[str, StageRecord]:
        """The stages of the latest configuration in their order; those that are not done are left out.

        Raises:
            InputError: run.json or a manifest is damaged, or of another version.
        """
        content = self._storage.read("run.json")
        if content is None:
            return {}
        try:
            stages = _CURRENT.validate_python(_versioned(content)["stages"])
        except (ValueError, KeyError) as error:
            raise InputError(f"{self._storage.address('run.json')}: damaged ({error})") from error
        records = ((stage, self.find(stage, mark)) for stage, mark in stages.items())
        return {stage: record for stage, record in records if record is not None}

    def write_file(self, name: str, text: str) -> None:
        """Write or replace a loose file at the top of the run, such as report.html, atomically."""
        self._storage.put(_plain(name), text.encode("utf-8"))

    def read_file(self, name: str) -> str:
        """A loose file at the top of the run.

        Raises:
            InputError: There is none.
        """
        content = self._storage.read(_plain(name))
        if content is None:
            raise InputError(f"{self._storage.address(name)}: no such file")
        return content.decode("utf-8")

    def scratch(self, stage: str, fingerprint: str) -> str:
        """Local path or URL of a folder for the checkpoints of a stage that is under way.

        It is the same for the same fingerprint, so that a stage begun again finds what it left.
        """
        place = f"scratch/{_plain(stage)}-{_plain(fingerprint)}"
        self._storage.make_folder(place)
        return self._storage.join(place)

    def shared_folder(self, name: str) -> str:
        """Local path or URL of a folder at the top of the run that belongs to no stage and is never deleted.

        What is in it outlives every change of the configuration.
        """
        self._storage.make_folder(_plain(name))
        return self._storage.join(name)

    def clear_scratch(self, stage: str, fingerprint: str) -> None:
        """Delete that folder; nothing happens where there is none."""
        self._storage.delete(f"scratch/{_plain(stage)}-{_plain(fingerprint)}")

    def sweep(self, older_than: timedelta = timedelta(days=7)) -> list[str]:
        """Delete what killed processes left: files that no manifest refers to.

        Only attempts that began before `older_than` ago are touched, so that a process that is at work loses
        nothing; zero is safe where no other process writes to the run. Scratch folders and files that
        genret did not write are never touched.

        Returns:
            The places in the run that were deleted.

        Raises:
            InputError: A manifest is damaged: what it refers to is unknown, so nothing is deleted.
        """
        limit = datetime.now(UTC) - older_than
        # Attempts are listed before manifests are read: one that is committed in between is kept.
        attempts = [place for place in self._attempts() if _began(place) <= limit]
        kept = self._referred()
        orphans = [place for place in attempts if place not in kept]
        for place in orphans:
            self._storage.delete(place)
        return orphans

    def _attempts(self) -> list[str]:
        folders = ["", "stages"]
        for kind in ("tables", "artifacts"):
            folders += [f"{kind}/{name}" for name in self._storage.children(kind)]
        places = [f"{folder}/{name}".lstrip("/") for folder in folders for name in self._storage.children(folder)]
        return sorted(place for place in places if _ATTEMPT_AT_END.search(place))

    def _referred(self) -> set[str]:
        referred: set[str] = set()
        for name in self._storage.children("stages"):
            if name.endswith(".json"):
                content = self._storage.read(f"stages/{name}")
                if content is not None:
                    record = self._record(f"stages/{name}", content)
                    for entries in (record.tables, record.folders, record.texts):
                        referred |= {entry["path"] for entry in entries.values()}
        return referred

    def _record(self, place: str, content: bytes) -> StageRecord:
        try:
            record = _RECORDS.validate_python(_versioned(content))
            if _manifest_place(record.stage, record.fingerprint) != place:
                raise ValueError(f"it is of stage {record.stage}, fingerprint {record.fingerprint}")
        except ValueError as error:
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                error = ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
            raise InputError(
                f"{self._storage.address(place)}: damaged record of a stage ({error}); "
                "delete it to have the stage run again"
            ) from error
        return record

    def _damaged(self, record: StageRecord, place: str, problem: object) -> InputError:
        manifest = self._storage.address(_manifest_place(record.stage, record.fingerprint))
        return InputError(
            f"{self._storage.address(place)}: missing or damaged ({problem}); "
            f"delete {manifest} to have the stage {record.stage} run again"
        )

    def _cached(self, stored: StoredFolder) -> Path:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # The place holds the attempt's name, so that a copy never grows stale.
        folder = cache / "genret" / fingerprint(self.url) / stored["path"]
        if not _difference(stored["files"], _sizes(folder)):
            return folder
        partial = folder.with_name(f".{folder.name}-{attempt_name()}")
        try:
            for name in stored["files"]:
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._storage.reading(f"{stored['path']}/{name}") as source, target.open("wb") as copy:
                    found = _copied(source, copy)
                if (expected := stored.get("checksums", {}).get(name, found)) != found:
                    raise OSError(f"{name}: {_other(expected, found)}")
            _replace_folder(partial, folder, stored["files"])
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            address = self._storage.address(stored["path"])
            raise InputError(f"{address}: cannot be copied to {folder}: {error}") from error
        return folder


class StageWriter:
    """Writes the output of one stage; made by `RunStore.begin`.

    A writer that is never committed leaves files that nothing refers to; `RunStore.sweep` deletes them.
    """

    def __init__(self, store: RunStore, storage: Storage, stage: str, fingerprint: str) -> None:
        self.stage = stage
        self._store = store
        self._storage = storage
        self._fingerprint = fingerprint
        self._stem = f"{_plain(stage)}-{_plain(fingerprint)}-{attempt_name()}"
        self._sizes: dict[str, int] = {}
        self._tables: dict[str, StoredTable] = {}
        self._folders: dict[str, StoredFolder] = {}
        self._texts: dict[str, StoredText] = {}
        self._open = True

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a table as Parquet.

        Args:
            name: A key of `tables.SCHEMAS`.
            table: Must fit that schema.

        Raises:
            InputError: It does not fit, or the run cannot be written to.
        """
        self.write_parts(name, [table])

    def write_parts(self, name: str, parts: Iterable[pa.Table]) -> None:
        """Write a table as Parquet that is made part by part.

        While one is written, the next one is made: two are held at a time.

        Args:
            name: A key of `tables.SCHEMAS`.
            parts: Each must fit that schema.

        Raises:
            InputError: One does not fit, or the run cannot be written to.
        """
        self._claim(name, self._tables)
        place, rows = f"tables/{name}/{self._stem}.parquet", 0
        with (
            self._storage.writing(place) as stream,
            pq.ParquetWriter(stream, SCHEMAS[name], compression="zstd", write_page_checksum=True) as writer,
            ThreadPoolExecutor(1) as thread,
        ):
            writing: Future[None] | None = None
            for part in parts:
                checked = check_table(name, part)
                if writing:
                    writing.result()
                writing = thread.submit(writer.write_table, checked, row_group_size=_ROWS_A_GROUP)
                rows += part.num_rows
            if writing:
                writing.result()
        self._sizes[place] = self._storage.size(place)
        self._tables[name] = {"path": place, "rows": rows}

    def write_folder(self, name: str, local_folder: Path) -> None:
        """Copy a local folder with all files below it; empty folders and links to folders are left out.

        Raises:
            InputError: There is no such folder, it holds no file, or the run cannot be written to.
        """
        self._claim(name, self._folders)
        files = sorted(path for path in local_folder.rglob("*") if path.is_file())
        if not files:
            raise InputError(f"{local_folder}: expected a folder with files, found none")
        folder = f"artifacts/{name}/{self._stem}"
        sizes: dict[str, int] = {}
        checksums: dict[str, str] = {}
        for path in files:
            relative = path.relative_to(local_folder).as_posix()
            with path.open("rb") as source, self._storage.writing(f"{folder}/{relative}") as copy:
                checksums[relative] = _copied(source, copy)
            sizes[relative] = path.stat().st_size
        self._sizes |= {f"{folder}/{relative}": size for relative, size in sizes.items()}
        self._folders[name] = {"path": folder, "files": sizes, "checksums": checksums}

    def write_text(self, name: str, text: str) -> None:
        """Write a text.

        Args:
            name: Its name, with a suffix if it has one: report.html.
            text: Any text that UTF-8 can hold.

        Raises:
            InputError: The run cannot be written to.
        """
        self._claim(name, self._texts)
        content = text.encode("utf-8")
        place = f"artifacts/{name}/{self._stem}{Path(name).suffix or '.txt'}"
        with self._storage.writing(place) as stream:
            stream.write(content)
        self._sizes[place] = len(content)
        self._texts[name] = {"path": place, "bytes": len(content)}

    def commit(self, details: Mapping[str, Any]) -> StageRecord:
        """Make everything that was written visible, at once.

        Args:
            details: What the stage tells of itself; JSON-able.

        Returns:
            The record. Where another process finished the same stage first, its record, which stays.

        Raises:
            InputError: A written file is gone or cut short, or the run cannot be written to.
        """
        record = StageRecord(
            stage=self.stage,
            fingerprint=self._fingerprint,
            created=_now(),
            tables=self._tables,
            folders=self._folders,
            texts=self._texts,
            details=dict(details),
        )
        content = _json({"format": FORMAT, **asdict(record)})
        problem = _difference(self._sizes, {place: self._storage.size(place) for place in self._sizes})
        if problem:
            raise InputError(f"{self._storage.address('')}: a file of stage {self.stage} is gone: {problem}")
        self._open = False
        if self._storage.create(_manifest_place(self.stage, self._fingerprint), content):
            return record
        return self._store.find(self.stage, self._fingerprint) or record

    def _claim(self, name: str, entries: Mapping[str, Any]) -> None:
        # A second write would change a file that a manifest or a reader may know already.
        if not self._open:
            raise RuntimeError(f"stage {self.stage} is committed: {name!r} can no longer be written")
        if _plain(name) in entries:
            raise ValueError(f"stage {self.stage} wrote {name!r} before")


def _read_whole(file: pq.ParquetFile, size: int) -> pa.Table:
    if size <= _BYTES_IN_MEMORY:
        return file.read()
    spool = Spool(file.schema_arrow)
    for batch in file.iter_batches(_ROWS_A_READ, use_threads=False):  # each thread would keep room of its own
        spool.append(pa.Table.from_batches([batch]))
        pa.default_memory_pool().release_unused()
    return spool.table()


def _replace_folder(partial: Path, folder: Path, expected: Mapping[str, int]) -> None:
    """Move a complete folder into place.

    One that another process put there meanwhile stays, as somebody may be reading it; a damaged one goes.
    """
    try:
        partial.rename(folder)
    except OSError:
        if folder.is_dir() and not _difference(expected, _sizes(folder)):
            shutil.rmtree(partial)
            return
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _copied(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy a stream to its end; gives the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    while part := source.read(_COPY_BYTES):
        digest.update(part)
        target.write(part)
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, int]:
    """Size and time of change: another one where somebody has written to a file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _damage(path: Path, expected: str) -> str:
    """What is wrong with a file that had this SHA-256, in words; empty for nothing."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # a disk that cannot give back what it took
        return str(error)
    return "" if found == expected else _other(expected, found)


def _other(expected: str, found: str) -> str:
    return f"expected the SHA-256 {expected[:16]}..., found {found[:16]}..."


def _difference(expected: Mapping[str, int], found: Mapping[str, int]) -> str:
    """The first file whose size is not as expected, in words; empty where all are."""
    for name, size in expected.items():
        there = found.get(name, -1)
        if there != size:
            return f"{name}: expected {size} bytes, found {'no file' if there < 0 else f'{there} bytes'}"
    return ""


def _entry(record: StageRecord, kind: str, entries: Mapping[str, Any], name: str) -> Any:
    if name not in entries:
        raise InputError(f"stage {record.stage} wrote no {kind} {name!r}; found {sorted(entries)}")
    return entries[name]


def _versioned(content: bytes) -> dict[str, Any]:
    """The JSON object in a file of this format, without its version."""
    parsed = json.loads(content)
    if not isinstance(parsed, dict):
        raise ValueError(f"expected a JSON object, found {type(parsed).__name__}")
    version = parsed.pop("format", None)
    if version != FORMAT:
        raise ValueError(f"expected format {FORMAT}, found {version!r}")
    return parsed


def _manifest_place(stage: str, fingerprint: str) -> str:
    return f"stages/{_plain(stage)}-{_plain(fingerprint)}.json"


def _plain(name: str) -> str:
    """The name itself; anything that would leave its folder is a defect of the program."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"expected a plain name of letters, digits, '_', '.' and '-', found {name!r}")
    return name


def _began(place: str) -> datetime:
    match = _ATTEMPT_AT_END.search(place)
    assert match is not None  # only such places are asked for
    return datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
