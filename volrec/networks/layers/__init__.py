"""Layers that two papers share: normalisation by name, channel scaling, pooling."""

from __future__ import annotations

from volrec.networks.layers.blocks import NORMS, channels_last, init_kaiming, norm_layer, scale_channels
from volrec.networks.layers.pooling import AdaptivePool3d, CaffeMaxPool3d, RunningCentre

__all__ = [
    "NORMS",
    "AdaptivePool3d",
    "CaffeMaxPool3d",
    "RunningCentre",
    "channels_last",
    "init_kaiming",
    "norm_layer",
    "scale_channels",
]
