"""The extractive engine on the pool of actors."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from genret.cluster import map_batches
from genret.config import ComputeConfig, ExtractiveConfig
from genret.llm.base import Request, Response
from genret.llm.extractive import CorpusStatistics, ExtractiveEngine

_REQUESTS_A_BATCH = 512


@dataclass
class PooledEngine:
    """The extractive engine behind the `Engine` protocol, fanned out over actors.

    Its responses are those of one engine in one process: randomness depends on the request alone.

    Attributes:
        config: The `llm` section.
        statistics: Of the whole corpus.
        seed: Seed of the engine.
        compute: Number of actors and their CPUs.
        progress: Called with the batches of requests done, and their number.
    """

    config: ExtractiveConfig
    statistics: CorpusStatistics
    seed: int
    compute: ComputeConfig
    progress: Callable[[int, int], None]
    name: str = "extractive"

    def generate(self, requests: Iterable[Request]) -> Iterator[Response]:
        """Responses in the order of the requests, which are drawn twice: counted, then answered some at a time."""
        total = -(-sum(1 for _ in requests) // _REQUESTS_A_BATCH)
        remaining = iter(requests)
        batches = (list(islice(remaining, _REQUESTS_A_BATCH)) for _ in range(total))
        arguments = {"config": self.config, "statistics": self.statistics, "seed": self.seed}
        for responses in map_batches(batches, total, open_extractive, arguments, self.compute, progress=self.progress):
            yield from responses


def open_extractive(
    config: ExtractiveConfig, statistics: CorpusStatistics, seed: int
) -> Callable[[list[Request]], list[Response]]:
    """The engine as a function on batches, in an actor."""
    engine = ExtractiveEngine(config, statistics, seed)
    return lambda batch: list(engine.generate(batch))
