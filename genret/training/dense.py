"""Contrastive training of the dense retriever's encoder, with negatives mixed as SyNeg does (arXiv 2412.17250)."""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from genret.config import DenseConfig, NegativesConfig
from genret.errors import InputError
from genret.examples.contrastive import SYNTHETIC
from genret.tables import table_from_rows
from genret.training.base import passage_texts
from genret.training.callbacks import (
    DivergenceCallback,
    LogRow,
    Meter,
    Progress,
    ProgressCallback,
    is_due,
    training_log,
)
from genret.training.contrastive import batch_losses, false_negatives
from genret.training.encoder import Encoder
from genret.training.sampling import PADDING, Shares
from genret.training.setup import SINGLE, Setup
from genret.training.trainer import WholeBatches, meter_of, prepare_process, trainer_arguments

_SHARE_FILE = "synthetic_share.json"
# The share of synthetic negatives moves by this much, and stays away from the ends: a source of which nothing is
# drawn could not show that it helps.
_SHARE_STEP = 0.1
_SHARE_BOUNDS = (0.1, 0.9)
_VALIDATION_CUT_OFF = 10
# Of the queries, kept out for validation at most.
_VALIDATION_SHARE = 10
# Short trainings want less memory than AdamW's usual 0.999.
_ADAM_BETA2 = 0.98


@dataclass(frozen=True)
class ContrastiveQuery:
    """A query with its positive and its negatives to choose from.

    Attributes:
        text: The query.
        positive: Number of its passage.
        found: Numbers of passages that are negatives.
        written: Texts that are negatives.
    """

    text: str
    positive: int
    found: tuple[int, ...] = ()
    written: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingBatch:
    """Texts of one step.

    Attributes:
        queries: Texts of the queries.
        passages: Texts of the positives in the order of the queries, then of the explicit negatives.
        excluded: bool `(queries, passages)`: what is no negative of a query.
    """

    queries: list[str]
    passages: list[str]
    excluded: Tensor


def read_queries(examples: pa.Table, passages: pa.Table) -> list[ContrastiveQuery]:
    """The queries of a `contrastive_examples` table, in its order.

    Raises:
        InputError: An example names a passage that is not in the table `passages`.
    """
    number = {passage_id: place for place, passage_id in enumerate(passages.column("passage_id").to_pylist())}
    texts: dict[str, tuple[str, int]] = {}
    found: dict[str, list[int]] = {}
    written: dict[str, list[str]] = {}
    for row in examples.to_pylist():
        unknown = [name for name in (row["positive_id"], row["negative_id"]) if name and name not in number]
        if unknown:
            raise InputError(f"contrastive_examples: query {row['query_id']!r}: no passage {unknown[0]!r}")
        texts[row["query_id"]] = (row["query"], number[row["positive_id"]])
        if row["negative_source"] == SYNTHETIC:
            written.setdefault(row["query_id"], []).append(row["negative_text"])
        elif row["negative_id"]:
            found.setdefault(row["query_id"], []).append(number[row["negative_id"]])
    return [
        ContrastiveQuery(text, positive, tuple(found.get(name, ())), tuple(written.get(name, ())))
        for name, (text, positive) in texts.items()
    ]


def choose_negatives(
    query: ContrastiveQuery, count: int, share: float, rng: random.Random
) -> tuple[list[int], list[str]]:
    """Negatives for one step: each is synthetic with a probability of `share`, where there are both kinds.

    Args:
        query: The query.
        count: How many; fewer where there are fewer.
        share: Share of the synthetic ones.
        rng: Source of randomness.

    Returns:
        Numbers of passages, and texts; none twice.
    """
    found = rng.sample(query.found, min(count, len(query.found)))
    written = rng.sample(query.written, min(count, len(query.written)))
    total = min(count, len(found) + len(written))
    wanted = sum(rng.random() < share for _ in range(total))
    synthetic = min(len(written), max(wanted, total - len(found)))
    return found[: total - synthetic], written[:synthetic]


