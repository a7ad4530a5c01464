"""What is served: a version of a run, the passages in it, and what was added and removed since."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
from pydantic_core import to_json

from genret.config import RetrievalConfig, RunConfig, parse_config
from genret.errors import InputError
from genret.retrieval.fusion import FUSION
from genret.retrieval.names import GENERATIVE, LISTS, TRAINED, last_stage, retriever_names, retriever_stages
from genret.runs import RunStore, StageRecord, fingerprint
from genret.types import Passage

EVALUATED = ("retrieval", "evaluation")
"""The stages that come after all retrievers: what they find, and how good that is."""

READ = (
    *("corpus", "identifiers", *EVALUATED),
    *(*TRAINED, "bm25", "encoder", "dense", "embedding", LISTS),
)
"""The stages that a service reads."""

_MOST_VALUES = 50
_MOST_DISTINCT = 10_000
# Of passages as JSON that are kept: those of a short query's answers take some 10 KB.
_KEPT_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Version:
    """Finished stages of a run that are served together.

    Attributes:
        id: Stands for all the rest.
        stages: Fingerprint by stage, of the stages that are read.
        retrievers: Names, the default first.
        retrieval: The `retrieval` section as it was when the version was found.
    """

    id: str
    stages: dict[str, str]
    retrievers: tuple[str, ...]
    retrieval: dict[str, Any]

    @property
    def settings(self) -> RetrievalConfig:
        """The `retrieval` section."""
        return RetrievalConfig.model_validate(self.retrieval)


@dataclass(frozen=True)
class Change:
    """Passages that were added and removed, as one step; removed ones go first.

    Attributes:
        number: From 1; changes are made in this order.
        added: The new passages.
        identifiers: Theirs, as text; None for a run whose identifiers take training.
        removed: Ids of passages.
    """

    number: int
    added: tuple[Passage, ...] = ()
    identifiers: tuple[str, ...] | None = None
    removed: tuple[str, ...] = ()


def mark_after(mark: str, change: Change) -> str:
    """The mark of a version after a change: it stands for the version and all changes until then, in their order.

    Args:
        mark: The one before; of a version without changes its id.
        change: The change.
    """
    return fingerprint(mark, asdict(change))


def read_config(store: RunStore) -> RunConfig:
    """The configuration that a run was last started with."""
    return parse_config(store.read_file("config.yaml"), store.address("config.yaml"))


def find_version(store: RunStore, wanted: Sequence[str] = ()) -> Version:
    """The version of a run that its current stages make.

    Args:
        store: The run.
        wanted: Retrievers that must be in it; none: all that there are.

    Raises:
        InputError: The run has no retriever yet, lacks one, or is not through with one.
    """
    # In this order: a run writes its configuration first, which so is never older than the stages.
    records = store.current()
    config = read_config(store)
    retrieval = config.retrieval
    names = retriever_names(records, retrieval)
    if not names or "corpus" not in records:
        raise InputError(f"{store.address()}: no retriever in this run yet; expected a run that was trained")
    if missing := [name for name in wanted if name not in names]:
        raise InputError(f"serving.retrievers: expected some of {names}, found {missing}")
    chosen = tuple(name for name in names if name in wanted) if wanted else tuple(names)
    if FUSION in chosen and (missing := [part for part in retrieval.fusion.parts if part not in chosen]):
        raise InputError(f"serving.retrievers: fusion needs {missing} served too, found {list(chosen)}")
    # Each stage is told as it finishes; a retriever of several is not what was asked for before the last.
    last = {name: last_stage(name, config) for name in chosen if name != FUSION}
    if unfinished := {name: stage for name, stage in last.items() if stage not in records}:
        named = ", ".join(f"{stage} (of {name})" for name, stage in unfinished.items())
        raise InputError(f"{store.address()}: expected all stages of what is served, still missing: {named}")
    stages = {stage: records[stage].fingerprint for stage in READ if stage in records}
    settings = retrieval.model_dump(mode="json")
    return Version(fingerprint(stages, list(chosen), settings), stages, chosen, settings)


def version_records(store: RunStore, version: Version) -> dict[str, StageRecord]:
    """The stages of a version.

    Raises:
        InputError: One is gone or damaged.
    """
    records = {}
    for stage, mark in version.stages.items():
        record = store.find(stage, mark)
        if record is None:
            raise InputError(f"{store.address()}: stage {stage} with the fingerprint {mark} is gone")
        records[stage] = record
    return records


def check_files(store: RunStore, version: Version, name: str) -> None:
    """Read all files that a retriever is opened from: one that a disk has damaged may give wrong answers only now and
    then. (Tables check themselves as they are read.)

    Raises:
        InputError: One is gone, or not as its stage wrote it.
    """
    records = version_records(store, version)
    for stage in retriever_stages(name, records):
        for folder in records[stage].folders:
            store.check_folder(records[stage], folder)


def retriever_kind(name: str) -> str:
    """What kind of retriever a name stands for: `generative`, `fusion`, `bm25`, `dense`."""
    return "generative" if name in GENERATIVE else name


class _Rows:
    """The passages of a table, and as JSON as many as there is room for: to read ten rows takes a tenth of a ms."""

    def __init__(self, table: pa.Table) -> None:
        self._columns = [table.column(name) for name in ("passage_id", "doc_id", "title", "text", "metadata")]
        self._kept: dict[int, bytes] = {}
        self._size = 0

    def passage(self, row: int) -> Passage:
        passage_id, doc_id, title, text, metadata = (column[row].as_py() for column in self._columns)
        return Passage(passage_id, doc_id, text, title, json.loads(metadata))

    def metadata(self, row: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._columns[-1][row].as_py())
        return found

    def json_fields(self, row: int) -> bytes:
        text = self._kept.get(row)
        if text is None:
            text = self._kept[row] = _json_fields(self.passage(row))
            self._size += len(text)
            while self._size > _KEPT_BYTES:
                self._size -= len(self._kept.pop(next(iter(self._kept))))
        return text


def _json_fields(passage: Passage) -> bytes:
    """A passage's fields as JSON, without the braces around them."""
    fields = {
        "passage_id": passage.passage_id,
        "doc_id": passage.doc_id,
        "title": passage.title,
        "text": passage.text,
        "metadata": passage.metadata,
    }
    return to_json(fields, inf_nan_mode="null")[1:-1]


