"""The preference loss against the paper's formula in float64, through the trainer itself."""

import math

import pytest
import torch
from resuming import Kept, Steps, step_of
from training_reference import reference_log_prob

from genret.config import RpoConfig, TuningConfig
from genret.errors import InputError
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


def test_a_loss_that_is_no_number_ends_the_training(make_bundle, tmp_path) -> None:
    bundle = make_bundle()
    with torch.no_grad():
        bundle.model.model.norm.weight[0] = float("nan")
    with pytest.raises(InputError, match=r"^rpo: .*found nan by step 1 of .*rpo\.learning_rate"):
        train_rpo(RpoConfig(), bundle, pair_table(bundle), tmp_path, seed=0)


def test_no_pair_leaves_the_model_alone(make_bundle, tmp_path) -> None:
    bundle = make_bundle()
    weights = {name: weight.clone() for name, weight in bundle.model.state_dict().items()}
    assert train_rpo(RpoConfig(), bundle, pair_table(bundle).slice(0, 0), tmp_path, seed=0) == []
    assert all(torch.equal(weight, weights[name]) for name, weight in bundle.model.state_dict().items())


def test_without_the_likelihood_term_it_is_plain_dpo(make_bundle, tmp_path) -> None:
    """At the first step the model is the reference: all margins are zero, and DPO's loss is log 2."""
    config = RpoConfig(alpha=0.0, epochs=5, batch_size=3, micro_batch_size=2, learning_rate=1e-3, checkpoints=0)
    bundle = make_bundle("semantic", "trie")
    log = train_rpo(config, bundle, pair_table(bundle), tmp_path, seed=0)
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log[-1]["loss"] < log[0]["loss"]


def test_resuming_gives_the_same_weights(make_bundle, tmp_path) -> None:
    config = RpoConfig(epochs=6, batch_size=2, micro_batch_size=1, learning_rate=1e-3, checkpoints=2)
    kept, steps = Kept(tmp_path), Steps()
    straight, resumed = make_bundle(), make_bundle()
    pairs = pair_table(straight)
    log = train_rpo(config, straight, pairs, tmp_path / "a", seed=3, progress=kept.progress)
    start = kept.checkpoints[0]
    # The reference is the model that training started from, also where it goes on from a checkpoint. Other checkpoints
    # from here on change nothing either.
    config = config.model_copy(update={"checkpoints": 5})
    again = train_rpo(config, resumed, pairs, tmp_path / "b", seed=3, resume_from=start, progress=steps.progress)
    assert steps.done == list(range(step_of(start) + 1, log[-1]["step"] + 1))
    assert [row["loss"] for row in again] == [row["loss"] for row in log]
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("scoring", ["trie", "vocabulary"])
def test_lora_learns_beside_the_reference(make_bundle, tmp_path, scoring) -> None:
    bundle = make_bundle("semantic", scoring)
    before = {name: weight.clone() for name, weight in bundle.model.state_dict().items()}
    config = RpoConfig(
        alpha=0.0, epochs=20, batch_size=3, micro_batch_size=3, learning_rate=1e-2, checkpoints=0,
        tuning=TuningConfig(method="lora", rank=4),
    )  # fmt: skip
    log = train_rpo(config, bundle, pair_table(bundle), tmp_path / "out", seed=0)
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log[-1]["loss"] < 0.95 * log[0]["loss"]
    # A plain model again, of which only the layers' linear maps have changed.
    changed = {name for name, weight in bundle.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert all(name.endswith("_proj.weight") for name in changed)


def test_bf16_computes_the_loss_of_fp32_roughly_and_keeps_the_weights_whole(make_bundle, tmp_path) -> None:
    first = {}
    for precision in ("fp32", "bf16"):
        bundle = make_bundle("semantic", "trie", "random")
        config = RpoConfig(precision=precision, epochs=2, batch_size=3, micro_batch_size=3, checkpoints=0)
        log = train_rpo(config, bundle, pair_table(bundle), tmp_path / precision, seed=0)
        first[precision] = log[0]["loss"]
        assert {weight.dtype for weight in bundle.model.parameters()} == {torch.float32}
    assert first["bf16"] != first["fp32"]
    assert first["bf16"] == pytest.approx(first["fp32"], rel=0.01)


@pytest.mark.parametrize(
    ("identifier_type", "scoring", "readings"), [("atomic", "trie", 1), ("atomic", "vocabulary", 2)]
)
def test_the_prompt_of_a_pair_is_read_once_where_only_choices_count(
    make_bundle, identifier_type, scoring, readings
) -> None:
    bundle = make_bundle(identifier_type, scoring)
    rows = list(build_rpo_dataset(bundle, pair_table(bundle)))
    batch = RpoCollator(make_collator(bundle, "completion"))(rows)
    identifier_tokens = 0 if scoring == "trie" else 2
    assert batch["n_tokens"] == readings * sum(len(row["prompt"]) for row in rows) + identifier_tokens * len(rows)
    assert batch["n_examples"] == 2 * len(rows)
