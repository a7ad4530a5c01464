"""What stands before every route: clients that are gone, and names of hosts, over a channel that the test holds."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from genret.config import ServingConfig
from genret.serving.gates import Gate, Keys

SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "path": "/x", "headers": []}


def passed(seconds: float, leaves_after: float) -> tuple[list[str], int]:
    """What an application lived to see that takes some seconds, and the status that was counted."""
    seen: list[str] = []
    lines: list[Mapping[str, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        seen.append("answered")

    async def run() -> None:
        given = False

        async def receive() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.sleep(leaves_after)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            return

        gate = Gate(app, ServingConfig(), Keys("", ""), lambda *_: None, lines.append)
        await gate(SCOPE, receive, send)
        task = asyncio.current_task()
        assert task is not None and not task.cancelling(), "what the server does next must not take it for cancelled"
        await asyncio.sleep(0.01)

    asyncio.run(run())
    return seen, lines[0]["status"]


@pytest.mark.parametrize(
    ("seconds", "leaves_after", "seen", "status"),
    [(0.0, 0.0, "answered", 200), (0.4, 60.0, "answered", 200), (60.0, 0.1, "cancelled", 499)],
)
def test_what_nobody_waits_for_is_given_up(seconds: float, leaves_after: float, seen: str, status: int) -> None:
    assert passed(seconds, leaves_after) == ([seen], status)


def refusal(host: bytes | None, listens: str, server: str | None, api: str) -> str:
    """Why a request to a host is refused; empty where it is answered."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer secret"), *([(b"host", host)] if host is not None else [])]
    scope = SCOPE | {"headers": headers, "server": (server, 8000) if server else None}
    gate = Gate(app, ServingConfig(host=listens), Keys(api, "admin"), lambda *_: None, lambda _: None)
    asyncio.run(gate(scope, receive, send))
    if sent[0]["status"] == 200:
        return ""
    assert sent[0]["status"] == 421 and not sent[-1].get("more_body")
    return str(json.loads(sent[1]["body"])["error"]["message"])


@pytest.mark.parametrize(
    "host", [b"localhost", b"localhost:8000", b"LocalHost:80", b"127.0.0.1:9", b"[::1]", b"[::1]:8000"]
)
def test_a_service_of_one_machine_is_asked_by_its_names(host: bytes) -> None:
    assert refusal(host, "127.0.0.1", "127.0.0.1", "") == refusal(host, "::1", "::1", "") == ""


@pytest.mark.parametrize(
    "host",
    [b"evil.example", b"evil.example:8000", b"localhost.evil.example", b"127.0.0.1.evil.example:8000", b"127.0.0.2",
     b"localhost@evil.example", b"[::1]evil", b"::1", b"", None, b"\xff" * 400],
)  # fmt: skip
@pytest.mark.parametrize(
    ("listens", "server"), [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("::1", "::1")]
)
def test_a_page_from_elsewhere_cannot_read_by_a_name_of_its_own(host: bytes | None, listens: str, server: str) -> None:
    message = refusal(host, listens, server, "")
    assert message.startswith("host: expected one of localhost, 127.0.0.1, [::1], found '")
    assert "GENRET_API_KEY" in message and len(message) < 400


@pytest.mark.parametrize(
    ("host", "listens", "server", "api"),
    [
        (b"search.example", "127.0.0.1", "127.0.0.1", "secret"),  # a page from elsewhere has no key
        (b"search.example", "0.0.0.0", "127.0.0.1", ""),  # for other machines, behind a proxy on this one
        (b"search.example", "::", "::1", ""),
        (b"search.example", "127.0.0.1", "10.0.0.7", ""),  # Ray Serve's proxy listens to other machines
        (b"search.example", "127.0.0.1", None, ""),
        (b"127.0.0.2:8000", "127.0.0.2", "127.0.0.2", ""),
        (b"My-Machine:8000", "my-machine", "127.0.1.1", ""),
    ],
)
def test_other_names_are_for_services_with_a_key_or_of_other_machines(
    host: bytes, listens: str, server: str | None, api: str
) -> None:
    assert refusal(host, listens, server, api) == ""
