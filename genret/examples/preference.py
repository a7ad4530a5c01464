"""Preference pairs: a passage's own identifier against those that the model ranks above it."""

from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from genret.config import MiningConfig
from genret.errors import InputError
from genret.tables import SCHEMAS


def build_preference_pairs(
    config: MiningConfig, run: pa.Table, preference_queries: pa.Table, identifiers: pa.Table, seed: int
) -> dict[str, pa.Table]:
    """Pair each query's positive with its false positives (arXiv 2502.17957, section 4.3).

    The candidates of a query are its `candidates` best passages in the run. Those above the positive become
    negatives, at most the `negatives` best of them: none where the positive is first, the best ones where
    it is not among the candidates. With `random`, as many passages are drawn from all others, each with the
    same probability and none twice, whatever their ranks (the ablation of the paper's table 8).

    Args:
        config: The `mining` section.
        run: The ranking of one retriever for the queries; one without a ranking gives no pair.
        preference_queries: The `preference_queries` table.
        identifiers: The `identifiers` table, with every passage.
        seed: Seed of `random`; a query's draw depends on it and on the query's id.

    Returns:
        The table `preference_pairs`, in the order of the queries, a query's pairs by falling rank.
        `positive_rank` is 0 where the positive is not among the candidates, `negative_rank` where the
        negative was drawn at random.

    Raises:
        InputError: The run has an unknown query or passage, or the ranks of a query are not 1, 2, 3 and so
            on; a query has an unknown passage.
    """
    positive = _places(preference_queries, identifiers, "passage_id", "preference_queries")
    query, passage, rank = _ranking(run, preference_queries, identifiers)
    candidate = rank <= config.candidates
    query, passage, rank = query[candidate], passage[candidate], rank[candidate]

    hit = passage == positive[query]
    positive_rank = np.zeros(len(positive), dtype=np.int64)
    positive_rank[query[hit]] = rank[hit]
    above = (rank < positive_rank[query]) | (positive_rank[query] == 0)
    chosen = above & (rank <= config.negatives)
    query, negative, negative_rank = query[chosen], passage[chosen], rank[chosen]
    if config.strategy == "random":
        query_ids = preference_queries.column("query_id").to_pylist()
        negative = _random_negatives(query, positive, query_ids, identifiers.num_rows, seed)
        negative_rank = np.zeros_like(negative_rank)

    names = identifiers.column("identifier")
    columns = [
        preference_queries.column("query_id").take(pa.array(query)),
        preference_queries.column("text").take(pa.array(query)),
        names.take(pa.array(positive[query])),
        names.take(pa.array(negative)),
        pa.array(positive_rank[query], pa.int32()),
        pa.array(negative_rank, pa.int32()),
    ]
    return {"preference_pairs": pa.table(columns, schema=SCHEMAS["preference_pairs"])}


def _ranking(
    run: pa.Table, preference_queries: pa.Table, identifiers: pa.Table
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, passage (rows of their tables) and rank of the run's rows, sorted by query and rank; int64."""
    query = _places(run, preference_queries, "query_id", "run")
    passage = _places(run, identifiers, "passage_id", "run")
    rank = run.column("rank").to_numpy().astype(np.int64)
    order = np.lexsort((rank, query))
    query, passage, rank = query[order], passage[order], rank[order]
    first = np.searchsorted(query, query)
    expected = np.arange(len(query)) - first + 1
    wrong = np.flatnonzero(rank != expected)
    if len(wrong):
        row = wrong[0]
        query_id = preference_queries.column("query_id")[int(query[row])].as_py()
        raise InputError(
            f"table run, query {query_id!r}: expected one ranking with the ranks 1, 2, 3 ..., "
            f"found rank {rank[row]} in place {expected[row]}"
        )
    return query, passage, rank


def _places(table: pa.Table, known: pa.Table, column: str, name: str) -> np.ndarray:
    """The row of `known` that has the same value in a column, for each row of `table`; int64."""
    values = table.column(column)
    places = pc.index_in(values, known.column(column).combine_chunks())
    if places.null_count:
        row = pc.index(places.is_null(), True).as_py()
        raise InputError(f"table {name}, row {row}: unknown {column} {values[row].as_py()!r}")
    return places.to_numpy().astype(np.int64)


def _random_negatives(
    query: np.ndarray, positive: np.ndarray, query_ids: list[str], n_passages: int, seed: int
) -> np.ndarray:
    """A passage that is not the positive for each pair, none twice a query.

    Args:
        query: int64 `(pairs,)`, ascending: the row of each pair's query.
        positive: int64 `(queries,)`: the positive of each query.
        query_ids: The id of each query.
        n_passages: How many passages there are.
        seed: Seed of the draws.

    Returns:
        int64 `(pairs,)`.
    """
    drawn: list[int] = []
    for row, count in zip(*np.unique(query, return_counts=True), strict=True):
        places = Random(f"{seed}|{query_ids[row]}").sample(range(n_passages - 1), int(count))
        # Numbers from the positive's on stand for the passage after.
        drawn += [place + int(place >= positive[row]) for place in places]
    return np.array(drawn, dtype=np.int64)
