"""BN-Inception: Inception with batch normalisation, the frame network of TSN.

S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
ICML 2015; in the form of L. Wang, Y. Xiong, Z. Wang, Y. Qiao, D. Lin, X. Tang, L. Van Gool, "Temporal Segment
Networks: Towards Good Practices for Deep Action Recognition", ECCV 2016.

=======  =====  ==========  =============  ==========  ===============
block    1x1    3x3         two 3x3        pool, 1x1   out (C x H x W)
=======  =====  ==========  =============  ==========  ===============
conv1    7x7, stride 2, padding 3; max 3x3, stride 2   64 x 56 x 56
conv2    1x1 (64), 3x3 (192); max 3x3, stride 2        192 x 28 x 28
3a       64     64, 64      64, 96, 96     mean, 32    256 x 28 x 28
3b       64     64, 96      64, 96, 96     mean, 64    320 x 28 x 28
3c, /2   -      128, 160    64, 96, 96     max, -      576 x 14 x 14
4a       224    64, 96      96, 128, 128   mean, 128   576 x 14 x 14
4b       192    96, 128     96, 128, 128   mean, 128   576 x 14 x 14
4c       160    128, 160    128, 160, 160  mean, 128   608 x 14 x 14
4d       96     128, 192    160, 192, 192  mean, 128   608 x 14 x 14
4e, /2   -      128, 192    192, 256, 256  max, -      1056 x 7 x 7
5a       352    192, 320    160, 224, 224  mean, 128   1024 x 7 x 7
5b       352    192, 320    192, 224, 224  max, 128    1024 x 7 x 7
pool     mean over the plane                           1024
=======  =====  ==========  =============  ==========  ===============

In 3c and 4e the last convolution of a branch and the pool have stride 2. Every convolution has a bias and is followed
by batch normalisation and a ReLU. The pools of stride 1 are 3x3 with padding 1, and the mean counts the padding; those
of stride 2 have no padding and round up (rounding down costs a port about ten points of accuracy). With a last layer
of 101 classes 10,373,765 parameters and 2.03 GMAC a slice of three channels, 2.31 GMAC with ten. Biases start at .2,
which the normalisation takes back; weights start as He et al. 2015 have it (our choice).

Adapted: any normalisation, and no bias beside one; pools give half of any size, rounding up, as the convolutions next
to them do, which is the same at 224 x 224.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from volrec.networks.backbones.blocks import Inception, SameMaxPool2d, Unit
from volrec.networks.backbones.contract import Backbone
from volrec.networks.layers import init_kaiming, scale_channels

__all__ = ["BNInception"]


class _Block(NamedTuple):
    """Channels of one block; a block without 1x1 convolution has stride 2."""

    one: int
    three: tuple[int, int]
    double: tuple[int, int]
    pool: str
    projection: int


_BLOCKS = {
    "3a": _Block(64, (64, 64), (64, 96), "mean", 32),
    "3b": _Block(64, (64, 96), (64, 96), "mean", 64),
    "3c": _Block(0, (128, 160), (64, 96), "max", 0),
    "4a": _Block(224, (64, 96), (96, 128), "mean", 128),
    "4b": _Block(192, (96, 128), (96, 128), "mean", 128),
    "4c": _Block(160, (128, 160), (128, 160), "mean", 128),
    "4d": _Block(96, (128, 192), (160, 192), "mean", 128),
    "4e": _Block(0, (128, 192), (192, 256), "max", 0),
    "5a": _Block(352, (192, 320), (160, 224), "mean", 128),
    "5b": _Block(352, (192, 320), (192, 224), "max", 128),
}


class BNInception(Backbone):
    """BN-Inception up to the global pool; see the head of this file. Layers keep the original names, "_" for "/".

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
        bias = True if faithful else None
        # 33 positions leave the last blocks two, which instance statistics need.
        self.smallest = self.least(33 if norm == "instance" else 16, stride)
        trunk = nn.Sequential()
        channels = in_channels
        stem = (Unit("conv1_7x7_s2", 64, 7, stride), Unit("conv2_3x3_reduce", 64), Unit("conv2_3x3", 192, 3))
        for unit in stem:
            trunk.add_module(unit.name, unit.build(channels, width=width, norm=norm, bias=bias))
            channels = scale_channels(unit.channels, width)
            if unit.kernel > 1:
                trunk.add_module(f"pool{unit.name[4]}_3x3_s2", SameMaxPool2d())
        for name, block in _BLOCKS.items():
            step = 1 if block.one else 2
            branches = [
                [Unit("3x3_reduce", block.three[0]), Unit("3x3", block.three[1], 3, step)],
                [
                    Unit("double_3x3_reduce", block.double[0]),
                    Unit("double_3x3_1", block.double[1], 3),
                    Unit("double_3x3_2", block.double[1], 3, step),
                ],
                [],
            ]
            if block.one:
                branches.insert(0, [Unit("1x1", block.one)])
                branches[-1].append(Unit("pool_proj", block.projection))
            pool = SameMaxPool2d() if step == 2 else {"mean": nn.AvgPool2d, "max": nn.MaxPool2d}[block.pool](3, 1, 1)
            layer = Inception(channels, branches, pool, width=width, norm=norm, bias=bias)
            trunk.add_module(f"inception_{name}", layer)
            channels = layer.out_channels
        self.trunk = trunk
        self.num_maps = channels
        self.add_tail(tail, faithful=faithful, width=width, dropout=dropout, name="bn-inception")
        init_kaiming(self)
        if faithful:
            for conv in self.modules():
                if isinstance(conv, nn.Conv2d) and conv.bias is not None:
                    nn.init.constant_(conv.bias, 0.2)
