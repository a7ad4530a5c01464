"""The service as a retriever of LlamaIndex (`pip install genret[llama-index]`)."""

import asyncio
from typing import Any

from genret.adaptors.base import Predicate, combination, comparison, missing
from genret.client import Client

try:
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.core.vector_stores.types import FilterCondition, MetadataFilters
except ImportError as error:
    raise missing("llama-index") from error


class GenretRetriever(BaseRetriever):
    """Finds LlamaIndex nodes: `id_` is the passage's id, `metadata` its own with `title` and `doc_id`.

        retriever = GenretRetriever(Client("http://127.0.0.1:8000"), similarity_top_k=5)
        retriever.retrieve("merge several sorted inputs into one")

    Args:
        client: Of the service.
        similarity_top_k: How many passages at most.
        retriever: Which retriever of the service; None: its default.
        filters: Which passages may be found.
        deadline_seconds: Return what was found by then; None: the service's own limit.
        arguments: Of LlamaIndex's `BaseRetriever`, such as `callback_manager`.

    Raises:
        InputError: The filters have an operator that the service does not.
    """

    def __init__(
        self,
        client: Client,
        similarity_top_k: int = 10,
        retriever: str | None = None,
        filters: MetadataFilters | None = None,
        deadline_seconds: float | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._client = client
        self._top_k = similarity_top_k
        self._retriever = retriever
        self._filter = None if filters is None else predicate(filters)
        self._deadline_seconds = deadline_seconds

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        result = self._client.retrieve(
            query_bundle.query_str,
            self._top_k,
            retriever=self._retriever,
            filter=self._filter,
            deadline_seconds=self._deadline_seconds,
        )
        return [
            NodeWithScore(
                node=TextNode(
                    id_=hit.passage_id,
                    text=hit.text,
                    metadata=hit.metadata | {"title": hit.title, "doc_id": hit.doc_id},
                ),
                score=hit.score,
            )
            for hit in result.hits
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def predicate(filters: MetadataFilters) -> Predicate:
    """The service's predicate for LlamaIndex's filters, nested ones too.

    As LlamaIndex has it, `not` is for what satisfies none of them, and no filters at all are for everything.

    Raises:
        InputError: An operator that the service does not have, such as `text_match`.
    """
    parts = [
        predicate(part)
        if isinstance(part, MetadataFilters)
        else comparison(part.key, str(part.operator.value), part.value, f"filters: {part.key}")
        for part in filters.filters
    ]
    if not parts or filters.condition is None:
        return combination("and", parts, "filters")
    if filters.condition is FilterCondition.NOT:
        return {"not": combination("or", parts, "filters")}
    return combination(str(filters.condition.value), parts, "filters")
