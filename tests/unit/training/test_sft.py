"""Fine-tuning: the loss against a plain sum, learning, resuming, and what is refused."""

import pytest
import torch
from resuming import Kept, Steps, step_of
from training_reference import reference_log_prob
from trl.trainer.utils import add_fused_lm_head

from genret.config import SftConfig
from genret.errors import InputError
from genret.tables import table_from_rows
from genret.training.batches import trie_children
from genret.training.likelihood import identifier_log_probs
from genret.training.sampling import PADDING
from genret.training.setup import Setup
from genret.training.sft import (
    SftCollator,
    UnseenQueries,
    build_sft_dataset,
    make_collator,
    train_sft,
    unseen_examples,
)

QUERIES = [("melted snow flows to the sea", 0), ("frozen water", 1), ("knead dough", 2), ("sugar and eggs", 3)]


def example_table(bundle, queries=QUERIES, repeat=1):
    names = bundle.passages.column("identifier").to_pylist()
    return table_from_rows(
        "sft_examples",
        ({"prompt": text, "completion": names[index], "kind": "query2id"} for text, index in queries * repeat),
    )


def settings(**changes) -> SftConfig:
    return SftConfig(
        **{"batch_size": 4, "micro_batch_size": 4, "checkpoints": 0, "learning_rate": 5e-3, "epochs": 1.0} | changes
    )


