"""The forward pass of decoders of Llama's shape, as a plain sequence of tensor operations.

A search makes many short passes, and a pass of a small model over a few tokens is mostly Python: calls of nested
modules, hooks, masks and caches that tree attention does without. Here the weights are the model's own, or their copies
in another layout where that is faster (`packed`), with the factors of norms in them; its modules are not called, and
the numbers are the same but for rounding. Other decoders, and those with adapters, hooks or quantised weights, go
through their modules.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2Model

from genret.decoding.native import Turns
from genret.decoding.norm import Norm
from genret.decoding.packed import Projections, can_pack, keeps_parameters, padded
from genret.decoding.rotary import Rotation, Rotations, order_for, places, rotated

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""Layer, queries `[tokens, heads, head_dim]`, keys and values `[tokens, key_heads, head_dim]`, factor of the scores;
gives `[tokens, heads, head_dim]`."""

_LAYERS = {LlamaModel: LlamaDecoderLayer, MistralModel: MistralDecoderLayer, Qwen2Model: Qwen2DecoderLayer}


class BareDecoder:
    """A decoder's weights, and its forward pass.

    Attributes:
        head_dim: Features of a head of attention.
    """

    def __init__(self, decoder: Any) -> None:
        """Take a decoder of which `is_bare` is true; its weights are copied only where that makes them faster."""
        self._embedding = decoder.embed_tokens
        self._packed = can_pack([parameter for layer in decoder.layers for parameter in layer.parameters()])
        self._layers = [_Layer(layer, number, self._packed) for number, layer in enumerate(decoder.layers)]
        first, self.head_dim = self._layers[0], int(decoder.layers[0].self_attn.head_dim)
        self._rotations = Rotations(decoder.rotary_emb, first.order, first.turned)
        self._norm = Norm(decoder.norm)

    def follow(self) -> None:
        """Lay out anew what training has changed since the last time."""
        if self._packed:
            for layer in self._layers:
                layer.follow()

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """The last hidden states.

        Args:
            ids: int64 `[tokens]`.
            positions: int64 `[tokens]`, of each in its sequence.
            attend: Attention of a layer, to whatever each token may see.
            wanted: int64 `[w]`, of which tokens; None for all. The last feed-forward part leaves out the others.

        Returns:
            `[w, width]`, or `[tokens, width]`.
        """
        count = len(ids)
        if self._packed:
            # By tokens that attention does not get to see.
            ids, positions = padded(ids), padded(positions)
            attend = attend if len(ids) == count else _without_padding(attend, count)
        states = nn.functional.embedding(ids, self._embedding.weight)
        rotation = self._rotations.at(states, positions)
        for layer in self._layers[:-1]:
            states = layer.forward(states, rotation, attend)
        if wanted is not None:
            count = len(wanted)
            wanted = padded(wanted) if self._packed else wanted
        states = self._layers[-1].forward(states, rotation, attend, wanted)
        return self._norm.scaled(states)[:count]


def _without_padding(attend: Attend, count: int) -> Attend:
    def attend_to_tokens(number: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        return padded(attend(number, query[:count], key[:count], value[:count], scaling))

    return attend_to_tokens


class _Layer:
    """One layer: attention and the gated feed-forward layer.

    Attributes:
        order: In which the features of queries and keys stand.
        turned: How many of these there are.
    """

    def __init__(self, layer: Any, number: int, packed: bool) -> None:
        """Take a layer, and whether to lay weights out, with norms' factors in them."""
        self._number = number
        attention, feed_forward = layer.self_attn, layer.mlp
        self._head_dim, self._scaling = attention.head_dim, attention.scaling
        features = [linear.out_features for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self._heads = [size // attention.head_dim for size in features]
        self.order = order_for(packed, attention.head_dim)
        self.turned = features[0] + features[1]
        self._to_heads = Projections(
            [attention.q_proj, attention.k_proj, attention.v_proj],
            packed,
            norm=Norm(layer.input_layernorm),
            order=places(self.order, self._heads, attention.head_dim),
        )
        self._from_heads = Projections([attention.o_proj], packed)
        self._widen = Projections(
            [feed_forward.gate_proj, feed_forward.up_proj],
            packed,
            norm=Norm(layer.post_attention_layernorm),
            gate=feed_forward.act_fn,
        )
        self._narrow = Projections([feed_forward.down_proj], packed)

    def follow(self) -> None:
        """Lay out anew what has changed."""
        for projections in (self._to_heads, self._from_heads, self._widen, self._narrow):
            projections.follow()

    def forward(self, states: Tensor, rotation: Rotation, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """States after this layer, of all tokens or those `wanted`, from the states `[tokens, width]` before it."""
        mixed = self._attention(states, rotation, attend)
        if wanted is not None:
            mixed, states = mixed.index_select(0, wanted), states.index_select(0, wanted)
        return self._feed_forward(self._from_heads(mixed, added=states))

    def _attention(self, states: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        asking, keyed, _ = self._heads
        turns = rotation if isinstance(rotation, Turns) else None
        heads = self._to_heads(states, turns=turns).view(len(states), -1, self._head_dim)
        turned = rotated(heads[:, : asking + keyed], rotation)
        values = heads[:, asking + keyed :]
        mixed = attend(self._number, turned[:, :asking], turned[:, asking:], values, self._scaling)
        return mixed.flatten(1)

    def _feed_forward(self, states: Tensor) -> Tensor:
        """States, and the gated layer of them (arXiv 2002.05202, equation 6), with the model's own activation."""
        return self._narrow(self._widen.gated(states), added=states)


def is_bare(decoder: Any) -> bool:
    """Whether a decoder computes what `BareDecoder` does: one of the classes of that shape, nothing added to it."""
    layer = _LAYERS.get(type(decoder))
    if layer is None or any(type(found) is not layer for found in decoder.layers):
        return False
    projections = [module for module in decoder.modules() if hasattr(module, "weight")]
    plain = all(type(module) in (nn.Linear, nn.Embedding) or _is_norm(module) for module in projections)
    plain = plain and all(map(keeps_parameters, projections))
    return plain and not any(_is_watched(module) for module in decoder.modules())


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _is_watched(module: nn.Module) -> bool:
    """Whether something wants to be called with the module, or in its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
