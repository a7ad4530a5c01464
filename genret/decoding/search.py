"""Search for the most probable identifiers of a trie: beam search, and best-first search that is exact.

The score of an identifier is its log-probability given the prompt, a sum over its tokens. "vocabulary"
scoring normalises each token over the whole vocabulary (the P(d|q) of arXiv 2502.17957, section 2.2); "trie"
scoring over the children of the trie's node only, so that a forced token scores 0.

Beam mode is token-synchronous, and equal to transformers' `generate` with `num_beams` set to the width,
`length_penalty=0.0` and a `prefix_allowed_tokens_fn` for the trie (with `renormalize_logits=True` for trie
scoring): hypotheses of the same number of tokens compete for the width, of the best 2 * width candidates
those that are complete and among the first `width` are results, and the first `width` others go on. What
differs is the work: passes happen only where one is needed to choose, a pass can read many forced tokens, the end of an
identifier that trie scoring forces is never read, nodes at which a filter leaves one child are passed like forced
tokens, hypotheses are read beyond a choice after which nearly all go on, before it is known which, and a query ends as
soon as its k results are better than every open hypothesis. Equal scores come in the order of the sorted identifiers;
which of them are found, where not all are, is not said.

Exact mode expands the best open hypotheses, several at once. Scores only fall along a path, so that when the k-th
result is at least as good as the best open hypothesis the results are the true top k.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from genret.decoding.attention import TreeDecoder
from genret.decoding.beam import beam_search
from genret.decoding.best_first import best_first
from genret.decoding.hypotheses import Batch
from genret.decoding.results import SearchResult
from genret.decoding.scoring import Ints, LeafFilter, Scorer, Scoring
from genret.decoding.trie import Paths
from genret.errors import InputError

Mode: TypeAlias = Literal["beam", "exact"]


class TrieSearch:
    """A model and a trie, ready for queries.

    It follows weights that training changes, but not modules that others take the place of, nor changes of which torch
    keeps no count: through `.data`, and of tensors that were made in inference mode.
    """

    def __init__(self, model: Any, trie: Paths, scoring: Scoring) -> None:
        """Check that the model and the trie fit each other.

        Args:
            model: A Hugging Face causal language model on one device, in any floating type.
            trie: The identifiers.
            scoring: "trie" or "vocabulary".

        Raises:
            InputError: The model cannot be used for tree attention, or lacks tokens of the trie.
        """
        self.decoder = TreeDecoder(model)
        self._look_at(trie, scoring)

    def over(self, trie: Paths) -> "TrieSearch":
        """The same model over other identifiers, such as those that an overlay has added to.

        Spares the check of the model. A search that is under way goes on over the identifiers that it began with.

        Raises:
            InputError: The model lacks tokens of the trie.
        """
        other = copy(self)
        other._look_at(trie, "vocabulary" if self.scorer.over_vocabulary else "trie")
        return other

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The model in evaluation mode, without gradients, and all that is laid out of its weights as they are now."""
        with self.decoder.evaluating():
            self.scorer.follow()
            yield

    def _look_at(self, trie: Paths, scoring: Scoring) -> None:
        self.trie = trie
        self.scorer = Scorer(self.decoder, trie, scoring)
        self._alive = None if trie.alive is None else LeafFilter(trie, trie.alive)

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        k: int,
        mode: Mode = "beam",
        beam: int = 10,
        allowed: npt.NDArray[np.bool_] | LeafFilter | None = None,
        max_expansions: int | None = None,
        deadline_seconds: float | None = None,
    ) -> list[SearchResult]:
        """Find the k most probable identifiers for each prompt, all prompts in one batch.

        Args:
            prompts: Token ids, at least one a prompt.
            k: How many identifiers a prompt.
            mode: "beam" or "exact".
            beam: Width of the beam, `k` if that is more; in exact mode, how many hypotheses of a query are
                expanded in the first pass; in each further one twice as many, as far as a pass has room for them, and
                after many expansions a share of these; but under `max_expansions` always as many.
            allowed: bool `[n]` by position of the identifier in the trie's input, such as `filters.leaf_mask` gives,
                or a `LeafFilter` made of it, which spares counting again: others are not returned. Scores are the
                same with and without.
            max_expansions: Exact mode: stop a query after so many expansions.
            deadline_seconds: Begin no pass later than this after the call (the prompts' own excepted):
                queries that are still open get what was found, which may be less than k, and `exact=False` unless it
                cannot be better.

        Returns:
            A result a prompt. Fewer than k identifiers where fewer are allowed or have any probability, or
            the search was stopped. A prompt's result does not depend on the other prompts, but for rounding, for the
            number of expansions, and over the vocabulary for how far a search comes under `max_expansions`: room to
            read ahead is shared.

        Raises:
            InputError: An argument out of range, or an empty or too long prompt; names it.
            FloatingPointError: The model's logits are not numbers.
        """
        deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds
        arrays = self._check(prompts, k, mode, beam, max_expansions)
        leaf_filter = self._alive if allowed is None else self._filter(allowed)
        k = min(k, len(self.trie) if leaf_filter is None else leaf_filter.count)
        if not arrays or k == 0:
            return [SearchResult(np.empty(0, np.int64), np.empty(0), True, 0) for _ in arrays]
        if len(self.trie) == 1 and not self.scorer.over_vocabulary:
            return [SearchResult(np.zeros(1, np.int64), np.zeros(1), True, 0) for _ in arrays]
        with self.ready():
            if mode == "beam":
                width = max(beam, k)
                # A step looks at 2 * width candidates, so that of one node no more children can matter. Those beyond
                # are worse than one that the step counts as lost, or than `width` results.
                return beam_search(Batch(self.scorer, arrays, leaf_filter, 2 * width, deadline), k, width)
            return best_first(Batch(self.scorer, arrays, leaf_filter, None, deadline), k, beam, max_expansions)

    def _filter(self, allowed: npt.NDArray[np.bool_] | LeafFilter) -> LeafFilter:
        if isinstance(allowed, LeafFilter):
            if allowed.trie is not self.trie:
                raise InputError("allowed: expected a filter made for this trie, found one for another")
            return allowed
        mask = np.asarray(allowed)
        if mask.shape != (len(self.trie),) or mask.dtype != np.bool_:
            raise InputError(
                f"allowed: expected {len(self.trie)} truth values, found {mask.dtype} of shape {mask.shape}"
            )
        return LeafFilter(self.trie, mask)

    def _check(
        self, prompts: Sequence[Sequence[int]], k: int, mode: str, beam: int, max_expansions: int | None
    ) -> list[Ints]:
        if mode not in ("beam", "exact"):
            raise InputError(f"mode: expected 'beam' or 'exact', found {mode!r}")
        for name, value in (("k", k), ("beam", beam)):
            if value < 1:
                raise InputError(f"{name}: expected at least 1, found {value}")
        if max_expansions is not None and max_expansions < 0:
            raise InputError(f"max_expansions: expected at least 0, found {max_expansions}")
        longest = self.decoder.longest
        arrays = []
        for number, prompt in enumerate(prompts):
            array = np.asarray(prompt)
            if array.ndim != 1 or not len(array):
                raise InputError(f"prompt {number}: expected at least one token, found shape {array.shape}")
            if not np.issubdtype(array.dtype, np.integer):
                raise InputError(f"prompt {number}: expected token ids, found {array.dtype}")
            if array.min() < 0 or array.max() >= self.decoder.vocabulary_size:
                raise InputError(
                    f"prompt {number}: expected tokens from 0 to {self.decoder.vocabulary_size - 1}, found "
                    f"{array.min()} to {array.max()}"
                )
            if longest is not None and len(array) + self.trie.max_length > longest:
                raise InputError(
                    f"prompt {number}: expected at most {longest} tokens with the longest identifier's "
                    f"{self.trie.max_length}, found {len(array)} in the prompt"
                )
            arrays.append(array.astype(np.int64))
        return arrays


def search(
    model: Any,
    trie: Paths,
    prompts: Sequence[Sequence[int]],
    *,
    k: int,
    mode: Mode = "beam",
    scoring: Scoring = "trie",
    beam: int = 10,
    allowed: npt.NDArray[np.bool_] | LeafFilter | None = None,
    max_expansions: int | None = None,
    deadline_seconds: float | None = None,
) -> list[SearchResult]:
    """One search; see `TrieSearch` and its `search`. For more than one batch, keep a `TrieSearch`."""
    return TrieSearch(model, trie, scoring).search(
        prompts,
        k=k,
        mode=mode,
        beam=beam,
        allowed=allowed,
        max_expansions=max_expansions,
        deadline_seconds=deadline_seconds,
    )
