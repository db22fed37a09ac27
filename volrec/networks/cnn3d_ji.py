"""An early 3D CNN for actions: hard-wired grey, gradient and flow maps, then a LeNet with 3D convolutions.

S. Ji, W. Xu, M. Yang, K. Yu, "3D Convolutional Neural Networks for Human Action Recognition", IEEE Transactions on
Pattern Analysis and Machine Intelligence, 2013 (first in ICML 2010).

======  ===========================================================  ==================================  ==========
layer   operation                                                    maps of H x W                       weights
======  ===========================================================  ==================================  ==========
input   7 grey frames                                                7 of 60 x 40
H1      hard-wired: grey 7, gradient x 7, y 7, flow x 6, flow y 6    33 of 60 x 40                       0
C2      3D conv 3x7x7 in each of the five groups, 2 filter sets      2 x 23 (5+5+5+4+4) of 54 x 34       1,480
S3      mean over 2x2, gain, bias                                    the same of 27 x 17                 20
C4      3D conv 3x7x6 in each group and set, 3 filters               6 x 13 (3+3+3+2+2) of 21 x 12       3,810
S5      mean over 3x3, gain, bias                                    the same of 7 x 4                   60
C6      2D conv 7x4 over all 78 maps                                 128 of 1 x 1                        279,680
output  128 -> classes                                               3                                   387
======  ===========================================================  ==================================  ==========

(T x H x W kernels.) 285,357 weights in convolutions and the last layer, 285,437 with the gains and biases of S3 and S5;
15.2 million multiply-adds. The total that the paper prints is said to be some ten thousand higher (not verified); no
reading of the layers that was tried closes the gap. The net for KTH (``variant="kth"``) reads 9 frames of 80 x 60 with
kernels of 9x7, 7x7 and 6x4 in the plane and means over 3x3 twice: 72 x 54, 24 x 18, 18 x 12, 6 x 4, 1 x 1; 431,258
weights with 6 classes.

Left out: the paper's second output, trained on bags of visual words beside the classes, and its averages of several
networks: both belong to training and scoring, not to the network.

Ambiguities and the option that settles each
--------------------------------------------
flow : the estimator is ours to choose. "lucas-kanade" solves the brightness equation by least squares over 7x7 windows,
    one pass, no more than 3 pixels; "difference" takes the change of the two gradients from frame to frame instead,
    which asks for no motion at all. Gradients are central differences, one-sided at the edges.
subsampling : "lenet" is LeCun's: mean times gain plus bias, squashed once more; "linear" without the squashing; "mean"
    without weights. Gain and bias belong to a filter, not to each of its maps (S3 and S5 would then hold 248).
activation : tanh in the paper's form (not verified).
The rule of the initial weights is ours: a variance of one over the inputs of a unit, biases of 0.
With more than one input channel each has five groups of its own.

Adapted to volumes (``faithful=False``)
---------------------------------------
ReLU, normalisation after each convolution, He initialisation; convolutions are padded, means round up and the last
flow field stands twice, so that no slice is lost, a single one can be read (its flow is zero) and any size from
12 x 12 in the plane; C6 is a 3D convolution of depth 3 (the paper's, too, sees three positions of T), followed by
global pooling. With 2 filter sets the net is tiny: there are `sets` of them, 8 unless said otherwise. `width` scales
the sets and C6; a set keeps its three filters.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.networks.base import SequenceNetwork
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import NORMS, AdaptivePool3d, ConvUnit, scale_channels
from volrec.networks.registry import register

__all__ = ["HardwiredMaps", "JiCNN3D", "Subsampling", "lucas_kanade"]


class _Plan(NamedTuple):
    """Clip (T, H, W) of a variant; kernels of C2, C4, C6 and sides of the means S3, S5 in the plane (H, W)."""

    clip: tuple[int, int, int]
    conv2: tuple[int, int]
    pool3: int
    conv4: tuple[int, int]
    pool5: int
    conv6: tuple[int, int]


_PLANS = {
    "trecvid": _Plan((7, 60, 40), (7, 7), 2, (7, 6), 3, (7, 4)),
    "kth": _Plan((9, 80, 60), (9, 7), 3, (7, 7), 3, (6, 4)),
}
_DEPTH = 3
_FILTERS = 3
_HIDDEN = 128
_FLOWS = ("lucas-kanade", "difference")
_SUBSAMPLINGS = ("lenet", "linear", "mean")

SPEC = NetworkSpec(
    name="cnn3d-ji",
    paper="Ji, Xu, Yang, Yu",
    title="3D Convolutional Neural Networks for Human Action Recognition",
    year=2013,
    default_clip=(1, *_PLANS["trecvid"].clip),
    smallest=(1, 12, 12),
    num_classes=3,
    summary="Hard-wired grey, gradient and flow maps, then a small 3D LeNet.",
    options={
        "variant": Option(str, "trecvid", "the net for TRECVID or for KTH", choices=tuple(_PLANS), free=tuple(_PLANS)),
        "flow": Option(
            str,
            "lucas-kanade",
            "motion maps: optical flow, or the change of the gradients from slice to slice",
            choices=_FLOWS,
            free=True,
        ),
        "subsampling": Option(
            str,
            "linear",
            "means with gain and bias, squashed (lenet) or not (linear), or without weights (mean)",
            choices=_SUBSAMPLINGS,
            paper="lenet",
            free=True,
        ),
        "activation": Option(str, "relu", "after every convolution", choices=("relu", "tanh"), paper="tanh"),
        "norm": Option(str, "batch", "normalisation after every convolution", choices=NORMS, paper="none"),
        "sets": Option(int, 8, "filter sets of C2 (the paper: 2), each with three filters in C4", low=1, paper=2),
        "pooling": Option(str, "mean", "global pooling after C6", choices=("mean", "max", "mean-max"), paper="mean"),
        "dropout": Option(float, 0.2, "dropout before the last layer", low=0, high=0.95, paper=0.0),
    },
    ambiguities=(
        "flow: the estimator is ours to choose; Lucas-Kanade, or differences of the gradients.",
        "subsampling: with gain, bias and tanh as in LeNet, without the tanh, or plain means.",
        "parameters: 285,437 counted (285,357 without gains and biases of the means); the paper's total may differ.",
    ),
)


@register(SPEC)
class JiCNN3D(SequenceNetwork):
    """The 3D CNN of Ji et al.; see the head of this file. Layers are called conv2, pool3, conv4, pool5, conv6.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels (the paper: 1).
    faithful : bool
        The paper's form: the clip of `variant` only, no padding.
    width : float
        Scale of the filter sets and of C6.
    variant, flow, subsampling, activation, norm, sets, pooling, dropout
        The options of ``spec("cnn3d-ji")``.
    """

    cam_layer = "maps"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        variant: str,
        flow: str,
        subsampling: str,
        activation: str,
        norm: str,
        sets: int,
        pooling: str,
        dropout: float,
    ) -> None:
        plan = _PLANS[variant]
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=SPEC.smallest,
            exact=plan.clip if faithful else None,
        )
        self.faithful = faithful
        sets = scale_channels(sets, width)
        squash = nn.ReLU if activation == "relu" else nn.Tanh
        tower = partial(_tower, plan, sets=sets, faithful=faithful, norm=norm, squash=squash, subsampling=subsampling)
        self.hardwired = HardwiredMaps(flow, keep_slices=not faithful)
        self.still = tower(groups=3 * in_channels)
        self.motion = tower(groups=2 * in_channels)
        # Does nothing: the maps of all groups pass through it as one block, where hooks (Grad-CAM) find them.
        self.maps = nn.Identity()
        self.still_channels, motion_channels = (groups * in_channels * sets * _FILTERS for groups in (3, 2))
        hidden = scale_channels(_HIDDEN, width)
        if faithful:
            positions = plan.clip[0] - 2 * (_DEPTH - 1)
            maps = self.still_channels * positions + motion_channels * (positions - 1)
            self.conv6 = ConvUnit(maps, hidden, kernel_size=plan.conv6, dims=2, norm=norm, relu=False)
        else:
            maps = self.still_channels + motion_channels
            self.conv6 = ConvUnit(
                maps, hidden, kernel_size=(_DEPTH, *plan.conv6), padding="same", norm=norm, relu=False
            )
        self.squash6 = squash()
        self.pool = AdaptivePool3d(pooling)
        self.num_features = hidden * self.pool.multiple
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.num_features, num_classes)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
                # By the inputs: the outputs that torch would count are those of all groups.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if activation == "relu" else "linear")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.init_classifier(self.classifier)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Draw the last layer: small, or in the paper's form by the rule of all its layers."""
        if not self.faithful:
            super().init_classifier(layer)
            return
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        nn.init.zeros_(layer.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the maps after S5 (B, F, T', H', W'), those of grey and gradients before those of the flow.

        In the paper's form the flow has a position of T less; there a map of zeros stands at its end.
        """
        still, motion = self.hardwired(x)
        still, motion = self.still(still), self.motion(motion)
        if self.faithful:
            motion = F.pad(motion, (0, 0, 0, 0, 0, 1))
        return self.maps(torch.cat([still, motion], dim=1))

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or with `pre_logits` the activations of C6, pooled."""
        if self.faithful:
            still, motion = features[:, : self.still_channels], features[:, self.still_channels :, :-1]
            maps = torch.cat([still.flatten(1, 2), motion.flatten(1, 2)], dim=1)
            x = self.squash6(self.conv6(maps)).flatten(1)
        else:
            x = self.pool(self.squash6(self.conv6(features)))
        return x if pre_logits else self.classifier(self.dropout(x))


class HardwiredMaps(nn.Module):
    """H1: what every frame shows and how it changes, without a weight to learn.

    Parameters
    ----------
    flow : {"lucas-kanade", "difference"}
        Motion maps: `lucas_kanade`, or the change of the gradients.
    keep_slices : bool
        True: as many motion maps as slices; the last stands twice, a single slice has zeros.
    """

    def __init__(self, flow: str, *, keep_slices: bool) -> None:
        super().__init__()
        self.flow = flow
        self.keep_slices = keep_slices

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return grey, gradient-x and gradient-y (B, 3C, T, H, W), and flow-x and flow-y (B, 2C, T - 1 or T, H, W)."""
        # Differences of bfloat16 would be mostly rounding.
        exact = x if x.dtype == torch.float64 else x.float()
        gradient_x, gradient_y = _gradient(exact, 4), _gradient(exact, 3)
        still = torch.cat([exact, gradient_x, gradient_y], dim=1)
        if x.shape[2] == 1:
            motion = exact.new_zeros(x.shape[0], 2 * x.shape[1], int(self.keep_slices), *x.shape[3:])
        else:
            if self.flow == "lucas-kanade":
                motion = torch.cat(lucas_kanade(exact, gradient_x, gradient_y), dim=1)
            else:
                motion = still[:, x.shape[1] :].diff(dim=2)
            if self.keep_slices:
                motion = torch.cat([motion, motion[:, :, -1:]], dim=2)
        return still.to(x.dtype), motion.to(x.dtype)

    def extra_repr(self) -> str:
        """Show the settings when the module is printed."""
        return f"{self.flow}, keep_slices={self.keep_slices}"


def lucas_kanade(
    x: Tensor, gradient_x: Tensor, gradient_y: Tensor, *, window: int = 7, ridge: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Return the displacement from every frame to the next, in pixels along x (W) and y (H).

    Least squares of the brightness equation over square windows (B. D. Lucas, T. Kanade, IJCAI 1981), one pass without
    a pyramid: right for smooth patterns that move a pixel or two.

    Parameters
    ----------
    x, gradient_x, gradient_y : Tensor
        Frames (B, C, T, H, W) with T > 1 and their derivatives a pixel.
    window : int
        Side of the windows in pixels, odd. No displacement is reported beyond half of it.
    ridge : float
        Pulls to zero where a window shows little: share of the mean squared gradient of the pair of frames.

    Returns
    -------
    tuple of Tensor
        Two fields (B, C, T - 1, H, W).
    """
    change = x.diff(dim=2)
    dx, dy = ((gradient[:, :, 1:] + gradient[:, :, :-1]) / 2 for gradient in (gradient_x, gradient_y))
    products = torch.stack([dx * dx, dy * dy, dx * dy, dx * change, dy * change])
    means = F.avg_pool2d(products.flatten(0, 3), window, 1, window // 2, count_include_pad=False)
    xx, yy, xy, xt, yt = means.reshape(products.shape)
    least = ridge / 2 * (xx + yy).mean((3, 4), keepdim=True) + 1e-8
    xx, yy = xx + least, yy + least
    determinant = xx * yy - xy * xy
    reach = window // 2
    flow_x = ((xy * yt - yy * xt) / determinant).clamp(-reach, reach)
    flow_y = ((xy * xt - xx * yt) / determinant).clamp(-reach, reach)
    return flow_x, flow_y


class Subsampling(nn.Module):
    """LeNet's subsampling: the mean over squares of the plane, times a gain, plus a bias, one pair a channel.

    Parameters
    ----------
    channels : int
        Channels of the maps (B, C, T, H, W).
    side : int
        Side of the squares; a square at the edge may be smaller.
    weights : bool
        False: the mean alone.
    """

    def __init__(self, channels: int, side: int, *, weights: bool) -> None:
        super().__init__()
        self.side = side
        self.weights = weights
        if weights:
            self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))
            self.bias = nn.Parameter(torch.zeros(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (B, C, T, ceil(H / side), ceil(W / side))."""
        x = F.avg_pool3d(x, (1, self.side, self.side), ceil_mode=True)
        return x * self.gain + self.bias if self.weights else x

    def extra_repr(self) -> str:
        """Show the settings when the module is printed."""
        return f"{self.side}, weights={self.weights}"


def _gradient(x: Tensor, axis: int) -> Tensor:
    """Return central differences along an axis, one-sided at its ends.

    `torch.gradient` gives the same, but an exported network would then read one batch size only.
    """
    steps = x.diff(dim=axis)
    first, last = steps.narrow(axis, 0, 1), steps.narrow(axis, -1, 1)
    return (torch.cat([first, steps], dim=axis) + torch.cat([steps, last], dim=axis)) / 2


def _tower(
    plan: _Plan, *, groups: int, sets: int, faithful: bool, norm: str, squash: type[nn.Module], subsampling: str
) -> nn.Sequential:
    """Return C2 to S5 for groups that meet in C6 only: (B, groups, T, H, W) to (B, 3 x sets x groups, T', H', W')."""
    padding = 0 if faithful else "same"
    first, second = groups * sets, groups * sets * _FILTERS
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, channels, out, kernel, side in (
        (2, groups, first, plan.conv2, plan.pool3),
        (4, first, second, plan.conv4, plan.pool5),
    ):
        layers[f"conv{number}"] = ConvUnit(
            channels, out, kernel_size=(_DEPTH, *kernel), padding=padding, groups=channels, norm=norm, relu=False
        )
        layers[f"squash{number}"] = squash()
        layers[f"pool{number + 1}"] = Subsampling(out, side, weights=subsampling != "mean")
        if subsampling == "lenet":
            layers[f"squash{number + 1}"] = squash()
    return nn.Sequential(layers)
