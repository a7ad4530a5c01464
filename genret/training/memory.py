"""How much memory a training stage takes, before it starts, and which setting would make it fit.

Bytes a parameter with AdamW: Rajbhandari et al., 2020 (ZeRO, arXiv 1910.02054), section 3. Activations: counted tensor
by tensor for a decoder with RMSNorm, rotary attention without a stored attention matrix, and a gated feed-forward
block, after the manner of Korthikanti et al., 2022 (arXiv 2205.05198), section 4. Mixtures of experts and other blocks
are counted as if they were such a decoder. What libraries keep for themselves is covered by a reserve.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from genret.errors import InputError

GIB = 2**30
# Share of a GPU that kernels, communication and fragmentation may take.
_RESERVE = 0.08
# Positions whose logits TRL's fused output head holds at a time, and how many copies of them.
_HEAD_POSITIONS, _HEAD_COPIES = 1024, 3


@dataclass(frozen=True)
class Architecture:
    """The sizes of a decoder that decide its memory.

    Attributes:
        parameters: All weights.
        largest: Weights of the largest single module: a layer, or the output head.
        head: Weights of the output head.
        adapted: Sum of inputs and outputs of all linear layers but the head: LoRA's weights a rank.
        layers: Number of decoder layers.
        hidden: Width of the model.
        keys: Width of keys and of values.
        intermediate: Width inside the feed-forward blocks.
        vocabulary: Rows of the output head.
    """

    parameters: int
    largest: int
    head: int
    adapted: int
    layers: int
    hidden: int
    keys: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, config: PretrainedConfig, new_rows: int = 0) -> "Architecture":
        """Measure a model that is made of nothing but its configuration.

        Args:
            config: The model's configuration.
            new_rows: Rows that are added to its embeddings.
        """
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()
        head = model.get_output_embeddings()
        tied = head.weight is model.get_input_embeddings().weight
        rows = new_rows * text.hidden_size
        layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
        head_size = head.weight.numel() + rows
        linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            parameters=sum(weight.numel() for weight in model.parameters()) + rows * (1 if tied else 2),
            largest=max(sum(weight.numel() for weight in layers[0].parameters()), head_size),
            head=head_size,
            adapted=sum(module.in_features + module.out_features for module in linear),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            keys=heads * head_width,
            intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            vocabulary=text.vocab_size + new_rows,
        )


@dataclass(frozen=True)
class Demand:
    """What of a configuration decides the memory of a training stage.

    Attributes:
        section: Name of the stage's section, for messages.
        micro_batch_size: Examples (or pairs) that a worker reads at once.
        sequences: Sequences an example: 1, or 2 where it is a pair.
        tokens: Most tokens of a sequence.
        sixteen_bits: Whether the computation is in bf16.
        lora_rank: Rank of LoRA's matrices; 0: all weights are trained.
        whole_head: Whether LoRA trains the output head in full.
        vocabulary_scoring: Whether scores are normalised over the whole vocabulary.
        children: Most children of a node of the trie.
        workers: Number of training workers.
        zero_stage: ZeRO's stage, or 0.
        offload: What ZeRO keeps in the host's memory.
        gradient_checkpointing: Whether activations are computed again.
    """

    section: str
    micro_batch_size: int
    sequences: int
    tokens: int
    sixteen_bits: bool
    lora_rank: int
    whole_head: bool
    vocabulary_scoring: bool
    children: int
    workers: int
    zero_stage: int
    offload: str
    gradient_checkpointing: bool


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a worker needs on its device, and of the host's memory beside it."""

    parameters: int
    gradients: int
    optimiser: int
    activations: int
    host: int

    @property
    def total(self) -> int:
        """All of the device's bytes."""
        return self.parameters + self.gradients + self.optimiser + self.activations

    def describe(self) -> str:
        """The parts in GiB."""
        parts = ("parameters", "gradients", "optimiser", "activations")
        return ", ".join(f"{part} {getattr(self, part) / GIB:.1f}" for part in parts)


