"""Training rows of the dense retriever: queries with their passages and with negatives (SyNeg, arXiv 2412.17250)."""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import pyarrow as pa

from genret.config import NegativesConfig
from genret.tables import table_from_rows

RETRIEVED, SYNTHETIC, RANDOM, NONE = "retrieved", "synthetic", "random", "none"
"""Sources of negatives."""

USES_SYNTHETIC = frozenset({"synthetic", "hybrid"})
USES_RETRIEVED = frozenset({"retrieved", "hybrid"})
"""Settings of `negatives.source` that need written, and found, negatives."""

# Kept for a query, times `negatives.count`: every step chooses anew.
_POOL = 4


def sample_queries(queries: pa.Table, queries_a_passage: int, seed: int) -> pa.Table:
    """The synthetic queries to train with: at most so many of each passage, drawn at random.

    Args:
        queries: The `queries` table.
        queries_a_passage: How many; 0: all.
        seed: Seed of the draw.

    Returns:
        The `queries` table of those drawn, in its order.
    """
    if not queries_a_passage:
        return queries
    rows: dict[str, list[int]] = {}
    for row, passage_id in enumerate(queries.column("passage_id").to_pylist()):
        rows.setdefault(passage_id, []).append(row)
    kept = sorted(
        row
        for passage_id, of_passage in rows.items()
        for row in Random(f"{seed}|{passage_id}").sample(of_passage, min(queries_a_passage, len(of_passage)))
    )
    return queries.take(pa.array(kept, type=pa.int64()))


def hard_negatives(ranking: Sequence[Mapping[str, Any]], positive_id: str, max_score_ratio: float) -> list[str]:
    """What a retriever found for a query and is no false negative, best first.

    The guard is positive-aware (TopK-PercPos of NV-Retriever, arXiv 2407.15831): what scores more than a share of the
    positive's score may answer the query as well. Where the positive is not among the candidates, everything scores
    more, and there are none.

    Args:
        ranking: Rows of a `run` table of one query, by rank. A positive that scores 0 or less has no share to compare
            with: there are none either.
        positive_id: The query's own passage.
        max_score_ratio: That share.

    Returns:
        Passage ids.
    """
    own = next((row["score"] for row in ranking if row["passage_id"] == positive_id), 0.0)
    if own <= 0:
        return []
    return [
        row["passage_id"]
        for row in ranking
        if row["passage_id"] != positive_id and row["score"] <= max_score_ratio * own
    ]


def by_query(run: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """The rows of a `run` table of one retriever by query, by rank."""
    rankings: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(run.to_pylist(), key=lambda row: row["rank"]):
        rankings.setdefault(row["query_id"], []).append(row)
    return rankings


def build_contrastive_examples(
    config: NegativesConfig,
    queries: pa.Table,
    run: pa.Table,
    negatives: pa.Table,
    passages: pa.Table,
    seed: int,
) -> dict[str, pa.Table]:
    """Pair queries with negatives to choose from.

    Args:
        config: The `negatives` section.
        queries: The `queries` table, those to train with.
        run: What a retriever found for them: table `run`; empty where nothing retrieved is wanted.
        negatives: The `negatives` table; likewise.
        passages: The `passages` table, where random negatives come from.
        seed: Seed of the random ones.

    Returns:
        Table `contrastive_examples`: a row a query and negative, in the order of the queries; a query without any has
        one row of the source `none`.
    """
    pool = _POOL * config.count
    found = by_query(run)
    written: dict[str, list[str]] = {}
    for row in negatives.to_pylist():
        written.setdefault(row["query_id"], []).append(row["text"])
    everything = passages.column("passage_id").to_pylist() if config.source == RANDOM else []

    def rows() -> Iterator[dict[str, str]]:
        for query in queries.to_pylist():
            row = {
                "query_id": query["query_id"],
                "query": query["text"],
                "positive_id": query["passage_id"],
                "negative_id": "",
                "negative_text": "",
            }
            some = False
            for name in _found(config, query, found, everything, pool, seed):
                some = True
                yield row | {"negative_id": name, "negative_source": RANDOM if everything else RETRIEVED}
            if config.source in USES_SYNTHETIC:
                for text in written.get(query["query_id"], [])[:pool]:
                    some = True
                    yield row | {"negative_text": text, "negative_source": SYNTHETIC}
            if not some:
                yield row | {"negative_source": NONE}

    return {"contrastive_examples": table_from_rows("contrastive_examples", rows())}


def _found(
    config: NegativesConfig,
    query: Mapping[str, str],
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    everything: Sequence[str],
    pool: int,
    seed: int,
) -> list[str]:
    """Passage ids of the negatives that are passages."""
    if config.source == RANDOM:
        rng = Random(f"{seed}|{query['query_id']}")
        drawn = rng.sample(everything, min(pool + 1, len(everything)))
        return [name for name in drawn if name != query["passage_id"]][:pool]
    if config.source in USES_RETRIEVED:
        ranking = found.get(query["query_id"], [])
        return hard_negatives(ranking, query["passage_id"], config.max_score_ratio)[:pool]
    return []
