"""Log files of a process that writes a line a request."""

import itertools
import logging
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from typing import Any

_LINES = 100


def rotate_seldom(logger: logging.Logger) -> None:
    """Have a logger's rotating files looked at before every hundredth line, not before each.

    To see whether a file is full its handler asks the file system twice and makes the whole line once more, which is
    half of what a line costs. A file gets longer than its limit by 99 lines at most.

    Args:
        logger: Whose handlers are rotating files, or hand on to them, as Ray Serve's do.
    """
    for handler in logger.handlers:
        file = getattr(handler, "target", handler)
        if isinstance(file, RotatingFileHandler):
            file.shouldRollover = _seldom(file.shouldRollover)  # type: ignore[assignment,method-assign]


def _seldom(look: Callable[[logging.LogRecord], Any]) -> Callable[[logging.LogRecord], bool]:
    lines = itertools.count()
    return lambda record: next(lines) % _LINES == 0 and bool(look(record))
