"""The application over HTTP, with real searchers in the same process."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest
from local import Here, LocalBackend, local_app

from genret.config import ServingConfig
from genret.runs import RunStore
from genret.serving.asks import Answer, Ask
from genret.serving.gates import Gate, Keys
from genret.serving.routes import build_app

Call = Callable[..., httpx.Response]


def caller(app: Any) -> Call:
    """Sends one request to an ASGI application."""

    def call(method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                if body is not None:
                    options["json"] = body
                return await client.request(method, path, **options)

        return asyncio.run(send())

    return call


@pytest.fixture(scope="module")
def call(small_run: RunStore) -> Call:
    return caller(local_app(small_run)[0])


def error(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["error"]
    assert found["request_id"] == response.headers["x-request-id"]
    return found


@pytest.mark.parametrize("retriever", ["sft", "bm25", "fusion"])
def test_retrieve_gives_passages(call: Call, retriever: str) -> None:
    response = call("POST", "/v1/retrieve", {"query": "what is near the model7x", "k": 3, "retriever": retriever})
    assert response.status_code == 200
    answer = response.json()
    assert (answer["retriever"], len(answer["results"])) == (retriever, 1)
    hits = answer["results"][0]["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3][: len(hits)]
    assert hits[0]["passage_id"] == "d7" and "model7x" in hits[0]["text"]
    assert hits[0]["metadata"]["topic"] == "garden"
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert set(answer["timing_ms"]) == {"queue", "search", "total"}


def test_several_queries_are_answered_in_their_order(call: Call) -> None:
    queries = [f"the model{number}x" for number in (5, 3, 9)]
    answer = call("POST", "/v1/retrieve", {"queries": queries, "k": 1, "retriever": "bm25"}).json()
    assert [result["query"] for result in answer["results"]] == queries
    assert [result["hits"][0]["passage_id"] for result in answer["results"]] == ["d5", "d3", "d9"]


def test_compare_asks_all(call: Call) -> None:
    answer = call("POST", "/v1/compare", {"query": "the model5x", "k": 2, "explain": True}).json()
    assert [entry["retriever"] for entry in answer["answers"]] == ["sft", "bm25", "fusion"]
    generative, bm25, _ = answer["answers"]
    assert generative["hits"][0]["tokens"] and bm25["hits"][0]["tokens"] is None


class Swapping(LocalBackend):
    """Answers each query from the next of some versions, and from the last one when there is none left."""

    def __init__(self, store: RunStore, versions: str, seconds: float = 0.0) -> None:
        super().__init__(store, ServingConfig())
        self.versions, self.seconds, self.timeouts = list(versions), seconds, list[float]()

    async def ask(self, retriever: str, asks: Sequence[Ask]) -> tuple[Here, list[Answer]]:
        version = self.versions.pop(0) if len(self.versions) > 1 else self.versions[0]
        self.timeouts.append(asks[0].timeout)
        here, answers = await super().ask(retriever, asks)
        await asyncio.sleep(self.seconds)
        return replace(here, version=version), answers

    def compared(self, timeout: float = 5.0) -> httpx.Response:
        config = ServingConfig()
        app = Gate(build_app(self, config), config, Keys("", ""), self.meters.request, self.lines.append)
        return caller(app)("POST", "/v1/compare", {"query": "the model5x", "k": 2, "timeout": timeout})


def test_a_comparison_is_of_one_version(small_run: RunStore) -> None:
    # Three retrievers: another version takes over while they are asked, perhaps twice.
    for versions, rounds in (("a", 1), ("abb", 2), ("aababb", 3), ("aab", 2)):
        backend = Swapping(small_run, versions)
        response = backend.compared()
        assert response.status_code == 200 and response.json()["version"] == versions[-1]
        assert len(response.json()["answers"]) == 3 and len(backend.timeouts) == 3 * rounds
        assert backend.timeouts == sorted(backend.timeouts, reverse=True) and backend.timeouts[0] == 5.0


def test_a_comparison_of_two_versions_is_no_answer(small_run: RunStore) -> None:
    for backend, timeout, rounds in (
        (Swapping(small_run, "abababababab"), 5.0, 3),
        (Swapping(small_run, "aab", 0.2), 0.1, 1),  # no time is left
    ):
        response = backend.compared(timeout)
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
        assert "another version took over" in error(response)["message"]
        assert len(backend.timeouts) == 3 * rounds


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "query"),
        ({"query": "a", "queries": ["b"]}, "query"),
        ({"queries": []}, "queries"),
        ({"queries": ["a"] * 65}, "queries"),
        ({"query": "a" * 4001}, "query"),
        ({"queries": ["a", "b" * 4001]}, "queries[1]"),
        ({"query": 3}, "query"),
        ({"query": "a", "k": 0}, "k"),
        ({"query": "a", "k": 101}, "k"),
        ({"query": "a", "k": "10"}, "k"),
        ({"query": "a", "retriever": "nope"}, "retriever"),
        ({"query": "a", "timeout": 0}, "timeout"),
        ({"query": "a", "timeout": 1e9}, "timeout"),
        ({"query": "a", "filter": {"field": "x"}}, "filter"),
        ({"query": "a", "filter": {"and": [{"field": "x", "equals": [1]}]}}, "filter.and[0].equals"),
        ({"query": "a", "filter": {"and": [{"or": []}] * 100_000}}, "filter.and[63]"),
        ({"query": "a", "filter": {"field": "x", "in": ["y"] * 100_000}}, "filter.in"),
        ({"query": "a", "other": 1}, "other"),
    ],
)
def test_what_is_wrong_is_named(call: Call, body: dict[str, Any], field: str) -> None:
    response = call("POST", "/v1/retrieve", body)
    assert response.status_code == 422
    assert error(response)["field"] == field


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b'{"query": "\\ud800"}', b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(call: Call, content: bytes) -> None:
    response = call("POST", "/v1/retrieve", content=content, headers={"content-type": "application/json"})
    assert response.status_code == (400 if content == b"\xff" else 422)
    assert error(response)["message"]


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}])
def test_a_body_that_was_not_sent_as_json_is_refused(call: Call, headers: dict[str, str]) -> None:
    for path in ("/v1/retrieve", "/v1/compare"):
        response = call("POST", path, content=b'{"query": "a"}', headers=headers)
        assert response.status_code == 422 and error(response)["field"] == "body"


def test_a_passage_by_its_id(call: Call) -> None:
    assert call("GET", "/v1/passages/d3").json()["title"] == "garden model3x"
    assert call("GET", "/v1/passages/none").status_code == 404


def test_what_there_is(call: Call) -> None:
    assert [entry["name"] for entry in call("GET", "/v1/retrievers").json()] == ["sft", "bm25", "fusion"]
    assert {entry["name"] for entry in call("GET", "/v1/fields").json()} == {"topic", "year", "date"}
    info = call("GET", "/v1/info").json()
    assert (info["passages"], info["limits"]["max_k"]) == (40, 100)
    assert call("GET", "/healthz").json() == call("GET", "/readyz").json() == {"status": "ok"}
    assert call("GET", "/nothing").status_code == 404
    assert call("GET", "/v1/retrieve").status_code == 405


def test_every_answer_forbids_what_comes_from_elsewhere(call: Call) -> None:
    for path in ("/", "/v1/info", "/nothing"):
        headers = call("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_keys_open_what_they_should(small_run: RunStore) -> None:
    call = caller(local_app(small_run, api="secret", admin="master")[0])
    shown = {"authorization": "Bearer secret"}
    assert call("GET", "/healthz").status_code == 200
    for wrong in (
        {},
        {"authorization": "Bearer other"},
        {"authorization": "Basic secret"},
        {"authorization": "secret"},
    ):
        response = call("POST", "/v1/retrieve", {"query": "a"}, headers=wrong)
        assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert call("GET", "/metrics", headers=wrong).status_code == 401
    assert call("POST", "/v1/retrieve", {"query": "a"}, headers=shown).status_code == 200
    assert call("POST", "/v1/admin/reload", headers=shown).status_code == 401
    assert call("POST", "/v1/admin/reload", headers={"authorization": "Bearer master"}).status_code == 200
    closed = caller(local_app(small_run)[0])
    assert closed("POST", "/v1/admin/reload", headers={"authorization": "Bearer "}).status_code == 401


def test_long_bodies_and_slow_ones_are_refused(small_run: RunStore) -> None:
    call, hasty = (
        caller(local_app(small_run, ServingConfig(max_body_bytes=1024, body_seconds=seconds))[0])
        for seconds in (60.0, 0.2)
    )
    assert call("POST", "/v1/retrieve", {"query": "a" * 2000}).status_code == 413

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"a" * 100

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(20):
            await asyncio.sleep(0.05)
            yield b" "

    assert call("POST", "/v1/retrieve", content=endless()).status_code == 413
    assert hasty("POST", "/v1/retrieve", content=slow()).status_code == 408


def test_a_full_queue_says_when_to_come_again(small_run: RunStore) -> None:
    # There is room for the queries of one request at least.
    app, _ = local_app(small_run, ServingConfig(queue=16, max_queries=64))

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            body = {"queries": ["a"] * 64, "retriever": "bm25"}
            return await asyncio.gather(*(client.post("/v1/retrieve", json=body) for _ in range(2)))

    # One request may fill the queue; the other finds no room.
    first, response = asyncio.run(send())
    assert first.status_code == 200 and len(first.json()["results"]) == 64
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert error(response)["message"]


def test_documents_come_and_go(new_run: Callable[..., RunStore]) -> None:
    call = caller(local_app(new_run(), admin="master")[0])
    key = {"authorization": "Bearer master"}
    document = {"doc_id": "a/b c", "text": "A zeppelin floats over the garden.", "metadata": {"topic": "air"}}
    added = call("POST", "/v1/admin/documents", document, headers=key)
    assert added.status_code == 201 and list(added.json()["passages"]) == ["a/b c"]
    assert call("POST", "/v1/admin/documents", document, headers=key).status_code == 409
    found = call("POST", "/v1/retrieve", {"query": "zeppelin", "retriever": "bm25"}).json()
    assert found["results"][0]["hits"][0]["passage_id"] == "a/b c"
    assert call("GET", "/v1/passages/a/b c").json()["metadata"] == {"topic": "air"}
    assert call("DELETE", "/v1/admin/documents/a/b c", headers=key).json()["passages"] == ["a/b c"]
    assert call("DELETE", "/v1/admin/documents/a/b c", headers=key).status_code == 404
    assert call("POST", "/v1/retrieve", {"query": "zeppelin", "retriever": "bm25"}).json()["results"][0]["hits"] == []
    bad = call("POST", "/v1/admin/documents", content=b'{"doc_id": "x", "text": "y", "metadata": {"n": NaN}}',
               headers=key | {"content-type": "application/json"})  # fmt: skip
    assert bad.status_code == 422


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for number in range(levels - 1):
        value = {"a": [value]} if number % 2 else {"b": value}
    return value


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (deep(200), "expected at most 32 levels of objects and lists, found more"),
        ({"a": [[[]] * 3] * 3} | {"b": deep(32)}, "expected at most 32 levels of objects and lists, found more"),
        ({"a": "\u00e9" * 32_765}, "expected at most 65536 bytes of JSON, found 65539"),
        ({str(number): 0 for number in range(257)}, "at most 256 items"),
    ],
)
def test_metadata_beyond_a_limit_are_refused(small_run: RunStore, metadata: dict[str, Any], message: str) -> None:
    call, key = caller(local_app(small_run, admin="master")[0]), {"authorization": "Bearer master"}
    body = {"doc_id": "new", "text": "A zeppelin.", "metadata": metadata}
    response = call("POST", "/v1/admin/documents", body, headers=key)
    assert response.status_code == 422 and error(response)["field"] == "metadata"
    assert message in error(response)["message"]
    assert call("GET", "/v1/passages/new").status_code == 404


def test_any_kind_of_metadata_within_the_limits_can_be_read(new_run: Callable[..., RunStore]) -> None:
    call = caller(local_app(new_run(), admin="master")[0])
    fields = {str(number): [None, True, 1, 2.5, 10**30, "\u00e9", {}, [[]]][number % 8] for number in range(255)}
    metadata = fields | {"deep": deep(21)}
    body = {"doc_id": "new", "text": "A zeppelin floats.", "metadata": metadata}
    assert call("POST", "/v1/admin/documents", body, headers={"authorization": "Bearer master"}).status_code == 201
    assert call("GET", "/v1/passages/new").json()["metadata"] == metadata
    found = call("POST", "/v1/retrieve", {"query": "zeppelin", "retriever": "bm25"}).json()["results"][0]["hits"]
    assert found[0]["metadata"] == metadata
    assert call("GET", "/v1/fields").status_code == 200


def test_the_log_has_ids_and_no_queries(small_run: RunStore) -> None:
    app, backend = local_app(small_run)
    caller(app)("POST", "/v1/retrieve", {"query": "secret words"}, headers={"x-request-id": "mine-1"})
    assert backend.lines[0]["request_id"] == "mine-1"
    assert (backend.lines[0]["route"], backend.lines[0]["status"]) == ("/v1/retrieve", 200)
    assert "secret" not in json.dumps(backend.lines)
    app, backend = local_app(small_run, ServingConfig(log_queries=True))
    caller(app)("POST", "/v1/retrieve", {"query": "secret words"})
    assert "secret words" in json.dumps(backend.lines)


def test_metrics_count_requests_and_answers(small_run: RunStore) -> None:
    call = caller(local_app(small_run)[0])
    call("POST", "/v1/retrieve", {"queries": ["a", "river"], "retriever": "sft"})
    text = call("GET", "/metrics").text
    assert 'genret_requests_total{route="/v1/retrieve",status="200"} 1.0' in text
    assert 'genret_stage_seconds_count{retriever="sft",stage="search"} 2.0' in text
    assert "genret_batch_size_bucket" in text and "genret_expansions" in text and "genret_answers_total" in text
