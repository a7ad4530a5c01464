"""Supervised fine-tuning on Context2ID and Query2ID (arXiv 2502.17957, section 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import SFTConfig, SFTTrainer

from genret.config import SftConfig
from genret.errors import InputError
from genret.tables import SCHEMAS
from genret.training.batches import Collator, find_branchings, trie_children
from genret.training.bundle import Bundle
from genret.training.callbacks import LogRow, Progress, training_log, validation_log
from genret.training.encoding import encode_prompts
from genret.training.likelihood import Scoring, TrieChildren, identifier_log_probs
from genret.training.machine import ATTENTION, batch_layout
from genret.training.sampling import Shares, row_weights
from genret.training.setup import SINGLE, Setup
from genret.training.trainer import WholeBatches, prepare_process, run_trainer, share_out, trainer_arguments
from genret.training.weights import adapter_config

_ENCODED_ROWS = 10_000


@dataclass
class UnseenQueries:
    """Queries that are not trained on, and the loss on them over the training.

    Attributes:
        queries: Rows with `passage_id` and `text`, of the table `preference_queries`; the loss is that on all of them.
        rows: Rows of the `validation_log` table, once training is done.
    """

    queries: pa.Table
    rows: list[LogRow] = field(default_factory=list)


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
    identifiers = identifier_column(bundle, examples, "sft_examples", "completion")
    return Dataset(pa.table({"prompt": prompt_column(bundle, examples), "identifier": identifiers}))


def prompt_column(bundle: Bundle, rows: pa.Table) -> pa.ChunkedArray:
    """The token ids of a table's prompts, lists of int32; a block of texts at a time, so that only the ids pile up."""
    blocks = [
        pa.array(
            encode_prompts(block.to_pylist(), bundle.tokenizer, bundle.settings.suffix, bundle.settings.max_tokens),
            type=pa.large_list(pa.int32()),
        )
        for start in range(0, rows.num_rows, _ENCODED_ROWS)
        for block in [rows.column("prompt").slice(start, _ENCODED_ROWS)]
    ]
    return pa.chunked_array(blocks, type=pa.large_list(pa.int32()))


def identifier_column(bundle: Bundle, rows: pa.Table, table: str, column: str) -> pa.ChunkedArray:
    """The positions of a column's identifiers among those of a bundle, int32.

    Raises:
        InputError: One of them is none of the bundle's.
    """
    known = bundle.passages.column("identifier").combine_chunks()
    values = rows.column(column)
    places = pc.index_in(values, known)
    if places.null_count:
        unknown = values[pc.index(places.is_null(), True).as_py()].as_py()
        raise InputError(f"{table}: {column} {unknown!r} is none of the {len(known)} identifiers")
    return places.cast(pa.int32())


def unseen_examples(bundle: Bundle, queries: pa.Table) -> pa.Table:
    """Queries as rows of the `sft_examples` table.

    Args:
        bundle: Names the identifiers of the passages.
        queries: Rows with `passage_id` and `text`.
    """
    places = pc.index_in(queries.column("passage_id"), bundle.passages.column("passage_id").combine_chunks())
    kinds = pa.repeat("query2id", queries.num_rows)
    columns = [queries.column("text"), bundle.passages.column("identifier").take(places), kinds]
    return pa.table(columns, schema=SCHEMAS["sft_examples"])