@pytest.mark.parametrize("identifier_type", ["semantic", "atomic"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_first_loss_is_the_mean_over_examples(make_bundle, tmp_path, identifier_type, micro_batch_size) -> None:
    bundle = make_bundle(identifier_type)
    rows = list(build_sft_dataset(bundle, example_table(bundle)))
    expected = [-reference_log_prob(bundle, list(row["prompt"]), row["identifier"], "trie") for row in rows]
    log = train_sft(settings(micro_batch_size=micro_batch_size), bundle, example_table(bundle), tmp_path, seed=0)
    assert log[0]["loss"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def plain_loss(bundle, rows, scoring, loss) -> torch.Tensor:
    """The loss by a plain loop in fp32: a sequence at a time, no packing, the model's own logits."""
    everything = [bundle.identifiers[i].tolist() for i in range(len(bundle.identifiers))]
    total, count = torch.zeros(()), 0
    for row in rows:
        prompt, target = list(row["prompt"]), everything[row["identifier"]]
        sequence = prompt + target
        logits = bundle.model(torch.tensor([sequence]), use_cache=False).logits[0]
        if scoring == "vocabulary":
            begin = 1 if loss == "all" else len(prompt)
            total = total - sum(logits[i - 1].log_softmax(0)[sequence[i]] for i in range(begin, len(sequence)))
            count += len(sequence) - begin
            continue
        for depth, token in enumerate(target):
            allowed = sorted({other[depth] for other in everything if other[:depth] == target[:depth]})
            chosen = logits[len(prompt) + depth - 1, allowed].log_softmax(0)
            total = total - chosen[allowed.index(token)]
        count += 1
    return total / count


@pytest.mark.parametrize(
    ("identifier_type", "scoring", "loss"),
    [
        ("semantic", "trie", "completion"),
        ("atomic", "trie", "completion"),
        ("semantic", "vocabulary", "completion"),
        ("semantic", "vocabulary", "all"),
    ],
)
@pytest.mark.parametrize("layout", ["rows", "line", "single"])
def test_packed_is_unpacked_is_a_plain_loop(make_bundle, identifier_type, scoring, loss, layout) -> None:
    """The loss and its gradient, with sequences that share rows, lie in one line, or have a row each."""
    bundle = make_bundle(identifier_type, scoring)
    rows = list(build_sft_dataset(bundle, example_table(bundle, repeat=5)))
    model = bundle.model
    expected = plain_loss(bundle, rows, scoring, loss)
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    add_fused_lm_head(model)
    collator = make_collator(bundle, loss)
    collator.layout = layout
    batch = SftCollator(collator)(rows)
    assert batch["input_ids"].shape[0] == {"rows": 2, "line": 1, "single": 20}[layout] or scoring == "trie"
    children = trie_children(bundle.trie) if scoring == "trie" else None
    found = -identifier_log_probs(model, batch, scoring, children).sum() / (batch["labels"][:, 1:] != -100).sum()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    found.backward()
    # A single weight's gradient may be the small rest of large sums: the rounding is that of the whole.
    size = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    for name, gradient in gradients.items():
        assert (dict(model.named_parameters())[name].grad - gradient).norm() <= 1e-5 * size, name


def test_rows_that_fill_a_batch_change_nothing(make_bundle) -> None:
    for scoring in ("trie", "vocabulary"):
        bundle = make_bundle("semantic", scoring)
        rows = list(build_sft_dataset(bundle, example_table(bundle)))
        collate = SftCollator(make_collator(bundle, "completion"))
        filled = collate([*rows, {**rows[1], PADDING: True}])
        assert filled["weight"].tolist() == [1.0] * 4 + [0.0]
        assert (filled["labels"][:, 1:] != -100).sum() == (collate(rows)["labels"][:, 1:] != -100).sum()


@pytest.mark.parametrize("loss", ["completion", "all"])
def test_vocabulary_loss_is_the_mean_over_tokens(make_bundle, tmp_path, loss) -> None:
    bundle = make_bundle("semantic", "vocabulary")
    rows = list(build_sft_dataset(bundle, example_table(bundle)))
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            prompt, target = list(row["prompt"]), bundle.identifiers[row["identifier"]].tolist()
            sequence = torch.tensor([prompt + target])
            log_probs = bundle.model(sequence).logits[0, :-1].double().log_softmax(-1)
            token_log_probs = log_probs.gather(1, sequence[0, 1:, None])[:, 0]
            begin = 0 if loss == "all" else len(prompt) - 1
            total -= token_log_probs[begin:].sum().item()
            count += len(token_log_probs) - begin
    log = train_sft(settings(scoring="vocabulary", loss=loss), bundle, example_table(bundle), tmp_path, seed=0)
    assert log[0]["loss"] == pytest.approx(total / count, abs=1e-4)


@pytest.mark.parametrize(
    ("identifier_type", "scoring"), [("semantic", "trie"), ("atomic", "trie"), ("semantic", "vocabulary")]
)
def test_learns_its_examples(make_bundle, tmp_path, identifier_type, scoring) -> None:
    bundle = make_bundle(identifier_type, scoring)
    log = train_sft(settings(scoring=scoring, epochs=40), bundle, example_table(bundle), tmp_path, seed=0)
    assert log[-1]["loss"] < 0.3 * log[0]["loss"]


def test_resuming_gives_the_same_weights(make_bundle, tmp_path) -> None:
    config = settings(epochs=6, checkpoints=2, batch_size=2, micro_batch_size=2)
    kept, steps = Kept(tmp_path), Steps()
    straight = make_bundle()
    examples = example_table(straight)
    log = train_sft(config, straight, examples, tmp_path / "a", seed=3, progress=kept.progress)
    resumed, start = make_bundle(), kept.checkpoints[0]
    # Other checkpoints from here on change nothing either.
    config = config.model_copy(update={"checkpoints": 5})
    again = train_sft(config, resumed, examples, tmp_path / "b", seed=3, resume_from=start, progress=steps.progress)
    assert steps.done == list(range(step_of(start) + 1, log[-1]["step"] + 1))
    assert [(row["step"], row["loss"]) for row in again] == [(row["step"], row["loss"]) for row in log]
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_unknown_completion_is_named(make_bundle) -> None:
    bundle = make_bundle()
    rows = [{"prompt": "x", "completion": "no such identifier", "kind": "query2id"}]
    with pytest.raises(InputError, match="'no such identifier' is none of the 7 identifiers"):
        build_sft_dataset(bundle, table_from_rows("sft_examples", rows))


def test_forced_tokens_are_not_read(make_bundle) -> None:
    """With trie scoring, what follows the last choice adds no token to the batch."""
    bundle = make_bundle("atomic")
    batch = make_collator(bundle, "completion").collate([[5, 6, 7]], [2])
    assert batch["input_ids"].tolist() == [[5, 6, 7]]


def test_gradient_checkpointing_changes_nothing(make_bundle, tmp_path) -> None:
    weights = []
    for checkpointing in (False, True):
        bundle = make_bundle()
        setup = Setup(gradient_checkpointing=checkpointing)
        log = train_sft(settings(epochs=3), bundle, example_table(bundle), tmp_path, seed=0, setup=setup)
        weights.append(bundle.model.state_dict())
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())
    assert all(row["tokens"] > 0 and row["tokens_a_second"] > 0 and row["memory_gib"] > 0 for row in log)
    assert all(0 < row["mfu"] < 1 for row in log)


def test_the_log_goes_to_tensorboard(make_bundle, tmp_path) -> None:
    bundle = make_bundle()
    setup = Setup(report_to=("tensorboard",), report_folder=str(tmp_path / "curves"))
    train_sft(settings(), bundle, example_table(bundle), tmp_path / "out", seed=0, setup=setup)
    assert list((tmp_path / "curves").glob("events.out.tfevents.*"))


def test_a_loss_that_is_no_number_ends_the_training(make_bundle, tmp_path) -> None:
    bundle, kept = make_bundle(), Kept(tmp_path)
    with torch.no_grad():
        bundle.model.model.norm.weight[0] = float("nan")
    config = settings(epochs=6, checkpoints=2)
    with pytest.raises(
        InputError, match=r"^sft: .*found nan by step 1 of 6, at the learning rate .*sft\.learning_rate"
    ):
        train_sft(config, bundle, example_table(bundle), tmp_path / "out", seed=0, progress=kept.progress)
    assert not kept.checkpoints


def unseen_of(bundle) -> UnseenQueries:
    names = bundle.passages.column("passage_id").to_pylist()
    rows = [
        {"query_id": str(n), "passage_id": names[n], "text": f"where is the {names[n]}", "answer": ""} for n in range(7)
    ]
    return UnseenQueries(table_from_rows("preference_queries", rows))


@pytest.mark.parametrize("scoring", ["trie", "vocabulary"])
def test_the_loss_on_unseen_queries_is_measured_and_changes_nothing(make_bundle, tmp_path, scoring) -> None:
    bundle, alone = make_bundle("semantic", scoring), make_bundle("semantic", scoring)
    config = settings(scoring=scoring, epochs=4)
    unseen = unseen_of(bundle)
    rows = list(build_sft_dataset(bundle, unseen_examples(bundle, unseen.queries)))
    assert len(rows) == 7
    before = plain_loss(bundle, rows, scoring, "completion").item()
    log = train_sft(config, bundle, example_table(bundle), tmp_path / "a", seed=0, unseen=unseen)
    steps = log[-1]["step"]
    assert [row["step"] for row in unseen.rows] == list(range(steps + 1)), "at the start and after each of few steps"
    assert unseen.rows[0]["loss"] == pytest.approx(before, abs=1e-5)
    assert unseen.rows[-1]["loss"] == pytest.approx(plain_loss(bundle, rows, scoring, "completion").item(), abs=1e-5)
    assert train_sft(config, alone, example_table(alone), tmp_path / "b", seed=0)[-1]["loss"] == log[-1]["loss"]
    for name, weight in alone.model.state_dict().items():
        assert torch.equal(weight, bundle.model.state_dict()[name]), name


def test_what_was_measured_before_a_restart_is_kept(make_bundle, tmp_path) -> None:
    config = settings(epochs=6, checkpoints=2, batch_size=2, micro_batch_size=2)
    kept, steps = Kept(tmp_path), Steps()
    straight, resumed = make_bundle(), make_bundle()
    examples, unseen, again = example_table(straight), unseen_of(straight), unseen_of(resumed)
    train_sft(config, straight, examples, tmp_path / "a", seed=3, progress=kept.progress, unseen=unseen)
    start = kept.checkpoints[0]
    log = train_sft(
        config,
        resumed,
        examples,
        tmp_path / "b",
        seed=3,
        resume_from=start,
        progress=steps.progress,
        unseen=again,
    )
    assert steps.done[0] == step_of(start) + 1 > 1
    before = [row for row in unseen.rows if row["step"] <= step_of(start)]
    assert again.rows[: len(before)] == before, "seconds too: measured once"
    assert [(row["step"], row["loss"]) for row in again.rows] == [(row["step"], row["loss"]) for row in unseen.rows]
    for rows in (again.rows, log):
        assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows), "the time goes on"


def test_without_unseen_queries_nothing_is_measured(make_bundle, tmp_path) -> None:
    bundle = make_bundle()
    none = UnseenQueries(unseen_of(bundle).queries.slice(0, 0))
    train_sft(settings(), bundle, example_table(bundle), tmp_path, seed=0, unseen=none)
    assert none.rows == []
