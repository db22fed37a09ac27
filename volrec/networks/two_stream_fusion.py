"""Two towers that become one network at a convolution: maps of slices and of motion are fused position by position.

C. Feichtenhofer, A. Pinz, A. Zisserman, "Convolutional Two-Stream Network Fusion for Video Action Recognition", CVPR
2016.

=============  ==============================================================  ====================
block          operation                                                       out
=============  ==============================================================  ====================
input          5 chunks: a frame (3 channels), ten fields around it (20)       23 x 5 x 224 x 224
spatial        VGG-16 to conv5_3 and its ReLU, each chunk by itself            512 x 5 x 14 x 14
temporal       the same for the fields                                         512 x 5 x 14 x 14
fuse           both side by side, convolution 3x3x3 of 1024 -> 512, ReLU       512 x 5 x 14 x 14
upper          max pool 2x2 in the plane and over all chunks (2x2x5)           512 x 7 x 7
head           fc6 25088 -> 4096, fc7 4096 -> 4096, with ReLU and dropout      4096
temporal_head  the same pool, fc6 and fc7 for the maps of the temporal tower   4096
classifier     4096 -> classes for each of the two, softmax, mean              101
=============  ==============================================================  ====================

283,514,762 parameters with 101 classes: 14.7 million in each tower, 14,156,288 in the 3D convolution, 119.96 million
in each branch behind it. 170.0 GMAC a clip of five chunks.

The fused part goes on as the spatial tower (`upper`, `head`), and the temporal tower goes on beside it
(`temporal_branch`). Both branches have a loss; the score is the mean of both. One linear layer scores both, as in
``volrec/networks/two_stream.py``.

Ways to fuse, of maps a and b of D channels each at a position: their sum; their maximum (D channels); both side by side
(concat, 2 D); those times kernels of 1x1 with a bias and ReLU, back to D (conv); or all products of a channel of a and
one of b, averaged over positions (bilinear, D * D), square root with the sign kept, L2 norm 1, and a linear layer in
the place of the paper's SVM. `pooling` says what is done along T:

=======  ============================  ===================================
pooling  fusion                        after the towers
=======  ============================  ===================================
2d-2d    each slice by itself          each slice by itself, mean of scores
2d-3d    each slice by itself          last pool over all slices as well
3d-3d    and a convolution of 3x3x3    last pool over all slices as well
=======  ============================  ===================================

Bilinear fusion leaves no maps: 2d-2d scores each slice, and the others average over the slices too.

With both towers CNN-M-2048, ReLU5, 2d-2d, no temporal branch and 101 classes: sum and max 97,236,421 parameters, concat
172,733,893, conv 97,761,221. The paper's table has 97.31, 97.31, 172.81 and 97.58 million: the first three are nearest
to two towers with twenty channels each (97,316,389 and 172,813,861; 181,415,562 for the mean of their scores, the
table's 181.42). A convolution of 1x1 from 1024 to 512 channels has 524,800, while the table counts .27 million more
than for the sum, as for 512 to 512: that figure is inconsistent. Its 6.61 million for bilinear fusion are one such
tower (6,608,608), without the SVM.

Training
--------
The paper trains the towers first, each with a loss of its own, then everything above the fusion layer, with the towers
as they are. The stages of the spec are these: "streams", then "fusion" with ``spatial.*`` and ``temporal.*`` frozen.
While the towers learn, `TwoStreamFusion.forward_branches` also gives the logits of each tower alone, through the layers
that follow: those of the fused part where the maps of the other tower are zeros (ones, where channels are multiplied).
This takes the place of fully connected layers that the paper trains with the spatial tower and fine-tunes later. Once
the towers are frozen the losses are the paper's, of the fused part and of the temporal branch.

Ambiguities and the option that settles each
--------------------------------------------
fusion_init : the released code starts as the mean of both maps with weights .25 and .75, spread by a Gaussian; the
    paper speaks of stacked identities (their mean here: weights of 1 would double the maps).
layer : "relu5+fc8" fuses twice, at ReLU5 and by the sum of the scores, under one loss (here their mean, and of logits
    whatever `stage` is). It keeps the temporal tower to its end, so `temporal_branch` makes no difference.
spatial_backbone, temporal_backbone : VGG-16 twice, or VGG-16 beside CNN-M-2048, or that twice. CNN-M-2048 has maps of
    13 x 13 where VGG-16 has 14 x 14; a row and a column of zeros make up for it (not verified).
chunks : five in training; any number is read, and the last pool is over all.
dropout : .85 in the released code.

Adapted to volumes (``faithful=False``)
---------------------------------------
CNN-M-2048 twice (37 instead of 170 GMAC for such a clip), or any other `spatial_backbone` and `temporal_backbone`,
which fuse at their last maps; batch normalisation in the towers; any size from 16 x 16, any number of slices. Behind
the same fusion and the same pools the head is the mean over the plane (``features="last"``: the fully connected layers
behind an adaptive pool). Convolutions of the fusion start as the plain mean of both maps. Logits are averaged. Without
channels of motion both towers read the same slices.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.networks.backbones import STEM_STRIDE, backbone_option
from volrec.networks.backbones.blocks import init_gaussian
from volrec.networks.backbones.contract import Backbone
from volrec.networks.facts import NetworkSpec, Option, TrainingStage
from volrec.networks.layers import NORMS, ConvUnit, init_kaiming
from volrec.networks.layers.stream_fusion import FUSION_INITS, FUSIONS, MapFusion, bilinear_pool, pad_alike
from volrec.networks.registry import register
from volrec.networks.two_stream_common import (
    APPEARANCE,
    OPTIONS,
    StreamScores,
    check_heads,
    create_towers,
    split_streams,
)

__all__ = ["TwoStreamFusion"]

_CUTS = {
    "vgg-16": {"relu2": "conv2_2", "relu3": "conv3_3", "relu4": "conv4_3", "relu5": "conv5_3"},
    "cnn-m-2048": {f"relu{number}": f"conv{number}" for number in (2, 3, 4, 5)},
}
"""Last layer of a tower by the place of fusion (its ReLU is part of it)."""

_BOTH = "relu5+fc8"
_LAYERS = ("relu2", "relu3", "relu4", "relu5", _BOTH)
_POOLINGS = ("2d-2d", "2d-3d", "3d-3d")
_PAPERS = tuple(_CUTS)

SPEC = NetworkSpec(
    name="two-stream-fusion",
    paper="Feichtenhofer, Pinz, Zisserman",
    title="Convolutional Two-Stream Network Fusion for Video Action Recognition",
    year=2016,
    default_clip=(23, 5, 224, 224),
    smallest=(1, 16, 16),
    num_classes=101,
    slicewise=True,
    streams=("intensity", "flow"),
    segments=5,
    training=(
        TrainingStage("streams", "labels", epochs=0.6, why="each tower learns from a loss of its own"),
        TrainingStage(
            "fusion",
            "labels",
            freeze=("spatial.*", "temporal.*"),
            lr=0.1,
            epochs=0.4,
            why="the layers from the fusion on learn, the towers stay",
        ),
    ),
    summary="One 2D network on each slice, one on its motion, fused by a 3D convolution of their maps.",
    options=OPTIONS
    | {
        "spatial_backbone": backbone_option("cnn-m-2048", paper="vgg-16", free=_PAPERS, use="of the spatial tower"),
        "temporal_backbone": backbone_option("cnn-m-2048", paper="vgg-16", free=_PAPERS, use="of the temporal tower"),
        "stem_stride": STEM_STRIDE,
        "subtract_mean": Option(bool, False, "take its mean over the plane from each channel of motion", free=True),
        "fusion": Option(str, "conv", "how two maps become one", choices=FUSIONS, free=True),
        "layer": Option(
            str,
            None,
            "where the towers become one: after a ReLU of vgg-16 and cnn-m-2048, there and at the scores, or at their "
            "last maps (None: relu5, or last for other backbones)",
            choices=(*_LAYERS, "last"),
            paper="relu5",
            free=_LAYERS,
        ),
        "pooling": Option(
            str,
            "3d-3d",
            "fusion and pooling of slices by themselves (2d) or along T as well (3d)",
            _POOLINGS,
            free=True,
        ),
        "temporal_branch": Option(
            bool, True, "the temporal tower goes on beside the fused part, with a loss of its own", free=True
        ),
        "fusion_init": Option(
            str,
            "identity",
            "how convolutions of the fusion start: mean of both maps, or a weighted one spread by a Gaussian",
            choices=FUSION_INITS,
            paper="gaussian",
            free=FUSION_INITS,
        ),
        "features": Option(
            str,
            "pool",
            "what a branch ends in: the mean over the plane, or the tower's last fully connected layer",
            choices=("pool", "last"),
            paper="last",
        ),
        "norm": Option(
            str, "batch", "normalisation after every convolution of the towers", choices=NORMS, paper="none"
        ),
        "dropout": Option(
            float,
            0.2,
            "dropout after each fully connected layer, or before the last layer",
            low=0,
            high=0.95,
            paper=0.85,
        ),
    },
    ambiguities=(
        "fusion_init: weights .25 and .75 and a Gaussian in the released code, stacked identities in the paper.",
        "layer: relu5+fc8 fuses the maps and, under one loss, the scores.",
        "fusion: the published count for conv, 97.58 million, is not that of a convolution of 1024 to 512 channels.",
        "backbones: maps of cnn-m-2048 beside vgg-16 lack a row and a column, filled with zeros (not verified).",
    ),
)


@register(SPEC)
class TwoStreamFusion(StreamScores):
    """Two towers, the fusion of their maps and what follows; see the head of this file.

    Slice features are the maps of both towers at the fusion layer, one after the other in the channels.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels (of appearance, then of motion).
    faithful : bool
        The paper's form: fixed slice size, the paper's towers and fully connected layers.
    width : float
        Scale of all channel counts.
    appearance_channels, stage, heads, spatial_backbone, temporal_backbone, stem_stride, subtract_mean, fusion, layer, \