def compose_batch(
    queries: Sequence[ContrastiveQuery], texts: Sequence[str], count: int, share: float, rng: random.Random
) -> TrainingBatch:
    """Choose negatives for the queries of a step, and say what is a negative of what.

    Args:
        queries: The queries.
        texts: Texts of all passages.
        count: Explicit negatives a query.
        share: Share of the synthetic ones.
        rng: Source of randomness.
    """
    passages = [texts[query.positive] for query in queries]
    numbers = [query.positive for query in queries]
    synthetic = [False] * len(queries)
    owner = list(range(len(queries)))
    for row, query in enumerate(queries):
        found, written = choose_negatives(query, count, share, rng)
        passages += [texts[number] for number in found] + written
        numbers += found + [query.positive] * len(written)
        synthetic += [False] * len(found) + [True] * len(written)
        owner += [row] * (len(found) + len(written))
    excluded = false_negatives(
        torch.tensor([query.positive for query in queries]),
        torch.tensor(numbers),
        torch.tensor(synthetic),
        torch.tensor(owner),
    )
    return TrainingBatch([query.text for query in queries], passages, excluded)


@dataclass
class SyntheticShare:
    """The share of synthetic negatives, moved by what it did to the validation queries.

    SyNeg starts at 50:50 and adjusts the proportions by validation performance; it gives no rule. This one climbs:
    while the measure rises the share goes on in its direction, a step of 0.1 at a time; when it falls it turns back.

    Attributes:
        value: The share.
        direction: Where it goes next: 1 up, -1 down.
        before: The last measurement; below 0 where there was none.
        history: Share and measurement, of each validation.
    """

    value: float
    direction: int = 1
    before: float = -1.0
    history: list[tuple[float, float]] = field(default_factory=list)

    def observe(self, measured: float) -> None:
        """Move the share after a measurement (higher is better)."""
        self.history.append((self.value, measured))
        if measured < self.before:
            self.direction = -self.direction
        low, high = _SHARE_BOUNDS
        moved = min(high, max(low, self.value + self.direction * _SHARE_STEP))
        if moved == self.value:
            self.direction = -self.direction
        self.value = round(moved, 6)
        self.before = measured


@dataclass(frozen=True)
class TrainedEncoder:
    """What training made.

    Attributes:
        encoder: The encoder.
        share: The share of synthetic negatives in the end, and how it came there.
    """

    encoder: Encoder
    share: SyntheticShare

    def save(self, folder: Path) -> None:
        """Write the encoder, and the share beside it."""
        self.encoder.save(folder)
        (folder / _SHARE_FILE).write_text(json.dumps(asdict(self.share)) + "\n", encoding="utf-8")


def read_share_log(folder: Path) -> pa.Table:
    """The table `share_log` of a folder that a `TrainedEncoder` was saved to."""
    share = json.loads((folder / _SHARE_FILE).read_text(encoding="utf-8"))
    return table_from_rows(
        "share_log",
        (
            {"validation": number, "synthetic_share": value, "value": measured}
            for number, (value, measured) in enumerate(share["history"], start=1)
        ),
    )


class _PairModel(nn.Module):
    """Scores of queries and passages in one forward pass, as distributed training wants it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.model = encoder.model
        self._normalise = encoder

    def forward(self, queries: dict[str, Tensor], passages: dict[str, Tensor]) -> Tensor:
        """Inner products, `(queries, passages)`."""
        return self._normalise.vectors(queries) @ self._normalise.vectors(passages).T

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """What Transformers' trainer calls; an encoder that cannot compute activations again keeps them."""
        transformer = self.model.transformers_model
        if transformer is not None and transformer.supports_gradient_checkpointing:
            transformer.activation_checkpointing_enable(activation_checkpointing_kwargs, **options)


