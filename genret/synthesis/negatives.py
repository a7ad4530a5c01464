"""Hard negatives that the engine of the `llm` section writes (SyNeg, arXiv 2412.17250)."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from genret.llm.base import Engine, Request, Requests, pair_responses
from genret.llm.filters import Limits, broken_reason, unfit_reason
from genret.tables import reject, table_from_rows

CONTEXT = 2
"""Negatives that a retriever found, shown to the engine: enough to show the style of the corpus."""


def negative_requests(
    queries: pa.Table, passages: pa.Table, found: Mapping[str, Sequence[str]], count: int
) -> Requests:
    """Ask for hard negatives of every query, one request a query.

    Args:
        queries: The `queries` table.
        passages: The `passages` table.
        found: Passage ids of the negatives that a retriever found, by query.
        count: How many to write a query.

    Returns:
        Requests, whose id is `QUERY|negative`.
    """
    texts = {
        row["passage_id"]: (row["title"], row["text"])
        for row in passages.select(["passage_id", "title", "text"]).to_pylist()
    }

    def draw() -> Iterator[Request]:
        for query in queries.to_pylist():
            title, text = texts[query["passage_id"]]
            context = tuple(texts[name][1] for name in found.get(query["query_id"], ())[:CONTEXT] if texts[name][1])
            yield Request(
                f"{query['query_id']}|negative", "negative", count, title, text, related=context, query=query["text"]
            )

    return Requests(draw)


def write_negatives(
    queries: pa.Table,
    passages: pa.Table,
    found: Mapping[str, Sequence[str]],
    count: int,
    engine: Engine,
    limits: Limits | None,
) -> dict[str, pa.Table]:
    """Have the engine write hard negatives.

    A negative that is the passage itself, or that was written before for the query, is rejected, as one that the
    limits do not let through; so is a request for which there is none.

    Args:
        queries: The `queries` table.
        passages: The `passages` table.
        found: Passage ids of the negatives that a retriever found, by query.
        count: How many a query.
        engine: What writes them.
        limits: What they must keep to; None for the engine without a model.

    Returns:
        Tables `negatives` and `rejects`.
    """
    rows, rejects = [], []
    requests = negative_requests(queries, passages, found, count)
    owners = zip(queries.column("query_id").to_pylist(), queries.column("passage_id").to_pylist(), strict=True)
    for (query_id, passage_id), (request, response) in zip(owners, pair_responses(engine, requests), strict=True):
        if response.error or not response.items:
            reason = response.error or "no negatives"
            rejects.append(reject("negatives", request.request_id, reason, response.raw or request.text))
        seen = {_key(request.text)}
        for number, item in enumerate(response.items):
            text = " ".join(item.text.split())
            reason = broken_reason("negative", item) if limits is None else unfit_reason("negative", item, limits)
            if not reason and _key(text) in seen:
                reason = "the passage itself, or a duplicate"
            if reason:
                rejects.append(reject("negatives", f"{request.request_id}|{number}", reason, item.text))
                continue
            seen.add(_key(text))
            rows.append({"query_id": query_id, "passage_id": passage_id, "text": text, "generator": engine.name})
    return {"negatives": table_from_rows("negatives", rows), "rejects": table_from_rows("rejects", rejects)}


def _key(text: str) -> str:
    return " ".join(text.casefold().split())
