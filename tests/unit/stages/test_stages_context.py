"""What a stage finds of the stages before it."""

from pathlib import Path

from silent import Silent

from genret import tables
from genret.config import RunConfig, parse_config
from genret.evaluation.report import loss_figures, training_rows
from genret.runs import RunStore
from genret.stages.context import Context, versions, write_tables
from genret.tables import passages_to_table
from genret.types import Passage

_CONFIG = """
name: tiny
corpus: {type: beir, path: nowhere}
"""


def config() -> RunConfig:
    return parse_config(_CONFIG, "test")


def test_tables_of_a_name_are_gathered_in_the_order_of_the_stages(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    context = Context(config(), store, Silent())
    for stage in ("identifiers", "synthesis"):
        writer = store.begin(stage, "0" * 16)
        rows = [{"stage": stage, "input_id": "1", "reason": "empty", "raw": ""}]
        write_tables(writer, {"rejects": tables.table_from_rows("rejects", rows)})
        context.records[stage] = writer.commit({})
    assert context.gather("rejects").column("stage").to_pylist() == ["identifiers", "synthesis"]
    assert context.table("synthesis", "rejects").num_rows == 1


def test_passages_are_read_once(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    context = Context(config(), store, Silent())
    writer = store.begin("corpus", "0" * 16)
    writer.write_table("passages", passages_to_table([Passage("p0", "d0", "a text")]))
    context.records["corpus"] = writer.commit({})
    assert context.passages.equals(context.table("corpus", "passages"))
    assert context.passages is context.passages


def test_a_table_that_no_stage_wrote_is_empty(tmp_path: Path) -> None:
    context = Context(config(), RunStore(tmp_path), Silent())
    for gathered in (context.gather("training_log"), context.gather_logs("training_log")):
        assert gathered.equals(tables.table_from_rows("training_log", []))


def test_both_rounds_of_a_training_have_their_own_loss(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    context = Context(config(), store, Silent())
    row = dict.fromkeys(tables.SCHEMAS["training_log"].names, 0)
    for stage, losses in (("rpo", [3.0, 1.5]), ("rpo_2", [1.0, 0.7])):
        writer = store.begin(stage, "0" * 16)
        # As older runs have it, whose rows tell what trained and not which stage it was.
        log = [row | {"stage": "rpo", "step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
        writer.write_table("training_log", tables.table_from_rows("training_log", log))
        context.records[stage] = writer.commit({})
    log = context.gather_logs("training_log")
    figures = loss_figures(log, context.gather_logs("validation_log"))
    assert {stage: figure["data"][0]["y"] for stage, figure in figures.items()} == {
        "rpo": [3.0, 1.5],
        "rpo_2": [1.0, 0.7],
    }
    assert [(line["first_loss"], line["last_loss"]) for line in training_rows(log)] == [(3.0, 1.5), (1.0, 0.7)]


def test_versions_name_what_decides_results() -> None:
    assert {"python", "genret", "torch", "trl", "ray"} <= versions().keys()
