"""The endpoints, as a FastAPI application over whatever answers the queries."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic_core import to_json
from starlette.exceptions import HTTPException as StarletteHTTPException

from genret import __version__
from genret.config import ServingConfig
from genret.errors import EngineError, InputError
from genret.serving import schemas
from genret.serving.asks import Answer, Ask, canonical_filter
from genret.serving.batching import FullError, UnavailableError
from genret.serving.direct import Direct
from genret.serving.gates import error_body, noted, request_id
from genret.serving.versions import Collection

PAGE = Path(__file__).parent / "page"

# How often a comparison is begun: a swap falls into it at one moment, and hardly ever another into the next one.
_COMPARISONS = 3

_PROBLEMS: dict[int, str] = {
    400: "Bad request: broken HTTP or JSON",
    401: "A key is missing or wrong",
    404: "There is no such thing",
    408: "The body did not arrive in time",
    409: "It cannot be done with this run, or not now",
    413: "The body is too long",
    421: "The service has no API key and is asked by a name that is not its own machine's",
    422: "A field is wrong; `field` names it",
    429: "The queue is full; Retry-After says when to come again",
    503: "Too many open requests, or no replica answers; Retry-After says when to come again",
}


class Backend(Protocol):
    """What answers the queries: replicas behind Ray Serve, or, in a test, a searcher in this process."""

    async def ask(self, retriever: str, asks: Sequence[Ask]) -> tuple["Served", list[Answer]]:
        """Answer queries of one request, and say with which state of the collection."""

    def served(self) -> "Served":
        """What is served now."""

    def retrievers(self) -> list[dict[str, Any]]:
        """What `schemas.RetrieverInfo` says of each retriever, the default first."""

    def info(self) -> dict[str, Any]:
        """What `schemas.InfoResponse` says, but for `limits`."""

    def fields(self) -> list[dict[str, Any]]:
        """What `schemas.FieldInfo` says of each metadata field."""

    async def metrics(self) -> str:
        """All counters in Prometheus' form."""

    async def reload(self) -> dict[str, Any]:
        """Load the run's current version; as `schemas.VersionResponse` has it."""

    async def rollback(self) -> dict[str, Any]:
        """Go back to the version before."""

    async def add(self, document: schemas.DocumentRequest) -> dict[str, Any]:
        """Add a document; as `schemas.AddedResponse` has it."""

    async def remove(self, doc_id: str) -> dict[str, Any] | None:
        """Remove a document: the ids of its passages, or None where there is none."""


class Served(Protocol):
    """A version with its passages."""

    version: str
    collection: Collection
    names: tuple[str, ...]
    """Its retrievers, the default first."""


def _documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schemas.ErrorResponse, "description": _PROBLEMS[status]} for status in statuses}


_ALWAYS = (400, 408, 413, 421, 422, 503)
_bearer = HTTPBearer(auto_error=False, description="The API key, where the service has one.")


def build_app(backend: Backend, config: ServingConfig) -> FastAPI:
    """The application.

    Args:
        backend: What answers.
        config: The `serving` section: limits.

    Returns:
        The application without `gates.Gate`, which belongs around it.
    """
    app = FastAPI(
        title="genret",
        version=__version__,
        description="Generative retrieval and its rivals, side by side.",
        docs_url=None,
        redoc_url=None,
    )
    guarded = APIRouter(dependencies=[Depends(_bearer)])
    _add_handlers(app)
    _add_search(guarded, backend, config)
    _add_reading(guarded, backend, config)
    _add_admin(guarded, backend)
    app.include_router(guarded)
    _add_health(app, backend)
    _add_page(app)
    app.add_middleware(
        Direct,
        route=next(route for route in app.routes if isinstance(route, APIRoute) and route.path == "/v1/retrieve"),
        model=schemas.RetrieveRequest,
        handlers=app.exception_handlers,
    )
    return app


