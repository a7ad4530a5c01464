"""The grids of the paper's tables: every row is a configuration, and rows share what they can."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"
ALL = [2, 3, 4, 5, 6, 7, 8, 11]


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def figures(benchmarks) -> ModuleType:
    return importlib.import_module("paper_parts.figures")


@pytest.fixture(scope="module")
def grid(benchmarks) -> ModuleType:
    return importlib.import_module("paper_parts.grid")


@pytest.fixture(scope="module")
def printing(benchmarks) -> ModuleType:
    return importlib.import_module("paper_parts.printing")


def arguments(data: Path, scale: str = "cpu", **changes) -> argparse.Namespace:
    engine = "{type: http, base_url: 'http://localhost/v1', model: docT5query}"
    given = {"scale": scale, "data": data, "set": [], "seeds": [0, 1], "engine": engine, "copies": {}}
    return argparse.Namespace(**given | changes)


def test_a_copy_of_a_model_is_read_in_its_place(figures, grid, tmp_path) -> None:
    table, name = figures.paper_table(11, "paper"), "facebook/contriever-msmarco"
    copies = arguments(tmp_path, "paper", copies={name: "copies/contriever"})
    found = grid.configurations(table, "nq", copies, 0)["contriever-msmarco"].dense
    assert found.model.name == "copies/contriever" and found.model.family == "contriever"
    assert found.max_tokens == 512 and found.epochs == 0
    plain = grid.configurations(table, "nq", arguments(tmp_path, "paper"), 0)["contriever-msmarco"].dense
    assert plain.model.name == name


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("number", ALL)
def test_every_row_is_a_configuration_with_figures(figures, grid, tmp_path, number, scale) -> None:
    table = figures.paper_table(number, scale)
    names = {row.name for row in table.rows}
    assert {name for effect in table.effects for name in effect} <= names
    for corpus in grid.corpora(table, None):
        found = grid.configurations(table, corpus, arguments(tmp_path, scale), 7)
        assert list(found) == [row.name for row in table.rows], "two rows are the same configuration"
        for row in table.rows:
            assert found[row.name].seed == 7
            assert row.retriever in found[row.name].retrieval.retrievers
            assert set(grid.measures_of(corpus)) == set(found[row.name].evaluation.measures)
            if corpus in row.paper:
                assert len(row.paper[corpus]) == len(figures.MEASURES[corpus])


def new_stages(figures, grid, data: Path, corpus: str, *numbers: int) -> dict[tuple[int, str], set[str]]:
    """The stages that each row does not share with one before it, over some tables in turn."""
    sharing = grid.Sharing()
    return {
        (number, name): set(sharing.new_stages(config))
        for number in numbers
        for name, config in grid.configurations(figures.paper_table(number, "cpu"), corpus, arguments(data), 0).items()
    }


def test_rows_share_what_they_have_in_common(figures, grid, tmp_path) -> None:
    own = new_stages(figures, grid, tmp_path, "multihop-rag", 5, 2, 3, 4, 8, 11)
    trained = {row for row, stages in own.items() if "sft" in stages}
    # The full recipe is trained once, whatever table it stands in.
    assert trained == {
        (5, "concat"), (5, "interleave"), (2, "chunk"), (2, "+ sentence"), (4, "w/o Context2ID"),
    }  # fmt: skip
    assert own[3, "w/ constraints"] == own[4, "w/ Context2ID"] == own[8, "SFT"] == set()
    after = {"mining", "rpo", "retrieval", "evaluation", "report"}
    assert own[8, "random 5"] == own[8, "top-5 negative"] == own[8, "top-10 negative"] == after
    assert own[11, "BM25"] == {"retrieval", "evaluation", "report"}
    assert own[11, "ours"] == set(), "the last row of table 8"


def test_a_row_that_is_nothing_of_its_own_is_left_out(figures, grid, tmp_path) -> None:
    table = figures.paper_table(7, "cpu")
    found = grid.configurations(table, "scifact", arguments(tmp_path), 0)
    assert list(found) == ["all", "w/o Context2ID", "w/o sentence"], "scifact has no metadata to name"


def test_a_table_can_be_made_of_a_corpus_that_the_paper_does_not_have(figures, grid, printing, tmp_path) -> None:
    table = figures.paper_table(5, "cpu")
    assert grid.corpora(table, ["scifact", "nq"]) == ["nq", "scifact"]
    ours = {name: [dict.fromkeys(grid.measures_of("scifact"), 50.0)] for name in ("concat", "interleave")}
    text = "\n".join(printing.lines(table, "scifact", ours))
    assert "paper" not in text
    assert "| interleave | 50.00 | 50.00 | 50.00 |" in text


def test_a_plan_tells_what_a_grid_takes(figures, grid, tmp_path) -> None:
    folder = tmp_path / grid.STAND_INS["nq"].folder
    table = figures.paper_table(4, "cpu")
    bare = "\n".join(grid.plan(table, "nq", arguments(tmp_path), grid.Sharing()))
    assert "minutes with" not in bare, "there is no corpus"
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"_id": "a", "text": "one text of some words"}))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\ta\t1\n", encoding="utf-8")
    lines = list(grid.plan(table, "nq", arguments(tmp_path), grid.Sharing()))
    assert lines[-1].endswith("minutes with 2 seeds")
    minutes = [float(line.rsplit("|", 2)[1]) for line in lines if line.startswith("| w/")]
    assert sum(minutes) == pytest.approx(float(lines[-1].split()[0]), abs=0.15)


def test_a_row_that_shares_everything_takes_no_time_with_or_without_the_corpus(figures, grid, tmp_path) -> None:
    table, sharing = figures.paper_table(5, "cpu"), grid.Sharing()

    def minutes() -> list[str]:
        lines = list(grid.plan(table, "nq", arguments(tmp_path), sharing))
        return [line.rsplit("|", 2)[1].strip() for line in lines if line.startswith("| ") and "minutes" not in line][1:]

    assert minutes() == ["–", "–"], "there is no corpus"
    assert minutes() == ["0.0", "0.0"], "all was planned before"


def test_a_corpus_whose_rows_do_not_differ_is_told_and_passed_over(monkeypatch, capsys, benchmarks, tmp_path) -> None:
    program = importlib.import_module("paper_tables")
    words = ["--table", "3", "5", "--datasets", "scifact", "--plan", "--data", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", *words])
    program.main()
    third, fifth = capsys.readouterr().out.split("## Table 5, scifact")
    assert "The rows do not differ here" in third and "|" not in third
    assert "| interleave |" in fifth


def test_effects_are_told_where_they_are_and_where_not(figures, grid, printing) -> None:
    table = figures.paper_table(2, "cpu")
    flat = dict.fromkeys(grid.measures_of("multihop-rag"), 50.0)
    ours = {
        "chunk": [flat, flat | {"HIT@4": 51.0}],
        "+ sentence": [flat | {"HIT@4": 60.0, "HIT@10": 40.0}, flat | {"HIT@4": 63.0}],
    }
    text = "\n".join(printing.lines(table, "multihop-rag", ours))
    assert "| chunk | 50.50 ± 0.71 | 43.64 | 50.00 ± 0.00 | 66.65 |" in text
    assert "- + sentence above chunk" in text
    assert "    - in the paper: HIT@4, HIT@10, MAP@10, MRR@10" in text
    assert "    - here: HIT@4 +11.00 ± 1.41 in 2 of 2, HIT@10 -5.00 ± 7.07 in 0 of 2, MAP@10 +0.00 ± 0.00" in text


def test_one_seed_has_no_spread(printing) -> None:
    assert printing.spread([3.0]) == "3.00"
    assert printing.spread([3.0], signed=True) == "+3.00"
