"""A packed SFT step of a large decoder: tokens a second, MFU and peak memory, with and without checkpointing.

    python benchmarks/training_gpu.py [--size mistral-7b] [--tokens 8192] [--steps 5] [--optimiser sgd]

The model is made from its configuration, with random weights in bf16, so nothing is downloaded; speed and memory do not
depend on what the weights are. Needs torch and transformers alone: the step is that of genret's SFT stage (the same
collator, packing and loss over input and output tokens) in a plain loop. The rate of matrix products is measured on
the same device in the same run. A 7B model with AdamW needs 16 bytes a parameter, so 116 GB in bf16 with 32-bit
masters; `--optimiser adamw` keeps the moments in bf16 (8 bytes a parameter), `sgd` none.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from genret.decoding.trie import Trie
from genret.training.batches import Collator, IdentifierTokens, Layout, find_branchings
from genret.training.machine import batch_layout, choose_attention
from genret.training.metering import flops_a_token, matmul_rate, peak_memory

SIZES = {
    # https://huggingface.co/mistralai/Mistral-7B-v0.3/blob/main/config.json
    "mistral-7b": {"vocab_size": 32768},
    "mistral-1b": {"vocab_size": 32768, "hidden_size": 2048, "intermediate_size": 7168, "num_hidden_layers": 16},
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip
# Queries and keyword identifiers of the paper's corpora are about so long; chunks are longer.
PROMPT_TOKENS, IDENTIFIER_TOKENS = (12, 300), 16
IDENTIFIERS = 1000
# Positions whose logits exist at a time.
HEAD_CHUNK = 2048


@dataclass(frozen=True)
class Result:
    """What one way of training did.

    Attributes:
        way: Its name.
        tokens_a_second: Median over the steps, without padding.
        mfu: Share of the measured rate of matrix products.
        memory: Peak bytes; 0 where it did not fit.
    """

    way: str
    tokens_a_second: float
    mfu: float
    memory: int


def build_model(size: str, device: torch.device) -> PreTrainedModel:
    """A model with random bf16 weights, made on the device; for FlashAttention where it is installed."""
    config = MistralConfig(**SIZES[size], sliding_window=None, use_cache=False)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=choose_attention("bf16")
        ).train()


def make_batches(vocabulary: int, tokens: int, layout: Layout, seed: int) -> Iterator[dict[str, Tensor | int]]:
    """Packed batches of about so many tokens, without end, as the SFT stage collates them."""
    rng = np.random.default_rng(seed)
    identifiers = rng.integers(3, vocabulary, (IDENTIFIERS, IDENTIFIER_TOKENS))
    identifiers[:, 0] = 3 + np.arange(IDENTIFIERS) % (vocabulary - 3)
    offsets = np.arange(IDENTIFIERS + 1, dtype=np.int64) * IDENTIFIER_TOKENS
    held = IdentifierTokens(identifiers.reshape(-1), offsets)
    trie = Trie.build(held.tokens, held.offsets)
    collator = Collator(held, find_branchings(trie, held), "vocabulary", "all", 0, layout)
    while True:
        lengths: list[int] = []
        while sum(lengths) + len(lengths) * IDENTIFIER_TOKENS < tokens:
            lengths.append(int(rng.integers(*PROMPT_TOKENS)))
        prompts = [rng.integers(3, vocabulary, length).tolist() for length in lengths]
        yield collator.collate(prompts, rng.integers(0, IDENTIFIERS, len(lengths)).tolist())


def batch_loss(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    """The mean of -log P over the labelled tokens; logits exist for a chunk of positions at a time."""
    states = model.model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    states, labels = states[labels != -100], labels[labels != -100]
    total = states.new_zeros((), dtype=torch.float32)
    for begin in range(0, len(labels), HEAD_CHUNK):
        part = slice(begin, begin + HEAD_CHUNK)
        total = total + checkpoint(_chunk_loss, model.lm_head.weight, states[part], labels[part], use_reentrant=False)
    return total / len(labels)


def _chunk_loss(weight: Tensor, states: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy((states @ weight.T).float(), labels, reduction="sum")


def measure(
    size: str, device: torch.device, tokens: int, steps: int, checkpointing: bool, optimiser: str, rate: float
) -> Result:
    """Train for some steps, after one that warms up."""
    way = "gradient checkpointing" if checkpointing else "activations kept"
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        model = build_model(size, device)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimiser]
        chosen = kind(model.parameters(), lr=1e-6)
        layout = batch_layout(model.config._attn_implementation)
        batches = make_batches(model.config.vocab_size, tokens, layout, seed=0)
        speeds = [_step(model, chosen, next(batches), device) for _ in range(steps + 1)][1:]
    except torch.cuda.OutOfMemoryError:
        return Result(way, 0.0, 0.0, 0)
    speed = statistics.median(speeds)
    return Result(way, speed, speed * flops_a_token(model) / rate, peak_memory(device))


def _step(
    model: PreTrainedModel, optimiser: torch.optim.Optimizer, batch: dict[str, Tensor | int], device: torch.device
) -> float:
    """Tokens a second of one step."""
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    begin = time.perf_counter()
    batch_loss(model, moved).backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return int(batch["n_tokens"]) / (time.perf_counter() - begin)


def main() -> None:
    """Measure both ways, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="mistral-7b")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--optimiser", choices=["sgd", "adamw"], default="adamw")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rate = matmul_rate(device, torch.bfloat16)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{arguments.size} on {name}, {choose_attention('bf16')}, bf16 matrix products: {rate / 1e12:.2f} TFLOP/s\n")
    print("| | tokens a second | MFU | peak GiB |\n| --- | ---: | ---: | ---: |")
    for checkpointing in (False, True):
        result = measure(
            arguments.size, device, arguments.tokens, arguments.steps, checkpointing, arguments.optimiser, rate
        )
        fitted = f"{result.tokens_a_second:,.0f} | {result.mfu:.3f} | {result.memory / 2**30:.1f}"
        print(f"| {result.way} | {fitted if result.memory else 'out of memory | |'} |", flush=True)


if __name__ == "__main__":
    main()
