"""What the machine allows: device and attention implementation, chosen at run time."""

import torch
from transformers.utils import is_flash_attn_2_available


def choose_device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_attention() -> str:
    """Attention for training: FlashAttention-2 on a GPU that has the package, PyTorch's own elsewhere."""
    return "flash_attention_2" if torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"


def choose_dtype(precision: str) -> torch.dtype:
    """The torch type of a `precision` field of the configuration."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
