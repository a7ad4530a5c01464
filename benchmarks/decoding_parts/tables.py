"""Results as Markdown tables: printed row by row, and kept in a file between marks."""

import os
import platform
import subprocess
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

TITLE = "# Results\n"
LINE_LENGTH = 116


@dataclass
class Table:
    """A table that prints each row as soon as it is there.

    Attributes:
        title: Its heading.
        note: What the columns mean and how they were measured.
        rows: Each a mapping from column to value; all with the same columns.
    """

    title: str
    note: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **columns: Any) -> None:
        """Add a row and print it; underscores in the columns' names stand for spaces."""
        row = {name.replace("_", " "): value for name, value in columns.items()}
        if not self.rows:
            print(f"\n{self._heading()}{_head(row)}", flush=True)
        self.rows.append(row)
        print(_line(row), flush=True)

    def markdown(self) -> str:
        """The whole table."""
        body = "\n".join([_head(self.rows[0]), *map(_line, self.rows)]) if self.rows else "No rows."
        return f"{self._heading()}{body}\n"

    def _heading(self) -> str:
        return f"### {self.title}\n\n{textwrap.fill(' '.join(self.note.split()), LINE_LENGTH)}\n\n"


def machine() -> str:
    """The processors, the threads in use, the versions and the commit, in one line."""
    widest = torch.backends.cpu.get_cpu_capability()
    parts = [
        f"{_processor()} ({widest}), {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"transformers {transformers.__version__}",
    ]
    if torch.cuda.is_available():
        parts.insert(1, torch.cuda.get_device_name())
    return "; ".join([*parts, *_commit()])


def _commit() -> list[str]:
    """That of the code, where it stands in a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        described = subprocess.run(command, text=True, capture_output=True)
    except FileNotFoundError:
        return []
    return [f"commit {described.stdout.strip()}"] if described.returncode == 0 else []


def update_file(path: Path, name: str, text: str) -> None:
    """Replace the section `name` of a Markdown file, or append it; whatever else stands there stays."""
    first, last = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{first}\n{text.strip()}\n{last}\n"
    content = path.read_text(encoding="utf-8") if path.exists() else TITLE
    before, mark, rest = content.partition(first)
    if mark:
        content = before + section + rest.partition(f"{last}\n")[2]
    else:
        content = f"{content.rstrip()}\n\n{section}"
    path.write_text(content, encoding="utf-8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _head(row: dict[str, Any]) -> str:
    rule = ("---" if isinstance(value, str) else "---:" for value in row.values())
    return f"| {' | '.join(row)} |\n| {' | '.join(rule)} |"


def _line(row: dict[str, Any]) -> str:
    return f"| {' | '.join(map(_text, row.values()))} |"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
