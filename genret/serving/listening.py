"""The HTTP server of an ingress that listens by itself, without Ray Serve's proxy before it.

The proxy hands every request to the ingress by a streaming remote call, which costs several times what everything else
does that happens to a request here. An ingress that listens by itself takes the bytes off the socket with the same
server (uvicorn) that the proxy uses.
"""

import asyncio
import logging
import time
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from genret.config import ServingConfig
from genret.errors import InputError
from genret.serving.ports import Place, take_place
from genret.serving.protocol import BoundedProtocol

# How long a connection without a request may stay open.
_KEEP_ALIVE_SECONDS = 90
_LOOK_SECONDS = 0.02
# How long one that takes another's place waits for it to go.
_PATIENCE_SECONDS = 5.0
_RETRY_SECONDS = 0.1

_logger = logging.getLogger("ray.serve")


def _log_failures() -> None:
    """Failures of the application go where Ray Serve's own go; what clients get wrong is not worth a line."""
    logger = logging.getLogger("uvicorn.error")
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    logger.handlers = list(_logger.handlers)


class Listener:
    """Answers HTTP at the service's address with an application, alone or together with others of its service."""

    def __init__(self, app: ASGIApp, config: ServingConfig, service: str) -> None:
        """Take an application.

        Args:
            app: The application.
            config: Of the `serving` section the address, the certificate, the times for headers and to drain, and
                whether there are several who listen.
            service: A name that no other start of a service has.
        """
        self._config = config
        self._service = service if config.ingress_replicas > 1 else ""
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=partial(BoundedProtocol, header_seconds=config.header_seconds),  # type: ignore[arg-type]
                ssl_certfile=config.tls_certificate or None,
                ssl_keyfile=config.tls_key or None,
                # Serve calls what the application has of a beginning and an end.
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                # Nobody asks for the client's address, and what a header says of it cannot be trusted.
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, round(config.drain_seconds)),
            )
        )
        self._serving: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    async def start(self) -> None:
        """Listen from now on.

        Raises:
            InputError: Somebody else listens there, or there is no such address or certificate.
        """
        _log_failures()
        try:
            self._server.config.load()
        except OSError as error:
            found = f"{self._config.tls_certificate!r} and {self._config.tls_key!r} ({error})"
            raise InputError(f"serving.tls_certificate: expected a certificate and its key, found {found}") from error
        place = await self._take_place()
        self._serving = asyncio.create_task(self._serve(place))
        while not self._server.started:
            if self._serving.done():
                raise InputError(f"serving: cannot listen: {self._failure}")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _take_place(self) -> Place:
        """Where it listens; a replica that is replaced may be there for a moment longer."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return take_place(self._config.host, self._config.port, self._service)
            except InputError:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)

    async def _serve(self, place: Place) -> None:
        try:
            await self._server.serve([place.socket])
        except Exception as error:  # whatever it is, it listens no more, and who looks after it sees that
            self._failure = error
            _logger.exception("the HTTP server has failed")
        finally:
            place.close()

    @property
    def alive(self) -> bool:
        """Whether it listens."""
        return self._serving is not None and not self._serving.done() and not self._server.should_exit

    async def stop(self) -> None:
        """Take no new connection, and come back when every request that has begun is answered, or its time is over."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait([self._serving])
