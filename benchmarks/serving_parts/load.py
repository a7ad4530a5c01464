"""Clients that ask one query after the other, in a process of its own; `load.py TASK FOUND` writes what they saw.

As cheap as an HTTP client can be, as it shares the machine with what it measures: keep-alive connections on raw
sockets, requests encoded before the clock starts, answers parsed after it stops. Every answer is read to its last byte
while the clock runs, and each of them is looked into afterwards.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

K = 10
_PAUSE_SECONDS = 0.05
# How long the last answers may take.
_LAST_SECONDS = 60


@dataclass
class Seen:
    """What the clients have seen so far."""

    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    bodies: list[tuple[int, bytes]] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection: sends a request, and when its answer is there the next one, until the clock stops.

    Reads answers with a content length, which is what the service sends.
    """

    def __init__(self, requests: Sequence[bytes], numbers: Any, stop: float, seen: Seen) -> None:
        self._requests, self._numbers, self._stop, self._seen = requests, numbers, stop, seen
        self._received = bytearray()
        self._length = -1  # of the answer that is arriving; unknown until its head is there
        self._transport: asyncio.Transport
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._length < 0:
            self._read_head()
        if 0 <= self._length <= len(self._received):
            self._take()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._seen.statuses["connection lost"] += 1
            self.done.set_result(None)

    def _ask(self) -> None:
        if time.perf_counter() >= self._stop:
            self.done.set_result(None)
            self._transport.close()
            return
        self._number = next(self._numbers) % len(self._requests)
        self._received.clear()
        self._length = -1
        self._begin = time.perf_counter()
        self._transport.write(self._requests[self._number])

    def _read_head(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        self._status = head[9:12].decode()
        if self._status in ("429", "503") and b"\r\nretry-after:" not in head:
            self._status += " without Retry-After"
        begin = head.index(b"\r\ncontent-length:") + len(b"\r\ncontent-length:")
        self._body = end + 4
        self._length = self._body + int(head[begin:].split(b"\r\n", 1)[0])

    def _take(self) -> None:
        self._seen.statuses[self._status] += 1
        if self._status == "200":
            self._seen.latencies.append(time.perf_counter() - self._begin)
            self._seen.bodies.append((self._number, bytes(self._received[self._body : self._length])))
            self._ask()
        else:
            asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._ask)


def encoded(host: str, retriever: str, query: str, timeout: float = 30) -> bytes:
    """A request as it goes over the wire."""
    body = json.dumps({"query": query, "k": K, "retriever": retriever, "timeout": timeout}).encode()
    head = ("POST /v1/retrieve HTTP/1.1", f"host: {host}", "content-type: application/json")
    return "\r\n".join((*head, f"content-length: {len(body)}", "", "")).encode() + body


def looked_into(seen: Seen, queries: Sequence[str]) -> dict[str, list[list[tuple[str, float]]]]:
    """The rankings that each query got, passages with scores, each kind once: more than one where answers differ.

    Raises:
        ValueError: An answer is none of its query, or its time was over.
    """
    found: dict[str, list[list[tuple[str, float]]]] = {}
    for number, body in seen.bodies:
        result = json.loads(body)["results"][0]
        if result["query"] != queries[number]:
            raise ValueError(f"expected the answer to {queries[number]!r}, found that to {result['query']!r}")
        if result["timed_out"]:
            raise ValueError(f"expected an answer to {queries[number]!r} in time, found one that was cut off")
        ranking = [(hit["passage_id"], hit["score"]) for hit in result["hits"]]
        rankings = found.setdefault(queries[number], [])
        if ranking not in rankings:
            rankings.append(ranking)
    return found


async def generate_load(
    url: str, retriever: str, clients: int, seconds: float, queries: Sequence[str], timeout: float
) -> dict[str, Any]:
    """Have clients ask for some seconds: seconds it took, latencies in seconds, statuses, and rankings by query."""
    address = urlsplit(url)
    assert address.hostname and address.port
    host, port = address.hostname, address.port
    requests = [encoded(address.netloc, retriever, query, timeout) for query in queries]
    loop, seen, numbers = asyncio.get_running_loop(), Seen(), iter(range(10**9))
    begin = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() < begin + seconds:
            try:
                _, protocol = await loop.create_connection(
                    lambda: Client(requests, numbers, begin + seconds, seen), host, port
                )
                await protocol.done
            except OSError as error:
                seen.statuses[type(error).__name__] += 1
                await asyncio.sleep(_PAUSE_SECONDS)

    async with asyncio.timeout(seconds + _LAST_SECONDS):
        await asyncio.gather(*(client() for _ in range(clients)))
    spent = time.perf_counter() - begin
    return {
        "seconds": spent,
        "latencies": seen.latencies,
        "statuses": dict(seen.statuses),
        "rankings": looked_into(seen, queries),
    }


if __name__ == "__main__":
    task, found = map(Path, sys.argv[1:])
    found.write_text(json.dumps(uvloop.run(generate_load(**json.loads(task.read_text())))))
