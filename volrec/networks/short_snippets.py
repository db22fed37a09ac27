"""Pooling of slice features over long stacks: five places to put a maximum over time.

J. Y.-H. Ng, M. Hausknecht, S. Vijayanarasimhan, O. Vinyals, R. Monga, G. Toderici, "Beyond Short Snippets: Deep
Networks for Video Classification", CVPR 2015. The recurrent network of the paper is in ``stacked_lstm.py``.

A 2D network that all frames share gives maps; 30 frames are read, in the end 120. The last layer gives K classes.
There are n windows of 10 frames, each 5 frames after the one before: 5 in 30 frames, 23 in 120.

=============  ==========================================================================================  ============
name           from the frames' maps (T) to the last layer                                                 last layer
=============  ==========================================================================================  ============
conv-pooling   max over T, fc 4096, fc 4096                                                                4096 -> K
late-pooling   fc 4096, fc 4096 of each frame, max over T                                                  4096 -> K
slow-pooling   max in each window, fc 4096 of each window, max over windows, fc 4096                       4096 -> K
local-pooling  max in each window, fc 4096, fc 4096 of each window, side by side                           n * 4096 -> K
time-conv      256 kernels of 3x3 over the 10 frames of each window, max over windows, fc 4096, fc 4096    4096 -> K
=============  ==========================================================================================  ============

A ReLU follows each convolution and fully connected (fc) layer; dropout lies between fc layers and before the last one.
The weights on windows and frames are shared. With ``conv-pooling`` and ``late-pooling`` the order of the slices does
not matter. Nothing but ``local-pooling`` depends on the number of frames: the paper trains on single frames, then
expands the same weights to 30 and to 120 frames.

Parameters and multiply-adds with 487 classes and 30 frames:

=============  =======================  =======================
name           GoogLeNet                AlexNet
=============  =======================  =======================
conv-pooling   28,948,503, 47.5 GMAC    60,276,583, 31.2 GMAC
late-pooling   28,948,503, 48.1 GMAC    60,276,583, 32.7 GMAC
slow-pooling   28,948,503, 47.5 GMAC    60,276,583, 31.3 GMAC
local-pooling  36,927,511, 47.6 GMAC    68,255,591, 31.4 GMAC
time-conv      99,727,639, 53.3 GMAC    66,175,079, 32.2 GMAC
=============  =======================  =======================

Ambiguities and the option that settles each
--------------------------------------------
backbone : GoogLeNet at 224 x 224 or AlexNet at 220 x 220.
plane : whether the maps reach the fc layers with their positions ("keep"), as mean over the plane taken after pooling
    over slices ("mean") or before ("mean-first"). AlexNet's fc layers read positions. GoogLeNet ends in a mean over
    the plane, and pooling over frames comes after it here (not verified); `time-conv` needs the maps and keeps them.
hidden : the two fc layers are AlexNet's. Whether GoogLeNet gets them too is a variant: an empty list leaves them out.
slice_pooling : maximum; the mean is the variant that did worse in the paper.
window, window_stride : 10 and 5 are those of slow pooling and the time convolution; the windows of local pooling are
    not given, so the same are taken.
dropout, initial weights : dropout is AlexNet's 0.5. The paper starts from ImageNet weights; without them He.

Adapted to volumes (``faithful=False``)
---------------------------------------
Any plane from `smallest` up (`stem_stride` 1 keeps the detail of small ones) and any number of slices. Windows are
short (4 slices, 2 apart) for stacks of 20 to 60; where the last one does not end with the stack, they hang over both
ends alike and read the end slice again there. So every slice is read, no maximum changes, and a stack of one repeated
slice scores as that slice. `local-pooling` shares its windows out to a fixed number of `towers`, each the maximum of
its windows. The head is small: the mean over the plane after slices are pooled, and one fc layer of 256. Normalisation
(of the backbone) and dropout are options.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks.backbones import STEM_STRIDE, backbone_option, create_backbone
from volrec.networks.base import SlicewiseNetwork
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import NORMS, ConvUnit, init_kaiming, scale_channels
from volrec.networks.registry import register

__all__ = [
    "PAPERS_BACKBONES",
    "ConvPooling",
    "LatePooling",
    "LocalPooling",
    "SlowPooling",
    "TimeConv",
    "count_windows",
    "hang_over",
    "pool_axis",
    "slice_windows",
]

PAPERS_BACKBONES = ("googlenet", "alexnet")
"""The two of the paper: frames of 224 x 224 and of 220 x 220."""

_FRAMES = 30
_HIDDEN = (4096, 4096)


def _plane(*choices: str) -> Option:
    return Option(
        str,
        "mean",
        "what fc layers read of the plane: its mean, the mean taken before slices are pooled, or every position "
        "(None: as the paper's backbone goes on)",
        choices=choices,
        paper=None,
        free=(None, *choices),
    )


_OPTIONS = {
    "backbone": backbone_option("googlenet", free=PAPERS_BACKBONES),
    "stem_stride": STEM_STRIDE,
    "norm": Option(str, "batch", "normalisation in the backbone", NORMS, paper="none"),
    "slice_pooling": Option(str, "max", "pooling over slices and windows", ("max", "mean"), free=("max", "mean")),
    "plane": _plane("mean", "mean-first", "keep"),
    "hidden": Option(tuple, (256,), "sizes of the fc layers", low=1, paper=_HIDDEN),
    "dropout": Option(
        float, 0.2, "dropout between fc layers and before the last layer", low=0, high=0.95, paper=0.5, free=True
    ),
}
_NONE_TOO = {
    "hidden": Option(
        tuple, (256,), "sizes of the fc layers; an empty list has none", low=1, paper=_HIDDEN, free=(_HIDDEN, ())
    )
}
_WINDOWS = {
    "window": Option(int, 4, "slices in a window", low=1, paper=10),
    "window_stride": Option(int, 2, "slices from one window to the next", low=1, paper=5),
}
_FREE_WINDOWS = {name: replace(option, free=True) for name, option in _WINDOWS.items()}
_TOWERS = Option(int, 4, "windows that the last layer keeps apart (None: as many as 30 slices have)", low=1, paper=None)

_BACKBONE = "backbone: GoogLeNet reads frames of 224 x 224, AlexNet of 220 x 220."
_MAXIMUM = "slice_pooling: the paper found the maximum better than the mean."
_PLANE = "plane: AlexNet's fc layers read every position; that GoogLeNet's mean comes first is not verified."
_FC = "hidden: two fc layers, which AlexNet has; an empty list is the variant for GoogLeNet without them."

CONV_POOLING = NetworkSpec(
    name="conv-pooling",
    paper="Ng, Hausknecht, Vijayanarasimhan, Vinyals, Monga, Toderici",
    title="Beyond Short Snippets: Deep Networks for Video Classification",
    year=2015,
    default_clip=(3, _FRAMES, 224, 224),
    smallest=(1, 16, 16),
    num_classes=487,
    slicewise=True,
    summary="The maximum over slices of their last maps, then fully connected layers.",
    options=_OPTIONS | _NONE_TOO,
    ambiguities=(_BACKBONE, _MAXIMUM, _PLANE, _FC),
)
LATE_POOLING = replace(
    CONV_POOLING,
    name="late-pooling",
    summary="Fully connected layers on every slice, then the maximum over slices.",
    options=_OPTIONS | {"plane": _plane("mean", "keep")},
    ambiguities=(_BACKBONE, _MAXIMUM, _PLANE),
)
SLOW_POOLING = replace(
    CONV_POOLING,
    name="slow-pooling",
    summary="The maximum in short windows, a shared layer, the maximum over windows, another layer.",
    options=_OPTIONS | _WINDOWS,
    ambiguities=(_BACKBONE, _MAXIMUM, _PLANE),
)
LOCAL_POOLING = replace(
    CONV_POOLING,
    name="local-pooling",
    summary="The maximum in short windows, shared layers, all windows side by side in the last layer.",
    options=_OPTIONS | _FREE_WINDOWS | {"towers": _TOWERS},
    ambiguities=(
        _BACKBONE,
        _MAXIMUM,
        _PLANE,
        "window, window_stride: the size of the windows is not given; those of slow pooling are taken.",
    ),
)
TIME_CONV = replace(
    CONV_POOLING,
    name="time-conv",
    summary="A convolution over short windows of slice maps, the maximum over windows, fully connected layers.",
    options=_OPTIONS | _NONE_TOO | _WINDOWS | {"plane": _plane("mean", "keep")},
    ambiguities=(_BACKBONE, _MAXIMUM, "plane: the convolution reads maps, and the fc layers every position.", _FC),
)


def count_windows(slices: int, window: int, stride: int) -> int:
    """Return how many windows `slice_windows` gives: the fewest that reach every slice, at least one."""
    return max(0, -((window - slices) // stride)) + 1


def hang_over(x: Tensor, window: int, stride: int) -> Tensor:
    """Return slices (B, T', ...) of slices (B, T, ...), repeated at the ends until whole windows fit.

    Both ends get as many (an odd slice goes to the far end), fewer than a stride in all where a window fits already.
    """
    slices = x.shape[1]
    surplus = (count_windows(slices, window, stride) - 1) * stride + window - slices
    if not surplus:
        return x
    order = torch.arange(slices + surplus, device=x.device) - surplus // 2
    return x.index_select(1, order.clamp(0, slices - 1))


def slice_windows(x: Tensor, window: int, stride: int) -> Tensor:
    """Return overlapping runs of neighbouring slices (B, n, ..., window) of slices (B, T, ...), every slice in one."""
    return hang_over(x, window, stride).unfold(1, window, stride)


def pool_axis(x: Tensor, kind: str, axis: int) -> Tensor:
    """Return the maximum or mean of one axis."""
    return x.amax(axis) if kind == "max" else x.mean(axis)


class _PooledNetwork(SlicewiseNetwork):
    """What the designs share: the backbone, the way from maps to vectors, the fc layers and the last one.

    A subclass writes `combine`.
    """

    frames: int | None = None
    """The only number of slices that the paper's form reads; None leaves it free."""
    least_hidden = 0
    """Fewer fc layers would make another design of it."""
    conv_channels: int | None = None
    """Channels of the design's own convolution between the maps and the fc layers."""

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        backbone: str,
        stem_stride: int | None,
        norm: str,
        slice_pooling: str,
        plane: str | None,
        hidden: tuple[int, ...],
        dropout: float,
    ) -> None:
        if len(hidden) < self.least_hidden:
            raise ConfigError(
                f"hidden={list(hidden)} leaves {self.registry_name} without the layer that sets it apart.",
                remedy="Give one size at least, such as hidden=[256], or choose conv-pooling.",
                where="network.options.hidden",
                code="network-option",
            )
        encoder = create_backbone(
            backbone, in_channels=in_channels, faithful=faithful, width=width, norm=norm, stem_stride=stem_stride
        )
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(1, *encoder.smallest),
            exact=(self.frames, *encoder.frame_size) if faithful else None,
        )
        self.backbone = encoder
        self.slice_pooling = slice_pooling
        if plane is None:
            plane = "keep" if encoder.tails or self.conv_channels else "mean-first"
        self.plane = plane
        self.grid = encoder.grid
        features = scale_channels(self.conv_channels, width) if self.conv_channels else encoder.num_maps
        features *= self.grid[0] * self.grid[1] if plane == "keep" else 1
        self.fc = nn.ModuleList()
        for size in hidden:
            self.fc.append(nn.Linear(features, scale_channels(size, width)))
            features = scale_channels(size, width)
        init_kaiming(self.fc)
        self.dropout = nn.Dropout(dropout)
        self.num_features = features
        self.classifier = nn.Linear(features, num_classes)
        self.init_classifier(self.classifier)

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, F, h, w) of slices (N, C, H, W)."""
        return self.backbone.forward_maps(x)

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return the maps, or with ``plane="mean-first"`` their means (N, F)."""
        return maps.mean((2, 3)) if self.plane == "mean-first" else maps

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of slice features (B, T, ...)."""
        x = self.combine(features)
        return x if pre_logits else self.classifier(self.dropout(x))

    def combine(self, features: Tensor) -> Tensor:
        """Return what enters the last layer (B, num_features)."""
        raise NotImplementedError

    def flatten(self, maps: Tensor) -> Tensor:
        """Return vectors (..., features) of maps (..., F, h, w); means over the plane stay as they are."""
        if self.plane == "mean-first":
            return maps
        if self.plane == "mean":
            return maps.mean((-2, -1))
        # At the paper's frame size the maps have the size of the grid already and this changes nothing.
        pooled = F.adaptive_avg_pool2d(maps.flatten(0, -4), self.grid)
        return pooled.flatten(1).unflatten(0, maps.shape[:-3])

    def connect(self, x: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Return the activations (..., features) after the fc layers from `first` up to, not with, `last`."""
        for number, layer in enumerate(list(self.fc)[first:last], first):
            x = F.relu(layer(self.dropout(x) if number else x))
        return x


