"""Rotary position embedding (arXiv 2104.09864, equation 34), in the order of features that suits the products."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from genret.decoding.native import Turns, kernels

Order: TypeAlias = Literal["halves", "pairs", "panels"]
"""Where what is turned together stands: in the two halves of a head, as models have it; side by side, to be multiplied
as complex numbers; or where our own product turns it while it makes it."""

Rotation: TypeAlias = Turns | tuple[Tensor, ...]
"""In halves, what queries and keys are multiplied with, and with their halves exchanged, `[tokens, 1, head_dim]` each;
in pairs, what these are multiplied with as complex numbers, `[tokens, 1, head_dim / 2]`; in panels, what our own
product takes."""


def order_for(packed: bool, size: int) -> Order:
    """The order for heads of a size, whose weights are laid out or are not."""
    if not packed:
        return "halves"
    own = kernels()
    return "panels" if own is not None and own.fits(size) else "pairs"


def places(order: Order, heads: Sequence[int], size: int) -> Tensor | None:
    """Which of a model's features stands at each place: int64 `[features]`; None where all stay.

    Queries and keys multiply the same in any order that both have.

    Args:
        order: The order.
        heads: How many there are of queries, keys and values.
        size: Of a head.
    """
    if order == "halves":
        return None
    of_head = torch.arange(size).view(2, -1).T.flatten()
    if order == "panels":
        own = kernels()
        assert own is not None
        of_head = own.head_order(size)
    turned = heads[0] + heads[1]
    of_turned = (size * torch.arange(turned)[:, None] + of_head).flatten()
    return torch.cat((of_turned, torch.arange(turned * size, (turned + heads[2]) * size)))


class Rotations:
    """What turns tokens at their positions, made by the model's own module; on a CPU once for each, as a table."""

    def __init__(self, rotary: Any, order: Order, turned: int) -> None:
        """Take the module, the order of features, and how many features of queries and keys there are together."""
        self._rotary, self._order, self._turned = rotary, order, turned
        # These kinds turn all positions in another way once a sequence is long.
        self._fixed = "dynamic" not in rotary.rope_type and rotary.rope_type != "longrope"
        self._table: tuple[Tensor, ...] = ()

    def at(self, states: Tensor, positions: Tensor) -> Rotation:
        """What turns tokens at positions, int64 `[tokens]`, in the type and on the device of their states."""
        if not self._fixed or states.device.type != "cpu":
            table, place = self._made(states, positions), torch.arange(len(positions), device=positions.device)
        else:
            table, place = self._kept(states, int(positions.max()) + 1), positions
        if self._order == "panels":
            return Turns(table[0], place, self._turned)
        return table if place is not positions else tuple(part.index_select(0, positions) for part in table)

    def _kept(self, states: Tensor, end: int) -> tuple[Tensor, ...]:
        """What turns tokens at all positions before `end`, and perhaps more."""
        table = self._table
        if not table or len(table[0]) < end or table[0].real.dtype != states.dtype:
            table = self._table = self._made(states, torch.arange(2 * end))
        return table

    def _made(self, states: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        cosine, sine = (part[0] for part in self._rotary(states[None], positions[None]))
        left, right = sine.chunk(2, -1)
        if self._order == "panels":
            return (torch.cat((cosine.chunk(2, -1)[0], left), -1),)
        if self._order == "pairs":
            return (torch.complex(cosine.chunk(2, -1)[0], left)[:, None],)
        # The sine takes the sign of the half that it is for.
        return cosine[:, None], torch.cat((-left, right), -1)[:, None]


def rotated(states: Tensor, rotation: Rotation) -> Tensor:
    """Queries and keys `[tokens, heads, head_dim]`, turned; pairs are changed in place, panels are turned already."""
    if isinstance(rotation, Turns):
        return states
    if len(rotation) == 1:
        torch.view_as_complex(states.unflatten(-1, (-1, 2))).mul_(rotation[0])
        return states
    cosine, sine = rotation
    left, right = states.chunk(2, dim=-1)
    return torch.addcmul(states * cosine, torch.cat((right, left), dim=-1), sine)
