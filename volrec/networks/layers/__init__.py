"""Layers that two papers share: normalisation by name, channel scaling, pooling, padding, attention."""

from __future__ import annotations

from volrec.networks.layers.attention import SoftAttention, check_mask, coverage_penalty
from volrec.networks.layers.blocks import NORMS, channels_last, init_kaiming, norm_layer, scale_channels
from volrec.networks.layers.consensus import CONSENSUS, TEST_CONSENSUS, SegmentConsensus
from volrec.networks.layers.convolution import Conv3d, PointwiseConv2d
from volrec.networks.layers.pooling import AdaptivePool3d, CaffeMaxPool3d, RunningCentre
from volrec.networks.layers.recurrent import SingleBiasLSTM, init_lstm
from volrec.networks.layers.same import SameConv3d, SameMaxPool3d, same_padding
from volrec.networks.layers.units import ConvUnit, CrossChannelNorm

__all__ = [
    "CONSENSUS",
    "NORMS",
    "TEST_CONSENSUS",
    "AdaptivePool3d",
    "CaffeMaxPool3d",
    "Conv3d",
    "ConvUnit",
    "CrossChannelNorm",
    "PointwiseConv2d",
    "RunningCentre",
    "SameConv3d",
    "SameMaxPool3d",
    "SegmentConsensus",
    "SingleBiasLSTM",
    "SoftAttention",
    "channels_last",
    "check_mask",
    "coverage_penalty",
    "init_kaiming",
    "init_lstm",
    "norm_layer",
    "same_padding",
    "scale_channels",
]
