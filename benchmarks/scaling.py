"""How the stages up to the training examples grow with the corpus, and with the workers.

    python benchmarks/scaling.py [--rows 10000 100000] [--workers 1 2] [--repeats 1] [--folder FOLDER]

Passages are made from real ones (a corpus in the BEIR layout, or else the docstrings of Python's standard library) by
recombination: each takes the title of one, and a sentence from each of a few others. For every number of rows and of
workers, the pipeline runs up to `examples` with the engine `extractive` in a process of its own. Printed are seconds
and rows a second and core of each stage, the greatest memory of the driver and of all processes together, how both grow
from one number of rows to the next (1.0: in proportion), and how much faster more workers are: in the stages that
they share, and in all. The driver works on the same cores. Beside it stands what the machine has for so many
processes: how many times as many requests they answer by themselves, without Ray and without a driver, as one does,
which on cores that others share is less than their number. With more than one repeat, numbers of workers take turns,
and the last table and what follows from it are of the medians of a stage's seconds.

Memory is the proportional set size, so that what processes share counts once. Of it, anonymous memory (Pss_Anon) is
shown by itself: large tables are files that are mapped, and their pages count for the process that reads them until the
system wants them back, which it may at any time; anonymous pages are what a process cannot do without.
"""

import argparse
import json
import math
import multiprocessing
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import psutil

from genret.config import CorpusConfig, ExtractiveConfig
from genret.corpus.readers import read_corpus
from genret.corpus.sentences import split_sentences
from genret.llm.base import Request
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine, WordCounts
from genret.runs import RunStore

STAGES = ("corpus", "identifiers", "synthesis", "examples")
POOLED = ("identifiers", "synthesis")
_SENTENCES = 4
_ALONE_ROWS, _ALONE_TURNS, _ALONE_REPEATS = 3_000, 8, 3


@dataclass(frozen=True)
class Measurement:
    """One run: rows, workers, seconds by stage, and the greatest memory of the driver and of all processes."""

    rows: int
    workers: int
    seconds: dict[str, float]
    driver: "Memory"
    everything: "Memory"


@dataclass(frozen=True)
class Memory:
    """Bytes: all, and those of anonymous pages."""

    proportional: int = 0
    anonymous: int = 0

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(self.proportional + other.proportional, self.anonymous + other.anonymous)

    def or_more(self, other: "Memory") -> "Memory":
        """The greater of both, each by itself."""
        return Memory(max(self.proportional, other.proportional), max(self.anonymous, other.anonymous))


def write_corpus(target: Path, rows: int, folder: str) -> None:
    """A JSONL file of recombined passages."""
    config = CorpusConfig(type="beir", path=folder) if folder else CorpusConfig(type="python_docs")
    documents = read_corpus(config).documents
    titles = [document.title for document in documents]
    sentences = [sentence for document in documents for sentence in split_sentences(document.text)]
    rng = random.Random(0)
    with target.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = " ".join(rng.choices(sentences, k=_SENTENCES))
            file.write(json.dumps({"_id": f"p{number}", "title": rng.choice(titles), "text": text}) + "\n")


def measure(corpus: Path, rows: int, workers: int, run: Path) -> Measurement:
    """Run the stages in a process of their own, and watch its memory."""
    settings = ["corpus.type=jsonl", f"corpus.path={corpus}", f"compute.cpu_workers={workers}",
                "synthesis.preference_queries=1", "synthesis.sentence_queries=0"]  # fmt: skip
    flags = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "genret", "run", "scratch-semantic", "--run", str(run), "--until", "examples"]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    driver = everything = Memory()
    while process.poll() is None:
        begin = time.perf_counter()
        own, total = _memory(process.pid)
        driver, everything = driver.or_more(own), everything.or_more(total)
        # To add up pages takes the kernel a while where there are many, in which the process that has them gets no new
        # ones: no more of a core than half a per cent, as with many workers none is free.
        time.sleep(max(0.5, 200 * (time.perf_counter() - begin)))
    if process.returncode:
        raise SystemExit(f"the run failed:\n{process.stderr.read() if process.stderr else ''}")
    records = RunStore(run).current()
    return Measurement(
        rows, workers, {stage: records[stage].details["seconds"] for stage in STAGES}, driver, everything
    )


def median(repeats: list[Measurement]) -> Measurement:
    """One of several measurements of the same: the median of each stage's seconds, and the greatest memory."""
    seconds = {stage: statistics.median(m.seconds[stage] for m in repeats) for stage in STAGES}
    driver, everything = Memory(), Memory()
    for m in repeats:
        driver, everything = driver.or_more(m.driver), everything.or_more(m.everything)
    return Measurement(repeats[0].rows, repeats[0].workers, seconds, driver, everything)


# Of a process that `machine_times_faster` started.
_together: Any = None


def machine_times_faster(corpus: Path, workers: int) -> float:
    """How much more requests so many processes answer by themselves in the same time than one: a median."""
    ratios = []
    for _ in range(_ALONE_REPEATS):
        one, more = (_slowest_alone(corpus, processes) for processes in (1, workers))
        ratios.append(workers * one / more)
    return statistics.median(ratios)


