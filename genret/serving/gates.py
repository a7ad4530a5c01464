"""What stands before every route: request ids, names of hosts, keys, limits on bodies and requests, headers, a log."""

import asyncio
import hmac
import ipaddress
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genret.config import ServingConfig

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of every answer: nothing from elsewhere, and no script or style in the page itself."""

HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
"""Of every answer."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ADMIN = "/v1/admin/"
# How long a request may take before somebody looks whether its client is still there.
_PATIENCE_SECONDS = 0.25
# How long a body is read on whose request was refused: who is still sending it would lose the answer to a connection
# that is closed.
_LINGER_SECONDS = 2.0
_HERE = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]*)?")

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


def error_body(message: str, field: str | None = None, name: str | None = None) -> bytes:
    """An error as every route tells it; `name`: the request's id, where it is not that of the context."""
    detail = {"message": message, "request_id": request_id.get("") if name is None else name}
    return to_json({"error": detail | ({"field": field} if field else {})})


@dataclass(frozen=True)
class _Refusal:
    """An answer to a request whose body was not read to its end."""

    status: int
    message: str
    headers: Mapping[bytes, bytes] = field(default_factory=dict)

    async def send(self, send: Send) -> None:
        """Send all of it, but leave it open: the connection is closed when it ends."""
        body = error_body(self.message)
        fixed = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            # What is left of the body would be read as the next request, or be waited for.
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": [*fixed, *self.headers.items()]})
        await send({"type": "http.response.body", "body": body, "more_body": True})

    @staticmethod
    async def end(receive: Receive, send: Send) -> None:
        """Let the client send what it is sending, for a moment, and end the answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                    continue
        await send({"type": "http.response.body", "body": b""})


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
        self._hosts = _hosts(config.host, keys)

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
                message = {**message, "headers": [*kept, *HEADERS, (b"x-request-id", name.encode())]}
            await send(message)

        self._open += 1
        try:
            refusal = await self._pass(scope, headers, receive, answer)
            if refusal is not None:
                await refusal.send(answer)
        finally:
            self._open -= 1
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "")
            self._count(route, status, seconds)
            # The route and not the path: a path may hold what was asked.
            line = {"request_id": name, "method": scope["method"], "route": route, "status": status}
            self._log({**line, "ms": round(seconds * 1000, 2), **notes})
        # It counts as open no more: who may not ask cannot keep others out.
        if refusal is not None:
            await refusal.end(receive, answer)

    async def _pass(
        self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, send: Send
    ) -> _Refusal | None:
        """Have a request answered, or say why not."""
        if self._open > self._config.max_requests:
            return _Refusal(503, "too many open requests", {b"retry-after": b"1"})
        if problem := self._host_problem(scope, headers.get(b"host", b"").decode("latin-1")):
            return _Refusal(421, problem)
        scheme, _, shown = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if problem := self._keys.problem(scope["path"], shown.strip() if scheme.lower() == "bearer" else ""):
            return _Refusal(401, problem, {b"www-authenticate": b"Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._config.max_body_bytes:
            return self._too_long()
        try:
            async with asyncio.timeout(self._config.body_seconds):
                body = await _body(receive, self._config.max_body_bytes)
        except TimeoutError:
            return _Refusal(408, f"the body did not arrive within {self._config.body_seconds:g} s")
        if body is None:
            return self._too_long()
        await self._while_there(scope, body, receive, send)
        return None

    def _too_long(self) -> _Refusal:
        return _Refusal(413, f"expected a body of at most {self._config.max_body_bytes} bytes")

    def _host_problem(self, scope: Scope, shown: str) -> str:
        """Why a request may not ask by the name that it does; empty where it may."""
        found = _HOST.fullmatch(shown.lower())
        if not self._hosts or (found is not None and found[1] in self._hosts):
            return ""
        # The connection's own address and not what `serving.host` says: Ray Serve's proxies listen elsewhere.
        address = _address((scope.get("server") or ("",))[0])
        if address is None or not address.is_loopback:
            return ""
        return (
            f"host: expected one of {', '.join(self._hosts)}, found {shown[:200]!r}: this service is for its own "
            f"machine; with an API key ({self._config.api_key_variable}) it may be asked by any name"
        )

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


def _hosts(host: str, keys: Keys) -> tuple[str, ...]:
    """By which names a service may be asked over a loopback address; none: by any.

    A page from elsewhere that has its own name resolved to this machine (DNS rebinding) reads the answers to what it
    asks. It does not know a key, and where other machines may ask there is nothing to hide.
    """
    address = _address(host)
    if keys.api or (address is not None and address.is_unspecified):
        return ()
    own = f"[{host}]" if ":" in host else host
    return tuple(dict.fromkeys((*_HERE, own.lower())))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None of a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


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
