"""What every stage works with, and what it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa

from genret import tables
from genret.cluster import ActorPool
from genret.config import RunConfig
from genret.installed import installed_versions
from genret.leases import Driving
from genret.llm.pool import KnownStatistics
from genret.runs import RunStore, StageRecord, StageWriter

_PACKAGES = ("ray", "torch", "transformers", "trl", "pyarrow", "bm25s", "sentence-transformers", "ir-measures")


class Reporter(Protocol):
    """What a person sees while a run goes on."""

    def stage_started(self, stage: str) -> None:
        """A stage begins to run."""

    def progress(self, stage: str, done: int, total: int, unit: str, note: str) -> None:
        """A stage is so far."""

    def stage_finished(self, record: StageRecord, reused: bool) -> None:
        """A stage is done; `reused` if it was done before."""


@dataclass
class Context:
    """What a stage works with.

    Attributes:
        config: The configuration.
        store: The run.
        reporter: What is told how far the stage is.
        records: The stages that are done, by name.
        mark: Fingerprint of the running stage.
        driving: That this process still drives the run.
        known: What was counted in the passages, from the first stage that needs it to the end.
    """

    config: RunConfig
    store: RunStore
    reporter: Reporter
    records: dict[str, StageRecord] = field(default_factory=dict)
    mark: str = ""
    driving: Driving = field(default_factory=Driving)
    known: KnownStatistics = field(default_factory=KnownStatistics)

    def table(self, stage: str, name: str) -> pa.Table:
        """A table that an earlier stage wrote."""
        return self.store.read_table(self.records[stage], name)

    @cached_property
    def passages(self) -> pa.Table:
        """The passages of the corpus: most stages work with them, and they are read once, and kept to the end."""
        return self.table("corpus", "passages")

    @cached_property
    def pool(self) -> ActorPool:
        """The actors that work on texts: they stay from one stage to the next, until the pipeline closes the pool."""
        return ActorPool(self.config.compute)

    def gather(self, name: str) -> pa.Table:
        """The tables of a name that all stages so far wrote, as one."""
        parts = [self.store.read_table(record, name) for record in self.records.values() if name in record.tables]
        return pa.concat_tables(parts) if parts else tables.table_from_rows(name, [])

    def gather_logs(self, name: str) -> pa.Table:
        """Likewise of logs of training. In older runs those of both rounds of RPO have the same name."""
        logs = [
            of_stage(self.store.read_table(record, name), stage)
            for stage, record in self.records.items()
            if name in record.tables
        ]
        return pa.concat_tables([tables.table_from_rows(name, []), *logs])

    def progress(self, stage: str, unit: str) -> Callable[[int, int], None]:
        """A function that reports how far a stage is."""
        return lambda done, total: self.reporter.progress(stage, done, total, unit, "")


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: Its name, also that of its records.
        inputs: The stages whose output it reads.
        settings: What of the configuration decides its output, JSON-able. What is not in here (the `compute`
            section) never makes a stage run again.
        run: Writes the output; returns details for the record.
        needed: Whether this configuration has the stage at all.
    """

    name: str
    inputs: tuple[str, ...]
    settings: Callable[[RunConfig], Any]
    run: Callable[[Context, StageWriter], dict[str, Any]]
    needed: Callable[[RunConfig], bool] = lambda config: True


def of_stage(log: pa.Table, stage: str) -> pa.Table:
    """A log of training, under the name of a stage: what trains does not know which round of its kind it is."""
    place = log.schema.get_field_index("stage")
    return log.set_column(place, log.schema.field(place), pa.array([stage] * log.num_rows, pa.string()))


def write_tables(writer: StageWriter, outputs: Mapping[str, pa.Table]) -> None:
    """Write all tables of a stage."""
    for name, table in outputs.items():
        writer.write_table(name, table)


def versions() -> dict[str, str]:
    """Versions of Python, of genret and of the packages that decide results."""
    return installed_versions(_PACKAGES)
