"""What a service counts, in Prometheus' form, added up over its processes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from genret.serving.asks import Answer

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_EXPANSIONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Family:
    """A metric of one process: name, kind, help, and samples as (name, labels, value)."""

    name: str
    kind: str
    help: str
    samples: tuple[tuple[str, tuple[tuple[str, str], ...], float], ...]


class Meters:
    """The counters of one process.

    Metrics stand here by their `labels`, each answer of which is kept: to look it up again takes longer than to count.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = cache(
            Counter(
                "genret_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
            ).labels
        )
        self._seconds = cache(
            Histogram(
                "genret_request_seconds", "Time of a request.", ["route"], buckets=_SECONDS, registry=self.registry
            ).labels
        )
        self._stage = cache(
            Histogram(
                "genret_stage_seconds",
                "Time of a query's stages: wait for a batch, search in the replica, and the rest, which is transport.",
                ["retriever", "stage"],
                buckets=_SECONDS,
                registry=self.registry,
            ).labels
        )
        self._batch = cache(
            Histogram(
                "genret_batch_size",
                "Queries that were searched for together.",
                ["retriever"],
                buckets=_SIZES,
                registry=self.registry,
            ).labels
        )
        self._expansions = cache(
            Histogram(
                "genret_expansions",
                "Stretches that the model read for a query.",
                ["retriever"],
                buckets=_EXPANSIONS,
                registry=self.registry,
            ).labels
        )
        self._answers = cache(
            Counter(
                "genret_answers",
                "Answers by whether they are exact, and whether a deadline cut them off.",
                ["retriever", "exact", "timed_out"],
                registry=self.registry,
            ).labels
        )
        self._queue = cache(Gauge("genret_queue", "Queries that wait.", ["retriever"], registry=self.registry).labels)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests(route, str(status)).inc()
        self._seconds(route).observe(seconds)

    def answer(self, retriever: str, answer: Answer, seconds: float) -> None:
        """Count an answer that took so many seconds in all."""
        rest = max(0.0, seconds - answer.wait_seconds - answer.search_seconds)
        for stage, value in (("wait", answer.wait_seconds), ("search", answer.search_seconds), ("transport", rest)):
            self._stage(retriever, stage).observe(value)
        self._batch(retriever).observe(answer.batch)
        if answer.expansions:
            self._expansions(retriever).observe(answer.expansions)
        self._answers(retriever, str(answer.exact).lower(), str(answer.timed_out).lower()).inc()

    def queue(self, retriever: str, waiting: int) -> None:
        """Say how many queries wait."""
        self._queue(retriever).set(waiting)

    def families(self) -> list[Family]:
        """All that was counted."""
        return [
            Family(
                metric.name,
                metric.type,
                metric.documentation,
                tuple(
                    (sample.name, tuple(sorted(sample.labels.items())), sample.value)
                    for sample in metric.samples
                    if not sample.name.endswith("_created")
                ),
            )
            for metric in self.registry.collect()
        ]


class _Sum(Collector):
    """Families of several processes, added up."""

    def __init__(self, processes: Iterable[Iterable[Family]]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Family] = {}
        totals: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for process in self._processes:
            for family in process:
                families.setdefault(family.name, family)
                sums = totals.setdefault(family.name, {})
                for name, labels, value in family.samples:
                    sums[name, labels] = sums.get((name, labels), 0.0) + value
        for family in families.values():
            metric = Metric(family.name, family.help, family.kind)
            for (name, labels), value in totals[family.name].items():
                metric.add_sample(name, dict(labels), value)
            yield metric


def exposition(processes: Iterable[Iterable[Family]]) -> str:
    """The counters of several processes as Prometheus reads them; samples with the same labels are added up."""
    registry = CollectorRegistry()
    registry.register(_Sum(processes))
    return generate_latest(registry).decode("utf-8")
