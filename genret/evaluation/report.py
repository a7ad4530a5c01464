"""The report of a run: one HTML file that needs nothing else, not even a network."""

import html
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from genret.evaluation.measures import (
    Qrels,
    Rankings,
    document_rankings,
    first_relevant_rank,
    is_answerable,
    judgements,
)
from genret.evaluation.statistics import reciprocal_rank
from genret.evaluation.table import Comparison, percent

Figure = dict[str, Any]
"""What plotly.js draws: `data` and `layout`."""

_QUERIES_A_GROUP = 5
_PASSAGES_A_QUERY = 3
_IDENTIFIERS = 20
_REASONS = 50
_DEPTHS = 10
_MOVED_A_DIRECTION = 10
# Losses are smoothed over so large a part of them on either side.
_SMOOTHED_PART = 10
_MAIN_KINDS = ("NDCG", "MRR", "MAP", "HIT")
_RANK_BINS = ((1, 1), (2, 2), (3, 3), (4, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, 1000))
# Legible on white and on near-black. Ranks go from dark to light, "not found" is grey.
_RETRIEVER_COLOURS = ("#3b7fc4", "#d97f2b", "#3a9d78", "#a662b5", "#b3953b", "#c4566a")
_RANK_COLOURS = (
    "#1d4e89", "#2c66a8", "#3f7fc4", "#5f99d3", "#84b3df", "#a5c8e8", "#bdd7ee", "#d0e2f3", "#e0ebf6",
)  # fmt: skip
_NOT_FOUND_COLOUR = "#8d929b"
# What HTML cannot hold: control characters but tab and line ends, and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the report shows; tables are those of `genret.tables` and may be empty.

    Attributes:
        name: Name of the run.
        created: When the report was made, as it should read.
        versions: Version by package.
        stages: One mapping a stage: `stage` (its name), `seconds`, `rows` (number of rows by table),
            `rejects`.
        config_yaml: The resolved configuration.
        measures: Table `measures`.
        query_measures: Table `query_measures`.
        significance: Table `significance`.
        slice_measures: Table `slice_measures`.
        rank_moves: Table `rank_moves`.
        query_moves: Table `query_moves`.
        win_rates: Table `win_rates`.
        dataset_statistics: Table `dataset_statistics`.
        identifier_statistics: Table `identifier_statistics`.
        identifier_depths: Table `identifier_depths`.
        run: Table `run`.
        latencies: Table `latencies`.
        test_queries: Table `test_queries`.
        qrels: Table `qrels`.
        passages: Table `passages`.
        identifiers: Table `identifiers`.
        training_log: Table `training_log`.
        validation_log: Table `validation_log`.
        rejects: Table `rejects`, of all stages.
    """

    name: str
    created: str
    versions: Mapping[str, str]
    stages: Sequence[Mapping[str, Any]]
    config_yaml: str
    measures: pa.Table
    query_measures: pa.Table
    significance: pa.Table
    slice_measures: pa.Table
    rank_moves: pa.Table
    query_moves: pa.Table
    win_rates: pa.Table
    dataset_statistics: pa.Table
    identifier_statistics: pa.Table
    identifier_depths: pa.Table
    run: pa.Table
    latencies: pa.Table
    test_queries: pa.Table
    qrels: pa.Table
    passages: pa.Table
    identifiers: pa.Table
    training_log: pa.Table
    validation_log: pa.Table
    rejects: pa.Table


@dataclass(frozen=True)
class FoundPassage:
    """A place in a ranking, to be read."""

    rank: int
    title: str
    excerpt: str
    is_relevant: bool


@dataclass(frozen=True)
class QueryCard:
    """A query with what should have been found and what was.

    Attributes:
        text: The query.
        values: The main measure by retriever, in per cent.
        expected: The relevant documents.
        found: The first passages by retriever.
    """

    text: str
    values: Mapping[str, str]
    expected: Sequence[FoundPassage]
    found: Mapping[str, Sequence[FoundPassage]]


@dataclass(frozen=True)
class MovedQuery:
    """A query whose first relevant document has another rank than before.

    Attributes:
        text: The query.
        before: The rank before, a dash where it was not found.
        after: The rank after, likewise.
    """

    text: str
    before: str
    after: str


@dataclass(frozen=True)
class SliceRow:
    """A part of the test queries.

    Attributes:
        name: What the queries have in common.
        n_queries: How many they are.
        cells: The row of the table `slice_measures` by retriever.
    """

    name: str
    n_queries: int
    cells: dict[str, dict[str, Any]]

    def is_best(self, retriever: str) -> bool:
        """Whether others have a lower value and none a higher one, as far as one decimal shows."""
        values = [cell["value"] for cell in self.cells.values()]
        best = percent(max(values))
        return percent(min(values)) != best == percent(self.cells[retriever]["value"])


@dataclass(frozen=True)
class SimilarityRow:
    """A set of synthetic queries.

    Attributes:
        name: Its name.
        similarity: Mean over the test queries of the similarity to the closest query of the set.
        n_queries: How many test queries.
        win_rates: Its win rate over each other set.
    """

    name: str
    similarity: float
    n_queries: int
    win_rates: dict[str, float]


def write_report(inputs: ReportInputs) -> str:
    """Render the report.

    The page loads nothing: plotly.js is inlined, fonts are the system's, and a content security policy
    forbids the rest. All texts are escaped, and characters that HTML cannot hold become U+FFFD.

    Args:
        inputs: Tables and facts of a run.

    Returns:
        The HTML, some five megabytes of it plotly.js.

    Raises:
        InputError: A table does not fit its schema, or the tables do not fit together.
    """
    comparison = Comparison.of(inputs.measures, inputs.significance)
    qrels = judgements(inputs.qrels)
    scored = [
        query_id
        for query_id in inputs.test_queries.column("query_id").to_pylist()
        if is_answerable(qrels.get(query_id, {}))
    ]
    rankings = document_rankings(inputs.run, inputs.passages)
    main_measure = choose_main_measure(comparison.measures)
    figures = {}
    if comparison.retrievers:
        figures["measures"] = measures_figure(comparison)
        if inputs.latencies.num_rows and main_measure:
            figures["tradeoff"] = tradeoff_figure(comparison, main_measure, inputs.latencies)
        figures["ranks"] = ranks_figure(comparison.retrievers, rankings, {name: qrels[name] for name in scored})
    losses = loss_figures(inputs.training_log, inputs.validation_log)
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            inputs=inputs,
            comparison=comparison,
            main_measure=main_measure,
            figures=figures | {f"loss-{number}": figure for number, figure in enumerate(losses.values())},
            training=training_rows(inputs.training_log),
            stages=list(inputs.stages),
            latencies=inputs.latencies.to_pylist(),
            significance=inputs.significance.to_pylist(),
            slices=slice_rows(inputs.slice_measures, main_measure),
            moves=inputs.rank_moves.to_pylist(),
            moved=moved_queries(inputs.query_moves, inputs.test_queries),
            similarity=similarity_rows(inputs.win_rates),
            dataset=inputs.dataset_statistics.to_pylist(),
            identifier_statistics=inputs.identifier_statistics.to_pylist(),
            identifier_depths=depth_rows(inputs.identifier_depths),
            rejects=reject_rows(inputs.rejects),
            max_reasons=_REASONS,
            max_moved=_MOVED_A_DIRECTION,
            groups=query_groups(inputs, qrels, main_measure) if main_measure else {},
            identifiers=identifier_rows(inputs.identifiers, inputs.passages),
            sources=Counter(inputs.identifiers.column("source").to_pylist()),
            plotly_js=Markup(get_plotlyjs()),
        )
    )


def choose_main_measure(measures: Sequence[str]) -> str:
    """The measure to sort queries by: NDCG if there is one, else MRR, MAP, HIT, the first; "" for none."""
    by_kind = (name for kind in _MAIN_KINDS for name in measures if name.startswith(f"{kind}@"))
    return next(by_kind, measures[0] if measures else "")


def measures_figure(comparison: Comparison) -> Figure:
    """Bars of all measures in per cent, a colour a retriever, with confidence intervals as error bars."""
    data = []
    for number, retriever in enumerate(comparison.retrievers):
        cells = [comparison.cells[retriever, measure] for measure in comparison.measures]
        data.append(
            {
                "type": "bar",
                "name": _label(retriever),
                "x": [_label(measure) for measure in comparison.measures],
                "y": [100 * cell["value"] for cell in cells],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * (cell["ci_high"] - cell["value"]) for cell in cells],
                    "arrayminus": [100 * (cell["value"] - cell["ci_low"]) for cell in cells],
                    "thickness": 1.2,
                    "width": 2,
                },
                "customdata": [[percent(cell["ci_low"]), percent(cell["ci_high"])] for cell in cells],
                "hovertemplate": "%{x}: %{y:.1f} (%{customdata[0]} to %{customdata[1]})",
                "marker": {"color": _RETRIEVER_COLOURS[number % len(_RETRIEVER_COLOURS)]},
            }
        )
    layout = _layout(height=340, x={"type": "category"}, y={"title": {"text": "per cent"}, "rangemode": "tozero"})
    return {"data": data, "layout": layout | {"barmode": "group", "bargap": 0.25}}


def tradeoff_figure(comparison: Comparison, measure: str, latencies: pa.Table) -> Figure:
    """One measure against the time a query takes, a point a retriever in its colour, with confidence intervals.

    Args:
        comparison: The measures.
        measure: Which of them.
        latencies: Table `latencies`; retrievers without a row are left out.
    """
    milliseconds = {row["retriever"]: row["milliseconds_a_query"] for row in latencies.to_pylist()}
    data = []
    times: list[float] = []
    for number, retriever in enumerate(comparison.retrievers):
        # A logarithm has no place for what took no time at all.
        if milliseconds.get(retriever, 0.0) <= 0.0:
            continue
        cell = comparison.cells[retriever, measure]
        times.append(milliseconds[retriever])
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": _label(retriever),
                "x": [milliseconds[retriever]],
                "y": [100 * cell["value"]],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * (cell["ci_high"] - cell["value"])],
                    "arrayminus": [100 * (cell["value"] - cell["ci_low"])],
                    "thickness": 1.2,
                    "width": 3,
                },
                "text": [_label(retriever)],
                "textposition": "middle right",
                "cliponaxis": False,
                "hovertemplate": "%{x:.3g} ms: %{y:.1f}<extra>" + _label(retriever) + "</extra>",
                "marker": {"color": _RETRIEVER_COLOURS[number % len(_RETRIEVER_COLOURS)], "size": 10},
            }
        )
    # Room on the right for the names.
    bounds = [math.log10(min(times, default=1.0)) - 0.2, math.log10(max(times, default=1.0)) + 0.5]
    layout = _layout(
        height=320,
        x={"type": "log", "title": {"text": "milliseconds a query"}, "range": bounds, "dtick": "D2"},
        y={"title": {"text": f"{_label(measure)}, per cent"}},
    )
    return {"data": data, "layout": layout | {"showlegend": False}}


def file_size(size: int) -> str:
    """A number of bytes in MB with one decimal, or in kB where it is less than a tenth of one."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def ranks_figure(retrievers: Sequence[str], rankings: Mapping[str, Rankings], qrels: Qrels) -> Figure:
    """How far down the first relevant document is: a bar of 100 per cent a retriever, cut up by rank.

    Args:
        retrievers: The bars, from the top.
        rankings: Rankings of documents by retriever.
        qrels: The queries that are scored.
    """
    counts = {
        retriever: rank_counts(
            first_relevant_rank(rankings.get(retriever, {}).get(query_id, []), relevance)
            for query_id, relevance in qrels.items()
        )
        for retriever in retrievers
    }
    deepest = max((len(ranking) for found in rankings.values() for ranking in found.values()), default=0)
    bins = [_bin_name(low, high) for low, high in _RANK_BINS if low <= deepest]
    colours = dict(zip((_bin_name(low, high) for low, high in _RANK_BINS), _RANK_COLOURS, strict=True))
    data = []
    for name in [*bins, "not found"]:
        shares = [100 * counts[retriever][name] / len(qrels) for retriever in retrievers]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "x": shares,
                "y": [_label(retriever) for retriever in retrievers],
                "text": [f"{share:.0f}" if share >= 6 else "" for share in shares],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
                "hovertemplate": f"{name if name == 'not found' else 'rank ' + name}: %{{x:.1f}} %",
                "marker": {"color": colours.get(name, _NOT_FOUND_COLOUR)},
            }
        )
    layout = _layout(
        height=120 + 44 * len(retrievers),
        x={"title": {"text": "per cent of the queries"}, "range": [0, 100]},
        y={"type": "category", "autorange": "reversed", "ticklabelstandoff": 8},
    )
    layout["legend"]["traceorder"] = "normal"
    return {"data": data, "layout": layout | {"barmode": "stack", "bargap": 0.3}}


