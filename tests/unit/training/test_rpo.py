"""The preference loss against the paper's formula in float64, through the trainer itself."""

import math

import pytest
import torch
from training_reference import reference_log_prob

from genret.config import RpoConfig
from genret.tables import table_from_rows
from genret.training.encoding import encode_prompts
from genret.training.rpo import RpoCollator, RpoTrainer, build_rpo_dataset, rpo_loss, train_rpo
from genret.training.sft import make_collator

PAIRS = [("snow in the mountains", 0, 1), ("bake", 3, 2), ("the night train to the capital in winter", 6, 4)]


def pair_table(bundle):
    names = bundle.passages.column("identifier").to_pylist()
    return table_from_rows(
        "preference_pairs",
        (
            {
                "query_id": str(number),
                "prompt": prompt,
                "chosen": names[chosen],
                "rejected": names[rejected],
                "positive_rank": 2,
                "negative_rank": 1,
            }
            for number, (prompt, chosen, rejected) in enumerate(PAIRS)
        ),
    )


def formula(chosen, rejected, ref_chosen, ref_rejected, length, beta, alpha) -> float:
    """Section 4.1, in plain Python floats."""
    margin = beta * (chosen - ref_chosen) - beta * (rejected - ref_rejected)
    return -math.log(1 / (1 + math.exp(-margin))) - alpha * chosen / length


def test_loss_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    values = -torch.rand(4, 5, generator=generator, dtype=torch.float64) * 9
    lengths = torch.tensor([1.0, 2.0, 7.0, 3.0, 11.0], dtype=torch.float64)
    found = rpo_loss(*values, lengths, beta=0.5, alpha=1.3)
    expected = [formula(*row, 0.5, 1.3) for row in torch.cat([values, lengths[None]]).T.tolist()]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("scoring", ["trie", "vocabulary"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_trainer_computes_the_formula(make_bundle, monkeypatch, tmp_path, scoring, micro_batch_size) -> None:
    """The first step's loss, where the policy has been moved away from the reference, on unequal lengths."""
    bundle = make_bundle("semantic", scoring, "random")
    torch.manual_seed(2)
    for weight in bundle.model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    prompts = encode_prompts([p for p, _, _ in PAIRS], bundle.tokenizer, bundle.settings.suffix, 64)
    before = [
        [reference_log_prob(bundle, prompt, index, scoring) for index in pair]
        for prompt, (_, *pair) in zip(prompts, PAIRS, strict=True)
    ]
    collator = make_collator(bundle, "completion")
    losses: list[float] = []
    compute = RpoTrainer.compute_loss

    def moved(self, model, inputs, *arguments, **options):
        with torch.no_grad():  # the policy differs from the reference from the first step on
            if not losses:
                model.get_output_embeddings().weight.mul_(1.5)
        loss = compute(self, model, inputs, *arguments, **options)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(RpoTrainer, "compute_loss", moved)
    config = RpoConfig(
        beta=0.5, alpha=1.0, batch_size=3, micro_batch_size=micro_batch_size, checkpoints=0, learning_rate=1e-12
    )
    train_rpo(config, bundle, pair_table(bundle), tmp_path, seed=0)
    after = [
        [reference_log_prob(bundle, prompt, index, scoring) for index in pair]
        for prompt, (_, *pair) in zip(prompts, PAIRS, strict=True)
    ]
    lengths = [RpoCollator(collator)._scored_tokens(chosen) for _, chosen, _ in PAIRS]
    assert len(set(lengths)) > 1, "the batch must have unequal lengths"
    expected = [
        formula(now[0], now[1], then[0], then[1], length, 0.5, 1.0)
        for now, then, length in zip(after, before, lengths, strict=True)
    ]
    assert sum(losses) == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_training_prefers_the_positive(make_bundle, tmp_path) -> None:
    bundle = make_bundle("semantic", "trie")
    table = pair_table(bundle)
    prompts = [list(row["prompt"]) for row in build_rpo_dataset(bundle, table)]

    def margin() -> float:
        return sum(
            reference_log_prob(bundle, prompt, chosen, "trie") - reference_log_prob(bundle, prompt, rejected, "trie")
            for prompt, (_, chosen, rejected) in zip(prompts, PAIRS, strict=True)
        )

    before = margin()
    config = RpoConfig(epochs=20, batch_size=3, micro_batch_size=3, learning_rate=1e-3, checkpoints=0)
    log = train_rpo(config, bundle, table, tmp_path, seed=0)
    assert margin() > before + 1.0
    assert log[-1]["step"] == 20
    assert log[-1]["loss"] < log[0]["loss"]


def test_no_pair_leaves_the_model_alone(make_bundle, tmp_path) -> None:
    bundle = make_bundle()
    weights = {name: weight.clone() for name, weight in bundle.model.state_dict().items()}
    assert train_rpo(RpoConfig(), bundle, pair_table(bundle).slice(0, 0), tmp_path, seed=0) == []
    assert all(torch.equal(weight, weights[name]) for name, weight in bundle.model.state_dict().items())
