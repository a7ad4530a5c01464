"""Why an identifier has its score: the log-probability of each of its tokens."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from genret.decoding.scoring import Floats, Ints
from genret.decoding.search import TrieSearch
from genret.decoding.trie import Paths


def token_log_probs(search: TrieSearch, prompt: Sequence[int], positions: npt.ArrayLike) -> list[Floats]:
    """The log-probability of each token of some identifiers, as the search adds them up.

    All identifiers are read in one pass after the prompt.

    Args:
        search: The model and the identifiers.
        prompt: Token ids, at least one.
        positions: Positions of identifiers in the input of the trie, such as those of a `SearchResult`.

    Returns:
        float64 `[tokens of the identifier]`, one array a position. Their sum is the identifier's score; with trie
        scoring a token without an alternative has 0.
    """
    identifiers = [np.asarray(search.trie.identifier(int(position)), np.int64) for position in np.asarray(positions)]
    if not identifiers:
        return []
    decoder, nothing = search.decoder, np.empty(0, np.int64)
    read = np.array([len(identifier) - 1 for identifier in identifiers])
    with search.ready():
        session, first = decoder.begin([prompt], nothing)
        after_prompt = first[0].expand(len(identifiers), -1)
        inner = after_prompt[:0]
        going = np.flatnonzero(read)
        if len(going):
            inner = session.append(
                np.zeros(len(going), np.int64),
                np.zeros(len(going), np.int64),
                read[going],
                np.concatenate([identifiers[number][:-1] for number in going]),
                np.full((len(going), search.trie.max_length), -1, dtype=np.int32),
            )
        found = []
        start = 0
        for number, identifier in enumerate(identifiers):
            states = torch.cat([after_prompt[number : number + 1], inner[start : start + read[number]]])
            start += int(read[number])
            found.append(_scored(search, states, identifier))
    return found


def _scored(search: TrieSearch, states: torch.Tensor, identifier: Ints) -> Floats:
    """Log-probabilities of the tokens of one identifier from the states before each."""
    nothing = np.full(len(identifier), -1)
    if search.scorer.over_vocabulary:
        return search.scorer.score(states, identifier, nothing, None, None).target
    node, child = _choices(search.trie, identifier)
    scores = search.scorer.score(states, nothing, node, None, None)
    chosen = scores.child == child[scores.owner]
    log_probs = np.where(node >= 0, -np.inf, 0.0)
    log_probs[scores.owner[chosen]] = scores.logprob[chosen]
    return log_probs


def _choices(trie: Paths, identifier: Ints) -> tuple[Ints, Ints]:
    """The node at which each token of an identifier is chosen and the child that it is; -1 where there is no choice."""
    node, child = np.full((2, len(identifier)), -1)
    at = trie.root
    while at >= 0:
        place = int(trie.depths(np.array([at]))[0])
        tokens, targets = trie.children(at)
        number = int(np.searchsorted(tokens, identifier[place]))
        node[place], child[place] = at, int(trie.child_span(np.array([at]))[0][0]) + number
        at = int(targets[number])
    return node, child
