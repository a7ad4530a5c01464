"""The extractive engine on the pool of actors."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from genret.cluster import ActorPool
from genret.config import ExtractiveConfig
from genret.llm.base import Outcome, Pairs, Part, Request, Response, Work
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine, WordCounts
from genret.parts import Counted, Parts

_REQUESTS_A_BATCH = 512
# Parts that are counted: the driver adds their words up, which is less work for fewer of them, but every actor should
# have a few.
_LEAST_COUNTED, _MOST_COUNTED = 1_024, 16_384
_COUNTS_AN_ACTOR = 8


@dataclass
class KnownStatistics:
    """The statistics of a corpus as soon as an engine has had them counted, for the next engine that works with it."""

    statistics: CorpusStatistics | None = None


@dataclass
class PooledEngine:
    """The extractive engine behind the `Engine` protocol, fanned out over actors.

    Its responses are those of one engine in one process: randomness depends on the request alone. The statistics of
    the corpus are counted by the actors too.

    Attributes:
        config: The `llm` section.
        passages: The `passages` table of the whole corpus.
        seed: Seed of the engine.
        pool: The actors. They are not closed.
        progress: Called with the batches of requests done, and their number.
        known: The statistics, where they are known.
    """

    config: ExtractiveConfig
    passages: pa.Table
    seed: int
    pool: ActorPool
    progress: Callable[[int, int], None]
    known: KnownStatistics = field(default_factory=KnownStatistics)
    name: str = "extractive"

    def generate(self, requests: Iterable[Request]) -> Iterator[Response]:
        """Responses in the order of the requests, which are drawn twice: counted, then answered some at a time."""
        batches = Parts(lambda: _batches(requests), sum(1 for _ in _batches(requests)))
        for responses in self.work(batches, Work(_as_they_are, _responses)):
            yield from responses

    def work(self, parts: Counted[Part], work: Work[Part, Outcome]) -> Iterator[Outcome]:
        """What is made of each part, in the order of the parts; they go to the actors."""
        if not len(parts):
            return
        arguments = {"config": self.config, "statistics": self._statistics(), "seed": self.seed, "work": work}
        yield from self.pool.map(parts, len(parts), open_extractive, arguments, self.progress)
        self.pool.withdraw()

    def _statistics(self) -> CorpusStatistics:
        if self.known.statistics is None:
            self.known.statistics = self._count()
        return self.known.statistics

    def _count(self) -> CorpusStatistics:
        texts = self.passages.select(["title", "text"])
        fair = texts.num_rows // (self.pool.size * _COUNTS_AN_ACTOR)
        size = min(max(fair, _LEAST_COUNTED), _MOST_COUNTED)
        starts = range(0, texts.num_rows, size)
        blocks = (texts.slice(start, size).combine_chunks() for start in starts)
        return CorpusStatistics.of(self.pool.map(blocks, len(starts), open_counting, {}))


def _batches(requests: Iterable[Request]) -> Iterator[list[Request]]:
    batch: list[Request] = []
    for request in requests:
        batch.append(request)
        if len(batch) == _REQUESTS_A_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _as_they_are(batch: list[Request]) -> list[Request]:
    return batch


def _responses(pairs: Pairs) -> list[Response]:
    return [response for _, response in pairs]


def open_counting() -> Callable[[pa.Table], WordCounts]:
    """Counting words, as a function on batches in an actor."""
    return count_block


def count_block(block: pa.Table) -> WordCounts:
    """The words of some passages."""
    titles, texts = (block.column(name).to_pylist() for name in ("title", "text"))
    return WordCounts.of(zip(titles, texts, strict=True))


def open_extractive(
    config: ExtractiveConfig, statistics: CorpusStatistics, seed: int, work: Work[Any, Any]
) -> Callable[[Any], Any]:
    """The engine at work, as a function on parts in an actor."""
    engine = ExtractiveEngine(config, statistics, seed)

    def apply(part: Any) -> Any:
        # It answers one request after the other: each is made once, and none is kept.
        return work.make((request, engine.respond(request)) for request in work.ask(part))

    return apply
