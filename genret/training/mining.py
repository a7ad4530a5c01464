"""Mining: the SFT model's own false positives become the negatives of preference learning."""

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from genret.config import MiningConfig
from genret.examples.preference import build_preference_pairs

QUERIES_A_PART = 100_000
"""Queries whose rankings, and the pairs that they give, are held at once."""


def mine(
    config: MiningConfig,
    preference_queries: Iterable[pa.Table],
    identifiers: pa.Table,
    rank: Callable[[pa.Table, int], pa.Table],
    seed: int,
) -> Iterator[pa.Table]:
    """Preference pairs from what a retriever ranks above the positive (arXiv 2502.17957, section 4.3).

    Args:
        config: The `mining` section.
        preference_queries: Queries that SFT has not seen, each with its passage: the table in parts.
        identifiers: The identifiers of all passages.
        rank: Ranks passages for a table with `query_id` and `text`, at most so many a query: a `run` table.
        seed: Seed of the `random` strategy.

    Yields:
        The table `preference_pairs`, a part for each of the queries', so that neither all queries nor all rankings nor
        all pairs are ever held.
    """
    for queries in preference_queries:
        ranking = rank(queries.select(["query_id", "text"]), config.candidates)
        yield build_preference_pairs(config, ranking, queries, identifiers, seed)["preference_pairs"]