class _Rows(Dataset[Mapping[str, Any]]):
    """The numbers of the queries: what a batch is made of is chosen when its step comes."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, rows: Sequence[int]) -> list[Mapping[str, Any]]:
        return [{"row": row} for row in rows]


def _collate(rows: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    return {"rows": torch.tensor([row["row"] for row in rows if not row.get(PADDING)], dtype=torch.int64)}


def count_tokens(features: Mapping[str, Any]) -> int:
    """Tokens of texts, without padding."""
    mask = features.get("attention_mask")
    return int(mask.sum()) if isinstance(mask, Tensor) else int(features["input_ids"].numel())


class DenseTrainer(WholeBatches, Trainer):
    """Transformers' trainer with the contrastive losses, averaged over the queries of a step."""

    def __init__(
        self,
        *,
        encoder: Encoder,
        queries: Sequence[ContrastiveQuery],
        texts: Sequence[str],
        config: DenseConfig,
        count: int,
        share: SyntheticShare,
        shares: Shares,
        **kwargs: Any,
    ) -> None:
        self.shares = shares
        super().__init__(model=_PairModel(encoder), train_dataset=_Rows(len(queries)), data_collator=_collate, **kwargs)
        self._encoder, self._queries, self._texts = encoder, queries, texts
        self._config, self._count, self._share = config, count, share
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The mean loss of a batch, times its part of the step: the mean over all workers is that over all queries.

        Args:
            model: The model, possibly wrapped.
            inputs: Numbers of queries under `rows`; none where the other workers have all that are left of a pass.
            return_outputs: Not supported: training needs no outputs.
            num_items_in_batch: Not needed.

        Returns:
            A scalar.
        """
        assert not return_outputs, "the loss has no outputs beside it"
        own = inputs["rows"].tolist()
        # All workers compute, as the others wait for their gradients: without a query of its own, for nothing.
        rows = own or [0]
        # The same rows draw the same negatives at the same step, also in a run that was resumed.
        rng = random.Random(f"{self.args.seed}|{self.state.global_step}|{rows}")
        batch = compose_batch([self._queries[row] for row in rows], self._texts, self._count, self._share.value, rng)
        queries = self._encoder.features(batch.queries, queries=True)
        passages = self._encoder.features(batch.passages, queries=False)
        if own:
            self.tokens_read += count_tokens(queries) + count_tokens(passages)
        scores = model(queries, passages)
        config = self._config
        losses = batch_losses(
            scores, batch.excluded.to(scores.device), config.loss, config.temperature, config.false_negative_rate
        )
        return losses.mean() * (len(own) * self.shares.workers / self._queries_of_step())

    def _queries_of_step(self) -> int:
        """Queries of the step that is under way, over all workers: fewer at the end of a pass."""
        count, batch = len(self._queries), self.shares.batch
        return min(batch, count - self.state.global_step % math.ceil(count / batch) * batch)

    # The model is none of Transformers', whose trainer cannot write weights that have two names, as T5's embeddings do.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:  # of several workers the first one
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_model(self.model, str(folder / SAFE_WEIGHTS_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_model(self.model, Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)


class _Validation(TrainerCallback):
    """Moves the share of synthetic negatives a few times in a training, and keeps it beside every checkpoint."""

    def __init__(self, share: SyntheticShare, times: int, measure: Callable[[], float], meter: Meter) -> None:
        self._share, self._times, self._measure, self._meter = share, times, measure, meter

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Validate, if it is time."""
        # Not after the last step, where there is nothing left to train with another share.
        if state.global_step < state.max_steps and is_due(state.global_step, state.max_steps, self._times + 1):
            with self._meter.paused():
                self._share.observe(self._measure())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the share into the checkpoint just written."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            (folder / _SHARE_FILE).write_text(json.dumps(asdict(self._share)), encoding="utf-8")


