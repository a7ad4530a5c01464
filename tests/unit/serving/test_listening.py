"""The HTTP server of an ingress: where it listens, that it shares its port, and how it stops."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from genret.config import ServingConfig
from genret.errors import InputError
from genret.serving.listening import Listener, bound_socket, check_free


def free_port() -> int:
    with bound_socket("127.0.0.1", 0, shared=False) as found:
        return int(found.getsockname()[1])


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    headers = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


def with_listener(act: Callable[[Listener, str], Awaitable[None]], config: ServingConfig) -> None:
    async def run() -> None:
        listener = Listener(hello, config)
        await listener.start()
        try:
            scheme = "https" if config.tls_key else "http"
            await act(listener, f"{scheme}://{config.host}:{config.port}")
        finally:
            await listener.stop()

    asyncio.run(run())


def test_it_answers_until_it_is_stopped() -> None:
    config = ServingConfig(port=free_port())

    async def act(listener: Listener, url: str) -> None:
        async with httpx.AsyncClient() as client:
            assert listener.alive and (await client.get(url)).text == "hello"
            slow = asyncio.create_task(client.get(f"{url}/slow"))
            await asyncio.sleep(0.1)
            await listener.stop()
            assert (await slow).text == "hello" and not listener.alive
            with pytest.raises(httpx.ConnectError):
                await client.get(url)

    with_listener(act, config)
    check_free(config.host, config.port)


def test_it_is_not_open_to_other_machines() -> None:
    async def act(_: Listener, url: str) -> None:
        with socket.socket() as other:
            other.settimeout(1)
            assert other.connect_ex(("127.0.0.2", int(url.rpartition(":")[2]))) != 0

    with_listener(act, ServingConfig(port=free_port()))


def test_two_share_a_port_and_a_third_party_is_told() -> None:
    config = ServingConfig(port=free_port())

    async def act(first: Listener, url: str) -> None:
        second = Listener(hello, config)
        await second.start()
        with pytest.raises(InputError, match=rf"serving\.port: expected a free port.*{config.port}"):
            check_free(config.host, config.port)
        await first.stop()
        async with httpx.AsyncClient() as client:
            assert (await client.get(url)).text == "hello"
        await second.stop()

    with_listener(act, config)


def test_an_address_of_another_machine_is_refused() -> None:
    for host in ("no-such-host.invalid", "192.0.2.77"):
        with pytest.raises(InputError, match=r"^serving\.(host|port): expected"):
            check_free(host, 8000)


def test_it_speaks_tls(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    config = ServingConfig(port=free_port(), **_certificate(tmp_path))

    async def act(_: Listener, url: str) -> None:
        context = ssl.create_default_context(cafile=config.tls_certificate)
        async with httpx.AsyncClient(verify=context) as client:
            assert (await client.get(url)).text == "hello"

    with_listener(act, config)


def _certificate(folder: Path) -> dict[str, str]:
    """A certificate of 127.0.0.1 by itself, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(encoding))
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    return {"tls_certificate": str(folder / "certificate.pem"), "tls_key": str(folder / "key.pem")}
