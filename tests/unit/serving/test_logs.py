"""The log of requests."""

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

import pytest

from genret.serving.logs import RequestLog, request_log


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]


def test_lines_reach_the_file_by_themselves_in_their_order(tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "requests.log"
        log = RequestLog(RotatingFileHandler(path, encoding="utf-8", delay=True))
        for number in range(3):
            log.write({"request_id": f"r{number}", "texts": ["naïve\nquery\u2028"]})
        assert not path.exists()
        async with asyncio.timeout(30):
            while not path.exists():
                await asyncio.sleep(0.01)
        log.close()
        found = lines_of(path)
        assert [line["request_id"] for line in found] == ["r0", "r1", "r2"]
        assert found[0]["texts"] == ["naïve\nquery\u2028"]
        written = [datetime.fromisoformat(str(line["time"])) for line in found]
        assert written == sorted(written) and datetime.now(UTC) - written[0] < timedelta(minutes=1)

    asyncio.run(work())


def test_what_waits_at_the_end_is_written_once(tmp_path: Path) -> None:
    async def work() -> None:
        path = tmp_path / "requests.log"
        log = RequestLog(RotatingFileHandler(path, encoding="utf-8", delay=True))
        log.write({"request_id": "last"})
        log.flush()
        log.close()
        assert [line["request_id"] for line in lines_of(path)] == ["last"]
        log.write({"request_id": "late"})
        log.close()
        assert [line["request_id"] for line in lines_of(path)] == ["last", "late"]

    asyncio.run(work())


def test_it_stands_beside_the_file_of_a_logger_that_hands_on(tmp_path: Path) -> None:
    async def work() -> None:
        file = RotatingFileHandler(tmp_path / "replica.log", maxBytes=1000, backupCount=2)
        logger = logging.Logger("serve")
        logger.addHandler(logging.NullHandler())
        logger.addHandler(MemoryHandler(1, target=file))
        log = request_log(logger)
        for number in range(100):
            log.write({"request_id": f"{number:04d}"})
            if number % 5 == 4:
                log.flush()
        log.close()
        file.close()
        files = sorted(tmp_path.glob("requests_*"))
        assert [path.name for path in files] == [f"requests_replica.log{end}" for end in ("", ".1", ".2")]
        assert all(path.stat().st_size <= 1000 + 5 * 80 for path in files)
        assert lines_of(files[0])[-1]["request_id"] == "0099"
        assert (tmp_path / "replica.log").read_text() == ""

    asyncio.run(work())


def test_without_a_file_it_goes_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> None:
        log = request_log(logging.Logger("serve"))
        log.write({"request_id": "shown"})
        log.flush()

    asyncio.run(work())
    assert json.loads(capsys.readouterr().err)["request_id"] == "shown"
