"""What the service is asked and what it answers, as JSON."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from genret.config import ServingConfig

MAX_METADATA_FIELDS = 256
"""Most metadata fields of a document that is added."""
MAX_METADATA_LEVELS = 32
"""How deep its metadata may nest, the object itself counted: far below what answers can be written of."""
MAX_METADATA_BYTES = 1 << 16
"""Most bytes of its metadata as JSON: each of its passages holds them, and so does every answer with one."""

RequestId = Annotated[str, Field(description="Stands in the log and in the header X-Request-Id too.")]
Filter = Annotated[
    dict[str, Any] | None,
    Field(
        description="Only passages whose metadata satisfy this: {field, equals}, {field, in: [...]}, {field, range: "
        "{gte, gt, lte, lt}}, {and: [...]}, {or: [...]}, {not: ...}.",
        json_schema_extra={"examples": [{"field": "kind", "equals": "function"}]},
    ),
]


class _Body(BaseModel):
    """What all bodies share: unknown keys are errors, and numbers are no text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _check_characters(cls, data: Any) -> Any:
        if isinstance(data, bytes):  # a body that was not sent as JSON, which Pydantic refuses
            return data
        # JSON in Python may hold what no answer can: NaN, and halves of surrogate pairs.
        try:
            json.dumps(data, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError("body: expected Unicode text and finite numbers, found something else") from error
        return data


class RetrieveRequest(_Body):
    """One query or several; the limits on each field stand in `limited`."""

    query: str | None = Field(None, description="One query; either this or `queries`.")
    queries: list[str] | None = Field(None, min_length=1, description="Several queries, answered together.")
    k: int = Field(10, ge=1, description="Passages a query.")
    retriever: str | None = Field(None, max_length=64, description="One of /v1/retrievers; by default its default.")
    filter: Filter = None
    timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds; what was found by then is returned, with `exact` false if it could be better.",
    )
    explain: bool = Field(False, description="Give the tokens of generated identifiers with their log-probabilities.")

    @model_validator(mode="after")
    def _check_queries(self) -> "RetrieveRequest":
        if (self.query is None) == (self.queries is None):
            raise ValueError("query: expected either query or queries")
        return self


class CompareRequest(_Body):
    """One query for several retrievers."""

    query: str = Field(description="The query.")
    k: int = Field(10, ge=1, description="Passages a retriever.")
    retrievers: list[Annotated[str, StringConstraints(max_length=64)]] | None = Field(
        None, min_length=1, max_length=16, description="Some of /v1/retrievers; by default all of them."
    )
    filter: Filter = None
    timeout: float | None = Field(None, gt=0, allow_inf_nan=False, description="As in /v1/retrieve.")
    explain: bool = Field(False, description="As in /v1/retrieve.")


class DocumentRequest(_Body):
    """A document to add."""

    doc_id: str = Field(min_length=1, max_length=512, description="An id that no document of the service has.")
    text: str = Field(max_length=1_000_000, description="The text; long ones are cut into passages as the run's were.")
    title: str = Field("", max_length=4000, description="The title.")
    metadata: dict[str, Any] = Field(
        default_factory=dict,
        max_length=MAX_METADATA_FIELDS,
        description=f"What filters may ask for: at most {MAX_METADATA_BYTES} bytes of JSON, with at most "
        f"{MAX_METADATA_LEVELS} levels of objects and lists.",
    )

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        if _nests_deeper(metadata, MAX_METADATA_LEVELS):
            raise ValueError(f"expected at most {MAX_METADATA_LEVELS} levels of objects and lists, found more")
        size = len(json.dumps(metadata, ensure_ascii=False).encode())
        if size > MAX_METADATA_BYTES:
            raise ValueError(f"expected at most {MAX_METADATA_BYTES} bytes of JSON, found {size}")
        return metadata


def _nests_deeper(value: dict[str, Any], levels: int) -> bool:
    """Whether an object has more levels of objects and lists; itself is the first."""
    level: list[Any] = [value]
    for _ in range(levels):
        inner = (child for entry in level for child in (entry.values() if isinstance(entry, dict) else entry))
        level = [child for child in inner if isinstance(child, dict | list | tuple)]
    return bool(level)


class Token(BaseModel):
    """A token of a generated identifier."""

    token: str = Field(description="The token as text.")
    logprob: float = Field(description="Its natural log-probability after the query and the tokens before it.")


class Hit(BaseModel):
    """A passage that was found."""

    passage_id: str
    doc_id: str = Field(description="The document that the passage is, or is cut from.")
    rank: int = Field(description="From 1.")
    score: float = Field(description="Comparable within one retriever and one query only.")
    title: str
    text: str
    metadata: dict[str, Any]
    identifier: str | None = Field(None, description="What a generative retriever wrote for it.")
    tokens: list[Token] | None = Field(
        None, description="With `explain`, of a generative retriever, unless the deadline left no time for them."
    )


