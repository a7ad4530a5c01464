"""Requests for the query-answer pairs of preference learning."""

from collections.abc import Iterator

import pyarrow as pa

from genret.config import SynthesisConfig
from genret.llm.base import Request
from genret.synthesis.queries import passage_rows


def preference_requests(config: SynthesisConfig, passages: pa.Table) -> Iterator[Request]:
    """Ask for difficult queries with their answers (arXiv 2502.17957, section 4.2), one request a passage.

    Args:
        config: The `synthesis` section.
        passages: The `passages` table.

    Yields:
        Requests, whose id is `PASSAGE|preference`; none if the configuration wants none.
    """
    count = config.preference_queries
    for row in passage_rows(passages) if count else ():
        yield Request(f"{row['passage_id']}|preference", "preference", count, row["title"], row["text"])
