"""GoogLeNet (Inception-v1) without its auxiliary classifiers; its features are called pool5/7x7, 1024 a slice.

C. Szegedy, W. Liu, Y. Jia, P. Sermanet, S. Reed, D. Anguelov, D. Erhan, V. Vanhoucke, A. Rabinovich, "Going Deeper with
Convolutions", CVPR 2015.

==========  =====  ==========  =========  =========  ===============
block       1x1    3x3         5x5        pool, 1x1  out (C x H x W)
==========  =====  ==========  =========  =========  ===============
conv1       7x7, stride 2, padding 3                 64 x 112 x 112
pool1       max 3x3, stride 2; response norm.        64 x 56 x 56
conv2       1x1 (64), 3x3 (192); response norm.      192 x 56 x 56
pool2       max 3x3, stride 2                        192 x 28 x 28
3a          64     96, 128     16, 32     32         256 x 28 x 28
3b          128    128, 192    32, 96     64         480 x 28 x 28
pool3       max 3x3, stride 2                        480 x 14 x 14
4a          192    96, 208     16, 48     64         512 x 14 x 14
4b          160    112, 224    24, 64     64         512 x 14 x 14
4c          128    128, 256    24, 64     64         512 x 14 x 14
4d          112    144, 288    32, 64     64         528 x 14 x 14
4e          256    160, 320    32, 128    128        832 x 14 x 14
pool4       max 3x3, stride 2                        832 x 7 x 7
5a          256    160, 320    32, 128    128        832 x 7 x 7
5b          384    192, 384    48, 128    128        1024 x 7 x 7
pool5       mean over the plane                      1024
==========  =====  ==========  =========  =========  ===============

Two numbers are the channels of a 1x1 convolution and of the larger one behind it. Every convolution has a bias and is
followed by a ReLU. 5,973,552 parameters, 1.58 GMAC a slice of 224 x 224. Pools round up, as Caffe's do; response
normalisation: 5 channels, alpha 1e-4, beta .75. Weights start as He et al. 2015 have it (our choice).

Adapted: a normalisation after every convolution, in place of the response normalisation; pools give half of any size,
rounding up, which is the same at 224 x 224.
"""

from __future__ import annotations

from torch import nn

from volrec.networks.backbones.blocks import Inception, SameMaxPool2d, Unit
from volrec.networks.backbones.contract import Backbone
from volrec.networks.layers import CrossChannelNorm, init_kaiming, scale_channels

__all__ = ["GoogLeNet"]

# 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool proj. None: a pool.
_BLOCKS: dict[str, tuple[int, int, int, int, int, int] | None] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "pool3": None,
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "pool4": None,
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNet(Backbone):
    """GoogLeNet up to pool5; see the head of this file. Layers keep the original names, with "_" for "/".

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
        norm = "none" if faithful else norm
        # 33 positions leave the last blocks two, which instance statistics need.
        self.smallest = self.least(33 if norm == "instance" else 16, stride)
        stem = (
            Unit("conv1_7x7_s2", 64, 7, stride),
            Unit("conv2_3x3_reduce", 64),
            Unit("conv2_3x3", 192, 3),
        )
        layers: dict[str, nn.Module] = {}
        channels = in_channels
        for unit in stem:
            layers[unit.name] = unit.build(channels, width=width, norm=norm, bias=None)
            channels = scale_channels(unit.channels, width)
            if unit.name == "conv1_7x7_s2":
                layers["pool1_3x3_s2"] = SameMaxPool2d()
            if norm == "none" and unit.kernel > 1:
                layers[f"{unit.name[:5]}_norm"] = CrossChannelNorm(5, alpha=1e-4, beta=0.75, k=1, mean=True)
        layers["pool2_3x3_s2"] = SameMaxPool2d()
        for name, sizes in _BLOCKS.items():
            if sizes is None:
                layers[f"{name}_3x3_s2"] = SameMaxPool2d()
                continue
            one, reduce3, three, reduce5, five, projection = sizes
            branches = (
                (Unit("1x1", one),),
                (Unit("3x3_reduce", reduce3), Unit("3x3", three, 3)),
                (Unit("5x5_reduce", reduce5), Unit("5x5", five, 5)),
                (Unit("pool_proj", projection),),
            )
            block = Inception(channels, branches, nn.MaxPool2d(3, 1, 1), width=width, norm=norm)
            layers[f"inception_{name}"] = block
            channels = block.out_channels
        trunk = nn.Sequential()
        for name, layer in layers.items():
            trunk.add_module(name, layer)
        self.trunk = trunk
        self.num_maps = channels
        self.add_tail(tail, faithful=faithful, width=width, dropout=dropout, name="googlenet")
        init_kaiming(self)
