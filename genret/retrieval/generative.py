"""The generative retriever: a language model that writes identifiers under the trie's constraint."""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from genret.allocator import keep_freed_memory
from genret.config import RetrievalConfig
from genret.decoding.explain import token_log_probs
from genret.decoding.overlay import GrownTrie
from genret.decoding.results import SearchResult
from genret.decoding.scoring import LeafFilter
from genret.decoding.search import TrieSearch
from genret.errors import InputError
from genret.retrieval.base import BatchedRetriever
from genret.threads import settle_vector_math
from genret.training.bundle import Bundle
from genret.training.encoding import encode_identifiers, encode_prompts
from genret.training.machine import choose_device
from genret.types import ScoredPassage


class GenerativeRetriever(BatchedRetriever):
    """Ranks passages by P(identifier | query), with scores as log-probabilities.

    Attributes:
        passage_ids: The passage of each position of the trie; removed ones stay.
        identifiers: The identifier of each position as text.
    """

    def __init__(self, bundle: Bundle, config: RetrievalConfig, name: str = "generative") -> None:
        super().__init__(name, config.batch_size)
        if bundle.model is None:
            raise InputError(f"retriever {name}: this bundle has no weights; expected a trained model")
        self._bundle = bundle
        self._config = config
        self.passage_ids: list[str] = bundle.passages.column("passage_id").to_pylist()
        self.identifiers: list[str] = bundle.passages.column("identifier").to_pylist()
        self._search = TrieSearch(
            bundle.model,
            bundle.trie,
            "trie" if bundle.settings.scoring == "trie" else "vocabulary",
        )

    @classmethod
    def load(cls, folder: Path, config: RetrievalConfig, name: str = "generative") -> "GenerativeRetriever":
        """Open a trained bundle on the best device there is: 16 bits on a GPU, 32 on a CPU."""
        settle_vector_math()
        keep_freed_memory()
        device = choose_device()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        bundle = Bundle.load(folder, dtype=dtype)
        if bundle.model is not None:
            bundle.model.to(device)
        return cls(bundle, config, name)

    @property
    def atomic(self) -> bool:
        """Whether each identifier is a token of its own: a passage can only be added by training."""
        return self._bundle.settings.identifier_type == "atomic"

    def find(
        self,
        queries: Sequence[str],
        k: int,
        allowed: npt.NDArray[np.bool_] | LeafFilter | None = None,
        deadline_seconds: float | None = None,
    ) -> list[SearchResult]:
        """Search for one batch of queries.

        Args:
            queries: At least one; halves of surrogate pairs are no characters and must not be in them.
            k: How many identifiers a query.
            allowed: As `TrieSearch.search` has it; positions are those of `passage_ids`.
            deadline_seconds: As there.

        Returns:
            A result a query.
        """
        return self._search.search(
            self._prompts(queries),
            k=k,
            mode=self._config.search,
            beam=max(k, self._config.beam),
            max_expansions=self._config.max_expansions,
            allowed=allowed,
            deadline_seconds=deadline_seconds,
        )

    def filter_of(self, mask: npt.NDArray[np.bool_]) -> LeafFilter:
        """A mask over positions, counted for `find`."""
        return LeafFilter(self._search.trie, mask)

    def explain(self, query: str, positions: Sequence[int]) -> list[list[tuple[str, float]]]:
        """The tokens of some identifiers and their log-probabilities after a query; see `token_log_probs`."""
        prompt = self._prompts([query])[0]
        return [
            list(zip(self._token_texts(position), log_probs.tolist(), strict=True))
            for position, log_probs in zip(positions, token_log_probs(self._search, prompt, positions), strict=True)
        ]

    def changed(self, added: Mapping[str, str], removed: Collection[str]) -> "GenerativeRetriever":
        """The same model over other passages.

        Args:
            added: Identifier by id of passages that this retriever lacks. Ignored by an `atomic` one.
            removed: Ids of passages that it shall not find any more; those that it lacks are ignored. One that is
                added too is replaced.

        Returns:
            Another retriever; this one stays as it is.

        Raises:
            InputError: An identifier is the same as another, or begins as one, for this model's tokenizer.
        """
        other = copy(self)
        trie = self._search.trie
        grown = trie if isinstance(trie, GrownTrie) else GrownTrie.grow(self._bundle.trie)
        gone = frozenset(removed)
        places = [place for place, passage_id in enumerate(self.passage_ids) if passage_id in gone] if gone else []
        grown = grown.with_removed(np.array(places, dtype=np.int64))
        if added and not self.atomic:
            tokens = encode_identifiers(list(added.values()), "semantic", self._bundle.tokenizer, 0)
            grown = grown.with_added(tokens.tokens, tokens.offsets)
            other.passage_ids = [*self.passage_ids, *added]
            other.identifiers = [*self.identifiers, *added.values()]
        other._search = self._search.over(grown)
        return other

    def _prompts(self, queries: Sequence[str]) -> list[list[int]]:
        settings = self._bundle.settings
        return encode_prompts(queries, self._bundle.tokenizer, settings.suffix, settings.max_tokens)

    def _token_texts(self, position: int) -> list[str]:
        if self.atomic:
            return [self.identifiers[position]]
        tokens = self._search.trie.identifier(position).tolist()
        # Some tokenizers write a space as U+2581.
        return [self._bundle.tokenizer.decode([token]).replace("\u2581", " ") for token in tokens]

    def _retrieve_batch(self, queries: Sequence[str], k: int) -> list[list[ScoredPassage]]:
        return [
            [
                ScoredPassage(self.passage_ids[index], score)
                for index, score in zip(result.indices.tolist(), result.scores.tolist(), strict=True)
            ]
            for result in self.find(queries, k)
        ]
