"""DenseNet3D and T3D: densely connected 3D convolutions, and temporal transition layers of several depths.

A. Diba, M. Fayyaz, V. Sharma, A. H. Karami, M. M. Arzani, R. Yousefzadeh, L. Van Gool, "Temporal 3D ConvNets: New
Architecture and Transfer Learning for Video Classification", arXiv 1711.08200, 2017.

============  ==========================================================  ====================  ====================
block         operation                                                   DenseNet3D-121 out    T3D-121 out
============  ==========================================================  ====================  ====================
input         RGB clip                                                    3 x 32 x 224 x 224    3 x 32 x 224 x 224
conv0         3x7x7, stride 2; batch norm                                 64 x 16 x 112 x 112   64 x 16 x 112 x 112
pool0         max 3x3x3, stride 1x2x2; ReLU                               64 x 16 x 56 x 56     64 x 16 x 56 x 56
denseblock1   6 dense layers                                              256 x 16 x 56 x 56    256 x 16 x 56 x 56
transition1   1x1x1 or branches of depth 1, 3, 6; mean 2x2x2              128 x 8 x 28 x 28     384 x 8 x 28 x 28
denseblock2   12 dense layers                                             512 x 8 x 28 x 28     768 x 8 x 28 x 28
transition2   1x1x1 or branches of depth 1, 3, 4; mean 2x2x2              256 x 4 x 14 x 14     384 x 4 x 14 x 14
denseblock3   24 dense layers (169: 32)                                   1024 x 4 x 14 x 14    1152 x 4 x 14 x 14
transition3   1x1x1 or branches of depth 1, 3, 4; mean 2x2x2              512 x 2 x 7 x 7       384 x 2 x 7 x 7
denseblock4   16 dense layers (169: 32)                                   1024 x 2 x 7 x 7      896 x 2 x 7 x 7
head          batch norm, ReLU, mean over all positions, linear           classes               classes
============  ==========================================================  ====================  ====================

A dense layer is batch norm, ReLU, 1x1x1 to 128, batch norm, ReLU, 3x3x3 to 32, put beside its input. No convolution has
a bias. A branch of a temporal transition layer is batch norm, ReLU and one convolution to 128 channels: 1x1x1 at depth
1, depth x 3 x 3 otherwise. Even depths (4, 6) take TensorFlow's SAME padding: the odd slice of zeros lies at the end.

==================================================  ===================  ===================
400 classes, 32 x 224 x 224                         121                  169
==================================================  ===================  ===================
DenseNet3D                                          11,658,896; 62.5     19,214,992; 64.9
DenseNet3D, ``stem="released"``                     11,658,896; 34.1     19,214,992; 35.3
T3D                                                 29.88 M; 244         38.52 M; 248
T3D, ``transition="full"``                          30.32 M; 253         38.96 M; 256
T3D, ``transition="half"``                          25.58 M; 235         33.62 M; 238
T3D, ``stem="released"``                            29.88 M; 125         38.52 M; 127
==================================================  ===================  ===================

(parameters; GMAC a clip)

Ambiguities and the option that settles each
--------------------------------------------
stem : maps of 16, 8, 4 and 2 slices, said to be the paper's (not verified), follow where only conv0 halves the 32
    slices ("paper"). The released DenseNet3D halves them again in pool0; 32 slices then end as one, and fewer than 29
    do not reach the last block: those are refused. The 3D DenseNet of K. Hara, H. Kataoka, Y. Satoh, "Can
    Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?", CVPR 2018, is the same but for its stem
    ("hara"): conv0 is 7x7x7 and keeps the slices, pool0 halves them; with ``faithful=True`` it reads 112 x 112.
transition : the paper's figure has a mean pool alone after the branches ("pool"). The authors' published T3D file had a
    whole 1x1x1 transition that keeps the channels ("full"), a port one that halves them ("half").
temporal_depths : depths differ from layer to layer ("default", as in a port; not verified against the paper), or are
    1, 3, 4 in all three ("author", as in the authors' published file).
branch_width : the channels of a branch are those of both public codes.
dropout : the released factories have none, those named DropOut 0.2 after every dense layer.
Initial weights : the paper names none; the released code leaves them to torch, and so does ``faithful=True``.

Adapted to volumes (``faithful=False``)
---------------------------------------
Any size from 32 x 32 in the plane (16 x 16 with ``stem_stride=1``) and any number of slices: pools round up, and
kernels of the stem are wide enough for any temporal stride, so that no slice is lost. Any normalisation, He
initialisation. With ``checkpoint=True`` the insides of dense layers are computed again in the backward pass: less
memory, more time, the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from volrec.networks.base import SequenceNetwork
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import NORMS, Conv3d, init_kaiming, norm_layer, scale_channels
from volrec.networks.layers.dense import DenseBlock, MeanPool3d, TemporalTransition, Transition
from volrec.networks.registry import register

__all__ = ["T3D121", "T3D169", "DenseNet3D121", "DenseNet3D169"]

_DEPTHS = {
    "default": ((1, 3, 6), (1, 3, 4), (1, 3, 4)),
    "author": ((1, 3, 4), (1, 3, 4), (1, 3, 4)),
}

_OPTIONS = {
    "stem": Option(
        str,
        "paper",
        "slices are halved once before the first block, twice as in the released code, or by pool0 behind 7x7x7 (hara)",
        choices=("paper", "released", "hara"),
        free=("paper", "released", "hara"),
    ),
    "norm": Option(str, "batch", "normalisation before every convolution", choices=NORMS),
    "dropout": Option(float, 0.0, "dropout after every dense layer", low=0, high=0.95, free=True),
    "temporal_strides": Option(
        tuple,
        None,
        "stride along T of conv0, pool0 and the three transitions (None: 2, 1, 2, 2, 2); 1 keeps every slice",
        low=1,
        high=4,
        length=5,
    ),
    "stem_stride": Option(int, 2, "stride of conv0 in the plane; 1 keeps detail on small canvases", low=1, high=2),
    "checkpoint": Option(bool, False, "compute dense layers again in the backward pass: less memory", free=True),
}

_TEMPORAL_OPTIONS = {
    "transition": Option(
        str,
        "pool",
        "after the branches: a mean pool alone, or a 1x1x1 transition that keeps or halves the channels",
        choices=("pool", "full", "half"),
        free=("pool", "full", "half"),
    ),
    "temporal_depths": Option(
        str,
        "default",
        "slices that the branches see: (1, 3, 6) in the first layer and (1, 3, 4) in the others, or (1, 3, 4) in all",
        choices=tuple(_DEPTHS),
        free=tuple(_DEPTHS),
    ),
    "branch_width": Option(int, 128, "channels of a branch (times width)", low=1, free=True),
}

_STEM = "stem: the released code halves the slices in pool0 as well; its third pool then needs 29 slices."
# Strides along T of conv0 and pool0; slices that conv0 sees; rows and columns of the paper's clips.
_STEMS = {"paper": ((2, 1), 3, 224), "released": ((2, 2), 3, 224), "hara": ((1, 2), 7, 112)}


def _spec(name: str, *, temporal: bool, summary: str) -> NetworkSpec:
    ambiguities: tuple[str, ...] = (_STEM,)
    if temporal:
        ambiguities += (
            "transition: the figure has a mean pool alone (pool), public codes a 1x1x1 transition (full, half).",
            "temporal_depths: (1, 3, 6), (1, 3, 4), (1, 3, 4), or (1, 3, 4) throughout (author).",
            "Even depths are padded with the odd slice at the end.",
        )
    return NetworkSpec(
        name=name,
        paper="Diba, Fayyaz, Sharma, Karami, Arzani, Yousefzadeh, Van Gool",
        title="Temporal 3D ConvNets: New Architecture and Transfer Learning for Video Classification",
        year=2017,
        default_clip=(3, 32, 224, 224),
        smallest=(1, 32, 32),
        num_classes=400,
        strides=((2, 2), (1, 2), (2, 2), (2, 2), (2, 2)),
        summary=summary,
        options={**_TEMPORAL_OPTIONS, **_OPTIONS} if temporal else _OPTIONS,
        ambiguities=ambiguities,
    )


class _Temporal(NamedTuple):
    """Temporal transition layers: depths of the branches of each, channels of a branch, what follows them."""

    depths: tuple[tuple[int, ...], ...]
    channels: int
    transition: str


class _DenseSequence(SequenceNetwork):
    """Stem, four dense blocks with three transitions, global mean, linear layer.

    Parameters
    ----------
    num_classes, in_channels, faithful, width
        As in `volrec.networks.create`.
    stem, norm, dropout, temporal_strides, stem_stride, checkpoint
        The options of ``spec("densenet3d-121")``.
    temporal : _Temporal, optional
        None: transitions of DenseNet.
    """

    layers: tuple[int, int, int, int]
    cam_layer = "features.relu5"
    # Concatenations and 1x1x1 kernels with the channels last make training about a tenth slower.
    kernels_channels_last = False

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        stem: str,
        norm: str,
        dropout: float,
        temporal_strides: tuple[int, ...] | None,
        stem_stride: int,
        checkpoint: bool,
        temporal: _Temporal | None,
    ) -> None:
        stem_strides, depth, side = _STEMS[stem]
        strides = temporal_strides or (*stem_strides, 2, 2, 2)
        # The last block must see a whole position in the plane; instance statistics need more than one.
        plane = 16 * stem_stride + (norm == "instance")
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(_fewest_slices(strides), side, side) if faithful else (1, plane, plane),
            exact=(None, side, side) if faithful else None,
        )
        growth = scale_channels(32, width)
        channels = scale_channels(64, width)
        self.features = _stem(in_channels, channels, depth=depth, strides=strides, stride=stem_stride, norm=norm)
        for number, layers in enumerate(self.layers, 1):
            block = DenseBlock(
                channels,
                layers=layers,
                bottleneck=4 * growth,
                growth=growth,
                norm=norm,
                dropout=dropout,
                recompute=checkpoint,
            )
            self.features.add_module(f"denseblock{number}", block)
            channels = block.out_channels
            if number < len(self.layers):
                stride = (strides[number + 1], 2, 2)
                channels = self._add_transition(number, channels, stride, norm=norm, exact=faithful, temporal=temporal)
        self.features.add_module("norm5", norm_layer(norm, channels, dims=3))
        # Not in place: Grad-CAM reads what comes out.
        self.features.add_module("relu5", nn.ReLU())
        self.num_features = channels
        self.classifier = nn.Linear(channels, num_classes)
        if not faithful:
            init_kaiming(self, keep="fan_in" if norm == "none" else "fan_out")
            self.init_classifier(self.classifier)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last maps (B, F, T', H', W')."""
        return self.features(x)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or with `pre_logits` the mean maps (B, F)."""
        x = features.mean((2, 3, 4))
        return x if pre_logits else self.classifier(x)

    def _add_transition(
        self,
        number: int,
        channels: int,
        stride: tuple[int, int, int],
        *,
        norm: str,
        exact: bool,
        temporal: _Temporal | None,
    ) -> int:
        """Add what stands between two blocks and return its channels."""
        out = channels // 2
        if temporal is not None:
            pool = MeanPool3d(stride, exact=exact) if temporal.transition == "pool" else None
            depths = temporal.depths[number - 1]
            layer = TemporalTransition(channels, temporal.channels, depths=depths, norm=norm, pool=pool)
            self.features.add_module(f"temporal{number}", layer)
            channels = layer.out_channels
            if temporal.transition == "pool":
                return channels
            out = channels if temporal.transition == "full" else channels // 2
        transition = Transition(channels, out, stride=stride, norm=norm, exact=exact)
        self.features.add_module(f"transition{number}", transition)
        return out


class _DenseNet3D(_DenseSequence):
    """DenseNet3D; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: 224 x 224 in the plane, torch's initial weights.
    width : float
        Scale of all channel counts.
    stem, norm, dropout, temporal_strides, stem_stride, checkpoint
        The options of ``spec("densenet3d-121")``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        stem: str,
        norm: str,
        dropout: float,
        temporal_strides: tuple[int, ...] | None,
        stem_stride: int,
        checkpoint: bool,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            faithful=faithful,
            width=width,
            stem=stem,
            norm=norm,
            dropout=dropout,
            temporal_strides=temporal_strides,
            stem_stride=stem_stride,
            checkpoint=checkpoint,
            temporal=None,
        )


