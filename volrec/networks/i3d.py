"""I3D: Inception-v1 with its kernels and pools inflated along time.

J. Carreira, A. Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017.

================  =========================================  =====================
endpoint          operation                                  out (C x T x H x W)
================  =========================================  =====================
input             RGB clip, or flow with 2 channels          3 x 64 x 224 x 224
Conv3d_1a_7x7     7x7x7, stride 2                            64 x 32 x 112 x 112
MaxPool3d_2a_3x3  max 1x3x3, stride 1x2x2                    64 x 32 x 56 x 56
Conv3d_2b_1x1     1x1x1                                      64 x 32 x 56 x 56
Conv3d_2c_3x3     3x3x3                                      192 x 32 x 56 x 56
MaxPool3d_3a_3x3  max 1x3x3, stride 1x2x2                    192 x 32 x 28 x 28
Mixed_3b          64; 96, 128; 16, 32; 32                    256 x 32 x 28 x 28
Mixed_3c          128; 128, 192; 32, 96; 64                  480 x 32 x 28 x 28
MaxPool3d_4a_3x3  max 3x3x3, stride 2                        480 x 16 x 14 x 14
Mixed_4b          192; 96, 208; 16, 48; 64                   512 x 16 x 14 x 14
Mixed_4c          160; 112, 224; 24, 64; 64                  512 x 16 x 14 x 14
Mixed_4d          128; 128, 256; 24, 64; 64                  512 x 16 x 14 x 14
Mixed_4e          112; 144, 288; 32, 64; 64                  528 x 16 x 14 x 14
Mixed_4f          256; 160, 320; 32, 128; 128                832 x 16 x 14 x 14
MaxPool3d_5a_2x2  max 2x2x2, stride 2                        832 x 8 x 7 x 7
Mixed_5b          256; 160, 320; 32, 128; 128                832 x 8 x 7 x 7
Mixed_5c          384; 192, 384; 48, 128; 128                1024 x 8 x 7 x 7
average           mean 2x7x7, stride 1, no padding           1024 x 7 x 1 x 1
logits            dropout 0.5, 1x1x1 with bias, mean over T  400
================  =========================================  =====================

A Mixed block has four branches side by side: b0 1x1x1; b1a 1x1x1, b1b 3x3x3; b2a 1x1x1, b2b 3x3x3; b3a max pool 3x3x3
of stride 1, b3b 1x1x1. Every convolution but the last: no bias, batch normalisation (epsilon 0.001), ReLU. All padding
is TensorFlow's SAME: ceil(n / stride) positions come out, and an odd voxel of padding goes to the end. The last
convolution and the mean over time commute, so `classifier` is a linear layer on the mean; `time_logits` gives the
logits of every step.

12,697,264 parameters with 400 classes for RGB, 12,675,312 for flow (12,689,984 and 12,668,032 with ``bn_scale=False``);
27.8 GMAC for 16 frames, 55.6 for 32, 111.2 for 64, 434.9 for 250. Weights are drawn from a Gaussian of deviation
1 / sqrt(inputs), cut at two deviations, as the released code has it; the paper starts from an inflated Inception-v1.

Ambiguities and the option that settles each
--------------------------------------------
bn_scale : the original normalises with a learned offset and no learned scale; ports have both. The weights of either
    form load into the other: the scale that is not learned is kept as a buffer of ones.
size : the paper tests on whole videos of 250 frames, so T is free: from 9 up, where the average over two positions
    finds two (64 frames give 7 steps of logits, 250 give 31). Logits are averaged over time, as in the released code.
names : they are those of the original. Its second convolution of branch 2 in Mixed_5b is called Conv3d_0a_3x3, in all
    other blocks Conv3d_0b_3x3; here it is b2b everywhere.

Adapted to volumes (``faithful=False``)
---------------------------------------
Any size from 32 x 32 in the plane, any number of slices from 1; He initialisation; global pooling (`pooling`) in place
of the average over 2 x 7 x 7. `temporal_strides` for stacks too thin to be halved three times (a pool grows with its
stride, so that no slice falls between two windows). `stem_stride` is the stride in the plane of Conv3d_1a_7x7 and
MaxPool3d_2a_3x3 together: 4 is 2 and 2, 2 is 2 and 1 (the convolution stays cheap), 1 is none, and the smallest canvas
shrinks with it. ``temporal_padding="replicate"`` repeats the first and the last slice instead of padding with zeros:
a stack of one repeated slice then gives at every step what the 2D network gives for the slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks.base import SequenceNetwork
from volrec.networks.facts import NetworkSpec, Option, parameter_error
from volrec.networks.layers import (
    NORMS,
    AdaptivePool3d,
    ConvUnit,
    SameConv3d,
    SameMaxPool3d,
    init_kaiming,
    same_padding,
    scale_channels,
)
from volrec.networks.layers.convolution import convolve3d
from volrec.networks.registry import register

__all__ = ["I3D", "Mixed"]

_EPSILON = 1e-3
# Convolutions: channels and kernel. Pools: kernel (T, H, W). Mixed: channels of b0, b1a, b1b, b2a, b2b and b3b.
_ENDPOINTS: dict[str, tuple[int, ...]] = {
    "Conv3d_1a_7x7": (64, 7),
    "MaxPool3d_2a_3x3": (1, 3, 3),
    "Conv3d_2b_1x1": (64, 1),
    "Conv3d_2c_3x3": (192, 3),
    "MaxPool3d_3a_3x3": (1, 3, 3),
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": (3, 3, 3),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": (2, 2, 2),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Stride in the plane of the stem -> of its convolution and its pool.
_STEM = {1: (1, 1), 2: (2, 1), 4: (2, 2)}

SPEC = NetworkSpec(
    name="i3d",
    paper="Carreira, Zisserman",
    title="Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset",
    year=2017,
    default_clip=(3, 64, 224, 224),
    smallest=(1, 32, 32),
    num_classes=400,
    strides=((2, 2), (1, 2), (1, 2), (2, 2), (2, 2)),
    summary="Inception-v1 inflated along time.",
    options={
        "norm": Option(str, "batch", "normalisation after every convolution but the last", choices=NORMS),
        "bn_scale": Option(bool, True, "normalisation learns a scale (ports) or an offset only (original)", free=True),
        "temporal_strides": Option(
            tuple,
            None,
            "stride along T of Conv3d_1a and the pools 2a, 3a, 4a, 5a (None: 2, 1, 1, 2, 2); 1 keeps every slice",
            low=1,
            high=4,
            length=5,
        ),
        "stem_stride": Option(
            int, 4, "stride in the plane of Conv3d_1a and MaxPool3d_2a together: 4, 2 or 1 (more detail)", low=1, high=4
        ),
        "temporal_padding": Option(
            str,
            "zero",
            "what convolutions read before the first and after the last slice: zeros, or that slice again",
            choices=("zero", "replicate"),
        ),
        "pooling": Option(str, "mean", "global pooling before the last layer", choices=("mean", "max", "mean-max")),
        "dropout": Option(float, 0.2, "dropout before the last layer", low=0, high=0.95, paper=0.5),
    },
    ambiguities=(
        "bn_scale: the original learns an offset only (12,689,984 parameters), ports a scale too (12,697,264).",
        "T is free from 9 frames up with faithful=True: the paper trains on 64 and tests on whole videos.",
    ),
)


class Mixed(nn.Module):
    """An Inception block: four branches side by side.

    Parameters
    ----------
    channels : int
        Channels of the input.
    outs : sequence of int
        Channels of b0, b1a, b1b, b2a, b2b and b3b.
    unit : callable
        Makes a convolution with what follows it, of ``(channels, out, kernel_size)``.
    """

    def __init__(self, channels: int, outs: Sequence[int], *, unit: Callable[..., ConvUnit]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = outs
        self.b0 = unit(channels, b0, 1)
        self.b1a = unit(channels, b1a, 1)
        self.b1b = unit(b1a, b1b, 3)
        self.b2a = unit(channels, b2a, 1)
        self.b2b = unit(b2a, b2b, 3)
        self.b3a = SameMaxPool3d(3, 1)
        self.b3b = unit(channels, b3b, 1)
        self.out_channels = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (B, `out_channels`, T, H, W) of maps (B, C, T, H, W)."""
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


