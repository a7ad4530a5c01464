"""What retrievers are called, apart from what it takes to open them."""

from collections.abc import Container, Mapping

from genret.config import RetrievalConfig, RunConfig
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


def retriever_stages(name: str, records: Container[str]) -> tuple[str, ...]:
    """The stages whose folders a retriever is opened from.

    Args:
        name: Any but the fusion, which has none of its own.
        records: The run's current stages.

    Returns:
        Those that are among `records`, the one of the retriever's own index or model first.
    """
    if name in INDEXES:
        encoder = "dense" if name == "dense" and "dense" in records else "encoder"
        stages = (INDEXES[name], *([LISTS] if name == "dense" else []), encoder)
    else:
        # Where preference learning had a second round, its model is the one that is asked.
        stages = ("rpo_2" if name == "rpo" and "rpo_2" in records else name,)
    return tuple(stage for stage in stages if stage in records)


def last_stage(name: str, config: RunConfig) -> str:
    """The stage after which a retriever is what the configuration makes of it: until then, it is one of fewer stages.

    Args:
        name: Any but the fusion.
        config: The run's configuration.
    """
    if name == "rpo" and config.preference.rounds == 2:
        return "rpo_2"
    if name == "dense" and config.dense.index == "lists":
        return LISTS
    return INDEXES.get(name, name)
