"""The trained weights in one piece: gathered from sharded training, with adapters added in."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import unset_hf_deepspeed_config

from genret.config import TuningConfig

_ADAPTER = "default"
_PREFIX = "base_model.model."


def start_deepspeed() -> None:
    """Let DeepSpeed use the process group that the workers have; call before TRL's configuration is built.

    Without a GPU it must be told that it runs on CPUs, and which backend to use; it would look for MPI otherwise. Its
    own reduction over shared memory is left out: it would be compiled at the first start, for which all workers wait.
    """
    if torch.cuda.is_available():
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


def adapter_config(tuning: TuningConfig, model: PreTrainedModel, identifier_type: str) -> LoraConfig | None:
    """What PEFT lays over a model's linear layers; None where all weights are trained.

    Atomic identifiers have rows of the output head that must be learnt whole: the head is trained in full beside the
    adapters. Their rows of the input embedding are never read. LoRA: Hu et al., 2022 (arXiv 2106.09685).
    """
    if tuning.method == "full":
        return None
    head = None
    if identifier_type == "atomic":
        untie(model)
        head = [_head_name(model)]
    return LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        modules_to_save=head,
        task_type="CAUSAL_LM",
    )


def untie(model: PreTrainedModel) -> None:
    """Give the output head weights of its own where it shares those of the input embedding."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False


def _head_name(model: PreTrainedModel) -> str:
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


def finished_model(trainer: Any, tuning: TuningConfig) -> PreTrainedModel | None:
    """The trained model with plain weights. Every worker must call this; with ZeRO only the first gets the model.

    With ZeRO the weights are those of the optimiser, in 32 bits: rounded to the 16 bits of the computation they would
    lose most of what preference learning at the paper's rate of 1e-7 has changed.
    """
    if trainer.is_deepspeed_enabled:
        weights = _gather(trainer.model)
        # With ZeRO-3 on, Transformers makes every model in pieces, for which one worker would wait for the others.
        unset_hf_deepspeed_config()
        if not trainer.accelerator.is_main_process:
            return None
        adapted = tuning.method == "lora"
        return _rebuild(trainer.model, merge_adapters(weights, _scale(tuning)) if adapted else weights)
    if tuning.method == "lora":
        # The frozen part may be in 16 bits; what is added to it must not be rounded away.
        merged: PreTrainedModel = trainer.model.float().merge_and_unload()
        return merged
    model: PreTrainedModel = trainer.model
    return model


def _scale(tuning: TuningConfig) -> float:
    return tuning.alpha / tuning.rank


def _gather(model: nn.Module) -> dict[str, Tensor]:
    """All parameters in 32 bits on the CPU, one after the other, so that no GPU holds more than one of them."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    gathered: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        if full is None:  # frozen: the optimiser has no copy
            with deepspeed.zero.GatheredParameters([parameter] if hasattr(parameter, "ds_id") else []):
                full = parameter.detach().float()
                gathered[name] = full.cpu().clone()
        else:
            gathered[name] = full.detach().cpu().clone()
    return gathered


def merge_adapters(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A model's own weights from those of its LoRA-adapted form: W + scale B A.

    Args:
        weights: Parameters by their names in a PEFT model.
        scale: LoRA's alpha divided by its rank.

    Returns:
        Parameters by their names in the plain model.
    """
    merged: dict[str, Tensor] = {}
    for name, weight in weights.items():
        plain = name.removeprefix(_PREFIX)
        if ".lora_" in plain or ".original_module." in plain:
            continue
        if f".modules_to_save.{_ADAPTER}." in plain:
            merged[plain.replace(f".modules_to_save.{_ADAPTER}", "")] = weight
        elif ".base_layer." in plain:
            layer = name.rsplit(".base_layer.", 1)[0]
            if name.endswith(".weight"):
                up, down = (weights[f"{layer}.lora_{side}.{_ADAPTER}.weight"] for side in ("B", "A"))
                weight = weight + scale * (up @ down)
            merged[plain.replace(".base_layer", "")] = weight
        else:
            merged[plain] = weight
    return merged


def _rebuild(model: Any, weights: dict[str, Tensor]) -> PreTrainedModel:
    """A model on the CPU from its configuration and its weights, without making any first."""
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    tied = {name for name, _ in plain.named_parameters(remove_duplicate=False)} - weights.keys()
    plain.load_state_dict(weights, strict=False, assign=True)
    if tied:
        plain.tie_weights()
    return plain
