"""Training of the dense retriever: what a step is made of, learning, resuming, and the share of synthetic negatives."""

import random
from collections import Counter

import pyarrow as pa
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from resuming import Kept, Steps, step_of
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel, TrainingArguments

from genret.config import DenseConfig, NegativesConfig, ScratchEncoder
from genret.errors import InputError
from genret.tables import table_from_rows
from genret.training.base import passage_texts
from genret.training.contrastive import batch_losses
from genret.training.dense import (
    ContrastiveQuery,
    DenseTrainer,
    SyntheticShare,
    TrainedEncoder,
    choose_negatives,
    compose_batch,
    count_tokens,
    read_queries,
    read_share_log,
    train_dense,
    validation_measure,
)
from genret.training.encoder import Encoder, Reading, build_scratch_encoder
from genret.training.sampling import Shares
from genret.training.setup import Setup

ROWS = [
    ("melted snow flows", "river", "lake", ""),
    ("frozen water", "lake", "river", ""),
    ("frozen water", "lake", "", "The valley lake never freezes."),
    ("knead dough", "bread", "cake", ""),
    ("sugar and eggs", "cake", "bread", ""),
    ("letters by rail", "mail", "train", ""),
    ("late in snow", "winter", "", "In summer the day train is early."),
    ("passengers at night", "train", "winter", ""),
]


def examples(repeat: int = 1) -> pa.Table:
    return table_from_rows(
        "contrastive_examples",
        (
            {
                "query_id": f"{query}|{turn}",
                "query": query,
                "positive_id": positive,
                "negative_id": found,
                "negative_text": written,
                "negative_source": "synthetic" if written else "retrieved",
            }
            for turn in range(repeat)
            for query, positive, found, written in ROWS
        ),
    )


def config_of(**changes) -> DenseConfig:
    chosen = {"epochs": 4, "batch_size": 4, "learning_rate": 0.05, "checkpoints": 0, "validations": 3}
    return DenseConfig(model=ScratchEncoder(vocabulary_size=400, dimensions=16), **chosen | changes)


def train(config, passages, output, repeat=1, negatives=None, **arguments):
    encoder = build_scratch_encoder(config, passage_texts(passages), seed=0)
    negatives = negatives or NegativesConfig()
    log, share = train_dense(config, negatives, encoder, examples(repeat), passages, output, seed=1, **arguments)
    return encoder, log, share


SIZES = {"num_heads": 2, "num_layers": 2, "d_model": 16, "d_ff": 32, "d_kv": 8}
FAMILIES = {
    "bert": lambda rows: BertModel(
        BertConfig(vocab_size=rows, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    ),
    "t5": lambda rows: T5EncoderModel(T5Config(vocab_size=rows, **SIZES, pad_token_id=0)),
}


def transformer(folder, family: str) -> Encoder:
    """A tiny encoder of a family, with random weights and a word a token."""
    known = {word for query, *_, written in ROWS for word in f"{query} {written}".split()}
    words = ["<pad>", "<unk>", *sorted(known)]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.model_max_length = 64
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    FAMILIES[family](len(words)).save_pretrained(folder)
    return Encoder(
        SentenceTransformer(modules=[Transformer(str(folder)), Pooling(16)], device="cpu"), Reading("", "", True, 64)
    )


def test_queries_are_read_with_both_kinds_of_negatives(passages) -> None:
    query = read_queries(examples(), passages)[1]
    assert query == ContrastiveQuery("frozen water", 1, (0,), ("The valley lake never freezes.",))


def test_an_unknown_passage_is_named(passages) -> None:
    with pytest.raises(InputError, match=r"query 'melted snow flows\|0': no passage 'river'"):
        read_queries(examples(), passages.slice(1))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50), unique=True, max_size=6),
    st.lists(st.text(min_size=1), unique=True, max_size=6),
    st.integers(1, 8),
    st.floats(0, 1),
)
def test_as_many_negatives_as_there_are_none_twice(found, written, count, share) -> None:
    query = ContrastiveQuery("q", 99, tuple(found), tuple(written))
    passages, texts = choose_negatives(query, count, share, random.Random(0))
    assert len(passages) + len(texts) == min(count, len(found) + len(written))
    assert set(passages) <= set(found) and len(set(passages)) == len(passages)
    assert set(texts) <= set(written) and len(set(texts)) == len(texts)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_is_kept(share) -> None:
    query, rng = ContrastiveQuery("q", 0, (1, 2, 3), ("a", "b", "c")), random.Random(0)
    synthetic = sum(len(choose_negatives(query, 1, share, rng)[1]) for _ in range(1000))
    assert synthetic == pytest.approx(1000 * share, abs=60)


