"""The application behind a real socket: clients that are slow, loud, or gone."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from local import local_app

from genret.config import ServingConfig
from genret.runs import RunStore

HEAD = "POST /v1/retrieve HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"


@pytest.fixture(scope="module")
def port(small_run: RunStore) -> Iterator[int]:
    app, _ = local_app(small_run, ServingConfig(max_body_bytes=65536, body_seconds=5))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def answers(port: int) -> bool:
    body = {"query": "the model7x", "retriever": "bm25", "k": 1}
    found = httpx.post(f"http://127.0.0.1:{port}/v1/retrieve", json=body, timeout=30)
    return bool(found.status_code == 200 and found.json()["results"][0]["hits"][0]["passage_id"] == "d7")


def test_ten_megabytes_are_refused(port: int) -> None:
    found = httpx.post(f"http://127.0.0.1:{port}/v1/retrieve", json={"query": "a" * 10_000_000}, timeout=30)
    assert found.status_code == 413 and found.json()["error"]["request_id"]
    assert answers(port)


def test_a_byte_now_and_then_is_refused_in_time(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(HEAD.format(60).encode())
        client.settimeout(0.3)
        answer, begin = b"", time.monotonic()
        while not answer and time.monotonic() - begin < 60:
            try:
                client.sendall(b" ")
                answer = client.recv(4096)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answers(port)


def test_who_hangs_up_does_no_harm(port: int) -> None:
    body = json.dumps({"query": "water", "retriever": "sft"}).encode()
    for cut in (0, 10, len(body)):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                client.sendall(HEAD.format(len(body)).encode() + body[:cut])
    assert answers(port)
