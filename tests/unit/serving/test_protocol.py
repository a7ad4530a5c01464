"""Clients that send their headers slowly, without end, or not at all."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
import still_time
from service import free_port
from starlette.types import ASGIApp, Receive, Scope, Send

from genret.config import ServingConfig
from genret.serving import listening, protocol
from genret.serving.gates import Gate, Keys
from genret.serving.listening import Listener

SECONDS = 0.4
REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/slow":
        await asyncio.sleep(SECONDS * 3)
    while scope["path"] != "/early" and (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def connected(
    act: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], app: ASGIApp = hello
) -> None:
    """Act as a client of a service."""

    async def run() -> None:
        config = ServingConfig(port=free_port(), header_seconds=SECONDS)
        listener = Listener(app, config, "one")
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


async def refused(reader: asyncio.StreamReader, status: bytes) -> str:
    """The message of an error, after which the connection ends."""
    async with asyncio.timeout(SECONDS * 1000):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    assert first == b"HTTP/1.1 " + status and headers[b"connection"] == b"close"
    assert headers[b"content-type"] == b"application/json" and int(headers[b"content-length"]) == len(body)
    error = json.loads(body)["error"]
    assert error["request_id"] and error["request_id"].encode() == headers[b"x-request-id"]
    return str(error["message"])


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
        assert await refused(reader, b"408 Request Timeout") == "the headers did not arrive within 0.4 s"
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
        message = await refused(reader, b"431 Request Header Fields Too Large")
        assert message == "expected at most 4096 bytes of headers, found more"

    connected(act)


@pytest.mark.parametrize("before", [b"", REQUEST])
def test_what_is_no_http_is_refused(before: bytes) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(before)
        if before:
            assert await answer(reader) == b"hello"
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        assert "expected an HTTP request" in await refused(reader, b"400 Bad Request")

    connected(act)


def test_a_body_that_breaks_off_is_refused_at_once() -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.sleep(SECONDS / 8)
        writer.write(b"none\r\n")
        assert "expected an HTTP request" in await refused(reader, b"400 Bad Request")

    connected(act)


SLOW = b"GET /slow HTTP/1.1\r\nhost: here\r\n\r\n"


@pytest.mark.parametrize("first", [[SLOW, b""], [SLOW], [SLOW + REQUEST]])
@pytest.mark.parametrize("rest", [REQUEST[:9], REQUEST[:-2] + b"x: " + b"y" * 5000, b"\x16\x03\x01 hello\r\n\r\n"])
def test_a_refusal_does_not_come_before_the_answers_that_are_owed(
    first: list[bytes], rest: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_MOST_HEADER_BYTES", 4096)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        *parts, last = first
        for part in (*parts, last + rest):
            writer.write(part)
            await asyncio.sleep(SECONDS / 8)
        for _ in range(b"".join(first).count(b"GET")):
            assert await answer(reader) == b"hello"
        async with asyncio.timeout(SECONDS * 1000):
            assert await reader.read() == b""

    connected(act)


def test_the_rest_of_a_body_is_not_counted_with_the_headers_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_MOST_HEADER_BYTES", 4096)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 9000\r\n\r\n"
        for part in (head, b"x" * 9000 + REQUEST[:7], REQUEST[7:] + head + b"x" * 9000 + REQUEST[:7], REQUEST[7:]):
            writer.write(part)
            await asyncio.sleep(SECONDS / 8)
        for _ in range(4):
            assert await answer(reader) == b"hello"

    connected(act)


def test_a_body_that_nobody_reads_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_KEEP_ALIVE_SECONDS", 3 * SECONDS)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST /early HTTP/1.1\r\nhost: here\r\ncontent-length: 9000\r\n\r\n")
        assert await answer(reader) == b"hello"
        # A byte now and then gives it no more time than silence.
        end = asyncio.create_task(reader.read())
        for _ in range(10):
            if not end.done():
                writer.write(b"x")
                await asyncio.sleep(SECONDS)
        assert end.done() and end.result() == b""

    connected(act)


HEAD = b"POST /v1/info HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n%b\r\n"
KEY = b"authorization: Bearer secret\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD % (1000, b""), b"401 Unauthorized"),
        (HEAD % (1000, KEY), b"408 Request Timeout"),
        (HEAD % (5000, KEY), b"413 Request Entity Too Large"),
        (HEAD % (1000, b"x-full: 1\r\n"), b"503 Service Unavailable"),
    ],
)
def test_who_is_refused_before_the_body_has_come_holds_no_connection(head: bytes, status: bytes) -> None:
    config = ServingConfig(max_body_bytes=1024, body_seconds=SECONDS, max_requests=1)
    gate = Gate(hello, config, Keys("secret", ""), lambda *_: None, lambda _: None)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"x-full" in head:
            gate._open = 1
        writer.write(head)
        dripping = asyncio.create_task(send_slowly(writer, b"x" * 999))
        assert await refused(reader, status)
        dripping.cancel()

    connected(act, gate)


def test_who_is_refused_while_sending_gets_the_answer() -> None:
    gate = Gate(hello, ServingConfig(max_body_bytes=1 << 24), Keys("secret", ""), lambda *_: None, lambda _: None)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD % (1 << 23, b""))
        for _ in range(8):
            writer.write(b"x" * (1 << 20))
            await writer.drain()
        assert "expected the API key" in await refused(reader, b"401 Unauthorized")

    connected(act, gate)


def test_a_name_of_another_machine_is_refused() -> None:
    config = ServingConfig()
    gate = Gate(hello, config, Keys("", ""), lambda *_: None, lambda _: None)

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST.replace(b"here", b"localhost:8000"))
        assert await answer(reader) == b"hello"
        writer.write(REQUEST.replace(b"here", b"evil.example"))
        assert "found 'evil.example'" in await refused(reader, b"421 Misdirected Request")

    connected(act, gate)
