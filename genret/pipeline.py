"""The stages in their order, and the driver that runs those that are not done.

What takes seconds to import (PyTorch, transformers, TRL) is imported by the stage that works with it, so that a run
whose work is done, or that stops early, does not wait for it.
"""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa

from genret import __version__, tables
from genret.asking import ASKING_STAGES, budget_of, make_sender, needs_neighbours, related_requests
from genret.cluster import connected, map_batches, submission_id
from genret.config import (
    HttpConfig,
    PretrainedModel,
    RetrievalConfig,
    RunConfig,
    ScratchEncoder,
    VllmConfig,
    resolved_yaml,
)
from genret.corpus.prepare import prepare_corpus
from genret.corpus.readers import source_fingerprint
from genret.errors import InputError
from genret.evaluation.measures import evaluate, rank_documents
from genret.evaluation.report import ReportInputs, write_report
from genret.evaluation.significance import compare_retrievers
from genret.evaluation.similarity import query_sets, win_rates
from genret.evaluation.slices import slice_measures, slice_queries
from genret.evaluation.statistics import dataset_statistics, identifier_depths, identifier_statistics, rank_moves
from genret.evaluation.trec import write_qrels, write_run
from genret.examples.contrastive import (
    USES_RETRIEVED,
    USES_SYNTHETIC,
    build_contrastive_examples,
    by_query,
    hard_negatives,
    sample_queries,
)
from genret.examples.sft import build_sft_examples
from genret.identifiers.build import build_identifiers
from genret.leases import Driving, driving
from genret.llm.base import Engine
from genret.llm.budget import Budget
from genret.llm.completion import CompletionEngine, Counts
from genret.llm.extractive import CorpusStatistics
from genret.llm.filters import Limits
from genret.llm.pool import PooledEngine
from genret.llm.reasons import count_reasons
from genret.placement import Demand
from genret.retrieval.fusion import FUSION, fuse_runs
from genret.retrieval.names import TRAINED
from genret.retrieval.opening import open_retriever
from genret.runs import RunStore, StageRecord, StageWriter, fingerprint
from genret.synthesis.build import synthesize
from genret.synthesis.negatives import write_negatives
from genret.synthesis.round_trip import round_trip
from genret.training.mining import mine
from genret.types import Retriever

if TYPE_CHECKING:
    from genret.training.launch import TrainingTask
    from genret.training.setup import Setup

