"""The synthesis stage: what the engine wrote, sorted into tables with nothing lost."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genret.config import SynthesisConfig
from genret.llm.base import (
    Engine,
    Item,
    Pairs,
    Request,
    Requests,
    Response,
    Work,
    work_through,
)
from genret.llm.filters import Limits, broken_reason, unfit_reason
from genret.parts import Parts, cut_table
from genret.spools import Spool
from genret.synthesis.answers import preference_requests
from genret.synthesis.duplicates import NearDuplicates
from genret.synthesis.queries import check_constraint_fields, passage_of, query_requests
from genret.tables import SCHEMAS, reject, table_from_rows, text_table

_READ_ROWS = 1024
_TABLES = ("queries", "preference_queries", "rejects")


def synthesize(
    config: SynthesisConfig,
    passages: pa.Table,
    engine: Engine,
    limits: Limits | None = None,
    multihop: Iterable[Request] = (),
) -> dict[str, pa.Table]:
    """Write queries for every passage.

    Args:
        config: The `synthesis` section.
        passages: The `passages` table.
        engine: What writes the queries.
        limits: What the texts of a language model must keep to, and from which overlap on two queries of a passage
            are duplicates. None for an engine that quotes its passages, whose texts are not judged.
        multihop: Requests for queries over several passages, in the order of `passages`
            (`genret.synthesis.multihop`); a list or `Requests`.

    Returns:
        Three tables.

        * `queries`: no passage has two with the same text but for case and white space, or with nearly the same
          where there are limits.
        * `preference_queries`: likewise, and none has the text of any row of `queries`.
        * `rejects`: requests with an error, queries that are unfit, and one row for each request with duplicates
          that says how many. Every query of the engine is in a table or counted here.

        A query's id is its request's id, `|`, and its place in the response from 0.

    Raises:
        InputError: Constraint queries are wanted, but no passage has the metadata.
        ValueError: `multihop` is not in the order of the passages.
    """
    check_constraint_fields(config, passages)
    work = Work(partial(_ask, config), partial(_sort, engine.name, limits))
    collected = _Collected()
    for outcome in work_through(engine, _parts(config, passages, multihop), work):
        collected.add(outcome)
    return collected.tables()


def synthesis_requests(config: SynthesisConfig, passages: pa.Table, multihop: Iterable[Request] = ()) -> Requests:
    """All that `synthesize` asks an engine, for the same arguments."""
    # The few preference queries come first: SFT queries need only be looked up among them.
    return Requests(lambda: chain(preference_requests(config, passages), query_requests(config, passages, multihop)))


@dataclass(frozen=True)
class _Part:
    """Some passages to ask about: for preference queries, or for all others."""

    preference: bool
    passages: pa.Table
    multihop: tuple[Request, ...] = ()


def _parts(config: SynthesisConfig, passages: pa.Table, multihop: Iterable[Request]) -> Parts[_Part]:
    """The parts in the order of `synthesis_requests`."""
    blocks = cut_table(passages)

    def draw() -> Iterator[_Part]:
        if config.preference_queries:
            yield from (_Part(True, block) for block in blocks)
        yield from _with_related(blocks, multihop)

    return Parts(draw, (2 if config.preference_queries else 1) * len(blocks))


def _with_related(blocks: Iterable[pa.Table], multihop: Iterable[Request]) -> Iterator[_Part]:
    """Blocks of passages, each with the multi-hop requests about its own."""
    remaining = iter(multihop)
    pending = next(remaining, None)
    for block in blocks:
        related = []
        names = set(block.column("passage_id").to_pylist()) if pending else ()
        while pending and passage_of(pending) in names:
            related.append(pending)
            pending = next(remaining, None)
        yield _Part(False, block, tuple(related))
    if pending:
        raise ValueError(f"multi-hop requests: {pending.request_id!r} is not in the order of the passages")


def _ask(config: SynthesisConfig, part: _Part) -> Iterable[Request]:
    if part.preference:
        return preference_requests(config, part.passages)
    return query_requests(config, part.passages, part.multihop)


class _Seen:
    """The queries of one passage."""

    def __init__(self, limits: Limits | None) -> None:
        self._keys: set[str] = set()
        self._near = NearDuplicates(limits.max_overlap) if limits else None

    def add(self, text: str) -> str:
        """Take a query in, or say what it is: `duplicate` or `near-duplicate`."""
        key = text.casefold()
        if key in self._keys:
            return "duplicate"
        if self._near and self._near.add(text):
            return "near-duplicate"
        self._keys.add(key)
        return ""


@dataclass(frozen=True)
class _Sorted:
    """What came of a part.

    Attributes:
        tables: Rows of `queries`, `preference_queries` and `rejects`. As Arrow they are no work for the driver, which
            takes them in for all actors.
        keys: uint64: 64 bits of a digest of each kept query's text without case, in their order.
    """

    tables: dict[str, pa.Table]
    keys: np.ndarray


def _sort(generator: str, limits: Limits | None, pairs: Pairs) -> _Sorted:
    sorting = _Sorting(generator, limits)
    for request, response in pairs:
        sorting.add(request, response)
    return sorting.sorted()


class _Sorting:
    """Sorts the responses of a part into tables."""

    def __init__(self, generator: str, limits: Limits | None) -> None:
        self._generator = generator
        self._limits = limits
        self._columns: dict[str, dict[str, list[str]]] = {
            name: {column: [] for column in SCHEMAS[name].names} for name in _TABLES
        }
        self._keys: list[str] = []
        # Requests of a passage and stage come one after another: only its own texts are remembered.
        self._group = ("", False)
        self._seen = _Seen(limits)

    def add(self, request: Request, response: Response) -> None:
        """Put every query of a response where it belongs."""
        group = (passage_of(request), request.kind == "preference")
        if group != self._group:
            self._group, self._seen = group, _Seen(self._limits)
        if response.error:
            self._reject(request.request_id, response.error, response.raw or request.text)
        duplicates: dict[str, list[str]] = {}
        for number, item in enumerate(response.items):
            query_id, text = f"{request.request_id}|{number}", " ".join(item.text.split())
            if unfit := self._unfit(request, item):
                self._reject(query_id, unfit, item.text)
            elif duplicate := self._seen.add(text):
                duplicates.setdefault(duplicate, []).append(text)
            else:
                self._keep(request, query_id, text, item.answer)
        for duplicate, texts in duplicates.items():
            self._reject(request.request_id, f"{len(texts)} {duplicate} queries", texts[0])

    def _unfit(self, request: Request, item: Item) -> str:
        """Why an item is not fit; empty if it is."""
        if self._limits is None:
            return broken_reason(request.kind, item)
        return unfit_reason(request.kind, item, self._limits)

    def _keep(self, request: Request, query_id: str, text: str, answer: str) -> None:
        row = {"query_id": query_id, "passage_id": self._group[0], "text": text}
        self._keys.append(text.casefold())
        if request.kind == "preference":
            self._append("preference_queries", row | {"answer": " ".join(answer.split())})
        else:
            self._append("queries", row | {"kind": request.kind, "generator": self._generator})

    def _reject(self, input_id: str, reason: str, raw: str) -> None:
        self._append("rejects", reject("synthesis", input_id, reason, raw))

    def _append(self, name: str, row: dict[str, str]) -> None:
        columns = self._columns[name]
        for column, value in row.items():
            columns[column].append(value)

    def sorted(self) -> _Sorted:
        """What there is."""
        return _Sorted(
            {name: text_table(name, columns) for name, columns in self._columns.items()}, _digests(self._keys)
        )


def _digests(keys: Iterable[str]) -> np.ndarray:
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


class _Collected:
    """The tables of all parts, on disk. Held are eight bytes a preference query, to see which of them other queries
    equal."""

    def __init__(self) -> None:
        self._spools = {name: Spool(SCHEMAS[name]) for name in _TABLES}
        self._pending: list[np.ndarray] = []
        self._preference = np.empty(0, dtype=np.uint64)
        self._suspects: set[str] = set()

    def add(self, part: _Sorted) -> None:
        """Take in a part; those with preference queries come first."""
        for name, table in part.tables.items():
            self._spools[name].append(table)
        if part.tables["preference_queries"].num_rows:
            # Copied: it may lie in the object store, with all of the part.
            self._pending.append(part.keys.copy())
        elif part.tables["queries"].num_rows:
            self._suspect(part.tables["queries"].column("text"), part.keys)

    def _suspect(self, texts: pa.ChunkedArray, keys: np.ndarray) -> None:
        """Note the texts whose digests preference queries have too; equal texts are among them."""
        if self._pending:
            self._preference, self._pending = np.unique(np.concatenate(self._pending)), []
        if not self._preference.size:
            return
        # In their order they are found four times as fast: near in the array, and so in the processor's cache.
        order = np.argsort(keys)
        ordered = keys[order]
        places = np.searchsorted(self._preference, ordered)
        places[places == self._preference.size] = 0
        alike = order[self._preference[places] == ordered]
        self._suspects.update(text.casefold() for text in texts.take(pa.array(alike)).to_pylist())

    def tables(self) -> dict[str, pa.Table]:
        """The tables; preference queries that SFT has too are left out here."""
        preference = self._spools["preference_queries"].table()
        if self._suspects:
            preference = self._without_clashes(preference)
        return {
            "queries": self._spools["queries"].table(),
            "preference_queries": preference,
            "rejects": self._spools["rejects"].table(),
        }

    def _without_clashes(self, preference: pa.Table) -> pa.Table:
        kept = Spool(preference.schema)
        for batch in preference.to_batches(_READ_ROWS):
            block = pa.Table.from_batches([batch])
            clash = pa.array([text.casefold() in self._suspects for text in block.column("text").to_pylist()])
            for row in block.filter(clash).to_pylist():
                reason = "supervised fine-tuning has the same query"
                rejected = reject("synthesis", row["query_id"], reason, row["text"])
                self._spools["rejects"].append(table_from_rows("rejects", [rejected]))
            kept.append(block.filter(pc.invert(clash)))
        return kept.table()
