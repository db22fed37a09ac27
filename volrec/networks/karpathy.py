"""Where in a 2D network should time come in? Single frame, early, late and slow fusion, and two resolutions.

A. Karpathy, G. Toderici, S. Shetty, T. Leung, R. Sukthankar, L. Fei-Fei, "Large-scale Video Classification with
Convolutional Neural Networks", CVPR 2014.

All five share one trunk; sizes of a single frame, and of one tower of the two-resolution network:

===========  ==========================================  =================  ======================
block        operation                                   single (C x H x W)  a tower of ``multires``
===========  ==========================================  =================  ======================
input        frame, 117 subtracted                       3 x 170 x 170      3 x 89 x 89
conv1        11x11, stride 3, no padding, ReLU           96 x 54 x 54       96 x 27 x 27
lrn1, pool1  response normalisation; max 2x2, round up   96 x 27 x 27       96 x 14 x 14
conv2        5x5, ReLU                                   256 x 27 x 27      256 x 14 x 14
lrn2, pool2  response normalisation; max 2x2, round up   256 x 14 x 14      256 x 7 x 7
conv3        3x3, ReLU                                   384 x 14 x 14      384 x 7 x 7
conv4        3x3, ReLU                                   384 x 14 x 14      384 x 7 x 7
conv5        3x3, ReLU                                   256 x 14 x 14      256 x 7 x 7
pool5        max 2x2                                     256 x 7 x 7        -
fc6, fc7     4096, ReLU, dropout                         4096               4096 (both towers)
fc8          linear                                      487                487 (both towers)
===========  ==========================================  =================  ======================

================  =======================  ==========================================================  ==========  =====
name              clip (C x T x H x W)     where time comes in                                         parameters  GMAC
================  =======================  ==========================================================  ==========  =====
``single-frame``  3 x 1 x 170 x 170        nowhere                                                     73,908,071  1.23
``early-fusion``  3 x 10 x 170 x 170       conv1 reaches over all 10 frames, one time position left    74,221,703  2.14
``late-fusion``   3 x 16 x 170 x 170       the first and the last frame, one trunk for both, fc6       125,288,295 2.43
                                           reads both
``slow-fusion``   3 x 10 x 170 x 170       conv1 to conv3 reach over 4, 2, 2 positions with stride     75,511,751  4.27
                                           2: 10 frames, 4, 2, 1
``multires``      3 x 1 x 178 x 178        nowhere; the whole frame at half resolution and its centre  129,035,495 0.72
                                           at full resolution, a trunk each, fc6 reads both
================  =======================  ==========================================================  ==========  =====

Local response normalisation divides by (2 + 1e-4 * sum of the squares of 5 neighbouring channels) ** 0.5
(constants not verified).

Ambiguities and the option that settles each
--------------------------------------------
padding, pool_rounding : neither is published. With no padding in conv1, padding that keeps the size elsewhere and pools
    that round up (as cuda-convnet's do), both 170 and 89 end at the 7 x 7 x 256 that the paper states. "floor" gives
    6 x 6 x 256 at both.
norm : the position of the response normalisation is not published; here it follows the ReLU and precedes the pool, with
    alpha times the sum of the squares, as in Krizhevsky et al. (2012).
dropout : taken from the same network: 0.5 after fc6 and after fc7. Not verified for training from scratch.
initial weights : not published. Gaussians of 0.01 and biases of 0 are ours.
context : how the frame is halved is not published; here 2x2 averages. 89 of 178 rows leave an odd number: the fovea is
    rows and columns 44 to 132, counted from 0.
fusion and multires : the paper also ran its fusions on the two-resolution network; only the five above are here.

Adapted to volumes (``faithful=False``)
---------------------------------------
Batch normalisation after every convolution in place of the response normalisation (``norm="lrn"`` keeps it), padding in
conv1, any size from 16 x 16 up (``multires`` 32 x 32), any number of slices, a finer `stem_stride` for small canvases,
global pooling and one linear layer in place of the three (or, with ``head="fc"``, fully connected layers behind an
adaptive pool to 7 x 7), He initialisation.

single-frame, multires : every slice is scored alone and the scores (logits) are averaged, or the features' maxima taken
    (`slice_pooling`). The paper averages probabilities outside of the network.
early-fusion : the slices are first brought to `extent` positions, each a mean (or maximum) over equal, where needed
    overlapping parts of the stack; thin stacks repeat slices.
late-fusion : the stack is cut into `towers` equal parts, and of the tower's features the maximum over the slices of a
    part is taken, so that every slice counts. A `hidden` layer, on by default, compares the towers.
slow-fusion : SAME padding along T; what is left of T after conv3 is averaged in the head. `temporal_strides` of 1 keep
    every slice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.networks.base import SlicewiseNetwork
from volrec.networks.facts import Option
from volrec.networks.karpathy_common import AMBIGUITIES, Form, KarpathyNetwork, karpathy_spec
from volrec.networks.registry import register

__all__ = ["EarlyFusion", "LateFusion", "MultiRes", "SingleFrame", "SlowFusion"]

_SLICE_POOLING = Option(
    str,
    "mean",
    "over slices: the mean of their scores (equal to that of their features), or the maxima of their features",
    choices=("mean", "max"),
)
_EXTENTS = (4, 2, 2)
_STRIDES = (2, 2, 2)


SINGLE_FRAME = karpathy_spec(
    "single-frame",
    frames=1,
    slicewise=True,
    summary="Each slice is scored alone by a 2D network of five convolutions; the mean of the scores.",
    options={"slice_pooling": _SLICE_POOLING},
)
MULTIRES = karpathy_spec(
    "multires",
    frames=1,
    side=178,
    smallest=(1, 32, 32),
    slicewise=True,
    summary="As single-frame, with a tower for the whole slice at half resolution and one for its centre at full.",
    options={"slice_pooling": _SLICE_POOLING},
    ambiguities=(*AMBIGUITIES, "context: the frame is halved by 2x2 averages; the fovea is rows and columns 44-132."),
)
LATE_FUSION = karpathy_spec(
    "late-fusion",
    frames=16,
    slicewise=True,
    summary="One 2D trunk reads two slices far apart (adapted: the parts of a stack); the first hidden layer compares.",
    options={
        "towers": Option(int, 2, "equal parts of the stack that the hidden layer compares", low=2, high=16),
        "hidden": Option(
            int,
            256,
            "size of the two hidden layers of the fc head (0: the paper's 4096 times width) or the one of the gap head "
            "(0: none, the towers are then added and not compared)",
            low=0,
            paper=0,
        ),
    },
)
EARLY_FUSION = karpathy_spec(
    "early-fusion",
    frames=10,
    summary="The first convolution reads ten slices at once; the rest is 2D.",
    options={
        "extent": Option(int, 10, "positions along T that conv1 reaches over", low=1, high=64),
        "slab_pooling": Option(
            str, "mean", "how slices are brought to `extent` positions", choices=("mean", "max"), free=True
        ),
    },
)
SLOW_FUSION = karpathy_spec(
    "slow-fusion",
    frames=10,
    # Each convolution together with the pool that follows it.
    strides=tuple(zip(_STRIDES, (6, 2, 1), strict=True)),
    summary="The first three convolutions merge slices step by step: over 4, 2 and 2 positions.",
    options={
        "temporal_strides": Option(
            tuple,
            None,
            "stride of conv1, conv2 and conv3 along T (None: 2, 2, 2); 1 keeps every slice",
            low=1,
            # conv2 and conv3 reach over two positions: a longer step would lose slices.
            high=2,
            length=3,
        ),
    },
)


class _SliceScores(KarpathyNetwork, SlicewiseNetwork):
    """Slices scored alone: features of fc7, pooled over the slices."""

    slice_pooling: str

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return features (N, F) of maps (N, F, h, w): the activations of fc7, or of the pooled maps (gap head)."""
        return self.hidden(self.vector(maps))

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of slice features (B, T, F)."""
        # The last layer is linear: the mean of the features gives the mean of the scores.
        pooled = features.mean(1) if self.slice_pooling == "mean" else features.amax(1)
        return pooled if pre_logits else self.fc8(self.drop7(pooled))


@register(SINGLE_FRAME)
class SingleFrame(_SliceScores):
    """Every slice alone; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: one frame of 170 x 170.
    width : float
        Scale of all channel counts.
    norm, pool_rounding, stem_stride, head, hidden, dropout, slice_pooling
        The options of ``spec("single-frame")``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        norm: str,
        pool_rounding: str,
        stem_stride: int,
        head: str,
        hidden: int,
        dropout: float,
        slice_pooling: str,
    ) -> None:
        form = Form(faithful, width, norm, pool_rounding, stem_stride, head, hidden, dropout)
        super().__init__(num_classes=num_classes, in_channels=in_channels, form=form)
        self.slice_pooling = slice_pooling
        self.trunk = form.convolutions(in_channels, dims=2)
        self.add_head(form, dims=2)

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, F, h, w) of slices (N, C, H, W): the last convolution."""
        return self.trunk(x)


@register(MULTIRES)
class MultiRes(_SliceScores):
    """The whole slice coarsely and its centre finely; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: one frame of 178 x 178.
    width : float
        Scale of all channel counts.
    norm, pool_rounding, stem_stride, head, hidden, dropout, slice_pooling
        The options of ``spec("multires")``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        norm: str,
        pool_rounding: str,
        stem_stride: int,
        head: str,
        hidden: int,
        dropout: float,
        slice_pooling: str,
    ) -> None:
        form = Form(faithful, width, norm, pool_rounding, stem_stride, head, hidden, dropout)
        super().__init__(num_classes=num_classes, in_channels=in_channels, form=form)
        self.slice_pooling = slice_pooling
        self.context = form.convolutions(in_channels, dims=2)
        self.fovea = form.convolutions(in_channels, dims=2)
        self.add_head(form, dims=2, inputs=2, last_pool=False)

    def smallest_plane(self, form: Form) -> tuple[int, int]:
        """Return the smallest (H, W) that can be read: both towers see half of it."""
        return (2 * form.smallest(last_pool=False),) * 2

    @staticmethod
    def views(x: Tensor) -> tuple[Tensor, Tensor]:
        """Return context and fovea, both (N, C, ceil(H / 2), ceil(W / 2)), of slices (N, C, H, W)."""
        height, width = x.shape[2:]
        rows, columns = (height + 1) // 2, (width + 1) // 2
        top, left = (height - rows) // 2, (width - columns) // 2
        # A window that hangs over the edge of an odd size is the mean of what it covers.
        context = F.avg_pool2d(x, 2, ceil_mode=True)
        return context, x[:, :, top : top + rows, left : left + columns]

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return the maps of both towers, laid out on the grid of the whole slice: (N, 2F, 2h, 2w) of (N, C, H, W).

        Context maps (N, F, h, w) are spread over twice the positions and those of the fovea put in the middle, so that
        a heat map of both lies where the evidence is.
        """
        context, fovea = self.views(x)
        context, fovea = self.context(context), self.fovea(fovea)
        rows, columns = context.shape[2:]
        sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return torch.cat([F.interpolate(context, scale_factor=2, mode="nearest"), F.pad(fovea, sides)], dim=1)

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return features (N, F) of the maps that `encode_maps` gives."""
        # Channels last, so that the gradient of the maps comes back in one block (Grad-CAM takes a view of it).
        context, fovea = maps.permute(0, 2, 3, 1).chunk(2, dim=3)
        rows, columns = maps.shape[2] // 2, maps.shape[3] // 2
        top, left = rows // 2, columns // 2
        fovea = fovea[:, top : top + rows, left : left + columns]
        both = torch.cat([context[:, ::2, ::2], fovea], dim=3)
        return super().embed_maps(both.permute(0, 3, 1, 2))


