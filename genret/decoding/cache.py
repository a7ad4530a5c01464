"""The key-value cache of a batch, a row a query, and the attention of a pass to it.

Of a row every token sees its own part, so that hypotheses of a query stand side by side in its row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from genret.decoding.native import Tree, kernels


class LayerCache:
    """Keys and values of one layer, `[rows, room, heads, head_dim]`: appending writes in place."""

    def __init__(self) -> None:
        self.keys = self.values = torch.empty(0)

    def make_room(self, states: tuple[torch.Tensor, torch.Tensor], rows: int, room: int) -> None:
        """Have room for states `[tokens, heads, head_dim]` in so many rows and columns."""
        if self.keys.numel() == 0:
            # Not uninitialised memory: a weight of 0 times NaN is NaN.
            self.keys, self.values = (state.new_zeros(rows, room, *state.shape[1:]) for state in states)
        elif self.keys.shape[1] < room:
            self.keys, self.values = (_widened(buffer, room) for buffer in (self.keys, self.values))

    def write(self, states: tuple[torch.Tensor, torch.Tensor], slots: torch.Tensor) -> None:
        """Put states `[tokens, heads, head_dim]` into slots, row * room + column."""
        for buffer, state in zip((self.keys, self.values), states, strict=True):
            buffer.flatten(0, 1).index_copy_(0, slots, state)

    def keep(self, rows: torch.Tensor) -> None:
        """Forget all other rows."""
        self.keys, self.values = self.keys[rows], self.values[rows]


def _widened(buffer: torch.Tensor, room: int) -> torch.Tensor:
    wider = buffer.new_zeros(buffer.shape[0], room, *buffer.shape[2:])
    wider[:, : buffer.shape[1]] = buffer
    return wider


@dataclass(frozen=True)
class RowGroup:
    """Rows of the cache with about as many tokens in a pass, which attend together.

    Attributes:
        rows: int64 `[r]`, which; None for all.
        tokens: int64 `[t]`, theirs among the pass's; None for all.
        count: How many rows.
        width: The most tokens of a row in this pass.
        columns: How many columns of the cache they look at.
        slots: int64 `[r * columns]`, row * room + column of each of these; None for the first ones of each row.
        places: int64 `[t]`, row * width + place of each token in its row; None where no row has fewer than `width`.
        masks: By window, `[r, 1, width, columns]` in the model's type, what is added to attention scores; None for
            causal attention in rows of `width` columns.
        repeated: Masks for so many heads that share keys, kept from layer to layer.
    """

    rows: torch.Tensor | None
    tokens: torch.Tensor | None
    count: int
    width: int
    columns: int
    slots: torch.Tensor | None
    places: torch.Tensor | None
    masks: Mapping[int | None, torch.Tensor | None]
    repeated: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)

    def attend(
        self, query: torch.Tensor, layer: LayerCache, window: int | None, scaling: float | None, softcap: float | None
    ) -> torch.Tensor:
        """What the group's tokens make of a layer's cache, `[t, heads, head_dim]`; arguments as of `Pass.attend`."""
        keys, values = (self._seen(buffer).transpose(1, 2) for buffer in (layer.keys, layer.values))
        asking = self._by_row(query if self.tokens is None else query.index_select(0, self.tokens)).transpose(1, 2)
        shared = asking.shape[1] // keys.shape[1]
        if self.masks[window] is None and softcap is None:
            flat = (
                nn.functional.scaled_dot_product_attention(
                    asking, keys, values, is_causal=True, scale=scaling, enable_gqa=shared > 1
                )
                .transpose(1, 2)
                .flatten(0, 1)
            )
        else:
            flat = _masked_attention(asking, keys, values, self._mask(window, shared, keys), scaling, softcap)
        return flat if self.places is None else flat.index_select(0, self.places)

    def _seen(self, buffer: torch.Tensor) -> torch.Tensor:
        if self.slots is not None:
            return buffer.flatten(0, 1).index_select(0, self.slots).unflatten(0, (self.count, self.columns))
        seen = buffer[:, : self.columns]
        return seen if self.rows is None else seen.index_select(0, self.rows)

    def _by_row(self, states: torch.Tensor) -> torch.Tensor:
        """States `[t, ...]` as `[r, width, ...]`."""
        if self.places is None:
            return states.unflatten(0, (self.count, self.width))
        padded = states.new_zeros(self.count * self.width, *states.shape[1:])
        padded.index_copy_(0, self.places, states)
        return padded.unflatten(0, (self.count, self.width))

    def _mask(self, window: int | None, shared: int, keys: torch.Tensor) -> torch.Tensor:
        """What is added to attention scores with keys where heads that share them count as further queries."""
        if (window, shared) not in self.repeated:
            mask = self.masks[window]
            if mask is not None and shared == 1:
                return mask
            if mask is None:
                visible = torch.ones(self.width, self.columns, dtype=torch.bool, device=keys.device).tril()
                mask = torch.zeros_like(visible, dtype=keys.dtype).masked_fill_(~visible, -torch.inf)[None, None]
            # Half as long as torch's own `repeat`.
            self.repeated[window, shared] = mask.expand(-1, shared, -1, -1).flatten(1, 2)[:, None]
        return self.repeated[window, shared]


@dataclass(frozen=True)
class Pass:
    """Where the tokens of one pass stand.

    Attributes:
        layers: The caches of all layers.
        windows: How far back each layer looks, None for all the way.
        rows: Rows of the cache.
        room: Columns that it has room for.
        slots: int64 `[tokens]`, row * room + column of each token.
        groups: All rows that have tokens, and perhaps others; none where there is a tree.
        order: int64 `[tokens]`, where each token is among those of all groups; None where there is one group.
        tree: For our own attention: what the tokens see.
    """

    layers: Sequence[LayerCache]
    windows: Sequence[int | None]
    rows: int
    room: int
    slots: torch.Tensor
    groups: Sequence[RowGroup]
    order: torch.Tensor | None
    tree: Tree | None = None

    def attend(
        self,
        number: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """Put the keys and values of a layer into its cache, and attend to it.

        Args:
            number: Of the layer.
            query: `[tokens, heads, head_dim]`.
            key: `[tokens, key_heads, head_dim]`, `key_heads` a divisor of `heads`.
            value: As `key`.
            scaling: Factor of the scores; None for the usual one.
            softcap: Bound of the scores, if they have one.

        Returns:
            `[tokens, heads, head_dim]`.
        """
        layer = self.layers[number]
        layer.make_room((key, value), self.rows, self.room)
        if self.tree is not None:
            own = kernels()
            assert own is not None and scaling is not None and softcap is None
            cache = layer.keys, layer.values
            return own.attention((query, key, value), cache, self.tree, self.windows[number], scaling)
        layer.write((key, value), self.slots)
        parts = [group.attend(query, layer, self.windows[number], scaling, softcap) for group in self.groups]
        return parts[0] if self.order is None else torch.cat(parts).index_select(0, self.order)


def _masked_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attention under a mask; heads that share keys count as further queries.

    Args:
        query: `[rows, heads, width, head_dim]`.
        keys: `[rows, key_heads, columns, head_dim]`.
        values: As `keys`.
        mask: `[rows, 1, heads / key_heads * width, columns]`, what is added to scores.
        scaling: Factor of the scores; None for the usual one.
        softcap: Bound of the scores, if they have one.

    Returns:
        `[rows * width, heads, head_dim]`.
    """
    rows, heads, width, size = query.shape
    query = query.reshape(rows, keys.shape[1], heads // keys.shape[1] * width, size)
    if softcap is None:
        mixed = nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    else:
        scores = query @ keys.transpose(2, 3) * (size**-0.5 if scaling is None else scaling)
        scores = softcap * torch.tanh(scores / softcap) + mask
        mixed = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype) @ values
    # One copy: torch's attention keeps the heads of a query side by side.
    return mixed.unflatten(2, (-1, width)).permute(0, 3, 1, 2, 4).reshape(rows * width, heads, -1)