class Collection:
    """The passages of a version by id, with those that were added and without those that were removed."""

    def __init__(self, passages: pa.Table) -> None:
        """Take the table `passages`."""
        self.table = passages.combine_chunks()
        # Changes leave its rows as they are, so that the collections they make share them.
        self._base = _Rows(self.table)
        self._rows = {passage_id: row for row, passage_id in enumerate(self.table.column("passage_id").to_pylist())}
        self._added: dict[str, Passage] = {}
        self._removed: frozenset[str] = frozenset()

    def changed(self, change: Change) -> "Collection":
        """This collection after a change; it stays as it is itself."""
        other = copy(self)
        gone = set(change.removed)
        other._removed = (self._removed | gone) - {passage.passage_id for passage in change.added}
        other._added = {name: passage for name, passage in self._added.items() if name not in gone}
        other._added |= {passage.passage_id: passage for passage in change.added}
        return other

    def get(self, passage_id: str) -> Passage | None:
        """A passage, or None where there is none of that id."""
        if passage_id in self._removed:
            return None
        if passage_id in self._added:
            return self._added[passage_id]
        row = self._rows.get(passage_id)
        return None if row is None else self._base.passage(row)

    def json_fields(self, passage_id: str) -> bytes | None:
        """A passage's fields as JSON, without the braces around them; None where there is none of that id."""
        if passage_id in self._removed:
            return None
        if passage_id in self._added:
            return _json_fields(self._added[passage_id])
        row = self._rows.get(passage_id)
        return None if row is None else self._base.json_fields(row)

    def of_document(self, doc_id: str) -> list[str]:
        """The ids of a document's passages."""
        base = self.table.filter(pa.compute.equal(self.table.column("doc_id"), doc_id)).column("passage_id").to_pylist()
        found = [passage_id for passage_id in base if passage_id not in self._removed and passage_id not in self._added]
        return found + [name for name, passage in self._added.items() if passage.doc_id == doc_id]

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many passages there are, how many of them were added, and how many were removed."""
        removed = sum(passage_id in self._rows for passage_id in self._removed)
        replaced = sum(passage_id in self._rows for passage_id in self._added)
        return len(self._rows) - removed - replaced + len(self._added), len(self._added), removed

    def metadata(self, passage_ids: Sequence[str]) -> list[Mapping[str, Any]]:
        """The metadata of some passages; empty where there is no such passage."""
        found: list[Mapping[str, Any]] = []
        for passage_id in passage_ids:
            if passage_id in self._added:
                found.append(self._added[passage_id].metadata)
            else:
                row = self._rows.get(passage_id)
                found.append({} if row is None else self._base.metadata(row))
        return found

    def ids(self) -> list[str]:
        """The ids of all passages that are there."""
        base = [name for name in self._rows if name not in self._removed and name not in self._added]
        return [*base, *self._added]


@dataclass
class _Seen:
    """What is known of the values of one metadata field."""

    count: int
    kinds: set[str]
    values: Counter[tuple[str, Any]]
    low: Any = None
    high: Any = None


def metadata_fields(metadata: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The metadata fields of passages: type, most frequent values, and range of numbers and dates.

    Of a list each entry counts. Values that are objects are left out, as filters cannot ask for them.

    Args:
        metadata: One mapping a passage.

    Returns:
        One object a field as `schemas.FieldInfo` has it, the most frequent field first.
    """
    fields: dict[str, _Seen] = {}
    for entry in metadata:
        for name, value in entry.items():
            seen = fields.setdefault(name, _Seen(0, set(), Counter()))
            seen.count += 1
            for item in value if isinstance(value, list) else [value]:
                _note(seen, item)
    ordered = sorted(fields.items(), key=lambda pair: -pair[1].count)
    return [_described(name, seen) for name, seen in ordered if seen.kinds]


def _note(seen: _Seen, value: Any) -> None:
    kind = _kind(value)
    if not kind:
        return
    seen.kinds.add(kind)
    if len(seen.values) < _MOST_DISTINCT or (kind, value) in seen.values:
        seen.values[kind, value] += 1
    if kind in ("number", "date"):
        seen.low = value if seen.low is None or _below(value, seen.low) else seen.low
        seen.high = value if seen.high is None or _below(seen.high, value) else seen.high


def _below(one: Any, other: Any) -> bool:
    return isinstance(one, str) == isinstance(other, str) and bool(one < other)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if not isinstance(value, str):
        return ""
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return "text"
    return "date"


def _described(name: str, seen: _Seen) -> dict[str, Any]:
    kind = next(iter(seen.kinds)) if len(seen.kinds) == 1 else "mixed"
    if seen.kinds == {"date", "text"}:
        kind = "text"
    telling = len(seen.values) <= max(_MOST_VALUES, seen.count // 2)
    ranged = kind in ("number", "date")
    return {
        "name": name,
        "type": kind,
        "count": seen.count,
        "distinct": len(seen.values),
        "values": [
            {"value": value, "count": count} for (_, value), count in seen.values.most_common(_MOST_VALUES) if telling
        ],
        "minimum": seen.low if ranged else None,
        "maximum": seen.high if ranged else None,
    }
