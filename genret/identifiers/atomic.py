"""Atomic identifiers: one new token a passage (Tay et al., 2022; arXiv 2502.17957, section 2.1)."""

import pyarrow as pa

from genret.identifiers.uniqueness import ORDINAL
from genret.tables import check_table, table_from_rows


def build_atomic_identifiers(passages: pa.Table) -> dict[str, pa.Table]:
    """Number the passages.

    Args:
        passages: The `passages` table.

    Returns:
        The tables `identifiers`, whose identifier is the passage's place from 0 as a decimal number, and
        `rejects`, which is empty.
    """
    count = passages.num_rows
    identifiers = pa.table(
        {
            "passage_id": passages.column("passage_id"),
            "identifier": pa.array(map(str, range(count)), pa.string(), size=count),
            "source": pa.repeat(ORDINAL, count),
        }
    )
    return {
        "identifiers": check_table("identifiers", identifiers),
        "rejects": table_from_rows("rejects", []),
    }