def _slowest_alone(corpus: Path, processes: int) -> float:
    """Seconds that the slowest of some processes takes for the requests that each of them answers."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(processes)
    with context.Pool(processes, _share_barrier, (together,)) as pool:
        return max(pool.map(_answer, [corpus] * processes, chunksize=1))


def _share_barrier(together: Any) -> None:
    global _together
    _together = together


def _answer(corpus: Path) -> float:
    with corpus.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, _ALONE_ROWS)]
    statistics_of_them = CorpusStatistics.of([WordCounts.of((row["title"], row["text"]) for row in rows)])
    engine = ExtractiveEngine(ExtractiveConfig(), statistics_of_them, 0)
    _together.wait()
    begin = time.perf_counter()
    for turn in range(_ALONE_TURNS):
        for row in rows:
            engine.respond(Request(f"{row['_id']}|{turn}", "chunk", 3, row["title"], row["text"]))
    return time.perf_counter() - begin


def _memory(pid: int) -> tuple[Memory, Memory]:
    sizes = []
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                sizes.append(_of_process(process.pid))
            except (OSError, psutil.Error):
                sizes.append(Memory())
    except psutil.Error:
        pass
    return (sizes[0], sum(sizes, Memory())) if sizes else (Memory(), Memory())


def _of_process(pid: int) -> Memory:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    proportional, anonymous = (re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for name in ("Pss", "Pss_Anon"))
    return Memory(int(proportional[0]) * 1024, int(anonymous[0]) * 1024)


def show(measurements: list[Measurement]) -> None:
    """Print a table, and what follows from it."""
    print(f"{'rows':>9} {'workers':>7} " + " ".join(f"{stage + ' s':>14} {'rows/s/core':>12}" for stage in STAGES)
          + f" {'driver MB':>10} {'anonymous':>10} {'all MB':>8} {'anonymous':>10}")  # fmt: skip
    for m in measurements:
        cells = []
        for stage in STAGES:
            cores = m.workers if stage in POOLED else 1
            cells.append(f"{m.seconds[stage]:>14.1f} {m.rows / max(m.seconds[stage], 1e-3) / cores:>12,.0f}")
        print(f"{m.rows:>9,} {m.workers:>7} {' '.join(cells)} {_megabytes(m.driver, 10)} {_megabytes(m.everything, 8)}")
    for workers in sorted({m.workers for m in measurements}):
        same = sorted((m for m in measurements if m.workers == workers), key=lambda m: m.rows)
        for small, large in pairwise(same):
            times = math.log(sum(large.seconds.values()) / sum(small.seconds.values())) / math.log(
                large.rows / small.rows
            )
            more = large.rows - small.rows
            driver = (large.driver.anonymous - small.driver.anonymous) / more
            everything = (large.everything.anonymous - small.everything.anonymous) / more
            print(f"{small.rows:,} -> {large.rows:,} rows, {workers} workers: seconds grow with rows^{times:.2f}; "
                  f"anonymous memory by {driver:,.0f} bytes a passage in the driver, {everything:,.0f} in "
                  "all processes")  # fmt: skip
    for rows in sorted({m.rows for m in measurements}):
        by_workers = {m.workers: m for m in measurements if m.rows == rows}
        for fewer, more in pairwise(sorted(by_workers)):
            pair = by_workers[fewer], by_workers[more]
            pooled, whole = (_times_faster(*pair, stages) for stages in (POOLED, STAGES))
            print(f"{rows:,} rows: identifiers and synthesis with {more} workers {pooled:.2f} times as fast as with "
                  f"{fewer}, all stages {whole:.2f} times")  # fmt: skip


def _times_faster(fewer: Measurement, more: Measurement, stages: tuple[str, ...]) -> float:
    before, after = (sum(measured.seconds[stage] for stage in stages) for measured in (fewer, more))
    return before / after


def _megabytes(memory: Memory, width: int) -> str:
    return f"{memory.proportional / 1e6:>{width},.0f} {memory.anonymous / 1e6:>10,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], help="numbers of passages")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers")
    parser.add_argument("--folder", default="", help="a corpus in the BEIR layout to recombine; default: docstrings")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each number of rows and workers")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats: expected at least 1, found {options.repeats}")
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="genret-scaling-") as scratch:
        for rows in options.rows:
            corpus = Path(scratch) / f"{rows}.jsonl"
            write_corpus(corpus, rows, options.folder)
            repeats: dict[int, list[Measurement]] = {workers: [] for workers in options.workers}
            for number in range(options.repeats):
                for workers, measured in repeats.items():
                    run = Path(scratch) / f"{rows}-{workers}-{number}"
                    measured.append(measure(corpus, rows, workers, run))
                    show(measured[-1:])
                    shutil.rmtree(run)
            measurements += map(median, repeats.values())
            machine = {workers: machine_times_faster(corpus, workers) for workers in options.workers if workers > 1}
            corpus.unlink()
    print()
    show(measurements)
    for workers, times in machine.items():
        print(f"the machine: {workers} processes by themselves answer {times:.2f} times as many requests as one")


if __name__ == "__main__":
    main()
