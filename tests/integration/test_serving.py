"""The service on real Ray Serve, asked over real HTTP: answers, versions, documents, limits, hang-ups."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from service import KEY, Service, free_port, start, stop
from small_run import make_run

from genret.retrieval.opening import load_retriever
from genret.serving.versions import find_version, read_config

# It starts Ray Serve and asks for minutes.
pytestmark = pytest.mark.slow

NAMES = ["sft", "bm25", "dense", "fusion"]
HEAD = "POST /v1/retrieve HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    found = start(
        make_run(folder / "run", dense=True), folder, "serving.max_body_bytes=65536", "serving.body_seconds=2"
    )
    yield found
    stop(found)


@pytest.mark.parametrize("name", NAMES)
def test_answers_equal_those_of_the_retriever_alone_and_batched(service: Service, name: str) -> None:
    config = read_config(service.store).retrieval
    retriever = load_retriever(service.store, service.store.current(), name, config)
    queries = [f"what is near the model{number}x" for number in range(24)]
    expected = [retriever.retrieve([query], 5)[0] for query in queries]

    def ask(query: str) -> list[dict[str, Any]]:
        answer = service.retrieve(query, k=5, retriever=name)
        assert answer.status_code == 200, answer.text
        hits: list[dict[str, Any]] = answer.json()["results"][0]["hits"]
        return hits

    alone = [ask(query) for query in queries[:4]]
    with ThreadPoolExecutor(24) as pool:
        batched = list(pool.map(ask, queries))
    together = service.call("POST", "/v1/retrieve", {"queries": queries, "k": 5, "retriever": name}).json()
    for found in (alone, batched, [result["hits"] for result in together["results"]]):
        for hits, ranking in zip(found, expected, strict=False):
            assert [hit["passage_id"] for hit in hits] == [place.passage_id for place in ranking]
            assert [hit["score"] for hit in hits] == pytest.approx([place.score for place in ranking], abs=1e-4)


def test_answers_equal_those_of_the_command_line(service: Service) -> None:
    query = "glacier near the model4x river"
    for name in NAMES:
        printed = subprocess.run(
            [sys.executable, "-m", "genret", "query", service.store.url, query, "-k", "4", "--retriever", name,
             "--json"],
            capture_output=True, text=True, check=True, timeout=300,
        ).stdout  # fmt: skip
        rows = [json.loads(line) for line in printed.splitlines()]
        hits = service.retrieve(query, k=4, retriever=name).json()["results"][0]["hits"]
        for key in ("passage_id", "rank", "title", "text", "metadata"):
            assert [hit[key] for hit in hits] == [row[key] for row in rows]
        assert [hit["score"] for hit in hits] == pytest.approx([row["score"] for row in rows], abs=1e-4)


def test_it_is_ready_and_says_what_it_is(service: Service) -> None:
    assert service.call("GET", "/readyz").json() == {"status": "ok"}
    assert [entry["replicas"] for entry in service.call("GET", "/v1/retrievers").json()] == [1, 1, 1, 1]
    info = service.call("GET", "/v1/info").json()
    assert info["version"] == find_version(service.store).id and info["passages"] >= 39
    assert "genret_requests_total" in service.call("GET", "/metrics").text


def test_a_filter_and_an_explanation(service: Service) -> None:
    answer = service.retrieve("water", explain=True, filter={"field": "topic", "equals": "oven"}).json()
    hits = answer["results"][0]["hits"]
    assert hits and {hit["metadata"]["topic"] for hit in hits} == {"oven"}
    for hit in hits:
        assert sum(token["logprob"] for token in hit["tokens"]) == pytest.approx(hit["score"], abs=1e-3)


def test_no_time_gives_an_answer_that_says_so(service: Service) -> None:
    answer = service.retrieve("water", timeout=1e-6).json()
    assert answer["results"][0]["exact"] is False and answer["results"][0]["timed_out"] is True


def test_documents_come_and_go(service: Service) -> None:
    assert service.call("POST", "/v1/admin/documents", {"doc_id": "z", "text": "x"}).status_code == 401
    document = {"doc_id": "new", "text": "A zeppelin floats with its gondola.", "metadata": {"topic": "air"}}
    added = service.call("POST", "/v1/admin/documents", document, headers=KEY)
    finders = [name for name in NAMES if name != "dense"]
    assert added.status_code == 201 and added.json()["found_by"] == finders
    assert list(added.json()["not_found_by"]) == ["dense"]
    for name in finders:
        hits = service.retrieve("zeppelin gondola", retriever=name, k=40).json()["results"][0]["hits"]
        assert "new" in [hit["passage_id"] for hit in hits], name
    assert service.call("DELETE", "/v1/admin/documents/new", headers=KEY).status_code == 200
    for name in NAMES:
        hits = service.retrieve("zeppelin gondola", retriever=name, k=40).json()["results"][0]["hits"]
        assert "new" not in [hit["passage_id"] for hit in hits], name


def test_bodies_that_are_long_or_slow(service: Service) -> None:
    assert service.call("POST", "/v1/retrieve", {"query": "a" * 10_000_000}).status_code == 413
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as drip:
        drip.sendall(HEAD.format(60).encode())
        begin = time.monotonic()
        answer = b""
        while time.monotonic() - begin < 20 and not answer:
            try:
                drip.sendall(b" ")
                drip.settimeout(0.5)
                answer = drip.recv(4096)
            except TimeoutError:
                continue
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert service.retrieve("water").status_code == 200


def test_clients_that_hang_up_do_no_harm(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    body = json.dumps({"query": "water", "retriever": "sft"}).encode()
    with ThreadPoolExecutor(8) as pool:
        neighbours = []
        for _ in range(50):
            neighbours.append(pool.submit(service.retrieve, "water", retriever="sft"))
            with socket.create_connection((host, int(port)), timeout=30) as client:
                client.sendall(HEAD.format(len(body)).encode() + body)
        assert {neighbour.result().status_code for neighbour in neighbours} == {200}
    assert service.retrieve("water").status_code == 200


def tops(service: Service, queries: list[str]) -> list[tuple[str, float]]:
    """What BM25 of the run's current version finds first, with its score."""
    retriever = load_retriever(service.store, service.store.current(), "bm25", read_config(service.store).retrieval)
    return [(ranking[0].passage_id, ranking[0].score) for ranking in retriever.retrieve(queries, 1)]