class _WindowedNetwork(_PooledNetwork):
    """A design that reads windows of neighbouring slices first."""

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        backbone: str,
        stem_stride: int | None,
        norm: str,
        slice_pooling: str,
        plane: str | None,
        window: int,
        window_stride: int,
        hidden: tuple[int, ...],
        dropout: float,
    ) -> None:
        if window_stride > window:
            raise ConfigError(
                f"window_stride={window_stride} is larger than window={window}: slices between windows would be lost.",
                remedy=f"Choose a window_stride from 1 to {window}.",
                where="network.options.window_stride",
                code="network-option",
            )
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            faithful=faithful,
            width=width,
            backbone=backbone,
            stem_stride=stem_stride,
            norm=norm,
            slice_pooling=slice_pooling,
            plane=plane,
            hidden=hidden,
            dropout=dropout,
        )
        self.window, self.window_stride = window, window_stride
        if self.conv_channels:
            # Without normalisation, as the fc layers: a short stack leaves it one position only.
            self.time_conv = ConvUnit(
                self.backbone.num_maps,
                scale_channels(self.conv_channels, width),
                kernel_size=(window, 3, 3),
                stride=(window_stride, 1, 1),
                padding=(0, 1, 1),
                norm="none",
            )
            init_kaiming(self.time_conv)

    def pool_windows(self, features: Tensor) -> Tensor:
        """Return each window pooled (B, n, ...) of slice features (B, T, ...)."""
        return pool_axis(slice_windows(features, self.window, self.window_stride), self.slice_pooling, -1)


