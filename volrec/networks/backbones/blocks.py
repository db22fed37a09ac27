"""What several networks of this folder are built of: stages of the Caffe era, and Inception blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.networks.layers import ConvUnit, CrossChannelNorm, same_padding, scale_channels
from volrec.networks.layers.twins import InflatedConv3d, InflatedPool3d, Inflation

__all__ = ["Inception", "SameConv2d", "SameMaxPool2d", "Stage", "Unit", "init_gaussian", "stack_stages"]


class SameConv2d(nn.Conv2d):
    """A 2D convolution with TensorFlow's SAME padding of zeros: ceil(n / stride) positions, an odd zero at the end.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels.
    kernel_size, stride : int
        Of both axes.
    **rest
        ``bias`` and ``groups`` of `torch.nn.Conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, **rest: Any) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, **rest)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution (N, F, ceil(H / stride), ceil(W / stride))."""
        height, width = (
            same_padding(int(n), k, s) for n, k, s in zip(input.shape[2:], self.kernel_size, self.stride, strict=True)
        )
        padding = (height[0], width[0])
        if height[0] != height[1] or width[0] != width[1]:
            # The convolution itself can pad both sides alike only.
            input, padding = F.pad(input, (*width, *height)), (0, 0)
        return F.conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def inflated(self, rule: Inflation) -> InflatedConv3d:
        """Return the 3D twin, with SAME padding along all axes."""
        return InflatedConv3d(self, rule, padding=None)


class SameMaxPool2d(nn.Module):
    """Max pooling 3x3, stride 2, that gives ceil(n / 2) positions for any n.

    For an even n the windows are those of Caffe's rounding up (the last hangs over the end); for an odd n one
    position of padding on both sides takes the place of the row that Caffe would lose.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima (N, C, ceil(H / 2), ceil(W / 2))."""
        padding = [same_padding(int(n), 3, 2)[0] for n in x.shape[2:]]
        return F.max_pool2d(x, 3, 2, padding, ceil_mode=True)

    def inflated(self, rule: Inflation) -> InflatedPool3d:
        """Return the 3D twin."""
        return InflatedPool3d(self, rule, kernel=3, stride=2, mean=False, same=True)


class Stage(NamedTuple):
    """One convolution of a plain network and what follows it.

    Attributes
    ----------
    channels, kernel, stride, padding, groups : int
        Of the convolution in the paper.
    pool : bool
        Max pooling 3x3, stride 2, follows.
    response : {"", "before", "after"}
        Local response normalisation, before or after the pool.
    """

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    pool: bool = False
    response: str = ""


def stack_stages(
    stages: Sequence[Stage],
    in_channels: int,
    *,
    faithful: bool,
    width: float,
    norm: str,
    stem_stride: int,
    response: Callable[[], CrossChannelNorm],
) -> tuple[nn.Sequential, int]:
    """Return layers conv1, pool1, norm1, conv2 … in the order of the paper, and their last channel count.

    Adapted networks pad every convolution by half its kernel and pool so that any size is halved, rounding up; with a
    `norm` after every convolution the local response normalisation is left out. Channels stay in groups where both
    counts can be divided. `stem_stride` is the stride of conv1.
    """
    trunk = nn.Sequential()
    channels = in_channels
    for number, stage in enumerate(stages, 1):
        out = scale_channels(stage.channels, width)
        unit = ConvUnit(
            channels,
            out,
            kernel_size=stage.kernel,
            stride=stem_stride if number == 1 else stage.stride,
            padding=stage.padding if faithful else stage.kernel // 2,
            groups=math.gcd(stage.groups, channels, out),
            dims=2,
            norm=norm,
        )
        trunk.add_module(f"conv{number}", unit)
        pool = nn.MaxPool2d(3, 2, ceil_mode=True) if faithful else SameMaxPool2d()
        after: dict[str, nn.Module] = {f"norm{number}": response()} if stage.response and norm == "none" else {}
        if stage.pool:
            named = {f"pool{number}": pool}
            after = {**after, **named} if stage.response == "before" else {**named, **after}
        for name, module in after.items():
            trunk.add_module(name, module)
        channels = out
    return trunk, channels


def init_gaussian(network: nn.Module, *, std: float, bias: float) -> None:
    """Draw the weights of every convolution and linear layer from a Gaussian; set their biases to one value."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


class Unit(NamedTuple):
    """One convolution of an Inception block under the paper's name; padding is half the kernel."""

    name: str
    channels: int
    kernel: int = 1
    stride: int = 1

    def build(self, in_channels: int, *, width: float, norm: str, bias: bool | None) -> ConvUnit:
        """Return the layer."""
        return ConvUnit(
            in_channels,
            scale_channels(self.channels, width),
            kernel_size=self.kernel,
            stride=self.stride,
            padding=self.kernel // 2,
            dims=2,
            norm=norm,
            bias=bias,
        )


class Inception(nn.Module):
    """Parallel branches of convolutions, and one that begins with a pool, side by side in the channels.

    Parameters
    ----------
    in_channels : int
        Channels of the input.
    branches : sequence of sequences of Unit
        The convolutions of each branch; those of the last one follow the pool.
    pool : nn.Module
        Begins the last branch.
    width, norm, bias
        As in `ConvUnit`.
    """

    def __init__(
        self,
        in_channels: int,
        branches: Sequence[Sequence[Unit]],
        pool: nn.Module,
        *,
        width: float,
        norm: str,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList()
        self.out_channels = 0
        for index, units in enumerate(branches):
            branch = nn.Sequential()
            if index == len(branches) - 1:
                branch.add_module("pool", pool)
            channels = in_channels
            for unit in units:
                branch.add_module(unit.name, unit.build(channels, width=width, norm=norm, bias=bias))
                channels = scale_channels(unit.channels, width)
            self.branches.append(branch)
            self.out_channels += channels

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (N, out_channels, h, w)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)
