"""RMSNorm, as decoders of Llama's shape have it."""

from typing import Any

import torch
from torch import Tensor, nn

from genret.decoding.native import kernels


class Norm:
    """RMSNorm in 32 bits whatever the model's type (arXiv 1910.07467, equation 4).

    Attributes:
        epsilon: What is added to the mean of squares.
    """

    def __init__(self, norm: Any) -> None:
        """Take a module with `weight` and `variance_epsilon`."""
        self.epsilon = float(norm.variance_epsilon)
        self._norm, self._epsilon = norm, torch.tensor([self.epsilon], dtype=torch.float32, device="cpu")

    def factors(self) -> Tensor:
        """Of each feature, `[width]`."""
        # A module's attributes are looked up through Python, which takes several times as long.
        weight: Tensor = self._norm._parameters["weight"]
        return weight

    def scaled(self, states: Tensor) -> Tensor:
        """States `[tokens, width]` after the norm."""
        norm, width = self._norm, states.shape[-1:]
        if states.device.type != "cpu":
            # One kernel, which rounds once where the model's own norm rounds twice.
            return nn.functional.rms_norm(states, width, norm.weight, self.epsilon)
        if states.dtype == torch.float32:
            own = kernels()
            if own is not None and norm.weight.dtype == torch.float32:
                return own.normed(states, norm.weight, self.epsilon)
            return self.evened(states).mul_(norm.weight)
        normed = nn.functional.rms_norm(states.float(), width, eps=self.epsilon)
        scaled: Tensor = norm.weight * normed.to(states.dtype)
        return scaled

    def evened(self, states: Tensor) -> Tensor:
        """The same but for the norm's factors: for single precision on a CPU.

        This takes half as long as torch's own, which is made of more operations.
        """
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        return states * torch.addcmul(self._epsilon, length, length, value=1 / states.shape[-1]).rsqrt_()
