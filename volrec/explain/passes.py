"""What all methods of explanation share: a network at rest, the value that is explained, passes of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.inference.predictor import BUDGET, BUDGET_GPU

__all__ = ["Opposite", "Tick", "at_rest", "check_output", "empty_clip", "fitting", "resting", "values_of"]

Tick = Callable[[float], None]
"""Told how much of the work on a clip is done, from 0 to 1."""

WITH_GRADIENT = 4
"""A pass that keeps what a gradient needs takes about so many times the memory of one that does not."""


def resting(done: float) -> None:
    """Take no notice of what is done: the `Tick` of a caller who shows nothing."""


@contextmanager
def at_rest(network: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode for the block, its weights out of every gradient; then as it was.

    A recurrent network computes without cuDNN meanwhile, whose backward pass there is for training mode alone.
    """
    training = [module for module in network.modules() if module.training]
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    network.requires_grad_(False)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if any(isinstance(module, nn.RNNBase) for module in network.modules()):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)


def values_of(network: nn.Module, x: Tensor, output: int) -> Tensor:
    """Return what is explained (B,): an output of the network for clips (B, C, T', H, W), before sigmoid or softmax."""
    return network(x)[:, output]


def check_output(network: nn.Module, output: int) -> None:
    """Raise `ConfigError` for an output that a network does not have."""
    count = getattr(network, "num_classes", None)
    if output < 0 or (count is not None and output >= count):
        raise ConfigError(
            f"output {output} was asked of a network with {count} output(s).",
            remedy="Outputs are counted from 0.",
            where="output",
            code="output",
        )


def fitting(x: Tensor, *, gradient: bool = False) -> int:
    """Return how many clips of the size of one of (B, C, T', H, W) go through a network at a time."""
    budget = BUDGET if x.device.type == "cpu" else BUDGET_GPU
    return max(1, budget // (x[0].numel() * (WITH_GRADIENT if gradient else 1)))


def empty_clip(x: Tensor, empty: Tensor | None) -> Tensor:
    """Return clips (B, C, T', H, W) that show nothing, as a view.

    Parameters
    ----------
    x : Tensor
        (B, C, T', H, W).
    empty : Tensor, optional
        (C,) value of an empty canvas in each channel; None takes the minimum of each channel of each clip.
    """
    nothing = x.amin(dim=(2, 3, 4), keepdim=True) if empty is None else empty.to(x).reshape(1, -1, 1, 1, 1)
    return nothing.expand_as(x)


class Opposite(nn.Module):
    """A network with its outputs negated: what speaks for it speaks against the other (two classes of one output).

    Parameters
    ----------
    network : nn.Module
        (B, C, T', H, W) to logits (B, K).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        layer = getattr(network, "cam_layer", None)
        if layer is not None:
            self.cam_layer = f"network.{layer}"
        self.num_classes = getattr(network, "num_classes", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the negated logits."""
        return -self.network(x)
