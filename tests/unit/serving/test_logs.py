"""Log files of a process that writes a line a request."""

import logging
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

from genret.serving.logs import rotate_seldom


def test_a_file_is_rotated_as_before_but_for_a_hundred_lines(tmp_path: Path) -> None:
    file = RotatingFileHandler(tmp_path / "lines.log", maxBytes=1000, backupCount=1000)
    logger = logging.Logger("lines")
    logger.addHandler(logging.NullHandler())
    logger.addHandler(MemoryHandler(1, target=file))
    rotate_seldom(logger)
    for number in range(1050):
        logger.info("line %04d", number)
    file.close()
    counts = [len(path.read_text().splitlines()) for path in tmp_path.iterdir()]
    assert sum(counts) == 1050 and len(counts) == 11 and max(counts) == 100
