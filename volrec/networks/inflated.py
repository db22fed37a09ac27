"""Any 2D network as a 3D one: the rule by which I3D is made, for every backbone.

J. Carreira, A. Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017.

The paper's rule ("inflating 2D ConvNets into 3D"): all square kernels and pools k x k become cubes k x k x k; a 2D
kernel is repeated k times along the new axis and divided by k, so that a volume of one repeated slice gives at every
step what the 2D network gives for the slice. The paper does it to Inception-v1. Here the 2D network is an option:

==========  ==================================================  ======================================
layer       operation                                           out
==========  ==================================================  ======================================
backbone    the 2D network's layers with one axis more          F x T' x h x w (resnet-18: 512 x T ...)
mean        over T', h and w                                    F
classifier  dropout, F -> classes                               classes
==========  ==================================================  ======================================

Parameters keep the names that they have in 2D, as ``backbone.trunk.…``; kernels (F, C, k, k) are (F, C, t, k, k) here:
2D weights inflate by name, and every 2D network with pretrained weights starts a 3D one.

`time_kernel` says what t is. "cube", the paper's, is k, for 7x7 a kernel of 7 slices; "three", the default, is 3 for
every kernel larger than 1x1: thin stacks have few slices, and a stem of 7 of them costs more than twice as much.
`time_stride` says where slices become fewer. "keep", the default, is nowhere: stacks of some tens of thick slices have
none to spare. "plane" is wherever the plane becomes smaller; "i3d" is the same, but the first two max pools leave time
alone, which the paper found better. A pool that leaves time alone is 1 x k x k; one of stride 1 in the plane (those in
Inception blocks) is a cube. ``temporal_padding="replicate"`` lets convolutions read the end slices again outside of the
stack, so that the identity above holds at both ends as well; "zero" is the paper's.

Weights that nobody inflates start as the 2D network draws its own: each plane of a kernel of t anew, smaller by the
square root of t.

Ambiguities and the option that settles each
--------------------------------------------
paper : ``faithful=True`` is Inception-v1 with cubes, zeros and the strides of I3D, which gives the maps of I3D
    (`i3d`) and has its parameters: 12,697,264 with 400 classes, 111.2 GMAC for 64 frames of 224 x 224. The paper's last
    pool averages over windows of two steps before the mean over time, which counts the first and the last step less;
    here all steps count alike. For the paper's network to the last layer take `i3d`.
backbone : networks of MONAI and timm are taken where they are made of convolutions, pools, normalisation and
    activations; what has no twin is refused with the name of the layer.

Adapted (``faithful=False``): any backbone, any number of slices from 1, any size from the backbone's smallest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from volrec.networks.backbones import PREFIXES, STEM_STRIDE, backbone_option, create_backbone
from volrec.networks.base import SequenceNetwork
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import NORMS
from volrec.networks.layers.inflation import inflate_module
from volrec.networks.layers.twins import TEMPORAL_PADDINGS, TIME_KERNELS, TIME_STRIDES, InflatedConv3d
from volrec.networks.registry import register

__all__ = ["Inflated"]

SPEC = NetworkSpec(
    name="inflated",
    paper="Carreira, Zisserman",
    title="Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset",
    year=2017,
    default_clip=(3, 64, 224, 224),
    smallest=(1, 16, 16),
    num_classes=400,
    summary="Any 2D network inflated along time, as I3D is made from Inception-v1.",
    options={
        "backbone": backbone_option("resnet-18", paper="inception-v1", use="that is inflated"),
        "stem_stride": STEM_STRIDE,
        "time_kernel": Option(
            str,
            "three",
            "extent along T of kernels larger than 1x1: as in the plane (cube, the paper's), or three slices",
            choices=TIME_KERNELS,
            paper="cube",
        ),
        "time_stride": Option(
            str,
            "keep",
            "stride along T: 1 everywhere (keep), as in the plane, or so but for the first two max pools (i3d)",
            choices=TIME_STRIDES,
            paper="i3d",
        ),
        "temporal_padding": Option(
            str,
            "replicate",
            "what convolutions read before the first and after the last slice: zeros, or that slice again",
            choices=TEMPORAL_PADDINGS,
            paper="zero",
        ),
        "norm": Option(str, "batch", "normalisation of the backbone", choices=NORMS),
        "dropout": Option(float, 0.2, "dropout before the last layer", low=0, high=0.95, paper=0.5),
    },
    ambiguities=(
        "faithful=True has the maps and parameters of i3d; the paper's last pool over two steps is the network i3d.",
        "Networks of MONAI and timm are refused, with the layer, where one has no 3D twin.",
    ),
)


@register(SPEC)
class Inflated(SequenceNetwork):
    """The 3D twin of a 2D network; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: I3D up to its last maps.
    width : float
        Scale of all channel counts of a paper's backbone.
    backbone, stem_stride, time_kernel, time_stride, temporal_padding, norm, dropout
        The options of ``spec("inflated")``.
    """

    cam_layer = "backbone.trunk"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        backbone: str,
        stem_stride: int | None,
        time_kernel: str,
        time_stride: str,
        temporal_padding: str,
        norm: str,
        dropout: float,
    ) -> None:
        flat = create_backbone(
            backbone,
            in_channels=in_channels,
            faithful=faithful,
            width=width,
            norm=norm,
            tail="pool",
            stem_stride=stem_stride,
        )
        super().__init__(num_classes=num_classes, in_channels=in_channels, smallest=(1, *flat.smallest))
        side = max(64, *flat.smallest)
        twin = inflate_module(
            flat.trunk,
            time_kernel=time_kernel,
            time_stride=time_stride,
            temporal_padding=temporal_padding,
            # The papers' networks are known to have twins; sides of 2:3 tell the axes of all others apart.
            size=(in_channels, side, side * 3 // 2) if backbone.startswith(PREFIXES) else None,
        )
        _draw(twin)
        self.backbone = nn.ModuleDict({"trunk": twin})
        self.num_features = flat.num_maps
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.num_features, num_classes)
        self.init_classifier(self.classifier)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last maps of the backbone (B, F, T', h, w)."""
        return self.backbone["trunk"](x)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or with `pre_logits` the mean of the maps over T', h and w (B, F)."""
        pooled = features.mean((2, 3, 4))
        return pooled if pre_logits else self.classifier(self.dropout(pooled))


def _draw(twin: nn.Module) -> None:
    """Draw kernels anew that are t copies of one plane, so that what they give of unlike slices has the same size."""
    with torch.no_grad():
        for layer in twin.modules():
            if isinstance(layer, InflatedConv3d) and layer.kernel_size[0] > 1:
                size = layer.weight.square().mean().sqrt() * math.sqrt(layer.kernel_size[0])
                layer.weight.copy_(torch.randn_like(layer.weight) * size)
