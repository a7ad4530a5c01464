"""What the machine allows, chosen at run time."""

import torch
from transformers.utils import is_flash_attn_2_available

from genret.training.batches import Layout

ATTENTION = "sdpa"
"""Transformers' `attn_implementation`, in search and, where there is no FlashAttention, in training. FlashAttention
takes neither the block-diagonal masks of sequences packed in several rows nor the ancestor masks of the search:
sequences would see each other."""

FLASH_ATTENTION = "flash_attention_2"


def choose_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_attention(precision: str) -> str:
    """Transformers' `attn_implementation` for training: FlashAttention-2 where it can run, else SDPA.

    FlashAttention-2 needs a GPU, its package, and a computation in 16 bits (https://github.com/Dao-AILab/flash-attention).
    """
    if precision == "bf16" and torch.cuda.is_available() and is_flash_attn_2_available():
        return FLASH_ATTENTION
    return ATTENTION


def batch_layout(attention: str) -> Layout:
    """How sequences must lie in a batch, so that under this attention none sees another."""
    return "line" if attention == FLASH_ATTENTION else "rows"