def _json(content: Any, status: int = 200) -> Response:
    # Straight to bytes: FastAPI would check and copy what was built a line above.
    return _sent(_bytes(content), status)


def _sent(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _problem(status: int, message: str, field: str | None = None, retry: float | None = None) -> Response:
    headers = {"retry-after": str(max(1, math.ceil(retry)))} if retry is not None else {}
    return Response(error_body(message, field), status, headers, media_type="application/json")


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = first["loc"][1:]  # without "body" or "path"
        named = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
        message = first["msg"].removeprefix("Value error, ")
        if not named and ": " in message:  # rules between fields name the field that they are about
            named, _, message = message.partition(": ")
        return _problem(422, message, named or "body")

    @app.exception_handler(StarletteHTTPException)
    async def http(_: Request, error: StarletteHTTPException) -> Response:
        answer = _problem(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(FullError)
    async def full(_: Request, error: FullError) -> Response:
        return _problem(429, str(error), retry=error.retry_seconds)

    @app.exception_handler(UnavailableError)
    async def unavailable(_: Request, error: UnavailableError) -> Response:
        return _problem(503, str(error), retry=1)

    @app.exception_handler(InputError)
    async def refused(_: Request, error: InputError) -> Response:
        return _problem(409, str(error))

    @app.exception_handler(EngineError)
    async def engine(_: Request, error: EngineError) -> Response:
        return _problem(503, str(error), retry=10)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return _problem(500, "the service failed; its log says why")


def _checked(
    request: schemas.RetrieveRequest | schemas.CompareRequest, config: ServingConfig, names: Sequence[str]
) -> str:
    """The filter of a request as canonical text.

    Raises:
        RequestValidationError: A field is beyond a limit, no predicate, or no retriever.
    """
    if problem := schemas.limit_problem(request, config):
        raise _invalid(*problem)
    asked = [request.retriever] if isinstance(request, schemas.RetrieveRequest) else request.retrievers or []
    for number, name in enumerate(asked):
        if name is not None and name not in names:
            field = "retriever" if isinstance(request, schemas.RetrieveRequest) else f"retrievers[{number}]"
            raise _invalid(field, f"expected one of {', '.join(names)}, found {name!r}")
    try:
        return canonical_filter(request.filter)
    except (InputError, RecursionError) as error:
        place, _, message = str(error).partition(": ")
        raise _invalid(place if place.startswith("filter") else "filter", message or str(error)) from error


def _invalid(field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("body", field), "msg": message, "type": "value_error"}])


def _hits(served: Served, answer: Answer) -> bytes:
    """`schemas.Hit` of each place, as a JSON array: joined, as most of it is kept as JSON."""
    hits: list[bytes] = []
    for number, (passage_id, score) in enumerate(answer.places):
        fields = served.collection.json_fields(passage_id)
        # A replica may know of an addition or removal a moment before or after this process.
        if fields is not None:
            hits.append(
                b'{"rank":%d,"score":%b,%b,%b}' % (len(hits) + 1, _bytes(score), fields, _written(answer, number))
            )
    return b"[%b]" % b",".join(hits)


def _written(answer: Answer, number: int) -> bytes:
    """What a generative retriever wrote for a place, as the last fields of a `schemas.Hit`."""
    if not answer.identifiers and not answer.tokens:
        return b'"identifier":null,"tokens":null'
    identifier = answer.identifiers[number] if answer.identifiers else None
    tokens = [{"token": text, "logprob": logprob} for text, logprob in answer.tokens[number]] if answer.tokens else None
    return _bytes({"identifier": identifier, "tokens": tokens})[1:-1]


def _bytes(content: Any) -> bytes:
    return to_json(content, inf_nan_mode="null")


def _with(content: dict[str, Any], name: bytes, array: bytes) -> bytes:
    """An object that is not empty as JSON, with one more field that is JSON already."""
    return b'%b,"%b":%b}' % (_bytes(content)[:-1], name, array)


