"""How products with weights are made: tests run in each way that this machine has."""

import os

import pytest
import torch

from genret.decoding import packed
from genret.decoding.native import kernels

# By our own kernels, by oneDNN, or with weights as the model has them.
OWN, ONE_DNN, PLAIN = "own", "oneDNN", "plain"
HAVE = {OWN: kernels() is not None, ONE_DNN: packed._has_one_dnn(), PLAIN: True}


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Only this way of making products is there."""
    chosen: str = request.param
    if not HAVE[chosen]:
        reason = f"no {chosen} products on this machine"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    if chosen != OWN:
        monkeypatch.setattr(packed, "kernels", lambda: None)
    if chosen == PLAIN:
        monkeypatch.setattr(packed, "_has_one_dnn", lambda: False)
    assert packed.can_pack([torch.zeros(2, 2)]) == (chosen != PLAIN)
    return chosen


packed_ways = pytest.mark.parametrize("way", [OWN, ONE_DNN], indirect=True)
all_ways = pytest.mark.parametrize("way", [OWN, ONE_DNN, PLAIN], indirect=True)
