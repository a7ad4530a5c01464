"""The order of the stages, and which change makes which of them run again."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from genret.config import RunConfig, parse_config
from genret.errors import InputError
from genret.llm.base import Request
from genret.llm.http import HttpSender
from genret.llm.journal import Completion, JournalWriter
from genret.llm.prompts import prompt_digest, render
from genret.pipeline import STAGES, plan, planned, run, stage_fingerprint, trained
from genret.retrieval import packages
from genret.runs import RunStore, StageRecord
from genret.tables import table_from_rows

ALL = [stage.name for stage in STAGES]
SECOND_ROUND = ["mining_2", "rpo_2"]
NAMES = [name for name in ALL if name not in (*SECOND_ROUND, "lists")]
# Of no preset: its values may change. Every change below differs from the default.
DEFAULTS = """
llm: {type: extractive}
sft: {model: {type: scratch}}
dense: {model: {type: scratch}}
negatives: {source: hybrid, retriever: dense_base}
retrieval: {retrievers: [sft, rpo, bm25, dense]}
"""
HTTP = "llm={type: http, base_url: 'http://localhost:8000/v1', model: tiny}"
VLLM = "llm={type: vllm, model: tiny}"
# What each change redoes. The stages that follow by their inputs are spelled out: a lost edge must fail here.
AFTER_RETRIEVAL = {"retrieval", "evaluation", "report"}
AFTER_SFT = {"sft", "mining", "rpo"} | AFTER_RETRIEVAL
AFTER_EXAMPLES = {"examples", "base"} | AFTER_SFT
AFTER_DENSE = {"dense", "embedding"} | AFTER_RETRIEVAL
AFTER_CANDIDATES = {"candidates", "negatives", "contrastive"} | AFTER_DENSE
BEFORE_QUERIES = {"corpus", "bm25", "encoder", "base_embedding"}
EVERYTHING = BEFORE_QUERIES | {"identifiers", "synthesis"} | AFTER_EXAMPLES | AFTER_CANDIDATES
CHANGES = [
    ("name=other", {"report"}),
    ("seed=1", EVERYTHING - {"corpus", "bm25"}),
    ("corpus.unit=chunk", EVERYTHING),
    ("corpus.max_documents=3", EVERYTHING),
    ("llm.background_noise=0.1", EVERYTHING - BEFORE_QUERIES),
    ("identifiers.keywords=2", {"identifiers"} | AFTER_EXAMPLES),
    ("identifiers.type=atomic", {"identifiers"} | AFTER_EXAMPLES),
    ("synthesis.chunk_queries=3", EVERYTHING - BEFORE_QUERIES - {"identifiers"}),
    ("synthesis.preference_queries=7", EVERYTHING - BEFORE_QUERIES - {"identifiers"}),
    ("examples.mix=concat", AFTER_EXAMPLES),
    ("sft.model.layers=3", {"base"} | AFTER_SFT),
    ("sft.scoring=vocabulary", {"base"} | AFTER_SFT),
    ("sft.max_tokens=64", {"base"} | AFTER_SFT),
    ("sft.learning_rate=1e-4", AFTER_SFT),
    ("sft.epochs=3", AFTER_SFT),
    ("sft.checkpoints=9", {"report"}),
    ("mining.negatives=2", {"mining", "rpo"} | AFTER_RETRIEVAL),
    ("rpo.beta=0.1", {"rpo"} | AFTER_RETRIEVAL),
    ("rpo.checkpoints=9", {"report"}),
    ("preference.rounds=2", {"mining_2", "rpo_2"} | AFTER_RETRIEVAL),
    ("negatives.source=synthetic", AFTER_CANDIDATES),
    ("negatives.candidates=7", AFTER_CANDIDATES),
    ("negatives.queries_a_passage=1", AFTER_CANDIDATES),
    ("negatives.max_score_ratio=0.5", {"negatives", "contrastive"} | AFTER_DENSE),
    ("negatives.synthetic_share=0.1", AFTER_DENSE),
    ("negatives.adjust_share=true", AFTER_DENSE),
    ("dense.model.dimensions=64", {"encoder", "base_embedding"} | AFTER_CANDIDATES),
    ("dense.learning_rate=1e-5", AFTER_DENSE),
    ("dense.loss=debiased", AFTER_DENSE),
    ("dense.vectors=int8", {"base_embedding"} | AFTER_CANDIDATES),
    ("dense.index=lists", {"lists"} | AFTER_RETRIEVAL),
    ("dense.embedding_batch=7", {"report"}),
    ("dense.checkpoints=9", {"report"}),
    ("retrieval.probes=7", AFTER_RETRIEVAL),
    ("retrieval.k1=0.9", {"bm25"} | AFTER_CANDIDATES),
    ("retrieval.variant=okapi", {"bm25"} | AFTER_CANDIDATES),
    ("retrieval.stemming=false", {"bm25"} | AFTER_CANDIDATES),
    ("retrieval.search=exact", AFTER_RETRIEVAL),
    ("retrieval.beam=20", AFTER_RETRIEVAL),
    ("retrieval.retrievers=[rpo, bm25, dense, fusion]", AFTER_RETRIEVAL),
    ("retrieval.fusion.rank_constant=10", AFTER_RETRIEVAL),
    ("evaluation.measures=[HIT@1]", {"evaluation", "report"}),
    ("evaluation.bootstrap_samples=100", {"evaluation", "report"}),
    ("evaluation.significance_test=t", {"evaluation", "report"}),
    ("evaluation.slice_fields=[topic]", {"evaluation", "report"}),
    ("compute.cpu_workers=5", set()),
    ("compute.address=auto", set()),
    ("compute.cpus_a_training_worker=1", set()),
    ("compute.max_failures=0", set()),
    ("compute.gradient_checkpointing=true", set()),
    ("compute.zero_stage=3", set()),
    ("serving.port=8080", set()),
]


def write_corpus(folder: Path, texts: list[str]) -> Path:
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": f"d{number}", "text": text}) for number, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "a question"}\n', encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n", encoding="utf-8")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", ["one text", "another text"])


@pytest.fixture
def config_of(corpus: Path):
    def make(*overrides: str) -> RunConfig:
        return parse_config(DEFAULTS, "defaults", [f"corpus.path={corpus}", *overrides])

    return make


def marks(config: RunConfig) -> dict[str, str]:
    """The fingerprint of every stage, as a run gives them."""
    records: dict[str, StageRecord] = {}
    for stage in planned(config):
        mark = stage_fingerprint(stage, config, records)
        records[stage.name] = StageRecord(stage.name, mark, "", {}, {}, {}, {})
    return {name: record.fingerprint for name, record in records.items()}


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def stage_started(self, stage: str) -> None:
        self.seen.append(("started", stage))

    def progress(self, stage: str, done: int, total: int, unit: str, note: str) -> None:
        raise AssertionError("these stages report no progress")

    def stage_finished(self, record: StageRecord, reused: bool) -> None:
        self.seen.append(("reused" if reused else "finished", record.stage))


# --- the plan ---


def test_a_plan_counts_what_a_language_model_would_be_asked_and_asks_nothing(config_of, tmp_path: Path) -> None:
    config = config_of(HTTP, "synthesis.sentence_queries=0", "llm.price_of_prompts=1000000")
    store, recorder = RunStore(tmp_path / "run"), Recorder()
    budget = plan(config, store, recorder)
    assert budget is not None
    assert {share.kind: share.sent for share in budget.shares} == {
        "keywords": 2, "preference": 2, "chunk": 2, "negative": 2 * config.negatives.queries_a_passage,
    }  # fmt: skip
    assert budget.expected.price == budget.total.prompt_tokens > 0
    assert recorder.seen == [("started", "corpus"), ("finished", "corpus")]
    assert plan(config, store, recorder, "identifiers").total.prompts == 2
    assert plan(config_of(), store, recorder) is None, "no language model"
    assert plan(config, store, recorder, "corpus") is None, "no stage that asks"


def test_a_plan_foresees_the_negatives_that_are_written(config_of, tmp_path: Path) -> None:
    wanted = (HTTP, "synthesis.sentence_queries=0", "synthesis.chunk_queries=3", "retrieval.retrievers=[sft, dense]")
    store, recorder = RunStore(tmp_path / "run"), Recorder()

    def foreseen(*overrides: str) -> dict[str, int]:
        budget = plan(config_of(*wanted, *overrides), store, recorder)
        assert budget is not None
        return {share.kind: share.sent for share in budget.shares}

    assert foreseen("negatives.source=synthetic")["negative"] == 2 * 3
    assert foreseen("negatives.source=synthetic", "negatives.queries_a_passage=2")["negative"] == 2 * 2
    assert foreseen("negatives.source=synthetic", "negatives.queries_a_passage=0")["negative"] == 2 * 3
    assert "negative" not in foreseen("negatives.source=retrieved")
    assert "negative" not in foreseen("negatives.source=synthetic", "dense.epochs=0")


def test_a_plan_leaves_out_what_is_kept_and_what_is_done(config_of, tmp_path: Path) -> None:
    config = config_of(
        HTTP, "synthesis.sentence_queries=0", "synthesis.preference_queries=0", "identifiers.type=atomic",
        "retrieval.retrievers=[sft, bm25]",
    )  # fmt: skip
    store, recorder = RunStore(tmp_path / "run"), Recorder()
    before = plan(config, store, recorder)
    assert {share.kind: share.prompts for share in before.shares} == {"chunk": 2}
    request = Request("d0|chunk", "chunk", config.synthesis.chunk_queries, "", "one text")
    sender = HttpSender(config.llm, config.seed, config.compute)
    writer = JournalWriter(store.shared_folder("completions"), "s")
    name = prompt_digest(render(request, sender.form), sender.model, sender.sampling)
    writer.append(Completion(name, "- What is one text?"))
    writer.close()
    assert plan(config, store, recorder).total.kept == 1
    records = run(config, store, recorder, "corpus")
    (stage,) = (stage for stage in STAGES if stage.name == "synthesis")
    store.begin("synthesis", stage_fingerprint(stage, config, records)).commit({"seconds": 1.0})
    assert plan(config, store, recorder) is not None, "identifiers are not done"
    (stage,) = (stage for stage in STAGES if stage.name == "identifiers")
    store.begin("identifiers", stage_fingerprint(stage, config, records)).commit({"seconds": 1.0})
    assert plan(config, store, recorder) is None


def test_a_plan_leaves_out_negatives_that_are_kept_where_their_queries_are_there(config_of, tmp_path: Path) -> None:
    config = config_of(
        HTTP, "synthesis.sentence_queries=0", "identifiers.type=atomic", "retrieval.retrievers=[dense]",
        "negatives={source: synthetic, retriever: bm25, count: 2}",
    )  # fmt: skip
    store = RunStore(tmp_path / "run")
    records = run(config, store, Recorder(), "corpus")
    names = [row["passage_id"] for row in store.read_table(records["corpus"], "passages").to_pylist()]
    queries = [
        {"query_id": f"q{n}", "passage_id": names[0], "text": f"query {n}", "kind": "chunk", "generator": "g"}
        for n in range(3)
    ]
    ranking = [
        {"query_id": "q0", "passage_id": names[place], "rank": place + 1, "score": 2.0 - place, "retriever": "bm25"}
        for place in (0, 1)
    ]
    written = {"queries": table_from_rows("queries", queries), "run": table_from_rows("run", ranking)}
    for stage in planned(config, "candidates")[1:]:
        writer = store.begin(stage.name, stage_fingerprint(stage, config, records))
        for name, table in written.items() if stage.name == "candidates" else ():
            writer.write_table(name, table)
        records[stage.name] = writer.commit({"seconds": 1.0})

    def shares() -> dict[str, tuple[int, int]]:
        return {share.kind: (share.prompts, share.kept) for share in plan(config, store, Recorder()).shares}

    assert shares() == {"negative": (3, 0)}, "as many as there are queries"
    sender = HttpSender(config.llm, config.seed, config.compute)
    request = Request("q0|negative", "negative", 2, "", "one text", related=("another text",), query="query 0")
    writer = JournalWriter(store.shared_folder("completions"), "s")
    writer.append(Completion(prompt_digest(render(request, sender.form), sender.model, sender.sampling), "- no"))
    writer.close()
    assert shares() == {"negative": (3, 1)}


def test_a_plan_leaves_the_run_as_it_was(config_of, tmp_path: Path) -> None:
    store, files = RunStore(tmp_path / "run"), [tmp_path / "run" / name for name in ("run.json", "config.yaml")]
    run(config_of(), store, Recorder(), "corpus")
    write_records(store, config_of())
    before = [path.read_bytes() for path in files]
    plan(config_of(HTTP, "corpus.max_documents=1"), store, Recorder())
    plan(config_of(HTTP), store, Recorder())
    assert [path.read_bytes() for path in files] == before
    assert list(store.current()) == NAMES


def test_a_plan_makes_no_run_but_reads_the_corpus_for_it(config_of, tmp_path: Path) -> None:
    store, recorder = RunStore(tmp_path / "run"), Recorder()
    plan(config_of(HTTP), store, recorder)
    with pytest.raises(InputError, match=r"no run at .*; expected run.json"):
        RunStore.open_existing(tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
    run(config_of(HTTP), store, recorder, "corpus")
    assert recorder.seen == [("started", "corpus"), ("finished", "corpus"), ("reused", "corpus")]


# --- the order ---


def test_every_stage_comes_after_its_inputs() -> None:
    assert len(set(ALL)) == len(ALL)
    for number, stage in enumerate(STAGES):
        assert set(stage.inputs) <= set(ALL[:number]), stage.name


def test_planned_stops_after_a_stage(config_of) -> None:
    assert [stage.name for stage in planned(config_of())] == NAMES
    assert [stage.name for stage in planned(config_of(), "synthesis")] == ["corpus", "identifiers", "synthesis"]


def test_no_preference_queries_no_preference_learning(config_of) -> None:
    config = config_of("synthesis.preference_queries=0", "retrieval.retrievers=[sft, bm25]")
    assert [stage.name for stage in planned(config)] == [
        name
        for name in NAMES
        if name not in {"mining", "rpo", "encoder", "base_embedding"} | (AFTER_CANDIDATES - AFTER_RETRIEVAL)
    ]
    with pytest.raises(InputError, match=r"stage: expected one of .*'sft'.* under this configuration, found 'rpo'"):
        planned(config, "rpo")


# --- what is redone ---


@pytest.mark.parametrize(("change", "redone"), CHANGES, ids=[change for change, _ in CHANGES])
def test_a_change_redoes_what_depends_on_it(config_of, change: str, redone: set[str]) -> None:
    before, after = marks(config_of()), marks(config_of(change))
    assert {name for name in after if before.get(name) != after[name]} == redone


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ("model=larger", EVERYTHING - BEFORE_QUERIES),
        ("temperature=0.1", EVERYTHING - BEFORE_QUERIES),
        ("extra_body.top_k=20", EVERYTHING - BEFORE_QUERIES),
        ("structured=none", EVERYTHING - BEFORE_QUERIES),
        # How requests travel decides nothing; the report shows the configuration.
        ("base_url='http://elsewhere/v1'", {"report"}),
        ("api_key_variable=OTHER_KEY", {"report"}),
        ("concurrency=3", {"report"}),
        ("requests_per_minute=3", {"report"}),
        ("tokens_per_minute=3", {"report"}),
        ("timeout_seconds=3", {"report"}),
        ("max_attempts=3", {"report"}),
        ("give_up_seconds=3", {"report"}),
        ("token_limit_field=max_completion_tokens", {"report"}),
    ],
)
def test_of_a_server_the_model_counts_and_the_way_to_it_does_not(config_of, change: str, redone: set[str]) -> None:
    before, after = marks(config_of(HTTP)), marks(config_of(HTTP, f"llm.{change}"))
    assert {name for name in NAMES if before[name] != after[name]} == redone


def test_how_long_a_prompt_may_be_decides_what_is_written(config_of) -> None:
    before, after = (marks(config_of(VLLM, f"llm.max_model_len={most}")) for most in (512, 8192))
    assert {name for name in NAMES if before[name] != after[name]} == EVERYTHING - BEFORE_QUERIES


def test_the_table_of_changes_has_every_section() -> None:
    assert {change.partition("=")[0].partition(".")[0] for change, _ in CHANGES} == set(RunConfig.model_fields)


# These name what is read, or say which stages there are: other tests change them.
READ = (
    *("corpus.type", "corpus.path", "corpus.split", "corpus.train_split", "sft.model", "preference.rounds"),
    *("dense.model", "dense.index", "negatives.source", "negatives.retriever"),
)
# These say how the work is done and not what comes of it: the report shows them, no other stage reads them.
INCIDENTAL = {
    *("corpus.queries_path", "corpus.qrels_path"),
    *("sft.validation_queries", "sft.checkpoints", "rpo.checkpoints", "dense.checkpoints", "dense.embedding_batch"),
    *("llm.base_url", "llm.api_key_variable", "llm.token_limit_field", "llm.concurrency", "llm.requests_per_minute"),
    *("llm.tokens_per_minute", "llm.timeout_seconds", "llm.max_attempts", "llm.give_up_seconds", "llm.tokenizer"),
    *("llm.price_of_prompts", "llm.price_of_answers", "llm.tokens_a_second", "llm.price_an_hour"),
    *("llm.min_replicas", "llm.max_replicas", "llm.tensor_parallel_size", "llm.gpus_a_worker", "llm.cpus_a_worker"),
    *("llm.kv_cache_gib", "llm.engine_arguments", "llm.batch_size", "llm.max_concurrent_batches"),
}


def other_value(value: object) -> object:
    """A value of the same kind; it need not be a legal one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, dict):
        return value | {"x": 1}
    return f"{value}x" if isinstance(value, str) else (*value, "x")


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    ("section", "changes"),
    [(name, ()) for name in RunConfig.model_fields if name not in ("name", "seed")]
    + [("llm", (HTTP,)), ("llm", (VLLM,))],
)
def test_every_field_counts_of_every_section_that_a_stage_reads(
    config_of, section: str, changes: tuple[str, ...]
) -> None:
    config = config_of(*changes)
    before, part = marks(config), getattr(config, section)
    for field in type(part).model_fields:
        if f"{section}.{field}" in READ:
            continue
        changed = part.model_copy(update={field: other_value(getattr(part, field))})
        after = marks(config.model_copy(update={section: changed}))
        if section in ("compute", "serving"):
            assert after == before, field
        elif f"{section}.{field}" in INCIDENTAL:
            assert {name for name in NAMES if before[name] != after[name]} == {"report"}, field
        else:
            assert {name for name in NAMES if before[name] != after[name]} > {"report"}, field