def test_a_reload_swaps_under_load_and_can_be_undone(service: Service) -> None:
    old = service.call("GET", "/v1/info").json()["version"]
    assert service.call("POST", "/v1/admin/reload", headers=KEY).json()["changed"] is False
    answers: list[tuple[int, int, str, tuple[str, float]]] = []
    queries = [f"the model{number}x" for number in range(8)]
    # The two versions give the same passages other scores.
    expected = {old: tops(service, queries)}
    make_run(Path(service.store.url), k1=0.9, dense=True)
    expected[find_version(service.store).id] = tops(service, queries)
    assert len(expected) == 2 and len({tuple(found) for found in expected.values()}) == 2
    with ThreadPoolExecutor(9) as pool:
        reload = pool.submit(service.call, "POST", "/v1/admin/reload", None, headers=KEY)
        while not reload.done():
            for number, answer in enumerate(pool.map(lambda one: service.retrieve(one, retriever="bm25"), queries)):
                hits = answer.json()["results"][0]["hits"] if answer.status_code == 200 else []
                top = (hits[0]["passage_id"], hits[0]["score"]) if hits else ("", 0.0)
                answers.append((answer.status_code, number, answer.json()["version"], top))
        outcome = reload.result().json()
    assert outcome["changed"] is True and outcome["previous_version"] == old
    assert {status for status, _, _, _ in answers} == {200}
    for _, number, version, (name, score) in answers:
        assert (name, pytest.approx(score, abs=1e-4)) == expected[version][number]
    assert service.retrieve("water").json()["version"] == outcome["version"]
    back = service.call("POST", "/v1/admin/rollback", headers=KEY).json()
    assert (back["version"], back["changed"]) == (old, True)


