"""Models with random weights, identifiers made of keywords, and prompts: all from fixed seeds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, MistralConfig

SEED = 0
PAD, END, SEPARATOR = 0, 2, 3
FIRST_WORD_TOKEN = 4

# Keywords follow a Zipf-like law, so that many identifiers begin alike and then part.
WORDS = 4000
ZIPF_EXPONENT = 0.9
KEYWORDS = (3, 6)
IDENTIFIER_LENGTHS = (6, 20)
PROMPT_LENGTHS = (16, 48)

# Logits of a model with random weights are spread by about this much: distributions that are far from flat, as those
# of a trained model are.
LOGIT_SPREAD = 2.0

Identifiers = list[list[int]]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """Size of a Mistral-architecture model."""

    layers: int
    hidden: int
    vocabulary: int
    intermediate: int
    heads: int
    key_value_heads: int

    def __str__(self) -> str:
        return f"{self.layers} x {self.hidden}"


def shape(layers: int, hidden: int, vocabulary: int) -> Shape:
    """A model with heads of 64 and, where they divide, four of them to a key and value head, as in Mistral-7B."""
    heads = max(1, hidden // 64)
    return Shape(layers, hidden, vocabulary, 3 * hidden, heads, heads // 4 if heads % 4 == 0 else 1)


# https://huggingface.co/mistralai/Mistral-7B-v0.3/blob/main/config.json
MISTRAL_7B = Shape(32, 4096, 32768, 14336, 32, 8)


def random_model(size: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """A Mistral-architecture model with random weights, made on the device in evaluation mode."""
    config = MistralConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        # The last norm leaves states of unit variance.
        initializer_range=LOGIT_SPREAD / size.hidden**0.5,
        sliding_window=None,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=END,
    )
    torch.manual_seed(SEED)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype).eval()


def keyword_identifiers(count: int, vocabulary: int) -> Identifiers:
    """Unique identifiers: three to six keywords of one to three tokens, a separator between them, an end.

    The end stands nowhere else, so that none is a prefix of another.
    """
    random = np.random.default_rng(SEED)
    words = [
        random.integers(FIRST_WORD_TOKEN, vocabulary, size=size).tolist() for size in random.integers(1, 4, size=WORDS)
    ]
    weight = 1 / np.arange(1, WORDS + 1) ** ZIPF_EXPONENT
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        drawn = random.choice(WORDS, size=(count, KEYWORDS[1]), p=weight / weight.sum())
        for row, size in zip(drawn.tolist(), random.integers(KEYWORDS[0], KEYWORDS[1] + 1, size=count), strict=True):
            tokens = _joined(words[word] for word in row[:size])
            if IDENTIFIER_LENGTHS[0] <= len(tokens) <= IDENTIFIER_LENGTHS[1]:
                found[tokens] = None
    return [list(tokens) for tokens in list(found)[:count]]


def _joined(words: Iterable[list[int]]) -> tuple[int, ...]:
    tokens: list[int] = []
    for word in words:
        tokens += [*word, SEPARATOR]
    return (*tokens[:-1], END)


def prompts(count: int, vocabulary: int, seed: int = SEED) -> list[list[int]]:
    """Prompts of random tokens and of random lengths."""
    random = np.random.default_rng(seed)
    lengths = random.integers(PROMPT_LENGTHS[0], PROMPT_LENGTHS[1] + 1, size=count)
    return [random.integers(FIRST_WORD_TOKEN, vocabulary, size=length).tolist() for length in lengths]


def matrix(identifiers: Identifiers) -> tuple[Ints, Ints]:
    """Identifiers as a matrix `[n, longest]`, padded on the right with -1, and their lengths `[n]`."""
    lengths = np.array([len(tokens) for tokens in identifiers])
    padded = np.full((len(identifiers), lengths.max()), -1, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(identifiers)
    return padded, lengths
