"""The http engine on real Ray against a real server in a process of its own, which misbehaves as tests want it to."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from service import command_of, free_port
from silent import Silent

from genret.cluster import connected
from genret.config import ComputeConfig, HttpConfig, load_config
from genret.errors import EngineError, InputError
from genret.llm.base import Request, Response
from genret.llm.completion import CompletionEngine
from genret.llm.http import HttpSender
from genret.llm.journal import Journal
from genret.pipeline import run
from genret.runs import RunStore

COMPUTE = ComputeConfig(cpu_workers=2)
KEY = "sk-integration-secret"


class ChatServer:
    """The server of `chat_server.py`: always on the same port, with one log whatever happens to the process."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.log = folder / "server.log"
        self.log.touch()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self, **options: Any) -> None:
        script = Path(__file__).with_name("chat_server.py")
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self.process = subprocess.Popen([sys.executable, str(script), str(self.port), str(self.log), *flags])
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/models", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, "the server does not start"
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def answered(self) -> Counter[str]:
        """How often each prompt got a completion."""
        rows = map(json.loads, self.log.read_text(encoding="utf-8").splitlines())
        return Counter(row["prompt"] for row in rows if row["status"] == 200)

    def requests(self) -> int:
        return len(self.log.read_text(encoding="utf-8").splitlines())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ChatServer]:
    chat = ChatServer(tmp_path)
    yield chat
    chat.kill()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected(COMPUTE):
        yield


class Progress:
    """Keeps what it is told, and does something once when so many are settled."""

    def __init__(self, at: int = 0, action: Any = None) -> None:
        self.seen: list[tuple[int, int]] = []
        self.at = at
        self.action = action

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))
        if self.action is not None and done >= self.at:
            action, self.action = self.action, None
            action()


def engine_of(server: ChatServer, folder: Path, progress: Any = None, **settings: Any) -> CompletionEngine:
    config = HttpConfig(base_url=server.url, model="tiny", **settings)
    sender = HttpSender(config, 0, COMPUTE)
    return CompletionEngine(sender, str(folder / "completions"), str(folder / "scratch"), progress or Progress())


def chunks(count: int, mark: str = "", start: int = 0) -> list[Request]:
    return [Request(f"r{n}", "chunk", 5, f"title {n}", f"{mark} text {n}") for n in range(start, start + count)]


def errors(responses: list[Response]) -> dict[str, str]:
    return {response.request_id: response.error for response in responses if response.error}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in (folder / "scratch").rglob("*") if path.is_file()]


KINDS = [
    Request("keywords", "keywords", 8, "River", "the river floods"),
    Request("chunk", "chunk", 6, "River", "the river floods"),
    Request("sentence", "sentence", 3, "", "the river floods in May"),
    Request("constraint", "constraint", 4, "River", "the river floods", {"year": "1999", "place": "Rhône"}),
    Request("preference", "preference", 3, "River", "the river floods"),
    Request("multihop", "multihop", 2, "River", "the river floods", related=("the bridge broke",)),
    Request("negative", "negative", 2, "River", "the river floods", query="which river floods"),
    Request("one", "chunk", 1, "", "你好 é \ud800"),
]


@pytest.mark.parametrize("structured", ["json_schema", pytest.param("regex", marks=pytest.mark.slow)])
def test_all_kinds_of_prompts_are_answered_and_never_asked_twice(
    cluster: None, server: ChatServer, tmp_path: Path, structured: str
) -> None:
    server.start()
    twins = [Request(f"twin{number}", "chunk", 6, "River", "the river floods") for number in range(3)]
    hopeless = [Request("blank", "chunk", 3, "", " \n"), Request("bare", "constraint", 3, "", "text")]
    asked = [*KINDS, *twins, *hopeless]
    progress = Progress()
    engine = engine_of(server, tmp_path, progress, structured=structured)
    responses = list(engine.generate(iter(asked)))
    assert [response.request_id for response in responses] == [request.request_id for request in asked]
    assert errors(responses) == {"blank": "no title and no text", "bare": "no constraints in the request"}
    for request, response in zip(KINDS, responses, strict=False):
        assert 1 <= len(response.items) <= request.n, request.kind
        assert all(bool(item.answer) == (request.kind == "preference") for item in response.items)
    assert {response.items for response in responses[len(KINDS) :][:3]} == {responses[1].items}
    assert engine.name == "tiny"
    assert (engine.counts.prompts, engine.counts.answered, engine.counts.requests) == (8, 8, 13)
    assert engine.counts.prompt_tokens > 0 < engine.counts.completion_tokens
    assert progress.seen[-1] == (8, 8)
    assert set(server.answered().values()) == {1} and server.requests() == 8

    assert list(engine.generate(asked)) == responses
    assert (engine.counts.reused, engine.counts.answered) == (8, 0)
    assert server.requests() == 8, "nothing is asked again"
    more = list(engine.generate([*asked, *chunks(2)]))
    assert more[: len(responses)] == responses
    assert server.requests() == 10, "two documents more cost two prompts"
    assert not leftovers(tmp_path)