def rank_counts(ranks: Iterable[int]) -> Counter[str]:
    """How many ranks fall into each bin of the plot; 0 is "not found"."""
    return Counter(
        next((_bin_name(low, high) for low, high in _RANK_BINS if low <= rank <= high), "not found") for rank in ranks
    )


def loss_figures(training_log: pa.Table, validation_log: pa.Table) -> dict[str, Figure]:
    """The loss by optimiser step, a figure a stage: their losses are not comparable.

    A logged loss may be that of a single batch: where there are enough of them, they are a light line behind the
    `smoothed` one.

    Args:
        training_log: Table `training_log`.
        validation_log: Table `validation_log`; a stage that has rows there gets a line more.
    """
    figures, measured = {}, _by_stage(validation_log)
    for number, (stage, rows) in enumerate(_by_stage(training_log).items()):
        colour = _RETRIEVER_COLOURS[number % len(_RETRIEVER_COLOURS)]
        losses = [row["loss"] for row in rows]
        means = smoothed(losses)
        data = [_loss_line(rows, losses, "training rows", {"color": colour, "width": 2})]
        if len(rows) >= _SMOOTHED_PART:
            data[0] |= {"opacity": 0.35, "line": {"color": colour, "width": 1}}
            data.append(_loss_line(rows, means, "training rows, smoothed", {"color": colour, "width": 2}))
        if stage in measured:
            dashes = {"color": _RETRIEVER_COLOURS[(number + 1) % len(_RETRIEVER_COLOURS)], "width": 2, "dash": "dot"}
            unseen = [row["loss"] for row in measured[stage]]
            data.append(_loss_line(measured[stage], unseen, "queries that are not trained on", dashes))
        layout = _layout(
            height=280,
            x={"title": {"text": "optimiser step"}},
            y={"title": {"text": f"loss, {_label(stage)}"}, "rangemode": "tozero"},
        )
        figures[stage] = {"data": data, "layout": layout | {"showlegend": len(data) > 1}}
    return figures


