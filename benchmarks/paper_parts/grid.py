"""From a row of a table to a configuration, and what a grid of them shares and takes."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

from genret.config import RunConfig, load_config
from genret.corpus.prepare import prepare_corpus
from genret.errors import InputError
from genret.pipeline import planned as planned_stages
from genret.pipeline import stage_fingerprint
from genret.planning import CorpusSize, measure_corpus
from genret.planning import plan as plan_stages
from genret.runs import StageRecord
from paper_parts.figures import AGNEWS, ALLSIDES, ATOMIC, MEASURES, MULTIHOP, NQ, SCIFACT, PaperTable, Row

MORE_MEASURES = ("HIT@10", "MRR@10", "NDCG@10")
"""Measured on every corpus, beside what the paper measures there."""
CPU = (
    "name=cpu", "identifiers.keywords=3", "identifiers.order=distinctive",
    "llm.background_noise=0.8", "llm.min_terms=6", "llm.max_terms=24",
    "synthesis.chunk_queries=10", "synthesis.sentence_queries=10", "synthesis.constraint_queries=10",
    "synthesis.preference_queries=4", "synthesis.max_sentences=8", "examples.context_tokens=128",
    "examples.context_share=0.5",
    "sft.model={type: scratch, vocabulary_size: 8000, hidden_size: 384, intermediate_size: 128, layers: 1, heads: 6}",
    "sft.scoring=trie", "sft.epochs=2", "sft.learning_rate=2e-4", "sft.adam_beta2=0.98", "sft.max_tokens=160",
    "sft.checkpoints=0", "rpo.learning_rate=5e-6", "rpo.checkpoints=0", "evaluation.bootstrap_samples=200",
)  # fmt: skip
PLAIN_QUERIES = "llm.background_noise=0"
"""What another engine is without a language model: one whose queries have no words of other passages."""
PAPER_ATOMIC = "sft.model.name=mistralai/Mistral-7B-v0.3"


@dataclass(frozen=True)
class StandIn:
    """What stands for a corpus of the paper at the scale cpu.

    Attributes:
        folder: Its folder.
        fields: The metadata that constraint queries name there.
        changes: What keeps its runs short.
    """

    folder: str
    fields: str = "[]"
    changes: tuple[str, ...] = ()


# A table of three seeds shall take half an hour on two cores: of longer texts there are fewer queries each.
STAND_INS = {
    MULTIHOP: StandIn("multihop_rag_evidence500", "[source, category]"),
    ALLSIDES: StandIn(
        "pir_allsides",
        "[polarity]",
        (
            *("synthesis.chunk_queries=4", "synthesis.sentence_queries=1", "synthesis.constraint_queries=4"),
            *("synthesis.max_sentences=4", "sft.epochs=1"),
        ),
    ),
    AGNEWS: StandIn(
        "pir_agnews",
        "[location, subtopic]",
        (
            *("synthesis.chunk_queries=6", "synthesis.sentence_queries=1", "synthesis.constraint_queries=6"),
            "sft.epochs=1",
        ),
    ),
    NQ: StandIn("xquad_en", changes=("synthesis.sentence_queries=4",)),
    # Twenty times as many passages as the others have.
    SCIFACT: StandIn(
        "scifact",
        changes=(
            *("synthesis.chunk_queries=4", "synthesis.sentence_queries=1", "synthesis.preference_queries=1"),
            "sft.epochs=1",
        ),
    ),
}


def corpora(table: PaperTable, chosen: list[str] | None) -> list[str]:
    """Those that the paper has figures for, in the order of `MEASURES`; or those that are chosen."""
    there = [corpus for corpus in MEASURES if any(corpus in row.paper for row in table.rows)]
    return there if chosen is None else [corpus for corpus in MEASURES if corpus in chosen]


def measures_of(corpus: str) -> tuple[str, ...]:
    """The paper's measures on a corpus, and others."""
    return tuple(dict.fromkeys((*MEASURES[corpus], *MORE_MEASURES)))


def configurations(table: PaperTable, corpus: str, arguments: Namespace, seed: int) -> dict[str, RunConfig]:
    """The configuration of each row of a table on a corpus, by the row's name.

    A row that is the same there as one before it is left out: where a corpus has no metadata, no query names any.
    """
    found: dict[str, RunConfig] = {}
    for row in table.rows:
        config = configuration(table, row, corpus, arguments, seed)
        if config not in found.values():
            found[row.name] = config
    return found


