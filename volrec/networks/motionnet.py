"""MotionNet and Tiny-MotionNet: networks that give the motion between neighbouring slices, learned without labels.

Y. Zhu, Z. Lan, S. Newsam, A. Hauptmann, "Hidden Two-Stream Convolutional Networks for Action Recognition", ACCV 2018.

n slices side by side as channels go in; n - 1 fields of displacements come out at every level from the deepest to 2.
Level k has 1 / 2^(k-1) of the size in the plane. The table is MotionNet for 11 slices of three channels:

==================  ==============================================================================  =============
block               operation (kernels 3x3 unless said)                                             out
==================  ==============================================================================  =============
conv1, conv1_1      stride 1; stride 1                                                              64 x 224
conv2, conv2_1      stride 2; stride 1                                                              128 x 112
conv3, conv3_1      stride 2; stride 1                                                              256 x 56
conv4, conv4_1      stride 2; stride 1                                                              512 x 28
conv5, conv5_1      stride 2; stride 1                                                              512 x 14
conv6, conv6_1      stride 2; stride 1                                                              1024 x 7
predict_flow6       of conv6_1                                                                      20 x 7
level 5             deconv5 4x4, stride 2, of conv6_1; upsample_flow6to5 4x4, stride 2;             512 x 14
                    smooth_conv5 of [conv5_1, deconv5, upsampled flow]; predict_flow5
level 4             the same from smooth_conv5                                                      256 x 28
level 3             the same from smooth_conv4                                                      128 x 56
level 2             the same from smooth_conv3                                                      64 x 112
==================  ==============================================================================  =============

LeakyReLU of slope .1 after the convolutions of the encoder and deconv; nothing after upsampled flow, smooth_conv and
predict_flow; no normalisation. 42,319,860 parameters and 20.05 GMAC at 224 x 224; for two slices 41.80 M and 18.75.

Tiny-MotionNet is not among the paper's released files; this is the form of the re-implementation in deepethogram: conv1
64 (7x7), conv2 128 (5x5, stride 2), conv3 256 and conv4 128 (3x3, stride 2), predict_flow4, then levels 3 (128) and 2
(64) as above. 1.95 M parameters for 11 slices of three channels, with a bias in every layer.

A prediction times 20 is the displacement in pixels of the input: times 20 / 2^(k-1) it is one in pixels of its own
level, which are the paper's factors .625, 1.25, 2.5, 5 and 10 for levels 6 to 2.

Of any size: a convolution of stride 2 rounds up, and what a deconvolution gives too much of is cut off at the right and
below. Nothing is padded, so nothing but the picture enters the losses.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks.facts import check_number
from volrec.networks.layers import scale_channels

__all__ = ["BOUND", "FLOW_SCALE", "MotionNet", "TinyMotionNet"]

FLOW_SCALE = 20.0
"""Pixels of the input that a prediction of 1 stands for."""
BOUND = 20.0
"""Largest displacement that is handed on, in pixels of the input."""
_SLOPE = 0.1


class MotionNet(nn.Module):
    """Slices (N, n, C, H, W) to displacements between neighbours; see the head of this file.

    Parameters
    ----------
    in_channels : int
        Channels C of a slice.
    slices : int
        Slices n of a stack, at least 2.
    width : float
        Scale of all channel counts but those of slices and fields.
    levels : int, optional
        The deepest level, from 3 to the paper's (None: the paper's). Every level halves the plane, so that level 6 of
        a picture of 48 x 48 has 2 x 2 positions.
    faithful : bool
        True: weights start as in the released files (He et al. 2015, by Caffe's count of inputs), and so displacements
        of some pixels. False: predictions start near zero, which is where those between slices lie, and what
        deconvolutions give has the size of what they read.
    """

    # Level to channels of its convolutions, and the kernel of the first; level to channels of its decoder.
    encoder_table: ClassVar[dict[int, tuple[int, ...]]] = {
        1: (64, 64),
        2: (128, 128),
        3: (256, 256),
        4: (512, 512),
        5: (512, 512),
        6: (1024, 1024),
    }
    kernels: ClassVar[dict[int, int]] = {}
    decoder_table: ClassVar[dict[int, int]] = {5: 512, 4: 256, 3: 128, 2: 64}

    def __init__(
        self,
        in_channels: int,
        slices: int = 11,
        *,
        width: float = 1.0,
        levels: int | None = None,
        faithful: bool = False,
    ) -> None:
        super().__init__()
        name, deepest = type(self).__name__, max(self.encoder_table)
        check_number(in_channels, name="in_channels", owner=name, kind=int, low=1)
        check_number(slices, name="slices", owner=name, kind=int, low=2)
        levels = deepest if levels is None else levels
        if not 3 <= levels <= deepest:
            raise ConfigError(
                f"{name} has levels 3 to {deepest}, got levels={levels}.",
                remedy=f"Choose one from 3 to {deepest}, or leave it out for {deepest}.",
                where="network.options.levels",
                code="network-option",
            )
        self.in_channels, self.slices, self.levels = in_channels, slices, levels
        fields = 2 * (slices - 1)
        self.encoder = nn.ModuleDict()
        channels, skips = in_channels * slices, {}
        for level in range(1, levels + 1):
            stage = nn.Sequential()
            for index, paper_channels in enumerate(self.encoder_table[level]):
                out = scale_channels(paper_channels, width)
                kernel = self.kernels.get(level, 3)
                stride = 2 if level > 1 and index == 0 else 1
                label = f"conv{level}" + (f"_{index}" if index else "")
                stage.add_module(label, nn.Conv2d(channels, out, kernel, stride, kernel // 2))
                stage.add_module(f"relu{label[4:]}", nn.LeakyReLU(_SLOPE))
                channels = out
            self.encoder[f"level{level}"] = stage
            skips[level] = channels
        self.decoder = nn.ModuleDict({f"predict_flow{levels}": nn.Conv2d(channels, fields, 3, 1, 1)})
        for level in range(levels - 1, 1, -1):
            out = scale_channels(self.decoder_table[level], width)
            self.decoder[f"deconv{level}"] = nn.ConvTranspose2d(channels, out, 4, 2, 1)
            self.decoder[f"upsample_flow{level + 1}to{level}"] = nn.ConvTranspose2d(fields, fields, 4, 2, 1)
            self.decoder[f"smooth_conv{level}"] = nn.Conv2d(skips[level] + out + fields, out, 3, 1, 1)
            self.decoder[f"predict_flow{level}"] = nn.Conv2d(out, fields, 3, 1, 1)
            channels = out
        self._draw(faithful=faithful)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return displacements at every level, the finest (level 2) first.

        Parameters
        ----------
        x : Tensor
            Slices (N, n, C, H, W), best of mean 0 and a standard deviation of about .25, as the paper's have.

        Returns
        -------
        list of Tensor
            (N, n - 1, 2, h, w) with h = ceil(H / 2^(k-1)) for levels k of 2, 3, …, in pixels of the level. The field
            of slice t says where what lies in it has moved to in slice t + 1.
        """
        found = self._predict(x)
        scales = (FLOW_SCALE / 2 ** (level - 1) for level in range(2, self.levels + 1))
        return [scale * self._as_fields(raw) for scale, raw in zip(scales, found, strict=True)]

    def flow(self, x: Tensor) -> Tensor:
        """Return displacements (N, n - 1, 2, H, W) of slices (N, n, C, H, W), in pixels, within `BOUND`.

        The finest prediction times `FLOW_SCALE`, clipped, and enlarged twice by bilinear interpolation. (The released
        code reads zeros outside of the field there, which changes its outermost pixels; here its edge goes on.)
        """
        height, width = x.shape[-2:]
        finest = (FLOW_SCALE * self._predict(x)[0]).clamp(-BOUND, BOUND)
        large = F.interpolate(finest, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self._as_fields(large[..., :height, :width])

    def _predict(self, x: Tensor) -> list[Tensor]:
        """Return what the layers predict, (N, 2 (n - 1), h, w), the finest first."""
        maps, skips = x.flatten(1, 2), {}
        for level in range(1, self.levels + 1):
            maps = skips[level] = self.encoder[f"level{level}"](maps)
        found = [self.decoder[f"predict_flow{self.levels}"](maps)]
        for level in range(self.levels - 1, 1, -1):
            skip = skips[level]
            height, width = skip.shape[-2:]
            up = F.leaky_relu(self.decoder[f"deconv{level}"](maps), _SLOPE)
            field = self.decoder[f"upsample_flow{level + 1}to{level}"](found[0])
            maps = torch.cat([skip, up[..., :height, :width], field[..., :height, :width]], 1)
            maps = self.decoder[f"smooth_conv{level}"](maps)
            found.insert(0, self.decoder[f"predict_flow{level}"](maps))
        return found

    def _as_fields(self, maps: Tensor) -> Tensor:
        return maps.unflatten(1, (self.slices - 1, 2))

    def _draw(self, *, faithful: bool) -> None:
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d):
                inputs = layer.weight[0].numel()
            elif isinstance(layer, nn.ConvTranspose2d):
                # Caffe counts the outputs; each of them sees the inputs at 2 x 2 positions.
                inputs = layer.weight[0].numel() if faithful else 4 * layer.in_channels
            else:
                continue
            small = not faithful and name.startswith("decoder.predict_flow")
            nn.init.normal_(layer.weight, std=math.sqrt(2 / inputs) * (0.01 if small else 1.0))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class TinyMotionNet(MotionNet):
    """The small form, with levels 4 to 2; see the head of this file. Parameters as of `MotionNet`."""

    encoder_table: ClassVar[dict[int, tuple[int, ...]]] = {1: (64,), 2: (128,), 3: (256,), 4: (128,)}
    kernels: ClassVar[dict[int, int]] = {1: 7, 2: 5}
    decoder_table: ClassVar[dict[int, int]] = {3: 128, 2: 64}
