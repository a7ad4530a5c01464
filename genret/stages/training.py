"""The stages that train the generative retriever: base, SFT, mining, RPO."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa

from genret.config import PretrainedModel
from genret.runs import StageWriter
from genret.stages.context import Context
from genret.stages.launching import launch, torch_threads, training_setup
from genret.stages.ranking import rank_parts
from genret.training.mining import KeptParts, mine, queries_a_part

_MINING_BATCH = 32


def run_base(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Build the model that SFT starts from."""
    from genret.training.base import build_base

    with torch_threads(context.config.compute.cpus_a_training_worker):
        bundle = build_base(
            context.config.sft,
            context.passages,
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


def run_sft(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Fine-tune on identifiers and queries."""
    return _train(context, writer, "sft", ("base", "base"), ("examples", "sft_examples"))


def run_rpo(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Train on the first round's preference pairs."""
    return _train(context, writer, "rpo", ("sft", "sft"), ("mining", "preference_pairs"))


def run_second_rpo(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Train on the second round's preference pairs."""
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
        setup=training_setup(context, stage),
        threads=max(1, int(config.compute.cpus_a_training_worker)),
        unseen=(context.records["synthesis"], "preference_queries")
        if kind == "sft" and config.sft.validation_queries
        else None,
    )
    return launch(context, writer, task, lambda folder: writer.write_folder(kind, folder))


def run_mining(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Find the fine-tuned model's false positives."""
    return _mine(context, writer, "sft")


def run_second_mining(context: Context, writer: StageWriter) -> dict[str, Any]:
    """Find the false positives of the model that RPO trained."""
    return _mine(context, writer, "rpo")


def _mine(context: Context, writer: StageWriter, retriever: Literal["sft", "rpo"]) -> dict[str, Any]:
    # The paper's beam search, whatever the evaluation searches with: its section must not decide the negatives.
    search = context.config.retrieval.model_copy(
        update={"search": "beam", "beam": context.config.mining.candidates, "batch_size": _MINING_BATCH}
    )

    synthesis = context.records["synthesis"]
    count = synthesis.tables["preference_queries"]["rows"]
    size = queries_a_part(count, _MINING_BATCH)

    def search_for(parts: Iterator[pa.Table], k: int, before: int) -> Iterator[pa.Table]:
        found = rank_parts(context, writer.stage, retriever, parts, k, search, total=count, before=before)
        return (ranking for ranking, _ in found)

    pairs = mine(
        context.config.mining,
        context.store.read_parts(synthesis, "preference_queries", size),
        context.table("identifiers", "identifiers"),
        search_for,
        context.config.seed,
        KeptParts(context.store.scratch(writer.stage, context.mark), size),
    )
    writer.write_parts("preference_pairs", pairs)
    return {}
