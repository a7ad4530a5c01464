"""The bounded queue before a retriever."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import pytest
import still_time

from genret.serving.asks import Answer, Ask
from genret.serving.batching import Batcher, FullError, UnavailableError

Send = Callable[[list[Ask]], Awaitable[tuple[str, list[Answer]]]]


def ask(text: str = "q", timeout: float = 30.0) -> Ask:
    return Ask(text, 1, "", timeout, explain=False)


class Recorder:
    """Answers with the query's text, after it was told to go on."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.free = asyncio.Event()

    async def send(self, asks: list[Ask]) -> tuple[str, list[Answer]]:
        self.batches.append([ask.query for ask in asks])
        await self.free.wait()
        return "state", [Answer([(ask.query, 1.0)], exact=True) for ask in asks]


def test_what_waits_goes_together_and_answers_find_their_askers() -> None:
    async def scenario() -> Recorder:
        recorder = Recorder()
        batcher = Batcher(recorder.send, 4, 100, lambda: 1)
        tasks = [asyncio.create_task(batcher.ask([ask(str(number))])) for number in range(10)]
        await asyncio.sleep(0)
        recorder.free.set()
        for number, task in enumerate(tasks):
            assert [(state, answer.places) for state, answer in await task] == [("state", [(str(number), 1.0)])]
        return recorder

    batches = asyncio.run(scenario()).batches
    assert batches[:2] == [["0"], ["1"]], "the first ones wait for nobody"
    assert batches[2:] == [["2", "3", "4", "5"], ["6", "7", "8", "9"]]


