"""The service as a component of Haystack (`pip install genret[haystack]`)."""

from collections.abc import Mapping
from typing import Any

from genret.adaptors.base import Predicate, both, combination, comparison, missing
from genret.client import DEFAULT_URL, Client
from genret.errors import InputError

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret, deserialize_secrets_inplace
except ImportError as error:
    raise missing("haystack") from error

_METADATA = "meta."


@component
class GenretRetriever:
    """Finds Haystack documents: `id` is the passage's id, `meta` its metadata with `title` and `doc_id`.

        pipeline.add_component("retriever", GenretRetriever("http://127.0.0.1:8000", top_k=5))
        pipeline.run({"retriever": {"query": "merge several sorted inputs into one"}})

    Args:
        url: Where the service is.
        top_k: How many passages at most.
        retriever: Which retriever of the service; None: its default.
        filters: Haystack's filters, with fields named `meta.F` or `F`; none or empty: all passages.
        deadline_seconds: Return what was found by then; None: the service's own limit.
        api_key: The service's key; a pipeline that is written to a file needs one from the environment.

    Raises:
        InputError: The address is none of HTTP, or the filters have an operator that the service does not.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        top_k: int = 10,
        retriever: str | None = None,
        filters: dict[str, Any] | None = None,
        deadline_seconds: float | None = None,
        api_key: Secret | None = None,
    ) -> None:
        self.url = url
        self.top_k = top_k
        self.retriever = retriever
        self.filters = filters
        self.deadline_seconds = deadline_seconds
        self.api_key = api_key
        self._filter = predicate(filters) if filters else None
        self._client = Client(url, api_key=None if api_key is None else api_key.resolve_value())

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Find documents.

        Args:
            query: The query.
            filters: Narrow the component's own further.
            top_k: In place of the component's own.

        Returns:
            `documents`, best first.

        Raises:
            InputError: The service refuses the request.
            EngineError: The service does not answer as it should.
        """
        result = self._client.retrieve(
            query,
            self.top_k if top_k is None else top_k,
            retriever=self.retriever,
            filter=both(self._filter, predicate(filters) if filters else None),
            deadline_seconds=self.deadline_seconds,
        )
        documents = [
            Document(
                id=hit.passage_id,
                content=hit.text,
                meta=hit.metadata | {"title": hit.title, "doc_id": hit.doc_id},
                score=hit.score,
            )
            for hit in result.hits
        ]
        return {"documents": documents}

    def to_dict(self) -> dict[str, Any]:
        """The component as Haystack writes it to a file."""
        return default_to_dict(
            self,
            url=self.url,
            top_k=self.top_k,
            retriever=self.retriever,
            filters=self.filters,
            deadline_seconds=self.deadline_seconds,
            api_key=None if self.api_key is None else self.api_key.to_dict(),
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "GenretRetriever":
        """The component that `to_dict` wrote."""
        if data["init_parameters"].get("api_key") is not None:
            deserialize_secrets_inplace(data["init_parameters"], ["api_key"])
        return default_from_dict(cls, data)


def predicate(filters: Mapping[str, Any]) -> Predicate:
    """The service's predicate for Haystack's filters.

    They are comparisons (`field`, `operator`, `value`) and combinations of them (`operator`, `conditions`):
    https://docs.haystack.deepset.ai/docs/metadata-filtering

    Raises:
        InputError: Another form, or an operator that the service does not have.
    """
    if not isinstance(filters, Mapping) or "operator" not in filters:
        raise InputError(f"filters: expected an object with an operator, found {filters!r:.80}")
    operator = str(filters["operator"])
    if "conditions" in filters:
        return combination(operator, [predicate(part) for part in filters["conditions"]], "filters")
    if "field" not in filters or "value" not in filters:
        raise InputError(f"filters: expected field and value beside operator, found {sorted(filters)}")
    field = str(filters["field"]).removeprefix(_METADATA)
    return comparison(field, operator, filters["value"], f"filters: {field}")
