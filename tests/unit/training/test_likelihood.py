"""The packed, gathered likelihood against one forward pass an example in float64."""

import pytest
import torch
from training_reference import reference_log_prob
from trl.trainer.utils import add_fused_lm_head

from genret.training import likelihood
from genret.training.batches import Collator, find_branchings, trie_children
from genret.training.encoding import encode_prompts
from genret.training.likelihood import TrieChildren, identifier_log_probs, trie_log_probs

PROMPTS = ["snow from the mountain", "", "bake", "where does the night train go in winter when it snows"]
CHOSEN = [0, 6, 3, 4]


@pytest.mark.parametrize("identifier_type", ["semantic", "atomic"])
@pytest.mark.parametrize("scoring", ["trie", "vocabulary"])
@pytest.mark.parametrize("dense_from", [2, 1000])
def test_equals_one_pass_an_example(make_bundle, monkeypatch, identifier_type, scoring, dense_from) -> None:
    monkeypatch.setattr(likelihood, "_DENSE_CHILDREN", dense_from)
    bundle = make_bundle(identifier_type, scoring, "random")
    torch.manual_seed(1)
    for weight in bundle.model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    prompts = encode_prompts(PROMPTS, bundle.tokenizer, bundle.settings.suffix, 64)
    expected = [
        reference_log_prob(bundle, prompt, index, scoring) for prompt, index in zip(prompts, CHOSEN, strict=True)
    ]
    collator = Collator(bundle.identifiers, find_branchings(bundle.trie, bundle.identifiers), scoring)
    add_fused_lm_head(bundle.model)
    children = trie_children(bundle.trie) if scoring == "trie" else None
    found = identifier_log_probs(bundle.model, collator.collate(prompts, CHOSEN), scoring, children)
    assert torch.allclose(found, torch.tensor(expected), atol=1e-4), (found, expected)


def test_gradient_reaches_only_the_children() -> None:
    states = torch.randn(2, 4, requires_grad=True)
    weight = torch.randn(6, 4, requires_grad=True)
    children = TrieChildren(torch.tensor([0, 2, 5]), torch.tensor([1, 3, 0, 2, 4]))
    loss = -trie_log_probs(states, torch.tensor([0, 1]), torch.tensor([1, 2]), weight, children).sum()
    loss.backward()
    manual = states.detach().requires_grad_()
    rows = weight.detach().requires_grad_()
    expected = -((manual[0] @ rows[[1, 3]].T).log_softmax(0)[1] + (manual[1] @ rows[[0, 2, 4]].T).log_softmax(0)[0])
    expected.backward()
    assert torch.allclose(loss, expected)
    assert torch.allclose(weight.grad, rows.grad)
    assert torch.allclose(states.grad, manual.grad)
    assert not weight.grad[5].any()
