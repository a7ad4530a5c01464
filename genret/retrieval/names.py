"""What retrievers are called, apart from what it takes to open them."""

from collections.abc import Mapping

from genret.config import RetrievalConfig
from genret.retrieval.fusion import FUSION
from genret.runs import StageRecord

GENERATIVE = ("rpo", "sft")
"""The generative retrievers by the stage that trained them, best first."""

TRAINED = ("sft", "rpo", "rpo_2")
"""The stages that train a generative retriever, in their order."""

INDEXES = {"dense": "embedding", "dense_base": "base_embedding"}
"""The stages that made the indexes of the dense retrievers: trained, and as they were before."""

LISTS = "lists"
"""The stage that made the lists of the trained one's index, where it has some."""


def retriever_names(records: Mapping[str, StageRecord], config: RetrievalConfig) -> list[str]:
    """The retrievers that a run's stages give, the one to use by default first.

    Args:
        records: The run's current stages.
        config: The `retrieval` section, which says what a fusion is made of.
    """
    names = [name for name in (*GENERATIVE, "bm25", "dense") if INDEXES.get(name, name) in records]
    return [*names, FUSION] if set(config.fusion.parts) <= set(names) else names
