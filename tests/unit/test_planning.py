"""What a run will take, beside what the stages themselves make and what can be counted by hand."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genret import planning
from genret.config import ExamplesConfig, RunConfig, SftConfig, load_config, resolved_yaml
from genret.errors import InputError
from genret.examples.sft import build_sft_examples, row_counts
from genret.llm.completion import Counts
from genret.pipeline import STAGES, planned
from genret.placement import NodeGroup
from genret.planning import (
    CorpusSize,
    assume_corpus,
    measure_corpus,
    measured_rates,
    model_size,
    plan,
)
from genret.rates import RATES, UNITS
from genret.runs import RunStore, StageRecord
from genret.stages.texts import ROWS_FOR_ACTORS
from genret.tables import passages_to_table, table_from_rows
from genret.types import Passage

SIZE = CorpusSize(passages=1000, words=50.0, queries=8.0, contexts=1.0, preference=2.0, test_queries=100)


def by_stage(config: RunConfig, **more: object) -> dict:
    return {item.stage: item for item in plan(config, SIZE, **more)}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 40), st.integers(0, 20), st.floats(0.05, 0.95), st.sampled_from(["interleave", "concat"]))
def test_rows_of_training_are_those_that_the_stage_makes(queries: int, contexts: int, share: float, mix: str) -> None:
    config = ExamplesConfig(mix=mix, context_share=share)
    passages = table_from_rows(
        "passages",
        ({"passage_id": f"p{n}", "doc_id": "d", "title": "", "text": "a b", "metadata": "{}"} for n in range(contexts)),
    )
    ids = [{"passage_id": f"p{n}", "identifier": str(n), "source": "llm"} for n in range(max(contexts, 1))]
    asked = [
        {"query_id": str(n), "passage_id": "p0", "text": "q", "kind": "chunk", "generator": "g"} for n in range(queries)
    ]
    made = build_sft_examples(
        config, passages, table_from_rows("identifiers", ids), table_from_rows("queries", asked), seed=0
    )
    kinds = [kind for part in made.parts for kind in part.column("kind").to_pylist()]
    assert (kinds.count("query2id"), kinds.count("context2id")) == row_counts(config, queries, contexts)


@pytest.mark.parametrize("kind", ["semantic", "atomic"])
def test_parameters_of_a_model_from_scratch_are_counted_exactly(make_bundle, passages: pa.Table, kind: str) -> None:
    bundle = make_bundle(kind)
    config = bundle.model.config
    assumed = RunConfig(
        identifiers={"type": kind},
        sft=SftConfig(
            model={
                "type": "scratch",
                "vocabulary_size": max(300, config.vocab_size - (passages.num_rows if kind == "atomic" else 0)),
                "hidden_size": config.hidden_size,
                "intermediate_size": config.intermediate_size,
                "layers": config.num_hidden_layers,
                "heads": config.num_attention_heads,
            }
        ),
    )
    found = model_size(assumed, passages.num_rows).parameters
    surplus = 2 * config.hidden_size * (assumed.sft.model.vocabulary_size - config.vocab_size)
    surplus += 2 * config.hidden_size * (passages.num_rows if kind == "atomic" else 0)
    assert found - surplus == sum(weight.numel() for weight in bundle.model.parameters())


def test_a_pretrained_model_tells_its_size_by_its_name_or_somebody_must() -> None:
    def pretrained(name: str) -> RunConfig:
        return RunConfig(sft=SftConfig(model={"type": "pretrained", "name": name}, scoring="vocabulary"))

    assert model_size(pretrained("mistralai/Mistral-7B-v0.3"), 10).blocks == 7e9
    assert model_size(pretrained("Qwen/Qwen2.5-0.5B"), 10).blocks == 5e8
    with pytest.raises(InputError, match="--parameters"):
        model_size(pretrained("some/model"), 10)
    assert model_size(pretrained("some/model"), 10, 3e9).blocks == 3e9


def test_a_corpus_at_hand_is_measured_as_it_is(passages: pa.Table) -> None:
    config = load_config("scratch-semantic", [])
    size = measure_corpus(config, passages, 3)
    assert (size.passages, size.test_queries) == (passages.num_rows, 3)
    sentences = passages.num_rows  # each has one, long enough for a query of its own
    assert size.queries == config.synthesis.chunk_queries + config.synthesis.sentence_queries * sentences / len(
        passages
    )
    assert size.preference == config.synthesis.preference_queries
    assert size.contexts == 1.0
    with pytest.raises(InputError, match="expected a corpus with passages"):
        measure_corpus(config, passages.slice(0, 0), 3)


def test_twice_the_corpus_takes_twice_the_training() -> None:
    config = load_config("scratch-semantic", [])
    # More than there are tokens: a node has no more children then.
    sizes = [assume_corpus(config, n, 100.0, 50) for n in (30_000, 60_000)]
    small, large = ({item.stage: item for item in plan(config, size)} for size in sizes)
    assert large["sft"].work == pytest.approx(2 * small["sft"].work, rel=1e-3)
    assert large["examples"].rows == pytest.approx(2 * small["examples"].rows, rel=1e-3)


HTTP = "llm={type: http, base_url: 'http://localhost:1/v1', model: m}"
DENSE = "retrieval.retrievers=[sft, dense]"


def records_of(seconds: dict[str, float], **details: dict[str, Any]) -> dict[str, StageRecord]:
    return {
        stage: StageRecord(stage, "f", "", {}, {}, {}, {"seconds": taken} | details.get(stage, {}))
        for stage, taken in seconds.items()
    }


def test_every_stage_has_a_unit_and_a_rate() -> None:
    assert {stage.name for stage in STAGES} == UNITS.keys() == RATES.keys()


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_the_rates_of_a_run_give_back_its_seconds(data: st.DataObject) -> None:
    config = load_config("quickstart", ["preference.rounds=2"])
    taken = st.floats(0.01, 1000.0)  # also less than the start of a stage is taken to last
    seconds = {stage.name: data.draw(taken, stage.name) for stage in planned(config)}
    found = by_stage(config, like=measured_rates(config, SIZE, records_of(seconds)))
    assert {stage: item.seconds for stage, item in found.items()} == pytest.approx(seconds)


@pytest.mark.parametrize("seconds", [0.0, 0.05, 2.3, 3.0, 3.05])
def test_a_stage_that_was_quicker_than_its_start_is_not_taken_to_be_as_fast_as_light(seconds: float) -> None:
    config = load_config("quickstart", [])
    (rate,) = measured_rates(config, SIZE, records_of({"synthesis": seconds})).values()
    least = by_stage(config)["synthesis"].work / (config.compute.cpu_workers * max(seconds, 0.01))
    assert least <= rate.work <= 2 * least


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ([], replace(SIZE, test_queries=0)),
        (["retrieval.retrievers=[bm25]"], SIZE),
        (["retrieval.retrievers=[bm25, dense]"], SIZE),
    ],
)
def test_stages_that_had_nothing_to_do_have_no_rate(settings: list[str], size: CorpusSize) -> None:
    config = load_config("quickstart", settings)
    seconds = {stage.name: 20.0 for stage in planned(config)}
    rates = measured_rates(config, size, records_of(seconds))
    assert "retrieval" not in rates and "corpus" in rates
    found = by_stage(load_config("quickstart", []), like=rates)
    assert found["retrieval"] == by_stage(load_config("quickstart", []))["retrieval"]
    assert found["corpus"].seconds == pytest.approx(20.0)


def test_a_rate_counts_for_the_same_work_on_the_same_devices() -> None:
    config = load_config("scratch-semantic", [])
    rates = measured_rates(config, SIZE, records_of({"corpus": 9.0, "synthesis": 30.0, "sft": 500.0, "mining": 60.0}))
    asking = load_config("scratch-semantic", [HTTP])
    found = by_stage(asking, like=rates)
    assert found["synthesis"].seconds == by_stage(asking)["synthesis"].seconds, "queries are no tokens"
    assert (found["corpus"].seconds, found["sft"].seconds) == pytest.approx((9.0, 500.0))
    with_gpus = load_config("scratch-semantic", ["compute.gpus_a_training_worker=1"])
    found = by_stage(with_gpus, like=rates)
    assert found["sft"].seconds == by_stage(with_gpus)["sft"].seconds, "a CPU is no GPU"
    assert found["mining"].seconds == pytest.approx(60.0)
    # What somebody says outright counts for what is planned, whatever that is.
    given = by_stage(asking, like=rates, rates={"synthesis": 10.0})["synthesis"]
    assert given.seconds == pytest.approx(3.0 + given.tokens / 10.0)


def test_the_rate_of_a_language_model_is_that_of_the_tokens_that_it_counted() -> None:
    config = load_config("scratch-semantic", [HTTP])
    counts = {"completions": asdict(Counts(reused=5, answered=1, prompt_tokens=90, completion_tokens=10))}
    (rate,) = measured_rates(config, SIZE, records_of({"synthesis": 13.0}, synthesis=counts)).values()
    assert (rate.work, rate.unit, rate.device) == (pytest.approx(10.0), "tokens", "server")
    reused = {"completions": asdict(Counts(reused=6))}
    assert measured_rates(config, SIZE, records_of({"synthesis": 13.0}, synthesis=reused)) == {}


def test_tokens_a_second_are_no_rate_of_stages_that_ask_nothing() -> None:
    told = HTTP.replace("model: m", "model: m, tokens_a_second: 1")
    found = by_stage(load_config("scratch-atomic", [told]))
    assert found["identifiers"].seconds < 1.0 < found["synthesis"].seconds


def test_more_workers_take_less_time_and_the_price_is_that_of_whole_nodes() -> None:
    batches = ["sft.micro_batch_size=8", "rpo.micro_batch_size=8"]
    settings = [*batches, "compute.training_workers=8", "compute.gpus_a_training_worker=1"]
    config = load_config("scratch-semantic", settings)
    groups = (NodeGroup("gpu", {"CPU": 96.0, "GPU": 8.0}, 2), NodeGroup("cpu", {"CPU": 32.0}, 4))
    found = by_stage(config, groups=groups, prices={"gpu": 10.0, "cpu": 1.0}, rates={"sft": 1e9})
    assert found["sft"].price == pytest.approx(found["sft"].seconds / 3600 * 10.0)
    assert found["synthesis"].price == pytest.approx(found["synthesis"].seconds / 3600 * 1.0)
    assert found["sft"].gpu_hours == pytest.approx(found["sft"].seconds * 8 / 3600)
    one = by_stage(load_config("scratch-semantic", [*batches, "compute.gpus_a_training_worker=1"]), rates={"sft": 1e9})
    assert one["sft"].seconds - 10 == pytest.approx(8 * (found["sft"].seconds - 10))
    assert one["sft"].price is None
    by_unit = by_stage(config, prices={"GPU": 2.0})
    assert by_unit["sft"].price == pytest.approx(by_unit["sft"].gpu_hours * 2.0)


def test_the_query_of_a_pair_is_read_once_where_no_token_of_an_identifier_is() -> None:
    def tokens_a_pair(*settings: str) -> float:
        stage = by_stage(load_config("scratch-semantic", list(settings)))["rpo"]
        return stage.tokens / stage.rows

    query = tokens_a_pair("identifiers.type=atomic") - 1
    assert query > 1
    assert tokens_a_pair("identifiers.type=atomic", "sft.scoring=vocabulary") == pytest.approx(2 * (query + 1))
    assert tokens_a_pair() == pytest.approx(query + 1), "the first of distinctive keywords decides"
    assert tokens_a_pair("sft.scoring=vocabulary") == pytest.approx(2 * (query + 16))
    assert tokens_a_pair("identifiers.order=given") == pytest.approx(2 * (query + 16))


def test_training_holds_the_activations_of_its_own_micro_batch_and_of_what_is_read_of_a_pair() -> None:
    def activations(stage: str, *settings: str) -> float:
        config = load_config("scratch-semantic", list(settings))
        return by_stage(config)[stage].memory - 7e8 - 16 * model_size(config, SIZE.passages).parameters

    small = ["rpo.micro_batch_size=1", "sft.micro_batch_size=2"]
    for stage, one, unlike in (("sft", "sft.micro_batch_size=2", small[0]), ("rpo", *small)):
        whole = load_config("scratch-semantic", []).model_dump()[stage]["batch_size"]
        share = int(one[-1]) / whole
        assert activations(stage, one) == pytest.approx(share * activations(stage, unlike), rel=1e-6)
        # Two workers share out a step, of which neither takes more than its half.
        halved = activations(stage, "compute.training_workers=2")
        assert halved == pytest.approx(activations(stage) / 2, rel=1e-6)
    query = by_stage(load_config("scratch-semantic", []))["rpo"]
    read = query.tokens / query.rows
    both = ["sft.scoring=vocabulary", "rpo.micro_batch_size=1"]
    ratio = activations("rpo", *both) / activations("rpo", small[0])
    assert ratio == pytest.approx(2 * (read + 15) / read, rel=1e-6)


def test_each_stage_is_planned_with_what_it_uses() -> None:
    compute = [
        *("compute.cpu_workers=6", "compute.cpus_a_worker=3", "compute.gpus_a_worker=0.5"),
        *("compute.training_workers=4", "compute.cpus_a_training_worker=5", "compute.gpus_a_training_worker=1"),
    ]

    def teams(*settings: str, size: CorpusSize = SIZE) -> dict[str, tuple[int, float, float]]:
        items = plan(load_config("quickstart", [*compute, "identifiers.type=semantic", *settings]), size)
        return {item.stage: (item.workers, item.bundle["CPU"], item.bundle.get("GPU", 0.0)) for item in items}

    driver, pool, ranking, training = (1, 1.0, 0.0), (6, 3.0, 0.0), (6, 3.0, 0.5), (4, 5.0, 1.0)
    found = teams()
    assert {found[stage] for stage in ("corpus", "base", "bm25", "encoder", "contrastive", "evaluation")} == {driver}
    assert {found[stage] for stage in ("identifiers", "synthesis", "examples", "negatives", "candidates")} == {pool}
    assert {found[stage] for stage in ("mining", "embedding", "retrieval")} == {ranking}
    assert {found[stage] for stage in ("sft", "rpo", "dense")} == {training}
    assert by_stage(load_config("quickstart", compute))["dense"].gpu_hours > 0
    assert teams("negatives.retriever=dense_base")["candidates"] == ranking
    assert teams("negatives.source=random")["candidates"] == driver, "nobody is asked"
    assert teams("retrieval.retrievers=[bm25]")["retrieval"] == pool
    assert teams("retrieval.retrievers=[bm25, dense]", "retrieval.fusion.parts=[bm25, dense]")["retrieval"] == ranking
    assert teams("identifiers.type=atomic")["identifiers"] == driver, "numbers are given"
    # Contexts are cut by actors that are there, or where there are many.
    assert teams("examples.context2id=none")["examples"] == driver
    assert teams(HTTP)["examples"] == driver
    assert teams(HTTP, size=replace(SIZE, passages=ROWS_FOR_ACTORS))["examples"] == pool


def test_the_rows_of_first_tokens_are_read_of_a_pretrained_model_too() -> None:
    named = "sft.model={type: pretrained, name: mistralai/Mistral-7B-v0.3}"
    config = load_config("scratch-semantic", [named])
    model = model_size(config, 1000)
    assert model.read == 1000 * model.width
    assert model_size(config, 10**6).read == 32_000 * model.width
    whole = load_config("scratch-semantic", [named, "sft.scoring=vocabulary"])
    assert model_size(whole, 1000).read == 0


def test_no_more_children_are_scored_than_there_are_passages() -> None:
    config = load_config("scratch-semantic", ["sft.model.vocabulary_size=8000", "sft.model.hidden_size=64"])
    assert [model_size(config, passages).read for passages in (100, 100_000)] == [100 * 64, 8000 * 64]


def test_a_search_on_a_cpu_holds_weights_twice_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(*settings: str, stage: str = "mining") -> float:
        return by_stage(load_config("scratch-semantic", list(settings)))[stage].memory - 7e8

    for scoring in ("trie", "vocabulary"):
        config = load_config("scratch-semantic", [f"sft.scoring={scoring}"])
        model = model_size(config, SIZE.passages)
        head = (model.parameters - model.blocks) / 2 if scoring == "vocabulary" else model.read
        for stage in ("mining", "retrieval"):
            found = memory(f"sft.scoring={scoring}", stage=stage)
            assert found == pytest.approx(4 * (model.parameters + model.blocks + head))
        assert memory(f"sft.scoring={scoring}", "compute.gpus_a_worker=1") == 4 * model.parameters
    monkeypatch.setattr(planning, "LARGEST_COPY", 4 * max(model.blocks, head) - 1)
    copied = min(model.blocks, head)
    assert memory("sft.scoring=vocabulary") == pytest.approx(4 * (model.parameters + copied)), "the larger is not"


def test_stages_that_map_their_tables_do_not_hold_the_texts() -> None:
    config = load_config("scratch-semantic", [])
    short, long = ({item.stage: item for item in plan(config, replace(SIZE, words=words))} for words in (100.0, 1000.0))
    for stage in ("corpus", "identifiers", "synthesis", "examples"):
        assert short[stage].memory == long[stage].memory
    assert long["bm25"].memory > short["bm25"].memory


def test_a_language_model_is_reckoned_in_tokens_on_its_replicas() -> None:
    llm = (
        "llm={type: vllm, model: m, gpus_a_worker: 1, tensor_parallel_size: 4, max_replicas: 2, tokens_a_second: 1000}"
    )
    found = by_stage(load_config("scratch-semantic", [llm]))
    synthesis = found["synthesis"]
    assert synthesis.tokens > 0 and synthesis.workers == 2 and synthesis.bundle["GPU"] == 4
    assert synthesis.seconds == pytest.approx(3.0 + synthesis.tokens / 2000)


def test_hard_negatives_are_reckoned_in_tokens_and_by_the_queries_that_are_drawn() -> None:
    wanted = ["llm={type: http, base_url: 'http://localhost:1/v1', model: m}", "retrieval.retrievers=[sft, dense]"]
    few, many = (
        by_stage(load_config("scratch-semantic", [*wanted, f"negatives.queries_a_passage={number}"]))["negatives"]
        for number in (2, 4)
    )
    assert many.rows == 2 * few.rows == 4 * SIZE.passages
    assert many.tokens == pytest.approx(2 * few.tokens) and few.tokens > few.rows * SIZE.words
    all_of_them = by_stage(load_config("scratch-semantic", [*wanted, "negatives.queries_a_passage=0"]))["negatives"]
    assert all_of_them.rows == SIZE.queries * SIZE.passages


def test_the_command_prints_a_row_a_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from genret.cli import main

    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "title": "River", "text": "Water flows to the sea."}\n')
    flags = ["--set", "corpus.type=jsonl", "--set", f"corpus.path={tmp_path / 'corpus.jsonl'}"]
    cluster = Path(__file__).parents[2] / "cluster.yaml"
    with pytest.raises(SystemExit) as ended:
        main(["plan", "scratch-semantic", *flags, "--cluster", str(cluster), "--price", "cpu_spot=1.5"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for word in ("corpus", "synthesis", "sft", "retrieval", "price", "all"):
        assert word in printed
    for wrong in (["--price", "gpu"], ["--rate", "sft=-1"], ["--cluster", "/no/such/file"], ["--like", "/no/such/run"]):
        with pytest.raises(SystemExit) as ended:
            main(["plan", "scratch-semantic", *flags, *wrong])
        assert ended.value.code == 2


def finished_run(folder: Path, settings: list[str]) -> None:
    config, store = load_config("scratch-semantic", settings), RunStore(folder)
    for stage in planned(config):
        writer = store.begin(stage.name, "0" * 16)
        if stage.name == "corpus":
            writer.write_table("passages", passages_to_table([Passage("a", "a", "Water flows to the sea.")]))
            writer.write_table("test_queries", table_from_rows("test_queries", []))
        writer.commit({"seconds": 1.0})
    store.set_current({stage.name: "0" * 16 for stage in planned(config)})
    store.write_file("config.yaml", resolved_yaml(config))


def test_like_takes_a_run_without_queries_and_one_of_a_model_whose_name_does_not_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from genret.cli import main

    def ended(*arguments: str) -> int:
        with pytest.raises(SystemExit) as found:
            main(["plan", "scratch-semantic", *arguments, "--passages", "1000"])
        return int(found.value.code or 0)

    finished_run(tmp_path / "scratch", ["corpus.path=x"])
    assert ended("--set", "corpus.path=x", "--like", str(tmp_path / "scratch")) == 0
    assert "corpus" in capsys.readouterr().out
    silent = "sft.model={type: pretrained, name: some/model}"
    finished_run(tmp_path / "silent", ["corpus.path=x", silent])
    named = ["--set", "corpus.path=x", "--set", silent, "--like", str(tmp_path / "silent")]
    assert ended(*named, "--parameters", "1e9") == 0
    capsys.readouterr()
    assert ended(*named) == 2
    assert "--parameters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--rate", "sfd=1e12"], "--rate: expected one of corpus, identifiers, .*, found 'sfd'"),
        (["--price", "GPUS=2"], "--price: expected one of CPU, GPU, found 'GPUS'"),
        (["--cluster", "FILE", "--price", "big=2"], "--price: expected one of CPU, GPU, small, found 'big'"),
    ],
)
def test_misspelt_names_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    from genret.cli import main

    (tmp_path / "cluster.yaml").write_text("available_node_types: {small: {resources: {CPU: 4}, max_workers: 2}}")
    wrong = [str(tmp_path / "cluster.yaml") if flag == "FILE" else flag for flag in flags]
    with pytest.raises(SystemExit) as ended:
        main(["plan", "scratch-semantic", "--set", "corpus.path=x", "--passages", "1000", *wrong])
    assert ended.value.code == 2
    assert re.search(expected, capsys.readouterr().err)


def test_lists_are_planned_where_the_index_has_some() -> None:
    exact, lists = (
        by_stage(load_config("quickstart", [f"dense.index={index}", "retrieval.retrievers=[dense]"]))
        for index in ("exact", "lists")
    )
    assert lists.keys() - exact.keys() == {"lists"}
    assert lists["lists"].seconds > 0 and lists["lists"].disk > lists["embedding"].disk
    assert lists["embedding"] == exact["embedding"]
