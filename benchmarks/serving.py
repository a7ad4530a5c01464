"""The service under load: throughput, latency and errors of each retriever, beside what the machine could do.

    python benchmarks/serving.py [RUN] [--clients 1 8 64 256] [--seconds 10] [--set serving.a=b ...] [--write FILE]

RUN is a finished run, runs/quickstart unless another is named.

Measured in one run on one machine:

- `service`: `genret serve RUN` in its own process; each client sends one query after the other over HTTP.
- `empty`: a deployment of the same shape, whose replicas answer the same number of passages without searching:
  ingress, batching, passages and JSON are all there. What it reaches is the most that any retriever can.
- `proxied`, where it is asked for: the service behind Ray Serve's proxy, as `serve deploy` has it.
- `in process`: the same queries through the same retriever in this process, at the batch size that suits it best.

`in process` and `empty` each have all cores to themselves. A service must do the work of both: where both use every
core, it can reach no more than 1 / (1 / in process + 1 / empty), which the last lines set it beside. They also set it
beside `in process` with the threads that a replica has unless it is told otherwise: a core less, for the ingress.

The load comes from another process that opens a bounded number of connections and sends queries of the run's test
split. Ratios are of medians over `--repeats` turns, which alternate between the sides as far as they can, as machines
are noisy. A last part starts the service with a small queue and sends it more than it can hold: the excess must be
turned away with 429 or 503 and Retry-After, and what is accepted must be answered as `in process` answers it, before a
deadline. Passages and scores of every answer are compared; where one is wrong or late, or a status is another one than
these, the program ends with 1.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from genret.retrieval.opening import load_retriever
from genret.runs import RunStore
from genret.serving.versions import find_version, read_config
from genret.threads import use_threads

BATCHES = (1, 8, 16, 32, 64, 128)
K = 10
# Scores may differ by rounding, as batches differ; passages that are so close may change places.
CLOSE = 3e-4
SMALL_QUEUE, MANY_CLIENTS, DEADLINE_SECONDS = 32, 256, 5.0

Ranking = list[tuple[str, float]]
PARTS = Path(__file__).parent / "serving_parts"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/quickstart", help="folder or URL")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--retrievers", nargs="+")
    parser.add_argument(
        "--set", action="append", default=[], help="a setting of the services, as `genret serve` has it"
    )
    parser.add_argument("--proxied", action="store_true", help="measure the service behind Ray Serve's proxy too")
    parser.add_argument("--write", type=Path)
    return parser.parse_args()


def load(
    url: str, retriever: str, clients: int, seconds: float, queries: Sequence[str], timeout: float = 30
) -> dict[str, Any]:
    """What `serving_parts/load.py` sees, in a process of its own."""
    task = {"url": url, "retriever": retriever, "clients": clients, "seconds": seconds, "timeout": timeout}
    task["queries"] = list(queries)
    with TemporaryDirectory() as folder:
        path, seen = Path(folder) / "task.json", Path(folder) / "found.json"
        path.write_text(json.dumps(task))
        # By a file: a process without buffers may write less to a pipe than it was given.
        subprocess.run([sys.executable, PARTS / "load.py", path, seen], check=True)
        found: dict[str, Any] = json.loads(seen.read_text())
    return found


@contextmanager
def service(run: str, *settings: str, side: str = "service") -> Iterator[str]:
    """One side's service in its own process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    flags = [part for setting in (*settings, f"serving.port={port}") for part in ("--set", setting)]
    begin = time.perf_counter()
    module = ["-m", "genret", "serve"] if side == "service" else [str(PARTS / f"{side}.py")]
    process = subprocess.Popen(
        [sys.executable, *module, run, *flags],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ,
    )  # fmt: skip
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("ready: "):
            break
    else:
        raise SystemExit("the service did not start:\n" + "".join(lines[-30:]))
    print(f"{side}: ready in {time.perf_counter() - begin:.1f} s", flush=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)


def in_process(
    store: RunStore, name: str, queries: Sequence[str], seconds: float, threads: int
) -> tuple[float, int, dict[str, Ranking]]:
    """Queries a second at the best batch size, that size, and what was found."""
    use_threads(threads)
    retriever: Any = load_retriever(store, store.current(), name, read_config(store).retrieval)
    best = (0.0, 0)
    for batch in BATCHES:
        retriever.batch_size = batch
        retriever.retrieve(list(queries[:batch]), K)
        done, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            asked = [queries[(done + place) % len(queries)] for place in range(batch)]
            retriever.retrieve(asked, K)
            done += batch
        best = max(best, (done / (time.perf_counter() - begin), batch))
    rankings = retriever.retrieve(list(queries), K)
    found = {
        query: [(place.passage_id, place.score) for place in ranking]
        for query, ranking in zip(queries, rankings, strict=True)
    }
    return best[0], best[1], found


