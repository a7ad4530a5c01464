"""Limits of the search that plans and training count with: apart from what searches."""

from collections.abc import Mapping
from typing import Any

LARGEST_COPY = 2 << 30
"""Weights of more bytes together stay as they are: a second copy of them costs more than it gains."""


def longest_sequence(config: Any) -> int | None:
    """Tokens of the longest sequence that a model reads in one way, None for any length.

    LongRoPE (arXiv 2402.13753) turns all tokens otherwise once a sequence is longer than those of the first training.
    Then keys that are in the cache would have to be made anew, and a prompt would depend on the others of its batch.

    Args:
        config: Of the model, as transformers has it.
    """
    longest = getattr(config, "max_position_embeddings", None)
    rotary = getattr(config, "rope_parameters", None) or {}
    kinds = [rotary, *(kind for kind in rotary.values() if isinstance(kind, Mapping))]
    first = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(first if longest is None else [longest, *first], default=None)