def smoothed(losses: Sequence[float]) -> list[float]:
    """Each loss as the mean of those around it: of a tenth of all on either side, of fewer at the ends.

    One that is not finite stays as it is, and counts in no mean. Fewer than ten stay as they are.
    """
    reach = len(losses) // _SMOOTHED_PART
    means = []
    for place, loss in enumerate(losses):
        around = [other for other in losses[max(0, place - reach) : place + reach + 1] if math.isfinite(other)]
        means.append(math.fsum(around) / len(around) if math.isfinite(loss) else loss)
    return means


def _loss_line(
    rows: Sequence[Mapping[str, Any]], losses: Sequence[float], name: str, line: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(rows) < 30 else "lines",
        "name": name,
        "x": [row["step"] for row in rows],
        # JSON has no NaN: a loss that diverged is a gap in the line.
        "y": [loss if math.isfinite(loss) else None for loss in losses],
        "customdata": [row["seconds"] / 60 for row in rows],
        "hovertemplate": "step %{x}, %{customdata:.1f} min: %{y:.4g}<extra></extra>",
        "line": dict(line),
        "marker": {"size": 5},
    }


def training_rows(training_log: pa.Table) -> list[dict[str, Any]]:
    """A row a training stage: steps, epochs, seconds, first and last loss, and how the machine was used.

    The losses are those of the `smoothed` log: single batches may differ more than training changes their mean.
    Throughput and the share of the machine's rate (MFU) are means over the tokens, as the log has them for stages that
    read tokens; memory is the most that there was. All three are None where the log does not tell.
    """
    stages = _by_stage(training_log)
    losses = {stage: smoothed([row["loss"] for row in rows]) for stage, rows in stages.items()}
    return [
        {
            "stage": stage,
            "steps": rows[-1]["step"],
            "epochs": rows[-1]["epoch"],
            "seconds": rows[-1]["seconds"],
            "first_loss": losses[stage][0],
            "last_loss": losses[stage][-1],
            "tokens_a_second": _mean_rate(rows, "tokens_a_second"),
            "mfu": _mean_rate(rows, "mfu"),
            "memory_gib": max(row["memory_gib"] for row in rows) or None,
        }
        for stage, rows in stages.items()
    ]


