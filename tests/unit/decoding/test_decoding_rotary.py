"""Rotary position embedding: what the model's own module does, in each order of features."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from ways import ONE_DNN, OWN, PLAIN, all_ways

from genret.decoding.native import Turns, kernels
from genret.decoding.rotary import Rotations, order_for, places, rotated

SIZE, HEADS = 32, (2, 1, 1)
ORDERS = {OWN: "panels", ONE_DNN: "pairs", PLAIN: "halves"}


def a_rotary(kind: str = "default") -> LlamaRotaryEmbedding:
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=16, rope_parameters=parameters)
    return LlamaRotaryEmbedding(config)


def turned(kind: str, way: str, rotations: Rotations, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of a layer with random weights, turned by us, and as the model does it."""
    torch.manual_seed(count)
    rows, states = torch.randn(sum(HEADS) * SIZE, 12), torch.randn(count, 12)
    positions = torch.randperm(count)
    plain = (states @ rows.T).unflatten(1, (-1, SIZE))[:, :3]
    cosine, sine = a_rotary(kind)(states[None], positions[None])
    expected = apply_rotary_pos_emb(plain.transpose(0, 1)[None], plain.transpose(0, 1)[None], cosine, sine)[0][0]
    order = places(order_for(way != PLAIN, SIZE), HEADS, SIZE)
    ordered = rows if order is None else rows[order]
    rotation = rotations.at(states, positions)
    own = kernels()
    if isinstance(rotation, Turns):
        assert own is not None
        products = own.product(states, own.laid_out(ordered), turns=rotation)
    else:
        products = states @ ordered.T
    # In the model's order once more.
    found = rotated(products.unflatten(1, (-1, SIZE))[:, :3].clone(), rotation).flatten(1)
    back = torch.arange(3 * SIZE) if order is None else order[: 3 * SIZE].argsort()
    return found[:, back].unflatten(1, (3, SIZE)), expected.transpose(0, 1)


@pytest.mark.parametrize("kind", ["default", "dynamic"])
@all_ways
def test_features_are_turned_as_the_model_does_it(way: str, kind: str) -> None:
    assert order_for(way != PLAIN, SIZE) == ORDERS[way]
    rotations = Rotations(a_rotary(kind), order_for(way != PLAIN, SIZE), 3 * SIZE)
    # Later ones need larger tables, and earlier ones find them there.
    for count in (3, 40, 7):
        found, expected = turned(kind, way, rotations, count)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", [OWN], indirect=True)
def test_heads_that_fill_no_panel_are_turned_in_pairs(way: str) -> None:
    assert order_for(True, 4) == "pairs" and order_for(False, SIZE) == "halves"


@all_ways
def test_values_stay_where_they_are(way: str) -> None:
    order = places(order_for(way != PLAIN, SIZE), HEADS, SIZE)
    if way == PLAIN:
        assert order is None
    else:
        assert order is not None and sorted(order.tolist()) == list(range(4 * SIZE))
        assert order[3 * SIZE :].tolist() == list(range(3 * SIZE, 4 * SIZE))