# Raised when a change of the code changes what some stage makes of the same input.
_REVISION = 1
# Likewise, of the evaluation alone: nobody wants to train again for a new table.
_EVALUATION_VERSION = 3
_MINING_BATCH = 32
# The run's folder of what a language model wrote.
_COMPLETIONS = "completions"
_SHOWN_REASONS = 3
# What the retrievers of a run are made of.
_RETRIEVER_STAGES = (*TRAINED, "bm25", "corpus", "encoder", "dense", "embedding", "base_embedding")
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
    """

    config: RunConfig
    store: RunStore
    reporter: Reporter
    records: dict[str, StageRecord] = field(default_factory=dict)
    mark: str = ""
    driving: Driving = field(default_factory=Driving)

    def table(self, stage: str, name: str) -> pa.Table:
        """A table that an earlier stage wrote."""
        return self.store.read_table(self.records[stage], name)

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


def run(
    config: RunConfig,
    store: RunStore,
    reporter: Reporter,
    until: str | None = None,
    show_plan: Callable[[Budget], None] | None = None,
) -> dict[str, StageRecord]:
    """Run all stages that are not done under this configuration.

    Args:
        config: The configuration.
        store: The run.
        reporter: What is told how far it is.
        until: Stop after this stage.
        show_plan: Called with what asking the language model will take, before it is asked for the first time; not
            at all where no stage has to ask one.

    Returns:
        The record of every stage up to `until`, by name.

    Raises:
        InputError: Bad input; what was done before stays done.
        RunBusyError: Another process works on the run.
        EngineError: A language model no longer answers; likewise, and its answers are kept.
    """
    stages = planned(config, until)
    context = Context(config, store, reporter)
    with ExitStack() as stack:
        context.driving = stack.enter_context(driving(store.url, submission_id()))
        store.sweep()
        for stage in stages:
            mark = stage_fingerprint(stage, config, context.records)
            record = store.find(stage.name, mark)
            reused = record is not None
            if record is None:
                if show_plan and stage.name in ASKING_STAGES and (ahead := _asking_ahead(stages, context)):
                    show_plan(_budget(context, ahead))
                    show_plan = None
                if stage.name not in ("corpus", "report"):  # these two never need Ray
                    _connect_once(stack, config)
                record = _run_stage(stage, context, mark)
            elif stage.name in (*TRAINED, "dense"):
                # Killed between the commit and the cleaning up, it would keep its checkpoints for good.
                store.clear_scratch(stage.name, mark)
            context.records[stage.name] = record
            # Both files are of one configuration, also if a later stage fails.
            store.write_file("config.yaml", resolved_yaml(config))
            store.set_current(_current(config, store, context.records))
            reporter.stage_finished(record, reused)
        for name in ("evaluation", "report"):
            if name in context.records:
                for text in context.records[name].texts:
                    store.write_file(text, store.read_text(context.records[name], text))
    return context.records


def plan(config: RunConfig, store: RunStore, reporter: Reporter, until: str | None = None) -> Budget | None:
    """Say what asking the language model will take, without asking it.

    Args:
        config: The configuration.
        store: The run; its corpus stage is run where it is not done, and nothing else.
        reporter: What is told how far that is.
        until: Plan up to this stage.

    Returns:
        The budget; None where no stage has to ask a language model.

    Raises:
        InputError: Bad input.
    """
    stages = planned(config, until)
    context = Context(config, store, reporter, run(config, store, reporter, "corpus"))
    ahead = _asking_ahead(stages, context)
    return _budget(context, ahead) if ahead else None


def _asking_ahead(stages: Sequence[Stage], context: Context) -> tuple[str, ...]:
    """The stages that have to ask a language model. The corpus stage is done."""
    if not isinstance(context.config.llm, HttpConfig | VllmConfig):
        return ()
    return tuple(stage.name for stage in stages if stage.name in ASKING_STAGES and not _is_done(stage, context))


def _is_done(stage: Stage, context: Context) -> bool:
    return context.store.find(stage.name, stage_fingerprint(stage, context.config, context.records)) is not None


def _budget(context: Context, stages: Sequence[str]) -> Budget:
    journal = context.store.shared_folder(_COMPLETIONS)
    return budget_of(context.config, context.table("corpus", "passages"), journal, stages)


def _current(config: RunConfig, store: RunStore, records: Mapping[str, StageRecord]) -> dict[str, str]:
    """Fingerprints of the stages that are done, those included that this configuration finished before.

    Without the latter, a run that is stopped or asked for its first stages only would forget its models.
    """
    stages = planned(config)
    names = {stage.name for stage in stages}
    done = dict(records)
    for stage in stages:
        if stage.name not in done and names.intersection(stage.inputs) <= done.keys():
            record = store.find(stage.name, stage_fingerprint(stage, config, done))
            if record is not None:
                done[stage.name] = record
    return {stage.name: done[stage.name].fingerprint for stage in stages if stage.name in done}


def _connect_once(stack: ExitStack, config: RunConfig) -> None:
    engine: Sequence[Demand] = ()
    if isinstance(config.llm, VllmConfig):
        from genret.llm.vllm import demands

        engine = demands(config.llm)
    # Entering again while connected changes nothing: the first one, which started Ray, is left last.
    stack.enter_context(connected(config.compute, engine))


def planned(config: RunConfig, until: str | None = None) -> list[Stage]:
    """The stages of a configuration in order, up to and including `until`."""
    stages = [stage for stage in STAGES if stage.needed(config)]
    if until is None:
        return stages
    names = [stage.name for stage in stages]
    if until not in names:
        raise InputError(f"stage: expected one of {names} under this configuration, found {until!r}")
    return stages[: names.index(until) + 1]


def stage_fingerprint(stage: Stage, config: RunConfig, records: Mapping[str, StageRecord]) -> str:
    """What decides a stage's output: its settings, and the fingerprints of what it reads."""
    inputs = {name: records[name].fingerprint for name in stage.inputs if name in records}
    return fingerprint(_REVISION, stage.name, stage.settings(config), inputs)


def _run_stage(stage: Stage, context: Context, mark: str) -> StageRecord:
    context.reporter.stage_started(stage.name)
    begin = time.perf_counter()
    writer = context.store.begin(stage.name, mark)
    context.mark = mark
    details = stage.run(context, writer)
    context.driving.check()
    record = writer.commit(
        details
        | {
            "seconds": round(time.perf_counter() - begin, 2),
            "seed": context.config.seed,
            "versions": versions(),
        }
        | ({"job": submission_id()} if submission_id() else {})
    )
    context.store.clear_scratch(stage.name, mark)
    return record