def plan_memory(architecture: Architecture, demand: Demand) -> MemoryPlan:
    """The memory of a training stage, a worker.

    Activations are those of a micro-batch whose sequences are all as long as they may be.
    """
    count, shards = architecture.parameters, demand.workers if demand.zero_stage else 1
    trained = _trained(architecture, demand)
    # ZeRO computes in 16 bits on weights of 16 bits, plain PyTorch on copies of those that have 32; LoRA's frozen
    # weights have 16.
    halved = demand.sixteen_bits and bool(demand.zero_stage or demand.lora_rank)
    parameters = count * (2 if halved else 4)
    if demand.sixteen_bits and not halved:
        parameters += 2 * count
    if demand.zero_stage == 3:
        gathered = 2 * architecture.largest * (2 if halved else 4)
        parameters = (0 if demand.offload == "all" else parameters // shards) + gathered
    masters = 4 * trained if demand.zero_stage else 0
    optimiser = (8 * trained + masters) // shards
    host = optimiser if demand.offload != "none" else 0
    if demand.offload == "all":
        host += count * (2 if halved else 4) // shards
    return MemoryPlan(
        parameters=parameters,
        gradients=4 * trained // shards,
        optimiser=0 if demand.offload != "none" else optimiser,
        activations=_activations(architecture, demand),
        host=host,
    )


def _trained(architecture: Architecture, demand: Demand) -> int:
    if not demand.lora_rank:
        return architecture.parameters
    return demand.lora_rank * architecture.adapted + (architecture.head if demand.whole_head else 0)


def _activations(architecture: Architecture, demand: Demand) -> int:
    size = 2 if demand.sixteen_bits else 4
    tokens = demand.micro_batch_size * demand.sequences * demand.tokens
    layer = layer_activations(architecture, size)
    border = architecture.hidden * size
    kept = architecture.layers * border + layer if demand.gradient_checkpointing else architecture.layers * layer
    if demand.vocabulary_scoring:
        scores = _HEAD_COPIES * min(tokens, _HEAD_POSITIONS) * architecture.vocabulary * 4
    else:
        # One choice among the most children a sequence; of further choices few have many.
        scores = _HEAD_COPIES * demand.micro_batch_size * demand.sequences * demand.children * 4
    # The embedding, the final norm and the states that the head reads, some of them in 32 bits.
    return tokens * (kept + 4 * border) + scores


def layer_activations(architecture: Architecture, size: int) -> int:
    """Bytes a token that one layer keeps for its backward pass.

    Two norms: the input in 32 bits, the normalised one, and the result; queries and the attention's output, each as
    wide as the model, and rotated; keys and values, repeated for all heads by SDPA; four tensors of the gated block.
    """
    hidden, keys, inner = architecture.hidden, architecture.keys, architecture.intermediate
    norms = 2 * (4 * hidden + 2 * size * hidden)
    attention = size * (2 * hidden + 2 * hidden + 2 * keys)
    block = size * 4 * inner
    return norms + attention + block


def check_memory(architecture: Architecture, demand: Demand, device: int, host: int) -> MemoryPlan:
    """Refuse a training stage that cannot fit, and name what would make it fit.

    Args:
        architecture: The model.
        demand: What decides its memory.
        device: Bytes of a worker's GPU; without one, the worker's share of the host.
        host: Bytes of the host's memory for this worker beside that.

    Returns:
        The plan.

    Raises:
        InputError: It does not fit.
    """
    plan = plan_memory(architecture, demand)
    if _fits(plan, device, host):
        return plan
    raise InputError(
        f"{demand.section}: training needs about {plan.total / GIB:.1f} GiB a worker ({plan.describe()}) and "
        f"{plan.host / GIB:.1f} GiB of the host, found {device * (1 - _RESERVE) / GIB:.1f} and {host / GIB:.1f} to be "
        f"used; {_advice(architecture, demand, device, host)}"
    )


def _fits(plan: MemoryPlan, device: int, host: int) -> bool:
    return plan.total <= device * (1 - _RESERVE) and plan.host <= host


def _advice(architecture: Architecture, demand: Demand, device: int, host: int) -> str:
    for changed in _alternatives(demand):
        plan = plan_memory(architecture, changed)
        if _fits(plan, device, host):
            return f"it would fit ({plan.total / GIB:.1f} GiB) with {', '.join(_differences(demand, changed))}"
    return "no setting makes it fit: take a smaller model, more workers with compute.zero_stage, or larger GPUs"


def _alternatives(demand: Demand) -> Iterator[Demand]:
    """Other ways of the same training, cheapest first: what costs no time, then time, then what changes the result."""
    sizes = [demand.micro_batch_size]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    zero = [(demand.zero_stage, demand.offload)]
    if demand.workers > 1:
        zero += [(2, "none"), (3, "none")]
    zero += [(2, "optimizer"), (3, "optimizer"), (3, "all")]
    for rank, sharding, checkpointing, size in product(
        dict.fromkeys((demand.lora_rank, demand.lora_rank or 16)),
        dict.fromkeys(zero),
        dict.fromkeys((demand.gradient_checkpointing, True)),
        sizes,
    ):
        yield replace(
            demand,
            micro_batch_size=size,
            gradient_checkpointing=checkpointing,
            zero_stage=sharding[0],
            offload=sharding[1],
            lora_rank=rank,
        )


def _differences(demand: Demand, changed: Demand) -> Iterator[str]:
    if changed.micro_batch_size != demand.micro_batch_size:
        yield f"{demand.section}.micro_batch_size={changed.micro_batch_size}"
    if changed.gradient_checkpointing != demand.gradient_checkpointing:
        yield "compute.gradient_checkpointing=true"
    if changed.zero_stage != demand.zero_stage:
        yield f"compute.zero_stage={changed.zero_stage}"
    if changed.offload != demand.offload:
        yield f"compute.offload={changed.offload}"
    if changed.lora_rank != demand.lora_rank:
        yield f"{demand.section}.tuning.method=lora"
