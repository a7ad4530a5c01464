"""A service of the quickstart: what the README prints, typed as it stands there, and the answers of every retriever."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from service import Service, start, stop

from genret.retrieval.opening import load_retriever
from genret.runs import RunStore
from genret.serving.versions import read_config

# The quickstart's corpus and stages; trained so little that it takes a minute.
pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "README.md"
SETTINGS = (
    "sft.epochs=0.02",
    "dense.epochs=0.05",
    "retrieval.retrievers=[sft, bm25, dense, fusion]",
    "retrieval.fusion.parts=[sft, bm25, dense]",
)
NAMES = ["sft", "bm25", "dense", "fusion"]


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
    assert [one["retriever"] for one in compared["answers"]] == NAMES
    assert passage["passage_id"] == "heapq.merge"
    assert [one["name"] for one in retrievers] == NAMES
    assert "genret_requests_total" in answers[5]
    reloaded, undone, added = (json.loads(text) for text in answers[6:9])
    assert reloaded["changed"] is False
    assert "error" in undone, "there is no version to go back to yet"
    assert added["found_by"] == ["bm25", "fusion"] and set(added["not_found_by"]) == {"sft", "dense"}
    assert "error" not in answers[9]


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_run_alone_and_beside_others(service: Service, name: str) -> None:
    store, k = service.store, 10
    queries = store.read_table(store.current()["corpus"], "test_queries")["text"].to_pylist()[:64]
    retriever = load_retriever(store, store.current(), name, read_config(store).retrieval)
    expected = dict(zip(queries, retriever.retrieve(queries, k), strict=True))

    def check(query: str) -> None:
        hits = service.retrieve(query, k=k, retriever=name).json()["results"][0]["hits"]
        scores = {place.passage_id: place.score for place in expected[query]}
        assert [hit["score"] for hit in hits] == pytest.approx([place.score for place in expected[query]], abs=3e-4)
        # Passages whose scores are as good as equal may change places, at the end with one that is not among these.
        last = min(scores.values(), default=0.0)
        assert all(scores.get(hit["passage_id"], last) == pytest.approx(hit["score"], abs=3e-4) for hit in hits)

    for query in queries[:4]:
        check(query)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(check, queries))
