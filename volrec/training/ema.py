"""Exponential average of the weights: what is validated and kept, when it is switched on."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

__all__ = ["AveragedNetwork"]


class AveragedNetwork:
    """A second copy of a network that follows the first one slowly.

    Early in training the average would be mostly the initial weights, so the decay starts low and rises to its value:
    ``min(decay, (1 + n) / (10 + n))`` at the n-th update.

    Parameters
    ----------
    network : Module
        The network that is trained.
    decay : float
        Weight of the past at each update.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.network = deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the weights of `network`; counters and other integers are copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        mine, theirs = self._tensors(self.network), self._tensors(network)
        floats = [(a, b) for a, b in zip(mine, theirs, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
        for a, b in zip(mine, theirs, strict=True):
            if not a.is_floating_point():
                a.copy_(b)

    def state_dict(self) -> dict[str, object]:
        """Return the average and the number of updates."""
        return {"updates": self.updates, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take up the average of an interrupted training."""
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        self.network.load_state_dict(state["network"])  # type: ignore[arg-type]

    @staticmethod
    def _tensors(network: nn.Module) -> list[Tensor]:
        return [*network.parameters(), *network.buffers()]
