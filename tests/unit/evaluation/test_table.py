"""The comparison table."""

import io
import re

import pyarrow as pa
from rich.console import Console

from genret.evaluation.table import Comparison, comparison_markdown, comparison_table
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


def significance_of(*rows: tuple[str, str, str, float, float]) -> pa.Table:
    """A `significance` table from measure, two retrievers, difference and corrected p."""
    columns = ("measure", "retriever_a", "retriever_b", "difference", "p_holm")
    return table_from_rows(
        "significance", [dict(zip(columns, row, strict=True)) | {"p": row[-1] / 2, "n_queries": 9} for row in rows]
    )


TESTED = significance_of(
    ("HIT@1", "rpo", "bm25", 0.07, 0.01), ("HIT@1", "rpo", "sft", 0.3, 0.001), ("NDCG@10", "rpo", "bm25", 0.1, 0.05)
)


def shown(measures: pa.Table, colour: bool = False, significance: pa.Table | None = None) -> str:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=colour, color_system="standard" if colour else None)
    console.print(comparison_table(measures, significance))
    return file.getvalue()


def test_rows_are_retrievers_and_columns_measures() -> None:
    lines = [line.split() for line in shown(measures_of(VALUES)).splitlines()]
    assert ["retriever", "HIT@1", "NDCG@10"] in lines
    assert ["rpo", "61.3", "70.0"] in lines
    assert ["bm25", "54.7", "70.0"] in lines


def test_unit_and_number_of_queries_are_named() -> None:
    words = " ".join(shown(measures_of(VALUES)).split())
    assert "Per cent, ± half the confidence interval, 1,234 queries; the best in bold" in words


def test_half_intervals_stand_below_the_values() -> None:
    assert re.search(r"rpo +61\.3 +70\.0 *\n +±5\.0 +±5\.0 *\n +bm25", shown(measures_of(VALUES)))


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
        "| retriever |         HIT@1 |       NDCG@10 |\n"
        "| --------- | ------------: | ------------: |\n"
        "| rpo       | **61.3 ±5.0** | **70.0 ±5.0** |\n"
        "| bm25      |     54.7 ±5.0 | **70.0 ±5.0** |\n"
        "\n"
        "Per cent, ± half the confidence interval, 1,234 queries.\n"
    )


def test_what_differs_from_the_baseline_is_marked() -> None:
    comparison = Comparison.of(measures_of(VALUES), TESTED)
    assert comparison.marks == {("rpo", "HIT@1"): "†"}
    other_way = significance_of(("HIT@1", "bm25", "rpo", 0.07, 0.01), ("NDCG@10", "bm25", "rpo", -0.07, 0.049))
    comparison = Comparison.of(measures_of(VALUES), other_way)
    assert comparison.marks == {("rpo", "HIT@1"): "‡", ("rpo", "NDCG@10"): "†"}
    assert comparison.legend == "† better, ‡ worse than bm25 (p < 0.05 in a paired test with Holm's correction)"


def test_marks_stand_behind_the_figures_with_a_legend() -> None:
    text = shown(measures_of(VALUES), significance=TESTED)
    assert re.search(r"rpo +61\.3† +70\.0 *\n +±5\.0  +±5\.0 *\n +bm25 +54\.7  +70\.0 *\n", text)
    words = " ".join(text.split())
    assert "the best in bold † better than bm25 (p < 0.05 in a paired test with Holm's correction)" in words


def test_marks_in_markdown() -> None:
    best = measures_of(VALUES | {("bm25", "HIT@1"): 0.8})
    worse = significance_of(("HIT@1", "rpo", "bm25", -0.2, 0.001))
    assert comparison_markdown(best, significance=worse) == (
        "| retriever |          HIT@1 |       NDCG@10 |\n"
        "| --------- | -------------: | ------------: |\n"
        "| rpo       |     61.3‡ ±5.0 | **70.0 ±5.0** |\n"
        "| bm25      | **80.0  ±5.0** | **70.0 ±5.0** |\n"
        "\n"
        "Per cent, ± half the confidence interval, 1,234 queries. "
        "‡ worse than bm25 (p < 0.05 in a paired test with Holm's correction).\n"
    )


def test_a_test_without_a_difference_says_so_and_no_test_says_nothing() -> None:
    even = significance_of(("HIT@1", "rpo", "bm25", 0.1, 0.2))
    assert "No difference from bm25 is significant (p < 0.05" in comparison_markdown(measures_of(VALUES), even)
    others = significance_of(("HIT@1", "rpo", "sft", 0.1, 0.001))
    for significance in (None, others, significance_of()):
        assert "p <" not in comparison_markdown(measures_of(VALUES), significance)


def test_missing_measures_are_a_dash_and_no_measure_is_an_empty_table() -> None:
    partial = {key: value for key, value in VALUES.items() if key != ("bm25", "HIT@1")}
    assert "| bm25      |             – |" in comparison_markdown(measures_of(partial))
    assert "0 queries" in comparison_markdown(measures_of({}))
    assert "retriever" in shown(measures_of({}))
