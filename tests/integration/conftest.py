"""A small corpus in the BEIR layout, and settings with which the whole pipeline takes seconds."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from service import free_port

TOPICS = {
    "river": "water flood bridge boat fish current bank delta glacier stream",
    "oven": "bread dough flour yeast bake crust cake sugar butter loaf",
    "train": "rail station ticket platform engine carriage signal freight track timetable",
    "garden": "tomato soil seed compost bee flower hedge mulch harvest spade",
    "piano": "sonata chord melody pedal octave concert tempo keyboard tuner recital",
    "moon": "crater orbit eclipse tide lunar rocket probe dust phase landing",
}

SETTINGS = [
    "name=tiny",
    "synthesis.chunk_queries=4",
    "synthesis.sentence_queries=1",
    "synthesis.constraint_queries=1",
    "synthesis.constraint_fields=[topic]",
    "synthesis.preference_queries=2",
    "examples.context_share=0.2",
    "sft.model.vocabulary_size=500",
    "sft.model.hidden_size=64",
    "sft.model.intermediate_size=64",
    "sft.model.layers=1",
    "sft.model.heads=2",
    "sft.epochs=4",
    "sft.batch_size=32",
    "sft.micro_batch_size=32",
    "sft.checkpoints=6",
    "sft.max_tokens=48",
    "rpo.batch_size=8",
    "rpo.micro_batch_size=8",
    "rpo.learning_rate=1e-4",
    "compute.cpus_a_training_worker=1",
]


def write_beir(folder: Path, documents: int = 60, queries: int = 24) -> Path:
    """A corpus of generated sentences, each document with words of its topic and one word of its own."""
    rng = random.Random(7)
    (folder / "qrels").mkdir(parents=True)
    corpus, asked, judged = [], [], ["query-id\tcorpus-id\tscore"]
    for number in range(documents):
        topic = list(TOPICS)[number % len(TOPICS)]
        words = TOPICS[topic].split()
        own = f"model{number}x"
        sentences = [f"The {topic} has a {' and a '.join(rng.sample(words, 3))} near the {own}." for _ in range(3)]
        corpus.append(
            {"_id": f"d{number}", "title": f"{topic} {own}", "text": " ".join(sentences), "metadata": {"topic": topic}}
        )
        if number < queries:
            asked.append({"_id": f"q{number}", "text": f"what {rng.choice(words)} is near the {own} {topic}"})
            judged.append(f"q{number}\td{number}\t1")
    for name, rows in (("corpus", corpus), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("\n".join(judged) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def beir_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents on six topics, with 24 queries."""
    return write_beir(tmp_path_factory.mktemp("beir") / "corpus")


@pytest.fixture(scope="session")
def tiny_settings(beir_folder: Path) -> list[str]:
    """Overrides of a preset with which the pipeline runs in seconds."""
    return [f"corpus.path={beir_folder}", *SETTINGS]


@pytest.fixture(scope="session")
def undisturbed(tiny_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with these settings, made by the command, to compare others with: whoever changes it takes a copy."""
    folder = tmp_path_factory.mktemp("undisturbed") / "tiny"
    flags = [part for setting in tiny_settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "genret", "run", "scratch-semantic", "--run", str(folder), *flags]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return folder


@pytest.fixture(scope="session")
def deepspeed() -> None:
    """Tests that ask for this are skipped where DeepSpeed is not installed, but not in CI."""
    if find_spec("deepspeed") is None:
        reason = "DeepSpeed is not installed (make test installs it: genret[test])"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def s3_environment() -> Iterator[dict[str, str]]:
    """An environment in which s3:// is a server on this machine, with a bucket named `bucket`."""
    boto3, server_module = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    patch = pytest.MonkeyPatch()
    for name, value in keys.items():
        patch.setenv(name, value)
    boto3.client("s3", endpoint_url=keys["AWS_ENDPOINT_URL"]).create_bucket(Bucket="bucket")
    try:
        yield os.environ | keys
    finally:
        patch.undo()
        server.stop()


@pytest.fixture
def ray_head() -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head with a job server: its address, and an environment with the token that it asks for."""
    ray_command = str(Path(sys.executable).parent / "ray")
    port, dashboard = free_port(), free_port()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Or its end waits half a minute for work to leave a node that is the only one.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    head = subprocess.Popen(
        [ray_command, "start", "--head", "--block", "--port", str(port), "--num-cpus", "2",
         "--include-dashboard", "true", "--dashboard-port", str(dashboard), "--dashboard-host", "127.0.0.1",
         "--dashboard-agent-listen-port", str(free_port()), "--node-ip-address", "127.0.0.1"],
        env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_answers(f"{address}/api/version", head)
        yield address, environment
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(timeout=60)


def _wait_until_answers(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the Ray head ended by itself"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError as error:
            if getattr(error, "code", 0) in (401, 403):  # it answers, and wants a token
                return
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer")
