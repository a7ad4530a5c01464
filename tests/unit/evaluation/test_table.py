"""The comparison table."""

import io
import re

import pyarrow as pa
from rich.console import Console

from genret.evaluation.table import comparison_markdown, comparison_table
from genret.tables import table_from_rows


def measures_of(values: dict[tuple[str, str], float], half: float = 0.05) -> pa.Table:
    return table_from_rows(
        "measures",
        [
            {
                "retriever": retriever,
                "measure": measure,
                "value": value,
                "n_queries": 1234,
                "ci_low": value - half,
                "ci_high": value + half,
            }
            for (retriever, measure), value in values.items()
        ],
    )


VALUES = {
    ("rpo", "HIT@1"): 0.6126,
    ("rpo", "NDCG@10"): 0.7,
    ("bm25", "HIT@1"): 0.547,
    ("bm25", "NDCG@10"): 0.70004,
}


def shown(measures: pa.Table, intervals: bool = False, colour: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=100, force_terminal=colour, color_system="standard" if colour else None
    )
    console.print(comparison_table(measures, intervals))
    return file.getvalue()


def test_rows_are_retrievers_and_columns_measures() -> None:
    lines = [line.split() for line in shown(measures_of(VALUES)).splitlines()]
    assert ["retriever", "HIT@1", "NDCG@10"] in lines
    assert ["rpo", "61.3", "70.0"] in lines
    assert ["bm25", "54.7", "70.0"] in lines


def test_unit_and_number_of_queries_are_named() -> None:
    assert "Per cent, 1,234 queries; the best in bold" in " ".join(shown(measures_of(VALUES)).split())


def test_half_intervals_on_demand() -> None:
    assert "61.3 ± 5.0" in shown(measures_of(VALUES), intervals=True)
    assert "±" not in shown(measures_of(VALUES))


def test_the_best_and_what_looks_equal_to_it_are_bold() -> None:
    text = shown(measures_of(VALUES), colour=True)
    assert re.search(r"\x1b\[1m *61\.3 *\x1b\[0m", text)
    assert not re.search(r"\x1b\[1m *54\.7", text)
    assert len(re.findall(r"\x1b\[1m *70\.0 *\x1b\[0m", text)) == 2


def test_a_retriever_alone_is_not_the_best() -> None:
    assert "**" not in comparison_markdown(measures_of({("rpo", "HIT@1"): 0.5}))


def test_names_are_no_markup() -> None:
    assert "[red]x[/red]" in shown(measures_of({("[red]x[/red]", "HIT@1"): 0.5}))
    assert "| a\\|b " in comparison_markdown(measures_of({("a|b", "HIT@1"): 0.5}))


def test_markdown() -> None:
    assert comparison_markdown(measures_of(VALUES)) == (
        "| retriever |    HIT@1 |  NDCG@10 |\n"
        "| --------- | -------: | -------: |\n"
        "| rpo       | **61.3** | **70.0** |\n"
        "| bm25      |     54.7 | **70.0** |\n"
        "\n"
        "Per cent, 1,234 queries.\n"
    )
    assert "**61.3 ± 5.0**" in comparison_markdown(measures_of(VALUES), intervals=True)
    assert "Per cent, ± half the confidence interval, 1,234 queries." in comparison_markdown(
        measures_of(VALUES), intervals=True
    )


def test_missing_measures_are_a_dash_and_no_measure_is_an_empty_table() -> None:
    partial = {key: value for key, value in VALUES.items() if key != ("bm25", "HIT@1")}
    assert "| bm25      |        – |" in comparison_markdown(measures_of(partial))
    assert "0 queries" in comparison_markdown(measures_of({}))
    assert "retriever" in shown(measures_of({}))
