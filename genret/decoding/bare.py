"""The forward pass of decoders of Llama's shape, as a plain sequence of tensor operations.

A search makes many short passes, and a pass of a small model over a few tokens is mostly Python: calls of nested
modules, hooks, masks and caches that tree attention does without. Here the weights are the model's own, its modules
are not called, and the numbers are the same. Other decoders, and those with adapters, hooks or quantised weights, go
through their modules.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2Model

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""Layer, queries `[tokens, heads, head_dim]`, keys and values `[tokens, key_heads, head_dim]`, factor of the scores;
gives `[tokens, heads, head_dim]`."""

_LAYERS = {LlamaModel: LlamaDecoderLayer, MistralModel: MistralDecoderLayer, Qwen2Model: Qwen2DecoderLayer}


class BareDecoder:
    """A decoder's weights, and its forward pass."""

    def __init__(self, decoder: Any) -> None:
        """Take a decoder of which `is_bare` is true; its weights are not copied."""
        self._embedding = decoder.embed_tokens.weight
        self._rotary = decoder.rotary_emb
        self._layers = list(decoder.layers)
        self._norm = decoder.norm

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The last hidden states.

        Args:
            ids: int64 `[tokens]`.
            positions: int64 `[tokens]`, of each in its sequence.
            attend: Attention of a layer, to whatever each token may see.

        Returns:
            `[tokens, width]`.
        """
        states = nn.functional.embedding(ids, self._embedding)
        cosine, sine = (part[0, :, None] for part in self._rotary(states[None], positions[None]))
        for number, layer in enumerate(self._layers):
            states = states + _attention(
                layer.self_attn, number, _normed(layer.input_layernorm, states), cosine, sine, attend
            )
            states = states + _feed_forward(layer.mlp, _normed(layer.post_attention_layernorm, states))
        return _normed(self._norm, states)


def is_bare(decoder: Any) -> bool:
    """Whether a decoder computes what `BareDecoder` does: one of the classes of that shape, nothing added to it."""
    layer = _LAYERS.get(type(decoder))
    if layer is None or any(type(found) is not layer for found in decoder.layers):
        return False
    projections = [module for module in decoder.modules() if hasattr(module, "weight")]
    plain = all(type(module) in (nn.Linear, nn.Embedding) or _is_norm(module) for module in projections)
    return plain and not any(_is_watched(module) for module in decoder.modules())


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")


def _is_watched(module: nn.Module) -> bool:
    """Whether something wants to be called with the module, or in its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _normed(norm: Any, states: Tensor) -> Tensor:
    """RMSNorm in 32 bits whatever the model's type, as these models have it (arXiv 1910.07467, equation 4)."""
    normed = nn.functional.rms_norm(states.float(), states.shape[-1:], eps=norm.variance_epsilon)
    return norm.weight * normed.to(states.dtype)


def _attention(module: Any, number: int, states: Tensor, cosine: Tensor, sine: Tensor, attend: Attend) -> Tensor:
    queries, keys, values = (
        _projected(projection, states).unflatten(-1, (-1, module.head_dim))
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    mixed = attend(number, _rotated(queries, cosine, sine), _rotated(keys, cosine, sine), values, module.scaling)
    return _projected(module.o_proj, mixed.flatten(1))


def _rotated(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864, equation 34), the halves of a head as pairs."""
    left, right = states.chunk(2, dim=-1)
    return states * cosine + torch.cat((-right, left), dim=-1) * sine


def _feed_forward(module: Any, states: Tensor) -> Tensor:
    """The gated layer (arXiv 2002.05202, equation 6), with the model's own activation."""
    gate = module.act_fn(_projected(module.gate_proj, states))
    return _projected(module.down_proj, gate * _projected(module.up_proj, states))


def _projected(linear: Any, states: Tensor) -> Tensor:
    return nn.functional.linear(states, linear.weight, linear.bias)
