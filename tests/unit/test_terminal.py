"""What is shown: bars in a terminal, plain lines elsewhere."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from genret import terminal
from genret.config import HttpConfig
from genret.llm.budget import Budget, Share, expense
from genret.runs import StageRecord
from genret.terminal import TerminalReporter, show_plan

RECORD = StageRecord(
    stage="synthesis",
    fingerprint="0123456789abcdef",
    created="2026-01-01T00:00:00+00:00",
    tables={
        "queries": {"path": "a", "rows": 12345},
        "preference_queries": {"path": "b", "rows": 6},
        "rejects": {"path": "c", "rows": 0},
    },
    folders={},
    texts={},
    details={"seconds": 3.21},
)


def plain_reporter(width: int = 80) -> tuple[TerminalReporter, io.StringIO]:
    output = io.StringIO()
    return TerminalReporter(Console(file=output, width=width)), output


def test_a_finished_stage_is_one_line_with_its_rows() -> None:
    reporter, output = plain_reporter(width=20)
    reporter.stage_finished(RECORD, reused=False)
    assert output.getvalue() == "   synthesis        3.2 s  12,345 queries, 6 preference queries\n"


def test_rejects_are_counted_where_there_are_any() -> None:
    reporter, output = plain_reporter()
    rejects = RECORD.tables | {"rejects": {"path": "c", "rows": 2}}
    reporter.stage_finished(replace(RECORD, tables=rejects), reused=False)
    assert output.getvalue().endswith("6 preference queries, 2 rejects\n")


def test_a_reused_stage_says_so_and_no_time() -> None:
    reporter, output = plain_reporter()
    reporter.stage_finished(RECORD, reused=True)
    assert "done before" in output.getvalue()
    assert "3.2 s" not in output.getvalue()


def test_a_stage_without_tables_has_no_trailing_space() -> None:
    reporter, output = plain_reporter()
    reporter.stage_finished(replace(RECORD, tables={}), reused=False)
    assert output.getvalue() == "   synthesis        3.2 s\n"


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: clock[0])
    reporter, output = plain_reporter()
    reporter.stage_started("sft")
    for done, now in [(1, 101.0), (10, 110.0), (20, 120.0), (21, 121.0), (1000, 140.0)]:
        clock[0] = now
        reporter.progress("sft", done, 100, "steps", "loss 1.5 [of x]")
    assert output.getvalue().splitlines() == [
        "         sft  started",
        "         sft  20 of 100 steps (1.0/s, 80 s left) loss 1.5 [of x]",
        "         sft  100 of 100 steps (25/s, 0 s left) loss 1.5 [of x]",
    ]


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, color_system=None)
    reporter = TerminalReporter(console)
    for stage in ("identifiers", "synthesis"):
        reporter.stage_started(stage)
        reporter.progress(stage, 30, 60, "batches", "note")
        reporter.progress(stage, 90, 60, "batches", "note")
        assert reporter._bars is not None
        reporter._bars.refresh()  # which a thread does now and then
        reporter.stage_finished(replace(RECORD, stage=stage), reused=False)
    reporter.close()
    shown = output.getvalue()
    assert "60/60" in shown
    assert "\x1b[?25l" in shown, "the cursor is hidden while a bar is shown"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "and comes back"
    assert shown.count("12,345 queries") == 2


def test_after_an_error_the_cursor_is_back() -> None:
    output = io.StringIO()
    reporter = TerminalReporter(Console(file=output, force_terminal=True, width=120))
    reporter.stage_started("sft")
    reporter.progress("sft", 1, 60, "steps", "")
    reporter.close()
    reporter.close()
    assert output.getvalue().rindex("\x1b[?25h") > output.getvalue().rindex("\x1b[?25l")


def test_synthesis_tells_its_counts_by_kind_and_its_rejects_by_reason() -> None:
    reporter, output = plain_reporter()
    details = RECORD.details | {
        "passages": 7724,
        "kinds": {"chunk": 72090, "sentence": 472193, "multihop": 12},
        "preference": 6,
        "reasons": {"query too short": 2, "mentions the passage": 40, "a": 1, "b": 1, "c": 1, "d": 1, "e": 1},
    }
    reporter.stage_finished(replace(RECORD, details=details), reused=False)
    first, rejected, head, _, row = [line.rstrip() for line in output.getvalue().splitlines()]
    assert first.startswith("   synthesis        3.2 s")
    assert rejected.endswith("rejected  40 mentions the passage, 2 query too short, 1 a, 1 b, 1 c, 2 others")
    assert head.split() == ["contexts", "chunk", "queries", "sentence", "constraints", "multi-hop", "preference"]
    assert row.split() == ["7,724", "72,090", "472,193", "-", "12", "6"]
    reporter.stage_finished(replace(RECORD, details=details), reused=True)
    assert output.getvalue().count("7,724") == 1, "not again where nothing was done"


def plan_of(**settings: float) -> list[str]:
    output = io.StringIO()
    shares = (Share("keywords", 1000, 0, 50_000, 4000, 10_000), Share("chunk", 2000, 500, 9_000_000, 80_000, 200_000))
    config = HttpConfig(base_url="http://h/v1", model="a [model]", **settings)
    sent = [expense(config, 2500, 9_050_000, tokens) for tokens in (84_000, 210_000)]
    show_plan(Console(file=output, width=100), Budget("a [model]", shares, "counted somehow", *sent))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def test_a_plan_is_a_row_a_kind_with_cost_and_time() -> None:
    lines = plan_of(price_of_prompts=1.0, price_of_answers=2.0, tokens_a_second=1000)
    rows = [line.split() for line in lines if line]
    assert ["keywords", "1,000", "0", "1,000", "50,000", "4,000", "10,000"] in rows
    assert ["chunk", "2,000", "500", "1,500", "9,000,000", "80,000", "200,000"] in rows
    assert ["all", "3,000", "500", "2,500", "9,050,000", "84,000", "210,000"] in rows
    assert lines[-4:] == [
        "model: a [model]",
        "tokens: of prompts counted somehow; of answers reckoned as 0.4 of what they may have at most",
        "cost: about 9.22, at most 9.47",
        "time: about 2 h 32 min, at most 2 h 34 min",
    ]


def test_a_plan_without_prices_says_what_it_does_not_know() -> None:
    assert plan_of()[-2:] == ["cost: not known (no prices in llm)", "time: not known (no tokens_a_second in llm)"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (7199, "1 h 59 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert terminal._duration(seconds) == shown
