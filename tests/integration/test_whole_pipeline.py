"""All stages together on real Ray, real TRL and a real (tiny) model."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from genret.config import load_config
from genret.pipeline import STAGES, run
from genret.runs import RunStore, StageRecord


class Recorder:
    """Keeps which stages ran and which were done before."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.reused: list[str] = []

    def stage_started(self, stage: str) -> None:
        self.ran.append(stage)

    def progress(self, stage: str, done: int, total: int, unit: str, note: str) -> None:
        assert done >= 0 and total > 0

    def stage_finished(self, record: StageRecord, reused: bool) -> None:
        if reused:
            self.reused.append(record.stage)


def run_tiny(preset: str, settings: list[str], folder: Path) -> tuple[RunStore, Recorder]:
    recorder, store = Recorder(), RunStore(folder)
    run(load_config(preset, settings), store, recorder)
    return store, recorder


@pytest.fixture(scope="module")
def finished(tiny_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    store, recorder = run_tiny("scratch-semantic", tiny_settings, tmp_path_factory.mktemp("run") / "tiny")
    assert recorder.ran == [stage.name for stage in STAGES]
    return store


def test_every_query_gets_only_passages_of_the_corpus(finished: RunStore) -> None:
    records = finished.current()
    ranking = finished.read_table(records["retrieval"], "run")
    known = set(finished.read_table(records["corpus"], "passages").column("passage_id").to_pylist())
    assert set(ranking.column("passage_id").to_pylist()) <= known
    generative = ranking.filter(pc.equal(ranking["retriever"], "rpo"))
    counts = generative.group_by("query_id").aggregate([("rank", "count")])
    assert counts.num_rows == 24
    assert set(counts["rank_count"].to_pylist()) == {10}


def test_the_generative_retriever_learned_the_corpus(finished: RunStore) -> None:
    measures = finished.read_table(finished.current()["evaluation"], "measures").to_pylist()
    values = {(row["retriever"], row["measure"]): row["value"] for row in measures}
    assert values["sft", "HIT@10"] > 0.5  # a guess finds 10 of 60
    assert values["bm25", "HIT@1"] == 1.0


def test_queries_of_both_stages_differ(finished: RunStore) -> None:
    record = finished.current()["synthesis"]
    ours = {(row["passage_id"], row["text"].casefold()) for row in finished.read_table(record, "queries").to_pylist()}
    theirs = {
        (row["passage_id"], row["text"].casefold())
        for row in finished.read_table(record, "preference_queries").to_pylist()
    }
    assert ours and theirs and not ours & theirs


def test_the_files_a_person_wants_are_there(finished: RunStore) -> None:
    folder = Path(finished.url)
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert len((folder / "qrels.trec").read_text().splitlines()) == 24
    assert len((folder / "bm25.trec").read_text().splitlines()) > 0
    assert "name: tiny" in (folder / "config.yaml").read_text(encoding="utf-8")


def test_a_second_run_does_nothing(finished: RunStore, tiny_settings: list[str]) -> None:
    _, recorder = run_tiny("scratch-semantic", tiny_settings, Path(finished.url))
    assert recorder.ran == []
    assert len(recorder.reused) == len(STAGES)


def test_a_changed_setting_redoes_what_depends_on_it(finished: RunStore, tiny_settings: list[str]) -> None:
    changed = [*tiny_settings, "evaluation.measures=[HIT@1, MRR@10]"]
    _, recorder = run_tiny("scratch-semantic", changed, Path(finished.url))
    assert recorder.ran == ["evaluation", "report"]
    _, recorder = run_tiny("scratch-semantic", tiny_settings, Path(finished.url))
    assert recorder.ran == [], "going back finds everything done"


def test_compute_never_makes_a_stage_run_again(finished: RunStore, tiny_settings: list[str]) -> None:
    _, recorder = run_tiny("scratch-semantic", [*tiny_settings, "compute.cpu_workers=1"], Path(finished.url))
    assert recorder.ran == []


def test_query_answers_from_the_command_line(finished: RunStore) -> None:
    for retriever in ("rpo", "sft", "bm25"):
        result = subprocess.run(
            [sys.executable, "-m", "genret", "query", finished.url, "glacier near model0x river", "-k", "3",
             "--retriever", retriever, "--json"],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["rank"] for row in rows] == [1, 2, 3][: len(rows)]
        assert rows[0]["passage_id"] == "d0"


def test_run_equals_what_query_returns(finished: RunStore) -> None:
    """Batched with others in an actor or alone in a process: the same ranking."""
    records = finished.current()
    queries = finished.read_table(records["corpus"], "test_queries").slice(3, 1).to_pylist()[0]
    ranking: pa.Table = finished.read_table(records["retrieval"], "run")
    ours = [
        row["passage_id"]
        for row in ranking.to_pylist()
        if row["retriever"] == "rpo" and row["query_id"] == queries["query_id"]
    ]
    result = subprocess.run(
        [sys.executable, "-m", "genret", "query", finished.url, queries["text"], "--json"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert [json.loads(line)["passage_id"] for line in result.stdout.splitlines()] == ours
