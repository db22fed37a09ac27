"""DenseNet-121 (DenseNet-BC, growth 32) in 2D.

G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger, "Densely Connected Convolutional Networks", CVPR 2017.

===========  ================================================  ===============
block        operation                                         out (C x H x W)
===========  ================================================  ===============
conv0        7x7, stride 2, padding 3, norm, ReLU              64 x 112 x 112
pool0        max 3x3, stride 2, padding 1                      64 x 56 x 56
block1       6 x (norm, ReLU, 1x1 (128), norm, ReLU, 3x3 (32)) 256 x 56 x 56
transition1  norm, ReLU, 1x1, mean 2x2                         128 x 28 x 28
block2       12 layers                                         512 x 28 x 28
transition2                                                    256 x 14 x 14
block3       24 layers                                         1024 x 14 x 14
transition3                                                    512 x 7 x 7
block4       16 layers, norm, ReLU                             1024 x 7 x 7
pool         mean over the plane                               1024
===========  ================================================  ===============

Each layer of a block reads the channels of all before it and adds 32. No convolution has a bias. 6,953,856 parameters
and 2.60 GMAC a slice of three channels and 224 x 224 (transitions take the mean first, which gives the same numbers).
Weights start as He et al. 2015 have it.

Adapted: any normalisation; the means of 2x2 round up, so that no position is lost, which is the same at 224 x 224.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.networks.backbones.contract import Backbone
from volrec.networks.layers import init_kaiming, norm_layer, scale_channels

__all__ = ["DenseNet121"]

_LAYERS = (6, 12, 24, 16)
_GROWTH, _BOTTLENECK, _FIRST = 32, 4, 64


class DenseNet121(Backbone):
    """DenseNet-121 up to the global pool; see the head of this file.

    Parameters
    ----------
    in_channels, faithful, width, norm, tail, dropout, stem_stride
        As for `volrec.networks.backbones.create_backbone`; ``"pool"`` is the only tail.
    """

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
        # 33 positions leave the last block two, which instance statistics need.
        self.smallest = self.least(33 if norm == "instance" else 16, stride)
        channels = scale_channels(_FIRST, width)
        trunk = nn.Sequential()
        trunk.add_module("conv0", nn.Conv2d(in_channels, channels, 7, stride, 3, bias=norm == "none"))
        trunk.add_module("norm0", norm_layer(norm, channels, dims=2))
        trunk.add_module("relu0", nn.ReLU(inplace=True))
        trunk.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        growth = scale_channels(_GROWTH, width)
        for number, count in enumerate(_LAYERS, 1):
            block = nn.Sequential()
            for index in range(1, count + 1):
                block.add_module(f"layer{index}", _DenseLayer(channels, growth, norm))
                channels += growth
            trunk.add_module(f"block{number}", block)
            if number < len(_LAYERS):
                transition = _Transition(channels, max(1, channels // 2), norm)
                trunk.add_module(f"transition{number}", transition)
                channels = transition.conv.out_channels
        trunk.add_module("norm5", norm_layer(norm, channels, dims=2))
        trunk.add_module("relu5", nn.ReLU(inplace=True))
        self.trunk = trunk
        self.num_maps = channels
        self.add_tail(tail, faithful=faithful, width=width, dropout=dropout, name="densenet-121")
        init_kaiming(self)


class _DenseLayer(nn.Module):
    """Adds `growth` channels to maps (N, C, h, w)."""

    def __init__(self, channels: int, growth: int, norm: str) -> None:
        super().__init__()
        inner = _BOTTLENECK * growth
        self.norm1 = norm_layer(norm, channels, dims=2)
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=norm == "none")
        self.norm2 = norm_layer(norm, inner, dims=2)
        self.conv2 = nn.Conv2d(inner, growth, 3, padding=1, bias=norm == "none")

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(new)))], dim=1)


class _Transition(nn.Module):
    """Fewer channels at half the size."""

    def __init__(self, channels: int, out: int, norm: str) -> None:
        super().__init__()
        self.norm = norm_layer(norm, channels, dims=2)
        self.conv = nn.Conv2d(channels, out, 1, bias=norm == "none")
        self.pool = nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        # A 1x1 convolution commutes with the mean: pooling first spares three quarters of the products.
        return self.conv(self.pool(F.relu(self.norm(x))))