def test_clients_that_ask_again_and_again_get_even_batches() -> None:
    async def scenario() -> list[int]:
        sizes: list[int] = []
        worker = asyncio.Lock()  # a replica works on one batch at a time

        async def send(asks: list[Ask]) -> tuple[str, list[Answer]]:
            sizes.append(len(asks))
            async with worker:
                await asyncio.sleep(0.0005 * len(asks))
            return "", [Answer([], exact=True) for _ in asks]

        batcher = Batcher(send, 64, 100, lambda: 1)

        async def client(number: int) -> None:
            for turn in range(20):
                # Answers take time to be written and read, one after the other.
                await asyncio.sleep(0.0001 * number)
                await batcher.ask([ask(f"{number}.{turn}")])

        await asyncio.gather(*(client(number) for number in range(32)))
        return sizes

    sizes = still_time.run(scenario())
    assert max(sizes) <= 16
    middle = sorted(sizes[len(sizes) // 4 : -len(sizes) // 4])
    assert middle[len(middle) // 2] >= 12


def test_what_waits_is_dealt_out_to_idle_replicas() -> None:
    async def scenario() -> Recorder:
        recorder = Recorder()
        batcher = Batcher(recorder.send, 64, 100, lambda: 2)
        tasks = [asyncio.create_task(batcher.ask([ask("a"), ask("b"), ask("c"), ask("d")]))]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(batcher.ask([ask("e")])))
        await asyncio.sleep(0)
        recorder.free.set()
        await asyncio.gather(*tasks)
        return recorder

    assert asyncio.run(scenario()).batches == [["a", "b"], ["c", "d"], ["e"]]


def test_more_than_fit_are_turned_away_at_once() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        batcher = Batcher(recorder.send, 1, 2, lambda: 1)
        tasks = [asyncio.create_task(batcher.ask([ask()])) for _ in range(4)]
        await asyncio.sleep(0)
        assert len(batcher) == 2
        with pytest.raises(FullError) as caught:
            await batcher.ask([ask()])
        assert caught.value.retry_seconds >= 1
        recorder.free.set()
        await asyncio.gather(*tasks)
        assert len(batcher) == 0

    asyncio.run(scenario())


def test_who_cannot_be_answered_in_time_is_turned_away() -> None:
    async def scenario() -> None:
        async def slow(asks: list[Ask]) -> tuple[str, list[Answer]]:
            await asyncio.sleep(0.05)
            return "", [Answer([], exact=True) for _ in asks]

        batcher = Batcher(slow, 1, 1000, lambda: 1)
        for _ in range(20):
            await batcher.ask([ask()])
        tasks = [asyncio.create_task(batcher.ask([ask()])) for _ in range(30)]
        await asyncio.sleep(0)
        with pytest.raises(FullError):
            await batcher.ask([ask(timeout=0.2)])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


def test_the_time_spent_waiting_is_taken_off_the_deadline() -> None:
    async def scenario() -> None:
        seen: list[float] = []

        async def send(asks: list[Ask]) -> tuple[str, list[Answer]]:
            seen.extend(ask.timeout for ask in asks)
            await asyncio.sleep(0.1)
            return "", [Answer([], exact=True) for _ in asks]

        batcher = Batcher(send, 1, 10, lambda: 1)
        answers = await asyncio.gather(*(batcher.ask([ask(timeout=5)]) for _ in range(3)))
        waits = [answer.wait_seconds for [(_, answer)] in answers]
        assert seen == pytest.approx([5 - wait for wait in waits])
        assert waits[2] - waits[0] >= 0.09, "behind the first one's answer"

    asyncio.run(scenario())


def test_of_a_request_that_was_given_up_nothing_is_searched() -> None:
    async def scenario() -> Recorder:
        recorder = Recorder()
        batcher = Batcher(recorder.send, 4, 10, lambda: 1)
        first = asyncio.create_task(batcher.ask([ask("first"), ask("second"), ask("third")]))
        gone = asyncio.create_task(batcher.ask([ask("gone")]))
        last = asyncio.create_task(batcher.ask([ask("last")]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        recorder.free.set()
        await asyncio.gather(first, last)
        return recorder

    assert asyncio.run(scenario()).batches == [["first", "second", "third"], ["last"]]


def test_a_failure_reaches_all_who_wait_for_it_and_nobody_else() -> None:
    async def scenario() -> None:
        calls = 0

        async def send(asks: list[Ask]) -> tuple[str, list[Answer]]:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise RuntimeError("broken")
            return "", [Answer([], exact=True) for _ in asks]

        batcher = Batcher(send, 2, 10, lambda: 1)
        found = await asyncio.gather(*(batcher.ask([ask()]) for _ in range(5)), return_exceptions=True)
        assert [isinstance(entry, RuntimeError) for entry in found] == [False, False, True, True, False]

    asyncio.run(scenario())


def test_of_a_batch_that_is_cancelled_all_are_told_and_the_next_one_is_answered() -> None:
    async def scenario() -> None:
        calls = 0

        async def send(asks: list[Ask]) -> tuple[str, list[Answer]]:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0)
            if calls == 3:
                raise asyncio.CancelledError
            return "", [Answer([], exact=True) for _ in asks]

        batcher = Batcher(send, 2, 10, lambda: 1)
        asking = (batcher.ask([ask()]) for _ in range(5))
        async with asyncio.timeout(60):
            found = await asyncio.gather(*asking, return_exceptions=True)
        assert [isinstance(entry, UnavailableError) for entry in found] == [False, False, True, True, False]

    still_time.run(scenario())


def test_a_batch_is_in_the_context_of_none_of_its_requests() -> None:
    asker: ContextVar[str] = ContextVar("who asks", default="nobody")

    async def scenario() -> list[str]:
        seen: list[str] = []

        async def send(asks: list[Ask]) -> tuple[str, list[Answer]]:
            seen.append(asker.get())
            await asyncio.sleep(0)
            return "", [Answer([], exact=True) for _ in asks]

        batcher = Batcher(send, 2, 10, lambda: 1)

        async def client(number: int) -> None:
            asker.set(f"client {number}")
            await batcher.ask([ask()])

        # The first batches are sent by those who ask, the others where one before them ends.
        await asyncio.gather(*(client(number) for number in range(8)))
        return seen

    seen = asyncio.run(scenario())
    assert len(seen) >= 4 and set(seen) == {"nobody"}
