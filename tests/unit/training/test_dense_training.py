"""Training of the dense retriever: what a step is made of, learning, resuming, and the share of synthetic negatives."""

import random
import shutil

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genret.config import DenseConfig, NegativesConfig, ScratchEncoder
from genret.errors import InputError
from genret.tables import table_from_rows
from genret.training.base import passage_texts
from genret.training.callbacks import Progress
from genret.training.dense import (
    ContrastiveQuery,
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
from genret.training.encoder import build_scratch_encoder
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
    kept = []

    def keep(folder) -> None:
        kept.append(shutil.copytree(folder, tmp_path / f"kept-{len(kept)}"))

    straight, log, share = train(config, passages, tmp_path / "a", 3, negatives, progress=Progress(on_checkpoint=keep))
    # Other checkpoints from here on change nothing either.
    config = config.model_copy(update={"checkpoints": 5})
    resumed, again, share_again = train(config, passages, tmp_path / "b", 3, negatives, resume_from=kept[0])
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


def test_batch_size_must_fit_the_workers(passages, tmp_path) -> None:
    with pytest.raises(InputError, match=r"dense\.batch_size: expected a multiple of 3 workers, found 4"):
        train(config_of(), passages, tmp_path, setup=Setup(workers=3))


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
