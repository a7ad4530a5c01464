"""Rows a second through Ray Data and vLLM, beside vLLM alone."""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread

import psutil
from decoding_parts.tables import Table

from genret.cluster import connected
from genret.config import ComputeConfig, VllmConfig
from genret.llm.base import Request
from genret.llm.completion import CompletionEngine
from genret.llm.journal import Journal
from genret.llm.prompts import prompt_digest, render
from genret.llm.vllm import VllmSender, demands, environment
from synthesis_parts.prompts import requests

FOLDER = Path(__file__).resolve().parents[1]
sys.path.append(str(FOLDER.parent / "tests" / "integration"))
from checkpoint import write_checkpoint  # noqa: E402  the model that the tests use, in another size

NOTE = """Rows a second from the first prompt that reaches the engine to the last outcome that reaches the driver;
start-up (seconds until that first prompt, Ray's own apart) in a column of its own. The bare engine is `LLM.generate` on
all prompts at once, in one process or with the engine in a process of its own (vLLM's default). All sides take the same
prompts, seeds, forced forms, engine arguments and threads, in turn. The ratio is that of medians, against the faster
bare engine. Equal answers are counted against the first bare run."""
# The title that Ray gives our actor while it works on a batch.
ACTOR = "ray::MapWorker(MapBatches(Replica"
WORKING = ".submit"


def run(arguments: argparse.Namespace) -> list[Table]:
    """Measure all sides in turn."""
    with TemporaryDirectory(prefix="genret-benchmark-") as place:
        model = write_checkpoint(
            Path(place) / "model", 16_000, arguments.hidden, arguments.layers, arguments.intermediate, haste=0.0
        )
        config = VllmConfig(
            model=str(model),
            dtype=arguments.dtype,
            max_model_len=2048,
            kv_cache_gib=2.0,
            cpus_a_worker=arguments.threads,
            batch_size=arguments.batch_size,
            engine_arguments={"enforce_eager": True},
        )
        asked = list(requests(arguments.rows, arguments.words))
        names = ("Ray Data", "bare, one process", "bare, vLLM's default")
        found: dict[str, list[dict]] = {name: [] for name in names}
        with connected(ComputeConfig(), demands(config)):
            for number in range(arguments.repeats):
                _note(found, names[0], through_ray(config, asked, Path(place) / f"ray-{number}"))
                for name, processes in zip(names[1:], "01", strict=True):
                    _note(found, name, alone(config, asked, Path(place), processes))
    return [_table(found, len(asked))]


def _note(found: dict[str, list[dict]], name: str, run: dict) -> None:
    found[name].append(run)
    print(f"{name}: {run['seconds']:.1f} s after {run['start']:.1f} s of start-up", file=sys.stderr, flush=True)


def _table(found: dict[str, list[dict]], rows: int) -> Table:
    table = Table("Rows a second through vLLM", NOTE)
    medians = {name: median(run["seconds"] for run in runs) for name, runs in found.items()}
    best = min(seconds for name, seconds in medians.items() if name != "Ray Data")
    reference = found["bare, one process"][0]["texts"]
    for name, runs in found.items():
        table.add(
            side=name,
            rows=rows,
            rows_a_second=rows / medians[name],
            ratio=best / medians[name],
            slowest=rows / max(run["seconds"] for run in runs),
            fastest=rows / min(run["seconds"] for run in runs),
            start_up_seconds=median(run["start"] for run in runs),
            equal_answers=min(sum(run["texts"][key] == text for key, text in reference.items()) for run in runs),
        )
    return table


class FirstPrompt(Thread):
    """Notes when the engine's actor begins to work."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.at = 0.0
        self._over = Event()

    def run(self) -> None:
        actor = None
        while not self.at and not self._over.is_set():
            try:
                actor = actor or self._find()
                if actor is not None and WORKING in " ".join(actor.cmdline()):
                    self.at = time.perf_counter()
            except psutil.Error:
                actor = None
            time.sleep(0.01 if actor else 0.2)

    def _find(self) -> psutil.Process | None:
        for process in psutil.Process().children(recursive=True):
            if " ".join(process.cmdline()).startswith(ACTOR):
                return process
        return None

    def end(self) -> None:
        self._over.set()
        self.join()


def through_ray(config: VllmConfig, asked: list[Request], folder: Path) -> dict:
    """Seconds from the first prompt in the actor to the last outcome in the driver."""
    moments: list[float] = []
    sender = VllmSender(config, seed=0)
    engine = CompletionEngine(
        sender, str(folder / "journal"), str(folder / "scratch"), lambda *_: moments.append(time.perf_counter())
    )
    watch, begun = FirstPrompt(), time.perf_counter()
    watch.start()
    for _ in engine.generate(asked):
        pass
    watch.end()
    if engine.counts.answered != len(asked):
        raise RuntimeError(f"only {engine.counts.answered} of {len(asked)} prompts were answered")
    ids = [prompt_digest(render(request), sender.model, sender.sampling) for request in asked]
    texts = {completion.id: completion.text for completion in Journal(str(folder / "journal")).read(ids)}
    return {"seconds": moments[-1] - watch.at, "start": watch.at - begun, "texts": texts}


def alone(config: VllmConfig, asked: list[Request], folder: Path, processes: str) -> dict:
    """Seconds that vLLM's own interface takes in a new process."""
    sender = VllmSender(config, seed=0)
    rows = []
    for request in asked:
        prompt = render(request)
        rows.append(asdict(prompt) | {"id": prompt_digest(prompt, sender.model, sender.sampling)})
    work, result = folder / "work.json", folder / "result.json"
    work.write_text(json.dumps({"config": config.model_dump(), "rows": rows}), encoding="utf-8")
    variables = os.environ | environment(config) | {"VLLM_ENABLE_V1_MULTIPROCESSING": processes}
    paths = [str(FOLDER), str(FOLDER.parent), variables.get("PYTHONPATH", "")]
    variables |= {"PYTHONPATH": os.pathsep.join(paths), "VLLM_LOGGING_LEVEL": "ERROR"}
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "synthesis_parts.bare", str(work), str(result)],
        env=variables, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    found: dict = json.loads(result.read_text(encoding="utf-8"))
    return found | {"start": time.perf_counter() - begun - found["seconds"]}
