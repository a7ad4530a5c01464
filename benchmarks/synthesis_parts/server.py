"""A server with OpenAI's chat completions that takes as little of the machine as it can, to measure clients with.

python -m synthesis_parts.server PORT LATENCY SLOTS

It works on so many requests at a time, the others wait; each takes a fixed time and gets a query of its own.
`GET /v1/models` answers at once; `GET /counts` tells how many were answered, and the seconds from the arrival
of the first request to the last answer.
"""

import asyncio
import json
import sys
import time
from collections import deque


class Work:
    """What all connections share: the slots, the queue for them, and the counts."""

    def __init__(self, latency: float, slots: int) -> None:
        self.latency = latency
        self.free = slots
        self.queue: deque[Connection] = deque()
        self.answered = 0
        self.first = self.last = 0.0

    def begin(self, connection: "Connection") -> None:
        self.first = self.first or time.monotonic()
        if self.free:
            self.free -= 1
            asyncio.get_running_loop().call_later(self.latency, self._end, connection)
        else:
            self.queue.append(connection)

    def _end(self, connection: "Connection") -> None:
        self.answered += 1
        self.last = time.monotonic()
        connection.answer(completion(self.answered))
        self.free += 1
        if self.queue:
            self.begin(self.queue.popleft())


class Connection(asyncio.Protocol):
    """One request at a time, as clients without pipelining send them."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.received = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, mark, body = self.received.partition(b"\r\n\r\n")
        if not mark or len(body) < length_of(bytes(head)):
            return
        self.received.clear()
        if head.startswith(b"POST"):
            self.work.begin(self)
        else:
            self.answer(json.dumps([self.work.answered, self.work.last - self.work.first]).encode())

    def answer(self, body: bytes) -> None:
        assert self.transport is not None
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        if not self.transport.is_closing():
            self.transport.write(head + body)


def length_of(head: bytes) -> int:
    """The length of a body, by the head of its request."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def completion(number: int) -> bytes:
    text = json.dumps({"items": [f"What does the river do in the year {number}?"]})
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 200, "completion_tokens": 12}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


async def main() -> None:
    port, latency, slots = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    work = Work(latency, slots)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(work), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
