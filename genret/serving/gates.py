"""What stands before every route: request ids, keys, limits on bodies and on open requests, headers, the log."""

import asyncio
import hmac
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genret.config import ServingConfig

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of every answer: nothing from elsewhere, and no script or style in the page itself."""

_HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ADMIN = "/v1/admin/"
# How long a request may take before somebody looks whether its client is still there.
_PATIENCE_SECONDS = 0.25

request_id: ContextVar[str] = ContextVar("the id of the request that is being answered")
noted: ContextVar[dict[str, Any]] = ContextVar("what the log shall say of the request beside its route and status")


@dataclass(frozen=True)
class Keys:
    """The keys that requests must show; empty where none is set."""

    api: str
    admin: str

    def problem(self, path: str, shown: str) -> str:
        """Why a request may not pass, in words; empty where it may.

        `/v1/admin` needs the admin key, or where none is set the other one; without both it is closed. The rest of
        `/v1` and `/metrics` need the API key, where one is set; the admin key opens them too.
        """
        if path.startswith(_ADMIN):
            key = self.admin or self.api
            if not key:
                return "this service was started without a key: nobody may use /v1/admin"
            return "" if _same(shown, key) else "expected the admin key as a bearer token"
        if not self.api or not (path.startswith("/v1/") or path == "/metrics"):
            return ""
        known = _same(shown, self.api) or (bool(self.admin) and _same(shown, self.admin))
        return "" if known else "expected the API key as a bearer token"


def _same(shown: str, key: str) -> bool:
    return hmac.compare_digest(shown.encode(), key.encode())


def error_body(message: str, field: str | None = None) -> bytes:
    """An error as every route tells it."""
    detail = {"message": message, "request_id": request_id.get("")} | ({"field": field} if field else {})
    return to_json({"error": detail})


class _Watch:
    """Cancels the task that answers a request when the client hangs up: what nobody reads shall not be searched for.

    Most requests are answered before it begins to look, as looking takes a task.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive, self._answering = receive, asyncio.current_task()
        self._looking: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._begin)
        self.gone = False

    def _begin(self) -> None:
        self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        if self._answering is not None:
            self.gone = True
            self._answering.cancel()

    def taken_back(self) -> int:
        """Take back that it cancelled the task, and say how many others have cancelled it too."""
        return self._answering.uncancel() if self._answering is not None else 0

    def end(self) -> None:
        """Look no more."""
        self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()


class Gate:
    """ASGI middleware around the application."""

    def __init__(
        self,
        app: ASGIApp,
        config: ServingConfig,
        keys: Keys,
        count: Callable[[str, int, float], None],
        log: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Stand before an application.

        Args:
            app: The application.
            config: The `serving` section.
            keys: What requests must show.
            count: Told of every request: route, status, seconds.
            log: Told of every request: what is known of it.
        """
        self._app, self._config, self._keys = app, config, keys
        self._count, self._log = count, log
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        name = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        request_id.set(name)
        notes: dict[str, Any] = {}
        noted.set(notes)
        begin, status = time.perf_counter(), 499  # for who hangs up before there is an answer

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                kept = [header for header in message.get("headers", ()) if header[0].lower() != b"x-request-id"]
                message = {**message, "headers": [*kept, *_HEADERS, (b"x-request-id", name.encode())]}
            await send(message)

        self._open += 1
        try:
            await self._pass(scope, headers, receive, answer)
        finally:
            self._open -= 1
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "")
            self._count(route, status, seconds)
            # The route and not the path: a path may hold what was asked.
            line = {"request_id": name, "method": scope["method"], "route": route, "status": status}
            self._log({**line, "ms": round(seconds * 1000, 2), **notes})

    async def _pass(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        if self._open > self._config.max_requests:
            await _refuse(send, 503, "too many open requests", {b"retry-after": b"1"})
            return
        scheme, _, shown = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if problem := self._keys.problem(scope["path"], shown.strip() if scheme.lower() == "bearer" else ""):
            await _refuse(send, 401, problem, {b"www-authenticate": b"Bearer"})
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._config.max_body_bytes:
            await _refuse(send, 413, self._too_long, {b"connection": b"close"})
            return
        try:
            async with asyncio.timeout(self._config.body_seconds):
                body = await _body(receive, self._config.max_body_bytes)
        except TimeoutError:
            await _refuse(send, 408, f"the body did not arrive within {self._config.body_seconds:g} s", {})
            return
        if body is None:
            await _refuse(send, 413, self._too_long, {b"connection": b"close"})
            return
        await self._while_there(scope, body, receive, send)

    async def _while_there(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Call the application, and give up where the client hangs up before there is an answer."""
        watch = _Watch(receive)

        async def answer(message: Message) -> None:
            watch.end()
            await send(message)

        try:
            message = {"type": "http.request", "body": body, "more_body": False}
            await self._app(scope, replayed(message, receive), answer)
        except asyncio.CancelledError:
            # Of those who cancelled it the watch is one; where there is another, it is not for this to take back.
            if not watch.gone or watch.taken_back():
                raise
        finally:
            watch.end()

    @property
    def _too_long(self) -> str:
        return f"expected a body of at most {self._config.max_body_bytes} bytes"


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None where it is longer than the limit; empty where the client hung up."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def replayed(message: Message, receive: Receive) -> Receive:
    """A channel that gives a message once more, and then what the client does."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return message

    return replay


async def _refuse(send: Send, status: int, message: str, headers: Mapping[bytes, bytes]) -> None:
    body = error_body(message)
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers.items()]})
    await send({"type": "http.response.body", "body": body})
