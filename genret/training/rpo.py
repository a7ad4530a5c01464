"""Regularised preference optimisation on mined pairs (arXiv 2502.17957, section 4)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer
from trl.models import prepare_deepspeed

from genret.config import RpoConfig
from genret.training.batches import Collator, trie_children
from genret.training.bundle import Bundle
from genret.training.callbacks import LogRow, Progress, training_log
from genret.training.likelihood import Scoring, TrieChildren, identifier_log_probs
from genret.training.sampling import Shares, row_weights
from genret.training.setup import SINGLE, Setup
from genret.training.sft import identifier_column, make_collator, prompt_column
from genret.training.trainer import WholeBatches, prepare_process, run_trainer, share_out, trainer_arguments
from genret.training.weights import adapter_config


def rpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_length: Tensor,
    *,
    beta: float,
    alpha: float,
) -> Tensor:
    """The loss of arXiv 2502.17957, section 4.1, one value an example.

    -log sigmoid(beta (log P(p|q) - log P_ref(p|q)) - beta (log P(n|q) - log P_ref(n|q))) - alpha log P(p|q) / |p|

    Args:
        chosen: log P of the positive identifier under the model, float `(n,)`.
        rejected: The same of the negative.
        reference_chosen: log P of the positive under the reference model.
        reference_rejected: The same of the negative.
        chosen_length: Tokens of the positive identifier that are scored, `(n,)`, at least 1. Under `trie`
            scoring forced tokens are not scored and do not count.
        beta: Strength of the pull to the reference model.
        alpha: Weight of the likelihood term; 0 gives DPO's loss.

    Returns:
        float `(n,)`.
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -F.logsigmoid(beta * margin) - alpha * chosen / chosen_length


def build_rpo_dataset(bundle: Bundle, pairs: pa.Table) -> Dataset:
    """Pairs as token ids: columns `prompt`, and `chosen` and `rejected` as indices of identifiers."""
    sides = {side: identifier_column(bundle, pairs, "preference_pairs", side) for side in ("chosen", "rejected")}
    return Dataset(pa.table({"prompt": prompt_column(bundle, pairs), **sides}))


