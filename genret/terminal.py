"""What a person sees in a terminal, or in a job's log, while a run goes on."""

import time

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

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        if self._bars is not None:
            self._bars.stop()

    def _line(self, text: str) -> None:
        """Print a line as it is, however long it is."""
        self._console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)


def _rate(done: int, seconds: float) -> str:
    rate = done / max(seconds, 1e-6)
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"