def versions() -> dict[str, str]:
    """Versions of Python, of genret and of the packages that decide results."""
    found = {"python": platform.python_version(), "genret": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# --- the stages -------------------------------------------------------------------------------------------


def _write_tables(writer: StageWriter, outputs: Mapping[str, pa.Table]) -> None:
    for name, table in outputs.items():
        writer.write_table(name, table)


def _engine(context: Context, stage: str, passages: pa.Table) -> Engine:
    config = context.config
    if isinstance(config.llm, HttpConfig | VllmConfig):
        # The journal is no part of a stage: another stage or configuration that asks the same finds the answer.
        engine = CompletionEngine(
            make_sender(config),
            context.store.shared_folder(_COMPLETIONS),
            context.store.scratch(stage, context.mark),
            lambda done, total: context.reporter.progress(stage, done, total, "prompts", _note(engine.counts)),
        )
        return engine
    return PooledEngine(
        config.llm,
        CorpusStatistics.fit(tables.iterate_passages(passages)),
        config.seed,
        config.compute,
        context.progress(stage, "batches"),
    )


def _note(counts: Counts) -> str:
    """What is shown beside the progress of a language model: its speed, and what failed why."""
    speed = [f"{counts.tokens_a_second:,.0f} tokens/s"] if counts.tokens_a_second else []
    frequent = sorted(counts.reasons.items(), key=lambda entry: -entry[1])[:_SHOWN_REASONS]
    return ", ".join([*speed, *(f"{number:,} {reason}" for reason, number in frequent)])


def _asked(engine: Engine) -> dict[str, Any]:
    """What a stage tells of its engine."""
    return {"completions": asdict(engine.counts)} if isinstance(engine, CompletionEngine) else {}


def _corpus(context: Context, writer: StageWriter) -> dict[str, Any]:
    _write_tables(writer, prepare_corpus(context.config.corpus))
    return {}


def _identifiers(context: Context, writer: StageWriter) -> dict[str, Any]:
    passages = context.table("corpus", "passages")
    engine = _engine(context, "identifiers", passages)
    # The engine without a model quotes its passages: what it writes is not judged.
    limits = None if context.config.llm.type == "extractive" else Limits()
    outputs = build_identifiers(context.config.identifiers, passages, engine, limits)
    _write_tables(writer, outputs)
    sources = outputs["identifiers"].column("source").value_counts().to_pylist()
    return {"sources": {entry["values"]: entry["counts"] for entry in sources}} | _rejected(outputs) | _asked(engine)


def _synthesis(context: Context, writer: StageWriter) -> dict[str, Any]:
    passages = context.table("corpus", "passages")
    engine = _engine(context, "synthesis", passages)
    from genret.retrieval.bm25 import Bm25Retriever

    config = context.config.synthesis
    neighbours = Bm25Retriever.build(passages, context.config.retrieval) if needs_neighbours(context.config) else None
    related = related_requests(context.config, passages, neighbours)
    outputs = synthesize(config, passages, engine, _limits(context.config), related)
    if config.round_trip_top and neighbours is not None:
        outputs = _round_trip(outputs, neighbours, config.round_trip_top)
    _write_tables(writer, outputs)
    kinds = outputs["queries"].column("kind").value_counts().to_pylist()
    told = {
        "passages": passages.num_rows,
        "kinds": {entry["values"]: entry["counts"] for entry in kinds},
        "preference": outputs["preference_queries"].num_rows,
    }
    return told | _rejected(outputs) | _asked(engine)


def _rejected(outputs: Mapping[str, pa.Table]) -> dict[str, Any]:
    """How many rows a stage rejected for which reason."""
    return {"reasons": count_reasons(outputs["rejects"].column("reason").to_pylist())}


def _limits(config: RunConfig) -> Limits | None:
    """What a language model's queries must keep to; None for the engine that quotes its passages."""
    if config.llm.type == "extractive":
        return None
    return Limits(
        min_query_words=config.synthesis.min_query_words,
        max_query_characters=config.synthesis.max_query_characters,
        max_answer_words=config.synthesis.max_answer_words,
        max_overlap=config.synthesis.max_overlap,
    )


def _round_trip(outputs: Mapping[str, pa.Table], retriever: Retriever, top: int) -> dict[str, pa.Table]:
    kept, rejects = dict(outputs), [outputs["rejects"]]
    for name in ("queries", "preference_queries"):
        kept[name], rows = round_trip(outputs[name], retriever, top)
        rejects.append(tables.table_from_rows("rejects", rows))
    return kept | {"rejects": pa.concat_tables(rejects)}


def _training_queries(context: Context) -> pa.Table:
    """The synthetic queries, and those that the corpus brings to train on."""
    queries = context.table("synthesis", "queries")
    if "annotated_queries" not in context.records["corpus"].tables:
        return queries
    return pa.concat_tables([queries, context.table("corpus", "annotated_queries")])


def _examples(context: Context, writer: StageWriter) -> dict[str, Any]:
    outputs = build_sft_examples(
        context.config.examples,
        context.table("corpus", "passages"),
        context.table("identifiers", "identifiers"),
        _training_queries(context),
        context.config.seed,
    )
    if not outputs["sft_examples"].num_rows:
        raise InputError(
            "examples: expected at least one training row, found none: there are no synthetic queries, and no passage "
            "has text for examples.context2id"
        )
    _write_tables(writer, outputs)
    return {}


def _base(context: Context, writer: StageWriter) -> dict[str, Any]:
    from genret.training.base import build_base

    with _threads(context.config.compute.cpus_a_training_worker):
        bundle = build_base(
            context.config.sft,
            context.table("corpus", "passages"),
            context.table("identifiers", "identifiers"),
            context.table("examples", "sft_examples"),
            context.config.identifiers.type,
            context.config.seed,
        )
    with TemporaryDirectory(prefix="genret-base-") as folder:
        bundle.save(Path(folder))
        writer.write_folder("base", Path(folder))
    parameters = sum(weight.numel() for weight in bundle.model.parameters()) if bundle.model is not None else 0
    return {"parameters": parameters, "identifier_tokens": len(bundle.identifiers.tokens)}


@contextmanager
def _threads(count: float) -> Iterator[None]:
    """A number of torch threads: sums in another order give other bits, and a driver in a job has one thread."""
    import torch

    from genret.threads import use_threads

    before = torch.get_num_threads()
    use_threads(int(count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sft(context: Context, writer: StageWriter) -> dict[str, Any]:
    return _train(context, writer, "sft", ("base", "base"), ("examples", "sft_examples"))


def _rpo(context: Context, writer: StageWriter) -> dict[str, Any]:
    return _train(context, writer, "rpo", ("sft", "sft"), ("mining", "preference_pairs"))


def _second_rpo(context: Context, writer: StageWriter) -> dict[str, Any]:
    return _train(context, writer, "rpo", ("rpo", "rpo"), ("mining_2", "preference_pairs"))


def _train(
    context: Context,
    writer: StageWriter,
    kind: Literal["sft", "rpo"],
    start: tuple[str, str],
    examples: tuple[str, str],
) -> dict[str, Any]:
    """Train from a model, named by its stage and folder, on a table, named by its stage and name."""
    from genret.training.launch import TrainingTask

    config = context.config
    stage = writer.stage
    section = config.sft if kind == "sft" else config.rpo
    model = config.sft.model
    task = TrainingTask(
        stage=kind,
        section=section.model_dump(),
        pretrained=model.model_dump() if kind == "sft" and isinstance(model, PretrainedModel) else None,
        run_url=str(context.store.url),
        model=(context.records[start[0]], start[1]),
        examples=(context.records[examples[0]], examples[1]),
        seed=config.seed,
        setup=_training_setup(context, stage),
        threads=max(1, int(config.compute.cpus_a_training_worker)),
    )
    return _launch(context, writer, task, lambda folder: writer.write_folder(kind, folder))


def _launch(
    context: Context, writer: StageWriter, task: "TrainingTask", deliver: Callable[[Path], None]
) -> dict[str, Any]:
    """Train on Ray Train, and keep the log."""
    from genret.training.launch import train

    def on_progress(step: int, steps: int, values: Mapping[str, float]) -> None:
        context.reporter.progress(task.stage, step, steps, "steps", f"loss {values.get('loss', float('nan')):.3f}")

    log = train(task, context.config.compute, context.store.scratch(writer.stage, context.mark), deliver, on_progress)
    writer.write_table("training_log", log)
    return {"steps": log.column("step").to_pylist()[-1] if log.num_rows else 0}


def _training_setup(context: Context, stage: str) -> "Setup":
    from genret.training.setup import Setup

    compute = context.config.compute
    return Setup(
        workers=compute.training_workers,
        zero_stage=compute.zero_stage,
        offload=compute.offload,
        gradient_checkpointing=compute.gradient_checkpointing,
        report_to=compute.report_to,
        report_folder=context.store.address(f"tensorboard/{stage}") if "tensorboard" in compute.report_to else "",
        run_name=f"{context.config.name}-{stage}",
    )


def _mining(context: Context, writer: StageWriter) -> dict[str, Any]:
    return _mine(context, writer, "sft")


def _second_mining(context: Context, writer: StageWriter) -> dict[str, Any]:
    return _mine(context, writer, "rpo")


def _mine(context: Context, writer: StageWriter, retriever: Literal["sft", "rpo"]) -> dict[str, Any]:
    # The paper's beam search, whatever the evaluation searches with: its section must not decide the negatives.
    search = context.config.retrieval.model_copy(
        update={"search": "beam", "beam": context.config.mining.candidates, "batch_size": _MINING_BATCH}
    )

    def rank(queries: pa.Table, k: int) -> pa.Table:
        return _rank(context, writer.stage, retriever, queries, k, search)[0]

    parts = mine(
        context.config.mining,
        context.table("synthesis", "preference_queries"),
        context.table("identifiers", "identifiers"),
        rank,
        context.config.seed,
    )
    writer.write_parts("preference_pairs", parts)
    return {}


def _bm25(context: Context, writer: StageWriter) -> dict[str, Any]:
    from genret.retrieval.bm25 import Bm25Retriever

    retriever = Bm25Retriever.build(context.table("corpus", "passages"), context.config.retrieval)
    with TemporaryDirectory(prefix="genret-bm25-") as folder:
        retriever.save(Path(folder))
        writer.write_folder("bm25", Path(folder))
    return {}


def _encoder(context: Context, writer: StageWriter) -> dict[str, Any]:
    from genret.training.base import passage_texts
    from genret.training.encoder import build_scratch_encoder

    config = context.config
    with _threads(config.compute.cpus_a_training_worker), TemporaryDirectory(prefix="genret-encoder-") as folder:
        encoder = build_scratch_encoder(config.dense, passage_texts(context.table("corpus", "passages")), config.seed)
        encoder.save(Path(folder))
        writer.write_folder("encoder", Path(folder))
    return {"parameters": sum(weight.numel() for weight in encoder.model.parameters())}


def _candidates(context: Context, writer: StageWriter) -> dict[str, Any]:
    """The queries to train the dense retriever with, and what a retriever finds for them."""
    config = context.config.negatives
    queries = sample_queries(context.table("synthesis", "queries"), config.queries_a_passage, context.config.seed)
    run = tables.table_from_rows("run", [])
    if config.source in USES_RETRIEVED | USES_SYNTHETIC:
        wanted = queries.select(["query_id", "text"])
        run = _rank(context, "candidates", config.retriever, wanted, config.candidates, context.config.retrieval)[0]
    writer.write_table("queries", queries)
    writer.write_table("run", run)
    return {}


def _negatives(context: Context, writer: StageWriter) -> dict[str, Any]:
    config, passages = context.config.negatives, context.table("corpus", "passages")
    queries = context.table("candidates", "queries")
    positive = dict(zip(queries.column("query_id").to_pylist(), queries.column("passage_id").to_pylist(), strict=True))
    found = {
        query_id: hard_negatives(ranking, positive[query_id], config.max_score_ratio)
        for query_id, ranking in by_query(context.table("candidates", "run")).items()
    }
    engine = _engine(context, "negatives", passages)
    outputs = write_negatives(queries, passages, found, config.count, engine, _limits(context.config))
    _write_tables(writer, outputs)
    return _rejected(outputs) | _asked(engine)


def _contrastive(context: Context, writer: StageWriter) -> dict[str, Any]:
    written = (
        context.table("negatives", "negatives")
        if "negatives" in context.records
        else tables.table_from_rows("negatives", [])
    )
    outputs = build_contrastive_examples(
        context.config.negatives,
        context.table("candidates", "queries"),
        context.table("candidates", "run"),
        written,
        context.table("corpus", "passages"),
        context.config.seed,
    )
    _write_tables(writer, outputs)
    sources = outputs["contrastive_examples"].column("negative_source").value_counts().to_pylist()
    return {"sources": {entry["values"]: entry["counts"] for entry in sources}}


def _dense(context: Context, writer: StageWriter) -> dict[str, Any]:
    from genret.training.dense import read_share_log
    from genret.training.encoder import EncoderPlace
    from genret.training.launch import DenseInputs, TrainingTask

    config = context.config
    task = TrainingTask(
        stage="dense",
        section=config.dense.model_dump(),
        pretrained=None,
        run_url=str(context.store.url),
        model=None,
        examples=(context.records["contrastive"], "contrastive_examples"),
        seed=config.seed,
        # The encoder is small: ZeRO is not for it.
        setup=replace(_training_setup(context, "dense"), zero_stage=0, offload="none"),
        threads=max(1, int(config.compute.cpus_a_training_worker)),
        dense=DenseInputs(
            config.negatives.model_dump(),
            EncoderPlace.of(str(context.store.url), config.dense, base=True),
            {name: record for name, record in context.records.items() if name == "encoder"},
            (context.records["corpus"], "passages"),
        ),
    )

    def deliver(folder: Path) -> None:
        writer.write_folder("dense", folder)
        writer.write_table("share_log", read_share_log(folder))

    return _launch(context, writer, task, deliver)


def _embedding(context: Context, writer: StageWriter) -> dict[str, Any]:
    return _embed(context, writer, "embedding", base=False)


def _base_embedding(context: Context, writer: StageWriter) -> dict[str, Any]:
    return _embed(context, writer, "base_embedding", base=True)


def _embed(context: Context, writer: StageWriter, stage: str, *, base: bool) -> dict[str, Any]:
    """An index of all passages; blocks that an attempt before finished are not embedded again."""
    from genret.retrieval.dense import BLOCK, missing_blocks, open_embedder, write_index
    from genret.training.encoder import EncoderPlace

    compute, passages = context.config.compute, context.table("corpus", "passages")
    place = EncoderPlace.of(str(context.store.url), context.config.dense, base=base)
    scratch = context.store.scratch(stage, context.mark)
    missing = missing_blocks(scratch, passages.num_rows)
    blocks = ((number, passages.slice(number * BLOCK, BLOCK).combine_chunks()) for number in missing)
    arguments = {
        "place": place,
        "records": {name: record for name, record in context.records.items() if name == place.stage},
        "scratch": scratch,
        "threads": max(1, int(compute.cpus_a_worker)),
    }
    progress = context.progress(stage, "blocks")
    for _ in map_batches(
        blocks, len(missing), open_embedder, arguments, compute, gpus=compute.gpus_a_worker, progress=progress
    ):
        pass
    with TemporaryDirectory(prefix="genret-embedding-") as folder:
        write_index(Path(folder), scratch, passages.column("passage_id"), place)
        writer.write_folder(stage, Path(folder))
    return {"blocks_kept": -(-passages.num_rows // BLOCK) - len(missing)}


def _retrieval(context: Context, writer: StageWriter) -> dict[str, Any]:
    config = context.config.retrieval
    queries = context.table("corpus", "test_queries")
    found = {
        name: _rank(context, "retrieval", name, queries, config.depth, config)
        for name in config.retrievers
        if name != FUSION
    }
    if FUSION in config.retrievers:
        # Made of what its parts found, in the time that these took and its own.
        parts = [found[part] for part in config.fusion.parts]
        begin = time.perf_counter()
        ranking = fuse_runs([run for run, _ in parts], queries, config)
        found[FUSION] = ranking, sum(seconds for _, seconds in parts) + time.perf_counter() - begin
    latencies = [
        {
            "retriever": name,
            "n_queries": queries.num_rows,
            "seconds": found[name][1],
            "milliseconds_a_query": 1000 * found[name][1] / max(1, queries.num_rows),
            "index_bytes": _index_bytes(context, name),
        }
        for name in config.retrievers
    ]
    writer.write_table("run", pa.concat_tables([found[name][0] for name in config.retrievers]))
    writer.write_table("latencies", tables.table_from_rows("latencies", latencies))
    return {}


def _index_bytes(context: Context, retriever: str) -> int:
    """Size of all files that a retriever reads; a pretrained encoder that was not trained is none of the run's."""
    config = context.config
    if retriever == FUSION:
        return sum(_index_bytes(context, part) for part in config.retrieval.fusion.parts)
    stages = [retriever]
    if retriever == "dense":
        from genret.training.encoder import EncoderPlace

        stages = ["embedding", EncoderPlace.of(str(context.store.url), config.dense, base=False).stage]
    folders = [folder for stage in stages if stage for folder in context.records[stage].folders.values()]
    return sum(size for folder in folders for size in folder["files"].values())


def _rank(
    context: Context, stage: str, retriever: str, queries: pa.Table, k: int, search: RetrievalConfig
) -> tuple[pa.Table, float]:
    """A retriever's `run` table over queries on the pool of actors, and the seconds that retrieving took."""
    compute = context.config.compute
    size = search.batch_size
    total = -(-queries.num_rows // size)
    batches = (queries.slice(start, size) for start in range(0, queries.num_rows, size))
    arguments = {
        "run_url": str(context.store.url),
        "records": {name: record for name, record in context.records.items() if name in _RETRIEVER_STAGES},
        "name": retriever,
        "config": search,
        "k": k,
        "threads": max(1, int(compute.cpus_a_worker)),
    }
    parts, seconds = [], 0.0
    results = map_batches(
        batches,
        total,
        open_retriever,
        arguments,
        compute,
        gpus=compute.gpus_a_worker if retriever != "bm25" else 0.0,
        progress=lambda done, number: context.reporter.progress(
            stage, min(done * size, queries.num_rows), queries.num_rows, "queries", retriever
        ),
    )
    for ranking, elapsed in results:
        parts.append(ranking)
        seconds += elapsed
    return pa.concat_tables(parts) if parts else tables.table_from_rows("run", []), seconds


def _evaluation(context: Context, writer: StageWriter) -> dict[str, Any]:
    ranking, qrels = context.table("retrieval", "run"), context.table("corpus", "qrels")
    passages = context.table("corpus", "passages")
    outputs = evaluate(
        context.config.evaluation,
        ranking,
        qrels,
        context.table("corpus", "test_queries"),
        passages,
        retrievers=context.config.retrieval.retrievers,
        seed=context.config.seed,
    )
    _write_tables(writer, outputs | _analyses(context, outputs["query_measures"]))
    writer.write_text("qrels.trec", write_qrels(qrels))
    documents = rank_documents(ranking, passages)
    for retriever in context.config.retrieval.retrievers:
        writer.write_text(f"{retriever}.trec", write_run(documents, retriever))
    return {}


def _analyses(context: Context, query_measures: pa.Table) -> dict[str, pa.Table]:
    """What the evaluation tells beyond the measures."""
    from genret.training.bundle import load_identifier_tokens

    config, seed = context.config.evaluation, context.config.seed
    retrievers = context.config.retrieval.retrievers
    ranking, qrels = context.table("retrieval", "run"), context.table("corpus", "qrels")
    passages, test_queries = context.table("corpus", "passages"), context.table("corpus", "test_queries")
    queries, identifiers = context.table("synthesis", "queries"), context.table("identifiers", "identifiers")
    slices = slice_queries(
        config.slice_fields,
        query_measures.column("query_id").unique().to_pylist(),
        test_queries,
        _gather(context, "query_metadata"),
        qrels,
        passages,
    )
    moves = tables.table_from_rows("rank_moves", [])
    if {"sft", "rpo"} <= set(retrievers):
        moves = rank_moves(ranking, qrels, test_queries, passages, "sft", "rpo")
    tokens = load_identifier_tokens(context.store.local_folder(context.records["base"], "base"))
    return {
        "significance": compare_retrievers(config, query_measures, seed),
        "slice_measures": slice_measures(config, query_measures, slices, seed),
        "rank_moves": moves,
        "win_rates": win_rates(query_sets(queries), test_queries, qrels, passages),
        "dataset_statistics": dataset_statistics(
            passages, test_queries, queries, context.table("synthesis", "preference_queries")
        ),
        "identifier_statistics": identifier_statistics(identifiers, tokens),
        "identifier_depths": identifier_depths(tokens),
    }


def _report(context: Context, writer: StageWriter) -> dict[str, Any]:
    records = list(context.records.values())
    inputs = ReportInputs(
        name=context.config.name,
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        versions=versions(),
        stages=[stage_summary(record) for record in records],
        config_yaml=resolved_yaml(context.config),
        measures=context.table("evaluation", "measures"),
        query_measures=context.table("evaluation", "query_measures"),
        significance=context.table("evaluation", "significance"),
        slice_measures=context.table("evaluation", "slice_measures"),
        rank_moves=context.table("evaluation", "rank_moves"),
        win_rates=context.table("evaluation", "win_rates"),
        dataset_statistics=context.table("evaluation", "dataset_statistics"),
        identifier_statistics=context.table("evaluation", "identifier_statistics"),
        identifier_depths=context.table("evaluation", "identifier_depths"),
        run=context.table("retrieval", "run"),
        latencies=context.table("retrieval", "latencies"),
        test_queries=context.table("corpus", "test_queries"),
        qrels=context.table("corpus", "qrels"),
        passages=context.table("corpus", "passages"),
        identifiers=context.table("identifiers", "identifiers"),
        training_log=_gather(context, "training_log"),
        rejects=_gather(context, "rejects"),
    )
    writer.write_text("report.html", write_report(inputs))
    return {}


def _gather(context: Context, name: str) -> pa.Table:
    parts = [context.store.read_table(record, name) for record in context.records.values() if name in record.tables]
    return pa.concat_tables(parts) if parts else tables.table_from_rows(name, [])


def stage_summary(record: StageRecord) -> dict[str, Any]:
    """What a person wants to know of a finished stage: name, seconds, rows of each table, rejects."""
    rows = {name: entry["rows"] for name, entry in record.tables.items() if name != "rejects"}
    return {
        "stage": record.stage,
        "seconds": record.details["seconds"],
        "rows": rows,
        "rejects": record.tables["rejects"]["rows"] if "rejects" in record.tables else 0,
    }


# --- the order --------------------------------------------------------------------------------------------


def _dump(*sections: str) -> Callable[[RunConfig], Any]:
    def settings(config: RunConfig) -> Any:
        parts = {name: getattr(config, name) for name in sections}
        return {name: part.model_dump(mode="json", exclude=set(part.INCIDENTAL)) for name, part in parts.items()}

    return settings


def _seeded(*sections: str) -> Callable[[RunConfig], Any]:
    return lambda config: _dump(*sections)(config) | {"seed": config.seed}


def _corpus_settings(config: RunConfig) -> Any:
    # The content decides, not where it lies: a moved folder is the same corpus.
    settings = config.corpus.model_dump(mode="json", exclude={"path", "queries_path", "qrels_path"})
    return settings | {"source": source_fingerprint(config.corpus)}


def _base_settings(config: RunConfig) -> Any:
    sft = config.sft.model_dump(mode="json")
    return {name: sft[name] for name in ("model", "scoring", "max_tokens")} | {
        "identifier_type": config.identifiers.type,
        "seed": config.seed,
    }


def _synthesis_settings(config: RunConfig) -> Any:
    bm25 = {"bm25": _bm25_settings(config)} if needs_neighbours(config) else {}
    return _seeded("synthesis", "llm")(config) | bm25


def _bm25_settings(config: RunConfig) -> Any:
    retrieval = config.retrieval.model_dump(mode="json")
    return {name: retrieval[name] for name in ("variant", "stemming", "language", "k1", "b")}


def _evaluation_settings(config: RunConfig) -> Any:
    return _seeded("evaluation")(config) | {"version": _EVALUATION_VERSION}


def _report_settings(config: RunConfig) -> Any:
    return config.model_dump(mode="json", exclude={"compute", "serving"})


def _has_preference(config: RunConfig) -> bool:
    return config.synthesis.preference_queries > 0


def _has_dense(config: RunConfig) -> bool:
    return "dense" in config.retrieval.retrievers


def _trains_dense(config: RunConfig) -> bool:
    return _has_dense(config) and config.dense.epochs > 0


def _writes_negatives(config: RunConfig) -> bool:
    return _trains_dense(config) and config.negatives.source in USES_SYNTHETIC


def _embeds_base(config: RunConfig) -> bool:
    retrieves = config.negatives.source in USES_RETRIEVED | USES_SYNTHETIC
    return _trains_dense(config) and retrieves and config.negatives.retriever == "dense_base"


def _encoder_settings(config: RunConfig) -> Any:
    dense = config.dense.model_dump(mode="json")
    return {"model": dense["model"], "max_tokens": dense["max_tokens"], "seed": config.seed}


def _candidates_settings(config: RunConfig) -> Any:
    return _settings_of(config, "negatives", ("source", "retriever", "candidates", "queries_a_passage"))


def _negatives_settings(config: RunConfig) -> Any:
    limits = {} if config.llm.type == "extractive" else {"limits": asdict(_limits(config) or Limits())}
    chosen = _settings_of(config, "negatives", ("count", "max_score_ratio"))
    return chosen | _dump("llm")(config) | limits


def _contrastive_settings(config: RunConfig) -> Any:
    return _settings_of(config, "negatives", ("source", "count", "max_score_ratio"))


def _dense_settings(config: RunConfig) -> Any:
    mixing = _settings_of(config, "negatives", ("count", "synthetic_share", "adjust_share"))
    dense = config.dense.model_dump(mode="json", exclude={"vectors", *config.dense.INCIDENTAL})
    return {"mixing": mixing, "dense": dense}


def _embedding_settings(config: RunConfig) -> Any:
    return _settings_of(config, "dense", ("model", "max_tokens", "vectors"))


def _settings_of(config: RunConfig, section: str, names: tuple[str, ...]) -> dict[str, Any]:
    dumped = getattr(config, section).model_dump(mode="json")
    return {name: dumped[name] for name in names} | {"seed": config.seed}


def _has_second_round(config: RunConfig) -> bool:
    return _has_preference(config) and config.preference.rounds == 2


STAGES: tuple[Stage, ...] = (
    Stage("corpus", (), _corpus_settings, _corpus),
    Stage("identifiers", ("corpus",), _seeded("identifiers", "llm"), _identifiers),
    Stage("synthesis", ("corpus",), _synthesis_settings, _synthesis),
    Stage("examples", ("corpus", "identifiers", "synthesis"), _seeded("examples"), _examples),
    Stage("base", ("corpus", "identifiers", "examples"), _base_settings, _base),
    Stage("sft", ("base", "examples"), _seeded("sft"), _sft),
    Stage("mining", ("sft", "synthesis"), _seeded("mining"), _mining, _has_preference),
    Stage("rpo", ("sft", "mining"), _seeded("rpo"), _rpo, _has_preference),
    Stage("mining_2", ("rpo", "synthesis"), _seeded("mining"), _second_mining, _has_second_round),
    Stage("rpo_2", ("rpo", "mining_2"), _seeded("rpo"), _second_rpo, _has_second_round),
    Stage("bm25", ("corpus",), _bm25_settings, _bm25),
    Stage(
        "encoder",
        ("corpus",),
        _encoder_settings,
        _encoder,
        lambda config: _has_dense(config) and isinstance(config.dense.model, ScratchEncoder),
    ),
    Stage("base_embedding", ("corpus", "encoder"), _embedding_settings, _base_embedding, _embeds_base),
    Stage(
        "candidates",
        ("corpus", "synthesis", "bm25", "base_embedding"),
        _candidates_settings,
        _candidates,
        _trains_dense,
    ),
    Stage("negatives", ("corpus", "candidates"), _negatives_settings, _negatives, _writes_negatives),
    Stage(
        "contrastive",
        ("corpus", "candidates", "negatives"),
        _contrastive_settings,
        _contrastive,
        _trains_dense,
    ),
    Stage("dense", ("corpus", "encoder", "contrastive"), _dense_settings, _dense, _trains_dense),
    Stage("embedding", ("corpus", "encoder", "dense"), _embedding_settings, _embedding, _has_dense),
    Stage("retrieval", ("corpus", "sft", "rpo", "rpo_2", "bm25", "embedding"), _dump("retrieval"), _retrieval),
    Stage(
        "evaluation",
        ("corpus", "identifiers", "synthesis", "base", "retrieval"),
        _evaluation_settings,
        _evaluation,
    ),
    Stage("report", ("evaluation",), _report_settings, _report),
)
"""All stages, left to right."""
