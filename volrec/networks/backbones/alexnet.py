"""AlexNet for slices of 220 x 220, the smaller of the two frame networks of Ng et al.

J. Yue-Hei Ng, M. Hausknecht, S. Vijayanarasimhan, O. Vinyals, R. Monga, G. Toderici, "Beyond Short Snippets: Deep
Networks for Video Classification", CVPR 2015; after A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet
Classification with Deep Convolutional Neural Networks", NIPS 2012.

======  ===================================================  ===============
block   operation                                            out (C x H x W)
======  ===================================================  ===============
conv1   11x11, stride 4, ReLU                                96 x 53 x 53
pool1   max 3x3, stride 2; response normalisation            96 x 26 x 26
conv2   5x5, padding 2, ReLU                                 256 x 26 x 26
pool2   max 3x3, stride 2; response normalisation            256 x 13 x 13
conv3   3x3, padding 1, ReLU                                 384 x 13 x 13
conv4   3x3, padding 1, ReLU                                 384 x 13 x 13
conv5   3x3, padding 1, ReLU                                 256 x 13 x 13
pool5   max 3x3, stride 2                                    256 x 6 x 6
fc6     9216 -> 4096, ReLU, dropout                          4096
fc7     4096 -> 4096, ReLU, dropout                          4096
======  ===================================================  ===============

Certain is the input, 220 x 220, and the two layers of 4096 units. The rest is our choice: the layers of the 2012
network as one tower without groups, in the order of CaffeNet (the response normalisation, 5 channels, alpha 1e-4,
beta .75, follows the pool), pools that round up, weights from Gaussians of .01 with biases of .1.

Adapted: convolutions are padded by half their kernel and pools halve any size, rounding up; a normalisation after every
convolution takes the place of the response normalisation.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from volrec.networks.backbones.blocks import Stage, init_gaussian, stack_stages
from volrec.networks.backbones.contract import Backbone
from volrec.networks.layers import CrossChannelNorm, init_kaiming

__all__ = ["AlexNet"]

_STAGES = (
    Stage(96, 11, stride=4, pool=True, response="after"),
    Stage(256, 5, padding=2, pool=True, response="after"),
    Stage(384, 3, padding=1),
    Stage(384, 3, padding=1),
    Stage(256, 3, padding=1, pool=True),
)


class AlexNet(Backbone):
    """AlexNet up to fc7; see the head of this file.

    Parameters
    ----------
    in_channels, faithful, width, norm, tail, dropout, stem_stride
        As for `volrec.networks.backbones.create_backbone`.
    """

    tails: ClassVar[dict[str, int]] = {"fc6": 4096, "fc7": 4096}
    frame_size: ClassVar[tuple[int, int]] = (220, 220)
    grid: ClassVar[tuple[int, int]] = (6, 6)
    stem_stride: ClassVar[int] = 4

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
            self.smallest = (39, 39)
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
        self.add_tail(tail, faithful=faithful, width=width, dropout=dropout, name="alexnet")
        if faithful:
            init_gaussian(self, std=0.01, bias=0.1)
        else:
            init_kaiming(self)
