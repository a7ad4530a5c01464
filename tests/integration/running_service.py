"""`genret serve` in a process of its own, for all tests that ask it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service import free_port

from genret.client import Client
from genret.runs import RunStore

_KEY = "key-of-the-administration"
# On a busy machine most of it goes into imports.
_READY_SECONDS = 300


@dataclass
class Service:
    """A service that runs, its run, and a client that may change it."""

    url: str
    store: RunStore
    admin: Client


@contextmanager
def running_service(store: RunStore, log: Path) -> Iterator[Service]:
    """Serve a run until the block ends; a key is asked for by the administration only."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "GENRET_API_KEY"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "genret", "serve", store.url, "--port", str(port)],
            env=environment | {"GENRET_ADMIN_KEY": _KEY}, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        with Client(f"http://127.0.0.1:{port}", api_key=_KEY) as admin:
            deadline = time.monotonic() + _READY_SECONDS
            while not admin.ready():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.3)
            yield Service(admin.url, store, admin)
    finally:
        process.terminate()
        process.wait(timeout=60)
