"""Taking a trained retriever out of its run, as a Hugging Face folder with a model card."""

import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from genret.config import RunConfig
from genret.errors import InputError
from genret.evaluation.card import Recipe, model_card
from genret.runs import RunStore, StageRecord
from genret.tables import table_from_rows

CARD = "README.md"
"""Where the Hugging Face hub looks for a model's card."""


def export_retriever(store: RunStore, config: RunConfig, folder: Path, retriever: str | None = None) -> str:
    """Copy a trained retriever into a folder, and write its card.

    Args:
        store: The run.
        config: The run's configuration.
        folder: Where to; made here, whole or not at all.
        retriever: `rpo`, `sft` or `dense`; default: the first of these that the run has.

    Returns:
        Which retriever it was.

    Raises:
        InputError: The run has no such trained retriever, or something lies in the folder's place.
    """
    records = store.current()
    # Where preference learning had a second round, its model is the retriever.
    stages = {name: stage for name, stage in _STAGES if stage in records}
    if not stages:
        raise InputError(f"{store.address()}: expected a run with a trained retriever, found none")
    chosen = retriever or next(iter(stages))
    if chosen not in stages:
        raise InputError(f"--retriever: expected one of {sorted(stages)}, found {chosen!r}")
    if folder.exists():
        raise InputError(f"{folder}: expected a folder that does not exist yet, found one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    card = _card(store, records, config, chosen, stages[chosen])
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        whole = Path(place) / "whole"
        shutil.copytree(store.local_folder(records[stages[chosen]], chosen), whole)
        (whole / CARD).write_text(card, encoding="utf-8")
        whole.rename(folder)
    return chosen


# Retrievers by the stage that trained them; of two for one, the later counts.
_STAGES = (("rpo", "rpo"), ("rpo", "rpo_2"), ("sft", "sft"), ("dense", "dense"))


def _card(store: RunStore, records: dict[str, StageRecord], config: RunConfig, retriever: str, stage: str) -> str:
    def counted(name: str, table: str, column: str) -> dict[str, int]:
        if name not in records:
            return {}
        return dict(Counter(store.read_table(records[name], table).column(column).to_pylist()).most_common())

    dense = retriever == "dense"
    mining = "mining_2" if stage == "rpo_2" else "mining"
    recipe = Recipe(
        passages=records["corpus"].tables["passages"]["rows"],
        identifiers=counted("identifiers", "identifiers", "source"),
        queries=counted("synthesis", "queries", "kind"),
        examples=counted("contrastive", "contrastive_examples", "negative_source")
        if dense
        else counted("examples", "sft_examples", "kind"),
        pairs=records[mining].tables["preference_pairs"]["rows"] if retriever == "rpo" else 0,
    )
    measures = table_from_rows("measures", [])
    significance = None
    if "evaluation" in records:
        measures = store.read_table(records["evaluation"], "measures")
        significance = store.read_table(records["evaluation"], "significance")
    versions = records[stage].details.get("versions", {})
    return model_card(config, retriever, recipe, measures, versions, significance)
