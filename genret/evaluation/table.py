"""The comparison of retrievers, for the terminal and for the log."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
from rich import box
from rich.table import Table
from rich.text import Text

from genret.evaluation.significance import LEVEL
from genret.tables import check_table

BASELINE = "bm25"
"""The retriever that the others are marked as better or worse than."""
BETTER, WORSE = "†", "‡"


@dataclass(frozen=True)
class Comparison:
    """A `measures` table turned on its side.

    Attributes:
        retrievers: The rows, in the table's order.
        measures: The columns, in the table's order.
        cells: The row of the `measures` table, by retriever and measure.
        n_queries: On how many queries the figures are.
        marks: `BETTER` or `WORSE`, by retriever and measure, where it differs significantly from `BASELINE`.
        legend: What the marks mean, or that nothing is marked; empty where nothing was tested.
    """

    retrievers: tuple[str, ...]
    measures: tuple[str, ...]
    cells: dict[tuple[str, str], dict]
    n_queries: int
    marks: dict[tuple[str, str], str] = field(default_factory=dict)
    legend: str = ""

    @classmethod
    def of(cls, measures: pa.Table, significance: pa.Table | None = None) -> "Comparison":
        """Arrange a `measures` table, which may be empty, with marks from a `significance` table if there is one."""
        rows = check_table("measures", measures).to_pylist()
        tested = [] if significance is None else check_table("significance", significance).to_pylist()
        marks, legend = _marks(tested)
        return cls(
            retrievers=tuple(dict.fromkeys(row["retriever"] for row in rows)),
            measures=tuple(dict.fromkeys(row["measure"] for row in rows)),
            cells={(row["retriever"], row["measure"]): row for row in rows},
            n_queries=max((row["n_queries"] for row in rows), default=0),
            marks=marks,
            legend=legend,
        )

    def is_best(self, retriever: str, measure: str) -> bool:
        """Whether no other retriever has a higher value of the measure, as far as one decimal shows."""
        if (retriever, measure) not in self.cells or len(self.retrievers) == 1:
            return False
        values = [row["value"] for (_, other), row in self.cells.items() if other == measure]
        return percent(self.cells[retriever, measure]["value"]) == percent(max(values))


def _marks(tested: list[dict]) -> tuple[dict[tuple[str, str], str], str]:
    """Marks of a `significance` table's rows by retriever and measure, and their legend."""
    marks = {}
    against = [row for row in tested if BASELINE in (row["retriever_a"], row["retriever_b"])]
    for row in against:
        other, gain = row["retriever_a"], row["difference"]
        if other == BASELINE:
            other, gain = row["retriever_b"], -gain
        if row["p_holm"] < LEVEL:
            marks[other, row["measure"]] = BETTER if gain > 0 else WORSE
    test = f"p < {LEVEL} in a paired test with Holm's correction"
    if marks:
        shown = {BETTER: f"{BETTER} better", WORSE: f"{WORSE} worse"}
        signs = ", ".join(words for sign, words in shown.items() if sign in marks.values())
        return marks, f"{signs} than {BASELINE} ({test})"
    return marks, f"No difference from {BASELINE} is significant ({test})" if against else ""


def percent(value: float) -> str:
    """A share as per cent with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def comparison_table(measures: pa.Table, significance: pa.Table | None = None) -> Table:
    """Retrievers by measures, as a table for the terminal.

    Args:
        measures: Table `measures`.
        significance: Table `significance` of the same retrievers, to mark those that differ from `BASELINE`.

    Returns:
        Values in per cent with one decimal, the best of each measure in bold; below each ± half its confidence
        interval, as beside it there is no room on 80 columns.
    """
    comparison = Comparison.of(measures, significance)
    caption = f"{_caption(comparison)}; the best in bold"
    table = Table(
        title="Retrievers compared",
        caption=f"{caption}\n{comparison.legend}" if comparison.legend else caption,
        box=box.SIMPLE_HEAD,
    )
    table.add_column("retriever")
    for measure in comparison.measures:
        table.add_column(Text(measure), justify="right", no_wrap=True)
    for retriever in comparison.retrievers:
        cells = [
            Text("\n").join(
                [
                    Text(value, style="bold" if comparison.is_best(retriever, measure) else ""),
                    Text(half, style="dim"),
                ]
            )
            for measure in comparison.measures
            for value, half in [_cell(comparison, retriever, measure)]
        ]
        # As Text, so that no square bracket in a name is read as markup.
        table.add_row(Text(retriever), *cells)
    return table


def comparison_markdown(measures: pa.Table, significance: pa.Table | None = None) -> str:
    """Retrievers by measures, as a Markdown table that can also be read as it is.

    Args:
        measures: Table `measures`.
        significance: Table `significance` of the same retrievers, to mark those that differ from `BASELINE`.

    Returns:
        Lines of equal width, with ± half the confidence interval behind each value, the best of each measure between
        two asterisks, and a line that names the unit and the marks.
    """
    comparison = Comparison.of(measures, significance)
    rows = [["retriever", *comparison.measures]]
    for retriever in comparison.retrievers:
        cells = [" ".join(_cell(comparison, retriever, measure)).rstrip() for measure in comparison.measures]
        rows.append(
            [
                retriever.replace("|", "\\|"),
                *(
                    _bold(cell) if comparison.is_best(retriever, measure) else cell
                    for cell, measure in zip(cells, comparison.measures, strict=True)
                ),
            ]
        )
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [_line(row, widths) for row in (rows[0], rule, *rows[1:])]
    legend = f" {comparison.legend}." if comparison.legend else ""
    return "\n".join([*lines, "", f"{_caption(comparison)}.{legend}"]) + "\n"


def _bold(cell: str) -> str:
    # Markdown reads no ** after a space.
    text = cell.rstrip()
    return f"**{text}**{cell[len(text) :]}"


def _line(cells: list[str], widths: list[int]) -> str:
    justify: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(cells) - 1)]
    padded = (just(cell, width) for just, cell, width in zip(justify, cells, widths, strict=True))
    return f"| {' | '.join(padded)} |"


def _cell(comparison: Comparison, retriever: str, measure: str) -> tuple[str, str]:
    """A value with its mark, and half its interval."""
    row = comparison.cells.get((retriever, measure))
    if row is None:
        return "–", ""
    # A space where others of the column have a mark, so that the digits stand below each other.
    room = " " if any(name == measure for _, name in comparison.marks) else ""
    mark = comparison.marks.get((retriever, measure), room)
    return f"{percent(row['value'])}{mark}", f"±{percent((row['ci_high'] - row['ci_low']) / 2)}{room}"


def _caption(comparison: Comparison) -> str:
    noun = "query" if comparison.n_queries == 1 else "queries"
    return f"Per cent, ± half the confidence interval, {comparison.n_queries:,} {noun}"
