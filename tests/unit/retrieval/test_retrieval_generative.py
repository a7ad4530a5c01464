"""The generative retriever against the likelihood of every identifier by itself."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genret.config import RetrievalConfig
from genret.errors import InputError
from genret.retrieval.generative import GenerativeRetriever
from genret.training.bundle import Bundle
from genret.training.encoding import encode_prompts
from genret.types import Retriever, ScoredPassage

QUERIES = ["glacier and sea", "", "bake bread", "the night train is late in winter", "?!", "naïve 東京 ﬁne"]
KINDS = [("semantic", "trie"), ("semantic", "vocabulary"), ("atomic", "trie"), ("atomic", "vocabulary")]
SEARCHES = [{"search": "beam", "beam": 10}, {"search": "exact", "beam": 3}]


def likelihoods(bundle: Bundle, query: str) -> dict[str, float]:
    """log P(identifier | query) of every passage, by a plain forward pass each."""
    (prompt,) = encode_prompts([query], bundle.tokenizer, bundle.settings.suffix, bundle.settings.max_tokens)
    sequences = [bundle.identifiers[number].tolist() for number in range(len(bundle.identifiers))]
    found = {}
    for passage_id, sequence in zip(bundle.passages.column("passage_id").to_pylist(), sequences, strict=True):
        with torch.no_grad():
            logits = bundle.model(torch.tensor([prompt + sequence])).logits[0, len(prompt) - 1 : -1]
        total = 0.0
        for depth, token in enumerate(sequence):
            allowed = sorted({other[depth] for other in sequences if other[:depth] == sequence[:depth]})
            if bundle.settings.scoring == "vocabulary":
                allowed = list(range(logits.shape[1]))
            total += logits[depth, allowed].log_softmax(0)[allowed.index(token)].item()
        found[passage_id] = total
    return found


@pytest.fixture
def random_bundle(make_bundle):
    """A bundle with weights that rank in no obvious way."""

    def make(identifier_type: str, scoring: str) -> Bundle:
        bundle = make_bundle(identifier_type, scoring, "random")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in bundle.model.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        return bundle

    return make


def check(ranking: list[ScoredPassage], expected: dict[str, float], k: int) -> None:
    best = sorted(expected, key=expected.__getitem__, reverse=True)[:k]
    assert [place.passage_id for place in ranking] == best
    np.testing.assert_allclose([place.score for place in ranking], [expected[name] for name in best], atol=2e-4)


@pytest.mark.parametrize(("identifier_type", "scoring"), KINDS)
@pytest.mark.parametrize("search", SEARCHES, ids=["beam", "exact"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_ranking_is_that_of_the_likelihood(random_bundle, identifier_type, scoring, search, batch_size) -> None:
    bundle = random_bundle(identifier_type, scoring)
    retriever = GenerativeRetriever(bundle, RetrievalConfig(batch_size=batch_size, **search))
    for query, ranking in zip(QUERIES, retriever.retrieve(QUERIES, 4), strict=True):
        check(ranking, likelihoods(bundle, query), 4)


@pytest.mark.parametrize(("identifier_type", "scoring"), KINDS)
@pytest.mark.parametrize("search", SEARCHES, ids=["beam", "exact"])
def test_k_above_the_corpus_gives_the_whole_corpus(random_bundle, identifier_type, scoring, search) -> None:
    bundle = random_bundle(identifier_type, scoring)
    retriever = GenerativeRetriever(bundle, RetrievalConfig(**search))
    (ranking,) = retriever.retrieve(["snow"], 1000)
    expected = likelihoods(bundle, "snow")
    check(ranking, expected, 1000)
    assert len(ranking) == 7
    if scoring == "trie":
        assert sum(np.exp(place.score) for place in ranking) == pytest.approx(1.0, abs=1e-5)


def test_k_above_the_beam_widens_it(random_bundle) -> None:
    bundle = random_bundle("semantic", "trie")
    (ranking,) = GenerativeRetriever(bundle, RetrievalConfig(beam=1)).retrieve(["snow"], 7)
    check(ranking, likelihoods(bundle, "snow"), 7)


def test_it_is_a_retriever_with_a_name(make_bundle) -> None:
    retriever = GenerativeRetriever(make_bundle(), RetrievalConfig(), "sft")
    assert isinstance(retriever, Retriever)
    assert retriever.name == "sft"
    assert retriever.retrieve([], 3) == []


@pytest.mark.parametrize(
    "text", ["snow " * 50_000, "x" * 100_000, "half \ud800 of a pair", "\x00\x1b[31m", "<sep><eos><pad>"]
)
def test_any_query_is_answered(make_bundle, text: str) -> None:
    retriever = GenerativeRetriever(make_bundle("semantic"), RetrievalConfig())
    (ranking,) = retriever.retrieve([text], 3)
    assert len(ranking) == 3


def test_what_is_saved_ranks_as_before(make_bundle, tmp_path: Path) -> None:
    bundle = make_bundle("atomic")
    bundle.save(tmp_path)
    loaded = GenerativeRetriever.load(tmp_path, RetrievalConfig(), "rpo")
    assert loaded.name == "rpo"
    expected = GenerativeRetriever(bundle, RetrievalConfig()).retrieve(QUERIES, 5)
    for ranking, before in zip(loaded.retrieve(QUERIES, 5), expected, strict=True):
        assert [place.passage_id for place in ranking] == [place.passage_id for place in before]
        np.testing.assert_allclose([place.score for place in ranking], [place.score for place in before], atol=1e-2)


def test_a_bundle_without_weights_is_refused(make_bundle) -> None:
    bundle = make_bundle()
    bundle.model = None
    with pytest.raises(InputError, match="retriever sft: this bundle has no weights; expected a trained model"):
        GenerativeRetriever(bundle, RetrievalConfig(), "sft")
