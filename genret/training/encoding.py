"""Texts and identifiers as token ids, the same way in training and in retrieval."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from genret.errors import InputError
from genret.training.batches import IdentifierTokens


def encode_identifiers(
    identifiers: Sequence[str],
    kind: Literal["semantic", "atomic"],
    tokenizer: PreTrainedTokenizerBase,
    first_row: int,
) -> IdentifierTokens:
    """Token sequences of all identifiers.

    Args:
        identifiers: As in the identifiers table; ordinals as decimal numbers if `atomic`.
        kind: `semantic` identifiers are tokenized as text and end with the end-of-sequence token, so that none
            is a prefix of another. `atomic` ones are one row each of the model's embedding.
        tokenizer: The model's tokenizer.
        first_row: `atomic`: the row of ordinal 0, beyond the tokenizer's vocabulary.

    Returns:
        The sequences, in the given order.

    Raises:
        InputError: Two identifiers have the same tokens.
    """
    if kind == "atomic":
        ordinals = np.array([int(identifier) for identifier in identifiers], dtype=np.int64)
        return IdentifierTokens(first_row + ordinals, np.arange(len(ordinals) + 1, dtype=np.int64))
    encoded = tokenizer(list(identifiers), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    sequences = [[*ids, tokenizer.eos_token_id] for ids in encoded]
    seen: dict[tuple[int, ...], int] = {}
    for number, sequence in enumerate(sequences):
        first = seen.setdefault(tuple(sequence), number)
        if first != number:
            raise InputError(
                f"identifiers {identifiers[first]!r} and {identifiers[number]!r} have the same tokens under this "
                "tokenizer; expected identifiers that differ by more than case, accents or white space"
            )
    offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
    tokens = np.fromiter((token for sequence in sequences for token in sequence), dtype=np.int64)
    return IdentifierTokens(tokens, offsets)


def encode_prompts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, suffix: Sequence[int], max_tokens: int
) -> list[list[int]]:
    """Token ids of prompts: the text, cut so that all fits into `max_tokens`, then the suffix.

    What looks like a special token in a text ("</s>") is text.

    Args:
        texts: Query or context texts; the empty text gives the suffix alone.
        tokenizer: The model's tokenizer; a beginning-of-sequence token is added where it adds one.
        suffix: Token ids between the text and the identifier; at least one.
        max_tokens: Most tokens of a prompt, suffix included.

    Returns:
        One list a text.
    """
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=max(1, max_tokens - len(suffix)),
        split_special_tokens=True,
        verbose=False,
    )["input_ids"]
    eos = tokenizer.eos_token_id
    return [[*(ids[:-1] if ids and ids[-1] == eos else ids), *suffix] for ids in encoded]
