"""The honest "one slice at a time" reference: a small 2D encoder, the mean over slices, one linear layer.

Not from a paper: it is what a reader has without any context across slices, and what every network that claims to use
context has to beat. The order of the slices does not change its answer.

=======  ==========================================  ==================
block    operation, each slice by itself             out (C x H x W)
=======  ==========================================  ==================
stage1   conv 3x3, norm, ReLU, max pool 2x2          32 x 56 x 56
stage2   2 x (conv 3x3, norm, ReLU), max pool 2x2    64 x 28 x 28
stage3   2 x (conv 3x3, norm, ReLU), max pool 2x2    128 x 14 x 14
stage4   2 x (conv 3x3, norm, ReLU)                  256 x 14 x 14
pool     mean over the plane                         256
slices   mean over T                                 256
=======  ==========================================  ==================
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from volrec.networks.base import SlicewiseNetwork
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import NORMS, init_kaiming, norm_layer, scale_channels
from volrec.networks.registry import register

__all__ = ["SliceMean"]

_CHANNELS = (32, 64, 128, 256)
_POOLINGS = ("mean", "max")

SPEC = NetworkSpec(
    name="slice-mean",
    paper="-",
    title="Mean of slice features (baseline without context)",
    year=2026,
    default_clip=(1, 16, 112, 112),
    smallest=(1, 8, 8),
    num_classes=2,
    slicewise=True,
    summary="A small 2D network on each slice, the mean over slices, one linear layer.",
    options={
        "norm": Option(str, "batch", "normalisation after every convolution", choices=NORMS, free=True),
        "spatial_pooling": Option(str, "mean", "pooling of a slice's map over the plane", choices=_POOLINGS, free=True),
        "slice_pooling": Option(str, "mean", "pooling of the features over slices", choices=_POOLINGS, free=True),
        "dropout": Option(float, 0.2, "dropout before the linear layer", low=0, high=0.95, free=True),
    },
    ambiguities=("There is no paper: faithful=True changes nothing.",),
)


@register(SPEC)
class SliceMean(SlicewiseNetwork):
    """Slice features from a small 2D encoder, pooled over slices; see the head of this file."""

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        norm: str,
        spatial_pooling: str,
        slice_pooling: str,
        dropout: float,
    ) -> None:
        # The last map must hold a whole position; instance statistics need more than one.
        least = 16 if norm == "instance" else 8
        super().__init__(num_classes=num_classes, in_channels=in_channels, smallest=(1, least, least))
        self.spatial_pooling = spatial_pooling
        self.slice_pooling = slice_pooling
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for number, paper_channels in enumerate(_CHANNELS, 1):
            out = scale_channels(paper_channels, width)
            layers: list[nn.Module] = []
            count = 1 if number == 1 else 2
            for index in range(count):
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=norm == "none"), norm_layer(norm, out, dims=2)]
                if index == count - 1 and number < len(_CHANNELS):
                    # ReLU commutes with the maximum: pooling first leaves it a quarter of the positions.
                    layers.append(nn.MaxPool2d(2, ceil_mode=True))
                layers.append(nn.ReLU(inplace=True))
                channels = out
            stages[f"stage{number}"] = nn.Sequential(*layers)
        self.encoder = nn.Sequential(stages)
        self.num_features = channels
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        init_kaiming(self.encoder)
        self.init_classifier(self.classifier)

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, F, h, w) of slices (N, C, H, W)."""
        return self.encoder(x)

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return features (N, F) of maps (N, F, h, w)."""
        return maps.mean((2, 3)) if self.spatial_pooling == "mean" else maps.amax((2, 3))

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of slice features (B, T, F)."""
        pooled = features.mean(1) if self.slice_pooling == "mean" else features.amax(1)
        return pooled if pre_logits else self.classifier(self.dropout(pooled))
