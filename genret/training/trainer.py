"""What the trainers of both stages have in common."""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import AutoConfig

from genret.config import PretrainedModel, RpoConfig, SftConfig
from genret.decoding.trie import Trie
from genret.training.bundle import Bundle, read_settings
from genret.training.callbacks import DivergenceCallback, Meter, Progress, ProgressCallback, Validation
from genret.training.memory import Architecture, Demand
from genret.training.metering import flops_a_token, matmul_rate, peak_memory
from genret.training.pickles import cannot_load
from genret.training.sampling import PaddedRows, PassSampler, Shares
from genret.training.setup import Setup, machine_arguments
from genret.training.weights import finished_model, start_deepspeed

_LOGGED_STEPS = 200
_VALIDATIONS = 10


class WholeBatches:
    """Trains on every row once a pass, in the same order with any number of workers. Mixed into trainers."""

    tokens_read = 0
    """Tokens that this worker has read, without padding."""

    shares: Shares

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        count = len(train_dataset if train_dataset is not None else self.train_dataset)  # type: ignore[attr-defined]
        arguments: Any = self.args  # type: ignore[attr-defined]
        steps = math.ceil(count / self.shares.batch)
        return PassSampler(count, arguments.seed, self.shares, lambda: self.state.global_step // steps)  # type: ignore[attr-defined]

    def _get_dataloader(self, dataset: Dataset[Any], *args: Any, **kwargs: Any) -> Any:
        return super()._get_dataloader(PaddedRows(dataset), *args, **kwargs)  # type: ignore[misc]

    def count_tokens(self, inputs: Mapping[str, Any]) -> None:
        """Remember how many tokens a batch has."""
        self.tokens_read += inputs["n_tokens"]


def trainer_arguments(
    config: SftConfig | RpoConfig, output: Path, n_examples: int, setup: Setup, seed: int
) -> dict[str, Any]:
    """What SFT and RPO ask of TRL alike, from either section of the configuration.

    Args:
        config: The stage's section.
        output: Folder for checkpoints.
        n_examples: Rows of the training set.
        setup: How the machine is used.
        seed: Seed of the data order.

    Returns:
        Keyword arguments of `SFTConfig` and `DPOConfig`.
    """
    shares = share_out(config, setup)
    # A pass ends with a smaller batch, so it has whole steps.
    steps = max(1, math.ceil(config.epochs * math.ceil(n_examples / config.batch_size)))
    logging_steps = max(1, steps // _LOGGED_STEPS)
    saving: dict[str, Any] = {"save_strategy": "no"}
    if config.checkpoints:
        saving = {
            "save_strategy": "steps",
            # At a logged step: the loss summed since the last one is not in a checkpoint.
            "save_steps": logging_steps * math.ceil(steps / (config.checkpoints + 1) / logging_steps),
            "save_total_limit": 1,
        }
    return saving | machine_arguments(setup, config.precision) | {
        "output_dir": str(output),
        "max_steps": steps,
        "per_device_train_batch_size": shares.micro_batch,
        "gradient_accumulation_steps": shares.accumulation,
        "learning_rate": config.learning_rate,
        "warmup_steps": int(steps * config.warmup_ratio),
        "lr_scheduler_type": config.schedule,
        "logging_steps": logging_steps,
        "logging_first_step": True,
        # Else a loss that is no number is logged as 0.
        "logging_nan_inf_filter": False,
        "seed": seed,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "max_length": None,
    }  # fmt: skip


def prepare_process(setup: Setup) -> None:
    """What must be said to the libraries before a trainer's configuration is built."""
    # TRL reports its use to the hub otherwise.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if setup.report_folder:
        # Where Transformers' TensorBoard callback looks.
        os.environ["TENSORBOARD_LOGGING_DIR"] = setup.report_folder
    if setup.zero_stage:
        start_deepspeed()


def run_trainer(
    trainer: Any,
    config: SftConfig | RpoConfig,
    bundle: Bundle,
    resume_from: Path | None,
    progress: Progress | None,
    measure: Callable[[], float] | None = None,
) -> None:
    """Train, tell how it goes, and put the trained model into the bundle; `measure` is for a `Validation`.

    Raises:
        InputError: The loss is no number any more.
    """
    meter = meter_of(trainer, config.precision, whole_head=bundle.settings.scoring == "vocabulary")
    if measure is not None:
        trainer.add_callback(Validation(measure, _VALIDATIONS, meter))
    trainer.add_callback(DivergenceCallback(section_name(config)))
    trainer.add_callback(ProgressCallback(progress or Progress(), meter))
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    bundle.model = finished_model(trainer, config.tuning)


def meter_of(trainer: Any, precision: str, *, whole_head: bool = True) -> Meter:
    """What measures a trainer that counts its `tokens_read`; for `whole_head` see `flops_a_token`."""
    device = trainer.accelerator.device
    return Meter(
        lambda: trainer.tokens_read,
        trainer.args.world_size,
        flops_a_token(trainer.model, whole_head=whole_head),
        matmul_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32),
        lambda: peak_memory(device),
        lambda: torch.cuda.synchronize(device) if device.type == "cuda" else None,
    )


def section_name(config: SftConfig | RpoConfig) -> str:
    """The name of a stage's section, and of the stage."""
    return "sft" if isinstance(config, SftConfig) else "rpo"


def share_out(config: SftConfig | RpoConfig, setup: Setup) -> Shares:
    """How the workers share out a stage's batches."""
    return Shares.of(config.batch_size, config.micro_batch_size, setup.workers)


def choose_dtype(config: SftConfig | RpoConfig, setup: Setup) -> torch.dtype:
    """Number format in which weights are loaded for training.

    32 bits, also where `precision` computes in 16; but 16 where those 32 are kept elsewhere (ZeRO's optimiser has a
    copy of its own) or not needed (LoRA trains none of them).
    """
    if config.precision == "bf16" and (setup.zero_stage or config.tuning.method == "lora"):
        return torch.bfloat16
    return torch.float32


def demand_of(
    config: SftConfig | RpoConfig, setup: Setup, folder: Path, pretrained: PretrainedModel | None
) -> tuple[Demand, Architecture]:
    """What decides the memory of a stage, from its section and the bundle that it starts from.

    Args:
        config: The stage's section.
        setup: How the machine is used.
        folder: The saved bundle.
        pretrained: Where the weights come from if the bundle has none.

    Raises:
        InputError: The pretrained model cannot be loaded.
    """
    settings = read_settings(folder)
    trie = Trie.load(folder / "trie")
    atomic = settings.identifier_type == "atomic"
    if pretrained is not None:
        try:
            source = AutoConfig.from_pretrained(pretrained.name, revision=pretrained.revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise cannot_load("sft.model", pretrained.name, pretrained.revision, error) from error
    else:
        source = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    text = source.get_text_config()
    new_rows = settings.first_row + len(trie) - text.vocab_size if atomic and pretrained is not None else 0
    widths = np.diff(trie.child_indptr)
    demand = Demand(
        section=section_name(config),
        micro_batch_size=share_out(config, setup).micro_batch,
        sequences=1 if isinstance(config, SftConfig) else 2,
        tokens=settings.max_tokens + (0 if atomic else trie.max_length),
        sixteen_bits=config.precision == "bf16",
        lora_rank=config.tuning.rank if config.tuning.method == "lora" else 0,
        whole_head=atomic,
        vocabulary_scoring=settings.scoring == "vocabulary",
        children=int(widths.max(initial=0)),
        workers=setup.workers,
        zero_stage=setup.zero_stage,
        offload=setup.offload,
        gradient_checkpointing=setup.gradient_checkpointing,
    )
    return demand, Architecture.of(source, max(0, new_rows))
