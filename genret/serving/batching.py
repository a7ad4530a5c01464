"""Queries of many requests become batches: who has nothing to do gets what waits at once, and while all replicas are
busy, batches are made even, so that each works on one while the answers of the other are on their way.
"""

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from genret.serving.asks import Answer, Ask

State = TypeVar("State")

BATCHES_A_WORKER = 2
"""Batches that are out for each worker: one that is worked on, and one that waits beside it."""

# How much a new batch counts in the running mean of the time a query takes.
_WEIGHT = 0.2


class FullError(Exception):
    """There is no room for a query.

    Attributes:
        retry_seconds: When there may be.
    """

    def __init__(self, retry_seconds: float) -> None:
        super().__init__(f"the queue is full; try again in {retry_seconds:.0f} s")
        self.retry_seconds = retry_seconds


class UnavailableError(Exception):
    """No replica answered in time, or not all from one version."""


@dataclass
class _Waiting(Generic[State]):
    ask: Ask
    arrived: float
    future: "asyncio.Future[tuple[State, Answer]]"

    @property
    def deadline(self) -> float:
        return self.arrived + self.ask.timeout


class Batcher(Generic[State]):
    """A bounded queue before one retriever."""

    def __init__(
        self,
        send: Callable[[list[Ask]], Awaitable[tuple[State, list[Answer]]]],
        size: int,
        room: int,
        workers: Callable[[], int],
    ) -> None:
        """Begin with nothing.

        Args:
            send: Answers a batch, and says with which state of the collection. The time that each query has left is in
                its `timeout`.
            size: Most queries of a batch.
            room: Most queries that wait.
            workers: How many batches are worked on at a time; may change.
        """
        self._send, self._size, self._room, self._workers = send, size, room, workers
        self._waiting: deque[_Waiting[State]] = deque()
        self._out = self._asked = 0  # batches, and the queries in them
        self._tasks: set[asyncio.Task[None]] = set()
        self._seconds_a_query = 0.0

    def __len__(self) -> int:
        """How many queries wait."""
        return len(self._waiting)

    async def ask(self, asks: Sequence[Ask]) -> list[tuple[State, Answer]]:
        """Have queries answered, in their order.

        Raises:
            FullError: There is no room for all of them, or those before them will take longer than they have.
            UnavailableError: The batch was cancelled.
        """
        expected = (len(self._waiting) + len(asks)) * self._seconds_a_query
        hopeless = bool(self._waiting) and expected > min(ask.timeout for ask in asks)
        if len(self._waiting) + len(asks) > self._room or hopeless:
            raise FullError(max(1.0, expected))
        now, loop = time.monotonic(), asyncio.get_running_loop()
        entries: list[_Waiting[State]] = [_Waiting(ask, now, loop.create_future()) for ask in asks]
        self._waiting.extend(entries)
        self._pump()
        try:
            if len(entries) == 1:  # most requests: nothing to gather
                return [await entries[0].future]
            return list(await asyncio.gather(*(entry.future for entry in entries)))
        finally:
            # Of a request that was given up, nothing shall be searched for any more.
            for entry in entries:
                entry.future.cancel()

    def _next_size(self) -> int:
        """Most queries of the next batch; 0 where none shall be sent yet.

        What waits is dealt out to workers that have nothing to do. While all are busy, a batch takes its share of all
        queries that are here or out, and none is less: clients that waited for one batch ask again all at once, and if
        the next one were all theirs again, the workers would idle while answers are written, and the other way round.
        """
        workers = max(1, self._workers())
        places = BATCHES_A_WORKER * workers
        if self._out < workers:
            return min(self._size, math.ceil(len(self._waiting) / (workers - self._out)))
        share = min(self._size, math.ceil((len(self._waiting) + self._asked) / places))
        return share if self._out < places and len(self._waiting) >= share else 0

    def _pump(self) -> None:
        while self._waiting and (size := self._next_size()):
            batch: list[_Waiting[State]] = []
            while self._waiting and len(batch) < size:
                entry = self._waiting.popleft()
                if not entry.future.done():
                    batch.append(entry)
            if batch:
                self._out += 1
                self._asked += len(batch)
                # A batch is of many requests and must not go on in the context of one: Ray Serve cancels all calls that
                # were made in a request's context when its client hangs up.
                task = asyncio.create_task(self._run(batch), context=contextvars.Context())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: list[_Waiting[State]]) -> None:
        begin = time.monotonic()
        try:
            asks = [replace(entry.ask, timeout=entry.deadline - begin) for entry in batch]
            state, answers = await self._send(asks)
            for entry, answer in zip(batch, answers, strict=True):
                answer.wait_seconds += begin - entry.arrived
                if not entry.future.done():
                    entry.future.set_result((state, answer))
            spent = (time.monotonic() - begin) / len(batch) / max(1, self._out)
            self._seconds_a_query += _WEIGHT * (spent - self._seconds_a_query)
        except Exception as error:  # whatever it is, those who wait for it are told
            _fail(batch, error)
        except asyncio.CancelledError:
            _fail(batch, UnavailableError("the search was cancelled; ask again"))
            raise
        finally:
            self._out -= 1
            self._asked -= len(batch)
            self._pump()


def _fail(batch: Sequence[_Waiting[State]], error: Exception) -> None:
    """Tell all who still wait."""
    for entry in batch:
        if not entry.future.done():
            entry.future.set_exception(error)
