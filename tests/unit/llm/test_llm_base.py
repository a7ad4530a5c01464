import pytest

from genret.llm.base import Request, Response, pair_responses


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
    return (Request(name, "chunk", 1, "", "text") for name in ids)


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
