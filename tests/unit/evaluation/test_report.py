"""The report: what it says, and that no text of a corpus gets out of its place."""

import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.config import EvaluationConfig
from genret.evaluation.measures import evaluate, judgements
from genret.evaluation.report import (
    ReportInputs,
    choose_main_measure,
    depth_rows,
    excerpt,
    file_size,
    identifier_rows,
    loss_figures,
    moved_queries,
    points,
    probability,
    query_groups,
    rank_counts,
    ranks_figure,
    reject_rows,
    similarity_rows,
    slice_rows,
    smoothed,
    tradeoff_figure,
    training_rows,
    write_report,
)
from genret.evaluation.table import Comparison
from genret.tables import SCHEMAS, passages_to_table, reject, table_from_rows
from genret.types import Passage

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "' onmouseover='alert(4)",
    "{{ 7 * 7 }}{% raw %}",
    "</pre></details><!--",
    "\u202eright to left\u202c שלום",
    "nul\x00bell\x07delete\x7f",
    "<a href=https://example.org/>link</a>",
]


class Page(HTMLParser):
    """Everything a browser would see: elements with attributes, and texts by the element that holds them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data))

    def text(self, without: tuple[str, ...] = ("script", "style")) -> str:
        return " ".join(" ".join(data for tag, data in self.texts if tag not in without).split())

    def figures(self) -> dict[str, Any]:
        place = next(number for number, (_, attrs) in enumerate(self.elements) if attrs.get("id") == "figures")
        number = sum(tag == "script" for tag, _ in self.elements[:place])
        return json.loads([data for tag, data in self.texts if tag == "script"][number])


def inputs_of(
    n_queries: int = 30,
    names: tuple[str, ...] = ("rpo", "bm25"),
    texts: list[str] | None = None,
    **changes: Any,
) -> ReportInputs:
    """A small run: query n is about passage n, which the first retriever finds, the others seldom."""
    texts = texts or [f"text {number} of a passage" for number in range(n_queries)]
    passages = passages_to_table(
        Passage(f"p{number}", f"d{number}", texts[number % len(texts)], title=texts[number % len(texts)])
        for number in range(n_queries)
    )
    queries = table_from_rows(
        "test_queries",
        [{"query_id": f"q{n}", "text": f"question {n} {texts[n % len(texts)]}"} for n in range(n_queries)],
    )
    qrels = table_from_rows(
        "qrels", [{"query_id": f"q{n}", "doc_id": f"d{n}", "relevance": 1} for n in range(n_queries)]
    )
    run = table_from_rows(
        "run",
        [
            {
                "query_id": f"q{n}",
                "passage_id": f"p{(n + (rank - 1) + place * (n % 4)) % n_queries}",
                "rank": rank,
                "score": -float(rank),
                "retriever": name,
            }
            for place, name in enumerate(names)
            for n in range(n_queries)
            for rank in range(1, min(4, n_queries) + 1)
        ],
    )
    config = EvaluationConfig(measures=("HIT@1", "NDCG@4"), bootstrap_samples=100)
    tables = evaluate(config, run, qrels, queries, passages)
    facts: dict[str, Any] = {
        "name": "demo",
        "created": "2024-05-06 07:08 UTC",
        "versions": {"python": "3.11.9"},
        "stages": [
            {"stage": "corpus", "seconds": 1234.56, "rows": {"passages": 5183, "qrels": 7}, "rejects": 2},
            {"stage": "base", "seconds": 0.04, "rows": {}, "rejects": 0},
        ],
        "config_yaml": "seed: 7\n",
        "measures": tables["measures"],
        "query_measures": tables["query_measures"],
        **analyses(names, texts[:2]),
        "query_moves": rows_table("query_moves", *[("q0", 3, 1), ("q1", 0, 2), ("q2", 5, 5), ("q3", 1, 0)][:n_queries]),
        "run": run,
        "latencies": table_from_rows(
            "latencies",
            [
                {
                    "retriever": names[0],
                    "n_queries": n_queries,
                    "seconds": 3.0,
                    "milliseconds_a_query": 1234.5,
                    "index_bytes": 12_345_678,
                }
            ],
        ),
        "test_queries": queries,
        "qrels": qrels,
        "passages": passages,
        "identifiers": table_from_rows(
            "identifiers",
            [
                {"passage_id": f"p{n}", "identifier": f"{texts[n % len(texts)]}, {n}", "source": "llm"}
                for n in range(n_queries)
            ],
        ),
        "training_log": log_of("sft", [2.0, 1.5, 1.25]),
        "validation_log": validations_of("sft", [2.5, 2.0]),
        "rejects": table_from_rows("rejects", [reject("corpus", f"x{n}", texts[0]) for n in range(4)]),
    }
    return ReportInputs(**(facts | changes))


def rows_table(name: str, *rows: tuple) -> pa.Table:
    return table_from_rows(name, [dict(zip(SCHEMAS[name].names, row, strict=True)) for row in rows])


def analyses(names: tuple[str, ...], texts: list[str]) -> dict[str, pa.Table]:
    """What the evaluation tells beyond the measures, with texts of the corpus where it may hold some."""
    first, last = texts[0], texts[-1]
    return {
        "significance": rows_table(
            "significance",
            *(("HIT@1", names[0], name, -0.123, 0.0004, 0.0441, 30) for name in names[1:]),
        ),
        "slice_measures": rows_table(
            "slice_measures",
            *(
                (slice_by, part, name, measure, value, 7, value - 0.1, value + 0.1)
                for slice_by, parts in (("length", ("1–3", "4–6")), (first, (first, last)), ("single", (first,)))
                for tenths, part in enumerate(parts, 3)
                for place, name in enumerate(names)
                for measure, value in (("NDCG@4", tenths / 10 + place / 100), ("HIT@1", 0.9))
            ),
        ),
        "rank_moves": rows_table(
            "rank_moves",
            ("sft", "rpo", "up", 20, 0.01234),
            ("sft", "rpo", "unchanged", 8, 0.0),
            ("sft", "rpo", "lost", 2, -0.05),
        ),
        "win_rates": rows_table(
            "win_rates", (first, "all", 0.25, 0.5, 0.1, 0.3, 1234), ("all", first, 0.5, 0.25, 0.3, 0.1, 1234)
        ),
        "dataset_statistics": rows_table(
            "dataset_statistics", ("passages", 5183, 211.75, 200.0, 1556), (f"{last} queries", 3, 1.5, 1.0, 2)
        ),
        "identifier_statistics": rows_table("identifier_statistics", ("llm", 4321, 3.25, 9), (first, 2, 4.0, 4)),
        "identifier_depths": rows_table(
            "identifier_depths", *((depth, 1000 + depth, 50 - depth, 2.5 * depth) for depth in range(1, 13))
        ),
    }


NO_VALIDATION = table_from_rows("validation_log", [])


def validations_of(stage: str, losses: list[float]) -> pa.Table:
    return table_from_rows(
        "validation_log",
        [{"stage": stage, "step": 5 * n, "loss": loss, "seconds": 6.0 * n} for n, loss in enumerate(losses)],
    )


def log_of(stage: str, losses: list[float]) -> pa.Table:
    return table_from_rows(
        "training_log",
        [
            {
                "stage": stage,
                "step": 10 * number,
                "epoch": number / 2,
                "loss": loss,
                "learning_rate": 0.1,
                "seconds": 2.5 * number,
                "tokens": 100,
                "tokens_a_second": 400.0,
                "mfu": 0.4,
                "memory_gib": 1.5,
            }
            for number, loss in enumerate(losses, 1)
        ],
    )


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(write_report(inputs_of()))


@pytest.fixture(scope="module")
def hostile_source() -> str:
    return write_report(
        inputs_of(
            n_queries=27,
            names=(HOSTILE[1], HOSTILE[8]),
            texts=HOSTILE,
            name=HOSTILE[0],
            created=HOSTILE[2],
            versions={HOSTILE[2]: HOSTILE[3]},
            stages=[{"stage": HOSTILE[0], "seconds": 1.0, "rows": {HOSTILE[2]: 1}, "rejects": 0}],
            config_yaml="\n".join(HOSTILE),
            training_log=log_of(HOSTILE[1], [1.0, 0.5]),
        )
    )


def test_all_sections_say_what_the_tables_say(page: Page) -> None:
    text = page.text()
    for part in (
        "demo Report of 2024-05-06 07:08 UTC python 3.11.9",
        "retriever HIT@1 NDCG@4",
        "Per cent, mean over 30 queries.",
        "rpo 30 3.00 1,234.50",
        "sft 30 1.50 7.5 2.0000 1.2500 400 40.0 1.50",
        "corpus 1,234.6 passages 5,183; qrels 7 2",
        "all 1,234.6 2",
        "corpus text 0 of a passage 4 x0 , x1 , x2",
        "20 of 30, evenly spaced. By source: llm 30.",
        "measure retriever minus difference p p, corrected HIT@1 rpo bm25 −12.3 <0.001 0.044",
        "By length length queries rpo bm25 1–3 7 30.0 20.0–40.0 31.0 21.0–41.0 4–6 7 40.0",
        "from sft to rpo . rank queries share (%) change of MRR",
        "up 20 66.7 +1.23 unchanged 8 26.7 0.00 lost 2 6.7 −5.00",
        "all 30 −3.77",
        "Furthest up query before after question 0 text 0 of a passage 3 1 question 1 text 1 of a passage – 2",
        "Furthest down query before after question 3 text 3 of a passage 1 –",
        "at most 10 queries each",
        "passages 5,183 211.8 200.0 1,556",
        "text 0 of a passage 10.0 – 25.0 all 30.0 50.0 –",
        "over 1,234 test queries",
        "llm 4,321 3.2 9",
        "1 1,001 49 2.50 2.50 2 1,002 48 5.00 2.50",
        "The first 10 of 12 depths.",
        "seed: 7",
    ):
        assert part in text, part


def test_the_comparison_holds_values_and_intervals() -> None:
    inputs = inputs_of()
    text = Page(write_report(inputs)).text()
    for row in inputs.measures.to_pylist():
        assert f"{100 * row['value']:.1f} {100 * row['ci_low']:.1f}–{100 * row['ci_high']:.1f}" in text, row


def test_numbers_are_right_aligned_and_units_named(page: Page) -> None:
    cells = [attrs.get("class") or "" for tag, attrs in page.elements if tag == "td"]
    assert sum("number" in name for name in cells) >= 15
    text = page.text()
    for unit in ("time (s)", "time a query (ms)", "optimiser steps", "Per cent"):
        assert unit in text


def test_every_plot_has_its_figure(page: Page) -> None:
    places = [attrs["id"] for _, attrs in page.elements if attrs.get("class") == "plot"]
    assert places == ["measures", "ranks", "tradeoff", "loss-0"]
    assert set(page.figures()) == set(places)
    bars = page.figures()["measures"]["data"]
    assert [bar["name"] for bar in bars] == ["rpo", "bm25"]
    assert bars[0]["y"] == [100.0, 100.0]


def test_plotly_is_inlined_once(page: Page) -> None:
    scripts = [data for tag, data in page.texts if tag == "script"]
    assert len(scripts) == 3
    assert sum("plotly.js v" in script for script in scripts) == 1


def test_nothing_comes_from_a_network(page: Page, hostile_source: str) -> None:
    for seen in (page, Page(hostile_source)):
        for tag, attrs in seen.elements:
            assert tag not in {"img", "iframe", "object", "embed", "base", "form", "video", "audio"}, tag
            for name in ("src", "srcset", "href", "data", "action", "poster", "background"):
                assert (attrs.get(name) or "#").startswith(("#", "data:,")), (tag, attrs)
        styles = " ".join(data for tag, data in seen.texts if tag == "style")
        assert "url(" not in styles
        assert "@import" not in styles
        policies = [
            attrs["content"] or "" for _, attrs in seen.elements if attrs.get("http-equiv") == "Content-Security-Policy"
        ]
        assert len(policies) == 1
        assert policies[0].startswith("default-src 'none';")
        assert "http" not in policies[0]


def test_hostile_texts_stay_texts(page: Page, hostile_source: str) -> None:
    hostile = Page(hostile_source)
    assert [tag for tag, _ in hostile.elements].count("script") == 3
    for tag, attrs in hostile.elements:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
    allowed = {tag for tag, _ in page.elements}
    assert {tag for tag, _ in hostile.elements} <= allowed
    text = hostile.text()
    for expected in HOSTILE[:6]:
        assert " ".join(expected.split()) in text, expected


def test_characters_that_html_cannot_hold_are_replaced(hostile_source: str) -> None:
    body = hostile_source[: hostile_source.index("plotly.js v")]
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", body)
    assert "nul\ufffdbell\ufffddelete\ufffd" in body


def test_right_to_left_text_is_isolated(hostile_source: str) -> None:
    places = [match.start() for match in re.finditer("\u202e", hostile_source)]
    assert len(places) > 5
    for place in places:
        before = hostile_source[:place]
        isolated = re.search(r'(<bdi>|dir="auto">|<pre>)[^<]*$', before)
        assert isolated, hostile_source[place - 80 : place + 20]


def test_labels_of_plots_are_escaped_for_plotly(hostile_source: str) -> None:
    figures = Page(hostile_source).figures()
    labels = [bar["name"] for bar in figures["measures"]["data"]] + figures["ranks"]["data"][0]["y"]
    assert labels
    assert not [label for label in labels if "<" in label]


def test_an_empty_run_is_reported_too() -> None:
    empty = {
        name: table_from_rows(name, [])
        for name in (
            "measures", "query_measures", "run", "latencies", "test_queries", "qrels", "passages",
            "identifiers", "training_log", "validation_log", "rejects", "significance", "slice_measures",
            "rank_moves", "query_moves", "win_rates",
            "dataset_statistics", "identifier_statistics", "identifier_depths",
        )
    }  # fmt: skip
    page = Page(write_report(inputs_of(stages=[], **empty)))
    text = page.text()
    assert "Nothing was evaluated" in text
    assert "No row was rejected." in text
    assert page.figures() == {}
    sections = {"Slices", "Speed", "Training", "Preference learning", "Queries", "Data", "Identifiers"}
    assert not sections & {data for _, data in page.texts}
    targets = {attrs["href"] for tag, attrs in page.elements if tag == "a"}
    assert targets == {f"#{attrs['id']}" for tag, attrs in page.elements if tag == "section"}


def test_navigation_leads_to_every_section(page: Page) -> None:
    targets = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    assert targets == [
        "#comparison", "#slices", "#speed", "#training", "#preference", "#queries", "#data", "#identifiers",
        "#stages", "#rejects", "#configuration",
    ]  # fmt: skip
    assert set(targets) == {f"#{attrs['id']}" for tag, attrs in page.elements if tag == "section"}


def test_a_diverged_loss_is_a_gap() -> None:
    figure = loss_figures(log_of("sft", [1.0, float("nan"), float("inf")]), NO_VALIDATION)["sft"]
    assert figure["data"][0]["y"] == [1.0, None, None]
    assert Page(write_report(inputs_of(training_log=log_of("sft", [1.0, float("nan")])))).figures()


def test_losses_have_a_figure_and_a_row_a_stage() -> None:
    log = pa.concat_tables([log_of("sft", [2.0, 1.0]), log_of("rpo", [0.7])])
    assert list(loss_figures(log, NO_VALIDATION)) == ["sft", "rpo"]
    assert loss_figures(log.take([1, 2, 0]), NO_VALIDATION)["sft"]["data"][0]["x"] == [10, 20]
    assert [(row["stage"], row["steps"], row["last_loss"]) for row in training_rows(log)] == [
        ("sft", 20, 1.0),
        ("rpo", 10, 0.7),
    ]


def test_throughput_is_all_tokens_over_all_their_time_behind_the_first_stretch() -> None:
    rows = log_of("sft", [3.0, 2.0, 1.0]).to_pylist()
    rows[0] |= {"tokens_a_second": 1.0, "mfu": 0.01, "memory_gib": 3.0}
    rows[1] |= {"tokens": 300, "tokens_a_second": 100.0, "mfu": 0.1}
    rows[2] |= {"tokens": 400, "tokens_a_second": 400.0, "mfu": 0.5}
    (row,) = training_rows(table_from_rows("training_log", rows))
    assert (row["tokens_a_second"], row["mfu"], row["memory_gib"]) == pytest.approx((175.0, 0.2, 3.0))


def test_a_log_that_tells_no_throughput_shows_none() -> None:
    silent = {"tokens": 0, "tokens_a_second": 0.0, "mfu": 0.0, "memory_gib": 0.0}
    log = table_from_rows("training_log", [row | silent for row in log_of("dense", [2.0, 1.0]).to_pylist()])
    (row,) = training_rows(log)
    assert row["tokens_a_second"] is row["mfu"] is row["memory_gib"] is None
    assert "dense 20 1.00 5.0 2.0000 1.0000 – – –" in Page(write_report(inputs_of(training_log=log))).text()


def test_a_loss_is_shown_with_the_minutes_that_it_took() -> None:
    line = loss_figures(log_of("sft", [2.0, 1.0]), NO_VALIDATION)["sft"]["data"][0]
    assert line["customdata"] == pytest.approx([2.5 / 60, 5 / 60])
    assert "%{customdata:.1f} min" in line["hovertemplate"]


@given(st.lists(st.floats(-1e3, 1e3) | st.just(math.nan), max_size=45))
def test_losses_are_smoothed_over_a_tenth_on_either_side(losses: list[float]) -> None:
    reach = len(losses) // 10
    for place, mean in enumerate(smoothed(losses)):
        around = [loss for loss in losses[max(0, place - reach) : place + reach + 1] if not math.isnan(loss)]
        if math.isnan(losses[place]):
            assert math.isnan(mean)
        else:
            assert mean == pytest.approx(sum(around) / len(around), abs=1e-9)
            assert min(around) - 1e-9 <= mean <= max(around) + 1e-9


def test_smoothing_leaves_straight_lines_and_few_losses_as_they_are() -> None:
    assert smoothed([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]
    assert smoothed([]) == []
    line = [float(number) for number in range(50)]
    assert smoothed(line)[5:-5] == line[5:-5]
    assert smoothed([2.0] * 30) == [2.0] * 30
    assert smoothed([1.0, 3.0] * 10 + [math.inf])[-1] == math.inf


def test_many_losses_are_a_light_line_behind_a_smoothed_one() -> None:
    """Batches that differ by more than training gains: the lowest came first."""
    losses = [0.5 if number == 0 else 0.9 - number / 400 + 0.1 * (-1) ** number for number in range(100)]
    log = pa.concat_tables([log_of("dense", losses), log_of("sft", [2.0, 1.0])])
    figures = loss_figures(log, validations_of("dense", [1.0, 0.9]))
    raw, mean, unseen = figures["dense"]["data"]
    assert (raw["y"], mean["y"]) == (losses, smoothed(losses))
    assert raw["opacity"] < 1 and raw["line"]["width"] < mean["line"]["width"]
    assert raw["line"]["color"] == mean["line"]["color"] != unseen["line"]["color"]
    assert len({line["name"] for line in (raw, mean, unseen)}) == 3 and figures["dense"]["layout"]["showlegend"]
    assert len(figures["sft"]["data"]) == 1 and not figures["sft"]["layout"]["showlegend"]
    dense, _ = training_rows(log)
    assert losses[0] < losses[-1]
    assert (dense["first_loss"], dense["last_loss"]) == (smoothed(losses)[0], smoothed(losses)[-1])
    assert dense["first_loss"] > dense["last_loss"]


def test_the_loss_on_unseen_queries_is_a_second_line() -> None:
    logs = pa.concat_tables([log_of("sft", [2.0, 1.0]), log_of("rpo", [0.7])])
    figures = loss_figures(logs, validations_of("sft", [2.5, 2.25, 2.4]))
    trained, unseen = figures["sft"]["data"]
    assert (unseen["x"], unseen["y"]) == ([0, 5, 10], [2.5, 2.25, 2.4])
    assert unseen["customdata"] == pytest.approx([0.0, 0.1, 0.2])
    assert unseen["name"] != trained["name"]
    assert figures["sft"]["layout"]["showlegend"]
    assert len(figures["rpo"]["data"]) == 1 and not figures["rpo"]["layout"]["showlegend"]


def test_ranks_are_binned_and_add_up() -> None:
    assert rank_counts([1, 1, 4, 5, 7, 1000, 0]) == {
        "1": 2,
        "4–5": 2,
        "6–10": 1,
        "101–1000": 1,
        "not found": 1,
    }
    qrels = {f"q{number}": {f"d{number}": 1} for number in range(8)}
    rankings = {"a": {f"q{number}": [f"d{place}" for place in range(6)] for number in range(8)}}
    figure = ranks_figure(["a", "silent"], rankings, qrels)
    shares = {bar["name"]: bar["x"] for bar in figure["data"]}
    assert shares == {
        "1": [12.5, 0.0],
        "2": [12.5, 0.0],
        "3": [12.5, 0.0],
        "4–5": [25.0, 0.0],
        "6–10": [12.5, 0.0],
        "not found": [25.0, 100.0],
    }


def test_rejects_are_counted_by_reason() -> None:
    rejects = table_from_rows(
        "rejects",
        [reject("corpus", "a", "empty"), *(reject("synthesis", f"s{n}", "no list") for n in range(5))],
    )
    assert reject_rows(rejects) == [
        {"stage": "synthesis", "reason": "no list", "count": 5, "examples": ["s0", "s1", "s2"]},
        {"stage": "corpus", "reason": "empty", "count": 1, "examples": ["a"]},
    ]


def test_identifiers_are_sampled_evenly() -> None:
    inputs = inputs_of(n_queries=40)
    rows = identifier_rows(inputs.identifiers, inputs.passages)
    assert [row["passage_id"] for row in rows] == [f"p{number}" for number in range(0, 40, 2)]
    assert rows[1]["title"] == "text 2 of a passage"
    assert len(identifier_rows(inputs.identifiers.slice(0, 3), inputs.passages)) == 3


def test_queries_are_grouped_once_each() -> None:
    inputs = inputs_of()
    groups = query_groups(inputs, judgements(inputs.qrels), "NDCG@4")
    assert list(groups) == ["Worst", "Best", "Most disputed"]
    texts = [card.text for cards in groups.values() for card in cards]
    assert len(texts) == len(set(texts)) == 15
    worst, best, disputed = groups["Worst"][0], groups["Best"][0], groups["Most disputed"][0]
    # bm25 begins n mod 4 places behind the relevant passage: query 1 is a worst one, query 0 a best one.
    assert worst.text.startswith("question 1 ")
    assert worst.values == {"rpo": "100.0", "bm25": "0.0"}
    assert best.values == {"rpo": "100.0", "bm25": "100.0"}
    assert disputed.values["bm25"] == "0.0"
    assert [place.title for place in worst.expected] == ["text 1 of a passage"]
    assert [(place.rank, place.is_relevant) for place in worst.found["rpo"]] == [
        (1, True),
        (2, False),
        (3, False),
    ]
    assert worst.found["bm25"][0].title == "text 2 of a passage"


def test_few_queries_and_one_retriever() -> None:
    inputs = inputs_of(n_queries=2, names=("rpo",))
    groups = query_groups(inputs, judgements(inputs.qrels), "HIT@1")
    assert [(title, len(cards)) for title, cards in groups.items()] == [("Worst", 2)]
    text = Page(write_report(inputs)).text()
    assert "The best of each measure" not in text
    assert "Every retriever against every other" not in text


def test_significant_differences_are_marked_in_the_comparison(page: Page) -> None:
    marks = [data for tag, data in page.texts if tag == "span" and data in "†‡"]
    assert marks == ["‡"]
    assert "‡ worse than bm25 (p < 0.05 in a paired test with Holm's correction)." in page.text()
    unmarked = Page(write_report(inputs_of(significance=table_from_rows("significance", []))))
    assert not [attrs for _, attrs in unmarked.elements if attrs.get("class") == "mark"]
    assert "paired test" not in unmarked.text()


def test_slices_show_the_main_measure_and_what_cuts_nothing_is_left_out() -> None:
    measures = analyses(("rpo", "bm25"), ["a text", "b"])["slice_measures"]
    slices = slice_rows(measures, "NDCG@4")
    assert {slice_by: [row.name for row in rows] for slice_by, rows in slices.items()} == {
        "length": ["1–3", "4–6"],
        "a text": ["a text", "b"],
    }
    row = slices["length"][0]
    assert (row.n_queries, row.cells["rpo"]["value"], row.is_best("rpo"), row.is_best("bm25")) == (7, 0.3, False, True)
    (even, _) = slice_rows(measures, "HIT@1")["length"]
    assert not even.is_best("rpo"), "nobody is the best where all are equal"
    assert slice_rows(measures, "MRR@10") == {}


def test_the_queries_that_moved_furthest_are_shown_in_both_directions() -> None:
    ranks = [(0, 1), (1, 0), (2, 2), (0, 0), (4, 1), (1, 4), *([(10, 9)] * 12), (2000, 0)]
    moves = rows_table("query_moves", *((f"q{number}", *pair) for number, pair in enumerate(ranks)))
    queries = rows_table("test_queries", *((f"q{number}", f"text {number}") for number in range(len(ranks))))
    moved = moved_queries(moves, queries)
    assert [(query.text, query.before, query.after) for query in moved["Furthest up"]] == [
        ("text 0", "–", "1"), ("text 4", "4", "1"), *((f"text {number}", "10", "9") for number in range(6, 14)),
    ]  # fmt: skip
    assert [(query.text, query.before, query.after) for query in moved["Furthest down"]] == [
        ("text 1", "1", "–"), ("text 5", "1", "4"), ("text 18", "2,000", "–"),
    ]  # fmt: skip
    assert list(moved_queries(moves.slice(0, 1), queries)) == ["Furthest up"]
    assert moved_queries(moves.slice(2, 2), queries) == {}


def test_a_run_whose_queries_did_not_move_shows_the_counts_alone() -> None:
    text = Page(write_report(inputs_of(query_moves=rows_table("query_moves")))).text()
    assert "Preference learning" in text and "Furthest" not in text


def test_texts_of_moved_queries_stay_texts() -> None:
    ranks = [(0, 1) if number % 2 else (1, 0) for number in range(len(HOSTILE))]
    moves = rows_table("query_moves", *((f"q{number}", *pair) for number, pair in enumerate(ranks)))
    source = write_report(inputs_of(n_queries=len(HOSTILE), texts=HOSTILE, query_moves=moves))
    section = source[source.index('<section id="preference">') :]
    section = section[: section.index("</section>")]
    shown = Page(section)
    assert {tag for tag, _ in shown.elements} <= {
        "section", "h2", "h3", "p", "bdi", "div", "table", "thead", "tbody", "tfoot", "tr", "th", "td",
    }  # fmt: skip
    assert not [name for _, attrs in shown.elements for name in attrs if name.startswith("on")]
    for number, text in enumerate(HOSTILE[:6]):
        assert f"question {number} {text}" in shown.text()


def test_sets_of_queries_are_set_side_by_side() -> None:
    rows = similarity_rows(
        rows_table("win_rates", ("x", "y", 0.6, 0.1, 0.4, 0.2, 9), ("y", "x", 0.3, 0.1, 0.2, 0.4, 9))
    )
    assert [(row.name, row.similarity, row.win_rates) for row in rows] == [
        ("x", 0.4, {"y": 0.6}),
        ("y", 0.2, {"x": 0.3}),
    ]


def test_depths_tell_what_each_token_adds() -> None:
    rows = depth_rows(rows_table("identifier_depths", (1, 4, 9, 1.5), (2, 9, 0, 3.0)))
    assert [(row["depth"], row["added"]) for row in rows] == [(1, 1.5), (2, 1.5)]
    assert depth_rows(rows_table("identifier_depths")) == []


def test_signs_and_small_numbers() -> None:
    assert [points(value, 1) for value in (0.1234, -0.1234, 0.0, -0.0001)] == ["+12.3", "−12.3", "0.0", "0.0"]
    assert [probability(p) for p in (0.0, 0.00099, 0.001, 0.0449, 1.0)] == [
        "<0.001", "<0.001", "0.001", "0.045", "1.000",
    ]  # fmt: skip


def test_a_relevant_document_outside_the_corpus_is_named() -> None:
    inputs = inputs_of(n_queries=3)
    passages = inputs.passages.slice(0, 2)
    run = inputs.run.filter(pa.compute.is_in(inputs.run["passage_id"], passages["passage_id"].combine_chunks()))
    text = Page(write_report(inputs_of(n_queries=3, passages=passages, run=run))).text()
    assert "d2 (not in the corpus)" in text


def test_main_measure() -> None:
    assert choose_main_measure(["HIT@1", "MRR@10", "NDCG@5", "NDCG@10"]) == "NDCG@5"
    assert choose_main_measure(["HIT@1", "MRR@10"]) == "MRR@10"
    assert choose_main_measure(["P@5"]) == "P@5"
    assert choose_main_measure([]) == ""


@given(st.text(alphabet=st.sampled_from("ab \n"), max_size=60), st.integers(5, 20))
def test_excerpts_are_short_beginnings(text: str, length: int) -> None:
    line = " ".join(text.split())
    short = excerpt(text, length)
    assert len(short) <= length
    assert line.startswith(short.removesuffix("…"))
    assert "\n" not in short


def test_quality_against_latency_has_a_point_a_retriever_that_was_timed() -> None:
    inputs = inputs_of(names=("sft", "bm25"))
    comparison = Comparison.of(inputs.measures)
    rows = [
        {"retriever": name, "n_queries": 1, "seconds": 1.0, "milliseconds_a_query": time, "index_bytes": 1}
        for name, time in (("sft", 10.0), ("bm25", 0.0))
    ]
    measure = comparison.measures[0]
    figure = tradeoff_figure(comparison, measure, table_from_rows("latencies", rows))
    (point,) = figure["data"]
    assert point["x"] == [10.0]
    assert point["y"] == [pytest.approx(100 * comparison.cells["sft", measure]["value"])]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 kB"), (99_999, "100.0 kB"), (100_000, "0.1 MB"), (12_345_678, "12.3 MB")]
)
def test_file_sizes(size: int, text: str) -> None:
    assert file_size(size) == text
