"""Ours beside the paper's figures, and whether its effects are seen here."""

import statistics
from collections.abc import Iterator, Sequence

from paper_parts.figures import MEASURES, PaperTable
from paper_parts.grid import measures_of

Values = dict[str, list[dict[str, float]]]
"""Measures in per cent by row, one mapping a seed."""


def lines(table: PaperTable, corpus: str, ours: Values) -> Iterator[str]:
    """A Markdown table of means over the seeds with standard deviations, and the effects.

    Args:
        table: The table.
        corpus: The corpus.
        ours: The same seeds for every row.
    """
    measures, known = measures_of(corpus), len(MEASURES[corpus])
    yield f"| | {' | '.join(f'{name} | paper' if place < known else name for place, name in enumerate(measures))} |"
    yield f"| --- |{' ---: |' * (len(measures) + known)}"
    for row in (row for row in table.rows if row.name in ours):
        paper = row.paper.get(corpus)
        cells = []
        for place, name in enumerate(measures):
            cells.append(spread([values[name] for values in ours[row.name]]))
            if place < known:
                cells.append(f"{paper[place]:.2f}" if paper else "–")
        yield f"| {row.name} | {' | '.join(cells)} |"
    yield ""
    for better, worse in table.effects:
        if better in ours and worse in ours:
            yield from effect(table, corpus, ours, better, worse)


def effect(table: PaperTable, corpus: str, ours: Values, better: str, worse: str) -> Iterator[str]:
    """Where one row is above another: in the paper, and here, seed by seed."""
    paper = {row.name: row.paper.get(corpus) for row in table.rows}
    first, second = paper[better], paper[worse]
    yield f"- {better} above {worse}"
    if first is not None and second is not None:
        there = [name for name, one, other in zip(MEASURES[corpus], first, second, strict=True) if one > other]
        yield f"    - in the paper: {', '.join(there) or 'in nothing'}"
    here = []
    for name in measures_of(corpus):
        gains = [one[name] - other[name] for one, other in zip(ours[better], ours[worse], strict=True)]
        seeds = f" in {sum(gain > 0 for gain in gains)} of {len(gains)}" if len(gains) > 1 else ""
        here.append(f"{name} {spread(gains, signed=True)}{seeds}")
    yield f"    - here: {', '.join(here)}"


def spread(values: Sequence[float], signed: bool = False) -> str:
    """The mean, and behind it the standard deviation if there are several values."""
    mean = f"{statistics.mean(values):{'+' if signed else ''}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