pooling, temporal_branch, fusion_init, features, norm, dropout
        The options of ``spec("two-stream-fusion")``.
    """

    tower_names = ("spatial", "temporal")

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        appearance_channels: int | None,
        stage: str,
        heads: tuple[int, ...] | None,
        spatial_backbone: str,
        temporal_backbone: str,
        stem_stride: int | None,
        subtract_mean: bool,
        fusion: str,
        layer: str | None,
        pooling: str,
        temporal_branch: bool,
        fusion_init: str,
        features: str,
        norm: str,
        dropout: float,
    ) -> None:
        check_heads(heads, num_classes)
        names = (spatial_backbone, temporal_backbone)
        layer = layer or ("relu5" if all(name in _CUTS for name in names) else "last")
        _check_layer(names, layer, faithful=faithful)
        appearance = appearance_channels or APPEARANCE
        spatial, temporal = create_towers(
            names,
            in_channels=in_channels,
            appearance=appearance,
            faithful=faithful,
            width=width,
            norm=norm,
            tail="pool",
            dropout=0.0,
            stem_stride=stem_stride,
        )
        least = [max(sides) for sides in zip(spatial.smallest, temporal.smallest, strict=True)]
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(1, *least),  # type: ignore[arg-type]
            exact=(None, *spatial.frame_size) if faithful else None,
        )
        self.appearance, self.subtract_mean, self.heads = appearance, subtract_mean, heads
        self.over_slices = pooling != "2d-2d"
        self.one_loss = layer == _BOTH
        # The paper's fully connected layers read 6 x 6 positions of a CNN-M-2048, which the row of zeros would shift.
        self.temporal_side = 13 if faithful and names == ("vgg-16", "cnn-m-2048") else None

        ends, uppers = zip(*(_cut(*pair, layer) for pair in zip((spatial, temporal), names, strict=True)), strict=True)
        self.channels = ends
        self.spatial, self.temporal = spatial, temporal
        make = _HeadMaker(features, faithful=faithful, width=width, dropout=dropout)
        self.fuse: MapFusion | None = None
        sizes = [ends[0] * ends[1]]
        if fusion == "bilinear":
            del spatial.tail
        else:
            _check_channels(names, ends, fusion, layer)
            self.fuse = MapFusion(fusion, ends, cube=pooling == "3d-3d", init=fusion_init)
            self.upper = uppers[0]
            widened = make.widen(self.upper, names[0], self.fuse.out_channels)
            maps = spatial.num_maps if widened else self.fuse.out_channels
            self.head = make(spatial, names[0], maps)
            sizes = [spatial.num_features]
        if temporal_branch or self.one_loss:
            self.temporal_upper = uppers[1]
            self.temporal_head = make(temporal, names[1], temporal.num_maps)
            sizes.append(temporal.num_features)
        else:
            del temporal.tail
        own = any(isinstance(module, nn.Dropout) for module in self.modules())
        self.add_scores(
            sizes,
            weights=[1.0] * len(sizes),
            stage="logits" if self.one_loss else stage,
            dropout=0.0 if own else dropout,
            num_classes=num_classes,
        )

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, F, h, w) of slices (N, C, H, W): those of the spatial tower, then of the temporal one."""
        still, motion = split_streams(x, self.appearance, subtract_mean=self.subtract_mean)
        return torch.cat(pad_alike(self.spatial.forward_maps(still), self.temporal.forward_maps(motion)), dim=1)

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of the towers' maps (B, T, F, h, w), or what enters the last layer."""
        first, second = features.split(self.channels, dim=2)
        return self.score([self._fused(first, second), *self._beside(second)], pre_logits=pre_logits)

    def forward_branches(self, features: Tensor) -> dict[str, Tensor]:
        """Return logits (B, num_classes) of the fused part and of each tower, for maps (B, T, F, h, w).

        ``"fusion"``, and ``"temporal"`` where the temporal tower goes on; while a tower learns, ``"spatial"`` and
        ``"temporal"`` in any case. With ``layer="relu5+fc8"`` the first is the fused score.
        """
        first, second = features.split(self.channels, dim=2)
        parts = [self._fused(first, second), *self._beside(second)]
        own = self.branch_logits(parts)
        branches = {"fusion": self.score(parts) if self.one_loss else own[0]}
        if len(own) == 2 and not self.one_loss:
            branches["temporal"] = own[1]
        if any(weight.requires_grad for weight in chain(self.spatial.parameters(), self.temporal.parameters())):
            # What the fusion takes as nothing.
            blank = torch.ones_like if self.fuse is None else torch.zeros_like
            branches["spatial"] = self.branch_logits([self._fused(first, blank(second)), *parts[1:]])[0]
            alone = own[1:] or self.branch_logits([self._fused(blank(first), second)])
            branches["temporal"] = alone[0]
        return branches

    def _fused(self, first: Tensor, second: Tensor) -> Tensor:
        """Return features (B, n, F) of the fused maps, n being T or 1, for maps (B, T, C, h, w) of both towers."""
        if self.fuse is None:
            return bilinear_pool(first, second, over_slices=self.over_slices)
        return self._finish(self.fuse(first, second), self.upper, self.head)

    def _beside(self, second: Tensor) -> list[Tensor]:
        """Return the features (B, n, F) of the temporal branch, where there is one."""
        if len(self.sizes) == 1:
            return []
        if self.temporal_side:
            second = second[..., : self.temporal_side, : self.temporal_side]
        return [self._finish(second, self.temporal_upper, self.temporal_head)]

    def _finish(self, maps: Tensor, upper: nn.Module, head: nn.Module) -> Tensor:
        """Return features (B, n, F) of maps (B, T, C, h, w)."""
        maps = upper(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        if self.over_slices:
            # The last layer of `upper` is a max pool in the plane: with this it is one over the slices as well.
            maps = maps.amax(1, keepdim=True)
        return head(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])


