"""The identifiers stage."""

import pyarrow as pa

from genret.config import IdentifiersConfig
from genret.identifiers.atomic import build_atomic_identifiers
from genret.identifiers.semantic import build_semantic_identifiers
from genret.llm.base import Engine
from genret.llm.filters import Limits


def build_identifiers(
    config: IdentifiersConfig, passages: pa.Table, engine: Engine, limits: Limits | None = None
) -> dict[str, pa.Table]:
    """Give every passage an identifier that no other has.

    Args:
        config: The `identifiers` section.
        passages: The `passages` table.
        engine: What writes keywords; `atomic` identifiers ask it nothing.
        limits: What the keywords of a language model must keep to; None for an engine that quotes its passages.

    Returns:
        The tables `identifiers`, one row a passage in the same order, and `rejects`.
    """
    if config.type == "atomic":
        return build_atomic_identifiers(passages)
    return build_semantic_identifiers(config, passages, engine, limits)
