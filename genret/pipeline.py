"""The stages in their order, and the driver that runs those that are not done."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from genret.asking import ASKING_STAGES, budget_of
from genret.cluster import connected, submission_id
from genret.config import HttpConfig, RunConfig, VllmConfig, resolved_yaml
from genret.errors import InputError
from genret.leases import driving
from genret.llm.budget import Budget
from genret.placement import Demand
from genret.retrieval.names import LISTS, TRAINED
from genret.retrieval.packages import check_faiss
from genret.runs import RunStore, StageRecord, fingerprint
from genret.stages import dense, evaluation, ranking, settings, texts, training
from genret.stages.context import Context, Reporter, Stage, versions
from genret.stages.engines import COMPLETIONS

# Raised when a change of the code changes what some stage makes of the same input.
_REVISION = 3
# What keeps the parts of its work that are done, to go on from there.
_RESUMED = frozenset({*TRAINED, "mining", "mining_2", "dense", "embedding", "base_embedding"})
# Stages whose actors stay from one to the next.
_ON_TEXTS = frozenset({"identifiers", "synthesis", "examples"})


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
        InputError: Bad input, or a package that the configuration needs is missing; what was done before stays done.
        RunBusyError: Another process works on the run.
        EngineError: A language model no longer answers; likewise, and its answers are kept.
    """
    stages = planned(config, until)
    if any(stage.name == LISTS for stage in stages):
        check_faiss()  # the stage that needs it comes after hours of training
    context = Context(config, store, reporter)
    with ExitStack() as stack:
        context.driving = stack.enter_context(driving(store.url, submission_id()))
        store.sweep()
        to_connect = True
        for stage in stages:
            mark = stage_fingerprint(stage, config, context.records)
            record = store.find(stage.name, mark)
            reused = record is not None
            if record is None:
                if show_plan and stage.name in ASKING_STAGES and (ahead := _asking_ahead(stages, context)):
                    show_plan(_budget(context, ahead))
                    show_plan = None
                if to_connect and stage.name not in ("corpus", "report"):  # these two never need Ray
                    _connect(stack, context)
                    to_connect = False
                if stage.name not in _ON_TEXTS:
                    context.pool.close()  # others need the room
                record = _run_stage(stage, context, mark)
            elif stage.name in _RESUMED:
                # Killed between the commit and the cleaning up, it would keep its checkpoints for good.
                store.clear_scratch(stage.name, mark)
            context.records[stage.name] = record
            # Both files are of one configuration, also if a later stage fails.
            store.write_file("config.yaml", resolved_yaml(config))
            finished = _finished(config, store, context.records)
            store.set_current({name: done.fingerprint for name, done in finished.items()})
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
        store: The run; its corpus stage is run where it is not done, and nothing else. Which configuration and stages
            are the run's stays as it was: nobody asked for another one yet.
        reporter: What is told how far that is.
        until: Plan up to this stage.

    Returns:
        The budget; None where no stage has to ask a language model.

    Raises:
        InputError: Bad input.
        RunBusyError: The corpus stage is not done, and another process works on the run.
    """
    stages = planned(config, until)
    context = Context(config, store, reporter)
    context.records["corpus"] = _read_corpus(context)
    ahead = _asking_ahead(stages, context)
    return _budget(context, ahead) if ahead else None


def planned(config: RunConfig, until: str | None = None) -> list[Stage]:
    """The stages of a configuration in order, up to and including `until`."""
    stages = [stage for stage in STAGES if stage.needed(config)]
    if until is None:
        return stages
    names = [stage.name for stage in stages]
    if until not in names:
        raise InputError(f"stage: expected one of {names} under this configuration, found {until!r}")
    return stages[: names.index(until) + 1]


def trained(config: RunConfig) -> list[str]:
    """The stages of a configuration that train a retriever, in order."""
    return [stage.name for stage in planned(config) if stage.name in (*TRAINED, "dense")]


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


def _read_corpus(context: Context) -> StageRecord:
    stage = STAGES[0]
    mark = stage_fingerprint(stage, context.config, {})
    record = context.store.find(stage.name, mark)
    reused = record is not None
    if record is None:
        with driving(context.store.url, submission_id()) as context.driving:
            record = _run_stage(stage, context, mark)
    context.reporter.stage_finished(record, reused)
    return record


def _finished(config: RunConfig, store: RunStore, records: Mapping[str, StageRecord]) -> dict[str, StageRecord]:
    """The stages that are done, those included that this configuration finished before.

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
    return {stage.name: done[stage.name] for stage in stages if stage.name in done}