class SftCollator:
    """Batches of `build_sft_dataset`'s rows."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor | int]:
        """Collate rows with `prompt` and `identifier`; those that only fill the batch get no label and no weight."""
        batch = self._collator.collate([row["prompt"] for row in rows], [row["identifier"] for row in rows])
        weights = row_weights(rows)
        if weights is not None:
            labels = batch["labels"]
            assert isinstance(labels, Tensor), "a collator's labels are a tensor"
            example = batch.get("token_example")
            labels[(weights if example is None else weights[example]) == 0] = -100
            batch["weight"] = weights
        return batch


class SftTrainer(WholeBatches, SFTTrainer):
    """TRL's trainer with the identifier's likelihood as its loss.

    With `vocabulary` scoring the loss is the mean over all tokens that count, as in TRL; with `trie` scoring it
    is the mean over examples of -log P(d' | q), since the number of choices differs between identifiers.
    """

    def __init__(self, *args: Any, shares: Shares, children: TrieChildren | None, **kwargs: Any) -> None:
        self.shares = shares
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
        self.count_tokens(inputs)
        scoring: Scoring = "vocabulary" if self._children is None else "trie"
        log_probs = identifier_log_probs(model, inputs, scoring, self._children)
        if "weight" in inputs:
            log_probs = log_probs * inputs["weight"]
        items = num_items_in_batch if num_items_in_batch is not None else (inputs["labels"][:, 1:] != -100).sum()
        loss = -log_probs.sum() / torch.as_tensor(items, device=log_probs.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return loss

    def validation_loss(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """The loss over some rows of a dataset, with the model as it is, by every worker for itself.

        Args:
            rows: Rows of `build_sft_dataset`.

        Returns:
            The mean over all that counts, as in training.
        """
        model, size = self.model_wrapped, self.args.per_device_train_batch_size
        scoring: Scoring = "vocabulary" if self._children is None else "trie"
        total, items = 0.0, 0
        model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for start in range(0, len(rows), size):
                batch = self._prepare_inputs(self.data_collator(rows[start : start + size]))
                total -= identifier_log_probs(model, batch, scoring, self._children).sum().item()
                items += int((batch["labels"][:, 1:] != -100).sum())
        model.train()
        return total / max(1, items)


def train_sft(
    config: SftConfig,
    bundle: Bundle,
    examples: pa.Table,
    output: Path,
    *,
    seed: int,
    setup: Setup = SINGLE,
    resume_from: Path | None = None,
    progress: Progress | None = None,
    unseen: UnseenQueries | None = None,
) -> list[LogRow]:
    """Fine-tune a bundle's model. Plain function: no Ray, one call a process.

    Args:
        config: The stage's section.
        bundle: Model, tokenizer and trie. Afterwards its model is the trained one; with ZeRO, which keeps it in
            pieces until then, only in the first worker (None in the others).
        examples: The `sft_examples` table.
        output: Local folder for checkpoints.
        seed: Seed of the data order.
        setup: How the machine is used; `workers` processes call this together.
        resume_from: A checkpoint folder to go on from, with the same data order.
        progress: Where to report.
        unseen: Queries to measure the loss on, which get their rows of the log.

    Returns:
        Rows of the `training_log` table.
    """
    prepare_process(setup)
    dataset = build_sft_dataset(bundle, examples)
    trie_scoring = config.scoring == "trie"
    if len(bundle.trie.child_indptr) <= 1 and trie_scoring:
        return []  # a single identifier: there is nothing to choose
    assert bundle.model is not None, "a bundle that is trained has a model"
    torch.manual_seed(seed)  # of the adapters, if there are any
    trainer = SftTrainer(
        model=bundle.model,
        args=SFTConfig(
            **trainer_arguments(config, output, len(dataset), setup, seed),
            weight_decay=config.weight_decay,
            adam_beta2=config.adam_beta2,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        data_collator=SftCollator(make_collator(bundle, config.loss)),
        train_dataset=dataset,
        processing_class=bundle.tokenizer,
        peft_config=adapter_config(config.tuning, bundle.model, bundle.settings.identifier_type),
        shares=share_out(config, setup),
        children=trie_children(bundle.trie) if trie_scoring else None,
    )
    measure = None
    if unseen is not None and unseen.queries.num_rows:
        rows = list(build_sft_dataset(bundle, unseen_examples(bundle, unseen.queries)))
        measure = partial(trainer.validation_loss, rows)
    run_trainer(trainer, config, bundle, resume_from, progress, measure)
    if unseen is not None:
        unseen.rows = validation_log("sft", trainer.state)
    return training_log("sft", trainer.state)


def make_collator(bundle: Bundle, loss: str) -> Collator:
    """The collator of a bundle: its identifiers, the choices on their paths, and the layout that its model needs."""
    attention = bundle.model.config._attn_implementation if bundle.model is not None else ATTENTION
    return Collator(
        bundle.identifiers,
        find_branchings(bundle.trie, bundle.identifiers),
        "trie" if bundle.settings.scoring == "trie" else "vocabulary",
        loss,
        bundle.tokenizer.pad_token_id,
        batch_layout(attention),
    )
