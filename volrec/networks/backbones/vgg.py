"""VGG-16 (configuration D): thirteen 3x3 convolutions, five pools, fc6 and fc7.

K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.

=======  ======================  ===============
block    operation               out (C x H x W)
=======  ======================  ===============
conv1    2 x 3x3, max pool 2x2   64 x 112 x 112
conv2    2 x 3x3, max pool 2x2   128 x 56 x 56
conv3    3 x 3x3, max pool 2x2   256 x 28 x 28
conv4    3 x 3x3, max pool 2x2   512 x 14 x 14
conv5    3 x 3x3, max pool 2x2   512 x 7 x 7
fc6      25088 -> 4096, dropout  4096
fc7      4096 -> 4096, dropout   4096
=======  ======================  ===============

Every convolution and fully connected layer is followed by a ReLU. With a last layer of 101 classes 134.7 M parameters
and 15.5 GMAC a slice. Adapted: normalisation after every convolution, pools that round up, any size. No convolution has
a stride: `stem_stride` is that of pool1, whose windows stay side by side (1 takes it out).
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from volrec.networks.backbones.contract import Backbone
from volrec.networks.layers import ConvUnit, init_kaiming, scale_channels

__all__ = ["VGG16"]

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(Backbone):
    """VGG-16 up to fc7; see the head of this file. Layers are called conv1_1 … conv5_3, fc6, fc7.

    Parameters
    ----------
    in_channels, faithful, width, norm, tail, dropout, stem_stride
        As for `volrec.networks.backbones.create_backbone`.
    """

    tails: ClassVar[dict[str, int]] = {"fc6": 4096, "fc7": 4096}

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
        norm = "none" if faithful else norm
        # Pools round up, so that 16 positions leave one; instance statistics need more than one.
        self.smallest = self.least(32 if norm == "instance" else 16, stride)
        self.trunk = nn.Sequential()
        channels = in_channels
        for block, (paper_channels, count) in enumerate(_BLOCKS, 1):
            out = scale_channels(paper_channels, width)
            for index in range(1, count + 1):
                unit = ConvUnit(channels, out, kernel_size=3, padding=1, dims=2, norm=norm)
                self.trunk.add_module(f"conv{block}_{index}", unit)
                channels = out
            side = stride if block == 1 else 2
            self.trunk.add_module(f"pool{block}", nn.MaxPool2d(side, ceil_mode=True))
        self.num_maps = channels
        self.add_tail(tail, faithful=faithful, width=width, dropout=dropout, name="vgg-16")
        init_kaiming(self)
