"""The service as a retriever of LangChain (`pip install genret[langchain]`)."""

from typing import Any

from genret.adaptors.base import missing
from genret.client import Client

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict, Field
except ImportError as error:
    raise missing("langchain") from error


class GenretRetriever(BaseRetriever):
    """Finds LangChain documents: `id` is the passage's id, `metadata` its own with `title`, `doc_id` and `score`.

        retriever = GenretRetriever(client=Client("http://127.0.0.1:8000"), k=5)
        retriever.invoke("merge several sorted inputs into one")

    Asynchronous calls go through LangChain's executor.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    client: Client = Field(exclude=True)
    """Of the service."""
    k: int = 10
    """How many passages at most."""
    retriever: str | None = None
    """Which retriever of the service; None: its default."""
    filter: dict[str, Any] | None = None
    """Which passages may be found, as in `genret.decoding.filters.parse_predicate`."""
    deadline_seconds: float | None = None
    """Return what was found by then; None: the service's own limit."""

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        result = self.client.retrieve(
            query, self.k, retriever=self.retriever, filter=self.filter, deadline_seconds=self.deadline_seconds
        )
        return [
            Document(
                page_content=hit.text,
                id=hit.passage_id,
                metadata=hit.metadata | {"title": hit.title, "doc_id": hit.doc_id, "score": hit.score},
            )
            for hit in result.hits
        ]
