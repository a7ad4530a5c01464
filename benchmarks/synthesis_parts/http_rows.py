"""Rows a second through the actors of the http engine, beside one bare client."""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import aiohttp
from decoding_parts.tables import Table

from genret.cluster import connected
from genret.config import ComputeConfig, HttpConfig
from genret.llm.base import Request, pair_responses
from genret.llm.completion import CompletionEngine
from genret.llm.http import HttpSender
from genret.llm.prompts import render
from synthesis_parts.prompts import requests

FOLDER = Path(__file__).resolve().parents[1]
NOTE = """Rows a second by the server's clock, from the arrival of the first request to the last answer: start-up is
apart. The capacity is slots / latency. Under way: llm.concurrency; beyond the server's slots, requests wait there, so
that no slot waits for the network and the client. The bare client is one process with aiohttp that has its requests
ready, reads each answer and keeps nothing. Both sides in turn; medians."""


def run(arguments: argparse.Namespace) -> list[Table]:
    """Measure both sides in turn."""
    asked = list(requests(arguments.requests, 40))
    compute = ComputeConfig(cpu_workers=arguments.actors)
    found: dict[tuple[str, int], list[float]] = {}
    with connected(compute):
        through_ray(asked[:100], arguments, compute, 64)  # Ray's workers start with the first work
        for _ in range(arguments.repeats):
            for under_way in arguments.concurrency:
                ours = through_ray(asked, arguments, compute, under_way)
                with server(arguments.latency, arguments.slots) as url:
                    asyncio.run(alone(url, asked, under_way))
                    bare = rate(url, len(asked))
                found.setdefault(("Ray Data", under_way), []).append(ours)
                found.setdefault(("bare client", under_way), []).append(bare)
                print(f"{under_way} under way: {ours:.1f} through Ray, {bare:.1f} bare", file=sys.stderr, flush=True)
    table = Table("Rows a second through HTTP", NOTE)
    capacity = arguments.slots / arguments.latency
    for (side, under_way), rates in found.items():
        table.add(
            side=side,
            under_way=under_way,
            rows=len(asked),
            capacity=capacity,
            rows_a_second=median(rates),
            of_capacity=median(rates) / capacity,
            of_the_bare_client=median(rates) / median(found["bare client", under_way]),
            slowest=min(rates),
            fastest=max(rates),
        )
    return [table]


@contextmanager
def server(latency: float, slots: int) -> Iterator[str]:
    """A server of our own in another process: its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    command = [sys.executable, "-m", "synthesis_parts.server", str(port), str(latency), str(slots)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(FOLDER)})
    try:
        _wait(f"http://127.0.0.1:{port}/v1/models")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _wait(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def rate(url: str, rows: int) -> float:
    """Answers a second, by the server."""
    with urlopen(f"{url.removesuffix('/v1')}/counts", timeout=60) as response:
        answered, seconds = json.load(response)
    if answered != rows:
        raise RuntimeError(f"expected {rows} answers, found {answered}")
    return rows / seconds


def through_ray(asked: list[Request], arguments: argparse.Namespace, compute: ComputeConfig, under_way: int) -> float:
    """Rows a second of all prompts through the engine and a new server."""
    with server(arguments.latency, arguments.slots) as url, TemporaryDirectory(prefix="genret-benchmark-") as folder:
        sender = HttpSender(HttpConfig(base_url=url, model="tiny", concurrency=under_way), 0, compute)
        engine = CompletionEngine(sender, f"{folder}/journal", f"{folder}/scratch", lambda done, total: None)
        answered = sum(bool(response.items) for _, response in pair_responses(engine, asked))
        if answered != len(asked):
            raise RuntimeError(f"expected {len(asked)} responses with queries, found {answered}")
        return rate(url, len(asked))


async def alone(url: str, asked: list[Request], under_way: int) -> None:
    """The same requests with as many under way, from one event loop."""
    bodies = iter([_body(request) for request in asked])
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=under_way)) as session:

        async def ask() -> None:
            for body in bodies:
                async with session.post(f"{url}/chat/completions", data=body) as response:
                    await response.json()

        await asyncio.gather(*(ask() for _ in range(under_way)))


def _body(request: Request) -> bytes:
    prompt = render(request, "json")
    messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
    schema = {"name": "answer", "strict": True, "schema": prompt.schema}
    body = {"model": "tiny", "messages": messages, "response_format": {"type": "json_schema", "json_schema": schema}}
    return json.dumps(body).encode()
