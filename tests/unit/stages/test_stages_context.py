"""What a stage finds of the stages before it."""

from pathlib import Path

from silent import Silent

from genret import tables
from genret.config import RunConfig, parse_config
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
    gathered = Context(config(), RunStore(tmp_path), Silent()).gather("training_log")
    assert gathered.equals(tables.table_from_rows("training_log", []))


def test_versions_name_what_decides_results() -> None:
    assert {"python", "genret", "torch", "trl", "ray"} <= versions().keys()
