"""What the README prints for a service, typed as it stands there."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from service import Service, start, stop

from genret.runs import RunStore

# The quickstart's corpus and stages; trained so little that it takes a minute.
pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "README.md"
SETTINGS = ("sft.epochs=0.02", "retrieval.retrievers=[sft, bm25, fusion]", "retrieval.fusion.parts=[sft, bm25]")


def curl_lines() -> list[str]:
    """The commands of the section on serving."""
    section = README.read_text(encoding="utf-8").split("\n## Serving\n")[1].split("\n## ")[0]
    blocks = "\n".join(re.findall(r"```\n(.*?)```", section, flags=re.DOTALL)).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if line.startswith("curl ")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("readme")
    overrides = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "genret", "run", "quickstart", "--run", str(folder / "run"), *overrides]
    subprocess.run(command, check=True)
    found = start(RunStore.open_existing(str(folder / "run")), folder)
    yield found
    stop(found)


def answer(line: str, service: Service) -> str:
    """What a line prints, asked of a service at another port."""
    printed = subprocess.run(
        ["bash", "-c", line.replace("http://127.0.0.1:8000", service.url)],
        env=os.environ | {"GENRET_ADMIN_KEY": "master"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return printed.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_line_does_what_is_said_of_it(service: Service) -> None:
    lines = curl_lines()
    assert len(lines) == 10
    answers = [answer(line, service) for line in lines]
    explained, filtered, compared, passage, retrievers = (json.loads(text) for text in answers[:5])
    assert all(hit["tokens"] for hit in explained["results"][0]["hits"])
    assert [len(result["hits"]) for result in filtered["results"]] == [10, 10]
    kinds = {hit["metadata"]["kind"] for result in filtered["results"] for hit in result["hits"]}
    assert kinds == {"function"}
    assert {one["retriever"] for one in compared["answers"]} == {"sft", "bm25", "fusion"}
    assert passage["passage_id"] == "heapq.merge"
    assert {one["name"] for one in retrievers} == {"sft", "bm25", "fusion"}
    assert "genret_requests_total" in answers[5]
    reloaded, undone, added = (json.loads(text) for text in answers[6:9])
    assert reloaded["changed"] is False
    assert "error" in undone, "there is no version to go back to yet"
    assert added["found_by"] == ["bm25", "fusion"] and set(added["not_found_by"]) == {"sft"}
    assert "error" not in answers[9]
