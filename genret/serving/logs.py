"""The log of requests: a line of JSON each."""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from pydantic_core import to_json

# Lines wait for each other so long: written one by one they took a quarter of the time that the ingress has for a
# request (`benchmarks/ingress.py`).
_WAIT_SECONDS = 0.25


class RequestLog:
    """Lines that go where a handler puts them together, a few times a second.

    A process that is killed loses those of the last quarter of a second.
    """

    def __init__(self, handler: logging.Handler) -> None:
        """Take who writes."""
        self._handler = handler
        self._lines: list[str] = []

    def write(self, line: Mapping[str, Any]) -> None:
        """Take a line, and put the time before it. For the thread of an event loop."""
        if not self._lines:
            asyncio.get_running_loop().call_later(_WAIT_SECONDS, self.flush)
        self._lines.append(to_json({"time": datetime.now(UTC), **line}).decode())

    def flush(self) -> None:
        """Have written what waits."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._handler.emit(logging.makeLogRecord({"msg": "\n".join(lines)}))

    def close(self) -> None:
        """Have written what waits; lines that come later are written too, and open the file once more."""
        self.flush()
        self._handler.close()


def request_log(logger: logging.Logger) -> RequestLog:
    """A log of requests beside the file of a logger, with the same limits; on stderr where the logger has no file.

    A file may get longer than its limit by the lines that are written together.

    Args:
        logger: One that has a rotating file, or hands on to one, as Ray Serve's does in a replica.

    Returns:
        The log. Its file, which appears with the first line, has the name of the other one behind `requests_`.
    """
    for handler in logger.handlers:
        file = getattr(handler, "target", handler)
        if isinstance(file, RotatingFileHandler):
            path = Path(file.baseFilename)
            beside = path.with_name(f"requests_{path.name}")
            most, kept = file.maxBytes, file.backupCount
            return RequestLog(RotatingFileHandler(beside, "a", most, kept, encoding="utf-8", delay=True))
    return RequestLog(logging.StreamHandler())
