"""LTC: long-term temporal convolutions, a small C3D that reads 60 or 100 frames of low resolution at once.

G. Varol, I. Laptev, C. Schmid, "Long-term Temporal Convolutions for Action Recognition", IEEE Transactions on Pattern
Analysis and Machine Intelligence, 2018 (online 2017).

========  ==========================  ========================
block     operation                   out (C x T x H x W)
========  ==========================  ========================
input     RGB (flow: 2 channels)      3 x 100 x 71 x 71
conv1     3x3x3, ReLU                 64 x 100 x 71 x 71
pool1     max 1x2x2                   64 x 100 x 35 x 35
conv2     3x3x3, ReLU                 128 x 100 x 35 x 35
pool2     max 2x2x2                   128 x 50 x 17 x 17
conv3     3x3x3, ReLU                 256 x 50 x 17 x 17
pool3     max 2x2x2                   256 x 25 x 8 x 8
conv4     3x3x3, ReLU                 256 x 25 x 8 x 8
pool4     max 2x2x2                   256 x 12 x 4 x 4
conv5     3x3x3, ReLU                 256 x 12 x 4 x 4
pool5     max 2x2x2                   256 x 6 x 2 x 2
fc6, fc7  6144, 2048 -> 2048, ReLU,   2048
          dropout
fc8       2048 -> classes             101
========  ==========================  ========================

Pools round down. The published clip sizes differ in the first fully connected layer only; with two channels of flow
and 101 classes:

=======  ===============  ===============  ============  ====
variant  input T x H x W  pool5            parameters M  GMAC
=======  ===============  ===============  ============  ====
16x112   16 x 112 x 112   256 x 1 x 3 x 3  13.77         18.9
60x58    60 x 58 x 58     256 x 3 x 1 x 1  10.63         18.5
100x58   100 x 58 x 58    256 x 6 x 1 x 1  12.20         30.8
60x71    60 x 71 x 71     256 x 3 x 2 x 2  15.35         26.9
100x71   100 x 71 x 71    256 x 6 x 2 x 2  21.64         44.8
=======  ===============  ===============  ============  ====

21,639,269 parameters with RGB at 100 x 71 x 71. Flow networks start from random weights, here uniform within
1 / sqrt(inputs of a unit), recalled as the rule of the framework it was written in and not verified; RGB networks start
from C3D.

Ambiguities and the option that settles each
--------------------------------------------
variant : the paper compares five clip sizes and averages the scores of several in its best result; "100x71", the
    longest and largest, is the default here.
dropout : .9 for flow learnt from scratch, .5 for RGB that starts from C3D; .5 is the default of the paper's form here.

Adapted to volumes (``faithful=False``)
---------------------------------------
Batch normalisation after the convolutions and He initialisation, global pooling and one linear layer in place of the
three (or, with ``head="fc"``, the fully connected layers behind an adaptive pool to the maps of `variant`), any size
from 16 x 16 in the plane, any number of slices (pools round up: no slice is lost), `temporal_strides` for stacks too
thin to be halved four times. Long stacks are what this network is for: a position of its last maps sees 48 slices.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from volrec.networks.base import SequenceNetwork
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import NORMS, AdaptivePool3d, ConvUnit, init_kaiming, scale_channels
from volrec.networks.registry import register

__all__ = ["LTC"]

_CHANNELS = (64, 128, 256, 256, 256)
_STRIDES = (1, 2, 2, 2, 2)
_HIDDEN = 2048
_CLIPS = {
    "100x71": (100, 71, 71),
    "60x71": (60, 71, 71),
    "100x58": (100, 58, 58),
    "60x58": (60, 58, 58),
    "16x112": (16, 112, 112),
}

SPEC = NetworkSpec(
    name="ltc",
    paper="Varol, Laptev, Schmid",
    title="Long-term Temporal Convolutions for Action Recognition",
    year=2018,
    default_clip=(3, *_CLIPS["100x71"]),
    smallest=(1, 16, 16),
    num_classes=101,
    strides=tuple((stride, 2) for stride in _STRIDES),
    summary="Five 3D convolutions and pools over very long clips of low resolution.",
    options={
        "variant": Option(
            str,
            "100x71",
            "published clip, T x side: the only size with faithful=True, else it sets the pool before the fc head",
            choices=tuple(_CLIPS),
            free=True,
        ),
        "norm": Option(str, "batch", "normalisation after every convolution", choices=NORMS, paper="none"),
        "temporal_strides": Option(
            tuple,
            None,
            "stride of the five pools along T (None: 1, 2, 2, 2, 2); 1 keeps every slice",
            low=1,
            high=4,
            length=5,
        ),
        "head": Option(
            str,
            "gap",
            "global pooling and one linear layer, or fully connected layers",
            choices=("gap", "fc"),
            paper="fc",
        ),
        "pooling": Option(
            str, "mean", "global pooling of the gap head", choices=("mean", "max", "mean-max"), paper="mean"
        ),
        "dropout": Option(
            float,
            0.2,
            "dropout before fc7 (fc head) and before the last layer; the paper has 0.9 for flow, 0.5 for RGB",
            low=0,
            high=0.95,
            paper=0.5,
            free=True,
        ),
    },
    ambiguities=(
        "variant: five published sizes, which differ in the first fully connected layer; 100x71 is the default.",
        "dropout: 0.9 for flow, 0.5 for RGB that starts from C3D; 0.5 is the default of the paper's form.",
    ),
)


@register(SPEC)
class LTC(SequenceNetwork):
    """LTC; see the head of this file. Layers are called conv1 … conv5, fc6 … fc8.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels (the paper: 3 of RGB or 2 of flow).
    faithful : bool
        The paper's form: the clip size of `variant` only, pools that round down.
    width : float
        Scale of all channel counts.
    variant, norm, temporal_strides, head, pooling, dropout
        The options of ``spec("ltc")``.
    """

    classifier_name = "fc8"
    cam_layer = "conv5"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        variant: str,
        norm: str,
        temporal_strides: tuple[int, ...] | None,
        head: str,
        pooling: str,
        dropout: float,
    ) -> None:
        size = _CLIPS[variant]
        # The last convolution must see a whole position in the plane; instance statistics need more than one.
        least = 32 if norm == "instance" else 16
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(1, least, least),
            exact=size if faithful else None,
        )
        self.faithful = faithful
        channels = in_channels
        for number, (paper_channels, stride) in enumerate(zip(_CHANNELS, temporal_strides or _STRIDES, strict=True), 1):
            out = scale_channels(paper_channels, width)
            self.add_module(f"conv{number}", ConvUnit(channels, out, kernel_size=3, padding=1, norm=norm, relu=False))
            self.add_module(f"pool{number}", nn.MaxPool3d((stride, 2, 2), ceil_mode=not faithful))
            channels = out
        self.drop6 = nn.Dropout(dropout)
        self.drop7 = nn.Dropout(dropout)
        if head == "fc":
            # At the paper's clip size the maps have this size already and the pool changes nothing.
            grid = (size[0] // math.prod(_STRIDES), size[1] // 32, size[2] // 32)
            self.num_features = scale_channels(_HIDDEN, width)
            self.pool: nn.Module = nn.Sequential(nn.AdaptiveAvgPool3d(grid), nn.Flatten())
            self.fc6 = nn.Linear(channels * math.prod(grid), self.num_features)
            self.fc7 = nn.Linear(self.num_features, self.num_features)
        else:
            pool = AdaptivePool3d(pooling)
            self.pool = pool
            self.num_features = channels * pool.multiple
        self.head = head
        self.fc8 = nn.Linear(self.num_features, num_classes)
        if not faithful:  # torch draws convolutions and linear layers by the paper's rule already
            init_kaiming(self)
            self.init_classifier(self.fc8)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Draw the last layer: small, or in the paper's form by the rule of all its layers (as it comes)."""
        if not self.faithful:
            super().init_classifier(layer)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the maps after the last pool (B, F, T', H', W')."""
        for number in range(1, len(_CHANNELS) + 1):
            x = self.get_submodule(f"conv{number}")(x)
            # ReLU commutes with the maximum: pooling first gives the same numbers on an eighth of the voxels.
            x = F.relu(self.get_submodule(f"pool{number}")(x))
        return x

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or with `pre_logits` the activations of fc7 (gap head: pooled features)."""
        x = self.pool(features)
        if self.head == "fc":
            x = F.relu(self.fc7(self.drop6(F.relu(self.fc6(x)))))
        return x if pre_logits else self.fc8(self.drop7(x))