class _T3D(_DenseSequence):
    """T3D; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels, faithful, width, stem, norm, dropout, temporal_strides, stem_stride, checkpoint
        As in DenseNet3D.
    transition, temporal_depths, branch_width
        The options of ``spec("t3d-121")``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        transition: str,
        temporal_depths: str,
        branch_width: int,
        stem: str,
        norm: str,
        dropout: float,
        temporal_strides: tuple[int, ...] | None,
        stem_stride: int,
        checkpoint: bool,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            faithful=faithful,
            width=width,
            stem=stem,
            norm=norm,
            dropout=dropout,
            temporal_strides=temporal_strides,
            stem_stride=stem_stride,
            checkpoint=checkpoint,
            temporal=_Temporal(_DEPTHS[temporal_depths], scale_channels(branch_width, width), transition),
        )


@register(_spec("densenet3d-121", temporal=False, summary="Densely connected 3D convolutions, 121 layers."))
class DenseNet3D121(_DenseNet3D):
    """DenseNet3D with 121 layers."""

    layers = (6, 12, 24, 16)


@register(_spec("densenet3d-169", temporal=False, summary="Densely connected 3D convolutions, 169 layers."))
class DenseNet3D169(_DenseNet3D):
    """DenseNet3D with 169 layers."""

    layers = (6, 12, 32, 32)


@register(_spec("t3d-121", temporal=True, summary="DenseNet3D-121 with transitions of several temporal depths."))
class T3D121(_T3D):
    """T3D on DenseNet3D with 121 layers."""

    layers = (6, 12, 24, 16)


@register(_spec("t3d-169", temporal=True, summary="DenseNet3D-169 with transitions of several temporal depths."))
class T3D169(_T3D):
    """T3D on DenseNet3D with 169 layers."""

    layers = (6, 12, 32, 32)


def _stem(
    in_channels: int, channels: int, *, depth: int, strides: tuple[int, ...], stride: int, norm: str
) -> nn.Sequential:
    """Return conv0, norm0, pool0 and relu0: ReLU commutes with the maximum and is cheaper after it."""
    # Half of a kernel reaches the next position of the stride: however far apart they are, no slice falls between.
    depth = max(depth, 2 * strides[0] - 1)
    pool_depth = max(3, 2 * strides[1] - 1)
    stem = nn.Sequential()
    stem.add_module(
        "conv0",
        Conv3d(
            in_channels,
            channels,
            (depth, 7, 7),
            stride=(strides[0], stride, stride),
            padding=(depth // 2, 3, 3),
            bias=norm == "none",
        ),
    )
    stem.add_module("norm0", norm_layer(norm, channels, dims=3))
    stem.add_module("pool0", nn.MaxPool3d((pool_depth, 3, 3), (strides[1], 2, 2), (pool_depth // 2, 1, 1)))
    stem.add_module("relu0", nn.ReLU(inplace=True))
    return stem


def _fewest_slices(strides: tuple[int, ...]) -> int:
    """Return the least T of which one slice is left at the end: the stem rounds up, the transitions round down."""
    slices = 1
    for stride in reversed(strides[2:]):
        slices *= stride
    for stride in reversed(strides[:2]):
        slices = (slices - 1) * stride + 1
    return slices