class Result(BaseModel):
    """The answer to one query."""

    query: str
    exact: bool = Field(description="Whether no better passage can exist: false where a beam or a deadline cut it off.")
    timed_out: bool = Field(False, description="Whether the deadline cut it off.")
    hits: list[Hit]


class RetrieveResponse(BaseModel):
    """The answers, in the order of the queries."""

    request_id: RequestId
    retriever: str
    version: str = Field(description="Which version of the run answered.")
    results: list[Result]
    timing_ms: dict[str, float] = Field(description="Milliseconds: queue, search, total.")


class CompareAnswer(BaseModel):
    """What one retriever found."""

    retriever: str
    exact: bool
    timed_out: bool = False
    hits: list[Hit]
    timing_ms: dict[str, float]


class CompareResponse(BaseModel):
    """The answers, in the order of the retrievers."""

    request_id: RequestId
    query: str
    version: str = Field(description="Which version of the run gave all of the answers.")
    answers: list[CompareAnswer]


class PassageResponse(BaseModel):
    """A passage."""

    passage_id: str
    doc_id: str
    title: str
    text: str
    metadata: dict[str, Any]


class RetrieverInfo(BaseModel):
    """A retriever that can be asked."""

    name: str
    kind: Literal["generative", "bm25", "dense", "fusion"]
    default: bool = Field(description="Whether it answers requests that name none.")
    filters: bool
    explain: bool = Field(description="Whether it can give tokens.")
    replicas: int = Field(description="Processes that answer now.")


class FieldValue(BaseModel):
    """A value of a metadata field."""

    value: str | int | float | bool
    count: int = Field(description="Passages that have it.")


class FieldInfo(BaseModel):
    """A metadata field that filters may name."""

    name: str
    type: Literal["text", "number", "boolean", "date", "mixed"]
    count: int = Field(description="Passages that have the field.")
    distinct: int = Field(description="Different values; of a list, each entry is one.")
    values: list[FieldValue] = Field(description="The most frequent ones; empty where nearly all differ.")
    minimum: str | float | None = Field(None, description="Of numbers and dates.")
    maximum: str | float | None = None


class HealthResponse(BaseModel):
    """Whether the service is there."""

    status: Literal["ok"] = "ok"


class InfoResponse(BaseModel):
    """What is served."""

    run: str
    version: str
    previous_version: str | None = Field(description="What /v1/admin/rollback goes back to.")
    passages: int
    added: int = Field(description="Passages that were added while the service ran.")
    removed: int
    versions: dict[str, str] = Field(description="Of genret, Python and packages.")
    measures: list[dict[str, Any]] = Field(description="The run's table `measures`.")
    limits: dict[str, float]


class VersionResponse(BaseModel):
    """What a reload or rollback came to."""

    request_id: RequestId
    version: str
    previous_version: str | None
    changed: bool = Field(description="False where the version was served already.")
    seconds: float


class AddedResponse(BaseModel):
    """A document that was added."""

    request_id: RequestId
    doc_id: str
    passages: dict[str, str | None] = Field(description="Identifier by passage id; null where the run's kind has none.")
    found_by: list[str] = Field(description="Retrievers that find it from now on.")
    not_found_by: dict[str, str] = Field(description="Retrievers that do not, and why.")


class RemovedResponse(BaseModel):
    """A document that was removed."""

    request_id: RequestId
    doc_id: str
    passages: list[str]
    still_found_by: list[str] = Field(
        default_factory=list, description="Retrievers that some process may still answer with it, for a moment."
    )


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    request_id: RequestId
    field: str | None = Field(None, description="The field that the message is about.")


class ErrorResponse(BaseModel):
    """Any answer that is no success."""

    error: ErrorDetail


def limit_problem(request: RetrieveRequest | CompareRequest, limits: ServingConfig) -> tuple[str, str] | None:
    """The first field of a request that is beyond the service's limits, and what is wrong with it.

    Args:
        request: A valid request.
        limits: The `serving` section.

    Returns:
        Field and message, or None where all is well.
    """
    if request.k > limits.max_k:
        return "k", f"expected at most {limits.max_k}, found {request.k}"
    if request.timeout is not None and request.timeout > limits.max_timeout_seconds:
        return "timeout", f"expected at most {limits.max_timeout_seconds:g} seconds, found {request.timeout:g}"
    queries = [request.query] if request.query is not None else []
    if isinstance(request, RetrieveRequest) and request.queries is not None:
        if len(request.queries) > limits.max_queries:
            return "queries", f"expected at most {limits.max_queries}, found {len(request.queries)}"
        queries = list(request.queries)
    for number, query in enumerate(queries):
        if len(query) > limits.max_query_characters:
            name = "query" if request.query is not None else f"queries[{number}]"
            return name, f"expected at most {limits.max_query_characters} characters, found {len(query)}"
    return None
