"""C3D: 3x3x3 convolutions throughout.

D. Tran, L. Bourdev, R. Fergus, L. Torresani, M. Paluri, "Learning Spatiotemporal Features with 3D Convolutional
Networks", ICCV 2015.

========  ================================  =======================
block     operation                         out (C x T x H x W)
========  ================================  =======================
input     BGR clip                          3 x 16 x 112 x 112
conv1a    3x3x3, ReLU                       64 x 16 x 112 x 112
pool1     max 1x2x2                         64 x 16 x 56 x 56
conv2a    3x3x3, ReLU                       128 x 16 x 56 x 56
pool2     max 2x2x2                         128 x 8 x 28 x 28
conv3a/b  3x3x3, ReLU                       256 x 8 x 28 x 28
pool3     max 2x2x2                         256 x 4 x 14 x 14
conv4a/b  3x3x3, ReLU                       512 x 4 x 14 x 14
pool4     max 2x2x2                         512 x 2 x 7 x 7
conv5a/b  3x3x3, ReLU                       512 x 2 x 7 x 7
pool5     max 2x2x2, rounding up            512 x 1 x 4 x 4
fc6, fc7  8192, 4096 -> 4096, ReLU, dropout 4096
fc8       4096 -> classes                   487
========  ================================  =======================

79,991,015 parameters with 487 classes, 78,409,573 with 101; 38.55 GMAC a clip. Weights are drawn from Gaussians of
0.01 (convolutions, fc8) and 0.005 (fc6, fc7); biases start at 0 in conv1a and fc8, at 1 elsewhere.

The nets of the paper's search over kernel depth (`variant`) have five convolutions of 64, 128, 256, 256 and 256
channels, each followed by a pool, and two fully connected layers of 2048; 17.44 M parameters at depth 3. Their sizes
are not equal, as the paper has it: each step of two in depth adds 3.1 M.

Ambiguities and the option that settles each
--------------------------------------------
pool5 : the original (Caffe) rounds up, so the last window covers one row or column; ports in other frameworks pad
    one voxel on both sides instead. Same size, other windows: weights of one form lose accuracy in the other.
norm : the paper has none. "batch" with ``faithful=True`` is the baseline of Carreira and Zisserman (CVPR 2017):
    batch normalisation after every convolution and fully connected layer and a temporal stride of 2 in pool1. That
    paper does not say whether fc8 is normalised too; here it is not, and normalised layers have no bias.

Adapted to volumes (``faithful=False``)
---------------------------------------
Batch normalisation and He initialisation, global pooling and one linear layer in place of the three (or, with
``head="fc"``, fully connected layers behind an adaptive pool to 1 x 4 x 4), any size from 16 x 16 in the plane, any
number of slices (pools round up: no slice is lost), `temporal_strides` for stacks too thin to be halved four times.
For few studies that lie alike (crops around one organ): fewer `stages`, and a `grid` of positions that the head keeps
apart, each with weights of its own on what differs from the mean study, where global pooling would forget the place.
`shrink` makes the input coarser inside the network: unlike a coarser spacing of the store it keeps the exact edge of a
study within its padding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks.base import SequenceNetwork
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import (
    NORMS,
    AdaptivePool3d,
    CaffeMaxPool3d,
    Conv3d,
    RunningCentre,
    init_kaiming,
    norm_layer,
    scale_channels,
)
from volrec.networks.registry import register

__all__ = ["C3D"]


class _Plan(NamedTuple):
    """Stages between two pools as ((name, channels), ...), the kernel depth of each stage, and the size of fc6, fc7."""

    stages: tuple[tuple[tuple[str, int], ...], ...]
    depths: tuple[int, int, int, int, int]
    hidden: int


_NET = (
    (("1a", 64),),
    (("2a", 128),),
    (("3a", 256), ("3b", 256)),
    (("4a", 512), ("4b", 512)),
    (("5a", 512), ("5b", 512)),
)
_SEARCH = ((("1a", 64),), (("2a", 128),), (("3a", 256),), (("4a", 256),), (("5a", 256),))
_PLANS = {
    "1-net": _Plan(_NET, (3, 3, 3, 3, 3), 4096),
    "depth-1": _Plan(_SEARCH, (1, 1, 1, 1, 1), 2048),
    "depth-3": _Plan(_SEARCH, (3, 3, 3, 3, 3), 2048),
    "depth-5": _Plan(_SEARCH, (5, 5, 5, 5, 5), 2048),
    "depth-7": _Plan(_SEARCH, (7, 7, 7, 7, 7), 2048),
    "depth-increasing": _Plan(_SEARCH, (3, 3, 5, 5, 7), 2048),
    "depth-decreasing": _Plan(_SEARCH, (7, 5, 5, 3, 3), 2048),
}

SPEC = NetworkSpec(
    name="c3d",
    paper="Tran, Bourdev, Fergus, Torresani, Paluri",
    title="Learning Spatiotemporal Features with 3D Convolutional Networks",
    year=2015,
    default_clip=(3, 16, 112, 112),
    smallest=(1, 16, 16),
    num_classes=487,
    strides=((1, 2), (2, 2), (2, 2), (2, 2), (2, 2)),
    summary="Plain 3D convolutions of 3x3x3 and max pools.",
    options={
        "variant": Option(
            str,
            "1-net",
            "the paper's net, or one of its search over kernel depth (increasing 3-3-5-5-7, decreasing 7-5-5-3-3)",
            choices=tuple(_PLANS),
            free=tuple(_PLANS),
        ),
        "pool5": Option(
            str,
            "ceil",
            "windows of the last pool: rounding up as the original, symmetric padding as ports, or no pool",
            choices=("ceil", "symmetric", "none"),
            free=("ceil", "symmetric"),
        ),
        "norm": Option(
            str,
            "batch",
            "normalisation after convolutions and hidden layers; 'batch' with faithful=True is the I3D paper's variant",
            choices=NORMS,
            paper="none",
            free=("none", "batch"),
        ),
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
        "stages": Option(int, 5, "stages kept, counted from the input (a stage ends in a pool)", low=1, high=5),
        "shrink": Option(int, 1, "the input is first averaged over cubes of so many voxels a side", low=1, high=16),
        "grid": Option(
            tuple, None, "positions (T, H, W) that the gap head keeps apart (None: 1, 1, 1)", low=1, high=64, length=3
        ),
        "hidden": Option(
            int,
            0,
            "size of the hidden layers: two of the fc head (0: the paper's times width), one of the gap head (0: none)",
            low=0,
        ),
        "dropout": Option(
            float, 0.2, "dropout before fc7 (fc head) and before the last layer", low=0, high=0.95, paper=0.5
        ),
    },
    ambiguities=(
        "pool5: the original rounds up (ceil), ports pad symmetrically (symmetric); same size, other windows.",
        "norm: the paper has none; 'batch' with faithful=True is the I3D paper's baseline, temporal stride 2 in pool1.",
        "variant: the paper calls the search nets equal in size; counted: 14.3, 17.4, 20.5 and 23.7 M parameters.",
    ),
)


@register(SPEC)
class C3D(SequenceNetwork):
    """C3D and its variants; see the head of this file. Layers keep the original names (conv1a … fc8).

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: fixed clip size, the paper's initial weights.
    width : float
        Scale of all channel counts.
    variant, pool5, norm, temporal_strides, head, pooling, stages, shrink, grid, hidden, dropout
        The options of ``spec("c3d")``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        variant: str,
        pool5: str,
        norm: str,
        temporal_strides: tuple[int, ...] | None,
        head: str,
        pooling: str,
        stages: int,
        shrink: int,
        grid: tuple[int, ...] | None,
        hidden: int,
        dropout: float,
    ) -> None:
        if grid is not None and (head != "gap" or pooling != "mean"):
            raise ConfigError(
                f"grid={list(grid)} needs head='gap' and pooling='mean', got head={head!r} and pooling={pooling!r}.",
                remedy="Leave out grid, or head and pooling.",
                where="network.options",
                code="network-option",
            )
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            # The last stage must see a whole position in the plane; instance statistics need more than one.
            smallest=(shrink, *(shrink * 2 ** (stages if norm == "instance" else stages - 1),) * 2),
            exact=SPEC.default_clip[1:] if faithful else None,
        )
        plan = _PLANS[variant]
        self.shrink = shrink
        if temporal_strides is None:
            temporal_strides = (2 if faithful and norm == "batch" else 1, 2, 2, 2, 2)
        self.order: list[tuple[str, str, str]] = []
        channels = in_channels
        kept = list(zip(plan.stages, plan.depths, temporal_strides, strict=True))[:stages]
        for number, (stage, depth, stride) in enumerate(kept, 1):
            for name, out in stage:
                last = name == stage[-1][0] and not (number == len(kept) and pool5 == "none")
                channels = self._add_conv(
                    name, channels, scale_channels(out, width), depth, norm, f"pool{number}" if last else ""
                )
            self.cam_layer = f"conv{stage[-1][0]}"
            if number < len(kept) or pool5 != "none":
                pool = CaffeMaxPool3d((stride, 2, 2), symmetric=number == len(kept) and pool5 == "symmetric")
                self.add_module(f"pool{number}", pool)
        if head == "fc" and not hidden:
            hidden = scale_channels(plan.hidden, width)
        self._add_head(head, channels, pooling, grid, hidden, norm, dropout)
        self.fc8 = nn.Linear(self.num_features, num_classes)
        self._init_weights(faithful)

    classifier_name = "fc8"
    positions = 1

    def init_classifier(self, layer: nn.Linear) -> None:
        """Draw the last layer as if its positions were averaged: many of them start as near to equal scores as one."""
        nn.init.normal_(layer.weight, std=0.01 / math.sqrt(self.positions))
        nn.init.zeros_(layer.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the maps after the last pool (B, F, T', H', W')."""
        if self.shrink > 1:
            x = F.avg_pool3d(x, self.shrink, ceil_mode=True)  # no slice is lost: a cube at the end may be smaller
        for conv, norm, pool in self.order:
            x = self.get_submodule(conv)(x)
            if norm:
                x = self.get_submodule(norm)(x)
            if pool:
                # ReLU commutes with the maximum: pooling first gives the same numbers on an eighth of the voxels.
                x = self.get_submodule(pool)(x)
            x = F.relu(x)
        return x

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or with `pre_logits` the activations of fc7 (gap head: pooled features)."""
        x = self.pool(features)
        for fc, norm, drop in self.hidden_layers:
            x = self.get_submodule(fc)(x)
            if norm:
                x = self.get_submodule(norm)(x)
            x = F.relu(x)
            if drop:
                x = self.get_submodule(drop)(x)
        return x if pre_logits else self.fc8(self.drop7(x))

    def _add_conv(self, name: str, channels: int, out: int, depth: int, norm: str, pool: str) -> int:
        conv = Conv3d(channels, out, (depth, 3, 3), padding=(depth // 2, 1, 1), bias=norm == "none")
        self.add_module(f"conv{name}", conv)
        if norm != "none":
            self.add_module(f"norm{name}", norm_layer(norm, out, dims=3))
        self.order.append((f"conv{name}", f"norm{name}" if norm != "none" else "", pool))
        return out

    def _add_head(
        self,
        head: str,
        channels: int,
        pooling: str,
        grid: tuple[int, ...] | None,
        hidden: int,
        norm: str,
        dropout: float,
    ) -> None:
        self.hidden_layers: list[tuple[str, str, str]] = []
        if head == "fc":
            # At the paper's clip size the maps are 1 x 4 x 4 already and this pool changes nothing.
            self.pool: nn.Module = nn.Sequential(nn.AdaptiveAvgPool3d((1, 4, 4)), nn.Flatten())
            features = channels * 16
            names = ["fc6", "fc7"]
        else:
            pool = AdaptivePool3d(pooling)
            self.pool = pool
            features = channels * pool.multiple
            if grid is not None:
                features = channels * math.prod(grid)
                self.pool = nn.Sequential(nn.AdaptiveAvgPool3d(grid), nn.Flatten(), RunningCentre(features))
                self.positions = math.prod(grid)
            names = ["fc7"] if hidden else []
        for name in names:
            self.add_module(name, nn.Linear(features, hidden, bias=norm == "none"))
            if norm != "none":
                self.add_module(f"norm{name}", norm_layer(norm, hidden, dims=0))
            if name == "fc6":
                self.drop6 = nn.Dropout(dropout)
            self.hidden_layers.append((name, f"norm{name}" if norm != "none" else "", "drop6" if name == "fc6" else ""))
            features = hidden
        self.drop7 = nn.Dropout(dropout)
        self.num_features = features

    def _init_weights(self, faithful: bool) -> None:
        if not faithful:
            init_kaiming(self)
            self.init_classifier(self.fc8)
            return
        for name, layer in self.named_modules():
            if isinstance(layer, (nn.Conv3d, nn.Linear)):
                nn.init.normal_(layer.weight, std=0.005 if name in {"fc6", "fc7"} else 0.01)
                if layer.bias is not None:
                    nn.init.constant_(layer.bias, 0.0 if name in {"conv1a", "fc8"} else 1.0)