def test_every_trouble_of_a_prompt_ends_in_an_answer_or_its_own_error(
    cluster: None, server: ChatServer, tmp_path: Path
) -> None:
    server.start()
    marks = ["", "once429", "once500", "oncegarbage", "oncehang", "always400", "always500", "filtered", "cutoff"]
    asked = [
        Request(f"{mark}{number}", "chunk", 5, "", f"{mark} text {number}") for mark in marks for number in range(6)
    ]
    engine = engine_of(server, tmp_path, timeout_seconds=6, max_attempts=3, concurrency=32)
    responses = list(engine.generate(asked))
    assert [response.request_id for response in responses] == [request.request_id for request in asked]
    found = errors(responses)
    reasons = {
        "always400": "HTTP 400: as the prompt wants it",
        "always500": "HTTP 500: as the prompt wants it; tried 3 times",
        "filtered": "the server's content filter stopped the answer",
    }
    expected = {f"{mark}{number}": reason for mark, reason in reasons.items() for number in range(6)}
    assert found == expected
    assert (engine.counts.answered, engine.counts.failed) == (36, 18)
    # Errors are not done: the next run asks again, and pays for nothing else.
    before = server.requests()
    again = list(engine.generate(asked))
    assert again == responses
    assert engine.counts.reused == 36
    # The probes of those that always fail come on top.
    assert before + 6 + 6 * 3 + 6 <= server.requests() <= before + 6 + 6 * 3 + 6 + 18


def test_a_server_that_goes_and_comes_back_leaves_no_trace_in_the_answers(
    cluster: None, server: ChatServer, tmp_path: Path
) -> None:
    server.start(latency=0.1)
    asked = chunks(300)

    def restart() -> None:
        server.kill()
        time.sleep(3)
        server.start()

    progress = Progress(60, restart)
    disturbed = list(engine_of(server, tmp_path / "disturbed", progress, concurrency=16).generate(asked))
    assert progress.action is None, "the server was killed"
    assert not errors(disturbed)
    undisturbed = list(engine_of(server, tmp_path / "undisturbed").generate(asked))
    assert disturbed == undisturbed


