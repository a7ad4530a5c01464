"""Mining: the SFT model's own false positives become the negatives of preference learning."""

import math
from collections.abc import Iterable, Iterator
from itertools import chain, tee
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from genret.config import MiningConfig
from genret.errors import InputError
from genret.examples.preference import build_preference_pairs
from genret.storage import Storage
from genret.tables import check_table

# What a part holds of rankings and pairs has to fit into memory; a small one is written more often than it is worth.
_MOST_QUERIES_A_PART, _LEAST_QUERIES_A_PART = 100_000, 2000
_PARTS = 20


class Rank(Protocol):
    """A retriever over tables of queries."""

    def __call__(self, parts: Iterator[pa.Table], k: int, before: int) -> Iterator[pa.Table]:
        """Rank passages.

        Args:
            parts: Tables with `query_id` and `text`, each with a query at least; may be drawn ahead of what is yielded.
            k: Most passages a query.
            before: Queries that were ranked before, which are not in the parts.

        Yields:
            A `run` table for each part.
        """


def queries_a_part(queries: int, batch_size: int) -> int:
    """How many queries are kept together: about a twentieth of them, within bounds.

    It is a multiple of the batch, so that the same queries are ranked together whatever it is: sums in another order
    give other bits, and may give another rank.

    Args:
        queries: Of all parts.
        batch_size: Queries that are ranked together.
    """
    wanted = min(max(queries / _PARTS, _LEAST_QUERIES_A_PART), _MOST_QUERIES_A_PART)
    return math.ceil(wanted / batch_size) * batch_size


class KeptParts:
    """Finished parts of the pairs, in a folder from which a mining that was cut short goes on.

    Args:
        folder: Local path or URL; the same for the same model, queries and settings only.
        size: Queries a part: of parts of another size the numbers mean other queries.
    """

    def __init__(self, folder: str, size: int) -> None:
        self._storage = Storage(folder)
        self._size = size

    def read(self, number: int) -> pa.Table | None:
        """A part; None where it is not done yet, or damaged, which is to be done again."""
        content = self._storage.read(self._part(number))
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
        self._storage.put(self._part(number), sink.getvalue().to_pybytes())

    def _part(self, number: int) -> str:
        return f"pairs-{self._size}-{number:06d}.parquet"


def mine(
    config: MiningConfig,
    preference_queries: Iterable[pa.Table],
    identifiers: pa.Table,
    rank: Rank,
    seed: int,
    kept: KeptParts | None = None,
) -> Iterator[pa.Table]:
    """Preference pairs from what a retriever ranks above the positive (arXiv 2502.17957, section 4.3).

    Args:
        config: The `mining` section.
        preference_queries: Queries that SFT has not seen, each with its passage: the table in parts.
        identifiers: The identifiers of all passages.
        rank: Ranks passages; called once at most, so that what it starts serves all parts.
        seed: Seed of the `random` strategy.
        kept: Parts that were done before, up to the first that is missing, are taken from there and not ranked again;
            others are put there.

    Yields:
        The table `preference_pairs`, a part for each of the queries', so that neither all queries nor all rankings nor
        all pairs are ever held.
    """
    numbered, before = enumerate(preference_queries), 0
    for number, queries in numbered:
        pairs = kept.read(number) if kept is not None else None
        if pairs is None:
            break
        before += queries.num_rows
        yield pairs
    else:
        return
    drawn, ranked = tee(chain([(number, queries)], numbered))
    rankings = rank((part.select(["query_id", "text"]) for _, part in drawn), config.candidates, before)
    for ranking, (at, part) in zip(rankings, ranked, strict=True):
        pairs = build_preference_pairs(config, ranking, part, identifiers, seed)["preference_pairs"]
        if kept is not None:
            kept.write(at, pairs)
        yield pairs
