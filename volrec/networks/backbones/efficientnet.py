"""EfficientNet-Lite0 in 2D.

M. Tan, Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; in the Lite
form that its authors released beside it for small devices: no squeeze and excitation, ReLU6 in place of SiLU, and the
stem and the head keep their channels when the network is scaled.

=========  =================================================  ===============
blocks     operation                                          out (C x H x W)
=========  =================================================  ===============
conv_stem  3x3, stride 2, norm, ReLU6                         32 x 112 x 112
0          3x3, no expansion                                  16 x 112 x 112
1, 2       3x3, the first with stride 2                       24 x 56 x 56
3, 4       5x5, the first with stride 2                       40 x 28 x 28
5 - 7      3x3, the first with stride 2                       80 x 14 x 14
8 - 10     5x5                                                112 x 14 x 14
11 - 14    5x5, the first with stride 2                       192 x 7 x 7
15         3x3                                                320 x 7 x 7
conv_head  1x1, norm, ReLU6                                   1280 x 7 x 7
pool       mean over the plane                                1280
=========  =================================================  ===============

A block is an inverted residual: 1x1 to six times the channels, a depthwise convolution of the size above, 1x1 to the
channels above; each is normalised, and a ReLU6 follows each but the last. Where size and channels stay, the input is
added. Convolutions have no bias; the epsilon of the normalisation is 0.001; all padding is TensorFlow's SAME:
ceil(n / stride) positions come out, and an odd pixel of padding goes to the end. 3,371,008 parameters and 0.38 GMAC a
slice of three channels and 224 x 224; 4,652,008 parameters with a last layer of 1000 classes. Layers have the names of
the original without leading underscores.

Ambiguities: blocks are never left out in training (the original drops them at random, up to a fifth of them); running
statistics move by a tenth a batch, as everywhere in volrec (the original: by a hundredth, which small sets of studies
never get far with). Neither changes what a trained network answers.

Adapted: any normalisation. Without one the last convolution of each block that adds its input starts smaller, by the
square root of the number of such blocks, so that the sum keeps its size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from volrec.networks.backbones.blocks import SameConv2d
from volrec.networks.backbones.contract import Backbone
from volrec.networks.layers import init_kaiming, norm_layer, scale_channels

__all__ = ["EfficientNetLite0", "InvertedResidual"]

_EPSILON = 1e-3
_STEM, _HEAD = 32, 1280
# Repeats, kernel, stride of the first, expansion, channels.
_BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 up to the global pool; see the head of this file.

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
        # 33 positions leave the last blocks two, which instance statistics need.
        self.smallest = self.least(33 if norm == "instance" else 16, stride)
        channels = scale_channels(_STEM, width)
        blocks = nn.Sequential()
        self.trunk = nn.Sequential()
        self.trunk.add_module("conv_stem", SameConv2d(in_channels, channels, 3, stride, bias=norm == "none"))
        self.trunk.add_module("bn0", _norm(norm, channels))
        self.trunk.add_module("relu0", nn.ReLU6(inplace=True))
        self.trunk.add_module("blocks", blocks)
        for repeats, kernel, first_stride, expansion, paper_channels in _BLOCKS:
            out = scale_channels(paper_channels, width)
            for index in range(repeats):
                step = first_stride if index == 0 else 1
                block = InvertedResidual(channels, out, kernel=kernel, stride=step, expansion=expansion, norm=norm)
                blocks.add_module(str(len(blocks)), block)
                channels = out
        head = scale_channels(_HEAD, width)
        self.trunk.add_module("conv_head", nn.Conv2d(channels, head, 1, bias=norm == "none"))
        self.trunk.add_module("bn1", _norm(norm, head))
        self.trunk.add_module("relu1", nn.ReLU6(inplace=True))
        self.num_maps = head
        self.add_tail(tail, faithful=faithful, width=width, dropout=dropout, name="efficientnet-lite0")
        init_kaiming(self, keep="fan_in" if norm == "none" else "fan_out")
        residuals = [block for block in blocks if isinstance(block, InvertedResidual)]
        adding = [block for block in residuals if block.adds]
        for block in residuals:
            # Each map has one kernel of its own: what it gives depends on as many inputs as the kernel has positions.
            nn.init.kaiming_normal_(block.depthwise_conv.weight, mode="fan_in", nonlinearity="relu")
        if norm == "none":
            for block in adding:
                with torch.no_grad():
                    block.project_conv.weight /= math.sqrt(len(adding))


class InvertedResidual(nn.Module):
    """Few channels to many, a depthwise convolution, and back to few, plus the input where the shape stays.

    Parameters
    ----------
    channels, out : int
        Channels of the input and of the output.
    kernel, stride : int
        Of the depthwise convolution.
    expansion : int
        Channels in between over those of the input; 1 leaves the first convolution out.
    norm : {"none", "batch", "instance", "group"}
        After every convolution.
    """

    def __init__(self, channels: int, out: int, *, kernel: int, stride: int, expansion: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        inner = channels * expansion
        self.expands = expansion > 1
        self.adds = stride == 1 and channels == out
        if self.expands:
            self.expand_conv = nn.Conv2d(channels, inner, 1, bias=bias)
            self.bn0 = _norm(norm, inner)
        self.depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=bias)
        self.bn1 = _norm(norm, inner)
        self.project_conv = nn.Conv2d(inner, out, 1, bias=bias)
        self.bn2 = _norm(norm, out)
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (N, out, ceil(h / stride), ceil(w / stride)) of maps (N, channels, h, w)."""
        y = self.relu(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.relu(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.adds else y


def _norm(kind: str, channels: int) -> nn.Module:
    layer = norm_layer(kind, channels, dims=2)
    if kind != "none":
        layer.eps = _EPSILON  # type: ignore[assignment]
    return layer
