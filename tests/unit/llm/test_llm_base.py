from copy import deepcopy
from typing import ClassVar
from weakref import WeakSet

import pytest

from genret.llm.base import Item, Request, Requests, Response, Work, pair_responses, work_through


class Scripted:
    """Answers with the given ids, whatever it is asked."""

    name = "scripted"

    def __init__(self, ids):
        self.ids = ids
        self.drawn = 0

    def generate(self, requests):
        for answer, request in zip(self.ids, requests, strict=False):
            self.drawn += 1
            assert request.n == 1
            yield Response(answer)


def requests(*ids):
    return Requests(lambda: (Request(name, "chunk", 1, "", "text") for name in ids))


def test_pairs_come_in_the_order_of_the_requests():
    pairs = pair_responses(Scripted(["a", "b"]), requests("a", "b"))
    assert [(request.request_id, response.request_id) for request, response in pairs] == [
        ("a", "a"),
        ("b", "b"),
    ]


def test_pairs_are_drawn_lazily():
    engine = Scripted(["a", "b", "c"])
    next(pair_responses(engine, requests("a", "b", "c")))
    assert engine.drawn == 1


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["a"], "response to 'b', found None"),
        (["b", "a"], "response to 'a', found 'b'"),
    ],
)
def test_an_engine_that_loses_or_swaps_responses_is_named(answers, message):
    with pytest.raises(RuntimeError, match=f"scripted: .*{message}"):
        list(pair_responses(Scripted(answers), requests("a", "b")))


def test_an_engine_that_answers_too_much_is_named():
    class Chatty:
        name = "chatty"

        def generate(self, requests):
            yield from (Response(request.request_id) for request in requests)
            yield Response("more")

    with pytest.raises(RuntimeError, match="chatty: expected no more responses, found 'more'"):
        list(pair_responses(Chatty(), requests("a")))


def test_requests_are_not_kept_while_an_engine_draws_them():
    alive = []

    def draw():
        for number in range(1000):
            request = Counted(f"r{number}", "chunk", 1, "", "text")
            alive.append(len(Counted.all))
            yield request

    class Eager:
        name = "eager"

        def generate(self, requests):
            total = sum(1 for _ in requests)
            yield from (Response(f"r{number}") for number in range(total))

    assert sum(1 for _ in pair_responses(Eager(), Requests(draw))) == 1000
    assert max(alive) < 10


class Counted(Request):
    """A request that is counted as long as it is alive."""

    __slots__ = ("__weakref__",)
    all: ClassVar = WeakSet()

    def __init__(self, *arguments):
        super().__init__(*arguments)
        Counted.all.add(self)

    __hash__ = object.__hash__


def test_requests_that_can_be_drawn_only_once_are_refused():
    with pytest.raises(TypeError, match="can be drawn twice"):
        next(pair_responses(Scripted(["a"]), iter(requests("a"))))


def numbered(part):
    return [Request(f"{part}{number}", "chunk", 1, "", "text") for number in range(2)]


def names(pairs):
    return [f"{request.request_id}={response.request_id}" for request, response in pairs]


def test_work_is_done_part_by_part():
    engine = Scripted(["a0", "a1", "b0", "b1"])
    outcomes = work_through(engine, ["a", "b"], Work(numbered, names))
    assert next(outcomes) == ["a0=a0", "a1=a1"] and engine.drawn == 2
    assert list(outcomes) == [["b0=b0", "b1=b1"]]
    assert list(work_through(Scripted([]), [], Work(numbered, names))) == []


@pytest.mark.parametrize("answers", [["a0", "b0", "b1"], ["a0", "a1", "b0"]])
def test_work_with_a_lost_response_is_an_error(answers):
    with pytest.raises(RuntimeError, match="scripted: expected the response to"):
        list(work_through(Scripted(answers), ["a", "b"], Work(numbered, names)))


def test_records_travel_whole():
    request = Request("a", "multihop", 2, "title", "text", {"year": "1999"}, ("other",), "query")
    response = Response("a", (Item("text", "answer"), Item("more")), "error", "raw")
    assert deepcopy([request, response]) == [request, response]
