"""How a training stage uses the machine: what changes its speed and its memory, not what it learns."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch

from genret.errors import InputError

_TRACKER_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}


@dataclass(frozen=True)
class Setup:
    """How a training stage uses the machine.

    Attributes:
        workers: Number of training processes that work together.
        zero_stage: DeepSpeed's ZeRO stage: 0 (none), 2 (gradients and optimiser are shared out) or 3 (parameters too).
        offload: What ZeRO keeps in the memory of the host: `none`, `optimizer`, or `all` (the parameters too; stage 3).
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
        report_to: Trackers that get the loss curves: `tensorboard`, `wandb`, `mlflow`.
        report_folder: Local folder for TensorBoard's files.
        run_name: What the trackers call the training.
    """

    workers: int = 1
    zero_stage: Literal[0, 2, 3] = 0
    offload: Literal["none", "optimizer", "all"] = "none"
    gradient_checkpointing: bool = False
    report_to: tuple[str, ...] = ()
    report_folder: str = ""
    run_name: str = ""


SINGLE = Setup()
"""One process, with nothing but PyTorch."""


def check_packages(setup: Setup) -> None:
    """Refuse a setup that needs packages which are not installed, before anything is loaded.

    Raises:
        InputError: Names the package and how to install it.
    """
    if setup.zero_stage and find_spec("deepspeed") is None:
        install = "DS_BUILD_OPS=0 pip install 'genret[deepspeed]'"
        raise InputError(f"compute.zero_stage: expected 0 or the package deepspeed, found neither; {install}")
    for tracker in setup.report_to:
        package = _TRACKER_PACKAGES[tracker]
        if find_spec(package) is None:
            raise InputError(
                f"compute.report_to: {tracker} needs the package {package}, found none; pip install {package}"
            )


def machine_arguments(setup: Setup, precision: str) -> dict[str, Any]:
    """Keyword arguments of TRL's configurations that a setup decides."""
    arguments: dict[str, Any] = {
        "bf16": precision == "bf16",
        "gradient_checkpointing": setup.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if setup.gradient_checkpointing else None,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": list(setup.report_to) or "none",
        "run_name": setup.run_name or None,
    }
    if setup.zero_stage:
        arguments["deepspeed"] = zero_config(setup)
    return arguments


def zero_config(setup: Setup) -> dict[str, Any]:
    """DeepSpeed's configuration; what is `auto` Transformers fills in from the trainer's own arguments.

    The optimiser stays PyTorch's AdamW, also where its state is in the host's memory: its fused kernel runs there too,
    and needs no compiler (https://www.deepspeed.ai/docs/config-json/).
    """
    zero: dict[str, Any] = {
        "stage": setup.zero_stage,
        "overlap_comm": torch.cuda.is_available(),
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if setup.offload != "none":
        zero["offload_optimizer"] = host
    if setup.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": False,
        }
        if setup.offload == "all":
            zero["offload_param"] = host
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