def test_the_content_of_the_corpus_decides_not_its_place(config_of, corpus: Path, tmp_path: Path) -> None:
    before = marks(config_of())
    moved = corpus.rename(tmp_path / "moved")
    after = marks(config_of(f"corpus.path={moved}"))
    assert {name for name in NAMES if before[name] != after[name]} == {"report"}  # it shows the configuration
    with (moved / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"_id": "new", "text": "more"}')
    after = marks(config_of(f"corpus.path={moved}"))
    assert all(before[name] != after[name] for name in NAMES)


def test_moved_judgements_are_the_same_corpus(corpus: Path, tmp_path: Path) -> None:
    def config() -> RunConfig:
        settings = {"type": "jsonl", "path": corpus / "corpus.jsonl", "queries_path": queries, "qrels_path": qrels}
        return parse_config(DEFAULTS, "defaults", [f"corpus.{name}={value}" for name, value in settings.items()])

    queries, qrels = corpus / "queries.jsonl", corpus / "qrels" / "test.tsv"
    before = marks(config())
    queries, qrels = queries.rename(tmp_path / "q.jsonl"), qrels.rename(tmp_path / "r.tsv")
    assert marks(config())["corpus"] == before["corpus"]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "bge-small-en"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json"):
        (folder / name).write_text(name, encoding="utf-8")
    return folder


