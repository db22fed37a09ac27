"""Inception-v1 with batch normalisation: the 2D network that I3D inflates.

C. Szegedy, W. Liu, Y. Jia, P. Sermanet, S. Reed, D. Anguelov, D. Erhan, V. Vanhoucke, A. Rabinovich, "Going Deeper with
Convolutions", CVPR 2015; with the normalisation of S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep
Network Training by Reducing Internal Covariate Shift", ICML 2015; in the form that TensorFlow's model library keeps and
that J. Carreira, A. Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017, turn
into I3D.

================  =========================================  ===============
endpoint          operation                                  out (C x H x W)
================  =========================================  ===============
Conv2d_1a_7x7     7x7, stride 2                              64 x 112 x 112
MaxPool2d_2a_3x3  max 3x3, stride 2                          64 x 56 x 56
Conv2d_2b_1x1     1x1                                        64 x 56 x 56
Conv2d_2c_3x3     3x3                                        192 x 56 x 56
MaxPool2d_3a_3x3  max 3x3, stride 2                          192 x 28 x 28
Mixed_3b          64; 96, 128; 16, 32; 32                    256 x 28 x 28
Mixed_3c          128; 128, 192; 32, 96; 64                  480 x 28 x 28
MaxPool2d_4a_3x3  max 3x3, stride 2                          480 x 14 x 14
Mixed_4b          192; 96, 208; 16, 48; 64                   512 x 14 x 14
Mixed_4c          160; 112, 224; 24, 64; 64                  512 x 14 x 14
Mixed_4d          128; 128, 256; 24, 64; 64                  512 x 14 x 14
Mixed_4e          112; 144, 288; 32, 64; 64                  528 x 14 x 14
Mixed_4f          256; 160, 320; 32, 128; 128                832 x 14 x 14
MaxPool2d_5a_2x2  max 2x2, stride 2                          832 x 7 x 7
Mixed_5b          256; 160, 320; 32, 128; 128                832 x 7 x 7
Mixed_5c          384; 192, 384; 48, 128; 128                1024 x 7 x 7
pool              mean over the plane                        1024
================  =========================================  ===============

A Mixed block has four branches side by side: b0 1x1; b1a 1x1, b1b 3x3; b2a 1x1, b2b 3x3 (5x5 in the paper of 2015, see
`googlenet`); b3a max pool 3x3 of stride 1, b3b 1x1. Every convolution: no bias, batch normalisation (epsilon 0.001),
ReLU. All padding is TensorFlow's SAME. 5,599,904 parameters and 1.50 GMAC a slice of three channels and 224 x 224.
Names are those of volrec's I3D with ``Conv2d_`` for ``Conv3d_`` and ``MaxPool2d_`` for ``MaxPool3d_``: parameter by
parameter its 2D twin. Weights start as He et al. 2015 have it (our choice).

Ambiguity: the normalisation learns a scale and an offset here, as in the 3D ports; the original learns an offset only
(7,280 parameters less), which a scale of ones stands for.

Adapted: any normalisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from volrec.networks.backbones.blocks import SameConv2d, SameMaxPool2d
from volrec.networks.backbones.contract import Backbone
from volrec.networks.layers import ConvUnit, init_kaiming, scale_channels

__all__ = ["InceptionV1"]

_EPSILON = 1e-3
# Convolutions: channels, kernel. Pools: kernel. Mixed: channels of b0, b1a, b1b, b2a, b2b and b3b.
_ENDPOINTS: dict[str, tuple[int, ...]] = {
    "Conv2d_1a_7x7": (64, 7),
    "MaxPool2d_2a_3x3": (3,),
    "Conv2d_2b_1x1": (64, 1),
    "Conv2d_2c_3x3": (192, 3),
    "MaxPool2d_3a_3x3": (3,),
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "MaxPool2d_4a_3x3": (3,),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "MaxPool2d_5a_2x2": (2,),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class InceptionV1(Backbone):
    """Inception-v1 up to the global pool; see the head of this file.

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
        self.trunk = nn.Sequential()
        channels = in_channels
        for name, numbers in _ENDPOINTS.items():
            layer: nn.Module
            if name.startswith("MaxPool2d"):
                # Windows of 2x2 lie side by side: SAME padding adds one position at the end of an odd side.
                layer = SameMaxPool2d() if numbers == (3,) else nn.MaxPool2d(2, ceil_mode=True)
            elif name.startswith("Conv2d"):
                out = scale_channels(numbers[0], width)
                layer = _unit(channels, out, numbers[1], norm=norm)
                if name == "Conv2d_1a_7x7":
                    layer.conv = SameConv2d(channels, out, numbers[1], stride, bias=norm == "none")
                channels = out
            else:
                layer = _Mixed(channels, [scale_channels(out, width) for out in numbers], norm=norm)
                channels = layer.out_channels
            self.trunk.add_module(name, layer)
        self.num_maps = channels
        self.add_tail(tail, faithful=faithful, width=width, dropout=dropout, name="inception-v1")
        init_kaiming(self)


class _Mixed(nn.Module):
    """An Inception block: four branches side by side."""

    def __init__(self, channels: int, outs: list[int], *, norm: str) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = outs
        self.b0 = _unit(channels, b0, 1, norm=norm)
        self.b1a = _unit(channels, b1a, 1, norm=norm)
        self.b1b = _unit(b1a, b1b, 3, norm=norm)
        self.b2a = _unit(channels, b2a, 1, norm=norm)
        self.b2b = _unit(b2a, b2b, 3, norm=norm)
        self.b3a = nn.MaxPool2d(3, 1, 1)
        self.b3b = _unit(channels, b3b, 1, norm=norm)
        self.out_channels = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


def _unit(channels: int, out: int, kernel: int, *, norm: str) -> ConvUnit:
    """Return a convolution of stride 1, where half the kernel on both sides is TensorFlow's SAME padding."""
    return ConvUnit(channels, out, kernel_size=kernel, padding=kernel // 2, dims=2, norm=norm, eps=_EPSILON)
