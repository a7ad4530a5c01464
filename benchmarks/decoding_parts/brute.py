"""Brute force: every identifier read behind every prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from decoding_parts.baselines import Floats, Found, PrefixArrays, Scoring
from decoding_parts.data import PAD, Identifiers, Ints, matrix

# Identifiers that are read in one pass.
CHUNK = 500
# States whose logits are made at a time: few enough to stay in the cache.
SLAB = 256


class BruteForce:
    """The score of every identifier, by reading every identifier behind the prompt.

    The model reads the prompt once, and then all identifiers in chunks behind copies of its cache. The output layer is
    applied once to each distinct prefix.
    """

    def __init__(self, model: Any, identifiers: Identifiers) -> None:
        """Take a model, best one in double precision."""
        self.model, self.prefixes, self.count = model, PrefixArrays.build(identifiers), len(identifiers)
        # Each inner state is read in the row of one identifier, at the place of its own last token.
        state_of = self._states(identifiers)
        _, first = np.unique(state_of, return_index=True)
        self.chunks = []
        padded, lengths = matrix(identifiers)
        for at in range(0, len(identifiers), CHUNK):
            longest = int(lengths[at : at + CHUNK].max()) - 1
            here = first[(first // padded.shape[1] >= at) & (first // padded.shape[1] < at + CHUNK)]
            row, column = here // padded.shape[1] - at, here % padded.shape[1]
            state = state_of.ravel()[here]
            inner = (state > 0) & (self.prefixes.identifier[state] < 0)
            ids = torch.from_numpy(padded[at : at + CHUNK, :longest].clip(min=PAD)).to(model.device)
            self.chunks.append((ids, state[inner], row[inner], column[inner]))

    def _states(self, identifiers: Identifiers) -> Ints:
        """`[n, longest]`, the state of each prefix of each identifier; 0 beyond its end."""
        padded, lengths = matrix(identifiers)
        states = np.zeros(padded.shape, dtype=np.int64)
        leaf = np.flatnonzero(self.prefixes.identifier >= 0)
        current = np.zeros(len(padded), dtype=np.int64)
        current[self.prefixes.identifier[leaf]] = leaf
        for column in range(padded.shape[1] - 1, -1, -1):
            inside = column < lengths
            states[inside, column] = current[inside]
            current = np.where(inside, self.prefixes.parent[current], current)
        return states

    def scores(self, prompt: Sequence[int]) -> dict[Scoring, Floats]:
        """Of all identifiers, `[n]`, under both scorings."""
        return {scoring: self.of_identifiers(sums) for scoring, sums in self.prefix_scores(prompt).items()}

    def of_identifiers(self, sums: Floats) -> Floats:
        """`[n]`, from what all prefixes score, `[states]`."""
        leaf = np.flatnonzero(self.prefixes.identifier >= 0)
        scores = np.empty(self.count)
        scores[self.prefixes.identifier[leaf]] = sums[leaf]
        return scores

    def necessary(self, sums: Floats, allowed: npt.NDArray[np.bool_], threshold: float) -> int:
        """Choices behind the first one that no exact search can leave out.

        They lead to an allowed identifier, and score more than the worst result: one of theirs may be better, for all
        that is known before the model has read them.

        Args:
            sums: `[states]`, what all prefixes score.
            allowed: `[n]`.
            threshold: The score of the worst result.
        """
        inside = self.prefixes.identifier >= 0
        inside[inside] = allowed[self.prefixes.identifier[inside]]
        parent, levels = self.prefixes.parent, self.prefixes.levels
        for first, stop in zip(levels[-2:0:-1], levels[:1:-1], strict=True):
            np.logical_or.at(inside, parent[first:stop], inside[first:stop])
        choices = np.flatnonzero(inside & (self.prefixes.fan_out > 1) & (sums > threshold))
        return int(np.count_nonzero(choices != np.argmax(self.prefixes.fan_out > 1)))

    @torch.inference_mode()
    def prefix_scores(self, prompt: Sequence[int]) -> dict[Scoring, Floats]:
        """Of all prefixes, `[states]`, under both scorings."""
        decoder = self.model.get_decoder()
        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([list(prompt)], device=self.model.device)
        last = decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0, -1:]
        logit = np.empty(len(self.prefixes.token))
        total = np.empty(len(self.prefixes.indptr) - 1)
        self._read_off(last, np.zeros(1, dtype=np.int64), logit, total)
        for tokens, state, row, column in self.chunks:
            hidden = decoder(input_ids=tokens, past_key_values=_copies(cache, len(tokens)), use_cache=True)[0]
            self._read_off(hidden[torch.from_numpy(row), torch.from_numpy(column)], state, logit, total)
        parent = self.prefixes.parent[1:]
        inner = np.flatnonzero(self.prefixes.fan_out)
        siblings = np.logaddexp.reduceat(logit, self.prefixes.indptr[inner])
        among = np.zeros_like(total)
        among[inner] = siblings
        return {"vocabulary": self._summed(logit - total[parent]), "trie": self._summed(logit - among[parent])}

    def _read_off(self, hidden: torch.Tensor, state: Ints, logit: Floats, total: Floats) -> None:
        """Fill in the logits of the edges of some states, and the logarithm of the sum of exponentials of all."""
        for at in range(0, len(state), SLAB):
            here = state[at : at + SLAB]
            logits = self.model.lm_head(hidden[at : at + SLAB]).double()
            total[here] = logits.logsumexp(-1).cpu().numpy()
            fan_out = self.prefixes.fan_out[here]
            before = np.cumsum(fan_out) - fan_out
            edge = np.repeat(self.prefixes.indptr[here] - before, fan_out) + np.arange(fan_out.sum())
            row = torch.from_numpy(np.repeat(np.arange(len(here)), fan_out))
            logit[edge] = logits[row, torch.from_numpy(self.prefixes.token[edge])].cpu().numpy()

    def _summed(self, logprob: Floats) -> Floats:
        """`[states]`, sums along the path to each prefix, of `[edges]`."""
        sums = np.zeros(len(self.prefixes.parent))
        for first, stop in zip(self.prefixes.levels[1:-1], self.prefixes.levels[2:], strict=True):
            sums[first:stop] = sums[self.prefixes.parent[first:stop]] + logprob[first - 1 : stop - 1]
        return sums


def _copies(cache: DynamicCache, count: int) -> DynamicCache:
    """A cache of one row as one of many."""
    return DynamicCache(
        [(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1)) for layer in cache.layers]
    )


def best(scores: Floats, k: int) -> Found:
    """The k best of all scores; -inf stands for an identifier that may not be returned."""
    order = np.argsort(-scores, kind="stable")[: min(k, int((scores > -np.inf).sum()))]
    return Found(order, scores[order])