def redone_with(config_of, before: Path, after: Path) -> set[str]:
    """What is done anew with the models of another folder, beside the report, which shows where they are."""
    found = [
        marks(config_of(*(f"{section}.model={{type: pretrained, name: {place}}}" for section in ("sft", "dense"))))
        for place in (before, after)
    ]
    return {name for name in found[0] if found[0][name] != found[1][name]} - {"report"}


def test_the_content_of_a_models_folder_decides_not_its_place(config_of, model_folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(model_folder, tmp_path / "moved" / model_folder.name)
    (moved / ".cache").mkdir()
    (moved / ".cache" / "download").write_text("yesterday", encoding="utf-8")
    assert redone_with(config_of, model_folder, moved) == set()
    dense = {"base_embedding"} | AFTER_CANDIDATES - {"report"}
    for name in ("model.safetensors", "1_Pooling/config.json"):
        changed = shutil.copytree(model_folder, tmp_path / name[0] / model_folder.name)
        content = (changed / name).read_bytes()
        (changed / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert redone_with(config_of, model_folder, changed) == {"base"} | AFTER_SFT - {"report"} | dense
    # Whose encoder it is stands in the folder's name.
    renamed = shutil.copytree(model_folder, tmp_path / "moved" / "mine")
    assert redone_with(config_of, model_folder, renamed) == dense


def test_another_model_in_the_same_folder_is_seen(config_of, model_folder: Path) -> None:
    config = config_of(f"sft.model={{type: pretrained, name: {model_folder}}}")
    before = marks(config)
    (model_folder / "model.safetensors").write_text("longer than it was", encoding="utf-8")
    after = marks(config)
    assert {name for name in NAMES if before[name] != after[name]} == {"base"} | AFTER_SFT


def test_what_the_dense_retriever_needs_depends_on_how_it_is_trained(config_of) -> None:
    def stages(*changes: str) -> set[str]:
        return {stage.name for stage in planned(config_of(*changes))} & (BEFORE_QUERIES | AFTER_CANDIDATES)

    everything = BEFORE_QUERIES | AFTER_CANDIDATES
    assert stages("negatives.retriever=bm25") == everything - {"base_embedding"}
    assert stages("negatives.source=retrieved") == everything - {"negatives"}
    assert stages("negatives.source=none") == everything - {"negatives", "base_embedding"}
    untrained = {"candidates", "negatives", "contrastive", "dense", "base_embedding"}
    assert stages("dense.epochs=0") == everything - untrained
    pretrained = ["dense.epochs=0", "dense.model={type: pretrained, name: some/model}"]
    assert stages(*pretrained) == everything - untrained - {"encoder"}


def test_leaving_preference_learning_out_keeps_what_was_before_it(config_of) -> None:
    without = config_of("synthesis.preference_queries=0", "retrieval.retrievers=[sft, bm25]")
    before, after = marks(config_of()), marks(without)
    assert {name for name in after if before[name] == after[name]} == {"corpus", "identifiers", "bm25"}


@pytest.mark.parametrize(
    ("retrievers", "trained"),
    [
        ("[bm25]", set()),
        ("[dense, bm25]", {"dense"}),
        ("[sft, bm25]", {"sft"}),
        ("[rpo]", {"sft", "mining", "rpo"}),
        ("[sft, rpo, dense]", {"sft", "mining", "rpo", "dense"}),
    ],
)
def test_only_what_is_compared_is_trained(config_of, retrievers: str, trained: set[str]) -> None:
    change = f"retrieval.retrievers={retrievers}"
    stages = {stage.name for stage in planned(config_of(change))}
    assert stages & {"sft", "mining", "rpo", "dense"} == trained
    # What is left is done as it would be beside the others.
    before, after = marks(config_of()), marks(config_of(change))
    assert {name for name in after if before[name] != after[name]} == AFTER_RETRIEVAL


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        (["retrieval.retrievers=[bm25]"], []),
        (["retrieval.retrievers=[sft]"], ["sft"]),
        (["retrieval.retrievers=[bm25, dense]"], ["dense"]),
        (["retrieval.retrievers=[dense, rpo]"], ["sft", "rpo", "dense"]),
        (["retrieval.retrievers=[rpo]", "preference.rounds=2"], ["sft", "rpo", "rpo_2"]),
        (["retrieval.retrievers=[rpo, dense]", "dense.epochs=0"], ["sft", "rpo"]),
    ],
)
def test_the_stages_that_train_are_told(config_of, settings: list[str], stages: list[str]) -> None:
    assert trained(config_of(*settings)) == stages