@register(LATE_FUSION)
class LateFusion(KarpathyNetwork, SlicewiseNetwork):
    """One trunk for slices far apart, compared by the first fully connected layer; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: of 16 frames of 170 x 170 the first and the last are read.
    width : float
        Scale of all channel counts.
    norm, pool_rounding, stem_stride, head, hidden, dropout, towers
        The options of ``spec("late-fusion")``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        norm: str,
        pool_rounding: str,
        stem_stride: int,
        head: str,
        hidden: int,
        dropout: float,
        towers: int,
    ) -> None:
        form = Form(faithful, width, norm, pool_rounding, stem_stride, head, hidden, dropout)
        super().__init__(num_classes=num_classes, in_channels=in_channels, form=form)
        self.towers = towers
        self.ends_only = faithful
        self.trunk = form.convolutions(in_channels, dims=2)
        self.add_head(form, dims=2, inputs=towers)

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, F, h, w) of slices (N, C, H, W): the last convolution."""
        return self.trunk(x)

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return features (N, F) of maps (N, F, h, w): one tower's share of what the first hidden layer reads."""
        return self.vector(maps)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return tower features (B, T, F) of clips (B, C, T, H, W); in the paper's form of the first and last frame."""
        return super().forward_features(_ends(x, 2) if self.ends_only else x)

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of tower features (B, T, F)."""
        if self.ends_only:
            parts = _ends(features, 1).flatten(1)
        else:
            # Parts overlap by a slice where T cannot be divided, and repeat slices where there are too few.
            parts = F.adaptive_max_pool1d(features.transpose(1, 2), self.towers).transpose(1, 2).flatten(1)
        hidden = self.hidden(parts)
        return hidden if pre_logits else self.fc8(self.drop7(hidden))


class _Clips(KarpathyNetwork):
    """Clips read by convolutions that reach over time."""

    cam_layer = "trunk"
    trunk: nn.Sequential

    def forward_features(self, x: Tensor) -> Tensor:
        """Return maps (B, F, T', h, w) of clips (B, C, T, H, W): the last convolution."""
        return self.trunk(x)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or with `pre_logits` the activations of fc7 (gap head: pooled maps)."""
        hidden = self.hidden(self.vector(features))
        return hidden if pre_logits else self.fc8(self.drop7(hidden))


@register(EARLY_FUSION)
class EarlyFusion(_Clips):
    """The first convolution reads all slices at once; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: 10 frames of 170 x 170.
    width : float
        Scale of all channel counts.
    norm, pool_rounding, stem_stride, head, hidden, dropout, extent, slab_pooling
        The options of ``spec("early-fusion")``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        norm: str,
        pool_rounding: str,
        stem_stride: int,
        head: str,
        hidden: int,
        dropout: float,
        extent: int,
        slab_pooling: str,
    ) -> None:
        form = Form(faithful, width, norm, pool_rounding, stem_stride, head, hidden, dropout)
        super().__init__(num_classes=num_classes, in_channels=in_channels, form=form)
        self.extent = extent
        self.slab_pool = F.adaptive_avg_pool3d if slab_pooling == "mean" else F.adaptive_max_pool3d
        self.trunk = form.convolutions(in_channels, dims=3, extents=(extent,), strides=(1,))
        self.add_head(form, dims=3)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return maps (B, F, 1, h, w) of clips (B, C, T, H, W): the last convolution."""
        if x.shape[2] != self.extent:
            x = self.slab_pool(x, (self.extent, *x.shape[3:]))
        return self.trunk(x)


@register(SLOW_FUSION)
class SlowFusion(_Clips):
    """The first three convolutions merge slices step by step; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: 10 frames of 170 x 170.
    width : float
        Scale of all channel counts.
    norm, pool_rounding, stem_stride, head, hidden, dropout, temporal_strides
        The options of ``spec("slow-fusion")``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        norm: str,
        pool_rounding: str,
        stem_stride: int,
        head: str,
        hidden: int,
        dropout: float,
        temporal_strides: tuple[int, ...] | None,
    ) -> None:
        form = Form(faithful, width, norm, pool_rounding, stem_stride, head, hidden, dropout)
        super().__init__(num_classes=num_classes, in_channels=in_channels, form=form)
        self.trunk = form.convolutions(
            in_channels, dims=3, extents=_EXTENTS, strides=temporal_strides or _STRIDES, same=not faithful
        )
        self.add_head(form, dims=3)


def _ends(x: Tensor, axis: int) -> Tensor:
    """Return the first and the last position of an axis, as an axis of two."""
    return torch.stack([x.select(axis, 0), x.select(axis, -1)], dim=axis)
