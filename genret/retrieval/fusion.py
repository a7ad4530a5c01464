"""Fusion: one ranking made of those that several retrievers give for the same query."""

import math
from collections.abc import Sequence

import pyarrow as pa

from genret.config import FusionConfig, RetrievalConfig
from genret.errors import InputError
from genret.retrieval.base import BatchedRetriever, run_table
from genret.tables import check_table
from genret.types import Retriever, ScoredPassage

FUSION = "fusion"
"""What configurations and tables call the fusion of a run."""


class FusionRetriever(BatchedRetriever):
    """Asks several retrievers, one after the other, and joins their rankings with `fuse`."""

    def __init__(self, parts: Sequence[Retriever], config: RetrievalConfig, name: str = FUSION) -> None:
        """Join retrievers.

        Args:
            parts: The retrievers, in the order of `config.fusion.parts`.
            config: The `retrieval` section.
            name: What the tables call the fusion.
        """
        super().__init__(name, config.batch_size)
        if len(parts) != len(config.fusion.parts):
            raise InputError(
                f"retriever {name}: expected {len(config.fusion.parts)} retrievers to join, found {len(parts)}"
            )
        self._parts = list(parts)
        self._config = config

    def _retrieve_batch(self, queries: list[str], k: int) -> list[list[ScoredPassage]]:
        depth = fusion_depth(self._config, k)
        found = [part.retrieve(queries, depth) for part in self._parts]
        return [fuse(rankings, self._config.fusion, k) for rankings in zip(*found, strict=True)]


def fuse_runs(runs: Sequence[pa.Table], queries: pa.Table, config: RetrievalConfig, name: str = FUSION) -> pa.Table:
    """Join rankings that were made before: the `run` table that a `FusionRetriever` of the same parts gives.

    Args:
        runs: Table `run` of each part over the same queries, in the order of `config.fusion.parts`, each
            retrieved to `config.depth`.
        queries: Table `test_queries`.
        config: The `retrieval` section.
        name: What the table calls the fusion.

    Returns:
        Table `run`, in the order of the queries, at most `config.depth` passages each.

    Raises:
        InputError: A table does not fit its schema, there are more or fewer runs than parts, or a score is not
            finite where scores are joined.
    """
    if len(runs) != len(config.fusion.parts):
        raise InputError(f"retriever {name}: expected {len(config.fusion.parts)} runs to join, found {len(runs)}")
    depth = fusion_depth(config, config.depth)
    found = [_rankings(run, depth) for run in runs]
    return run_table(
        name,
        (
            (query_id, fuse([rankings.get(query_id, []) for rankings in found], config.fusion, config.depth))
            for query_id in check_table("test_queries", queries).column("query_id").to_pylist()
        ),
    )


def fusion_depth(config: RetrievalConfig, k: int) -> int:
    """How many passages of each part are joined where k are asked for."""
    return config.fusion.depth or max(k, config.depth)


def fuse(rankings: Sequence[Sequence[ScoredPassage]], config: FusionConfig, k: int) -> list[ScoredPassage]:
    """Join the rankings of one query.

    `reciprocal_rank`: a passage's score is the sum over the rankings that hold it of weight / (rank_constant +
    rank), with ranks from 1 (Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion Outperforms Condorcet and
    Individual Rank Learning Methods", SIGIR 2009; weights other than 1 are an addition).

    `scores`: the sum of normalised scores, each times its ranking's share of the weights: the convex combination of
    Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", arXiv 2210.11934. `normalised`
    says what a passage gets from a ranking that lacks it.

    Args:
        rankings: One a part, best first, no passage twice in one.
        config: The `fusion` section; `parts` and `depth` do not count here.
        k: How many passages, at least 1.

    Returns:
        At most k passages by falling score. Equal ones stand in the order of their ranks in the first ranking,
        then in the second and so on, those that a ranking lacks last. Sums are exactly rounded, so that equal is
        equal whatever the order of the rankings.

    Raises:
        InputError: `scores`: a score is not finite.
    """
    weights = config.weights or (1.0,) * len(rankings)
    if config.method == "scores":
        total = math.fsum(weights)
        weights = tuple(weight / total for weight in weights)
        worths = [normalised(ranking, config.normalisation) for ranking in rankings]
    else:
        worths = [
            ({place.passage_id: 1 / (config.rank_constant + rank) for rank, place in enumerate(ranking, 1)}, 0.0)
            for ranking in rankings
        ]
    terms: dict[str, list[float]] = {}
    for weight, (worth, _) in zip(weights, worths, strict=True):
        for passage_id, value in worth.items():
            terms.setdefault(passage_id, []).append(weight * value)
    if any(missing for _, missing in worths):
        for passage_id, found in terms.items():
            found += [
                w * missing for w, (worth, missing) in zip(weights, worths, strict=True) if passage_id not in worth
            ]
    scores = {passage_id: math.fsum(found) for passage_id, found in terms.items()}
    # Equal ones stay in the order in which they came: by the first ranking, what it lacks by the second, and so on.
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:k]
    return [ScoredPassage(passage_id, scores[passage_id]) for passage_id in best]


def normalised(ranking: Sequence[ScoredPassage], normalisation: str) -> tuple[dict[str, float], float]:
    """Scores of one ranking that can be added to those of another, and what a passage gets that it lacks.

    `min_max`: (score - lowest) / (highest - lowest). `z`: (score - mean) / standard deviation (Montague and Aslam,
    "Relevance Score Normalization for Metasearch", CIKM 2001). Both go by the passages of this ranking alone.

    A passage that is missing lies below the last one, nobody knows how far: it gets as much as the last one, 0 or
    the lowest z (as Ma et al., arXiv 2104.05740, do it). Where all scores are the same, a ranking says no more than
    what it found: found is 1, and missing 0 or, with `z`, -1.

    Returns:
        Score by passage id, and the score of all others; of an empty ranking no score and 0.

    Raises:
        InputError: A score is not finite.
    """
    scores = [place.score for place in ranking]
    for place in ranking:
        if not math.isfinite(place.score):
            raise InputError(f"fusion: passage {place.passage_id!r}: expected a finite score, found {place.score}")
    if not scores:
        return {}, 0.0
    if min(scores) == max(scores):
        return dict.fromkeys((place.passage_id for place in ranking), 1.0), -1.0 if normalisation == "z" else 0.0
    low, high = min(scores), max(scores)
    worths = [(score - low) / (high - low) for score in scores]
    if normalisation == "z":
        # Of the numbers between 0 and 1, which have the same z and squares that neither vanish nor overflow.
        mean = math.fsum(worths) / len(worths)
        deviation = math.sqrt(math.fsum((worth - mean) ** 2 for worth in worths) / len(worths))
        worths = [(worth - mean) / deviation for worth in worths]
    return {place.passage_id: worth for place, worth in zip(ranking, worths, strict=True)}, min(worths)


def _rankings(run: pa.Table, depth: int) -> dict[str, list[ScoredPassage]]:
    """The first places of a `run` table of one retriever by query."""
    found: dict[str, list[tuple[int, ScoredPassage]]] = {}
    for row in check_table("run", run).to_pylist():
        if row["rank"] <= depth:
            place = ScoredPassage(row["passage_id"], row["score"])
            found.setdefault(row["query_id"], []).append((row["rank"], place))
    return {
        query_id: [place for _, place in sorted(places, key=lambda item: item[0])] for query_id, places in found.items()
    }
