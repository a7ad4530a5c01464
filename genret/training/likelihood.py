"""Log-probabilities of identifiers given prompts: log P(d' | q) under either scoring."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scoring = Literal["trie", "vocabulary"]

# A node with at least this many children is scored by one dense product over all states at that node; below
# it, gathering the children's rows for each state is cheaper than a product a node.
_DENSE_CHILDREN = 128


@dataclass(frozen=True)
class TrieChildren:
    """The children of every branching node of a trie, as tensors.

    Attributes:
        indptr: int64 `(n_nodes + 1,)`; the children of node `i` are `token[indptr[i]:indptr[i + 1]]`.
        token: int64 `(n_children,)`; the token that leads to each child.
    """

    indptr: Tensor
    token: Tensor

    def to(self, device: torch.device) -> "TrieChildren":
        """The same children on another device."""
        return TrieChildren(self.indptr.to(device), self.token.to(device))


def trie_log_probs(states: Tensor, nodes: Tensor, targets: Tensor, weight: Tensor, children: TrieChildren) -> Tensor:
    """Log-softmax over the children of one trie node a state, at the right child.

    Only the rows of `weight` that belong to children are multiplied. A node with a single child needs no
    state here: its log-probability is 0.

    Args:
        states: Final hidden states `(n, hidden)`, any float type.
        nodes: int64 `(n,)`; the branching node at which each state decides.
        targets: int64 `(n,)`; the right child, as a position in `children.token`.
        weight: Output embedding `(vocabulary, hidden)`.
        children: The trie's children.

    Returns:
        float32 `(n,)`, each at most 0.
    """
    begin = children.indptr[nodes]
    width = children.indptr[nodes + 1] - begin
    result = states.new_zeros(len(nodes), dtype=torch.float32)
    dense = width >= _DENSE_CHILDREN
    for node in nodes[dense].unique().tolist():
        rows = (nodes == node).nonzero().squeeze(1)
        low, high = int(children.indptr[node]), int(children.indptr[node + 1])
        logits = states[rows] @ _rows(weight, children.token[low:high]).T
        log_probs = -F.cross_entropy(logits.float(), targets[rows] - low, reduction="none")
        result = result.index_copy(0, rows, log_probs)
    rows = (~dense).nonzero().squeeze(1)
    if len(rows):
        log_probs = _ragged_log_probs(states[rows], begin[rows], width[rows], targets[rows], weight, children)
        result = result.index_copy(0, rows, log_probs)
    return result


def _rows(weight: Tensor, tokens: Tensor) -> Tensor:
    first, last = int(tokens[0]), int(tokens[-1])
    if last - first + 1 == len(tokens):  # children are sorted: a contiguous run, as atomic identifiers are
        return weight[first : last + 1]
    return F.embedding(tokens, weight)


def _ragged_log_probs(
    states: Tensor, begin: Tensor, width: Tensor, targets: Tensor, weight: Tensor, children: TrieChildren
) -> Tensor:
    """As `trie_log_probs`, for many nodes with few children each: one gather over all of them."""
    segment = torch.repeat_interleave(torch.arange(len(width), device=width.device), width)
    first = width.cumsum(0) - width
    child = torch.arange(len(segment), device=width.device) - first[segment] + begin[segment]
    # As embeddings, whose gradient is summed in one order whatever the number of threads; that of indexing is not.
    logits = (F.embedding(segment, states) * F.embedding(children.token[child], weight)).sum(-1).float()
    highest = torch.full_like(width, 0, dtype=torch.float32).scatter_reduce(
        0, segment, logits.detach(), "amax", include_self=False
    )
    total = torch.zeros_like(highest).index_add(0, segment, (logits - highest[segment]).exp())
    return logits[first + targets - begin] - total.log() - highest


def identifier_log_probs(
    model: nn.Module, batch: Mapping[str, Any], scoring: Scoring, children: TrieChildren | None
) -> Tensor:
    """Log P(d' | q) of every example of a batch (arXiv 2502.17957, section 2.2).

    Args:
        model: A causal language model of Transformers, possibly wrapped for distributed training, that TRL
            has given its fused output head. Called once.
        batch: What `genret.training.batches.collate` makes.
        scoring: `trie` normalises over the children of each trie node, `vocabulary` over all tokens.
        children: The trie's children; only `trie` scoring needs them.

    Returns:
        float32 `(n_examples,)`.
    """
    if scoring == "trie":
        assert children is not None, "trie scoring needs the trie's children"
        log_probs = _choice_log_probs(model, batch, children)
        return _sum_by_example(log_probs, batch["example"], batch["n_examples"])
    labels = batch["labels"]
    outputs = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        labels=labels,
        use_cache=False,
        fused_lm_head=True,
    )
    scored = labels[:, 1:] != -100
    return _sum_by_example(
        outputs.log_probs[scored].float(), batch["token_example"][:, 1:][scored], batch["n_examples"]
    )


def _choice_log_probs(model: nn.Module, batch: Mapping[str, Any], children: TrieChildren) -> Tensor:
    """Log-probability of each choice, computed where the model calls its output head.

    There, and only there, sharded training (ZeRO-3) has the head's weight in one piece, in the forward and in the
    backward pass. The result is taken from a hook that runs after those of the sharding.
    """
    unwrapped: Any = getattr(model, "module", model)
    head = unwrapped.get_output_embeddings()
    results: list[Tensor] = []

    def score(states: Tensor) -> Tensor:
        chosen = states.flatten(0, 1)[batch["state"]]
        return trie_log_probs(chosen, batch["node"], batch["target"], head.weight, children)

    hook = head.register_forward_hook(lambda module, inputs, output: results.append(output))
    # On the instance, for this call alone: the class's method is seen again once it is gone.
    head.forward = score
    try:
        model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    finally:
        del head.forward
        hook.remove()
    return results[0]


def decision_states(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The final hidden states `(n, hidden)` from which the trie's branching tokens are chosen."""
    outputs = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        use_cache=False,
        output_hidden_states=True,
        # No position goes through the output head: only the children's rows of it are multiplied later.
        logits_to_keep=torch.empty(0, dtype=torch.long, device=batch["input_ids"].device),
    )
    return outputs.hidden_states[-1].flatten(0, 1)[batch["state"]]


def _sum_by_example(values: Tensor, example: Tensor, n_examples: int) -> Tensor:
    return values.new_zeros(n_examples).index_add(0, example, values)
