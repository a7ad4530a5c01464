"""Supervised fine-tuning on Context2ID and Query2ID (arXiv 2502.17957, section 3)."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import SFTConfig, SFTTrainer

from genret.config import SftConfig
from genret.errors import InputError
from genret.training.batches import Collator, find_branchings, trie_children
from genret.training.bundle import Bundle
from genret.training.callbacks import LogRow, Progress, ProgressCallback, training_log
from genret.training.encoding import encode_prompts
from genret.training.likelihood import Scoring, TrieChildren, identifier_log_probs

_LOGGED_STEPS = 200


def build_sft_dataset(bundle: Bundle, examples: pa.Table) -> Dataset:
    """Training rows as token ids.

    Args:
        bundle: The model to be trained; its `passages` name the identifiers.
        examples: The `sft_examples` table.

    Returns:
        Columns `prompt` (list of int) and `identifier` (index into the bundle's identifiers), in the table's
        order.

    Raises:
        InputError: An example's completion is none of the identifiers.
    """
    index = identifier_index(bundle.passages)
    completions = examples.column("completion").to_pylist()
    unknown = next((completion for completion in completions if completion not in index), None)
    if unknown is not None:
        raise InputError(f"sft_examples: completion {unknown!r} is none of the {len(index)} identifiers")
    prompts = encode_prompts(
        examples.column("prompt").to_pylist(),
        bundle.tokenizer,
        bundle.settings.suffix,
        bundle.settings.max_tokens,
    )
    return Dataset(
        pa.table(
            {
                "prompt": pa.array(prompts, type=pa.list_(pa.int32())),
                "identifier": pa.array([index[completion] for completion in completions], type=pa.int32()),
            }
        )
    )


def identifier_index(passages: pa.Table) -> dict[str, int]:
    """Position of every identifier in the identifiers table."""
    return {identifier: number for number, identifier in enumerate(passages.column("identifier").to_pylist())}


class SftCollator:
    """Batches of `build_sft_dataset`'s rows."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor | int]:
        """Collate rows with `prompt` and `identifier`."""
        return self._collator.collate([row["prompt"] for row in rows], [row["identifier"] for row in rows])


class SftTrainer(SFTTrainer):
    """TRL's trainer with the identifier's likelihood as its loss.

    With `vocabulary` scoring the loss is the mean over all tokens that count, as in TRL; with `trie` scoring it
    is the mean over examples of -log P(d' | q), since the number of choices differs between identifiers.
    """

    def __init__(self, *args: Any, children: TrieChildren | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._children = children.to(self.accelerator.device) if children is not None else None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Negative log-likelihood, averaged over all that counts in the global batch.

        Args:
            model: The model, possibly wrapped.
            inputs: A batch of `SftCollator`.
            return_outputs: Not supported: training needs no outputs.
            num_items_in_batch: How many entries of `labels[:, 1:]` are not -100 over all accumulated micro-batches and
                workers; None counts this micro-batch alone.

        Returns:
            A scalar.
        """
        assert not return_outputs, "the likelihood has no outputs beside the loss"
        scoring: Scoring = "vocabulary" if self._children is None else "trie"
        log_probs = identifier_log_probs(model, inputs, scoring, self._children)
        items = num_items_in_batch if num_items_in_batch is not None else (inputs["labels"][:, 1:] != -100).sum()
        loss = -log_probs.sum() / torch.as_tensor(items, device=log_probs.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss


def trainer_arguments(
    config: Any, output: Path, n_examples: int, workers: int, seed: int
) -> dict[str, Any]:
    """What SFT and RPO ask of TRL alike, from either section of the configuration.

    Args:
        config: `SftConfig` or `RpoConfig`.
        output: Folder for checkpoints.
        n_examples: Rows of the training set.
        workers: Number of training processes.
        seed: Seed of the data order.

    Returns:
        Keyword arguments of `SFTConfig` and `DPOConfig`.
    """
    accumulation = config.batch_size // (config.micro_batch_size * workers)
    if accumulation * config.micro_batch_size * workers != config.batch_size:
        raise InputError(
            f"batch_size: expected a multiple of micro_batch_size x workers = {config.micro_batch_size} x "
            f"{workers}, found {config.batch_size}"
        )
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
    return saving | {
        "output_dir": str(output),
        "max_steps": steps,
        "per_device_train_batch_size": config.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": config.learning_rate,
        "warmup_steps": int(steps * config.warmup_ratio),
        "lr_scheduler_type": config.schedule,
        "bf16": config.precision == "bf16",
        "gradient_checkpointing": False,
        "logging_steps": logging_steps,
        "logging_first_step": True,
        "report_to": "none",
        "seed": seed,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "max_length": None,
    }


def train_sft(
    config: SftConfig,
    bundle: Bundle,
    examples: pa.Table,
    output: Path,
    *,
    seed: int,
    workers: int = 1,
    resume_from: Path | None = None,
    progress: Progress | None = None,
) -> list[LogRow]:
    """Fine-tune a bundle's model in place. Plain function: no Ray, one call a process.

    Args:
        config: The stage's section.
        bundle: Model, tokenizer and trie; the model is trained in place.
        examples: The `sft_examples` table.
        output: Local folder for checkpoints.
        seed: Seed of the data order.
        workers: Number of training processes that call this together.
        resume_from: A checkpoint folder to go on from, with the same data order.
        progress: Where to report.

    Returns:
        Rows of the `training_log` table.
    """
    # TRL reports its use to the hub otherwise.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    dataset = build_sft_dataset(bundle, examples)
    trie_scoring = config.scoring == "trie"
    trainer = SftTrainer(
        model=bundle.model,
        args=SFTConfig(
            **trainer_arguments(config, output, len(dataset), workers, seed),
            weight_decay=config.weight_decay,
            adam_beta2=config.adam_beta2,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        data_collator=SftCollator(make_collator(bundle, config.loss)),
        train_dataset=dataset,
        processing_class=bundle.tokenizer,
        callbacks=[ProgressCallback(progress or Progress())],
        children=trie_children(bundle.trie) if trie_scoring else None,
    )
    if len(bundle.trie.child_indptr) > 1 or not trie_scoring:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return training_log("sft", trainer.state)


def make_collator(bundle: Bundle, loss: str) -> Collator:
    """The collator of a bundle: its identifiers, and the choices on their paths."""
    return Collator(
        bundle.identifiers,
        find_branchings(bundle.trie, bundle.identifiers),
        "trie" if bundle.settings.scoring == "trie" else "vocabulary",
        loss,
        bundle.tokenizer.pad_token_id,
    )
