"""Queries that lead back to the passage that they were written for."""

from collections.abc import Sequence

import pyarrow as pa

from genret.errors import InputError
from genret.spools import Spool
from genret.tables import reject
from genret.types import Retriever

_BLOCK = 4_096


def round_trip(queries: pa.Table, retriever: Retriever, top: int) -> tuple[pa.Table, list[dict[str, str]]]:
    """Keep the queries for which a retriever finds their passage among its first.

    Round-trip consistency as a filter of synthetic queries: Alberti et al., "Synthetic QA corpora generation with
    roundtrip consistency" (ACL 2019), and in this form Dai et al., "Promptagator" (arXiv 2209.11755, section 3.2),
    who keep the first place only. A retriever that looks at texts alone does not find what a query asks of the
    metadata, and a query that any retriever answers teaches little: a wide `top` keeps more of both.

    Args:
        queries: Table `queries` or `preference_queries`.
        retriever: What must find the passages; it must have indexed them.
        top: Among how many places a query must find its passage, at least 1.

    Returns:
        The queries that do, in their order, and rows of the `rejects` table for those that do not.

    Raises:
        InputError: `top` is below 1.
    """
    if top < 1:
        raise InputError(f"round trip: expected a depth of at least 1, found {top}")
    kept = Spool(queries.schema)
    rejects: list[dict[str, str]] = []
    reason = f"round trip: {retriever.name} does not find the passage among its first {top}"
    for start in range(0, queries.num_rows, _BLOCK):
        block = queries.slice(start, _BLOCK)
        rows = block.select(["query_id", "passage_id", "text"]).to_pylist()
        found = _find(rows, retriever, top)
        rejects += [
            reject("synthesis", row["query_id"], reason, row["text"])
            for row, is_found in zip(rows, found, strict=True)
            if not is_found
        ]
        kept.append(block.filter(pa.array(found, pa.bool_())))
    return kept.table(), rejects


def _find(rows: Sequence[dict[str, str]], retriever: Retriever, top: int) -> list[bool]:
    rankings = retriever.retrieve([row["text"] for row in rows], top)
    return [
        any(place.passage_id == row["passage_id"] for place in ranking)
        for row, ranking in zip(rows, rankings, strict=True)
    ]
