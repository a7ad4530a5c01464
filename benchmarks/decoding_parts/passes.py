"""A search's own forward passes once more, without the search: what is left of its time if all else were free."""

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch

from genret.decoding.scoring import CHUNK_STATES
from genret.decoding.search import TrieSearch


def passes_alone(search: TrieSearch, find: Callable[[], Any]) -> Callable[[], list[torch.Tensor]]:
    """Search once, and make a function that repeats what the model did.

    It has the same tokens, each of which sees the same, the same packed weights, and under vocabulary scoring the same
    products of the output layer with the states that were scored, with sums of exponentials where those products make
    them, but not the log-probabilities made of them; under trie scoring no output layer at all. It returns the
    states of each pass.

    Args:
        search: A search whose model's output layer is a linear one.
        find: Searches with it.
    """
    passes: list[tuple[Any, ...]] = []
    scored: list[torch.Tensor] = []
    forward, score = search.decoder.forward, search.scorer.score

    def passed(*arguments: Any) -> torch.Tensor:
        passes.append(arguments)
        return forward(*arguments)

    def taken(states: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        scored.append(states)
        return score(states, *arguments, **more)

    with mock.patch.object(search.decoder, "forward", passed), mock.patch.object(search.scorer, "score", taken):
        find()

    def repeat() -> list[torch.Tensor]:
        with search.decoder.evaluating():
            states, layers = [], None
            for arguments, asked in zip(passes, scored, strict=True):
                current = arguments[2]
                if current.layers is not layers:  # of the next batch
                    layers = current.layers
                    _empty(layers)
                _keep_rows(current)
                for group in current.groups:
                    group.repeated.clear()
                states.append(forward(*arguments))
                if search.scorer.over_vocabulary:
                    for some in asked.split(CHUNK_STATES):
                        slabs = search.decoder.slabs
                        reading = slabs[0].padded(some)
                        for slab in slabs:
                            # Sums of exponentials are made in the same go where products are our own.
                            if slab.summed(some) is None:
                                slab(reading)
        return states

    return repeat


def _empty(layers: Sequence[Any]) -> None:
    for layer in layers:
        layer.keys = layer.values = torch.empty(0)


def _keep_rows(current: Any) -> None:
    """As a search forgets the rows of queries that are done; which ones is all the same to the time."""
    for layer in current.layers:
        if len(layer.keys) > current.rows:
            layer.keep(torch.arange(current.rows, device=layer.keys.device))
