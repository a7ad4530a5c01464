"""What is shown: bars in a terminal, plain lines elsewhere."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from genret import terminal
from genret.runs import StageRecord
from genret.terminal import TerminalReporter

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