def _timing(answers: Sequence[Answer], begin: float) -> dict[str, float]:
    return {
        "queue": round(1000 * max(answer.wait_seconds for answer in answers), 3),
        "search": round(1000 * max(answer.search_seconds for answer in answers), 3),
        "total": round(1000 * (time.perf_counter() - begin), 3),
    }


def _add_search(app: APIRouter, backend: Backend, config: ServingConfig) -> None:
    def note(retriever: str, queries: Sequence[str], k: int) -> None:
        notes = noted.get({})
        notes |= {"retriever": retriever, "queries": len(queries), "k": k}
        if config.log_queries:
            notes["texts"] = list(queries)

    @app.post(
        "/v1/retrieve",
        response_model=schemas.RetrieveResponse,
        responses=_documented(401, *_ALWAYS, 429),
        tags=["search"],
        summary="Ask one retriever",
    )
    async def retrieve(request: schemas.RetrieveRequest) -> Response:
        begin = time.perf_counter()
        names = backend.served().names
        text = _checked(request, config, names)
        name = request.retriever or names[0]
        queries = request.queries if request.queries is not None else [request.query or ""]
        note(name, queries, request.k)
        timeout = request.timeout or config.timeout_seconds
        asks = [Ask(query, request.k, text, timeout, request.explain) for query in queries]
        served, answers = await backend.ask(name, asks)
        results = [
            _with(
                {"query": query, "exact": answer.exact, "timed_out": answer.timed_out}, b"hits", _hits(served, answer)
            )
            for query, answer in zip(queries, answers, strict=True)
        ]
        told = {
            "request_id": request_id.get(""),
            "retriever": name,
            "version": served.version,
            "timing_ms": _timing(answers, begin),
        }
        return _sent(_with(told, b"results", b"[%b]" % b",".join(results)))

    @app.post(
        "/v1/compare",
        response_model=schemas.CompareResponse,
        responses=_documented(401, *_ALWAYS, 429),
        tags=["search"],
        summary="Ask several retrievers",
    )
    async def compare(request: schemas.CompareRequest) -> Response:
        begin = time.perf_counter()
        names = backend.served().names
        text = _checked(request, config, names)
        chosen = list(dict.fromkeys(request.retrievers or names))
        note(",".join(chosen), [request.query], request.k)
        timeout = request.timeout or config.timeout_seconds
        ask = Ask(request.query, request.k, text, timeout, request.explain)

        async def one(name: str, left: float) -> tuple[str, bytes]:
            served, answers = await backend.ask(name, [replace(ask, timeout=left)])
            told = {
                "retriever": name,
                "exact": answers[0].exact,
                "timed_out": answers[0].timed_out,
                "timing_ms": _timing(answers, begin),
            }
            return served.version, _with(told, b"hits", _hits(served, answers[0]))

        left = timeout
        for _ in range(_COMPARISONS):
            found = await asyncio.gather(*(one(name, left) for name in chosen))
            if len(versions := {version for version, _ in found}) == 1:
                told = {"request_id": request_id.get(""), "query": request.query, "version": versions.pop()}
                return _sent(_with(told, b"answers", b"[%b]" % b",".join(answer for _, answer in found)))
            if (left := timeout - (time.perf_counter() - begin)) <= 0:
                break
        raise UnavailableError("another version took over while the retrievers were asked")


