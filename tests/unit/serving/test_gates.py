"""What stands before every route: clients that are gone, over a channel that the test holds."""

import asyncio
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
