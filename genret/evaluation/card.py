"""The model card of a trained retriever: what it was made of, and what it measured."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from genret.config import ExtractiveConfig, PretrainedEncoder, PretrainedModel, RunConfig
from genret.evaluation.table import comparison_markdown
from genret.tables import check_table

_TASK = "text-retrieval"
# A path of this machine is nobody else's business.
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LIBRARIES = {"dense": "sentence-transformers"}
_NOUNS = {
    "sft": "a generative retriever: it writes the identifier of a passage as the answer to a query",
    "rpo": "a generative retriever, taught to prefer right passages to its own false positives",
    "dense": "the encoder of a dense retriever",
}


@dataclass(frozen=True)
class Recipe:
    """How many rows of what a retriever was trained on.

    Attributes:
        passages: Passages of the corpus.
        identifiers: Identifiers by what they were made of.
        queries: Synthetic queries by kind.
        examples: Rows of the training table by kind; for `dense` by the source of the negative.
        pairs: Preference pairs; 0 where there was no preference learning.
    """

    passages: int
    identifiers: Mapping[str, int]
    queries: Mapping[str, int]
    examples: Mapping[str, int]
    pairs: int = 0


def model_card(
    config: RunConfig,
    retriever: str,
    recipe: Recipe,
    measures: pa.Table,
    versions: Mapping[str, str],
    significance: pa.Table | None = None,
) -> str:
    """A card in the form that the Hugging Face hub reads: YAML about the model, then Markdown.

    The measures stand in the YAML too, as the `model-index` of
    https://huggingface.co/docs/hub/model-cards#evaluation-results. Names a corpus by its kind and the run, never by its
    path. The licence is for the owner of the documents to say, so none is given.

    Args:
        config: The run's configuration.
        retriever: `sft`, `rpo` or `dense`.
        recipe: What it was trained on.
        measures: The run's `measures` table.
        versions: Of the packages that trained it.
        significance: The run's `significance` table, if there is one.

    Returns:
        The text of README.md.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name=_LIBRARIES.get(retriever, "transformers"),
        pipeline_tag="feature-extraction" if retriever == "dense" else "text-generation",
        tags=["genret", _TASK, "generative-retrieval" if retriever != "dense" else "sentence-similarity"],
        base_model=_base_model(config, retriever),
        model_name=f"{config.name}-{retriever}",
        eval_results=_results(config, retriever, measures) or None,
    )
    sections = [
        f"# {config.name}: {retriever}",
        f"{_NOUNS[retriever][0].upper()}{_NOUNS[retriever][1:]}. Trained with genret.",
        "## Data",
        _bullets(_data_lines(config, retriever, recipe)),
        "## Training",
        _bullets(_training_lines(config, retriever)),
        "## Measures",
        _measures_text(measures, significance),
        "## Versions",
        _bullets(f"{name} {number}" for name, number in versions.items()),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _base_model(config: RunConfig, retriever: str) -> str | None:
    model = config.dense.model if retriever == "dense" else config.sft.model
    if isinstance(model, PretrainedModel | PretrainedEncoder) and _HUB_NAME.fullmatch(model.name):
        return model.name
    return None


def _results(config: RunConfig, retriever: str, measures: pa.Table) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=config.corpus.type,
            dataset_name=config.name,
            dataset_split=config.corpus.split or None,
            metric_type=row["measure"],
            metric_value=round(row["value"], 4),
        )
        for row in check_table("measures", measures).to_pylist()
        if row["retriever"] == retriever
    ]


def _data_lines(config: RunConfig, retriever: str, recipe: Recipe) -> list[str]:
    engine: str = config.llm.type
    if not isinstance(config.llm, ExtractiveConfig):
        # Of a folder its own name alone.
        name = config.llm.model
        engine += f", {name if _HUB_NAME.fullmatch(name) else name.rstrip('/').rsplit('/', 1)[-1]}"
    lines = [f"{recipe.passages:,} passages", f"synthetic queries by {engine}: {_counts(recipe.queries)}"]
    if retriever != "dense":
        lines.append(f"{config.identifiers.type} identifiers by source: {_counts(recipe.identifiers)}")
        lines.append(f"supervised examples: {_counts(recipe.examples)}, {config.examples.mix}")
    else:
        lines.append(f"contrastive examples by source of the negative: {_counts(recipe.examples)}")
    if recipe.pairs:
        lines.append(f"{recipe.pairs:,} preference pairs")
    return lines


def _training_lines(config: RunConfig, retriever: str) -> list[str]:
    if retriever == "dense":
        return [_settings("dense", config.dense, ("loss", "epochs", "batch_size", "learning_rate", "temperature"))]
    fields = ("epochs", "batch_size", "learning_rate", "schedule")
    lines = [_settings("sft", config.sft, (*fields, "loss", "scoring"))]
    if retriever == "rpo":
        lines.append(_settings("rpo", config.rpo, (*fields, "beta", "alpha")))
    return [*lines, f"seed {config.seed}"]


def _settings(name: str, section: Any, fields: Sequence[str]) -> str:
    return f"{name}: " + ", ".join(f"{field} {getattr(section, field)}" for field in fields)


def _measures_text(measures: pa.Table, significance: pa.Table | None) -> str:
    if not measures.num_rows:
        return "Not evaluated: the corpus has no queries with a relevant document."
    return comparison_markdown(measures, significance=significance)


def _counts(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in rows.items()) or "none"


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines)
