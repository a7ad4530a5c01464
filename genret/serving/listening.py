"""The HTTP server of an ingress that listens by itself, without Ray Serve's proxy before it.

The proxy hands every request to the ingress by a streaming remote call, which costs several times what everything else
does that happens to a request here. An ingress that listens by itself takes the bytes off the socket with the same
server (uvicorn) that the proxy uses.
"""

import asyncio
import logging
import socket

import uvicorn
from starlette.types import ASGIApp

from genret.config import ServingConfig
from genret.errors import InputError

# How long a connection without a request may stay open.
_KEEP_ALIVE_SECONDS = 90
_LOOK_SECONDS = 0.02


def bound_socket(host: str, port: int, shared: bool) -> socket.socket:
    """A socket that is bound to an address and does not listen yet.

    Args:
        host: Name or address, of IPv4 or IPv6.
        port: The port.
        shared: Whether others of this user may be bound to it too, if they say the same: the kernel then deals
            connections out to all that listen.

    Raises:
        InputError: There is no such address, or somebody else listens there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"serving.host: expected an address of this machine, found {host!r} ({error})") from error
    # Connections of a service that has just stopped do not stand in the way.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        found.bind(address)
    except OSError as error:
        found.close()
        raise InputError(f"serving.port: expected a free port of {host}, found {port} ({error.strerror})") from error
    return found


def check_free(host: str, port: int) -> None:
    """Make sure that nobody listens at an address of this machine.

    Raises:
        InputError: Somebody does, or there is no such address.
    """
    with bound_socket(host, port, shared=False) as found:
        try:
            found.listen()
        except OSError as error:
            raise InputError(f"serving.port: expected a free port, found {port} ({error.strerror})") from error


def _log_failures() -> None:
    """Failures of the application go where Ray Serve's own go; what clients get wrong is not worth a line."""
    logger = logging.getLogger("uvicorn.error")
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    logger.handlers = list(logging.getLogger("ray.serve").handlers)


class Listener:
    """Answers HTTP at the service's address with an application; several processes of a machine may do so together."""

    def __init__(self, app: ASGIApp, config: ServingConfig) -> None:
        """Take an application, and of the `serving` section the address, the certificate and the time to drain."""
        self._config = config
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
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

    async def start(self) -> None:
        """Listen from now on.

        Raises:
            InputError: Somebody else listens there, or there is no such address or certificate.
        """
        _log_failures()
        listening = bound_socket(self._config.host, self._config.port, shared=True)
        self._serving = asyncio.create_task(self._server.serve([listening]))
        while not self._server.started:
            if self._serving.done():
                raise InputError(f"serving: cannot listen: {self._serving.exception()}")
            await asyncio.sleep(_LOOK_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether it listens."""
        return self._serving is not None and not self._serving.done() and not self._server.should_exit

    async def stop(self) -> None:
        """Take no new connection, and come back when every request that has begun is answered, or its time is over."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait([self._serving])
