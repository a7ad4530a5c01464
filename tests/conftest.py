"""Fixtures that many tests share: real data where it is at hand, and tiny real models."""

import os
from collections.abc import Callable
from pathlib import Path

# Before anything reads them when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Else a token in the user's home switches authentication on while a process is in its first cluster: it then asks all
# later ones for the token, and those that have none take it for dead.
os.environ["RAY_AUTH_MODE"] = "disabled"

import pyarrow as pa
import pytest
import torch
from hypothesis import settings
from small_run import dense_run, new_run, small_run

from genret.config import ScratchModel, SftConfig
from genret.tables import passages_to_table, table_from_rows
from genret.training.base import build_base
from genret.training.bundle import Bundle
from genret.types import Passage

__all__ = ["dense_run", "new_run", "small_run"]

torch.set_num_threads(1)
# A loaded machine takes its time over any example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

TEXTS = {
    "river": "The river carries melted snow from the mountain glacier down to the sea.",
    "lake": "The mountain lake is fed by a glacier and freezes in winter.",
    "bread": "Bakers knead flour, water and yeast into dough and bake bread in a hot oven.",
    "cake": "A cake needs flour, sugar and eggs; bake it in the oven until a needle comes out clean.",
    "train": "The night train carries passengers and mail from the capital to the sea.",
    "mail": "Mail is sorted by postal code before the train carries it to the capital.",
    "winter": "In winter snow covers the rails and the night train is late.",
}


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The evaluation data; tests that need it are skipped where there is none."""
    folder = os.environ.get("GENRET_DATA")
    if not folder:
        pytest.skip("GENRET_DATA is not set: no evaluation data on this machine")
    return Path(folder)


@pytest.fixture(scope="session")
def passages() -> pa.Table:
    """Seven short passages."""
    return passages_to_table(Passage(name, name, text) for name, text in TEXTS.items())


def identifiers_table(names: dict[str, str]) -> pa.Table:
    return table_from_rows(
        "identifiers",
        ({"passage_id": key, "identifier": value, "source": "llm"} for key, value in names.items()),
    )


@pytest.fixture(scope="session")
def make_bundle(passages: pa.Table) -> Callable[..., Bundle]:
    """Makes a tiny bundle over the seven passages, trained on nothing yet."""

    def make(identifier_type: str = "semantic", scoring: str = "trie", initialisation: str = "svd") -> Bundle:
        semantic = {
            "river": "glacier river sea",
            "lake": "glacier lake",
            "bread": "oven bread dough yeast",
            "cake": "oven cake",
            "train": "train night capital",
            "mail": "train mail",
            "winter": "train night winter snow",
        }
        ordinals = {name: str(number) for number, name in enumerate(TEXTS)}
        config = SftConfig(
            model=ScratchModel(
                vocabulary_size=400,
                hidden_size=32,
                intermediate_size=32,
                layers=2,
                heads=2,
                initialisation=initialisation,
            ),
            scoring=scoring,
            max_tokens=64,
        )
        table = identifiers_table(semantic if identifier_type == "semantic" else ordinals)
        examples = table_from_rows(
            "sft_examples",
            (
                {"prompt": text, "completion": identifier, "kind": "context2id"}
                for text, identifier in zip(TEXTS.values(), table.column("identifier").to_pylist(), strict=True)
            ),
        )
        return build_base(config, passages, table, examples, identifier_type, seed=0)

    return make
