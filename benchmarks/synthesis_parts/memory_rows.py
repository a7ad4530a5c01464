"""Memory and time as the number of prompts grows, for an engine fed and read as the synthesis stage does it."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import psutil
from decoding_parts.tables import Table

from genret.cluster import ActorPool, connected
from genret.config import ComputeConfig, ExtractiveConfig, HttpConfig
from genret.llm.base import Engine, Request, Requests, pair_responses
from genret.llm.completion import CompletionEngine
from genret.llm.extractive import CorpusStatistics
from genret.llm.http import HttpSender
from genret.llm.pool import KnownStatistics, PooledEngine
from genret.tables import passages_to_table
from genret.types import Passage
from synthesis_parts.http_rows import server
from synthesis_parts.prompts import requests

FOLDER = Path(__file__).resolve().parents[1]
NOTE = """Each row is a process of its own that draws so many prompts (of 40 words each) lazily, has the engine answer
them, reads each response and drops it. Driver: the most resident memory of the driving process (without shared
memory, which Ray's object store is), above what it had once Ray was up; actor: the most of any of its actors. Growth
is against the first row of the engine. The passages and the tables that a stage makes of the responses are not in it:
these are Arrow columns in the driver, at the size of their texts."""
_MIB = 2**20
_ACTORS = ("ray::_Worker", "ray::MapWorker")


def run(arguments: argparse.Namespace) -> list[Table]:
    """Measure each engine at each size."""
    tables = []
    for engine in arguments.memory_engines:
        table, first = Table(f"Memory with the engine {engine}", NOTE), None
        for rows in arguments.sizes:
            found = measure_apart(engine, rows, arguments)
            first = first or found
            table.add(
                prompts=rows,
                seconds=found["seconds"],
                milliseconds_a_prompt=1000 * found["seconds"] / rows,
                driver_mib=found["driver"],
                actor_mib=found["actor"],
                driver_growth_mib=found["driver"] - first["driver"],
                actor_growth_mib=found["actor"] - first["actor"],
            )
        tables.append(table)
    return tables


def measure_apart(engine: str, rows: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Run `main` in a new process: memory that was used once is not always given back."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(FOLDER), str(FOLDER.parent)])}
    with server(arguments.memory_latency, arguments.memory_slots) if engine == "http" else nullcontext("") as url:
        command = [sys.executable, "-m", "synthesis_parts.memory_rows", engine, str(rows), url]
        command += [str(arguments.memory_slots), str(arguments.actors)]
        printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    return found


def own_memory(process: psutil.Process) -> float:
    """MiB of resident memory that is not shared.

    Ray's object store is shared memory of a fixed size: every process that reads a block has its pages among its own.
    """
    found = process.memory_info()
    return (found.rss - getattr(found, "shared", 0)) / _MIB


class Watch(Thread):
    """Notes the most memory of this process, and of its actors, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.driver = self.actor = 0.0
        self._over = Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self._over.wait(0.1):
            self.driver = max(self.driver, own_memory(me))
            for child in me.children(recursive=True):
                try:
                    if " ".join(child.cmdline()).startswith(_ACTORS):
                        self.actor = max(self.actor, own_memory(child))
                except psutil.Error:
                    continue

    def end(self) -> None:
        self._over.set()
        self.join()


def main() -> None:
    """Have one engine answer so many prompts, and print what that took as JSON."""
    name, rows, url, slots, actors = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    compute = ComputeConfig(cpu_workers=actors)
    with connected(compute), TemporaryDirectory(prefix="genret-benchmark-") as folder:
        engine = _engine(name, url, slots, compute, folder)
        _consume(engine, 1000)  # what is loaded with the first prompts is there at any size
        if isinstance(engine, PooledEngine):
            engine.pool.close()  # what it takes to start actors is told too
        before, begun = own_memory(psutil.Process()), time.perf_counter()
        watch = Watch()
        watch.start()
        _consume(engine, rows)
        seconds = time.perf_counter() - begun
        watch.end()
    print(json.dumps({"seconds": seconds, "driver": watch.driver - before, "actor": watch.actor}))


def _engine(name: str, url: str, slots: int, compute: ComputeConfig, folder: str) -> Engine:
    if name == "http":
        sender = HttpSender(HttpConfig(base_url=url, model="tiny", concurrency=slots), 0, compute)
        return CompletionEngine(sender, f"{folder}/journal", f"{folder}/scratch", lambda done, total: None)
    statistics = CorpusStatistics.fit(Passage(r.request_id, r.request_id, r.text) for r in requests(1000, 40))
    nothing = passages_to_table([])  # as they are counted already
    known = KnownStatistics(statistics)
    return PooledEngine(ExtractiveConfig(), nothing, 0, ActorPool(compute), lambda done, total: None, known)


def _consume(engine: Engine, rows: int) -> None:
    answered = sum(bool(response.items) for _, response in pair_responses(engine, Requests(partial(_draw, rows))))
    if answered != rows:
        raise RuntimeError(f"expected {rows} responses with queries, found {answered}")


def _draw(rows: int) -> Iterator[Request]:
    """Other requests for each number of rows, so that none is answered already."""
    for number, request in enumerate(requests(rows, 40)):
        yield Request(f"{rows}-{number}", request.kind, 1, f"{rows} {number}", request.text)


if __name__ == "__main__":
    main()