def actors() -> list[psutil.Process]:
    """The processes of this test's actors."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if "_HttpActor" in command_of(process)]


def test_a_killed_actor_loses_nothing_and_asks_nothing_twice(cluster: None, server: ChatServer, tmp_path: Path) -> None:
    server.start(latency=0.2)
    slots = 16

    def kill_one() -> None:
        # Into the middle of a block.
        before, deadline = server.requests(), time.monotonic() + 60
        while server.requests() < before + slots:
            assert time.monotonic() < deadline, "nothing more is asked"
            time.sleep(0.02)
        [victim] = actors()
        victim.kill()

    progress = Progress(1, kill_one)
    asked = chunks(400)
    responses = list(engine_of(server, tmp_path, progress, concurrency=slots).generate(asked))
    assert progress.action is None, "the actor was killed"
    assert not errors(responses) and len(responses) == 400
    answered = server.answered()
    assert len(answered) == 400
    assert sum(answered.values()) - 400 <= slots, "only what was under way is asked again"
    assert len(list((tmp_path / "completions").iterdir())) == 2


def test_a_wrong_key_is_named_at_once_and_shown_nowhere(
    cluster: None, server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start(key="another")
    engine = engine_of(server, tmp_path, api_key_variable="CHAT_KEY")
    with pytest.raises(InputError, match=r"environment variable CHAT_KEY, found nothing"):
        list(engine.generate(chunks(3)))
    monkeypatch.setenv("CHAT_KEY", KEY)
    with pytest.raises(InputError) as caught:
        list(engine.generate(chunks(100)))
    assert str(caught.value) == (
        "llm.api_key_variable: the server refuses the key in CHAT_KEY (HTTP 401: Incorrect API key provided: ***); "
        "0 of 100 prompts are answered and kept, and the same command goes on from there"
    )
    assert server.requests() <= 64
    assert not leftovers(tmp_path)
    assert not any(KEY in path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path != server.log)


@pytest.mark.slow
def test_a_dead_server_ends_the_run_which_goes_on_later(cluster: None, server: ChatServer, tmp_path: Path) -> None:
    server.start(latency=0.2)

    def break_down() -> None:
        server.kill()
        server.start(status=503)

    settings = {"concurrency": 8, "give_up_seconds": 20, "timeout_seconds": 30}  # more than the server needs to start
    progress = Progress(30, break_down)
    asked = chunks(200)
    engine = engine_of(server, tmp_path, progress, **settings)
    with pytest.raises(EngineError) as caught:
        list(engine.generate(asked))
    kept = engine.counts.answered
    assert 30 <= kept < 200
    assert re.match(
        rf"no answer from {server.url} for \d+ s; last: HTTP 503: as the test wants it; {kept} of 200 prompts are "
        "answered and kept, and the same command goes on from there",
        str(caught.value),
    )
    answered = server.answered()
    server.kill()
    with pytest.raises(InputError, match=rf"llm.base_url: expected a server at {server.url}, found none"):
        list(engine.generate(asked))
    server.start()
    assert not errors(list(engine.generate(asked)))
    assert engine.counts.reused >= kept
    assert all(count == 1 for prompt, count in server.answered().items() if prompt in answered)


def settings_for(server: ChatServer, tiny_settings: list[str]) -> list[str]:
    return [*tiny_settings, f"llm={{type: http, base_url: '{server.url}', model: tiny, concurrency: 8}}"]


@pytest.mark.slow
def test_the_pipeline_writes_its_tables_with_it(
    cluster: None, server: ChatServer, tiny_settings: list[str], tmp_path: Path
) -> None:
    server.start()
    settings = [*settings_for(server, tiny_settings), "corpus.max_documents=12"]
    store = RunStore(tmp_path / "run")
    records = run(load_config("scratch-semantic", settings), store, Silent(), "synthesis")
    queries = store.read_table(records["synthesis"], "queries").to_pylist()
    assert {row["generator"] for row in queries} == {"tiny"}
    assert {row["kind"] for row in queries} == {"chunk", "sentence", "constraint"}
    assert {row["passage_id"] for row in queries} == {f"d{number}" for number in range(12)}
    assert store.read_table(records["identifiers"], "identifiers").num_rows == 12
    counts = records["synthesis"].details["completions"]
    assert counts["answered"] == counts["prompts"] > 12 and counts["failed"] == 0
    before = server.requests()
    assert before == counts["prompts"] + records["identifiers"].details["completions"]["prompts"]

    # Twelve documents more: none of the others' prompts is paid for again, in spite of new fingerprints.
    more = [*settings, "corpus.max_documents=24"]
    records = run(load_config("scratch-semantic", more), store, Silent(), "synthesis")
    assert records["synthesis"].details["completions"]["reused"] == counts["prompts"]
    new = [records[stage].details["completions"]["answered"] for stage in ("identifiers", "synthesis")]
    assert new[0] == 12 and server.requests() == before + sum(new)
    assert set(server.answered().values()) == {1}
    # How requests travel decides nothing.
    before = server.requests()
    quicker = [*more, "llm.concurrency=3", "llm.timeout_seconds=60"]
    assert run(load_config("scratch-semantic", quicker), store, Silent(), "synthesis") == records
    assert server.requests() == before


@pytest.fixture
def start_run() -> Iterator[Callable[[list[str], Path, Path], subprocess.Popen[bytes]]]:
    """Starts `genret run` up to synthesis, in a process group that is gone when the test ends."""
    started = []

    def start(settings: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
        flags = [part for setting in settings for part in ("--set", setting)]
        command = ["genret", "run", "scratch-semantic", "--run", str(folder), "--until", "synthesis", *flags]
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def kill_once_it_asked(server: ChatServer, enough: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Kill the driver alone: its actors have to notice."""
    deadline = time.monotonic() + 300
    while server.requests() < enough:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_killed_driver_goes_on_and_pays_for_no_finished_prompt_again(
    server: ChatServer,
    tiny_settings: list[str],
    tmp_path: Path,
    start_run: Callable[[list[str], Path, Path], subprocess.Popen[bytes]],
) -> None:
    server.start(latency=0.2)
    settings, slots, folder = settings_for(server, tiny_settings), 8, tmp_path / "run"
    kills = (20, 150)
    for enough in kills:
        log = tmp_path / f"{enough}.log"
        kill_once_it_asked(server, enough, start_run(settings, folder, log), log)
    kept = len(Journal(str(folder / "completions")))
    assert kept >= kills[-1] - len(kills) * slots
    last = tmp_path / "last.log"
    assert start_run(settings, folder, last).wait(timeout=300) == 0, last.read_text()
    answered = server.answered()
    assert sum(answered.values()) - len(answered) <= len(kills) * slots, "only what was under way is asked again"
    undisturbed = tmp_path / "undisturbed.log"
    assert start_run(settings, tmp_path / "undisturbed", undisturbed).wait(timeout=300) == 0, undisturbed.read_text()
    stores = RunStore(folder), RunStore(tmp_path / "undisturbed")
    for stage, name in (("identifiers", "identifiers"), ("synthesis", "queries"), ("synthesis", "preference_queries")):
        ours, theirs = (store.read_table(store.current()[stage], name) for store in stores)
        assert ours.equals(theirs), name
