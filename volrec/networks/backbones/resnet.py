"""ResNet-18, ResNet-34 and ResNet-50 in 2D.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.

=======  ========================  ===============  ===============  =======================  ===============
block    out (H x W)               18               34               50                       channels
=======  ========================  ===============  ===============  =======================  ===============
conv1    112 x 112                 7x7, stride 2, padding 3, norm, ReLU                       64
maxpool  56 x 56                   max 3x3, stride 2, padding 1                               64
layer1   56 x 56                   2 x (3x3, 3x3)   3 x (3x3, 3x3)   3 x (1x1, 3x3, 1x1)      64; 50: 256
layer2   28 x 28                   2                4                4                        128; 50: 512
layer3   14 x 14                   2                6                6                        256; 50: 1024
layer4   7 x 7                     2                3                3                        512; 50: 2048
pool     1 x 1                     mean over the plane                                        512; 50: 2048
=======  ========================  ===============  ===============  =======================  ===============

Each block adds its input to what its convolutions give; where the size or the channels change, the input goes through a
1x1 convolution with normalisation first (shortcut B of the paper). Convolutions have no bias and are normalised; a ReLU
follows each but the last of a block, and the sum. 11,176,512, 21,284,672 and 23,508,032 parameters, and 1.81, 3.66 and
4.09 GMAC a slice of three channels and 224 x 224; with a last layer of 1000 classes 11,689,512, 21,797,672 and
25,557,032 parameters. Layers have the names of the common checkpoints (``layer1.0.conv1``, ``layer2.0.downsample.0``).

Ambiguity: the paper strides in the first 1x1 convolution of a bottleneck; the checkpoints that people pass on stride in
its 3x3 convolution, and so it is here. Shapes are the same either way: weights of the other kind load without an error
and give poorer features.

Adapted: any normalisation. Every size is halved rounding up, in both forms. Without normalisation the last convolution
of each block starts smaller, by the square root of the number of blocks, or the sum would double from block to block.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from volrec.networks.backbones.contract import Backbone
from volrec.networks.layers import PointwiseConv2d, init_kaiming, norm_layer, scale_channels

__all__ = ["ResNet18", "ResNet34", "ResNet50"]

_CHANNELS = (64, 128, 256, 512)
_EXPANSION = 4


class _ResNet(Backbone):
    """A ResNet up to the global pool; see the head of this file.

    Parameters
    ----------
    in_channels, faithful, width, norm, tail, dropout, stem_stride
        As for `volrec.networks.backbones.create_backbone`; ``"pool"`` is the only tail.
    """

    name: ClassVar[str]
    counts: ClassVar[tuple[int, int, int, int]]
    bottleneck: ClassVar[bool] = False

    def __init__(
        self,
        *,
        in_channels: int,
        faithful: bool,
        width: float,
        norm: str,
        tail: str,
        dropout: float,
        stem_stride: int | None = None,
    ) -> None:
        super().__init__()
        stride = stem_stride or self.stem_stride
        norm = "batch" if faithful else norm
        # 33 positions leave layer4 two, which instance statistics need.
        self.smallest = self.least(33 if norm == "instance" else 16, stride)
        channels = scale_channels(_CHANNELS[0], width)
        trunk = nn.Sequential()
        trunk.add_module("conv1", nn.Conv2d(in_channels, channels, 7, stride, 3, bias=norm == "none"))
        trunk.add_module("bn1", norm_layer(norm, channels, dims=2))
        trunk.add_module("relu", nn.ReLU(inplace=True))
        trunk.add_module("maxpool", nn.MaxPool2d(3, 2, 1))
        kind = _Bottleneck if self.bottleneck else _BasicBlock
        for number, (paper_channels, count) in enumerate(zip(_CHANNELS, self.counts, strict=True), 1):
            layer = nn.Sequential()
            for index in range(count):
                step = 2 if number > 1 and index == 0 else 1
                block = kind(channels, scale_channels(paper_channels, width), stride=step, norm=norm)
                layer.add_module(str(index), block)
                channels = block.out_channels
            trunk.add_module(f"layer{number}", layer)
        self.trunk = trunk
        self.num_maps = channels
        self.add_tail(tail, faithful=faithful, width=width, dropout=dropout, name=self.name)
        init_kaiming(self, keep="fan_in" if norm == "none" else "fan_out")
        if norm == "none":
            for module in self.modules():
                if isinstance(module, (_BasicBlock, _Bottleneck)):
                    with torch.no_grad():
                        module.last.weight /= math.sqrt(sum(self.counts))


class ResNet18(_ResNet):
    """ResNet-18; see the head of this file."""

    name = "resnet-18"
    counts = (2, 2, 2, 2)


class ResNet34(_ResNet):
    """ResNet-34; see the head of this file."""

    name = "resnet-34"
    counts = (3, 4, 6, 3)


class ResNet50(_ResNet):
    """ResNet-50; see the head of this file."""

    name = "resnet-50"
    counts = (3, 4, 6, 3)
    bottleneck = True


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions; the first has the stride."""

    def __init__(self, channels: int, inner: int, *, stride: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(channels, inner, 3, stride, 1, bias=bias)
        self.bn1 = norm_layer(norm, inner, dims=2)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, inner, 3, 1, 1, bias=bias)
        self.bn2 = norm_layer(norm, inner, dims=2)
        self.out_channels = inner
        self.downsample = _shortcut(channels, inner, stride=stride, norm=norm)

    @property
    def last(self) -> nn.Conv2d:
        """The last convolution before the sum."""
        return self.conv2

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class _Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution to four times as many channels; the 3x3 has the stride."""

    def __init__(self, channels: int, inner: int, *, stride: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.out_channels = _EXPANSION * inner
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=bias)
        self.bn1 = norm_layer(norm, inner, dims=2)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=bias)
        self.bn2 = norm_layer(norm, inner, dims=2)
        self.conv3 = nn.Conv2d(inner, self.out_channels, 1, bias=bias)
        self.bn3 = norm_layer(norm, self.out_channels, dims=2)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, self.out_channels, stride=stride, norm=norm)

    @property
    def last(self) -> nn.Conv2d:
        """The last convolution before the sum."""
        return self.conv3

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _shortcut(channels: int, out: int, *, stride: int, norm: str) -> nn.Module:
    """Return what the input of a block goes through before the sum: nothing, where size and channels stay."""
    if stride == 1 and channels == out:
        return nn.Identity()
    layer = PointwiseConv2d(channels, out, stride=stride, bias=norm == "none")
    return nn.Sequential(layer, norm_layer(norm, out, dims=2))
