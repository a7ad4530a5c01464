"""How products with weights are made: tests run in each way that this machine has."""

import os
from collections.abc import Iterator

import pytest
import torch

from genret.decoding import packed
from genret.decoding.native import kernels

# By our own kernels, by oneDNN, or with weights as the model has them.
OWN, ONE_DNN, PLAIN = "own", "oneDNN", "plain"
HAVE = {OWN: kernels() is not None, ONE_DNN: packed._has_one_dnn(), PLAIN: True}


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Only this way of making products is there."""
    chosen: str = request.param
    if not HAVE[chosen]:
        reason = f"no {chosen} products on this machine"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    if chosen != OWN:
        monkeypatch.setenv("CXX", "")
        kernels.cache_clear()
    if chosen == PLAIN:
        monkeypatch.setattr(packed, "_has_one_dnn", lambda: False)
    assert packed.can_pack([torch.zeros(2, 2)]) == (chosen != PLAIN)
    yield chosen
    if chosen != OWN:
        monkeypatch.undo()
        kernels.cache_clear()


packed_ways = pytest.mark.parametrize("way", [OWN, ONE_DNN], indirect=True)
all_ways = pytest.mark.parametrize("way", [OWN, ONE_DNN, PLAIN], indirect=True)
