"""The HTTP server of an ingress: where it listens, that it shares its port, and how it stops."""

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from service import free_port
from starlette.types import Receive, Scope, Send

from genret.config import ServingConfig
from genret.errors import InputError
from genret.serving import listening
from genret.serving.listening import Listener
from genret.serving.ports import check_free


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


# That a slow request is with the application.
arrived = asyncio.Event()


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/slow":
        arrived.set()
        await asyncio.sleep(0.5)
    headers = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


def with_listener(act: Callable[[Listener, str], Awaitable[None]], config: ServingConfig) -> None:
    async def run() -> None:
        listener = Listener(hello, config, "one")
        await listener.start()
        try:
            scheme = "https" if config.tls_key else "http"
            await act(listener, f"{scheme}://{config.host}:{config.port}")
        finally:
            await listener.stop()

    asyncio.run(run())


def test_it_answers_until_it_is_stopped() -> None:
    config = ServingConfig(port=free_port(), drain_seconds=60)

    async def act(listener: Listener, url: str) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            assert listener.alive and (await client.get(url)).text == "hello"
            slow = asyncio.create_task(client.get(f"{url}/slow"))
            await arrived.wait()
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


def test_two_of_a_service_share_a_port() -> None:
    config = ServingConfig(port=free_port(), ingress_replicas=2)

    async def act(first: Listener, url: str) -> None:
        second = Listener(hello, config, "one")
        await second.start()
        await first.stop()
        async with httpx.AsyncClient() as client:
            assert (await client.get(url)).text == "hello"
        await second.stop()

    with_listener(act, config)


@pytest.mark.parametrize("replicas", [1, 2])
def test_another_service_gets_no_place_at_its_port(replicas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_PATIENCE_SECONDS", 0.2)
    config = ServingConfig(port=free_port(), ingress_replicas=replicas)

    async def act(_: Listener, url: str) -> None:
        for others in (1, 2):
            other = Listener(hello, config.model_copy(update={"ingress_replicas": others}), "other")
            with pytest.raises(InputError, match=rf"serving\.port: expected a free port.*{config.port}"):
                await other.start()
            assert not other.alive

    with_listener(act, config)


def test_a_replica_waits_for_the_one_whose_place_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_PATIENCE_SECONDS", 60)
    config = ServingConfig(port=free_port())

    async def act(first: Listener, url: str) -> None:
        second = Listener(hello, config, "one")
        starting = asyncio.create_task(second.start())
        await asyncio.sleep(0.3)
        assert not starting.done()
        await first.stop()
        await starting
        async with httpx.AsyncClient() as client:
            assert (await client.get(url)).text == "hello"
        await second.stop()

    with_listener(act, config)


def test_who_cannot_listen_leaves_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServingConfig(port=free_port())

    async def fail(*_: object, **__: object) -> None:
        raise OSError("no more files")

    monkeypatch.setattr(uvicorn.Server, "startup", fail)
    listener = Listener(hello, config, "one")
    with pytest.raises(InputError, match="serving: cannot listen: no more files"):
        asyncio.run(listener.start())
    check_free(config.host, config.port)


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "certificate.pem").write_text("none")
    files = {"tls_certificate": str(tmp_path / "certificate.pem"), "tls_key": str(tmp_path / "certificate.pem")}
    with pytest.raises(InputError, match=r"serving\.tls_certificate: expected a certificate and its key, found"):
        asyncio.run(Listener(hello, ServingConfig(port=free_port(), **files), "one").start())


def test_it_speaks_tls(tmp_path: Path) -> None:
    config = ServingConfig(port=free_port(), **_certificate(tmp_path))

    async def act(_: Listener, url: str) -> None:
        context = ssl.create_default_context(cafile=config.tls_certificate)
        async with httpx.AsyncClient(verify=context) as client:
            assert (await client.get(url)).text == "hello"

    with_listener(act, config)


def _certificate(folder: Path) -> dict[str, str]:
    """A certificate of 127.0.0.1 by itself, and its key."""
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