@register(SPEC)
class I3D(SequenceNetwork):
    """I3D; see the head of this file. Layers keep the original names (Conv3d_1a_7x7 … Mixed_5c).

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: 224 x 224 in the plane, the average over 2 x 7 x 7, the released code's initial weights.
    width : float
        Scale of all channel counts.
    norm, bn_scale, temporal_strides, stem_stride, temporal_padding, pooling, dropout
        The options of ``spec("i3d")``.
    """

    cam_layer = "Mixed_5c"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        norm: str,
        bn_scale: bool,
        temporal_strides: tuple[int, ...] | None,
        stem_stride: int,
        temporal_padding: str,
        pooling: str,
        dropout: float,
    ) -> None:
        if stem_stride not in _STEM:
            raise parameter_error("stem_stride", "i3d", "1, 2 or 4", stem_stride)
        if norm == "none" and not bn_scale:
            raise ConfigError(
                "bn_scale=False leaves out the scale of a normalisation, got norm='none'.",
                remedy="Leave out bn_scale, or choose a normalisation.",
                where="network.options",
                code="network-option",
            )
        # The last maps must hold a whole position in the plane; instance statistics need more than one.
        least = 8 * stem_stride + (norm == "instance")
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(9, *SPEC.default_clip[2:]) if faithful else (1, least, least),
            exact=(None, *SPEC.default_clip[2:]) if faithful else None,
        )
        self.faithful = faithful
        along = temporal_strides or [t for t, _ in SPEC.strides]
        in_plane = (*_STEM[stem_stride], *(plane for _, plane in SPEC.strides[2:]))
        strides = iter([(t, plane, plane) for t, plane in zip(along, in_plane, strict=True)])
        unit = partial(_unit, norm=norm, bn_scale=bn_scale, replicate=temporal_padding == "replicate")
        channels = in_channels
        for name, numbers in _ENDPOINTS.items():
            layer: nn.Module
            if name.startswith("MaxPool3d"):
                # A window shorter than its stride would step over slices.
                step = next(strides)
                layer = SameMaxPool3d([max(sizes) for sizes in zip(numbers, step, strict=True)], step)
            elif name.startswith("Conv3d"):
                out = scale_channels(numbers[0], width)
                layer = unit(channels, out, numbers[1], next(strides) if name == "Conv3d_1a_7x7" else 1)
                channels = out
            else:
                layer = Mixed(channels, [scale_channels(out, width) for out in numbers], unit=unit)
                channels = layer.out_channels
            self.add_module(name, layer)
        # At 7 x 7 every position of the plane is in the window; what is left are the steps along T.
        self.average = nn.AvgPool3d((2, 7, 7), stride=1) if faithful else nn.Identity()
        self.pool = AdaptivePool3d(pooling)
        self.dropout = nn.Dropout(dropout)
        self.num_features = channels * self.pool.multiple
        self.classifier = nn.Linear(self.num_features, num_classes)
        if faithful:
            self.apply(_init_released)
        else:
            init_kaiming(self, keep="fan_in" if norm == "none" else "fan_out")
            self.init_classifier(self.classifier)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Draw the last layer: as the released code in the paper's form, else small."""
        if self.faithful:
            _init_released(layer)
        else:
            super().init_classifier(layer)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the maps of Mixed_5c (B, 1024, T', H', W')."""
        for name in _ENDPOINTS:
            x = self.get_submodule(name)(x)
        return x

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or with `pre_logits` the pooled features (B, F)."""
        if self.faithful:
            # The paper drops before the mean over time: every step loses other features.
            pooled = self.pool(self.dropout(self.average(features)))
            return pooled if pre_logits else self.classifier(pooled)
        pooled = self.pool(features)
        return pooled if pre_logits else self.classifier(self.dropout(pooled))

    def time_logits(self, x: Tensor) -> Tensor:
        """Return the logits of every step along T.

        Parameters
        ----------
        x : Tensor
            Clips (B, C, T, H, W).

        Returns
        -------
        Tensor
            (B, T', num_classes). Their mean over T' is `forward` (with ``pooling="mean"``). In the paper's form a step
            is the average over two positions of the last maps (T' = 7 for 64 frames), else one position.

        Raises
        ------
        ConfigError
            For clips that the network cannot read.
        """
        self.check_input(x)
        steps = self.average(self.forward_features(x)).transpose(1, 2)
        pooled = self.pool(steps.flatten(0, 1).unsqueeze(2))
        return self.classifier(self.dropout(pooled)).unflatten(0, steps.shape[:2])


class _ReplicateConv3d(SameConv3d):
    """SAME padding that repeats the first and the last slice along T, and is zero in the plane."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution (B, F, ceil(T / s), ceil(H / s), ceil(W / s))."""
        sides = [same_padding(int(n), k, s) for n, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)]
        time, height, width = sides
        if any(time):
            x = F.pad(x, (0, 0, 0, 0, *time), mode="replicate")
        if any(height + width):
            x = F.pad(x, (*width, *height))
        return convolve3d(self, x, (0, 0, 0))


def _unit(
    channels: int,
    out: int,
    kernel_size: int,
    stride: int | tuple[int, int, int] = 1,
    *,
    norm: str,
    bn_scale: bool,
    replicate: bool,
) -> ConvUnit:
    unit = ConvUnit(channels, out, kernel_size=kernel_size, stride=stride, padding="same", norm=norm, eps=_EPSILON)
    if replicate and kernel_size > 1:
        unit.conv = _ReplicateConv3d(channels, out, kernel_size, stride, bias=norm == "none")
    if not bn_scale:
        del unit.norm.weight
        unit.norm.register_buffer("weight", torch.ones(out))
    return unit


def _init_released(layer: nn.Module) -> None:
    if isinstance(layer, (nn.Conv3d, nn.Linear)):
        std = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
