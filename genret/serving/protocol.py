"""How bytes of a connection become requests: uvicorn's protocol, with an end to the time that headers may take."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Before a request's headers are complete; those of browsers take a tenth of it.
_MOST_HEADER_BYTES = 65_536


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request's headers do not arrive in time, or are too many.

    The time runs from the connection's beginning, and from the first byte of each request that follows; one that waits
    between two requests is uvicorn's to close. A client that holds a connection by a byte now and then is answered
    with 408, one that sends headers without end with 431.
    """

    def __init__(self, *arguments: Any, header_seconds: float, **more: Any) -> None:
        """Take what uvicorn gives, and how long headers may take."""
        super().__init__(*arguments, **more)
        self._header_seconds = header_seconds
        self._deadline: asyncio.TimerHandle | None = None
        self._received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Some bytes have come, of headers or of a body."""
        super().data_received(data)
        if self._deadline is not None:
            self._received += len(data)
            if self._received > _MOST_HEADER_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        super().on_message_begin()
        if self._deadline is None:
            self._expect()

    def on_headers_complete(self) -> None:
        """What comes now is the body."""
        self._stop()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or was closed out."""
        self._stop()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._received = 0
        self._deadline = self.loop.call_later(self._header_seconds, self._refuse, b"408 Request Timeout")

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: bytes) -> None:
        self._stop()
        if self.transport.is_closing():
            return
        if self._received:  # who has sent nothing asks for no answer
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()
