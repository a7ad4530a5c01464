"""CPU time that the ingress spends on a request, without Ray.

    python benchmarks/ingress.py RUN [--clients 64] [--seconds 2]

Everything from the bytes of a request to those of its answer is the service's own: HTTP, gate, routes, batches,
counters, the log of requests, passages and JSON. What stands in for Ray is an echo on the same event
loop: batches and answers are pickled and read back, as they are on their way to a replica, and every query finds the
same number of passages of the run, which differ from query to query.
"""

import argparse
import asyncio
import cProfile
import gc
import logging
import pickle
import pstats
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
import uvloop
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.schema import LoggingConfig
from serving_parts.load import encoded
from uvicorn.server import ServerState

from genret.config import ServingConfig
from genret.runs import RunStore
from genret.serving import app
from genret.serving.asks import Answer, Ask
from genret.serving.batching import Batcher
from genret.serving.gates import Gate, Keys
from genret.serving.logs import RequestLog, request_log
from genret.serving.metrics import Meters
from genret.serving.protocol import BoundedProtocol
from genret.serving.routes import build_app
from genret.serving.versions import Collection, find_version, version_records

_RETRIEVER = "bm25"


@dataclass
class Served:
    """A version as the ingress has it."""

    version: str
    collection: Collection
    names: tuple[str, ...]


class Echo:
    """What the routes ask: an ingress whose replicas find the passages that come next in the run."""

    def __init__(self, store: RunStore, config: ServingConfig) -> None:
        found = find_version(store)
        passages = store.read_table(version_records(store, found)["corpus"], "passages")
        self._served = Served(found.id, Collection(passages), (_RETRIEVER, "sft", "fusion"))
        self._ids, self._next = self._served.collection.ids(), 0
        self.meters = Meters()
        self.batches = 0
        self._batcher: Batcher[Served] = Batcher(self._send, config.bm25.batch_size, config.queue, lambda: 1)

    async def _send(self, asks: list[Ask]) -> tuple[Served, list[Answer]]:
        asks = pickle.loads(pickle.dumps(asks, 5))  # noqa: S301 - its own
        self.batches += 1
        await asyncio.sleep(0.002)  # the way there and back, in which others ask
        answers = [Answer(self._places(ask.k), exact=True, batch=len(asks)) for ask in asks]
        return self._served, pickle.loads(pickle.dumps(answers, 5))  # noqa: S301 - its own

    def _places(self, k: int) -> list[tuple[str, float]]:
        self._next = (self._next + k) % max(1, len(self._ids) - k)
        return [(name, 12.345678 - rank) for rank, name in enumerate(self._ids[self._next : self._next + k])]

    async def ask(self, retriever: str, asks: Sequence[Ask]) -> tuple[Served, list[Answer]]:
        begin = time.monotonic()
        self.meters.queue(retriever, len(self._batcher) + len(asks))
        found = await self._batcher.ask(asks)
        self.meters.queue(retriever, len(self._batcher))
        for _, answer in found:
            self.meters.answer(retriever, answer, time.monotonic() - begin)
        return found[-1][0], [answer for _, answer in found]

    def served(self) -> Served:
        return self._served

    def retrievers(self) -> list[dict[str, Any]]:
        return [{"name": name, "replicas": 1} for name in self._served.names]


class Wire(asyncio.Transport):
    """A client that sends its next request when it has an answer, without a socket."""

    def __init__(self, make: Any, requests: Sequence[bytes], stop: float) -> None:
        super().__init__()
        self._requests, self._stop = requests, stop
        self._received = bytearray()
        self.answers = 0
        self.loop = asyncio.get_running_loop()
        self.done = self.loop.create_future()
        self._protocol = make()
        self._protocol.connection_made(self)
        self._ask()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None:
        return

    def _ask(self) -> None:
        self._received.clear()
        self._protocol.data_received(self._requests[self.answers % len(self._requests)])

    def write(self, data: Any) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        begin = self._received.find(b"content-length: ") + len(b"content-length: ")
        if len(self._received) < head + 4 + int(self._received[begin : self._received.index(b"\r", begin)]):
            return
        if not self._received.startswith(b"HTTP/1.1 200"):
            raise SystemExit(bytes(self._received).decode())
        self.answers += 1
        if time.perf_counter() >= self._stop:
            self.done.set_result(None)
        else:
            self.loop.call_soon(self._ask)


async def run(store: RunStore, log: RequestLog, clients: int, seconds: float, profile: cProfile.Profile | None) -> None:
    config = ServingConfig()
    echo = Echo(store, config)
    application = Gate(build_app(echo, config), config, Keys("", ""), echo.meters.request, log.write)  # type: ignore[arg-type]
    server = uvicorn.Config(application, log_config=None, access_log=False, ws="none", proxy_headers=False)
    state = ServerState()
    queries = store.read_table(store.current()["corpus"], "test_queries").column("text").to_pylist()
    requests = [encoded("127.0.0.1:8000", _RETRIEVER, query) for query in queries]

    def make() -> BoundedProtocol:
        return BoundedProtocol(server, state, {}, header_seconds=config.header_seconds)

    async def turn(length: float) -> tuple[int, float]:
        begin = time.process_time()
        wires = [Wire(make, requests[n:] + requests[:n], time.perf_counter() + length) for n in range(clients)]
        await asyncio.gather(*(wire.done for wire in wires))
        return sum(wire.answers for wire in wires), time.process_time() - begin

    await turn(0.5)
    echo.batches = 0
    if profile is not None:
        profile.enable()
    answers, spent = await turn(seconds)
    if profile is not None:
        profile.disable()
    print(f"{1e6 * spent / answers:.1f} us of CPU a request; {answers / echo.batches:.1f} queries a batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--profile", action="store_true", help="print where the time goes (which makes it longer)")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        logs = LoggingConfig(**app._LOGGING, logs_dir=folder)
        configure_component_logger(
            component_name="genret", component_id="ingress", logging_config=logs, max_bytes=2**29, backup_count=1
        )
        log = request_log(logging.getLogger("ray.serve"))
        gc.freeze()  # as Ray Serve does when a replica is ready
        profile = cProfile.Profile() if arguments.profile else None
        store = RunStore.open_existing(str(arguments.run))
        uvloop.run(run(store, log, arguments.clients, arguments.seconds, profile))
        log.close()
        print(sum(path.stat().st_size for path in Path(folder).iterdir()), "bytes of log lines")
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
