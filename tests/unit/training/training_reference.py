"""An independent likelihood: one forward pass a token, no packing, no cache, in float64."""

import torch

from genret.training.bundle import Bundle


def reference_log_prob(bundle: Bundle, prompt: list[int], identifier: int, scoring: str) -> float:
    """log P(d' | q) of one identifier, by its index."""
    model = bundle.model.double()
    everything = [bundle.identifiers[i].tolist() for i in range(len(bundle.identifiers))]
    target, total = everything[identifier], 0.0
    for depth, token in enumerate(target):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + target[:depth]])).logits[0, -1]
        if scoring == "trie":
            siblings = {other[depth] for other in everything if other[:depth] == target[:depth]}
            allowed = sorted(siblings)
            total += logits[allowed].log_softmax(0)[allowed.index(token)].item()
        else:
            total += logits.log_softmax(0)[token].item()
    model.float()
    return total