def validation_measure(encoder: Encoder, queries: Sequence[ContrastiveQuery], texts: Sequence[str]) -> float:
    """Mean reciprocal rank at 10 of the queries' passages among all passages that the queries name.

    Args:
        encoder: The encoder as it is; left in training mode.
        queries: Queries that are not trained with.
        texts: Texts of all passages.
    """
    numbers = sorted({number for query in queries for number in (query.positive, *query.found)})
    place = {number: position for position, number in enumerate(numbers)}
    passages = encoder.encode([texts[number] for number in numbers], queries=False)
    scores = encoder.encode([query.text for query in queries], queries=True) @ passages.T
    encoder.model.train()
    own = scores[torch.arange(len(queries)), torch.tensor([place[query.positive] for query in queries])]
    rank = (scores > own.unsqueeze(1)).sum(1) + 1
    return torch.where(rank <= _VALIDATION_CUT_OFF, 1.0 / rank, torch.zeros(())).mean().item()


def train_dense(
    config: DenseConfig,
    negatives: NegativesConfig,
    encoder: Encoder,
    examples: pa.Table,
    passages: pa.Table,
    output: Path,
    *,
    seed: int,
    setup: Setup = SINGLE,
    resume_from: Path | None = None,
    progress: Progress | None = None,
) -> tuple[list[LogRow], SyntheticShare]:
    """Train an encoder in place. Plain function: no Ray, one call a process.

    Args:
        config: The `dense` section.
        negatives: The `negatives` section.
        encoder: What is trained.
        examples: The `contrastive_examples` table.
        passages: The `passages` table.
        output: Local folder for checkpoints.
        seed: Seed of the order of the queries and of the choice of negatives.
        setup: How the machine is used; `workers` processes call this together.
        resume_from: A checkpoint folder to go on from.
        progress: Where to report.

    Returns:
        Rows of the `training_log` table, and the share of synthetic negatives in the end, with its history.

    Raises:
        InputError: There is nothing to train with, or the loss is no number any more.
    """
    prepare_process(setup)
    queries, texts = read_queries(examples, passages), passage_texts(passages)
    random.Random(seed).shuffle(queries)
    held_out = min(config.validation_queries, len(queries) // _VALIDATION_SHARE) if negatives.adjust_share else 0
    validation, queries = queries[:held_out], queries[held_out:]
    if not queries:
        raise InputError("contrastive_examples: expected at least one query to train with, found none")
    share = _resumed_share(resume_from) or SyntheticShare(negatives.synthetic_share)
    # The whole of a worker's share is one micro-batch: its size decides the negatives.
    shares = Shares.of(config.batch_size, math.ceil(config.batch_size / setup.workers), setup.workers)
    encoder.model.train()
    trainer = DenseTrainer(
        encoder=encoder,
        queries=queries,
        texts=texts,
        config=config,
        count=negatives.count,
        share=share,
        shares=shares,
        args=_arguments(config, output, len(queries), setup, shares, seed),
    )
    meter = meter_of(trainer, config.precision)
    if validation:
        measure = partial(validation_measure, encoder, validation, texts)
        trainer.add_callback(_Validation(share, config.validations, measure, meter))
    trainer.add_callback(DivergenceCallback("dense"))
    # Last: the share must be in a checkpoint before that is reported.
    trainer.add_callback(ProgressCallback(progress or Progress(), meter))
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    encoder.model.eval()
    return training_log("dense", trainer.state), share


def _resumed_share(folder: Path | None) -> SyntheticShare | None:
    if folder is None or not (folder / _SHARE_FILE).is_file():
        return None
    return SyntheticShare(**json.loads((folder / _SHARE_FILE).read_text(encoding="utf-8")))


def _arguments(
    config: DenseConfig, output: Path, n_queries: int, setup: Setup, shares: Shares, seed: int
) -> TrainingArguments:
    section: Any = SimpleNamespace(**config.model_dump(exclude={"model"}), micro_batch_size=shares.micro_batch)
    settings = trainer_arguments(section, output, n_queries, setup, seed)
    del settings["max_length"]
    return TrainingArguments(**settings, weight_decay=0.0, adam_beta2=_ADAM_BETA2)
