"""Mining: the SFT model's own false positives become the negatives of preference learning."""

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from genret.config import MiningConfig
from genret.errors import InputError
from genret.examples.preference import build_preference_pairs
from genret.runs import Storage
from genret.tables import check_table

QUERIES_A_PART = 100_000
"""Queries whose rankings, and the pairs that they give, are held at once."""


class KeptParts:
    """Finished parts of the pairs, in a folder from which a mining that was cut short goes on.

    Args:
        folder: Local path or URL; the same for the same model, queries and settings only.
    """

    def __init__(self, folder: str) -> None:
        self._storage = Storage(folder)

    def read(self, number: int) -> pa.Table | None:
        """A part; None where it is not done yet, or damaged, which is to be done again."""
        content = self._storage.read(_part(number))
        if content is None:
            return None
        try:
            found = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
            return check_table("preference_pairs", found)
        except (InputError, OSError, pa.ArrowException):
            return None

    def write(self, number: int, pairs: pa.Table) -> None:
        """Keep a part; it appears whole or not at all."""
        sink = pa.BufferOutputStream()
        pq.write_table(pairs, sink, compression="zstd", write_page_checksum=True)
        self._storage.put(_part(number), sink.getvalue().to_pybytes())


def _part(number: int) -> str:
    # Of parts of another size the numbers mean other queries.
    return f"pairs-{QUERIES_A_PART}-{number:06d}.parquet"


def mine(
    config: MiningConfig,
    preference_queries: Iterable[pa.Table],
    identifiers: pa.Table,
    rank: Callable[[pa.Table, int], pa.Table],
    seed: int,
    kept: KeptParts | None = None,
) -> Iterator[pa.Table]:
    """Preference pairs from what a retriever ranks above the positive (arXiv 2502.17957, section 4.3).

    Args:
        config: The `mining` section.
        preference_queries: Queries that SFT has not seen, each with its passage: the table in parts.
        identifiers: The identifiers of all passages.
        rank: Ranks passages for a table with `query_id` and `text`, at most so many a query: a `run` table.
        seed: Seed of the `random` strategy.
        kept: Parts that were done before are taken from there and not ranked again, others are put there.

    Yields:
        The table `preference_pairs`, a part for each of the queries', so that neither all queries nor all rankings nor
        all pairs are ever held.
    """
    for number, queries in enumerate(preference_queries):
        pairs = kept.read(number) if kept is not None else None
        if pairs is None:
            ranking = rank(queries.select(["query_id", "text"]), config.candidates)
            pairs = build_preference_pairs(config, ranking, queries, identifiers, seed)["preference_pairs"]
            if kept is not None:
                kept.write(number, pairs)
        yield pairs
