"""One retriever of one version: opened, changed by additions and removals, and asked in batches."""

import json
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

from genret.decoding.filters import Predicate, leaf_mask, parse_predicate
from genret.errors import InputError
from genret.retrieval.bm25 import Bm25Retriever
from genret.runs import RunStore
from genret.serving.asks import Answer, Ask, grouped
from genret.serving.versions import Change, Collection, Version, version_records
from genret.types import Retriever, ScoredPassage

_MOST_MASKS = 64
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

    def changed(self, change: Change) -> "Searcher":
        """This searcher after a change.

        Raises:
            InputError: An added identifier clashes with another.
        """
        other = copy(self)
        other.collection = self.collection.changed(change)
        other._masks = OrderedDict()
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
        for group in grouped(asks, self._beam):
            spent = waited + time.perf_counter() - begin
            in_time = [number for number in group if asks[number].timeout > spent]
            answers |= {number: Answer([], exact=False, timed_out=True) for number in group}
            if in_time:
                members = [asks[number] for number in in_time]
                queries = [ask.query.encode("utf-8", "replace").decode("utf-8") for ask in members]
                answers |= dict(zip(in_time, self._answer_group(members, queries, spent), strict=True))
        seconds = time.perf_counter() - begin
        for answer in answers.values():
            answer.wait_seconds, answer.search_seconds, answer.batch = waited, seconds, len(asks)
        return [answers[number] for number in range(len(asks))]

    _beam = 1
    """Up to which k rankings are beginnings of each other."""

    def _answer_group(self, asks: list[Ask], queries: list[str], spent: float) -> list[Answer]:
        """Answer queries with one filter."""
        rankings = self._rank(queries, max(ask.k for ask in asks), self._mask(asks[0].filter))
        return [
            Answer([(place.passage_id, place.score) for place in ranking[: ask.k]], exact=self._exact)
            for ask, ranking in zip(asks, rankings, strict=True)
        ]

    def _rank(self, queries: list[str], k: int, mask: Any) -> list[list[ScoredPassage]]:
        if mask is None and not self.collection.counts[2]:
            return self.retriever.retrieve(queries, k)
        return [self._sifted(query, k, mask) for query in queries]

    def _sifted(self, query: str, k: int, mask: dict[str, bool] | None) -> list[ScoredPassage]:
        depth = k
        while True:
            ranking = self.retriever.retrieve([query], depth)[0]
            kept = [
                place
                for place in ranking
                if self.collection.get(place.passage_id) is not None and (mask is None or mask.get(place.passage_id))
            ]
            if len(kept) >= k or len(ranking) < depth:
                return kept[:k]
            depth *= 4

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
        return dict(zip(ids, leaf_mask(predicate, self.collection.metadata(ids)).tolist(), strict=True))


class Bm25Searcher(Searcher):
    """BM25, which takes masks over its rows and passages that are added."""

    retriever: Bm25Retriever

    def changed(self, change: Change) -> "Bm25Searcher":
        """This searcher after a change."""
        other = super().changed(change)
        assert isinstance(other, Bm25Searcher)
        other.retriever = self.retriever.changed(change.added, change.removed, self.collection.table)
        return other

    def _rank(self, queries: list[str], k: int, mask: Any) -> list[list[ScoredPassage]]:
        return self.retriever.find(queries, k, mask)

    def _applied(self, predicate: Predicate) -> Any:
        ids = [self.retriever.passage_id(row) for row in range(len(self.retriever))]
        return leaf_mask(predicate, self.collection.metadata(ids))


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
