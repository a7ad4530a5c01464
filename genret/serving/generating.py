"""Retrievers that take a model: the generative one, the dense one, and any other that a run has.

PyTorch and transformers are imported by the replicas alone: whoever deploys them does not wait for that too.
"""

import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from genret.cluster import NO_GPU
from genret.config import ReplicasConfig
from genret.decoding.filters import Predicate, leaf_mask
from genret.retrieval.opening import load_retriever
from genret.runs import RunStore
from genret.serving.asks import Answer, Ask
from genret.serving.members import RetrieverReplica
from genret.serving.searching import Found, Searcher
from genret.serving.versions import Change, Collection, Version, version_records

if TYPE_CHECKING:
    from genret.retrieval.dense import DenseRetriever
    from genret.retrieval.generative import GenerativeRetriever


class GenerativeSearcher(Searcher):
    """A generative retriever, with filters and deadlines in the search itself."""

    retriever: "GenerativeRetriever"

    def __init__(self, retriever: "GenerativeRetriever", collection: Collection, beam: int) -> None:
        """Take a retriever that was opened, and up to which k its rankings are beginnings of each other."""
        super().__init__(retriever, collection)
        self._beam = beam

    def changed(self, change: Change) -> "GenerativeSearcher":
        """This searcher after a change."""
        other = super().changed(change)
        assert isinstance(other, GenerativeSearcher)
        names = [passage.passage_id for passage in change.added]
        added = dict(zip(names, change.identifiers, strict=True)) if change.identifiers is not None else {}
        other.retriever = self.retriever.changed(added, change.removed)
        return other

    def _answer_group(self, asks: list[Ask], queries: list[str], until: float) -> list[Answer]:
        k, mask, retriever = max(ask.k for ask in asks), self._mask(asks[0].filter), self.retriever
        seconds = until - time.perf_counter()
        if seconds <= 0:
            return [Answer([], exact=False, timed_out=True) for _ in asks]
        results = retriever.find(queries, k, mask, seconds)
        late = time.perf_counter() >= until
        answers = []
        for ask, query, result in zip(asks, queries, results, strict=True):
            positions, scores = result.indices[: ask.k].tolist(), result.scores[: ask.k].tolist()
            places = [(retriever.passage_ids[at], score) for at, score in zip(positions, scores, strict=True)]
            # To explain takes another pass for each query.
            explained = ask.explain and time.perf_counter() < until
            answers.append(
                Answer(
                    places,
                    exact=result.exact,
                    timed_out=(late and not result.exact) or explained != ask.explain,
                    expansions=result.expansions,
                    identifiers=[retriever.identifiers[at] for at in positions],
                    tokens=retriever.explain(query, positions) if explained else None,
                )
            )
        return answers

    def _applied(self, predicate: Predicate) -> Any:
        mask = leaf_mask(predicate, self._metadata(self.retriever.passage_ids))
        return self.retriever.filter_of(mask)


class DenseSearcher(Searcher):
    """The dense retriever, which takes masks over the rows of its index. It never finds added passages."""

    retriever: "DenseRetriever"

    def __init__(self, retriever: "DenseRetriever", collection: Collection) -> None:
        """Take a retriever that was opened."""
        super().__init__(retriever, collection)
        self._names = retriever.passage_ids

    def _allowing(self, ids: frozenset[str]) -> Any:
        return np.fromiter((name in ids for name in self._names), np.bool_, len(self._names))

    def _sifted(self, queries: list[str], k: int, allowed: Any, until: float) -> list[Found]:
        if not allowed.any():
            return [([], False) for _ in queries]
        found: list[Found] = []
        for start in range(0, len(queries), self.retriever.batch_size):
            batch = queries[start : start + self.retriever.batch_size]
            late = time.perf_counter() >= until
            rankings = [[] for _ in batch] if late else self.retriever.find(batch, k, allowed)
            found += [(ranking, late) for ranking in rankings]
        return found


def open_searcher(store: RunStore, version: Version, name: str) -> Searcher:
    """Load a retriever of a version.

    Raises:
        InputError: A file is missing or damaged.
    """
    from genret.retrieval.dense import DenseRetriever
    from genret.retrieval.generative import GenerativeRetriever

    records, settings = version_records(store, version), version.settings
    retriever = load_retriever(store, records, name, settings)
    collection = Collection(store.read_table(records["corpus"], "passages"))
    if isinstance(retriever, GenerativeRetriever):
        return GenerativeSearcher(retriever, collection, settings.beam if settings.search == "beam" else 1)
    if isinstance(retriever, DenseRetriever):
        return DenseSearcher(retriever, collection)
    return Searcher(retriever, collection)


class ModelReplica(RetrieverReplica):
    """A retriever with a model in one process."""

    def prepare(self, replicas: ReplicasConfig) -> None:
        """Give the model its threads, and no GPU where none was asked for: Ray leaves all of them visible then.

        A thread that shares its core with the ingress keeps all others waiting at the end of every operation. Whether
        one is on this node cannot be known here: it is so on a single machine, and who has more names the threads.
        """
        from genret.threads import use_threads

        use_threads(replicas.threads or max(1, (os.cpu_count() or 1) - 1))
        if not replicas.gpus:
            os.environ.update(NO_GPU)

    def open(self, store: RunStore, version: Version, name: str) -> Searcher:
        """Load the retriever of a version."""
        return open_searcher(store, version, name)
