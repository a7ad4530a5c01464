"""Fine-tuning: the loss against a plain sum, learning, resuming, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from training_reference import reference_log_prob

from genret.config import SftConfig
from genret.errors import InputError
from genret.tables import table_from_rows
from genret.training.callbacks import Progress
from genret.training.sft import build_sft_dataset, make_collator, train_sft

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
    log = train_sft(
        settings(micro_batch_size=micro_batch_size), bundle, example_table(bundle), tmp_path, seed=0
    )
    assert log[0]["loss"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)


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
    log = train_sft(
        settings(scoring="vocabulary", loss=loss), bundle, example_table(bundle), tmp_path, seed=0
    )
    assert log[0]["loss"] == pytest.approx(total / count, abs=1e-4)


@pytest.mark.parametrize(
    ("identifier_type", "scoring"), [("semantic", "trie"), ("atomic", "trie"), ("semantic", "vocabulary")]
)
def test_learns_its_examples(make_bundle, tmp_path, identifier_type, scoring) -> None:
    bundle = make_bundle(identifier_type, scoring)
    log = train_sft(
        settings(scoring=scoring, epochs=40), bundle, example_table(bundle), tmp_path, seed=0
    )
    assert log[-1]["loss"] < 0.3 * log[0]["loss"]


def test_resuming_gives_the_same_weights(make_bundle, tmp_path) -> None:
    config = settings(epochs=6, checkpoints=2, batch_size=2, micro_batch_size=2)
    kept = []

    def keep(folder: Path) -> None:
        kept.append(shutil.copytree(folder, tmp_path / f"kept-{len(kept)}"))

    straight = make_bundle()
    examples = example_table(straight)
    log = train_sft(config, straight, examples, tmp_path / "a", seed=3, progress=Progress(on_checkpoint=keep))
    resumed = make_bundle()
    again = train_sft(config, resumed, examples, tmp_path / "b", seed=3, resume_from=kept[0])
    assert [row["step"] for row in again] == [row["step"] for row in log]
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
