"""A service in its own process, as a person starts it, and a client of it."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from genret.runs import RunStore

KEY = {"authorization": "Bearer master"}


def free_port() -> int:
    """A port of this machine that nothing listens on, and that nothing else gets before it is used.

    Connections get theirs above these (32768 and up), and so does who asks for any port; Ray's workers listen below.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise AssertionError("expected a free port among 100, found none")


def command_of(process: psutil.Process) -> str:
    """The command line of a process; nothing if it has ended meanwhile."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@dataclass
class Service:
    """A service that is ready."""

    store: RunStore
    url: str
    process: subprocess.Popen[str]
    log: Path
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    def call(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.client.request(method, self.url + path, json=body, **options)

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        title = f"ray::ServeReplica:genret:{deployment}"
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in found if command_of(process).startswith(title)]

    def retrieve(self, query: str, **fields: Any) -> httpx.Response:
        return self.call("POST", "/v1/retrieve", {"query": query, **fields})


def start(store: RunStore, folder: Path, *settings: str) -> Service:
    port, log = free_port(), folder / "serve.log"
    overrides = [part for setting in settings for part in ("--set", setting)]
    environment = os.environ | {"GENRET_ADMIN_KEY": "master"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "genret", "serve", store.url, "--port", str(port), *overrides],
            env=environment, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
    service = Service(store, f"http://127.0.0.1:{port}", process, log)
    deadline = time.monotonic() + 400
    while "ready: " not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.5)
    return service


def stop(service: Service) -> None:
    service.client.close()
    service.process.send_signal(signal.SIGTERM)
    try:
        service.process.wait(timeout=90)
    finally:
        if service.process.poll() is None:
            os.killpg(service.process.pid, signal.SIGKILL)
