"""What a person sees in a terminal, or in a job's log, while a run goes on."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from genret.llm.budget import ANSWER_SHARE, Budget, Share
from genret.placement import describe
from genret.planning import StagePlan
from genret.runs import StageRecord

# In a log, one line of progress in so many seconds.
_LOG_SECONDS = 15.0


class TerminalReporter:
    """Progress bars with rate and time left in a terminal; plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = (
            Progress(
                TextColumn("{task.description:>12}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]} {task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            if console.is_terminal
            else None
        )
        self._task: TaskID | None = None
        self._begin = self._logged = time.perf_counter()

    def stage_started(self, stage: str) -> None:
        """Show that a stage begins."""
        self._begin = self._logged = time.perf_counter()
        if self._bars is None:
            self._line(f"{stage:>12}  started")
            return
        self._bars.start()
        self._task = self._bars.add_task(stage, total=None, unit="", rate="", note="")

    def progress(self, stage: str, done: int, total: int, unit: str, note: str) -> None:
        """Show how far a stage is."""
        now = time.perf_counter()
        rate = _rate(done, now - self._begin)
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task,
                completed=min(done, total),
                total=total,
                unit=unit,
                rate=rate,
                note=note,
                description=stage,
            )
        elif now - self._logged >= _LOG_SECONDS:
            self._logged = now
            left = (now - self._begin) / max(done, 1) * max(total - done, 0)
            self._line(f"{stage:>12}  {min(done, total):,} of {total:,} {unit} ({rate}, {left:.0f} s left) {note}")

    def stage_finished(self, record: StageRecord, reused: bool) -> None:
        """Show what a stage made, and how long it took."""
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
            self._bars.stop()
        rows = ", ".join(
            f"{entry['rows']:,} {name.replace('_', ' ')}"
            for name, entry in record.tables.items()
            if name != "rejects" or entry["rows"]
        )
        taken = "done before" if reused else f"{record.details['seconds']:.1f} s"
        self._line(f"{record.stage:>12}  {taken:>11}  {rows}")
        if reused:
            return
        if reasons := record.details.get("reasons"):
            self._line(f"{'':>12}  {'rejected':>11}  {_counted(reasons)}")
        if "kinds" in record.details:
            self._console.print(counts_table(record.details))

    def show_plan(self, budget: Budget) -> None:
        """Show what asking a language model will take."""
        show_plan(self._console, budget)

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        if self._bars is not None:
            self._bars.stop()

    def _line(self, text: str) -> None:
        """Print a line as it is, however long it is."""
        self._console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)


# The columns of arXiv 2502.17957, table 9, by the kinds of requests; what it does not have stands behind them.
_KINDS = {
    "passages": "contexts",
    "chunk": "chunk queries",
    "sentence": "sentence",
    "constraint": "constraints",
    "multihop": "multi-hop",
    "preference": "preference",
}
_MOST_REASONS = 5


def counts_table(details: Mapping[str, Any]) -> Table:
    """How many contexts and queries of each kind there are, as in arXiv 2502.17957, table 9.

    Args:
        details: Those of the record of the synthesis stage.

    Returns:
        One row. Kinds of which there are none have a dash where the paper has a column, and no column else.
    """
    counts = {"passages": details["passages"], "preference": details["preference"], **details["kinds"]}
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    shown = {kind: name for kind, name in _KINDS.items() if counts.get(kind) or kind in tuple(_KINDS)[:4]}
    for name in shown.values():
        table.add_column(name, justify="right")
    table.add_row(*(f"{counts[kind]:,}" if counts.get(kind) else "-" for kind in shown))
    return table


def show_plan(console: Console, budget: Budget) -> None:
    """Print a budget: a row a kind, and what they cost together."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("asked for", no_wrap=True)
    for name in ("prompts", "kept", "to send", "prompt tokens", "answer tokens", "at most"):
        table.add_column(name, justify="right")
    for share in budget.shares:
        table.add_row(*_plan_cells(share))
    table.add_section()
    table.add_row(*_plan_cells(budget.total))
    console.print(table)
    lines = [
        f"model: {budget.model}",
        f"tokens: of prompts {budget.counted}; of answers reckoned as {ANSWER_SHARE:g} of what they may have at most",
        _estimate("cost", budget.expected.price, budget.most.price, "{:,.2f}".format, "no prices in llm"),
        _estimate("time", budget.expected.seconds, budget.most.seconds, _duration, "no tokens_a_second in llm"),
    ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _plan_cells(share: Share) -> tuple[str, ...]:
    numbers = (
        share.prompts, share.kept, share.sent, share.prompt_tokens, share.answer_tokens, share.most_answer_tokens,
    )  # fmt: skip
    return share.kind, *(f"{number:,}" for number in numbers)


def _estimate(
    name: str, expected: float | None, most: float | None, shown: Callable[[float], str], missing: str
) -> str:
    if expected is None or most is None:
        return f"{name}: not known ({missing})"
    return f"{name}: about {shown(expected)}, at most {shown(most)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _counted(reasons: Mapping[str, int]) -> str:
    """The most frequent reasons with their numbers, and how many there are of the others."""
    entries = sorted(reasons.items(), key=lambda entry: -entry[1])
    others = sum(number for _, number in entries[_MOST_REASONS:])
    shown = [f"{number:,} {reason}" for reason, number in entries[:_MOST_REASONS]]
    return ", ".join([*shown, f"{others:,} others"] if others else shown)


def _rate(done: int, seconds: float) -> str:
    rate = done / max(seconds, 1e-6)
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def show_stages(console: Console, stages: Sequence[StagePlan]) -> None:
    """Print what each stage would take, and the sum."""
    priced = any(stage.price is not None for stage in stages)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    names = ["rows", "tokens", "workers", "GPU h", "time", "disk", "memory", *(["price"] if priced else [])]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for stage in stages:
        table.add_row(
            stage.stage,
            _short(stage.rows),
            _short(stage.tokens) if stage.tokens else "",
            f"{stage.workers} x {describe(stage.bundle)}",
            f"{stage.gpu_hours:.1f}" if stage.gpu_hours else "",
            _duration(stage.seconds),
            _short(stage.disk, "B"),
            _short(stage.memory, "B"),
            *([f"{stage.price:.2f}" if stage.price is not None else ""] if priced else []),
        )
    table.add_section()
    table.add_row(
        "all", "", _short(sum(stage.tokens for stage in stages)), "",
        f"{sum(stage.gpu_hours for stage in stages):.1f}",
        _duration(sum(stage.seconds for stage in stages)),
        _short(max(stage.disk for stage in stages), "B"),
        _short(max(stage.memory for stage in stages), "B"),
        *([f"{sum(stage.price or 0.0 for stage in stages):.2f}"] if priced else []),
    )  # fmt: skip
    console.print(table)


def _short(amount: float, unit: str = "") -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= size:
            return f"{amount / size:.3g} {prefix}{unit}".rstrip()
    return f"{amount:.0f} {unit}".rstrip()
