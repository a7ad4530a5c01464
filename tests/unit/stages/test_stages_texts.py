"""What the stages of texts hand on."""

from pathlib import Path

import pytest
from silent import Silent

from genret import tables
from genret.config import parse_config
from genret.errors import InputError
from genret.runs import RunStore
from genret.stages.context import Context
from genret.stages.texts import run_examples

_CONFIG = """
corpus: {type: beir, path: nowhere}
examples: {context2id: none}
"""


def query(name: str, kind: str) -> dict[str, str]:
    return {"query_id": name, "passage_id": "p0", "text": f"text of {name}", "kind": kind, "generator": "any"}


def context_with(folder: Path, synthetic: list[str], annotated: list[str]) -> Context:
    """A context in which the stages before `examples` are done."""
    store = RunStore(folder)
    context = Context(parse_config(_CONFIG, "test"), store, Silent())
    passage = {"passage_id": "p0", "doc_id": "p0", "title": "", "text": "a text", "metadata": "{}"}
    written = {
        "corpus": {"passages": [passage], "annotated_queries": [query(name, "annotated") for name in annotated]},
        "identifiers": {"identifiers": [{"passage_id": "p0", "identifier": "text", "source": "llm"}]},
        "synthesis": {"queries": [query(name, "chunk") for name in synthetic]},
    }
    if not annotated:
        del written["corpus"]["annotated_queries"]
    for stage, outputs in written.items():
        writer = store.begin(stage, "0" * 16)
        for name, rows in outputs.items():
            writer.write_table(name, tables.table_from_rows(name, rows))
        context.records[stage] = writer.commit({})
    return context


@pytest.mark.parametrize(
    ("synthetic", "annotated"), [(["s0", "s1"], ["a0"]), ([], ["a0", "a1"]), (["s0"], [])]
)  # fmt: skip
def test_annotated_queries_are_trained_on_beside_the_synthetic_ones(tmp_path: Path, synthetic, annotated) -> None:
    context = context_with(tmp_path, synthetic, annotated)
    writer = context.store.begin("examples", "0" * 16)
    run_examples(context, writer)
    found = context.store.read_table(writer.commit({}), "sft_examples")
    assert sorted(found.column("prompt").to_pylist()) == sorted(f"text of {name}" for name in synthetic + annotated)
    assert set(found.column("kind").to_pylist()) == {"query2id"}


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    context = context_with(tmp_path, [], [])
    with pytest.raises(InputError, match="expected at least one training row, found none"):
        run_examples(context, context.store.begin("examples", "0" * 16))
