"""CNN-M-2048: the towers of the two-stream networks.

K. Simonyan, A. Zisserman, "Two-Stream Convolutional Networks for Action Recognition in Videos", NIPS 2014.

======  ===================================================  ===============
block   operation                                            out (C x H x W)
======  ===================================================  ===============
conv1   7x7, stride 2, ReLU; response normalisation          96 x 109 x 109
pool1   max 3x3, stride 2                                    96 x 54 x 54
conv2   5x5, stride 2, padding 1, ReLU; response norm.       256 x 26 x 26
pool2   max 3x3, stride 2                                    256 x 13 x 13
conv3   3x3, padding 1, ReLU                                 512 x 13 x 13
conv4   3x3, padding 1, ReLU                                 512 x 13 x 13
conv5   3x3, padding 1, ReLU                                 512 x 13 x 13
pool5   max 3x3, stride 2                                    512 x 6 x 6
fc6     18432 -> 4096, ReLU, dropout                         4096
fc7     4096 -> 2048, ReLU, dropout                          2048
======  ===================================================  ===============

With a last layer of 101 classes 90.63 M parameters and 1.66 GMAC a slice of three channels, 90.71 M and 2.61 GMAC with
twenty. Pools round up. The figure of the paper calls the pools 2x2; its text says 3x3, stride 2, and so it is here. The
temporal tower of the paper has no response normalisation after conv2 (``norm2=False``). The constants of that
normalisation (5 channels, k 2, alpha 1e-4 times the sum of the squares, beta .75) are those of Krizhevsky et al. 2012,
not verified for this network; the initial weights (Gaussians of .01, biases 0) are our choice.

Adapted: convolutions are padded by half their kernel and pools halve any size, rounding up; a normalisation after every
convolution takes the place of the response normalisation.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from volrec.networks.backbones.blocks import Stage, init_gaussian, stack_stages
from volrec.networks.backbones.contract import Backbone
from volrec.networks.layers import CrossChannelNorm, init_kaiming

__all__ = ["CNNM2048"]

_STAGES = (
    Stage(96, 7, stride=2, pool=True, response="before"),
    Stage(256, 5, stride=2, padding=1, pool=True, response="before"),
    Stage(512, 3, padding=1),
    Stage(512, 3, padding=1),
    Stage(512, 3, padding=1, pool=True),
)


class CNNM2048(Backbone):
    """CNN-M-2048 up to fc7; see the head of this file.

    Parameters
    ----------
    in_channels, faithful, width, norm, tail, dropout, stem_stride
        As for `volrec.networks.backbones.create_backbone`.
    norm2 : bool
        Response normalisation after conv2; the temporal tower has none.
    """

    tails: ClassVar[dict[str, int]] = {"fc6": 4096, "fc7": 2048}
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
        norm2: bool = True,
    ) -> None:
        super().__init__()
        stride = stem_stride or self.stem_stride
        norm = "none" if faithful else norm
        if faithful:
            # conv5 must leave the last pool two positions.
            self.smallest = (41, 41)
        else:
            # conv3 to conv5 see a sixteenth of the size; instance statistics need more than one position.
            self.smallest = self.least(32 if norm == "instance" else 16, stride)
        first, second, *others = _STAGES
        self.trunk, self.num_maps = stack_stages(
            [first, second if norm2 else second._replace(response=""), *others],
            in_channels,
            faithful=faithful,
            width=width,
            norm=norm,
            stem_stride=stride,
            response=partial(CrossChannelNorm, 5, alpha=1e-4, beta=0.75, k=2, mean=False),
        )
        self.add_tail(tail, faithful=faithful, width=width, dropout=dropout, name="cnn-m-2048")
        if faithful:
            init_gaussian(self, std=0.01, bias=0.0)
        else:
            init_kaiming(self)
