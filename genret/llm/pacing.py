"""When to send the next request: rate limits, and how long to wait after a failure."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random

_LONGEST_BACKOFF = 60.0
_MOST_DOUBLINGS = 6
# No longer than this at a stretch: what is waited for may come sooner when an answer was shorter than feared.
_NAP = 1.0
_SECONDS = re.compile(r"\d+(\.\d+)?")


def loop_time() -> float:
    """Seconds by the clock of the running event loop, which never goes back."""
    return asyncio.get_running_loop().time()


class RateLimit:
    """So much a minute, evenly spread: no minute, wherever it begins, has more, and nothing is saved up.

    What is taken is paid for by waiting before the next (the generic cell rate algorithm, ITU-T I.371, without
    burst tolerance).

    Args:
        a_minute: The limit; 0: none.
        clock: Seconds that never go back.
    """

    def __init__(self, a_minute: float, clock: Callable[[], float] = loop_time) -> None:
        self._seconds_a_unit = 60.0 / a_minute if a_minute else 0.0
        self._clock = clock
        self._free_at = float("-inf")

    def delay(self) -> float:
        """Seconds until something may be taken; 0 or less: now."""
        return self._free_at - self._clock()

    def take(self, amount: float) -> None:
        """Take so much, however much it is; what follows waits the longer."""
        self._free_at = max(self._free_at, self._clock()) + amount * self._seconds_a_unit

    def give_back(self, amount: float) -> None:
        """Less was used than taken, or more where negative."""
        self._free_at += -amount * self._seconds_a_unit


class Pacer:
    """Lets requests through in their order, as two limits and the server's own word allow.

    Args:
        requests_per_minute: Most requests a minute; 0: no limit.
        tokens_per_minute: Most tokens a minute; 0: no limit.
        clock: Seconds that never go back.
        sleep: Waits so many seconds of the same clock.
    """

    def __init__(
        self,
        requests_per_minute: float,
        tokens_per_minute: float,
        clock: Callable[[], float] = loop_time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._requests = RateLimit(requests_per_minute, clock)
        self._tokens = RateLimit(tokens_per_minute, clock)
        self._clock = clock
        self._sleep = sleep
        self._closed_until = float("-inf")
        # Waiters are let through one after another, each by what was corrected meanwhile.
        self._turn = asyncio.Lock()

    async def admit(self, tokens: int) -> None:
        """Wait until a request of (at most) so many tokens may be sent."""
        async with self._turn:
            while (delay := self._delay()) > 0:
                await self._sleep(min(delay, _NAP))
            self._requests.take(1)
            self._tokens.take(tokens)

    def correct(self, estimated: int, used: int) -> None:
        """A request that was let through for `estimated` tokens used so many."""
        self._tokens.give_back(estimated - used)

    def pause(self, seconds: float) -> None:
        """Let nothing through for so long: the server asked for it."""
        self._closed_until = max(self._closed_until, self._clock() + seconds)

    def _delay(self) -> float:
        return max(self._requests.delay(), self._tokens.delay(), self._closed_until - self._clock())


def backoff_seconds(failures: int, random: Random) -> float:
    """How long to wait after so many failures in a row: exponential, with full jitter, a minute at most.

    Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return random.uniform(0.0, min(_LONGEST_BACKOFF, 2.0 ** min(failures, _MOST_DOUBLINGS)))


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """What a Retry-After header asks for (RFC 9110, section 10.2.3).

    Args:
        header: Its value: seconds, or an HTTP date.
        now: The present time, with its zone.

    Returns:
        Seconds from now, at least 0; None where there is no header or it says neither.
    """
    if header is None:
        return None
    header = header.strip()
    if _SECONDS.fullmatch(header):
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    # A date without a zone is in UTC, as all HTTP dates are.
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())
