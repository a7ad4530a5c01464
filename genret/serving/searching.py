"""One retriever of one version: opened, changed by additions and removals, and asked in batches."""

import json
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from itertools import compress
from typing import Any, TypeAlias

from genret.decoding.filters import Predicate, leaf_mask, parse_predicate
from genret.errors import InputError
from genret.retrieval.bm25 import Bm25Retriever
from genret.runs import RunStore
from genret.serving.asks import Answer, Ask, grouped
from genret.serving.versions import Change, Collection, Version, version_records
from genret.types import Retriever, ScoredPassage

Found: TypeAlias = tuple[list[ScoredPassage], bool]
"""A ranking, and whether the deadline cut it off."""

_MOST_MASKS = 64
# Passages whose metadata are kept as they were read, some kB each.
_MOST_KNOWN = 200_000
# Places of rankings that a retriever which knows no filter is asked for at a time.
_MOST_PLACES = 65_536
_PROBE_DEPTH = 10
# Of the passages that the run's evaluation found for its queries, how many a probe must find again: all but those
# that rounding on another machine may swap.
_PROBE_OVERLAP = 0.8


class Searcher:
    """Any retriever with the passages that it finds. `changed` makes another one; this one never changes.

    A retriever that knows nothing of filters and removals is asked for more and more of its ranking, until enough of it
    may be returned. One that is made by a run alone never finds added passages. Answers are exact unless the retriever
    says otherwise by an attribute `exact` that is False.

    Attributes:
        collection: The version's passages.
    """

    def __init__(self, retriever: Retriever, collection: Collection) -> None:
        """Take a retriever that was opened."""
        self.retriever, self.collection = retriever, collection
        self._exact = bool(getattr(retriever, "exact", True))
        self._masks: OrderedDict[str, Any] = OrderedDict()
        self._known: dict[str, Mapping[str, Any]] = {}
        self._there: Any = None

    def changed(self, change: Change) -> "Searcher":
        """This searcher after a change.

        Raises:
            InputError: An added identifier clashes with another.
        """
        other = copy(self)
        other.collection = self.collection.changed(change)
        other._masks, other._there = OrderedDict(), None
        other._known = dict(self._known)
        for passage_id in (*change.removed, *(passage.passage_id for passage in change.added)):
            other._known.pop(passage_id, None)
        return other

    def answer(self, asks: Sequence[Ask], waited: float = 0.0) -> list[Answer]:
        """Answer queries.

        Args:
            asks: At least one.
            waited: Seconds that passed since they were sent, out of their time.

        Returns:
            An answer a query, in their order. One whose time is over gets what was found, perhaps nothing.

        Raises:
            InputError: A filter is no predicate.
        """
        begin = time.perf_counter()
        answers: dict[int, Answer] = {}
        # Those without a filter first: however little another's filter leaves, they do not wait for what it takes.
        for group in sorted(grouped(asks, self._beam), key=lambda group: bool(asks[group[0]].filter)):
            spent = waited + time.perf_counter() - begin
            in_time = [number for number in group if asks[number].timeout > spent]
            answers |= {number: Answer([], exact=False, timed_out=True) for number in group}
            if in_time:
                members = [asks[number] for number in in_time]
                queries = [ask.query.encode("utf-8", "replace").decode("utf-8") for ask in members]
                until = begin - waited + min(ask.timeout for ask in members)
                answers |= dict(zip(in_time, self._answer_group(members, queries, until), strict=True))
        seconds = time.perf_counter() - begin
        for answer in answers.values():
            answer.wait_seconds, answer.search_seconds, answer.batch = waited, seconds, len(asks)
        return [answers[number] for number in range(len(asks))]

    _beam = 1
    """Up to which k rankings are beginnings of each other."""

    def _answer_group(self, asks: list[Ask], queries: list[str], until: float) -> list[Answer]:
        """Answer queries with one filter until a moment of `time.perf_counter`."""
        mask = self._mask(asks[0].filter)
        found = self._rank(queries, max(ask.k for ask in asks), mask, until)
        return [
            Answer(
                [(place.passage_id, place.score) for place in ranking[: ask.k]],
                exact=self._exact and not late,
                timed_out=late,
            )
            for ask, (ranking, late) in zip(asks, found, strict=True)
        ]

    def _rank(self, queries: list[str], k: int, mask: Any, until: float) -> list[Found]:
        if mask is None and self.collection.counts[2]:
            if self._there is None:
                self._there = self._allowing(frozenset(self.collection.ids()))
            mask = self._there
        if mask is not None:
            return self._sifted(queries, k, mask, until)
        return [(ranking, False) for ranking in self.retriever.retrieve(queries, k)]

    def _sifted(self, queries: list[str], k: int, allowed: frozenset[str], until: float) -> list[Found]:
        """Rankings of what is allowed: all queries' first places before any query's later ones."""
        rankings: list[list[ScoredPassage]] = [[] for _ in queries]
        wanted = min(k, len(allowed))
        pending = list(range(len(queries))) if wanted else []
        there, _, removed = self.collection.counts
        # So deep the last of them stands where they are spread evenly.
        depth = math.ceil(k * (there + removed) / max(1, len(allowed)))
        while pending:
            lacking: list[int] = []
            size = max(1, _MOST_PLACES // depth)
            for start in range(0, len(pending), size):
                if time.perf_counter() >= until:
                    late = {*lacking, *pending[start:]}
                    return [(ranking, number in late) for number, ranking in enumerate(rankings)]
                numbers = pending[start : start + size]
                found = self.retriever.retrieve([queries[number] for number in numbers], depth)
                for number, ranking in zip(numbers, found, strict=True):
                    rankings[number] = [place for place in ranking if place.passage_id in allowed][:k]
                    if len(rankings[number]) < wanted and len(ranking) >= depth:
                        lacking.append(number)
            pending, depth = lacking, 4 * depth
        return [(ranking, False) for ranking in rankings]

    def _mask(self, text: str) -> Any:
        """A filter as the retriever takes it; the last ones are kept."""
        if not text:
            return None
        if text not in self._masks:
            self._masks[text] = self._applied(parse_predicate(json.loads(text)))
            if len(self._masks) > _MOST_MASKS:
                self._masks.popitem(last=False)
        self._masks.move_to_end(text)
        return self._masks[text]

    def _applied(self, predicate: Predicate) -> Any:
        ids = self.collection.ids()
        return self._allowing(frozenset(compress(ids, leaf_mask(predicate, self._metadata(ids)).tolist())))

    def _allowing(self, ids: frozenset[str]) -> Any:
        """A set of passages as `_sifted` takes it, which is kept."""
        return ids

    def _metadata(self, ids: Sequence[str]) -> list[Mapping[str, Any]]:
        """The metadata of passages: of as many as there is room for, read once and not for each filter."""
        if len(ids) > _MOST_KNOWN:
            return self.collection.metadata(ids)
        new = [passage_id for passage_id in ids if passage_id not in self._known]
        self._known.update(zip(new, self.collection.metadata(new), strict=True))
        return [self._known[passage_id] for passage_id in ids]


class Bm25Searcher(Searcher):
    """BM25, which takes masks over its rows and passages that are added."""

    retriever: Bm25Retriever

    def changed(self, change: Change) -> "Bm25Searcher":
        """This searcher after a change."""
        other = super().changed(change)
        assert isinstance(other, Bm25Searcher)
        other.retriever = self.retriever.changed(change.added, change.removed, self.collection.table)
        return other

    def _rank(self, queries: list[str], k: int, mask: Any, until: float) -> list[Found]:
        if mask is not None and not mask.any():
            return [([], False) for _ in queries]
        return [
            (self.retriever.find([query], k, mask)[0], False) if time.perf_counter() < until else ([], True)
            for query in queries
        ]

    def _applied(self, predicate: Predicate) -> Any:
        ids = [self.retriever.passage_id(row) for row in range(len(self.retriever))]
        return leaf_mask(predicate, self._metadata(ids))


def open_bm25(store: RunStore, version: Version, name: str) -> Searcher:
    """Load the BM25 index of a version.

    Raises:
        InputError: A file is missing or damaged.
    """
    records = version_records(store, version)
    collection = Collection(store.read_table(records["corpus"], "passages"))
    return Bm25Searcher(Bm25Retriever.load(store.local_folder(records[name], name)), collection)


def probe(searcher: Searcher, store: RunStore, version: Version, name: str, count: int) -> None:
    """Ask a searcher that was just opened some queries, which also warms it up.

    Where the version has rankings of the evaluation by the same retriever, its answers are compared with those; else
    passages' own titles are asked for, and answers must be passages of the version with finite scores.

    Raises:
        InputError: An answer is none, or another one than the evaluation's.
    """
    expected = _recorded(store, version, name, count)
    queries = list(expected) or _titles(searcher.collection, count)
    answers = searcher.answer([Ask(query, _PROBE_DEPTH, "", 3600.0, explain=False) for query in queries])
    wanted = found = 0
    for query, answer in zip(queries, answers, strict=True):
        for passage_id, score in answer.places:
            if searcher.collection.get(passage_id) is None or not math.isfinite(score):
                raise InputError(f"version {version.id}: {name}: a probe found {passage_id!r} with the score {score}")
        ids = {passage_id for passage_id, _ in answer.places}
        wanted += len(expected.get(query, ()))
        found += len(ids & set(expected.get(query, ())))
    if not any(answer.places for answer in answers):
        raise InputError(f"version {version.id}: {name}: expected passages for {len(queries)} probes, found none")
    if found < _PROBE_OVERLAP * wanted:
        raise InputError(
            f"version {version.id}: {name}: expected the passages that the run's evaluation found for "
            f"{len(queries)} of its queries, found {found} of {wanted}: its index or model is damaged"
        )


def _recorded(store: RunStore, version: Version, name: str, count: int) -> dict[str, list[str]]:
    """What the evaluation found for its first queries, by the query's text."""
    if "retrieval" not in version.stages:
        return {}
    records = version_records(store, version)
    queries = store.read_table(records["corpus"], "test_queries").slice(0, count).to_pylist()
    texts = {row["query_id"]: row["text"] for row in queries}
    found: dict[str, list[str]] = {}
    for row in store.read_table(records["retrieval"], "run").to_pylist():
        if row["retriever"] == name and row["query_id"] in texts and row["rank"] <= _PROBE_DEPTH:
            found.setdefault(texts[row["query_id"]], []).append(row["passage_id"])
    return found


def _titles(collection: Collection, count: int) -> list[str]:
    passages: Iterable[Any] = (collection.get(passage_id) for passage_id in collection.ids()[:count])
    return [passage.title or passage.text[:200] for passage in passages]
