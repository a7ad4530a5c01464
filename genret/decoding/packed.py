"""Matrices and linear layers with their weights laid out once for the CPU's matrix product.

A pass of a search multiplies a few dozen states with each weight matrix. Where weights stand as the model has them, a
product reads them in an order that does not suit it, or lays them out anew each time. Here they are laid out once, for
products of our own (`native`) or, where those cannot be compiled, for oneDNN's
(https://uxlfoundation.github.io/oneDNN/dev_guide_inference.html). Layers that read the same states become one product,
and the factors of a norm before them become part of the weights. The price is a copy of the weights.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from genret.decoding.limits import LARGEST_COPY
from genret.decoding.native import Turns, kernels
from genret.decoding.norm import Norm

# oneDNN compiles a product for each number of states, in about 0.5 ms and 0.3 MB. Numbers are rounded up to a multiple
# of this, and large ones further, by a sixteenth at most: up to 4,096 there are 127 of them for each shape of weights.
LEAST_STEP = 2
# Products of fewer states take as long, or longer.
LEAST_STATES = 4


def can_pack(weights: Sequence[Tensor]) -> bool:
    """Whether weights can be laid out, and a copy is not too large: single precision on a CPU.

    `LARGEST_COPY` bounds what is asked for in one call: a model's layers and its head, asked for apart, may each have a
    copy as large.
    """
    plain = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    return plain and sum(weight.nbytes for weight in weights) <= LARGEST_COPY and _has_products()


def _has_products() -> bool:
    """Whether there are our own products, or those that torch's compiler uses for frozen weights."""
    return kernels() is not None or _has_one_dnn()


def _has_one_dnn() -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return False
    return all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))


def gates(activation: Any) -> bool:
    """Whether products can have this activation of a gate among them: SiLU, in our own."""
    return type(activation) in (nn.SiLU, SiLUActivation) and kernels() is not None