class _HeadMaker:
    """Turn the tail of a tower into the head of a branch, for maps of another number of channels."""

    def __init__(self, features: str, *, faithful: bool, width: float, dropout: float) -> None:
        self.features, self.faithful, self.width, self.dropout = features, faithful, width, dropout

    def __call__(self, tower: Backbone, name: str, maps: int) -> nn.Module:
        """Return the head; the tower keeps no tail, and its `num_features` are those of the head."""
        tower.num_maps = maps
        tower.add_tail(self.features, faithful=self.faithful, width=self.width, dropout=self.dropout, name=name)
        head = tower.tail
        del tower.tail
        self.draw(head, name)
        return head

    def widen(self, upper: nn.Module, name: str, channels: int) -> bool:
        """Let the first convolution of the layers above the fusion read so many channels; tell whether there is one."""
        unit = next((unit for unit in upper.children() if isinstance(unit, ConvUnit)), None)
        if unit is None:
            return False
        old = _convolution(unit)
        if channels != old.in_channels:
            unit.conv = nn.Conv2d(channels, old.out_channels, 3, padding=1, bias=old.bias is not None)
            self.draw(unit, name)
        return True

    def draw(self, module: nn.Module, name: str) -> None:
        """Draw weights as the tower draws its own."""
        if self.faithful and name == "cnn-m-2048":
            init_gaussian(module, std=0.01, bias=0.0)
        else:
            init_kaiming(module)


