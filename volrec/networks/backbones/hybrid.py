"""The frame network of LRCN: between CaffeNet and the network of Zeiler and Fergus.

J. Donahue, L. A. Hendricks, S. Guadarrama, M. Rohrbach, S. Venugopalan, K. Saenko, T. Darrell, "Long-term Recurrent
Convolutional Networks for Visual Recognition and Description", CVPR 2015.

======  =========================================================  ===============
block   operation                                                  out (C x H x W)
======  =========================================================  ===============
conv1   7x7, stride 2, ReLU                                        96 x 111 x 111
pool1   max 3x3, stride 2; response normalisation                  96 x 55 x 55
conv2   5x5, stride 2, 2 groups, ReLU                              384 x 26 x 26
pool2   max 3x3, stride 2; response normalisation                  384 x 13 x 13
conv3   3x3, padding 1, ReLU                                       512 x 13 x 13
conv4   3x3, padding 1, 2 groups, ReLU                             512 x 13 x 13
conv5   3x3, padding 1, 2 groups, ReLU                             384 x 13 x 13
pool5   max 3x3, stride 2                                          384 x 6 x 6
fc6     13824 -> 4096, ReLU, dropout                               4096
fc7     4096 -> 4096, ReLU, dropout                                4096
======  =========================================================  ===============

60.94 M parameters and 1.19 GMAC a slice of 227 x 227 to fc6. Pools round up, as Caffe's do; the response normalisation
(5 channels, alpha 1e-4, beta .75) follows the pool. Weights start from Gaussians of .01 with biases of .1; for fc6 and
fc7 that is our choice.

Adapted: convolutions are padded by half their kernel and pools halve any size, rounding up; a normalisation after every
convolution takes the place of the response normalisation; groups stay where channel counts divide.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from volrec.networks.backbones.blocks import Stage, init_gaussian, stack_stages
from volrec.networks.backbones.contract import Backbone
from volrec.networks.layers import CrossChannelNorm, init_kaiming

__all__ = ["Hybrid"]

_STAGES = (
    Stage(96, 7, stride=2, pool=True, response="after"),
    Stage(384, 5, stride=2, groups=2, pool=True, response="after"),
    Stage(512, 3, padding=1),
    Stage(512, 3, padding=1, groups=2),
    Stage(384, 3, padding=1, groups=2, pool=True),
)


class Hybrid(Backbone):
    """LRCN's frame network up to fc7; see the head of this file.

    Parameters
    ----------
    in_channels, faithful, width, norm, tail, dropout, stem_stride
        As for `volrec.networks.backbones.create_backbone`.
    """

    tails: ClassVar[dict[str, int]] = {"fc6": 4096, "fc7": 4096}
    frame_size: ClassVar[tuple[int, int]] = (227, 227)
    grid: ClassVar[tuple[int, int]] = (6, 6)

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
        if faithful:
            # conv5 must leave the last pool two positions.
            self.smallest = (49, 49)
        else:
            # conv3 to conv5 see a sixteenth of the size; instance statistics need more than one position.
            self.smallest = self.least(32 if norm == "instance" else 16, stride)
        self.trunk, self.num_maps = stack_stages(
            _STAGES,
            in_channels,
            faithful=faithful,
            width=width,
            norm=norm,
            stem_stride=stride,
            response=partial(CrossChannelNorm, 5, alpha=1e-4, beta=0.75, k=1, mean=True),
        )
        self.add_tail(tail, faithful=faithful, width=width, dropout=dropout, name="hybrid")
        if faithful:
            init_gaussian(self, std=0.01, bias=0.1)
        else:
            init_kaiming(self)