def _mean_rate(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    """The mean over time of a rate that is known for each stretch of so many tokens; the first one is warm-up."""
    stretches = [row for row in (rows[1:] or rows) if row["tokens"] and row["tokens_a_second"]]
    seconds = [row["tokens"] / row["tokens_a_second"] for row in stretches]
    total = sum(seconds)
    return sum(row[column] * part for row, part in zip(stretches, seconds, strict=True)) / total if total else None


def reject_rows(rejects: pa.Table) -> list[dict[str, Any]]:
    """Rejects counted by stage and reason, the most frequent first, with up to three ids each."""
    examples: dict[tuple[str, str], list[str]] = {}
    for row in rejects.to_pylist():
        examples.setdefault((row["stage"], row["reason"]), []).append(row["input_id"])
    return [
        {"stage": stage, "reason": reason, "count": len(ids), "examples": ids[:3]}
        for (stage, reason), ids in sorted(examples.items(), key=lambda item: -len(item[1]))
    ]


def identifier_rows(identifiers: pa.Table, passages: pa.Table) -> list[dict[str, str]]:
    """A sample of identifiers, evenly spaced over the table, with the titles of their passages."""
    n = identifiers.num_rows
    places = sorted({number * n // _IDENTIFIERS for number in range(_IDENTIFIERS)}) if n else []
    rows = identifiers.take(pa.array(places, type=pa.int64())).to_pylist()
    shown = _passages_by_id(passages, [row["passage_id"] for row in rows])
    return [row | {"title": _title(shown.get(row["passage_id"]), row["passage_id"])} for row in rows]


def slice_rows(measures: pa.Table, measure: str) -> dict[str, list[SliceRow]]:
    """The slices by what was sliced by, with one measure of each retriever.

    What puts all queries into one slice tells nothing and is left out.
    """
    found: dict[str, dict[str, SliceRow]] = {}
    for row in measures.to_pylist():
        if row["measure"] == measure:
            parts = found.setdefault(row["slice_by"], {})
            part = parts.setdefault(row["slice"], SliceRow(excerpt(row["slice"], 60), row["n_queries"], {}))
            part.cells[row["retriever"]] = row
    return {slice_by: list(parts.values()) for slice_by, parts in found.items() if len(parts) > 1}


def moved_queries(moves: pa.Table, test_queries: pa.Table) -> dict[str, list[MovedQuery]]:
    """The queries whose reciprocal rank rose most and fell most, the furthest first, by direction.

    Args:
        moves: Table `query_moves`.
        test_queries: Table `test_queries`.

    Returns:
        At most ten queries a direction, equally far ones in the order of `moves`; a direction without any is left out.
    """
    texts = dict(zip(test_queries["query_id"].to_pylist(), test_queries["text"].to_pylist(), strict=True))
    changed = [
        (reciprocal_rank(row["rank_after"]) - reciprocal_rank(row["rank_before"]), row) for row in moves.to_pylist()
    ]
    directions = {
        "Furthest up": sorted((entry for entry in changed if entry[0] > 0), key=lambda entry: -entry[0]),
        "Furthest down": sorted((entry for entry in changed if entry[0] < 0), key=lambda entry: entry[0]),
    }
    return {
        title: [
            MovedQuery(excerpt(texts[row["query_id"]], 160), *map(_shown_rank, (row["rank_before"], row["rank_after"])))
            for _, row in entries[:_MOVED_A_DIRECTION]
        ]
        for title, entries in directions.items()
        if entries
    }


def _shown_rank(rank: int) -> str:
    return f"{rank:,}" if rank else "–"


def similarity_rows(win_rates: pa.Table) -> list[SimilarityRow]:
    """The sets of synthetic queries with their win rates over each other."""
    rows: dict[str, SimilarityRow] = {}
    for row in win_rates.to_pylist():
        one = rows.setdefault(row["set_a"], SimilarityRow(row["set_a"], row["similarity_a"], row["n_queries"], {}))
        one.win_rates[row["set_b"]] = row["win_rate"]
    return list(rows.values())


def depth_rows(depths: pa.Table) -> list[dict[str, Any]]:
    """The first depths of an `identifier_depths` table, each with the bits that its token adds."""
    rows = depths.slice(0, _DEPTHS).to_pylist()
    before = [0.0, *(row["bits"] for row in rows)]
    return [row | {"added": row["bits"] - bits} for row, bits in zip(rows, before, strict=False)]


def query_groups(inputs: ReportInputs, qrels: Qrels, measure: str) -> dict[str, list[QueryCard]]:
    """The worst, the best and the most disputed queries by a measure; no query twice.

    Worst and best go by the mean over the retrievers, disputed by the distance between the best and the worst
    of them. Among equals, those that come first in `test_queries`.
    """
    values: dict[str, dict[str, float]] = {}
    for row in inputs.query_measures.to_pylist():
        if row["measure"] == measure:
            values.setdefault(row["query_id"], {})[row["retriever"]] = row["value"]

    def mean(query_id: str) -> float:
        return sum(values[query_id].values()) / len(values[query_id])

    def distance(query_id: str) -> float:
        return max(values[query_id].values()) - min(values[query_id].values())

    worst = sorted(values, key=mean)[:_QUERIES_A_GROUP]
    best = sorted((name for name in values if name not in worst), key=lambda name: -mean(name))[:_QUERIES_A_GROUP]
    others = [name for name in values if name not in {*worst, *best} and distance(name) > 0]
    disputed = sorted(others, key=lambda name: -distance(name))[:_QUERIES_A_GROUP]
    groups = {"Worst": worst, "Best": best, "Most disputed": disputed}
    cards = _query_cards(inputs, qrels, {name: values[name] for group in groups.values() for name in group})
    return {title: [cards[name] for name in names] for title, names in groups.items() if names}


def _query_cards(inputs: ReportInputs, qrels: Qrels, values: Mapping[str, Mapping[str, float]]) -> dict[str, QueryCard]:
    query_ids = pa.array(list(values), type=pa.string())
    texts = {
        row["query_id"]: row["text"]
        for row in inputs.test_queries.filter(pc.is_in(inputs.test_queries["query_id"], query_ids)).to_pylist()
    }
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    first = pc.less_equal(inputs.run["rank"], _PASSAGES_A_QUERY)
    for row in inputs.run.filter(pc.and_(first, pc.is_in(inputs.run["query_id"], query_ids))).to_pylist():
        places.setdefault((row["query_id"], row["retriever"]), []).append(row)
    shown = _passages_by_id(inputs.passages, [row["passage_id"] for found in places.values() for row in found])
    relevant = {
        query_id: [doc_id for doc_id, relevance in qrels[query_id].items() if relevance > 0] for query_id in values
    }
    documents = _first_passages(inputs.passages, [doc_id for ids in relevant.values() for doc_id in ids])
    cards = {}
    for query_id, by_retriever in values.items():
        found = {
            retriever: [
                _found(row["rank"], shown[row["passage_id"]], row["passage_id"], relevant[query_id])
                for row in sorted(places.get((query_id, retriever), []), key=lambda row: row["rank"])
            ]
            for retriever in by_retriever
        }
        cards[query_id] = QueryCard(
            text=excerpt(texts[query_id], 400),
            values={retriever: percent(value) for retriever, value in by_retriever.items()},
            expected=[
                _found(0, documents.get(doc_id), doc_id, relevant[query_id])
                for doc_id in relevant[query_id][:_PASSAGES_A_QUERY]
            ],
            found=found,
        )
    return cards


def excerpt(text: str, length: int) -> str:
    """The beginning of a text on one line, cut at a space where there is one, with … where it was cut."""
    line = " ".join(text[: 4 * length].split())
    if len(line) <= length:
        return line
    cut = line.rfind(" ", length // 2, length)
    return line[: cut if cut > 0 else length - 1].rstrip() + "…"


def _found(rank: int, passage: Mapping[str, str] | None, name: str, relevant: Sequence[str]) -> FoundPassage:
    return FoundPassage(
        rank=rank,
        title=_title(passage, name),
        excerpt=excerpt(passage["text"], 180) if passage else "",
        is_relevant=passage is not None and passage["doc_id"] in relevant,
    )


def _title(passage: Mapping[str, str] | None, name: str) -> str:
    if passage is None:
        return f"{name} (not in the corpus)"
    return excerpt(passage["title"], 120) or excerpt(passage["text"], 60) or name


def _passages_by_id(passages: pa.Table, passage_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    wanted = pc.is_in(passages["passage_id"], pa.array(passage_ids, type=pa.string()))
    return {row["passage_id"]: row for row in passages.filter(wanted).to_pylist()}


def _first_passages(passages: pa.Table, doc_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    wanted = pc.is_in(passages["doc_id"], pa.array(doc_ids, type=pa.string()))
    return {row["doc_id"]: row for row in reversed(passages.filter(wanted).to_pylist())}


def _by_stage(log: pa.Table) -> dict[str, list[dict[str, Any]]]:
    stages: dict[str, list[dict[str, Any]]] = {}
    for row in log.to_pylist():
        stages.setdefault(row["stage"], []).append(row)
    return {stage: sorted(rows, key=lambda row: row["step"]) for stage, rows in stages.items()}


def _bin_name(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


def _layout(height: int, x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    """What all plots share. Colours of text and lines are the style sheet's, for dark mode and print."""
    shared = {"automargin": True, "fixedrange": True}
    return {
        "height": height,
        "margin": {"l": 48, "r": 16, "t": 8, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#8d929b", "activecolor": "#8d929b"},
        "dragmode": False,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": shared | x,
        "yaxis": shared | y,
    }


def probability(p: float) -> str:
    """A p-value with three decimals, or that it is smaller than they can show."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def points(difference: float, decimals: int) -> str:
    """A difference of shares in percentage points, with its sign where it is not zero."""
    text = f"{100 * difference:+.{decimals}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def _label(text: str) -> str:
    """Text for plotly, which reads a few HTML tags in labels, links among them."""
    return html.escape(_printable(text), quote=False)


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("genret.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Markup is a str too, but it is the template's own or plotly.js.
        finalize=lambda value: _printable(value) if type(value) is str else value,
    )
    environment.filters["percent"] = percent
    environment.filters["probability"] = probability
    environment.filters["points"] = points
    environment.filters["file_size"] = file_size
    return environment