@register(CONV_POOLING)
class ConvPooling(_PooledNetwork):
    """The maximum over slices of the last maps, then fc layers; see the head of this file."""

    def combine(self, features: Tensor) -> Tensor:
        """Return what enters the last layer (B, num_features) of slice features (B, T, ...)."""
        return self.connect(self.flatten(pool_axis(features, self.slice_pooling, 1)))


@register(LATE_POOLING)
class LatePooling(_PooledNetwork):
    """Fc layers on every slice, then the maximum over slices; see the head of this file."""

    least_hidden = 1

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return the activations (N, num_features) of every slice after the last fc layer."""
        return self.connect(self.flatten(super().embed_maps(maps)))

    def combine(self, features: Tensor) -> Tensor:
        """Return what enters the last layer (B, num_features) of slice features (B, T, num_features)."""
        return pool_axis(features, self.slice_pooling, 1)


@register(SLOW_POOLING)
class SlowPooling(_WindowedNetwork):
    """The maximum in windows, a shared fc layer, the maximum over windows, the rest; see the head of this file."""

    least_hidden = 1

    def combine(self, features: Tensor) -> Tensor:
        """Return what enters the last layer (B, num_features) of slice features (B, T, ...)."""
        windows = self.connect(self.flatten(self.pool_windows(features)), last=1)
        return self.connect(pool_axis(windows, self.slice_pooling, 1), first=1)


@register(LOCAL_POOLING)
class LocalPooling(_WindowedNetwork):
    """The maximum in windows, shared fc layers, all windows side by side; see the head of this file."""

    frames = _FRAMES
    least_hidden = 1

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        backbone: str,
        stem_stride: int | None,
        norm: str,
        slice_pooling: str,
        plane: str | None,
        window: int,
        window_stride: int,
        hidden: tuple[int, ...],
        dropout: float,
        towers: int | None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            faithful=faithful,
            width=width,
            backbone=backbone,
            stem_stride=stem_stride,
            norm=norm,
            slice_pooling=slice_pooling,
            plane=plane,
            window=window,
            window_stride=window_stride,
            hidden=hidden,
            dropout=dropout,
        )
        self.towers = count_windows(_FRAMES, window, window_stride) if towers is None else towers
        self.num_features *= self.towers
        self.classifier = nn.Linear(self.num_features, num_classes)
        self.init_classifier(self.classifier)

    def combine(self, features: Tensor) -> Tensor:
        """Return what enters the last layer (B, num_features) of slice features (B, T, ...), window by window."""
        windows = self.connect(self.flatten(self.pool_windows(features)))
        if windows.shape[1] != self.towers:
            share = F.adaptive_max_pool1d if self.slice_pooling == "max" else F.adaptive_avg_pool1d
            windows = share(windows.transpose(1, 2), self.towers).transpose(1, 2)
        return windows.flatten(1)


@register(TIME_CONV)
class TimeConv(_WindowedNetwork):
    """A convolution over windows of maps, the maximum over windows, fc layers; see the head of this file."""

    conv_channels = 256
    stage_order = ("time_conv", "fc")

    def combine(self, features: Tensor) -> Tensor:
        """Return what enters the last layer (B, num_features) of slice features (B, T, F, h, w)."""
        slices = hang_over(features, self.window, self.window_stride)
        windows = self.time_conv(slices.transpose(1, 2))
        return self.connect(self.flatten(pool_axis(windows, self.slice_pooling, 2)))
