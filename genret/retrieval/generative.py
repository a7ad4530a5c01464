"""The generative retriever: a language model that writes identifiers under the trie's constraint."""

from collections.abc import Sequence
from pathlib import Path

import torch

from genret.config import RetrievalConfig
from genret.decoding.search import TrieSearch
from genret.errors import InputError
from genret.retrieval.base import BatchedRetriever
from genret.training.bundle import Bundle
from genret.training.encoding import encode_prompts
from genret.training.machine import choose_device
from genret.types import ScoredPassage


class GenerativeRetriever(BatchedRetriever):
    """Ranks passages by P(identifier | query), with scores as log-probabilities."""

    def __init__(self, bundle: Bundle, config: RetrievalConfig, name: str = "generative") -> None:
        super().__init__(name, config.batch_size)
        if bundle.model is None:
            raise InputError(f"retriever {name}: this bundle has no weights; expected a trained model")
        self._bundle = bundle
        self._config = config
        self._passage_ids: list[str] = bundle.passages.column("passage_id").to_pylist()
        self._search = TrieSearch(
            bundle.model,
            bundle.trie,
            "trie" if bundle.settings.scoring == "trie" else "vocabulary",
        )

    @classmethod
    def load(cls, folder: Path, config: RetrievalConfig, name: str = "generative") -> "GenerativeRetriever":
        """Open a trained bundle on the best device there is: 16 bits on a GPU, 32 on a CPU."""
        device = choose_device()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        bundle = Bundle.load(folder, dtype=dtype)
        if bundle.model is not None:
            bundle.model.to(device)
        return cls(bundle, config, name)

    def _retrieve_batch(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        settings = self._bundle.settings
        prompts = encode_prompts(queries, self._bundle.tokenizer, settings.suffix, settings.max_tokens)
        results = self._search.search(
            prompts,
            k=k,
            mode=self._config.search,
            beam=max(k, self._config.beam),
            max_expansions=self._config.max_expansions,
        )
        return [
            [
                ScoredPassage(self._passage_ids[index], score)
                for index, score in zip(result.indices.tolist(), result.scores.tolist(), strict=True)
            ]
            for result in results
        ]
