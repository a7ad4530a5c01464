"""Clients that send their headers slowly, without end, or not at all."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import still_time
from service import free_port
from starlette.types import Receive, Scope, Send

from genret.config import ServingConfig
from genret.serving import protocol
from genret.serving.listening import Listener

SECONDS = 0.4
REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    while scope["path"] != "/early" and (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def connected(act: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
    """Act as a client of a service."""

    async def run() -> None:
        config = ServingConfig(port=free_port(), header_seconds=SECONDS)
        listener = Listener(hello, config, "one")
        await listener.start()
        try:
            reader, writer = await asyncio.open_connection(config.host, config.port)
            await act(reader, writer)
            writer.close()
        finally:
            await listener.stop()

    still_time.run(run())


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return await reader.readexactly(5)


async def send_slowly(writer: asyncio.StreamWriter, content: bytes) -> None:
    """A byte now and then, none of which comes too late by itself."""
    for byte in content:
        if writer.is_closing():
            return
        writer.write(bytes([byte]))
        await asyncio.sleep(SECONDS / 8)


@pytest.mark.parametrize("requests", [0, 1, 2])
def test_headers_that_come_slowly_are_refused_also_behind_other_requests(requests: int) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(requests):
            writer.write(REQUEST)
            assert await answer(reader) == b"hello"
        await asyncio.sleep(2 * SECONDS if requests else 0)  # to wait between requests is no offence
        now = asyncio.get_running_loop().time
        begin, sending = now(), asyncio.create_task(send_slowly(writer, REQUEST))
        assert (await reader.read()).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert SECONDS * 0.5 < now() - begin < SECONDS * 4
        sending.cancel()

    connected(act)


def test_who_sends_nothing_is_closed_out_without_a_word() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(SECONDS * 10):
            assert await reader.read() == b""

    connected(act)


def test_a_slow_body_is_not_the_headers_fault() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = b"a body of twelve"
        writer.write(b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n" % len(content))
        await send_slowly(writer, content)
        assert await answer(reader) == b"hello"

    connected(act)


def test_what_is_left_of_a_body_that_nobody_reads_is_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_MOST_HEADER_BYTES", 4096)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST /early HTTP/1.1\r\nhost: here\r\ncontent-length: 9000\r\n\r\n")
        assert await answer(reader) == b"hello"
        await asyncio.sleep(2 * SECONDS)
        writer.write(b"x" * 9000 + REQUEST)
        assert await answer(reader) == b"hello"

    connected(act)


def test_headers_in_time_are_read_whatever_their_parts() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in (REQUEST[:5], REQUEST[5:20], REQUEST[20:] + REQUEST + REQUEST[:7]):
            writer.write(part)
            await asyncio.sleep(SECONDS / 8)
        assert await answer(reader) == await answer(reader) == b"hello"
        writer.write(REQUEST[7:])
        assert await answer(reader) == b"hello"

    connected(act)


def test_headers_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_MOST_HEADER_BYTES", 4096)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST)
        assert await answer(reader) == b"hello"
        writer.write(REQUEST[:-2] + b"x: " + b"y" * 5000)
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")

    connected(act)