def _connect(stack: ExitStack, context: Context) -> None:
    config = context.config
    engine: Sequence[Demand] = ()
    if isinstance(config.llm, VllmConfig):
        from genret.llm.vllm import demands

        engine = demands(config.llm)
    stack.enter_context(connected(config.compute, engine))
    stack.callback(context.pool.close)  # before Ray ends


def _asking_ahead(stages: Sequence[Stage], context: Context) -> tuple[str, ...]:
    """The stages that have to ask a language model. The corpus stage is done."""
    if not isinstance(context.config.llm, HttpConfig | VllmConfig):
        return ()
    done = _finished(context.config, context.store, context.records)
    return tuple(stage.name for stage in stages if stage.name in ASKING_STAGES and stage.name not in done)


def _budget(context: Context, stages: Sequence[str]) -> Budget:
    journal = context.store.shared_folder(COMPLETIONS)
    done = replace(context, records=_finished(context.config, context.store, context.records))
    negatives = dense.asked_negatives(done) if "candidates" in done.records and "negatives" in stages else None
    return budget_of(context.config, done.passages, journal, stages, negatives)


STAGES: tuple[Stage, ...] = (
    Stage("corpus", (), settings.corpus_settings, texts.run_corpus),
    Stage("identifiers", ("corpus",), settings.seeded("identifiers", "llm"), texts.run_identifiers),
    Stage("synthesis", ("corpus",), settings.synthesis_settings, texts.run_synthesis),
    Stage("examples", ("corpus", "identifiers", "synthesis"), settings.seeded("examples"), texts.run_examples),
    Stage("base", ("corpus", "identifiers", "examples"), settings.base_settings, training.run_base),
    Stage("sft", ("base", "examples"), settings.seeded("sft"), training.run_sft, settings.has_generative),
    Stage("mining", ("sft", "synthesis"), settings.seeded("mining"), training.run_mining, settings.has_preference),
    Stage("rpo", ("sft", "mining"), settings.seeded("rpo"), training.run_rpo, settings.has_preference),
    Stage(
        "mining_2",
        ("rpo", "synthesis"),
        settings.seeded("mining"),
        training.run_second_mining,
        settings.has_second_round,
    ),
    Stage("rpo_2", ("rpo", "mining_2"), settings.seeded("rpo"), training.run_second_rpo, settings.has_second_round),
    Stage("bm25", ("corpus",), settings.bm25_settings, ranking.run_bm25),
    Stage(
        "encoder",
        ("corpus",),
        settings.encoder_settings,
        dense.run_encoder,
        settings.builds_encoder,
    ),
    Stage(
        "base_embedding",
        ("corpus", "encoder"),
        settings.embedding_settings,
        dense.run_base_embedding,
        settings.embeds_base,
    ),
    Stage(
        "candidates",
        ("corpus", "synthesis", "bm25", "base_embedding"),
        settings.candidates_settings,
        dense.run_candidates,
        settings.trains_dense,
    ),
    Stage(
        "negatives",
        ("corpus", "candidates"),
        settings.negatives_settings,
        dense.run_negatives,
        settings.writes_negatives,
    ),
    Stage(
        "contrastive",
        ("corpus", "candidates", "negatives"),
        settings.contrastive_settings,
        dense.run_contrastive,
        settings.trains_dense,
    ),
    Stage(
        "dense", ("corpus", "encoder", "contrastive"), settings.dense_settings, dense.run_dense, settings.trains_dense
    ),
    Stage(
        "embedding",
        ("corpus", "encoder", "dense"),
        settings.embedding_settings,
        dense.run_embedding,
        settings.has_dense,
    ),
    Stage(LISTS, ("embedding",), settings.lists_settings, dense.run_lists, settings.has_lists),
    Stage(
        "retrieval",
        ("corpus", "sft", "rpo", "rpo_2", "bm25", "embedding", LISTS),
        settings.dumped("retrieval"),
        ranking.run_retrieval,
    ),
    Stage(
        "evaluation",
        ("corpus", "identifiers", "synthesis", "base", "retrieval"),
        settings.evaluation_settings,
        evaluation.run_evaluation,
    ),
    Stage("report", ("evaluation",), settings.report_settings, evaluation.run_report),
)
"""All stages, left to right."""
