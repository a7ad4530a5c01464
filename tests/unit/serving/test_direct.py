"""The short way to an endpoint: what takes it is answered as what goes by FastAPI."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from local import LocalBackend, local_app
from starlette.types import ASGIApp

from genret.config import ServingConfig
from genret.runs import RunStore
from genret.serving import direct
from genret.serving.batching import FullError, UnavailableError
from genret.serving.routes import build_app

SHORT = "application/json"
LONG = "application/json; charset=utf-8"


def answered(app: ASGIApp, content: bytes, kind: str | None) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body, without the time that it took."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"x-request-id": "mine"} | ({} if kind is None else {"content-type": kind})
            return await client.post("/v1/retrieve", content=content, headers=headers)

    response = asyncio.run(send())
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    if response.headers["content-type"] != "application/json":
        return response.status_code, headers, response.text
    return response.status_code, headers, response.json() | {"timing_ms": None}


@pytest.fixture
def served(small_run: RunStore) -> tuple[ASGIApp, LocalBackend]:
    """The application behind its gate, which puts bodies together."""
    return local_app(small_run)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that take the short way."""
    seen: list[Any] = []
    answer = direct.Direct._answer

    async def watched(self: direct.Direct, request: Any, scope: Any) -> Any:
        seen.append(request)
        return await answer(self, request, scope)

    monkeypatch.setattr(direct.Direct, "_answer", watched)
    return seen


@pytest.mark.parametrize(
    "body",
    [
        {"query": "what is near the model7x", "retriever": "bm25"},
        {"queries": ["river", "model3x"], "k": 3, "retriever": "sft", "explain": True},
        {"query": "bread", "filter": {"field": "topic", "equals": "river"}, "timeout": 5, "retriever": "fusion"},
        {"query": "a", "k": 10_000},
        {"query": "a", "retriever": "nothing"},
        {"query": "a", "filter": {"field": 3}},
    ],
)
def test_both_ways_give_the_same(served: tuple[ASGIApp, LocalBackend], taken: list[Any], body: Any) -> None:
    (app, backend), content = served, json.dumps(body).encode()
    assert answered(app, content, SHORT) == answered(app, content, LONG)
    assert len(taken) == 1
    first, second = ({**line, "ms": None} for line in backend.lines)
    assert first == second and first["route"] == "/v1/retrieve"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"query": NaN}', b'{"query": "\\ud800"}', b"\xff", b"{}", b'{"query": "a", "k": "3"}']
)
def test_what_is_not_plainly_right_goes_the_long_way(
    served: tuple[ASGIApp, LocalBackend], taken: list[Any], content: bytes
) -> None:
    found = answered(served[0], content, SHORT)
    assert found == answered(served[0], content, LONG) and found[0] == (400 if content == b"\xff" else 422)
    assert taken == []


@pytest.mark.parametrize("kind", ["text/plain", None])
def test_what_was_not_sent_as_json_goes_the_long_way(
    served: tuple[ASGIApp, LocalBackend], taken: list[Any], kind: str | None
) -> None:
    assert answered(served[0], b'{"query": "a"}', kind)[0] == 422
    assert taken == []


@pytest.mark.parametrize(
    ("error", "status"), [(FullError(2.0), 429), (UnavailableError("nobody"), 503), (RuntimeError("broken"), 500)]
)
def test_errors_are_told_alike(
    served: tuple[ASGIApp, LocalBackend],
    monkeypatch: pytest.MonkeyPatch,
    taken: list[Any],
    error: Exception,
    status: int,
) -> None:
    async def fail(*_: Any) -> Any:
        raise error

    app, backend = served
    monkeypatch.setattr(backend, "ask", fail)
    found = [answered(app, b'{"query": "a"}', kind) for kind in (SHORT, LONG)]
    assert found[0] == found[1] and found[0][0] == status
    assert found[0][2]["error"]["message"] and found[0][2]["error"]["request_id"] == "mine"
    assert len(taken) == 1


@pytest.mark.parametrize("kind", [SHORT, LONG])
def test_what_nobody_expected_goes_on_to_who_logs_it(
    served: tuple[ASGIApp, LocalBackend], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async def fail(*_: Any) -> Any:
        raise RuntimeError("broken")

    app, backend = served
    monkeypatch.setattr(backend, "ask", fail)

    async def send() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            await client.post("/v1/retrieve", content=b'{"query": "a"}', headers={"content-type": kind})

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(send())


def test_a_body_in_parts_goes_the_long_way(served: tuple[ASGIApp, LocalBackend], taken: list[Any]) -> None:
    app, parts, sent = build_app(served[1], ServingConfig()), [b'{"query": ', b'"river"}'], list[Any]()

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/retrieve", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 200 and json.loads(sent[1]["body"])["results"][0]["query"] == "river"
    assert taken == []
