"""A client of the service: typed answers, retries where the server is busy, and errors that say what to do.

with Client("http://127.0.0.1:8000") as client:
    for hit in client.retrieve("merge several sorted inputs into one", k=5).hits:
        print(hit.rank, hit.passage_id, hit.score)
"""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, TypeAdapter, ValidationError

from genret.errors import EngineError, InputError
from genret.llm.pacing import backoff_seconds, retry_after_seconds
from genret.serving.schemas import (
    AddedResponse,
    CompareResponse,
    FieldInfo,
    InfoResponse,
    PassageResponse,
    RemovedResponse,
    Result,
    RetrieveResponse,
    RetrieverInfo,
    VersionResponse,
)

Answer = TypeVar("Answer")

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where `genret serve` listens by default."""

# Not done, for a while: the server is full (429), stops or starts (503), or a proxy does not reach it (502, 504).
_BUSY = frozenset({429, 502, 503, 504})
_AWAY = frozenset({502, 504})
_READY = frozenset({200, 204})
# Whoever asks for more patience than this is not waited for.
_LONGEST_WAIT = 60.0
# What an answer takes on its way beyond the deadline of its query, or beyond the loading of a version.
_GRACE_SECONDS = 5.0
# How long a service may load a version, if its configuration names no other time (`serving.load_seconds`).
_LOAD_SECONDS = 600.0
_LONGEST_MESSAGE = 500


class RequestError(InputError):
    """The service refused a request that a person can correct.

    Attributes:
        status: The status of the answer: 401, 404, 413, 422 and the like.
        field: The field that the message is about; None where it is about the whole request.
        request_id: What the service's log calls the request; empty where the answer had none.
    """

    def __init__(self, message: str, status: int, field: str | None = None, request_id: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.field = field
        self.request_id = request_id


class ServiceError(EngineError):
    """The service cannot be reached, stays busy, failed, or is no such service.

    Attributes:
        status: The status of the last answer; None where there was none.
        request_id: What the service's log calls the request; empty where the answer had none.
    """

    def __init__(self, message: str, status: int | None = None, request_id: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id


class Client:
    """Asks a service that `genret serve` started. Connections are kept; threads may share a client.

    An answer of 429 or 503 is waited out, as long as its Retry-After says or else with exponential backoff. What
    only reads is also sent again where the connection broke; what changes the service is not, as it may be done. An
    answer that did not come in time is not asked for again: the service may be at work on it.

    Args:
        url: Where the service is, such as `http://127.0.0.1:8000`; a path in front of its own is allowed.
        api_key: The key that the service asks for, or the key of the administration for what changes it.
        timeout: Seconds to wait for a connection, and for the answer of one attempt. Where the service may take longer,
            an answer is waited for as long: `deadline_seconds`, and ten minutes to `reload`.
        retries: How often a request is sent again, at least 0.

    Raises:
        InputError: The address is none of HTTP, or a number is out of bounds.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, api_key: str | None = None, timeout: float = 30.0, retries: int = 4
    ) -> None:
        if timeout <= 0:
            raise InputError(f"timeout: expected seconds above 0, found {timeout}")
        if retries < 0:
            raise InputError(f"retries: expected at least 0, found {retries}")
        self.url = _checked_url(url)
        self._timeout = timeout
        self._retries = retries
        self._random = Random()
        self._http = httpx2.Client(
            base_url=self.url,
            timeout=timeout,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- what reads ---

    def retrieve(
        self,
        query: str,
        k: int = 10,
        *,
        retriever: str | None = None,
        filter: Mapping[str, Any] | None = None,
        deadline_seconds: float | None = None,
        explain: bool = False,
    ) -> Result:
        """Find passages for one query.

        Args:
            query: The query.
            k: How many passages at most.
            retriever: One of `retrievers()`; None: the service's default.
            filter: Which passages may be found; the forms are those of `genret.decoding.filters.parse_predicate`.
            deadline_seconds: Return what was found by then; None: the service's own limit.
            explain: Give the tokens of generated identifiers with their log-probabilities.

        Returns:
            The passages, best first, and whether no better one can exist.

        Raises:
            RequestError: The service refuses the request.
            ServiceError: The service does not answer as it should.
        """
        response = self.retrieve_all(
            [query], k, retriever=retriever, filter=filter, deadline_seconds=deadline_seconds, explain=explain
        )
        return response.results[0]

    def retrieve_all(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        retriever: str | None = None,
        filter: Mapping[str, Any] | None = None,
        deadline_seconds: float | None = None,
        explain: bool = False,
    ) -> RetrieveResponse:
        """Find passages for several queries, which the service answers together.

        Args:
            queries: At least one, and at most as many as the service allows (`info().limits`).
            k: As in `retrieve`.
            retriever: As in `retrieve`.
            filter: As in `retrieve`.
            deadline_seconds: As in `retrieve`, for all queries together.
            explain: As in `retrieve`.

        Returns:
            The results in the order of the queries, who found them, and the time it took.

        Raises:
            RequestError: The service refuses the request.
            ServiceError: The service does not answer as it should.
        """
        if isinstance(queries, str):
            raise InputError("queries: expected a list of queries, found one string")
        body = _given(
            queries=list(queries),
            k=k,
            retriever=retriever,
            filter=None if filter is None else dict(filter),
            timeout=deadline_seconds,
            explain=explain,
        )
        response = self._ask("POST", "/v1/retrieve", RetrieveResponse, body, seconds=deadline_seconds)
        if len(response.results) != len(queries):
            raise ServiceError(
                f"{self.url}: expected {len(queries)} results, found {len(response.results)}", 200, response.request_id
            )
        return response

    def compare(
        self,
        query: str,
        k: int = 10,
        *,
        retrievers: Sequence[str] | None = None,
        filter: Mapping[str, Any] | None = None,
        deadline_seconds: float | None = None,
        explain: bool = False,
    ) -> CompareResponse:
        """Ask several retrievers the same.

        Args:
            query: The query.
            k: How many passages each.
            retrievers: Some of `retrievers()`; None: all of them.
            filter: As in `retrieve`.
            deadline_seconds: As in `retrieve`.
            explain: As in `retrieve`.

        Raises:
            RequestError: The service refuses the request.
            ServiceError: The service does not answer as it should.
        """
        body = _given(
            query=query,
            k=k,
            retrievers=None if retrievers is None else list(retrievers),
            filter=None if filter is None else dict(filter),
            timeout=deadline_seconds,
            explain=explain,
        )
        return self._ask("POST", "/v1/compare", CompareResponse, body, seconds=deadline_seconds)

    def passage(self, passage_id: str) -> PassageResponse:
        """Read one passage; a `RequestError` with status 404 where there is none of this id."""
        return self._ask("GET", f"/v1/passages/{quote(passage_id, safe='')}", PassageResponse)

    def retrievers(self) -> list[RetrieverInfo]:
        """The retrievers that can be asked."""
        return self._ask("GET", "/v1/retrievers", list[RetrieverInfo])

    def fields(self) -> list[FieldInfo]:
        """The metadata that filters may name."""
        return self._ask("GET", "/v1/fields", list[FieldInfo])

    def info(self) -> InfoResponse:
        """What is served: run, versions, measures, limits."""
        return self._ask("GET", "/v1/info", InfoResponse)

    def ready(self) -> bool:
        """Whether the service answers now; it is asked once, and a service that cannot be reached is not ready."""
        try:
            return self._http.get("/readyz").status_code in _READY
        except httpx2.TransportError:
            return False

    # --- what changes the service ---

    def add_document(
        self, doc_id: str, text: str, *, title: str = "", metadata: Mapping[str, Any] | None = None
    ) -> AddedResponse:
        """Add a document to the running service.

        Args:
            doc_id: An id that no document of the service has.
            text: Its text.
            title: Its title.
            metadata: What filters may ask for.

        Raises:
            RequestError: The key is missing or wrong, the id is taken, or the document does not fit.
            ServiceError: The service does not answer as it should; the document may be there all the same.
        """
        body = {"doc_id": doc_id, "text": text, "title": title, "metadata": dict(metadata or {})}
        return self._ask("POST", "/v1/admin/documents", AddedResponse, body, repeatable=False)

    def remove_document(self, doc_id: str) -> RemovedResponse:
        """Remove a document from the running service; raises as `add_document` does."""
        path = f"/v1/admin/documents/{quote(doc_id, safe='')}"
        return self._ask("DELETE", path, RemovedResponse, repeatable=False)

    def reload(self) -> VersionResponse:
        """Have the run's newest retrievers loaded, checked and served; the old ones serve until then.

        Raises:
            RequestError: The key is missing or wrong, or the new version was refused: the old one serves on.
            ServiceError: The service does not answer as it should, or took longer than the client waits.
        """
        return self._ask("POST", "/v1/admin/reload", VersionResponse, repeatable=False, seconds=_LOAD_SECONDS)

    def rollback(self) -> VersionResponse:
        """Go back to the version before; raises as `reload` does."""
        return self._ask("POST", "/v1/admin/rollback", VersionResponse, repeatable=False, seconds=_LOAD_SECONDS)

    def _ask(
        self,
        method: str,
        path: str,
        expected: type[Answer],
        body: Mapping[str, Any] | None = None,
        repeatable: bool = True,
        seconds: float | None = None,
    ) -> Answer:
        """Send until there is an answer that is none of being busy.

        Args:
            method: The method.
            path: The path.
            expected: What the answer is.
            body: The body.
            repeatable: Twice does no harm.
            seconds: What the service may take for it, if that is known.
        """
        patience = self._timeout if seconds is None else max(self._timeout, seconds + _GRACE_SECONDS)
        timeout = httpx2.Timeout(self._timeout, read=patience)
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                response = self._http.request(method, path, json=body, timeout=timeout)
            except httpx2.TransportError as error:
                # Where there was no connection nothing was done; where the service is slow, twice is slower.
                unsent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
                again = unsent or (repeatable and not isinstance(error, httpx2.ReadTimeout))
                if last or not again or isinstance(error, httpx2.UnsupportedProtocol):
                    raise ServiceError(f"{self.url}: {_told(error)}") from error
                wait = backoff_seconds(attempt, self._random)
            else:
                wait = _wait(response, attempt, self._random)
                busy = response.status_code in _BUSY and (repeatable or response.status_code not in _AWAY)
                if last or not busy or wait > _LONGEST_WAIT:
                    return _read(response, expected, self.url)
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _checked_url(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InputError(f"url: expected http://... or https://..., found {url!r:.200}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"url: expected http://HOST:PORT or https://HOST, found {url!r:.200}")
    return str(parsed).rstrip("/")


def _given(**fields: Any) -> dict[str, Any]:
    """The fields that are not left to the service."""
    return {name: value for name, value in fields.items() if value is not None}


def _told(error: httpx2.TransportError) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "expected an answer in time, found none; a longer timeout, or a deadline in the request, may help"
    return f"expected the service to be there, found: {error or type(error).__name__}"


def _wait(response: httpx2.Response, attempt: int, random: Random) -> float:
    asked = retry_after_seconds(response.headers.get("Retry-After"), datetime.now(UTC))
    return backoff_seconds(attempt, random) if asked is None else asked


def _read(response: httpx2.Response, expected: type[Answer], url: str) -> Answer:
    """The body of a success as what it should be.

    Raises:
        RequestError: The answer says that the request is wrong.
        ServiceError: Any other answer.
    """
    status = response.status_code
    if not response.is_success:
        raise _refusal(response, url)
    try:
        return TypeAdapter(expected).validate_json(response.content)
    except ValidationError as error:
        name = expected.__name__ if isinstance(expected, type) and issubclass(expected, BaseModel) else str(expected)
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its body"
        raise ServiceError(
            f"{url}: expected the answer of a genret service ({name}), found something else: {place}: {first['msg']}",
            status,
        ) from error


class _Detail(BaseModel):
    """What an error's body says; any of it may be missing, as a proxy may have written it."""

    message: str = ""
    field: str | None = None
    request_id: str = ""


class _Refusal(BaseModel):
    error: _Detail = _Detail()


def _refusal(response: httpx2.Response, url: str) -> RequestError | ServiceError:
    status = response.status_code
    try:
        detail = _Refusal.model_validate_json(response.content).error
    except ValidationError:
        detail = _Detail()
    message = (
        detail.message[:_LONGEST_MESSAGE] or f"expected an answer, found {status} {response.reason_phrase}".strip()
    )
    named = f"{detail.field}: {message}" if detail.field and not message.startswith(detail.field) else message
    if 400 <= status < 500 and status != 429:
        return RequestError(f"{url}: {named}", status, detail.field, detail.request_id)
    note = " (it stayed busy; try again later)" if status in _BUSY else ""
    number = f" [request {detail.request_id}]" if detail.request_id else ""
    return ServiceError(f"{url}: {named}{note}{number}", status, detail.request_id)