def test_a_batch_has_positives_first_then_negatives(passages) -> None:
    queries, texts = read_queries(examples(), passages), passage_texts(passages)
    batch = compose_batch(queries[:2], texts, 2, 0.5, random.Random(0))
    assert batch.queries == ["melted snow flows", "frozen water"]
    assert batch.passages == [texts[0], texts[1], texts[1], texts[0], "The valley lake never freezes."]
    # The other query's positive is no negative where it is one's own.
    assert batch.excluded.tolist() == [[False, False, False, True, False], [False, False, True, False, False]]


def test_learns(passages, tmp_path) -> None:
    _, log, _ = train(config_of(epochs=20), passages, tmp_path)
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert {row["stage"] for row in log} == {"dense"}
    assert all(row["tokens"] > 0 and row["tokens_a_second"] > 0 and row["memory_gib"] > 0 for row in log)


def test_padding_is_no_token() -> None:
    assert count_tokens({"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}) == 3
    assert count_tokens({"input_ids": torch.zeros(7), "offsets": torch.tensor([0, 4])}) == 7


@pytest.mark.parametrize("loss", ["contrastive", "debiased"])
@pytest.mark.parametrize("adjust", [False, True])
def test_resuming_gives_the_same_weights(passages, tmp_path, loss, adjust) -> None:
    config = config_of(checkpoints=2, loss=loss, epochs=3)
    negatives = NegativesConfig(adjust_share=adjust)
    kept, steps = Kept(tmp_path), Steps()
    straight, log, share = train(config, passages, tmp_path / "a", 3, negatives, progress=kept.progress)
    start = kept.checkpoints[0]
    # Other checkpoints from here on change nothing either.
    config = config.model_copy(update={"checkpoints": 5})
    resumed, again, share_again = train(
        config, passages, tmp_path / "b", 3, negatives, resume_from=start, progress=steps.progress
    )
    assert steps.done == list(range(step_of(start) + 1, log[-1]["step"] + 1))
    assert [(row["step"], row["loss"]) for row in again] == [(row["step"], row["loss"]) for row in log]
    assert share_again.value == share.value
    assert [list(pair) for pair in share_again.history] == [list(pair) for pair in share.history]
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("epochs", [1, 2, 4, 5])
def test_the_share_moves_as_often_as_is_asked(passages, tmp_path, epochs) -> None:
    config = config_of(epochs=epochs, validations=2, batch_size=16)
    _, log, share = train(config, passages, tmp_path, 3, NegativesConfig(adjust_share=True))
    assert len(share.history) == min(2, log[-1]["step"] - 1)


def test_nothing_to_train_with_is_an_error(passages, tmp_path) -> None:
    encoder = build_scratch_encoder(config_of(), passage_texts(passages), seed=0)
    with pytest.raises(InputError, match="expected at least one query to train with, found none"):
        train_dense(config_of(), NegativesConfig(), encoder, examples(0), passages, tmp_path, seed=0)


@pytest.mark.parametrize("batch", [4, 128])
def test_the_batch_need_not_fit_the_workers(passages, tmp_path, batch) -> None:
    """As one of three workers, which come and go: among the shares of a pass of seven queries are empty ones."""
    _, log, _ = train(config_of(batch_size=batch), passages, tmp_path, setup=Setup(workers=3))
    assert log[-1]["step"] == {4: 8, 128: 4}[batch]
    assert all(row["loss"] >= 0 for row in log) and any(row["loss"] > 0 for row in log)


def dense_trainer(passages, output, shares: Shares, repeat: int) -> DenseTrainer:
    config = config_of()
    return DenseTrainer(
        encoder=build_scratch_encoder(config, passage_texts(passages), seed=0),
        queries=read_queries(examples(repeat), passages),
        texts=passage_texts(passages),
        config=config,
        count=1,
        share=SyntheticShare(0.5),
        shares=shares,
        args=TrainingArguments(
            str(output),
            per_device_train_batch_size=shares.micro_batch,
            use_cpu=True,
            remove_unused_columns=False,
            report_to="none",
            seed=3,
        ),
    )


@pytest.mark.parametrize(("batch", "repeat"), [(6, 3), (5, 3), (8, 5), (16, 3), (128, 2)])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_out_the_queries_of_one(passages, tmp_path, batch, repeat, workers) -> None:
    """Every query once a pass, those of a step in its order, and each query as much as any other of its step."""
    shares = Shares.of(batch, -(-batch // workers), workers)
    trainer = dense_trainer(passages, tmp_path, shares, repeat)
    loader = trainer.get_train_dataloader()
    sampler = loader.batch_sampler
    shards = [BatchSamplerShard(sampler, workers, rank) for rank in range(workers)] if workers > 1 else [sampler]
    parts = [
        [loader.collate_fn(loader.dataset.__getitems__(places))["rows"].tolist() for places in shard]
        for shard in shards
    ]
    order = torch.randperm(7 * repeat, generator=torch.Generator().manual_seed(3)).tolist()
    steps = [order[begin : begin + batch] for begin in range(0, len(order), batch)]
    assert [[row for part in step for row in part] for step in zip(*parts, strict=True)] == steps
    assert Counter(order) == Counter(range(7 * repeat))
    for step, (rows, shared) in enumerate(zip(steps, zip(*parts, strict=True), strict=True)):
        trainer.state.global_step = step
        own = [own_losses(trainer, part, step) for part in shared if part]
        found = [
            trainer.compute_loss(trainer.model, {"rows": torch.tensor(part, dtype=torch.int64)}) for part in shared
        ]
        assert torch.stack(found).mean().item() == pytest.approx(torch.cat(own).sum().item() / len(rows), abs=1e-6)
        torch.stack(found).mean().backward()  # also of what has no query


def own_losses(trainer: DenseTrainer, rows: list[int], step: int) -> torch.Tensor:
    """The losses of a worker's queries, one after another as the paper has them."""
    encoder, config = trainer._encoder, trainer._config
    batch = compose_batch(
        [trainer._queries[row] for row in rows], trainer._texts, 1, 0.5, random.Random(f"3|{step}|{rows}")
    )
    vectors = [
        encoder.vectors(encoder.features(texts, queries=queries))
        for texts, queries in ((batch.queries, True), (batch.passages, False))
    ]
    return batch_losses(
        vectors[0] @ vectors[1].T, batch.excluded, config.loss, config.temperature, config.false_negative_rate
    ).detach()


@pytest.mark.parametrize("family", ["scratch", *FAMILIES])
def test_gradient_checkpointing_changes_nothing(passages, tmp_path, family) -> None:
    config, weights = config_of(epochs=2, learning_rate=1e-3), []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        encoder = (
            build_scratch_encoder(config, passage_texts(passages), seed=0)
            if family == "scratch"
            else transformer(folder, family)
        )
        setup = Setup(gradient_checkpointing=checkpointing)
        train_dense(config, NegativesConfig(), encoder, examples(), passages, folder / "out", seed=1, setup=setup)
        weights.append(encoder.model.state_dict())
        inner = encoder.model.transformers_model
        assert inner is None or inner.is_gradient_checkpointing == checkpointing
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-6), name


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_transformer_goes_on_from_its_checkpoint(passages, tmp_path, family) -> None:
    """T5 has its embeddings under two names."""
    config = config_of(epochs=3, checkpoints=2, learning_rate=1e-3)
    kept, steps, weights, logs = Kept(tmp_path), Steps(), [], []
    for progress in (kept.progress, steps.progress):
        encoder = transformer(tmp_path / "model", family)
        log, _ = train_dense(
            config,
            NegativesConfig(),
            encoder,
            examples(3),
            passages,
            tmp_path / "out",
            seed=1,
            resume_from=kept.checkpoints[0] if kept.checkpoints else None,
            progress=progress,
        )
        weights.append(encoder.model.state_dict())
        logs.append([(row["step"], row["loss"]) for row in log])
    assert steps.done[0] == step_of(kept.checkpoints[0]) + 1 > 1
    assert logs[1] == logs[0]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
    saved = [set(load_file(folder / "model.safetensors")) for folder in kept.checkpoints]
    assert {len(names) for names in saved} == {len(weights[0]) - (family == "t5")}


def test_a_loss_that_is_no_number_ends_the_training(passages, tmp_path) -> None:
    encoder = build_scratch_encoder(config_of(), passage_texts(passages), seed=0)
    with torch.no_grad():
        encoder.model[0].embedding.weight[5:] = float("nan")
    with pytest.raises(InputError, match=r"^dense: .* found nan by step 1 of .*dense\.learning_rate"):
        train_dense(config_of(), NegativesConfig(), encoder, examples(), passages, tmp_path, seed=0)


def test_the_log_goes_to_tensorboard(passages, tmp_path) -> None:
    setup = Setup(report_to=("tensorboard",), report_folder=str(tmp_path / "curves"))
    train(config_of(epochs=1), passages, tmp_path / "out", setup=setup)
    assert list((tmp_path / "curves").glob("events.out.tfevents.*"))


def test_the_share_climbs_while_the_measure_rises_and_turns_when_it_falls() -> None:
    share = SyntheticShare(0.5)
    seen = []
    for measured in (0.1, 0.2, 0.15, 0.3, 0.3):
        share.observe(measured)
        seen.append(share.value)
    assert seen == [0.6, 0.7, 0.6, 0.5, 0.4]
    assert share.history[0] == (0.5, 0.1)


@settings(deadline=None)
@given(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=50))
def test_the_share_stays_within_its_bounds(start, measurements) -> None:
    share = SyntheticShare(start)
    for measured in measurements:
        share.observe(measured)
        assert 0.1 <= share.value <= 0.9


def test_validation_is_the_mean_reciprocal_rank(passages) -> None:
    encoder = build_scratch_encoder(config_of(), passage_texts(passages), seed=0)
    queries, texts = read_queries(examples(), passages), passage_texts(passages)
    everything = encoder.encode(texts, queries=False)
    expected = []
    for query in queries:
        scores = (everything @ encoder.encode([query.text], queries=True)[0]).tolist()
        expected.append(1 / (1 + sum(score > scores[query.positive] for score in scores)))
    assert validation_measure(encoder, queries, texts) == pytest.approx(sum(expected) / len(expected))


def test_the_share_is_kept_with_the_encoder(passages, tmp_path) -> None:
    encoder = build_scratch_encoder(config_of(), passage_texts(passages), seed=0)
    TrainedEncoder(encoder, SyntheticShare(0.6, history=[(0.5, 0.25)])).save(tmp_path)
    rows = read_share_log(tmp_path).to_pylist()
    assert rows == [{"validation": 1, "synthetic_share": 0.5, "value": 0.25}]