def _check_layer(names: tuple[str, str], layer: str, *, faithful: bool) -> None:
    """Refuse a layer that the towers do not have, or at which their maps do not lie on each other."""
    problem = remedy = ""
    others = [name for name in names if name not in _CUTS]
    if layer != "last" and others:
        problem = f"{others[0]} has no layer {layer!r} to be cut at."
        remedy = f"Leave layer out, or choose {' or '.join(_CUTS)} for both towers."
    elif names[0] != names[1] and layer in ("relu2", "relu3", "relu4"):
        problem = f"maps of {names[0]} and {names[1]} have other sizes at {layer}."
        remedy = "Choose layer='relu5', or the same backbone twice."
    elif faithful and names == ("cnn-m-2048", "vgg-16"):
        problem = "the paper has vgg-16 beside cnn-m-2048 in the spatial tower only."
        remedy = "Exchange the two, or set faithful=False."
    if problem:
        raise ConfigError(problem, remedy=remedy, where="network.options.layer", code="network-option")


def _check_channels(names: tuple[str, str], ends: tuple[int, int], fusion: str, layer: str) -> None:
    """Refuse to add maps of unlike depth, or to take their maximum."""
    if fusion in ("sum", "max") and ends[0] != ends[1]:
        raise ConfigError(
            f"fusion={fusion!r} needs maps of as many channels, and {names[0]} has {ends[0]}, {names[1]} {ends[1]} at "
            f"{layer}.",
            remedy="Choose fusion='conv' or 'concat', or the same backbone twice.",
            where="network.options.fusion",
            code="network-option",
        )


def _cut(tower: Backbone, name: str, layer: str) -> tuple[int, nn.Sequential]:
    """Take the layers after the place of fusion out of a tower; return its channels there, and those layers."""
    upper = nn.Sequential()
    if layer == "last":
        return tower.num_maps, upper
    last = _CUTS[name][layer.split("+")[0]]
    children = list(tower.trunk.named_children())
    index = [label for label, _ in children].index(last)
    for label, module in children[index + 1 :]:
        delattr(tower.trunk, label)
        upper.add_module(label, module)
    return _convolution(children[index][1]).out_channels, upper


def _convolution(module: nn.Module) -> nn.Conv2d:
    return next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
