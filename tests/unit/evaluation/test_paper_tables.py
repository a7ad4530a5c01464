"""The grids of the paper's tables: every row is a configuration, and rows share what they can."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[3] / "benchmarks" / "paper_tables.py"


@pytest.fixture(scope="module")
def grids():
    specification = importlib.util.spec_from_file_location("paper_tables", PATH)
    module = importlib.util.module_from_spec(specification)
    # Data classes look their module up.
    sys.modules["paper_tables"] = module
    specification.loader.exec_module(module)
    return module


def table_of(grids, number: int, scale: str):
    return grids.table_eleven(scale) if number == 11 else grids.TABLES[number]


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("number", [2, 3, 4, 5, 7, 8, 11])
def test_every_row_is_a_configuration_with_figures(grids, tmp_path, number, scale) -> None:
    table = table_of(grids, number, scale)
    arguments = argparse.Namespace(scale=scale, data=tmp_path, set=[])
    names = {row.name for row in table.rows}
    assert {name for effect in table.effects for name in effect} <= names
    for corpus in grids.corpora(table, None):
        configurations = {row.name: grids.configuration(table, row, corpus, arguments) for row in table.rows}
        for row in table.rows:
            assert row.retriever in configurations[row.name].retrieval.retrievers
            if corpus in row.paper:
                assert len(row.paper[corpus]) == len(grids.MEASURES[corpus])
        marks = [config.model_dump_json() for config in configurations.values()]
        assert len(set(marks)) == len(marks), "two rows are the same configuration"
        # Later rows share the corpus at least.
        assert all("corpus" not in line for line in grids.plan(table, configurations)[3:])


def test_effects_are_told_where_they_are_and_where_not(grids) -> None:
    table = grids.TABLES[2]
    values = {name: dict.fromkeys(grids.MEASURES[grids.MULTIHOP], 50.0) for name in ("chunk", "+ sentence")}
    values["+ sentence"] |= {"HIT@4": 60.0, "HIT@10": 40.0}
    text = "\n".join(grids.lines(table, grids.MULTIHOP, values))
    assert "| chunk | 50.00 | 43.64 |" in text
    assert "+ sentence above chunk: in the paper in HIT@4, HIT@10, MAP@10, MRR@10; here in HIT@4" in text