def _add_reading(app: APIRouter, backend: Backend, config: ServingConfig) -> None:
    def responses(*more: int) -> dict[int | str, dict[str, Any]]:
        return _documented(400, 401, 408, 413, 421, 503, *more)

    @app.get("/v1/passages/{passage_id:path}", response_model=schemas.PassageResponse, responses=responses(404, 422))
    async def passage(passage_id: str) -> Response:
        """A passage by its id."""
        fields = backend.served().collection.json_fields(passage_id)
        if fields is None:
            return _problem(404, f"there is no passage {passage_id[:200]!r}")
        return _sent(b"{%b}" % fields)

    @app.get("/v1/retrievers", response_model=list[schemas.RetrieverInfo], responses=responses())
    async def retrievers() -> Response:
        """The retrievers that can be asked, the default first."""
        return _json(backend.retrievers())

    @app.get("/v1/fields", response_model=list[schemas.FieldInfo], responses=responses())
    async def fields() -> Response:
        """The metadata fields that filters may name."""
        return _json(await asyncio.to_thread(backend.fields))

    @app.get("/v1/info", response_model=schemas.InfoResponse, responses=responses())
    async def info() -> Response:
        """What is served: run, versions, measures, limits."""
        limits = {
            name: getattr(config, name)
            for name in ("max_k", "max_queries", "max_query_characters", "max_body_bytes", "max_timeout_seconds")
        }
        return _json(backend.info() | {"limits": limits | {"timeout_seconds": config.timeout_seconds}})

    text: dict[int | str, dict[str, Any]] = {200: {"description": "Prometheus' text", "content": {"text/plain": {}}}}

    @app.get("/metrics", response_class=Response, responses=text | responses())
    async def metrics() -> Response:
        """Counters of all processes, for Prometheus."""
        return PlainTextResponse(await backend.metrics())


def _add_health(app: FastAPI, backend: Backend) -> None:
    @app.get("/healthz", response_model=schemas.HealthResponse, responses=_documented(400, 408, 413, 421, 503))
    async def healthz() -> Response:
        """Whether this process is there."""
        return _json({"status": "ok"})

    @app.get("/readyz", response_model=schemas.HealthResponse, responses=_documented(400, 408, 413, 421, 503))
    async def readyz() -> Response:
        """Whether every retriever has a replica that answers."""
        missing = [entry["name"] for entry in backend.retrievers() if not entry["replicas"]]
        if missing:
            return _problem(503, f"no replica answers for {', '.join(missing)}", retry=1)
        return _json({"status": "ok"})


def _add_admin(app: APIRouter, backend: Backend) -> None:
    def responses(*more: int) -> dict[int | str, dict[str, Any]]:
        return _documented(400, 401, 408, 409, 413, 421, 503, *more)

    @app.post("/v1/admin/reload", response_model=schemas.VersionResponse, responses=responses(), tags=["admin"])
    async def reload() -> Response:
        """Load the run's current version, check it and swap; a broken one is refused."""
        return _json(await backend.reload() | {"request_id": request_id.get("")})

    @app.post("/v1/admin/rollback", response_model=schemas.VersionResponse, responses=responses(), tags=["admin"])
    async def rollback() -> Response:
        """Go back to the version before."""
        return _json(await backend.rollback() | {"request_id": request_id.get("")})

    @app.post(
        "/v1/admin/documents",
        response_model=schemas.AddedResponse,
        status_code=201,
        responses=responses(422),
        tags=["admin"],
    )
    async def add(document: schemas.DocumentRequest) -> Response:
        """Add a document; when this answers, it can be found by all in `found_by`."""
        return _json(await backend.add(document) | {"request_id": request_id.get("")}, 201)

    @app.delete(
        "/v1/admin/documents/{doc_id:path}",
        response_model=schemas.RemovedResponse,
        responses=responses(404, 422),
        tags=["admin"],
    )
    async def remove(doc_id: str) -> Response:
        """Remove a document; when this answers, it is found no more but by those in `still_found_by`."""
        removed = await backend.remove(doc_id)
        if removed is None:
            return _problem(404, f"there is no document {doc_id[:200]!r}")
        return _json(removed | {"request_id": request_id.get("")})


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        if not (PAGE / "index.html").is_file():
            return _problem(404, "this installation has no page")
        return FileResponse(PAGE / "index.html")

    if PAGE.is_dir():
        app.mount("/page", StaticFiles(directory=PAGE))
