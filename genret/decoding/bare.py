"""The forward pass of decoders of Llama's shape, as a plain sequence of tensor operations.

A search makes many short passes, and a pass of a small model over a few tokens is mostly Python: calls of nested
modules, hooks, masks and caches that tree attention does without. Here the weights are the model's own, or their copies
in another layout where that is faster (`packed`), with the factors of norms in them; its modules are not called, and
the numbers are the same but for rounding. Other decoders, and those with adapters, hooks or quantised weights, go
through their modules.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2Model

from genret.decoding.norm import Norm
from genret.decoding.packed import Projections, can_pack, keeps_parameters, padded

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""Layer, queries `[tokens, heads, head_dim]`, keys and values `[tokens, key_heads, head_dim]`, factor of the scores;
gives `[tokens, heads, head_dim]`."""

Rotation: TypeAlias = tuple[Tensor, ...]
"""What queries and keys are multiplied with, and with their halves exchanged, `[tokens, 1, head_dim]` each; or, where
pairs stand side by side, what these are multiplied with as complex numbers, `[tokens, 1, head_dim / 2]`."""

_LAYERS = {LlamaModel: LlamaDecoderLayer, MistralModel: MistralDecoderLayer, Qwen2Model: Qwen2DecoderLayer}


class BareDecoder:
    """A decoder's weights, and its forward pass."""

    def __init__(self, decoder: Any) -> None:
        """Take a decoder of which `is_bare` is true; its weights are copied only where that makes them faster."""
        self._embedding = decoder.embed_tokens
        modules = [module for layer in decoder.layers for module in layer.modules()]
        self._packed = can_pack([module.weight for module in modules if type(module) is nn.Linear])
        self._rotations = _Rotations(decoder.rotary_emb, self._packed)
        self._layers = [_Layer(layer, number, self._packed) for number, layer in enumerate(decoder.layers)]
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


class _Rotations:
    """Rotary embeddings, made by the model's own module; on a CPU once for each position, as a table."""

    def __init__(self, rotary: Any, paired: bool) -> None:
        """Take the module, and whether pairs stand side by side."""
        self._rotary, self._paired = rotary, paired
        # These kinds turn all positions in another way once a sequence is long.
        self._fixed = "dynamic" not in rotary.rope_type and rotary.rope_type != "longrope"
        self._table: Rotation = ()

    def at(self, states: Tensor, positions: Tensor) -> Rotation:
        """Those of tokens at positions, in the type and on the device of their states."""
        if not self._fixed or states.device.type != "cpu":
            return self._made(states, positions)
        end, table = int(positions.max()) + 1, self._table
        if not table or len(table[0]) < end or table[0].real.dtype != states.dtype:
            table = self._table = self._made(states, torch.arange(2 * end))
        return tuple(part.index_select(0, positions) for part in table)

    def _made(self, states: Tensor, positions: Tensor) -> Rotation:
        cosine, sine = (part[0, :, None] for part in self._rotary(states[None], positions[None]))
        left, right = sine.chunk(2, -1)
        if self._paired:
            return (torch.complex(cosine.chunk(2, -1)[0], left),)
        # The sine takes the sign of the half that it is for.
        return cosine, torch.cat((-left, right), -1)


class _Layer:
    """One layer: attention and the gated feed-forward layer."""

    def __init__(self, layer: Any, number: int, packed: bool) -> None:
        """Take a layer, and whether to lay weights out, with norms' factors in them and rotated pairs side by side."""
        self._number = number
        attention, feed_forward = layer.self_attn, layer.mlp
        self._head_dim, self._scaling = attention.head_dim, attention.scaling
        features = [linear.out_features for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self._heads = [size // attention.head_dim for size in features]
        self._to_heads = Projections(
            [attention.q_proj, attention.k_proj, attention.v_proj],
            packed,
            norm=Norm(layer.input_layernorm),
            order=_paired(self._heads, attention.head_dim) if packed else None,
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
        heads = self._to_heads(states).view(len(states), -1, self._head_dim)
        turned = _rotated(heads[:, : asking + keyed], rotation)
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


def _paired(heads: Sequence[int], size: int) -> Tensor:
    """The order that puts what is rotated together side by side, in queries and keys, which multiply the same then.

    Args:
        heads: How many there are of queries, keys and values.
        size: Of a head.
    """
    turned = (heads[0] + heads[1]) * size
    pairs = torch.arange(turned).view(-1, 2, size // 2).transpose(1, 2).flatten()
    return torch.cat((pairs, torch.arange(turned, turned + heads[2] * size)))


def _rotated(states: Tensor, rotation: Rotation) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864, equation 34) of `[tokens, heads, head_dim]`.

    The halves of a head are pairs; or those side by side, which are changed in place.
    """
    if len(rotation) == 1:
        torch.view_as_complex(states.unflatten(-1, (-1, 2))).mul_(rotation[0])
        return states
    cosine, sine = rotation
    left, right = states.chunk(2, dim=-1)
    return torch.addcmul(states * cosine, torch.cat((right, left), dim=-1), sine)