def differs(table: PaperTable, corpus: str, arguments: Namespace) -> bool:
    """Whether there is anything to compare on a corpus: rows of more than one configuration."""
    return len(configurations(table, corpus, arguments, arguments.seeds[0])) > 1


def configuration(table: PaperTable, row: Row, corpus: str, arguments: Namespace, seed: int) -> RunConfig:
    """The configuration of a row on a corpus."""
    own = row.changes
    for name, folder in arguments.copies.items():
        own = tuple(change.replace(f"name: {name},", f"name: {folder},") for change in own)
    rows = [f"evaluation.measures=[{', '.join(measures_of(corpus))}]", *table.changes, *own]
    if table.engines and row is table.rows[0]:
        rows.append(PLAIN_QUERIES if arguments.scale == "cpu" else f"llm={arguments.engine}")
    rows += [*arguments.set, f"seed={seed}"]
    if arguments.scale == "paper":
        # The preset of the same name has the paper's models and settings.
        atomic = [PAPER_ATOMIC] if ATOMIC[0] in row.changes else []
        return load_config(corpus, [f"corpus.path={arguments.data / corpus}", *atomic, *rows])
    stand_in = STAND_INS[corpus]
    shared = [*CPU, *stand_in.changes, f"corpus.path={arguments.data / stand_in.folder}"]
    shared.append(f"synthesis.constraint_fields={stand_in.fields}")
    # Behind the row's: where there is no metadata, no row has queries that name any.
    without = ["synthesis.constraint_queries=0"] if stand_in.fields == "[]" else []
    return load_config("scratch-semantic", [*shared, *rows, *without])


class Sharing:
    """Which stages were there before: runs into one folder share those of the same fingerprint."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def new_stages(self, config: RunConfig) -> list[str]:
        """The stages that a configuration shares with none before it; they are known from now on."""
        own, records = [], dict[str, StageRecord]()
        for stage in planned_stages(config):
            # The corpus need not be there to plan.
            mark = "corpus" if stage.name == "corpus" else stage_fingerprint(stage, config, records)
            records[stage.name] = StageRecord(stage.name, mark, "", {}, {}, {}, {})
            if mark not in self._seen:
                own.append(stage.name)
            self._seen.add(mark)
        return own


def plan(table: PaperTable, corpus: str, arguments: Namespace, sharing: Sharing) -> Iterator[str]:
    """The rows with what they change, which stages they do not share with a row before, and about how long these take.

    Minutes are those of `genret plan`, of all seeds together: 0 for a row that shares everything. How long others take
    is not known without the corpus.
    """
    sizes: dict[str, CorpusSize] = {}
    total = 0.0
    yield "| row | changes | stages of its own | minutes |"
    yield "| --- | --- | --- | ---: |"
    grids = [configurations(table, corpus, arguments, seed) for seed in arguments.seeds]
    for row in (row for row in table.rows if row.name in grids[0]):
        own, seconds = list[str](), list[float | None]()
        for grid in grids:
            config = grid[row.name]
            new = sharing.new_stages(config)
            own = own or new
            seconds.append(_seconds(config, new, sizes))
        known = [taken for taken in seconds if taken is not None]
        total += sum(known)
        minutes = f"{sum(known) / 60:.1f}" if len(known) == len(seconds) else "–"
        yield f"| {row.name} | {'; '.join(row.changes) or 'none'} | {', '.join(own)} | {minutes} |"
    if total:
        yield f"\n{total / 60:.1f} minutes with {len(grids)} seeds"


def _seconds(config: RunConfig, stages: list[str], sizes: dict[str, CorpusSize]) -> float | None:
    """What some stages of a configuration take, as `genret plan` has it; None where the corpus is not at hand."""
    if not stages:
        return 0.0
    synthesis = str(config.synthesis) + str(config.examples)
    if synthesis not in sizes:
        try:
            tables = prepare_corpus(config.corpus)
        except InputError:
            return None
        sizes[synthesis] = measure_corpus(config, tables["passages"], tables["test_queries"].num_rows)
    return sum(stage.seconds for stage in plan_stages(config, sizes[synthesis]) if stage.stage in stages)
