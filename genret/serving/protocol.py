"""How bytes of a connection become requests: uvicorn's protocol, with an end to the time that headers may take."""

import asyncio
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from genret.serving.gates import HEADERS, error_body

# Before a request's headers are complete; those of browsers take a tenth of it.
_MOST_HEADER_BYTES = 65_536


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request's headers do not arrive in time, or are too many.

    The time runs from the connection's beginning, and from the first byte of each request that follows; one that waits
    between two requests is uvicorn's to close, and what is left there of a body that nobody read gives it no more time.
    A client that holds a connection by a byte now and then is answered with 408, one that sends headers without end
    with 431, one that does not speak HTTP with 400. Where answers to requests before are still to come, the connection
    ends with these.
    """

    def __init__(self, *arguments: Any, header_seconds: float, **more: Any) -> None:
        """Take what uvicorn gives, and how long headers may take."""
        super().__init__(*arguments, **more)
        self._header_seconds = header_seconds
        self._deadline: asyncio.TimerHandle | None = None
        self._received = self._counted = 0
        self._heard = self._in_body = self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Some bytes have come, of headers or of a body."""
        if self._refused:
            return
        self._heard = True
        keeps, self._counted = self.timeout_keep_alive_task, 0 if self._in_body else len(data)
        super().data_received(data)
        if self._deadline is not None:
            self._received += self._counted
            if self._received > _MOST_HEADER_BYTES:
                self._refuse(431, f"expected at most {_MOST_HEADER_BYTES} bytes of headers, found more")
        elif keeps is not None and self.cycle.response_complete and not self.transport.is_closing():
            # Some of a body whose request was answered before it had come.
            self.timeout_keep_alive_task = self.loop.call_at(keeps.when(), self.timeout_keep_alive_handler)

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        super().on_message_begin()
        if self._deadline is None:
            self._expect()

    def on_headers_complete(self) -> None:
        """What comes now is the body."""
        self._stop()
        # If another request begins in the same bytes, nobody knows where.
        self._counted = 0
        super().on_headers_complete()
        self._in_body = True

    def on_message_complete(self) -> None:
        """All of a request has come."""
        self._in_body = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or was closed out."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What has come is no HTTP; by uvicorn."""
        self._refuse(400, "expected an HTTP request, found something else")

    def _expect(self) -> None:
        self._received = 0
        message = f"the headers did not arrive within {self._header_seconds:g} s"
        self._deadline = self.loop.call_later(self._header_seconds, self._refuse, 408, message)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int, message: str) -> None:
        self._stop()
        self._refused = True
        if self.transport.is_closing():
            return
        if self._owes():
            self.cycle.keep_alive = False
            return
        if self._heard:  # who has sent nothing asks for no answer
            name = uuid.uuid4().hex
            body = error_body(message, name=name)
            headers = (
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                *HEADERS,
                (b"x-request-id", name.encode()),
            )
            lines = [b"%b: %b\r\n" % header for header in headers]
            self.transport.write(b"".join((STATUS_LINE[status], *lines, b"\r\n", body)))
        self.transport.close()

    def _owes(self) -> bool:
        """Whether an answer is still to come, or to be ended, before one to what comes now could be sent."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        waits_for_body = self._in_body and not self.cycle.response_started
        return bool(self.pipeline) or not waits_for_body
