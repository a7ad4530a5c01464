"""The contrastive losses against sums written out, and what is no negative of what."""

import math

import pytest
import torch

from genret.training.contrastive import batch_losses, contrastive_loss, debiased_loss, false_negatives

SCORES = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.4, -0.3]])
NOTHING = torch.zeros(2, 3, dtype=torch.bool)


def test_contrastive_loss_is_the_cross_entropy_of_the_positive() -> None:
    expected = [
        -math.log(math.exp(row[number]) / sum(map(math.exp, row))) for number, row in enumerate(SCORES.tolist())
    ]
    assert contrastive_loss(SCORES, NOTHING).tolist() == pytest.approx(expected)


def test_what_is_excluded_counts_nothing() -> None:
    excluded = NOTHING.clone()
    excluded[0, 2] = True
    expected = -math.log(math.exp(0.9) / (math.exp(0.9) + math.exp(0.2)))
    assert contrastive_loss(SCORES, excluded)[0].item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.05])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6])
def test_debiased_loss_is_the_formula(temperature: float, rate: float) -> None:
    losses = batch_losses(SCORES, NOTHING, "debiased", temperature, rate)
    for number, row in enumerate(SCORES.double().tolist()):
        positive = math.exp(row[number] / temperature)
        negatives = [math.exp(score / temperature) for place, score in enumerate(row) if place != number]
        count = len(negatives)
        estimate = (sum(negatives) / count - rate * positive) / (1 - rate)
        bounded = count * max(estimate, math.exp(-1 / temperature))
        assert losses[number].item() == pytest.approx(-math.log(positive / (positive + bounded)), rel=1e-4, abs=1e-6)


def test_debiased_loss_without_false_negatives_is_the_contrastive_one() -> None:
    plain = batch_losses(SCORES, NOTHING, "contrastive", 0.1, 0.0)
    assert torch.allclose(batch_losses(SCORES, NOTHING, "debiased", 0.1, 0.0), plain, atol=1e-6)


def test_debiased_loss_has_finite_gradients_with_one_passage() -> None:
    scores = torch.tensor([[0.5]], requires_grad=True)
    debiased_loss(scores / 0.05, torch.zeros(1, 1, dtype=torch.bool), 0.05, 0.1).sum().backward()
    assert bool(torch.isfinite(scores.grad).all())


def test_a_positive_is_never_a_negative_of_its_own_query() -> None:
    # Queries 0 and 1 share passage 7; query 2 has passage 8. Behind them: passage 7 as a negative of query 2, and a
    # text written for query 0.
    excluded = false_negatives(
        torch.tensor([7, 7, 8]),
        torch.tensor([7, 7, 8, 7, 7]),
        torch.tensor([False, False, False, False, True]),
        torch.tensor([0, 1, 2, 2, 0]),
    )
    assert excluded.tolist() == [
        [False, True, False, True, False],
        [True, False, False, True, True],
        [False, False, False, False, False],
    ]
