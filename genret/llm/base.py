"""What an engine is asked and what it answers: the same requests for every engine."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from genret.parts import Counted, Drawing

RequestKind = Literal["keywords", "chunk", "sentence", "constraint", "preference", "multihop", "negative"]

Part = TypeVar("Part")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class Request:
    """One piece of work on one text.

    Attributes:
        request_id: Unique among the requests of a stage; an engine's randomness may depend on it and on a
            seed, and on nothing else.
        kind: `keywords`: keywords that describe the text, the most important first. `chunk`, `sentence`:
            queries that a passage, or one sentence of it, answers. `constraint`: queries that also name
            some of `constraints`. `preference`: difficult queries with their answers. `multihop`: queries that
            need the text and all of `related` together. `negative`: passages that look as if they answered
            `query`, which the text does answer, and do not.
        n: How many items are wanted; an engine may give fewer.
        title: Title of the text; empty where it has none.
        text: The text.
        constraints: `constraint` only: metadata fields with their values.
        related: `multihop`: the further passages. `negative`: negatives that a retriever found, as context;
            may be empty.
        query: `negative` only: the query to write negatives for.
    """

    request_id: str
    kind: RequestKind
    n: int
    title: str
    text: str
    constraints: Mapping[str, str] = field(default_factory=dict)
    related: tuple[str, ...] = ()
    query: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        # What dataclasses have for this looks up every field by name: ten times slower.
        return Request, (
            self.request_id, self.kind, self.n, self.title, self.text, self.constraints, self.related, self.query
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Item:
    """One keyword, query or negative passage; `answer` for `preference` requests only."""

    text: str
    answer: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return Item, (self.text, self.answer)


@dataclass(frozen=True, slots=True)
class Response:
    """What came of a request.

    Attributes:
        request_id: That of the request.
        items: At most as many as the request wanted.
        error: Why there are none, or not all; empty where all went well.
        raw: What the engine wrote, for the rejects table; empty for an engine without a model.
    """

    request_id: str
    items: tuple[Item, ...] = ()
    error: str = ""
    raw: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return Response, (self.request_id, self.items, self.error, self.raw)


class Requests(Drawing[Request]):
    """Requests that can be drawn more than once."""


class Engine(Protocol):
    """Anything that writes keywords, queries and negatives."""

    name: str

    def generate(self, requests: Iterable[Request]) -> Iterator[Response]:
        """Answer requests.

        Args:
            requests: Any number of requests, a list or `Requests`: may be drawn more than once, lazily, and ahead of
                the answers.

        Returns:
            One response for each request, in the order of the requests. A request that fails has a response
            with an error: it never ends the stream.
        """
        ...


Pairs = Iterator[tuple[Request, Response]]


@dataclass(frozen=True)
class Work(Generic[Part, Outcome]):
    """What is asked about a part of a corpus, and what is made of the answers.

    An engine may do both in another process: the functions can be pickled, and depend on their arguments alone.

    Attributes:
        ask: The requests about a part, the same ones in the same order whenever it is called.
        make: Takes the part's requests with their responses, all of them, in order.
    """

    ask: Callable[[Part], Iterable[Request]]
    make: Callable[[Pairs], Outcome]


@runtime_checkable
class WorkingEngine(Protocol):
    """An engine that does such work where it answers, so that neither requests nor responses travel."""

    def work(self, parts: Counted[Part], work: Work[Part, Outcome]) -> Iterator[Outcome]:
        """As `work_through` does it."""
        ...


def work_through(engine: Engine, parts: Counted[Part], work: Work[Part, Outcome]) -> Iterator[Outcome]:
    """Ask an engine about each part of a corpus.

    Args:
        engine: What answers.
        parts: Any number of parts, a list or `Parts`: may be drawn more than once.
        work: What to ask, and what to make of the answers.

    Yields:
        What was made of each part, in the order of the parts.

    Raises:
        RuntimeError: The engine broke its protocol, as `pair_responses` has it.
    """
    if isinstance(engine, WorkingEngine):
        yield from engine.work(parts, work)
        return
    responses = engine.generate(Requests(lambda: chain.from_iterable(map(work.ask, parts))))
    for part in parts:
        yield work.make(_pairs(engine.name, work.ask(part), responses))
    _expect_no_more(engine.name, responses)


def pair_responses(engine: Engine, requests: Iterable[Request]) -> Pairs:
    """Each request with its response, checked one for one.

    Args:
        engine: What answers.
        requests: Any number of requests, a list or `Requests`: drawn by the engine and, a second time, beside its
            answers. (An engine may draw all before it answers the first; to keep them would take memory.)

    Yields:
        Pairs in the order of the requests.

    Raises:
        TypeError: The requests can be drawn only once.
        RuntimeError: The engine broke its protocol: a response is missing, out of order, or one too many.
    """
    if iter(requests) is requests:
        raise TypeError(
            "expected requests that can be drawn twice, a list or genret.llm.base.Requests; found an iterator"
        )
    responses = engine.generate(requests)
    yield from _pairs(engine.name, requests, responses)
    _expect_no_more(engine.name, responses)


def _pairs(name: str, requests: Iterable[Request], responses: Iterator[Response]) -> Pairs:
    for request in requests:
        response = next(responses, None)
        if response is None or response.request_id != request.request_id:
            found = None if response is None else response.request_id
            raise RuntimeError(f"{name}: expected the response to {request.request_id!r}, found {found!r}")
        yield request, response


def _expect_no_more(name: str, responses: Iterator[Response]) -> None:
    surplus = next(responses, None)
    if surplus is not None:
        raise RuntimeError(f"{name}: expected no more responses, found {surplus.request_id!r}")