@pytest.mark.parametrize("is_told_alone", [True, False])
def test_what_has_begun_is_answered_when_the_service_is_stopped(tmp_path: Path, is_told_alone: bool) -> None:
    service = start(make_run(tmp_path / "run"), tmp_path)
    host, port = service.url.removeprefix("http://").split(":")
    queries = [f"what is near the model{number}x" for number in range(32)]
    clients = [socket.create_connection((host, int(port)), timeout=60) for _ in queries]
    for client, query in zip(clients, queries, strict=True):
        # Many batches, so that most requests still wait when the service is stopped.
        body = json.dumps({"queries": [query] * 16, "retriever": "sft", "k": 1, "timeout": 60}).encode()
        client.sendall(HEAD.format(len(body)).encode() + body)
    # Connections are accepted in their order: where one that came later is answered, by another retriever, all of these
    # have been taken.
    assert service.retrieve("water", retriever="bm25").status_code == 200
    assert 'genret_queue{retriever="sft"}' in service.call("GET", "/metrics").text
    answered, _, _ = select.select(clients, [], [], 0)
    assert len(answered) < len(clients), "nothing is left to be answered when it stops"
    if not is_told_alone:
        # All processes of its group, and then once more while it answers.
        os.killpg(service.process.pid, signal.SIGTERM)
        time.sleep(0.5)
        os.killpg(service.process.pid, signal.SIGTERM)
    stop(service)
    assert service.process.returncode == 0 and "Traceback" not in service.log.read_text()
    for number, client in enumerate(clients):
        with client, client.makefile("rb") as answer:
            head, _, content = answer.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        tops = [result["hits"][0]["passage_id"] for result in json.loads(content)["results"]]
        assert tops == [f"d{number}"] * 16
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


DAMAGED = {
    "cut": ("bm25", "data.csc.index.npy"),
    "overwritten": ("bm25", "data.csc.index.npy"),
    "weights": ("sft", "model.safetensors"),
    "trie": ("sft", "child_token.npy"),
    "vectors": ("embedding", "vectors.npy"),
    "encoder": ("encoder", "model.safetensors"),
}
"""Stage and file of an index or model; but for the first two a single bit of it is another one."""


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_broken_version_is_refused_and_the_old_one_serves_on(service: Service, damage: str) -> None:
    old = service.call("GET", "/v1/info").json()["version"]
    stage, name = DAMAGED[damage]
    query = "what is near the model7x"

    def first(retriever: str) -> tuple[str, str]:
        found = service.retrieve(query, retriever=retriever).json()
        return found["version"], found["results"][0]["hits"][0]["passage_id"]

    before = {retriever: first(retriever) for retriever in NAMES}
    store = make_run(Path(service.store.url), k1=0.5 + list(DAMAGED).index(damage) / 100, dense=True)
    (file,) = store.local_folder(store.current()[stage], stage).rglob(name)
    content, middle = file.read_bytes(), file.stat().st_size // 2
    changed = {"cut": content[:-8], "overwritten": content[:-400] + b"\xff" * 400}
    bit = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    file.write_bytes(changed.get(damage, bit))
    answer = service.call("POST", "/v1/admin/reload", headers=KEY)
    reason = "bytes, found" if damage == "cut" else f"{name}: expected the SHA-256"
    assert answer.status_code == 409 and f"{old} serves on" in answer.json()["error"]["message"]
    assert reason in answer.json()["error"]["message"]
    assert {retriever: first(retriever) for retriever in NAMES} == before
    assert before["bm25"] == (old, "d7")


def test_the_keys_are_those_of_who_started_the_service_on_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GENRET_API_KEY", raising=False)
    head = {"num_cpus": 4, "include_dashboard": False, "dashboard_agent_listen_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        monkeypatch.setenv("GENRET_API_KEY", "of the shell")
        service = start(make_run(tmp_path / "run"), tmp_path, f"compute.address={cluster.address}")
        try:
            body = {"query": "water", "retriever": "bm25"}
            assert service.call("POST", "/v1/retrieve", body).status_code == 401
            for key, status in (("of nobody", 401), ("of the shell", 200), ("master", 200)):
                shown = {"authorization": f"Bearer {key}"}
                assert service.call("POST", "/v1/retrieve", body, headers=shown).status_code == status
            assert service.call("POST", "/v1/admin/reload", headers=KEY).status_code == 200
        finally:
            stop(service)
    finally:
        cluster.shutdown()
