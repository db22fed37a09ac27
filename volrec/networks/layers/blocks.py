"""Small building blocks that many networks use."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

__all__ = ["NORMS", "channels_last", "init_kaiming", "norm_layer", "scale_channels"]

NORMS = ("none", "batch", "instance", "group")


def scale_channels(channels: int, width: float) -> int:
    """Return a paper's channel count times `width`, at least 1."""
    return max(1, math.floor(channels * width + 0.5))


def norm_layer(kind: str, channels: int, *, dims: int) -> nn.Module:
    """Return a normalisation layer by name.

    Parameters
    ----------
    kind : {"none", "batch", "instance", "group"}
        ``group`` has at most 8 channels a group boundary allows: the largest common divisor of 8 and `channels`.
    channels : int
        Channels of the maps (or features where `dims` is 0).
    dims : {0, 2, 3}
        Number of spatial axes of the input.
    """
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return {0: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](channels)
    if dims == 0:
        return nn.LayerNorm(channels)
    if kind == "instance":
        return {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims](channels, affine=True)
    return nn.GroupNorm(math.gcd(8, channels), channels)


def channels_last(network: nn.Module) -> None:
    """Lay the kernels of all convolutions out with the channels last; shapes and values stay.

    Narrow networks then train about 1.3 times as fast on a CPU, wide ones as fast as before
    (``tests/performance/bench_networks.py``). Results differ in the last digits only.
    """
    for parameter in network.parameters():
        if parameter.ndim in {4, 5}:
            layout = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
            parameter.data = parameter.data.to(memory_format=layout)


def init_kaiming(module: nn.Module, *, keep: Literal["fan_out", "fan_in"] = "fan_out") -> None:
    """Draw the weights of every convolution and linear layer for ReLU networks (He et al. 2015); biases are 0.

    Parameters
    ----------
    module : nn.Module
        Whose layers are drawn anew.
    keep : {"fan_out", "fan_in"}
        What convolutions keep the size of: gradients, or activations. Without normalisation activations have to be
        kept where convolutions reduce many channels to few: they would grow from layer to layer.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(layer.weight, mode=keep, nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