def figures(found: dict[str, Any]) -> tuple[float, list[float], float]:
    """Answers a second, p50, p95 and p99 in milliseconds, and the share of other statuses."""
    latencies = sorted(found["latencies"])
    total = sum(found["statuses"].values())
    quantiles = [
        1000 * latencies[min(len(latencies) - 1, int(q * len(latencies)))] if latencies else 0.0
        for q in (0.5, 0.95, 0.99)
    ]
    return len(latencies) / found["seconds"], quantiles, 1 - len(latencies) / max(1, total)


def is_same(found: Ranking, expected: Ranking) -> bool:
    """Whether two rankings have the same scores at the same ranks, and the same passages but for ties at the end."""
    if len(found) != len(expected):
        return False
    if any(abs(score - other) > CLOSE for (_, score), (_, other) in zip(found, expected, strict=True)):
        return False
    scores = dict(expected)
    last = expected[-1][1] if expected else 0.0
    return all(abs(score - scores.get(name, last)) <= CLOSE for name, score in found)


def agreement(found: dict[str, list[Ranking]], expected: dict[str, Ranking]) -> float:
    """Share of the queries all of whose answers are as expected."""
    same = [all(is_same(ranking, expected[query]) for ranking in found[query]) for query in found]
    return sum(same) / max(1, len(same))


def overloaded(
    run: str, settings: Sequence[str], names: Sequence[str], seconds: float, expected: dict[str, dict[str, Ranking]]
) -> Iterator[tuple[str, bool]]:
    """A line for each retriever that gets more than its queue holds, and whether all went as it should."""
    small = (f"serving.queue={SMALL_QUEUE}", f"serving.max_queries={SMALL_QUEUE}")
    with service(run, *settings, *small) as url:
        for name in names:
            found = load(url, name, MANY_CLIENTS, seconds, list(expected[name]), DEADLINE_SECONDS)
            share, slowest = agreement(found["rankings"], expected[name]), max(found["latencies"], default=0.0)
            statuses = found["statuses"]
            yield (
                f"queue of {SMALL_QUEUE}, {MANY_CLIENTS} clients, {name}: {statuses}; accepted answers as in process: "
                f"{share:.2%}; slowest {1000 * slowest:.0f} ms of {1000 * DEADLINE_SECONDS:.0f}",
                share == 1 and slowest <= DEADLINE_SECONDS and set(statuses) <= {"200", "429", "503"},
            )


def main() -> None:
    arguments = parse_arguments()
    store = RunStore.open_existing(arguments.run)
    cores = os.cpu_count() or 1
    names = arguments.retrievers or list(find_version(store).retrievers)
    queries = store.read_table(store.current()["corpus"], "test_queries").column("text").to_pylist()
    lines = [
        "| retriever | side | clients | answers/s | p50 ms | p95 ms | p99 ms | errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rates: dict[tuple[str, str, int], list[float]] = {}
    expected: dict[str, dict[str, Ranking]] = {}
    right = True
    for _ in range(arguments.repeats):
        for name in names:
            for side, threads in (("of a replica", max(1, cores - 1)), ("in process", cores)):
                share = arguments.seconds / len(BATCHES)
                rate, batch, expected[name] = in_process(store, name, queries, share, threads)
                rates.setdefault((name, side, batch), []).append(rate)
        for side in ("service", "empty", *(["proxied"] if arguments.proxied else [])):
            with service(arguments.run, *arguments.set, side=side) as url:
                for name in names:
                    load(url, name, 8, 2, queries)
                    for clients in arguments.clients:
                        found = load(url, name, clients, arguments.seconds, queries)
                        rate, quantiles, errors = figures(found)
                        rates.setdefault((name, side, clients), []).append(rate)
                        shown = " | ".join(f"{value:.1f}" for value in quantiles)
                        lines.append(f"| {name} | {side} | {clients} | {rate:.1f} | {shown} | {errors:.2%} |")
                        print(lines[-1], flush=True)
                        if side != "empty":
                            share = agreement(found["rankings"], expected[name])
                            right &= share == 1
                            print(f"  answers as in process: {share:.2%}", flush=True)
    at = 64 if 64 in arguments.clients else max(arguments.clients)
    for name in names:
        mine = statistics.median(rates[name, "service", at])
        alone, replica = (
            statistics.median([rate for key, found in rates.items() if key[:2] == (name, side) for rate in found])
            for side in ("in process", "of a replica")
        )
        empty = statistics.median(rates[name, "empty", at])
        most = 1 / (1 / alone + 1 / empty)
        lines.append(
            f"\n{name}: at {at} clients {mine:.1f}/s: {mine / alone:.2f} of in process ({alone:.1f}/s), "
            f"{mine / replica:.2f} of in process with the threads of a replica ({replica:.1f}/s), "
            f"{mine / empty:.2f} of empty ({empty:.1f}/s), {mine / most:.2f} of both on the same cores ({most:.1f}/s)"
        )
        print(lines[-1], flush=True)
    for line, well in overloaded(arguments.run, arguments.set, names, arguments.seconds, expected):
        lines.append(f"\n{line}")
        right &= well
        print(lines[-1], flush=True)
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not right:
        raise SystemExit("an answer was wrong or late, or had a status that it must not have")


if __name__ == "__main__":
    main()
