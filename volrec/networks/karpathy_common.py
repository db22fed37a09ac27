"""What the five networks of Karpathy et al. (``karpathy.py``) share: options, layers, head, initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from volrec.networks.base import SequenceNetwork
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import NORMS, Conv3d, CrossChannelNorm, SameConv3d, init_kaiming, norm_layer, scale_channels

__all__ = ["AMBIGUITIES", "OPTIONS", "Form", "KarpathyNetwork", "karpathy_spec"]

_CONVOLUTIONS = ((96, 11), (256, 5), (384, 3), (384, 3), (256, 3))
"""Channels and side of the kernels of conv1 … conv5."""

_POOLED = (1, 2)
"""Convolutions that local response normalisation and a pool follow; the pool after conv5 belongs to the head."""

_FC = 4096
_LEAST = 16

OPTIONS = {
    "norm": Option(
        str,
        "batch",
        "normalisation after every convolution, or the paper's response normalisation after the first two (lrn)",
        choices=(*NORMS, "lrn"),
        paper="lrn",
    ),
    "pool_rounding": Option(
        str, "ceil", "rounding of the 2x2 pools; the paper does not say", choices=("ceil", "floor"), free=True
    ),
    "stem_stride": Option(int, 3, "stride of conv1 in the plane; 1 keeps the detail of small canvases", low=1, high=3),
    "head": Option(
        str, "gap", "global pooling and one linear layer, or fully connected layers", choices=("gap", "fc"), paper="fc"
    ),
    "hidden": Option(
        int,
        0,
        "size of the two hidden layers of the fc head (0: the paper's 4096 times width) or the one of the gap head "
        "(0: none)",
        low=0,
    ),
    "dropout": Option(
        float,
        0.2,
        "dropout before fc7 (fc head) and before the last layer",
        low=0,
        high=0.95,
        paper=0.5,
        free=True,
    ),
}
AMBIGUITIES = (
    "pool_rounding: padding and rounding are not published; 'ceil' gives the paper's 7x7x256, 'floor' 6x6x256.",
    "norm: the position of response normalisation is not published; here after the ReLU, before the pool.",
    "dropout: 0.5 after fc6 and fc7 as in Krizhevsky et al. (2012); not verified.",
    "initial weights are not published: Gaussians of 0.01 are ours.",
)


def karpathy_spec(name: str, *, frames: int, side: int = 170, **rest: Any) -> NetworkSpec:
    """Return the spec of one network; `rest` adds to what the five have in common."""
    return NetworkSpec(
        name=name,
        paper="Karpathy, Toderici, Shetty, Leung, Sukthankar, Fei-Fei",
        title="Large-scale Video Classification with Convolutional Neural Networks",
        year=2014,
        default_clip=(3, frames, side, side),
        num_classes=487,
        **{
            "smallest": (1, 16, 16),
            "ambiguities": AMBIGUITIES,
            **rest,
            "options": OPTIONS | rest.get("options", {}),
        },
    )


@dataclass(frozen=True)
class Form:
    """The options that all five networks share, and the layers that follow from them.

    Attributes
    ----------
    faithful : bool
        The paper's padding: none in conv1. False: enough in every convolution to read the edge of any size.
    width : float
        Scale of all channel counts.
    norm, pool_rounding, stem_stride, head, hidden, dropout
        As in `OPTIONS`.
    """

    faithful: bool
    width: float
    norm: str
    pool_rounding: str
    stem_stride: int
    head: str
    hidden: int
    dropout: float

    @property
    def maps(self) -> int:
        """Channels of the last convolution."""
        return scale_channels(_CONVOLUTIONS[-1][0], self.width)

    def smallest(self, *, last_pool: bool = True) -> int:
        """Return the smallest side (H or W) of what the convolutions read: no map may vanish on the way."""
        floor = self.pool_rounding == "floor"
        # Positions after the second pool; instance statistics need more than one.
        side = 2 if self.norm == "instance" or (floor and last_pool) else 1
        for _ in _POOLED:
            side = 2 * side if floor else 2 * side - 1
        return max(_LEAST, (side - 1) * self.stem_stride + 1)

    def convolutions(
        self,
        in_channels: int,
        *,
        dims: int,
        extents: tuple[int, ...] = (),
        strides: tuple[int, ...] = (),
        same: bool = False,
    ) -> nn.Sequential:
        """Return conv1 up to the ReLU after conv5: (N, C, H, W) to (N, F, h, w), or clips to (B, F, T', h, w).

        Parameters
        ----------
        in_channels : int
            Channels C of the input.
        dims : {2, 3}
            Slices or clips.
        extents, strides : tuple of int
            Kernel and stride along T of the first convolutions; 1 where none is given (3D only).
        same : bool
            Pad those along T, so that ceil(T / stride) positions come out.
        """
        layers = nn.Sequential()
        channels = in_channels
        for number, (paper_channels, side) in enumerate(_CONVOLUTIONS, 1):
            out = scale_channels(paper_channels, self.width)
            bias = self.norm in {"none", "lrn"}
            stride = self.stem_stride if number == 1 else 1
            padding = 0 if self.faithful and number == 1 else side // 2
            conv: nn.Module
            if dims == 2:
                conv = nn.Conv2d(channels, out, side, stride, padding, bias=bias)
            else:
                in_time = number <= len(extents)
                extent, step = (extents[number - 1], strides[number - 1]) if in_time else (1, 1)
                kernel, stride3 = (extent, side, side), (step, stride, stride)
                if same and in_time:
                    conv = SameConv3d(channels, out, kernel, stride3, bias=bias)
                else:
                    conv = Conv3d(channels, out, kernel, stride3, (0, padding, padding), bias=bias)
            layers.add_module(f"conv{number}", conv)
            if not bias:
                layers.add_module(f"norm{number}", norm_layer(self.norm, out, dims=dims))
            pool = {f"pool{number}": self.max_pool(dims=dims)} if number in _POOLED else {}
            relu = {f"relu{number}": nn.ReLU(inplace=True)}
            if self.norm == "lrn" and pool:
                response = CrossChannelNorm(5, alpha=1e-4, beta=0.5, k=2, mean=False)
                order = {**relu, f"lrn{number}": response, **pool}
            else:
                # ReLU commutes with the maximum: pooling first leaves it a quarter of the positions.
                order = {**pool, **relu}
            for name, layer in order.items():
                layers.add_module(name, layer)
            channels = out
        return layers

    def max_pool(self, *, dims: int) -> nn.Module:
        """Return the 2x2 pool in the plane, rounding up or down."""
        if dims == 2:
            return nn.MaxPool2d(2, ceil_mode=self.pool_rounding == "ceil")
        return nn.MaxPool3d((1, 2, 2), ceil_mode=self.pool_rounding == "ceil")

    def vector(self, *, dims: int, last_pool: bool = True) -> tuple[nn.Sequential, int]:
        """Return what turns maps into vectors (the last pool, then the head's view), and the features of one map."""
        # The paper's maps have this side at the paper's size, where averaging to it changes nothing.
        side = (7 if self.pool_rounding == "ceil" else 6) if self.head == "fc" else 1
        layers = nn.Sequential()
        if last_pool:
            layers.add_module("pool5", self.max_pool(dims=dims))
        if not self.faithful:
            layers.add_module(
                "average", nn.AdaptiveAvgPool2d(side) if dims == 2 else nn.AdaptiveAvgPool3d((1, side, side))
            )
        layers.add_module("flatten", nn.Flatten())
        return layers, side * side

    def hidden_layers(self, features: int) -> tuple[nn.Sequential, int]:
        """Return the fully connected layers before the last one, with ReLU and the dropout between them, and the size.

        Two with the fc head (fc6, fc7), one or none with the gap head. The dropout after them belongs to the network.
        """
        names = ["fc6", "fc7"] if self.head == "fc" else ["fc7"] if self.hidden else []
        size = self.hidden or scale_channels(_FC, self.width)
        layers = nn.Sequential()
        for name in names:
            layers.add_module(name, nn.Linear(features, size))
            layers.add_module(f"relu{name[-1]}", nn.ReLU(inplace=True))
            if name == "fc6":
                layers.add_module("drop6", nn.Dropout(self.dropout))
            features = size
        return layers, features


class KarpathyNetwork(SequenceNetwork):
    """What the five have in common: the sizes they read, the head and the initial weights."""

    classifier_name = "fc8"
    network_spec: ClassVar[NetworkSpec]  # set by `register`

    def __init__(self, *, num_classes: int, in_channels: int, form: Form) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(1, *self.smallest_plane(form)),
            exact=self.network_spec.default_clip[1:] if form.faithful else None,
        )

    def smallest_plane(self, form: Form) -> tuple[int, int]:
        """Return the smallest (H, W) that can be read."""
        return (form.smallest(),) * 2

    def add_head(self, form: Form, *, dims: int, inputs: int = 1, last_pool: bool = True) -> None:
        """Add the layers behind the convolutions, of which `inputs` blocks of maps are read side by side."""
        self.vector, positions = form.vector(dims=dims, last_pool=last_pool)
        self.hidden, self.num_features = form.hidden_layers(inputs * form.maps * positions)
        self.drop7 = nn.Dropout(form.dropout)
        self.fc8 = nn.Linear(self.num_features, self.num_classes)
        if not form.faithful:
            init_kaiming(self)
            self.init_classifier(self.fc8)
            return
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
