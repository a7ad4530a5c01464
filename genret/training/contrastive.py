"""The contrastive losses of the dense retriever: pure functions of scores."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(scores: Tensor, excluded: Tensor) -> Tensor:
    """InfoNCE with in-batch and explicit negatives, a value a query.

    -log(exp(s+) / (exp(s+) + sum over the negatives of exp(s-))): van den Oord et al., arXiv 1807.03748, with the
    batch's other passages as negatives (Karpukhin et al., arXiv 2004.04906).

    Args:
        scores: `(queries, passages)`, divided by the temperature. Passage i is the positive of query i; what comes
            behind the positives are explicit negatives, of any query.
        excluded: bool, same shape: what is no negative of a query. The positives must not be.

    Returns:
        `(queries,)`.
    """
    targets = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores.masked_fill(excluded, -torch.inf), targets, reduction="none")


def debiased_loss(scores: Tensor, excluded: Tensor, temperature: float, rate: float) -> Tensor:
    """The debiased contrastive loss, a value a query (Chuang et al., arXiv 2007.00224, equations 7 and 8).

    -log(exp(s+) / (exp(s+) + N g)), where g estimates the mean of exp(s) over true negatives only: what negatives
    drawn from all passages show, less what a share `rate` of positives among them adds,
    g = max((mean of exp(s-) - rate exp(s+)) / (1 - rate), exp(-1 / temperature)).

    Args:
        scores: As for `contrastive_loss`; cosines divided by the temperature.
        excluded: Likewise.
        temperature: That of the scores.
        rate: The share of the negatives that are taken to be positives, below 1.

    Returns:
        `(queries,)`. With a rate of 0 that of `contrastive_loss` (where g is above its floor).
    """
    positive = scores.diagonal()
    targets = torch.eye(len(scores), scores.shape[1], dtype=torch.bool, device=scores.device)
    left_out = excluded | targets
    count = (~left_out).sum(1).clamp_min(1)
    # A cosine is at most 1: divided by exp(1 / temperature) no exponential overflows.
    shift = 1.0 / temperature
    total = (scores - shift).masked_fill(left_out, -torch.inf).exp().sum(1)
    own = (positive - shift).exp()
    estimate = (total - rate * count * own) / (1.0 - rate)
    floor = count * torch.exp(torch.tensor(-2.0 * shift, device=scores.device))
    return (own + torch.maximum(estimate, floor)).log() - (positive - shift)


def batch_losses(
    scores: Tensor, excluded: Tensor, kind: Literal["contrastive", "debiased"], temperature: float, rate: float
) -> Tensor:
    """The loss of each query of a batch.

    Args:
        scores: `(queries, passages)`, not yet divided by the temperature.
        excluded: bool, same shape.
        kind: Which loss.
        temperature: What scores are divided by.
        rate: `debiased`: share of false negatives.

    Returns:
        `(queries,)`.
    """
    scaled = scores.float() / temperature
    if kind == "debiased":
        return debiased_loss(scaled, excluded, temperature, rate)
    return contrastive_loss(scaled, excluded)


def false_negatives(query_positive: Tensor, passage: Tensor, source: Tensor, owner: Tensor) -> Tensor:
    """Which passages of a batch are no negatives of which queries.

    A query's positive may be in the batch more than once, as another query's positive or negative. And a text that
    was written to be wrong for one query of a passage may well answer another query of that passage.

    Args:
        query_positive: Number of each query's positive passage, `(queries,)`.
        passage: Number of each passage; that of the positive it was written from, where it is synthetic,
            `(passages,)`.
        source: Whether it is synthetic, bool `(passages,)`.
        owner: The query in whose row of examples it stands, `(passages,)`.

    Returns:
        bool `(queries, passages)`; false at every query's own positive.
    """
    rows = torch.arange(len(query_positive))
    same = passage.unsqueeze(0) == query_positive.unsqueeze(1)
    own = owner.unsqueeze(0) == rows.unsqueeze(1)
    return same & ~(own & (source.unsqueeze(0) | (torch.arange(len(passage)) == rows.unsqueeze(1))))
