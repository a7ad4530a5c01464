"""Measures of queries, as an evaluation writes them."""

import pyarrow as pa

from genret.tables import table_from_rows


def query_measures(values: dict[tuple[str, str], list[float]]) -> pa.Table:
    """The table of values by retriever and measure, a query each."""
    return table_from_rows(
        "query_measures",
        [
            {"retriever": retriever, "measure": measure, "query_id": f"q{number}", "value": value}
            for (retriever, measure), column in values.items()
            for number, value in enumerate(column)
        ],
    )