class RpoCollator:
    """Batches of pairs: all positives, then all negatives, of the same prompts."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor | int]:
        """Collate rows with `prompt`, `chosen`, `rejected` and, once known, their reference log-probabilities."""
        prompts = [row["prompt"] for row in rows]
        identifiers = [row["chosen"] for row in rows] + [row["rejected"] for row in rows]
        batch = self._collator.collate(prompts + prompts, identifiers)
        lengths = [self._scored_tokens(row["chosen"]) for row in rows]
        batch["chosen_length"] = torch.tensor(lengths, dtype=torch.float32)
        weights = row_weights(rows)
        batch["weight"] = torch.ones(len(rows)) if weights is None else weights
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        return batch

    def _scored_tokens(self, identifier: int) -> int:
        indptr = self._collator.branchings.indptr
        if self._collator.scoring == "trie":
            return max(1, int(indptr[identifier + 1] - indptr[identifier]))
        return len(self._collator.identifiers[identifier])


class RpoTrainer(WholeBatches, DPOTrainer):
    """TRL's DPO trainer with the paper's per-example loss over identifiers, averaged over the pairs of a step.

    TRL computes the reference log-probabilities once, before the first step (`precompute_ref_log_probs`). Its
    own `sft` term is a mean over the tokens of a micro-batch; the paper's is a mean over each example's tokens.
    """

    # The loss is divided by the pairs of all rounds and workers, not by the number of rounds once more.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        shares: Shares,
        scoring: Scoring,
        children: TrieChildren | None,
        alpha: float,
        **kwargs: Any,
    ) -> None:
        self.shares = shares
        # The parent's constructor already computes the reference log-probabilities.
        self._scoring: Scoring = scoring
        self._children = children
        self._alpha = alpha
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # already token ids and identifier indices

    def _log_probs(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        children = self._children.to(self.accelerator.device) if self._children is not None else None
        chosen, rejected = identifier_log_probs(model, inputs, self._scoring, children).chunk(2)
        return chosen, rejected

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The dataset with the reference log-probabilities, computed by all workers together.

        TRL's own hands them from the first worker to the others in a file of the dataset's cache, which an
        in-memory dataset has in a folder of each process.
        """
        loader = self.accelerator.prepare(
            DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator, shuffle=False)
        )
        if self.is_deepspeed_enabled:  # the model is in no place of its own yet, or in pieces
            model = prepare_deepspeed(self.model, self.accelerator)
        else:
            model = self.model.to(self.accelerator.device)
        parts = [self.accelerator.gather_for_metrics(self.compute_ref_log_probs(model, batch)) for batch in loader]
        for column, values in zip(("ref_chosen_logps", "ref_rejected_logps"), zip(*parts, strict=True), strict=True):
            dataset = dataset.add_column(column, torch.cat(values).float().cpu().tolist())
        return dataset

    def compute_ref_log_probs(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of a batch's positives and negatives under the model before training."""
        with torch.no_grad(), self.accelerator.autocast():
            return self._log_probs(model, inputs)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """The pairs of a step, over all rounds and workers."""
        pairs = torch.stack([batch["weight"].sum() for batch in batch_samples]).sum().to(device)
        total: Tensor = self.accelerator.gather(pairs).sum()
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """The mean of `rpo_loss` over the pairs of a step, in parts that add up over rounds and average over workers.

        Args:
            model: The model, possibly wrapped.
            inputs: A batch of `RpoCollator` with reference log-probabilities.
            return_outputs: Not supported: training needs no outputs.
            num_items_in_batch: Pairs of the step; None counts this batch alone.

        Returns:
            A scalar.
        """
        assert not return_outputs, "the likelihood has no outputs beside the loss"
        self.count_tokens(inputs)
        chosen, rejected = self._log_probs(model, inputs)
        reference_chosen, reference_rejected = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        self._note_margins((chosen - reference_chosen) - (rejected - reference_rejected), inputs["weight"] > 0)
        losses = rpo_loss(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            inputs["chosen_length"],
            beta=self.beta,
            alpha=self._alpha,
        )
        pairs = inputs["weight"].sum() if num_items_in_batch is None else num_items_in_batch
        loss: Tensor = (losses * inputs["weight"]).sum() / pairs
        return loss * self.accelerator.num_processes if num_items_in_batch is not None else loss

    def _note_margins(self, margins: Tensor, counted: Tensor) -> None:
        rewards = self.beta * margins.detach()[counted]
        if len(rewards):
            self._metrics["train"]["rewards/margins"].append(rewards.mean().item())
            self._metrics["train"]["rewards/accuracies"].append((rewards > 0).float().mean().item())


def train_rpo(
    config: RpoConfig,
    bundle: Bundle,
    pairs: pa.Table,
    output: Path,
    *,
    seed: int,
    setup: Setup = SINGLE,
    resume_from: Path | None = None,
    progress: Progress | None = None,
) -> list[LogRow]:
    """Optimise a bundle's model on preference pairs. Plain function: no Ray, one call a process.

    Args:
        config: The stage's section.
        bundle: The SFT model, which is also the reference. Afterwards its model is the trained one, as `train_sft` has
            it.
        pairs: The `preference_pairs` table; with no row the model stays as it is.
        output: Local folder for checkpoints.
        seed: Seed of the data order.
        setup: How the machine is used; `workers` processes call this together.
        resume_from: A checkpoint folder to go on from, with the same data order.
        progress: Where to report.

    Returns:
        Rows of the `training_log` table.
    """
    prepare_process(setup)
    if not pairs.num_rows:
        return []
    dataset = build_rpo_dataset(bundle, pairs)
    scoring: Scoring = "trie" if bundle.settings.scoring == "trie" else "vocabulary"
    assert bundle.model is not None, "a bundle that is trained has a model"
    torch.manual_seed(seed)  # of the adapters, if there are any
    trainer = RpoTrainer(
        model=bundle.model,
        args=DPOConfig(
            **trainer_arguments(config, output, len(dataset), setup, seed),
            beta=config.beta,
            precompute_ref_log_probs=True,
        ),
        data_collator=RpoCollator(make_collator(bundle, "completion")),
        train_dataset=dataset,
        processing_class=bundle.tokenizer,
        peft_config=adapter_config(config.tuning, bundle.model, bundle.settings.identifier_type),
        shares=share_out(config, setup),
        scoring=scoring,
        children=trie_children(bundle.trie) if scoring == "trie" else None,
        alpha=config.alpha,
    )
    run_trainer(trainer, config, bundle, resume_from, progress)
    return training_log("rpo", trainer.state)
