"""The application behind a real socket: clients that are slow, loud, or gone."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpx
import pytest
import uvicorn
from local import Here, LocalBackend, local_app
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genret.config import ServingConfig
from genret.runs import RunStore
from genret.serving.asks import Answer, Ask
from genret.serving.batching import Batcher
from genret.serving.gates import Gate, Keys
from genret.serving.routes import build_app

HEAD = "POST /v1/retrieve HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"


@contextmanager
def served(app: ASGIApp) -> Iterator[int]:
    """The port of an application that answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port(small_run: RunStore) -> Iterator[int]:
    with served(local_app(small_run, ServingConfig(max_body_bytes=65536, body_seconds=5))[0]) as port:
        yield port


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


# What was called in the context of a request.
calls: ContextVar[set[Any]] = ContextVar("calls")


class Held(LocalBackend):
    """Holds its first batch until others wait, and the second one until a client has hung up."""

    waits = 0

    def _batcher(self, name: str) -> Batcher[Here]:
        self.batches, self.left = list[list[str]](), asyncio.Event()

        async def send(asks: list[Ask]) -> tuple[Here, list[Answer]]:
            calls.get(set()).add(asyncio.current_task())
            self.batches.append([ask.query for ask in asks])
            while len(self.batches) == 1 and len(self._batchers[name]) < self.waits:
                await asyncio.sleep(0.01)
            if len(self.batches) == 2:
                await self.left.wait()
            return self.served(), self.searchers[name].answer(asks)

        return Batcher(send, 16, self._config.places, lambda: 1)

    def app(self) -> ASGIApp:
        """As it is behind Ray Serve, which cancels with a request all that was called in its context."""
        config = self._config
        gate = Gate(build_app(self, config), config, Keys("", ""), self.meters.request, self.lines.append)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            mine, answered = set[Any](), False
            calls.set(mine)

            async def answer(message: Message) -> None:
                nonlocal answered
                answered = True
                await send(message)

            await gate(scope, receive, answer)
            if not answered:
                for call in mine:
                    call.cancel()
                self.left.set()

        return app


def test_who_hangs_up_takes_no_neighbour_along(small_run: RunStore) -> None:
    backend = Held(small_run, ServingConfig())
    # More than a batch, so that the rest goes together with what others ask.
    body = json.dumps({"queries": ["water"] * 20, "retriever": "bm25"}).encode()
    with served(backend.app()) as port, ThreadPoolExecutor(4) as pool:
        backend.waits = 4 + 4
        with socket.create_connection(("127.0.0.1", port), timeout=30) as leaver:
            leaver.sendall(HEAD.format(len(body)).encode() + body)
            while not backend.batches:
                time.sleep(0.01)
            neighbours = [pool.submit(answers, port) for _ in range(4)]
            while len(backend.batches) < 2:
                time.sleep(0.01)
        assert [neighbour.result() for neighbour in neighbours] == [True] * 4
    assert backend.batches[:2] == [["water"] * 16, ["water"] * 4 + ["the model7x"] * 4]