def rounded_up(count: int) -> int:
    """The number of states that a product of `count` states is made for: our own are for any."""
    if kernels() is not None:
        return count
    step = max(LEAST_STEP, (1 << max(0, count - 1).bit_length()) >> 5)
    return max(LEAST_STATES, -(-count // step) * step)


def padded(states: Tensor) -> Tensor:
    """States `[count, ...]` with zeros behind them, `[rounded_up(count), ...]`."""
    count = states.shape[0]  # `len` of a tensor takes several times as long
    more = rounded_up(count) - count
    return states if more == 0 else torch.cat((states, states.new_zeros(more, *states.shape[1:])))


def keeps_parameters(module: nn.Module) -> bool:
    """Whether a module's weight and bias are parameters of its own, and not computed from others.

    Only then it is known when they change.
    """
    found = [name for name in ("weight", "bias") if getattr(module, name, None) is not None]
    return all(name in module._parameters for name in found)


class PackedMatrix:
    """A matrix of which `can_pack` is true, laid out. It does not follow changes of the matrix that it was made of.

    Attributes:
        rows: How many rows it has.
    """

    def __init__(self, rows: Tensor, bias: Tensor | None = None, gated: bool = False) -> None:
        """Lay out a matrix.

        Args:
            rows: float32 `[out, width]`.
            bias: float32 `[out]`, added to every product.
            gated: Whether products with the first half of the rows become, by SiLU, the factors of the others; only
                where `gates`.
        """
        self._kernels, self.rows = kernels(), len(rows)
        if self._kernels is not None:
            self._panels = self._kernels.laid_out(rows, bias, gated)
        else:
            self._laid_out = torch.ops.mkldnn._reorder_linear_weight(rows.detach(), None)
            self._bias = None if bias is None else bias.detach()

    def __call__(self, states: Tensor) -> Tensor:
        """The products of all rows with each of some states: float32 `[states, out]` for `[states, width]`.

        Half as many where they are gated.
        """
        return self.product(padded(states))[: states.shape[0]]

    def product(
        self, states: Tensor, added: Tensor | None = None, norm: Norm | None = None, turns: Turns | None = None
    ) -> Tensor:
        """The same for states that are `padded` already.

        Args:
            states: float32 `[states, width]`.
            added: float32 `[states, out]`, added to the products.
            norm: Whose `evened` states are multiplied in their place.
            turns: Turns products, if they are our own.
        """
        if self._kernels is not None:
            epsilon = None if norm is None else norm.epsilon
            return self._kernels.product(states, self._panels, added, epsilon, turns=turns)
        reading = states if norm is None else norm.evened(states)
        products: Tensor = torch.ops.mkldnn._linear_pointwise(reading, self._laid_out, self._bias, "none", [], "")
        return products if added is None else products.add_(added)

    def summed(self, states: Tensor) -> tuple[Tensor, Tensor] | None:
        """Products, and the sum of the exponentials of each state's, `[states]`; None where that takes two steps.

        Sums are infinite where a product is larger than 88.
        """
        if self._kernels is None:
            return None
        sums = states.new_empty(states.shape[0])
        return self._kernels.product(states, self._panels, sums=sums), sums


def multiplication(rows: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """What multiplies states with a matrix `[out, width]` that will not change: laid out, where that is possible."""
    return (
        PackedMatrix(rows, bias)
        if can_pack([rows] if bias is None else [rows, bias])
        else partial(precise_linear, weight=rows, bias=bias)
    )


def precise_linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer, with its outputs in single precision at least, whatever the type of its weights.

    Two logits of low precision differ by whole steps, and so do logarithms of probabilities: in bf16 by 1/8 from 16 on.

    Args:
        states: `[states, width]`, in the type of the weights, or, but on CUDA, in that of the outputs.
        weight: `[out, width]`.
        bias: `[out]`, if there is one.

    Returns:
        `[states, out]`: float64 for weights in float64, float32 for all others.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if weight.dtype == dtype:
        return nn.functional.linear(states, weight, bias)
    if weight.device.type == "cuda":
        # What its products are summed up in anyway.
        outputs = torch.mm(states, weight.t(), out_dtype=dtype)
    else:
        outputs = nn.functional.linear(states.to(dtype), weight.to(dtype))
    return outputs if bias is None else outputs.add_(bias)


class Seen:
    """Tensors as they were when something was made of them.

    Tells whether they were written to in place, or replaced. Writes of which torch keeps no count, through `.data` and
    to tensors that were made in inference mode, are not seen.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # The tensors themselves are kept: another one may get the place in memory of one that is gone.
        self._seen = [(tensor, tensor.data_ptr(), _writes(tensor)) for tensor in tensors]

    def are(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, and nobody has written to them."""
        return len(tensors) == len(self._seen) and all(
            tensor is seen and tensor.data_ptr() == place and _writes(tensor) == writes
            for tensor, (seen, place, writes) in zip(tensors, self._seen, strict=True)
        )


class Projections:
    """Linear layers that read the same states: one product of packed weights, or one each with weights as they are.

    `follow` brings it up to date when training has changed the weights, as far as `Seen` can tell.
    """

    def __init__(
        self,
        linears: Sequence[nn.Linear],
        packed: bool,
        rows: slice | None = None,
        norm: Norm | None = None,
        order: Tensor | None = None,
        gate: nn.Module | None = None,
        multiply: Callable[..., Tensor] = nn.functional.linear,
    ) -> None:
        """Take layers, and lay their weights out.

        Args:
            linears: Of one width.
            packed: Whether to lay weights out: then `can_pack` is true of them, and `keeps_parameters` of the layers.
            rows: Which outputs of each layer are wanted; None for all.
            norm: Whose output they read. Weights that are laid out include its factors.
            order: int64 `[out]`, in which order weights that are laid out give their outputs; None for that of the
                layers.
            gate: The activation of the first of two layers, whose outputs then are the factors of the other's.
            multiply: What makes outputs of states, a weight and a bias where weights are as they are.
        """
        self._multiply = multiply
        self._linears, self._rows, self._norm, self._order, self._gate = linears, rows, norm, order, gate
        self._packed: PackedMatrix | None = None
        if packed:
            self._pack()

    def __call__(self, states: Tensor, added: Tensor | None = None, turns: Turns | None = None) -> Tensor:
        """The outputs of all layers side by side, in the order that was asked for where weights are laid out.

        Args:
            states: `[states, width]`, before the norm if there is one; `padded` for weights that are laid out.
            added: `[states, out]`, added to them.
            turns: Turns outputs, where products are our own.
        """
        if self._packed is not None:
            return self._packed.product(states, added, self._norm, turns)
        found = self._apart(states)
        outputs = found[0] if len(found) == 1 else torch.cat(found, -1)
        return outputs if added is None else outputs.add_(added)

    def gated(self, states: Tensor) -> Tensor:
        """The outputs of the second of two layers, times the activations of those of the first (the gate).

        `[states, out of one]` for states `[states, width]` as `__call__` takes them.
        """
        if self._packed is not None and gates(self._gate):
            return self._packed.product(states, norm=self._norm)
        assert self._gate is not None
        gate, up = self._apart(states)
        # Without what else a call does, such as to look for hooks: there were none.
        factors: Tensor = self._gate.forward(gate)
        return factors.mul_(up)

    def _apart(self, states: Tensor) -> list[Tensor]:
        """The outputs of layers of as many each, layer by layer."""
        if self._packed is not None:
            return list(self._packed.product(states, norm=self._norm).chunk(len(self._linears), -1))
        reading = states if self._norm is None else self._norm.scaled(states)
        return [self._multiply(reading, *self._weights(linear)) for linear in self._linears]

    def summed(self, states: Tensor) -> tuple[Tensor, Tensor] | None:
        """As `PackedMatrix.summed` has it; None where weights are as they are."""
        return None if self._packed is None else self._packed.summed(states)

    def padded(self, states: Tensor) -> Tensor:
        """States as the layers read them fast: `padded` for weights that are laid out."""
        return states if self._packed is None else padded(states)

    def follow(self) -> None:
        """Lay weights out anew if they have changed. For once a search: to look takes as long as a small product."""
        if self._packed is not None and not self._seen.are(self._tensors()):
            self._pack()

    def _weights(self, linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
        if self._rows is None:
            return linear.weight, linear.bias
        return linear.weight[self._rows], None if linear.bias is None else linear.bias[self._rows]

    def _pack(self) -> None:
        seen = Seen(self._tensors())
        weights, biases = zip(*map(self._weights, self._linears), strict=True)
        together = None
        if any(bias is not None for bias in biases):
            pairs = zip(weights, biases, strict=True)
            together = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs])
        rows = torch.cat(weights)
        if self._norm is not None:
            rows = rows * self._norm.factors()
        if self._order is not None:
            rows, together = rows[self._order], None if together is None else together[self._order]
        self._packed = PackedMatrix(rows, together, gates(self._gate))
        self._seen = seen

    def _tensors(self) -> list[Tensor]:
        # A module's attributes are looked up through Python, which takes several times as long.
        tensors: list[Tensor] = [
            tensor for linear in self._linears for tensor in linear._parameters.values() if tensor is not None
        ]
        return tensors if self._norm is None else [*tensors, self._norm.factors()]


def _writes(tensor: Tensor) -> int:
    """How often a tensor was written to in place; always 0 where it was made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version
