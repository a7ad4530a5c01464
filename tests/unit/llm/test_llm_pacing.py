import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genret.llm.pacing import Pacer, RateLimit, backoff_seconds, retry_after_seconds

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


class Clock:
    """A clock that stands still until somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


# --- rate limits ---


def test_without_a_limit_nothing_waits():
    clock = Clock()
    limit = RateLimit(0, clock)
    for _ in range(5):
        limit.take(1e9)
        assert limit.delay() <= 0


def test_what_is_taken_is_waited_for():
    clock = Clock()
    limit = RateLimit(120, clock)
    assert limit.delay() <= 0
    limit.take(3)
    assert limit.delay() == pytest.approx(1.5)
    limit.give_back(2)
    assert limit.delay() == pytest.approx(0.5)
    limit.give_back(-1)
    assert limit.delay() == pytest.approx(1.0)
    clock.now += 100  # idle time is not saved up
    limit.take(1)
    assert limit.delay() == pytest.approx(0.5)


def admissions(requests_per_minute, tokens_per_minute, sizes, used=None):
    """When each of some requests is let through, in seconds from the first."""
    clock = Clock()
    pacer = Pacer(requests_per_minute, tokens_per_minute, clock, clock.sleep)
    times = []

    async def one(size):
        await pacer.admit(size)
        times.append(clock.now)
        if used is not None:
            pacer.correct(size, used)

    async def all_of_them():
        await asyncio.gather(*map(one, sizes))

    asyncio.run(all_of_them())
    return [time - times[0] for time in times]


@given(
    requests=st.integers(1, 200),
    tokens=st.integers(100, 10_000),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=300),
)
def test_no_minute_has_more_than_either_limit(requests, tokens, sizes):
    times = admissions(requests, tokens, sizes)
    assert times == sorted(times)
    for first, begin in enumerate(times):
        window = [size for time, size in zip(times, sizes, strict=True) if begin <= time < begin + 60 - 1e-6]
        assert len(window) <= requests
        # The last one may reach beyond the minute: it is paid for by those behind it.
        assert sum(window[:-1]) <= tokens, first


def test_limits_are_used_up():
    assert admissions(60, 0, [1] * 61)[-1] == pytest.approx(60.0)
    assert admissions(0, 600, [100] * 13)[-1] == pytest.approx(120.0)


def test_what_was_not_used_lets_others_through_sooner():
    assert admissions(0, 600, [100] * 13, used=10)[-1] == pytest.approx(12.0)


def test_a_correction_shortens_a_wait_under_way():
    clock = Clock()
    pacer = Pacer(0, 60, clock, clock.sleep)

    async def run():
        await pacer.admit(600)  # ten minutes' worth
        waiting = asyncio.create_task(pacer.admit(1))
        await asyncio.sleep(0)
        pacer.correct(600, 5)
        await waiting

    asyncio.run(run())
    assert clock.now - 1000.0 == pytest.approx(5.0)


def test_a_pause_holds_everything_back_and_the_longer_one_counts():
    clock = Clock()
    pacer = Pacer(0, 0, clock, clock.sleep)
    pacer.pause(30)
    pacer.pause(10)
    asyncio.run(pacer.admit(1))
    assert clock.now - 1000.0 == pytest.approx(30.0)


# --- after a failure ---


@given(failures=st.integers(0, 2000), seed=st.integers())
def test_backoff_grows_up_to_a_minute(failures, seed):
    assert 0.0 <= backoff_seconds(failures, Random(seed)) <= min(60.0, 2.0 ** min(failures, 10))


def test_backoff_is_spread_over_the_whole_range():
    random = Random(0)
    drawn = [backoff_seconds(4, random) for _ in range(1000)]
    assert min(drawn) < 1.0 and max(drawn) > 15.0
    assert 7.0 < sum(drawn) / len(drawn) < 9.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 17 ", 17.0),
        ("1.5", 1.5),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30.0),
        ("Saturday, 21-Nov-26 12:01:00 GMT", 60.0),
        ("Sat, 21 Nov 2026 14:00:30 +0200", 30.0),
        ("Sat, 21 Nov 2026 11:59:00 GMT", 0.0),
        ("-5", None),
        ("", None),
        ("soon", None),
        ("1e3", None),
        ("nan", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert retry_after_seconds(header, NOW) == seconds


@given(st.integers(0, 10**6))
def test_any_date_is_read_back(seconds):
    header = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert retry_after_seconds(header, NOW) == seconds


@given(st.text())
def test_any_header_is_a_wait_or_none(header):
    seconds = retry_after_seconds(header, NOW)
    assert seconds is None or seconds >= 0