def test_a_second_round_needs_a_first_one(config_of) -> None:
    stages = [stage.name for stage in planned(config_of("preference.rounds=2", "retrieval.retrievers=[sft, bm25]"))]
    assert not {"mining", "rpo", *SECOND_ROUND} & set(stages)


# --- running ---


def test_a_stage_is_run_once(config_of, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    recorder = Recorder()
    records = run(config_of(), store, recorder, "corpus")
    assert list(records) == ["corpus"]
    assert store.read_table(records["corpus"], "passages").column("text").to_pylist() == ["one text", "another text"]
    assert records["corpus"].details["seed"] == 0
    assert set(records["corpus"].details["versions"]) >= {"python", "genret", "ray", "torch"}
    run(config_of("compute.cpu_workers=7"), store, recorder, "corpus")
    assert recorder.seen == [("started", "corpus"), ("finished", "corpus"), ("reused", "corpus")]


def test_a_failed_stage_leaves_the_run_as_it_was(config_of, corpus: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    run(config_of(), store, Recorder(), "corpus")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (corpus / "corpus.jsonl").write_text('{"_id": "d0", "text": 5}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"corpus.jsonl, line 1, field 'text': expected text, found 5"):
        run(config_of("name=other"), store, Recorder(), "corpus")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_an_empty_path_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus.path: a corpus of type beir needs a path, found none"):
        run(parse_config(DEFAULTS, "defaults"), RunStore(tmp_path / "run"), Recorder(), "corpus")
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named_before_anything_is_written(config_of, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    lists = "dense.index=lists"
    for until in ("lists", None):
        with pytest.raises(InputError, match=r"dense\.index: lists needs the package faiss, found none"):
            run(config_of(lists), RunStore(tmp_path / "run"), Recorder(), until)
    assert not (tmp_path / "run").exists()


def test_a_package_is_asked_for_by_who_needs_it(config_of, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    lists = "dense.index=lists"
    assert list(run(config_of(lists), RunStore(tmp_path / "run"), Recorder(), "corpus")) == ["corpus"]
    made = RunStore(tmp_path / "made")
    write_records(made, config_of(lists))
    assert "embedding" in run(config_of(lists), made, Recorder(), "embedding")
    config = config_of(lists, "retrieval.retrievers=[bm25]")
    store = RunStore(tmp_path / "other")
    write_records(store, config)
    assert "report" in run(config, store, Recorder())


def write_records(store: RunStore, config: RunConfig) -> None:
    """A run that is finished, of stages without any output."""
    records: dict[str, StageRecord] = {}
    for stage in planned(config):
        writer = store.begin(stage.name, stage_fingerprint(stage, config, records))
        records[stage.name] = writer.commit({"seconds": 1.0})
    store.set_current({name: record.fingerprint for name, record in records.items()})


def test_asking_for_the_first_stages_forgets_none_that_are_done(config_of, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    write_records(store, config_of())
    recorder = Recorder()
    run(config_of(), store, recorder, "identifiers")
    assert recorder.seen == [("reused", "corpus"), ("reused", "identifiers")]
    assert list(store.current()) == NAMES


def test_a_change_forgets_what_depends_on_it(config_of, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    write_records(store, config_of())
    run(config_of("rpo.beta=0.1"), store, Recorder(), "identifiers")
    assert list(store.current()) == [name for name in NAMES if name not in {"rpo"} | AFTER_RETRIEVAL]
    run(config_of(), store, Recorder(), "identifiers")
    assert list(store.current()) == NAMES, "going back finds everything done"


def test_what_a_killed_run_left_is_swept(config_of, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "tables" / "qrels"
    folder.mkdir(parents=True)
    old = folder / "corpus-0123456789abcdef-20200101T000000-01234567.parquet"
    old.write_bytes(b"half")
    run(config_of(), RunStore(tmp_path / "run"), Recorder(), "corpus")
    assert not old.exists()
    assert len(list(folder.iterdir())) == 1


def test_rejected_documents_are_counted(config_of, corpus: Path, tmp_path: Path) -> None:
    with (corpus / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"_id": "empty", "text": " "}')
    store = RunStore(tmp_path / "run")
    records = run(config_of(), store, Recorder(), "corpus")
    rejects: pa.Table = store.read_table(records["corpus"], "rejects")
    assert rejects.column("reason").to_pylist() == [
        f"{corpus}/corpus.jsonl, line 3: expected a text or a title, found none"
    ]
