"""The synthesis stage: what the engine wrote, sorted into tables with nothing lost."""

from collections.abc import Iterable
from itertools import chain

import pyarrow as pa

from genret.config import SynthesisConfig
from genret.llm.base import Engine, Item, Request, Requests, Response, pair_responses
from genret.llm.filters import Limits, broken_reason, unfit_reason
from genret.synthesis.answers import preference_requests
from genret.synthesis.duplicates import NearDuplicates
from genret.synthesis.queries import check_constraint_fields, passage_of, query_requests
from genret.tables import reject, table_from_rows

_ROWS_A_BLOCK = 65_536


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
    sorting = _Sorting(engine.name, limits)
    for request, response in pair_responses(engine, synthesis_requests(config, passages, multihop)):
        sorting.add(request, response)
    return sorting.tables()


def synthesis_requests(config: SynthesisConfig, passages: pa.Table, multihop: Iterable[Request] = ()) -> Requests:
    """All that `synthesize` asks an engine, for the same arguments."""
    # The few preference queries come first: SFT queries need only be looked up among them.
    return Requests(lambda: chain(preference_requests(config, passages), query_requests(config, passages, multihop)))


class _Rows:
    """A table that grows. Rows become Arrow columns block by block: as Python objects they take far more
    room."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pending: list[dict[str, str]] = []
        self._blocks: list[pa.Table] = []

    def append(self, row: dict[str, str]) -> None:
        self._pending.append(row)
        if len(self._pending) >= _ROWS_A_BLOCK:
            self._flush()

    def _flush(self) -> None:
        self._blocks.append(table_from_rows(self._name, self._pending))
        self._pending = []

    def table(self) -> pa.Table:
        self._flush()
        return pa.concat_tables(self._blocks)


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


class _Sorting:
    """Sorts responses into tables."""

    def __init__(self, generator: str, limits: Limits | None) -> None:
        self._generator = generator
        self._limits = limits
        self._queries = _Rows("queries")
        self._preference = _Rows("preference_queries")
        self._rejects = _Rows("rejects")
        self._preference_keys: set[str] = set()
        self._clashes: set[str] = set()
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
        row = {"query_id": query_id, "passage_id": passage_of(request), "text": text}
        key = text.casefold()
        if request.kind == "preference":
            self._preference_keys.add(key)
            self._preference.append(row | {"answer": " ".join(answer.split())})
        else:
            if key in self._preference_keys:
                self._clashes.add(key)
            self._queries.append(row | {"kind": request.kind, "generator": self._generator})

    def _reject(self, input_id: str, reason: str, raw: str) -> None:
        self._rejects.append(reject("synthesis", input_id, reason, raw))

    def tables(self) -> dict[str, pa.Table]:
        """The tables; preference queries that SFT has too are left out here."""
        preference = self._preference.table()
        if self._clashes:
            clash = [text.casefold() in self._clashes for text in preference.column("text").to_pylist()]
            for row in preference.filter(pa.array(clash)).to_pylist():
                self._reject(row["query_id"], "supervised fine-tuning has the same query", row["text"])
            preference = preference.filter(pa.array([not same for same in clash]))
        return {
            "queries": self._queries.table(),
            "preference_queries": preference,
            "rejects": self._rejects.table(),
        }
