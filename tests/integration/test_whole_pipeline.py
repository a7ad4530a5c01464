"""All stages together on real Ray, real TRL and a real (tiny) model."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray

from genret.cluster import ActorPool
from genret.config import load_config
from genret.errors import InputError
from genret.pipeline import run
from genret.retrieval.base import retrieve_run
from genret.retrieval.opening import load_retriever
from genret.runs import RunStore, StageRecord

# Of a preset from scratch, which trains no dense retriever and mines once.
STAGES = [
    "corpus", "identifiers", "synthesis", "examples", "base", "sft", "mining", "rpo", "bm25", "retrieval", "evaluation",
    "report",
]  # fmt: skip


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
def finished(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    store = RunStore(shutil.copytree(undisturbed, tmp_path_factory.mktemp("run") / "tiny"))
    assert list(store.current()) == STAGES
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
    assert recorder.reused == STAGES


def test_a_changed_setting_redoes_what_depends_on_it(finished: RunStore, tiny_settings: list[str]) -> None:
    changed = [*tiny_settings, "evaluation.measures=[HIT@1, MRR@10]"]
    _, recorder = run_tiny("scratch-semantic", changed, Path(finished.url))
    assert recorder.ran == ["evaluation", "report"]
    _, recorder = run_tiny("scratch-semantic", tiny_settings, Path(finished.url))
    assert recorder.ran == [], "going back finds everything done"


def test_the_evaluation_tells_more_than_the_measures(finished: RunStore, tiny_settings: list[str]) -> None:
    store, recorder = run_tiny(
        "scratch-semantic", [*tiny_settings, "evaluation.slice_fields=[topic]"], Path(finished.url)
    )
    assert recorder.ran == ["evaluation", "report"]
    record = store.current()["evaluation"]
    slices = store.read_table(record, "slice_measures")
    assert set(slices["slice"].to_pylist()) >= {"(other)"}, "four queries a topic are too few"
    pairs = store.read_table(record, "significance")
    assert {tuple(row.values()) for row in pairs.select(["retriever_a", "retriever_b"]).to_pylist()} == {
        ("sft", "rpo"), ("sft", "bm25"), ("sft", "fusion"), ("rpo", "bm25"), ("rpo", "fusion"), ("bm25", "fusion"),
    }  # fmt: skip
    assert sum(store.read_table(record, "rank_moves")["n_queries"].to_pylist()) == 24
    sets = {"chunk", "sentence", "constraint", "all"}
    assert set(store.read_table(record, "win_rates")["set_a"].to_pylist()) == sets
    counts = {row["part"]: row["count"] for row in store.read_table(record, "dataset_statistics").to_pylist()}
    assert (counts["passages"], counts["test queries"]) == (60, 24)
    assert store.read_table(record, "identifier_depths")["bits"].to_pylist()[-1] == pytest.approx(math.log2(60))
    _, recorder = run_tiny("scratch-semantic", tiny_settings, Path(finished.url))
    assert recorder.ran == [], "going back finds everything done"


def test_compute_never_makes_a_stage_run_again(finished: RunStore, tiny_settings: list[str]) -> None:
    _, recorder = run_tiny("scratch-semantic", [*tiny_settings, "compute.cpu_workers=1"], Path(finished.url))
    assert recorder.ran == []


@pytest.mark.slow
def test_a_second_round_goes_on_from_the_first(finished: RunStore, tiny_settings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "twice"
    shutil.copytree(finished.url, folder)
    store, recorder = run_tiny("scratch-semantic", [*tiny_settings, "preference.rounds=2"], folder)
    assert recorder.ran == ["mining_2", "rpo_2", "retrieval", "evaluation", "report"]
    records = store.current()
    second = store.read_table(records["mining_2"], "preference_pairs")
    assert not second.equals(store.read_table(records["mining"], "preference_pairs")), "another model's false positives"
    weights = [
        (store.local_folder(records[stage], "rpo") / "model.safetensors").read_bytes() for stage in ("rpo", "rpo_2")
    ]
    assert weights[0] != weights[1]
    logs = [store.read_table(records[stage], "training_log")["stage"].unique() for stage in ("sft", "rpo", "rpo_2")]
    assert [names.to_pylist() for names in logs] == [["sft"], ["rpo"], ["rpo_2"]]
    # The retriever `rpo` is that of the second round.
    found = store.read_table(records["retrieval"], "run").filter(pc.field("retriever") == "rpo")
    queries = store.read_table(records["corpus"], "test_queries")
    retrieval = load_config("scratch-semantic", tiny_settings).retrieval
    asked = retrieve_run(load_retriever(store, records, "rpo", retrieval), queries, 10)
    assert asked.column("passage_id").equals(found.column("passage_id"))


@pytest.mark.slow
def test_without_a_generative_retriever_none_is_trained(tiny_settings: list[str], tmp_path: Path) -> None:
    settings = [
        *tiny_settings,
        *("retrieval.retrievers=[bm25, dense, fusion]", "retrieval.fusion.parts=[bm25, dense]"),
        *("dense.model={type: scratch, vocabulary_size: 500, dimensions: 32}", "dense.batch_size=16"),
    ]
    store, recorder = run_tiny("scratch-semantic", settings, tmp_path / "run")
    assert recorder.ran == [
        "corpus", "identifiers", "synthesis", "examples", "base", "bm25", "encoder", "candidates", "negatives",
        "contrastive", "dense", "embedding", "retrieval", "evaluation", "report",
    ]  # fmt: skip
    values = {
        row["retriever"]: row["value"]
        for row in store.read_table(store.current()["evaluation"], "measures").to_pylist()
        if row["measure"] == "HIT@10"
    }
    assert values.keys() == {"bm25", "dense", "fusion"}
    assert min(values.values()) > 0.9


def test_a_round_trip_drops_queries_and_says_which(
    finished: RunStore, tiny_settings: list[str], tmp_path: Path
) -> None:
    store = RunStore(shutil.copytree(finished.url, tmp_path / "copy"))
    before = store.read_table(store.current()["synthesis"], "queries")
    config = load_config("scratch-semantic", [*tiny_settings, "synthesis.round_trip_top=1"])
    records = run(config, store, Recorder(), "synthesis")
    queries, rejects = (store.read_table(records["synthesis"], name) for name in ("queries", "rejects"))
    dropped = [row["input_id"] for row in rejects.to_pylist() if row["reason"].startswith("round trip: bm25")]
    kept = queries.column("query_id").to_pylist()
    assert kept and set(kept).isdisjoint(dropped)
    assert set(before.column("query_id").to_pylist()) - set(kept) <= set(dropped)


class Watcher(Recorder):
    """Keeps which actors of the pool live when stages begin."""

    def __init__(self) -> None:
        super().__init__()
        self.living: dict[str, set[str]] = {}

    def stage_started(self, stage: str) -> None:
        super().stage_started(stage)
        if ray.is_initialized():
            actors = ray._private.state.actors().items()
            self.living[stage] = {
                name for name, actor in actors if actor["ActorClassName"] == "_Worker" and actor["State"] == "ALIVE"
            }


def test_actors_stay_from_one_text_stage_to_the_next_and_no_longer(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[str] = []
    apply = ActorPool.apply
    monkeypatch.setattr(
        ActorPool, "apply", lambda pool, function, parts: applied.append("examples") or apply(pool, function, parts)
    )
    watcher = Watcher()
    run(load_config("scratch-semantic", tiny_settings), RunStore(tmp_path / "run"), watcher, until="sft")
    assert watcher.living["synthesis"] and watcher.living["synthesis"] == watcher.living["examples"]
    assert applied == ["examples"]
    assert not watcher.living["sft"]


def test_what_a_training_worker_refuses_is_not_tried_again(
    finished: RunStore, tiny_settings: list[str], tmp_path: Path
) -> None:
    store = RunStore(shutil.copytree(finished.url, tmp_path / "copy"))
    base = store.current()["base"]
    damaged = next(path for path in store.local_folder(base, "base").rglob("*") if path.is_file())
    damaged.write_bytes(damaged.read_bytes() + b" ")
    # Were it tried again, it would be until the test's time is over.
    settings = [*tiny_settings, "sft.learning_rate=0.0002", "compute.max_failures=1000"]
    with pytest.raises(InputError, match=damaged.name):
        run(load_config("scratch-semantic", settings), store, Recorder(), "sft")


def test_query_answers_from_the_command_line(finished: RunStore) -> None:
    for retriever in ("rpo", "sft", "bm25", "fusion"):
        result = subprocess.run(
            [sys.executable, "-m", "genret", "query", finished.url, "glacier near model0x river", "-k", "3",
             "--retriever", retriever, "--json"],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["rank"] for row in rows] == [1, 2, 3][: len(rows)]
        assert rows[0]["passage_id"] == "d0"


@pytest.mark.parametrize("retriever", ["rpo", "fusion"])
def test_run_equals_what_query_returns(finished: RunStore, retriever: str) -> None:
    """Batched with others in an actor or alone in a process, fused from tables or asked: the same ranking."""
    records = finished.current()
    queries = finished.read_table(records["corpus"], "test_queries").slice(3, 1).to_pylist()[0]
    ranking: pa.Table = finished.read_table(records["retrieval"], "run")
    ours = [
        row["passage_id"]
        for row in ranking.to_pylist()
        if row["retriever"] == retriever and row["query_id"] == queries["query_id"]
    ]
    result = subprocess.run(
        [sys.executable, "-m", "genret", "query", finished.url, queries["text"], "--retriever", retriever, "--json"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert [json.loads(line)["passage_id"] for line in result.stdout.splitlines()] == ours
