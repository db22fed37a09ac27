"""LRCN: a 2D network on every slice, then an LSTM along the slices that scores at every step.

J. Donahue, L. A. Hendricks, S. Guadarrama, M. Rohrbach, S. Venugopalan, K. Saenko, T. Darrell, "Long-term Recurrent
Convolutional Networks for Visual Recognition and Description", CVPR 2015.

========  ==============================================================  ================
block     operation                                                       out
========  ==============================================================  ================
input     BGR clip                                                        3 x 16 x 227 x 227
backbone  the paper's hybrid of CaffeNet and the network of Zeiler and    384 x 6 x 6
          Fergus, each slice by itself (`volrec.networks.backbones`)      a slice
fc6       13824 -> 4096, ReLU, dropout .9                                 16 x 4096
lstm1     4096 -> 256, dropout .5                                         16 x 256
fc8       256 -> classes, at every step                                   16 x 101
mean      over the steps                                                  101
========  ==============================================================  ================

65.42 M parameters with 101 classes: 60.94 M to fc6, 4.46 M in the LSTM (20.98 M with 1024 units), the rest in fc8.
19.04 GMAC to fc6 and 0.07 in the LSTM for a clip. The LSTM is Caffe's: one bias a gate, and the forget gate is not
raised. Its weights start between -.01 and .01, convolutions from Gaussians of .01 with biases of .1; biases of 0 in
the LSTM and a Gaussian of .01 in fc8 are our choice.

The mean over steps of the scores is fc8 of the mean over steps of the LSTM's output, and is computed so.
`LRCN.step_logits` gives the scores of every step, on which the paper puts its loss.

Ambiguities and the option that settles each
--------------------------------------------
features : the paper has two nets: the LSTM reads fc6, or fc7 behind it.
units : the released code has 256 units for RGB and flow; that the paper's text favours 1024 for flow is not verified.
scores : the published test averages the softmax outputs of the steps, and here it is their logits; the other is
    ``volrec.networks.stacked_lstm.combine_steps(step_logits, "mean")``.

Adapted to volumes (``faithful=False``)
---------------------------------------
Any `backbone`; the features are the mean over the plane of its maps (or the fully connected layers behind an adaptive
pool); batch normalisation; any size from 16 x 16 in the plane, with a finer `stem_stride` for small canvases; any
number of slices. The weights of the LSTM start between -1 / sqrt(units) and 1 / sqrt(units), as torch's do, and the
bias of its forget gate at 1, so that a long stack is remembered from the start. Two LSTMs read the stack, one from each
end (`bidirectional`): a video is known up to now only and runs one way, while a volume is there as a whole and has no
arrow of time, so every step may know the slices on both sides. `readout` can be the last step or the largest value over
the steps of every unit.
"""

from __future__ import annotations

from torch import Tensor, nn

from volrec.networks.backbones import STEM_STRIDE, backbone_option, create_backbone
from volrec.networks.base import SlicewiseNetwork
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import NORMS, SingleBiasLSTM, init_lstm, scale_channels
from volrec.networks.registry import register

__all__ = ["LRCN"]

SPEC = NetworkSpec(
    name="lrcn",
    paper="Donahue, Hendricks, Guadarrama, Rohrbach, Venugopalan, Saenko, Darrell",
    title="Long-term Recurrent Convolutional Networks for Visual Recognition and Description",
    year=2015,
    default_clip=(3, 16, 227, 227),
    smallest=(1, 16, 16),
    num_classes=101,
    slicewise=True,
    summary="A 2D network on each slice, an LSTM along the slices, the mean of the scores of every step.",
    options={
        "backbone": backbone_option("hybrid", paper="hybrid"),
        "stem_stride": STEM_STRIDE,
        "features": Option(
            str,
            "pool",
            "what the LSTM reads: the mean over the plane of the maps, or a fully connected layer",
            choices=("pool", "fc6", "fc7"),
            paper="fc6",
            free=("fc6", "fc7"),
        ),
        "units": Option(int, 256, "units of the LSTM, times width", low=1, free=True),
        "bidirectional": Option(bool, True, "a second LSTM reads the slices from the other end", paper=False),
        "readout": Option(
            str,
            "mean",
            "over the steps of the LSTM: mean of the scores, the last step, or the largest value of every unit",
            choices=("mean", "last", "max"),
            paper="mean",
        ),
        "norm": Option(
            str, "batch", "normalisation after every convolution of the backbone", choices=NORMS, paper="none"
        ),
        "feature_dropout": Option(
            float, 0.0, "dropout of the features that the LSTM reads", low=0, high=0.95, paper=0.9
        ),
        "dropout": Option(float, 0.2, "dropout after the LSTM", low=0, high=0.95, paper=0.5),
    },
    ambiguities=(
        "features: the paper has two nets, the LSTM on fc6 or on fc7.",
        "units: the released code has 256 units; that the text favours 1024 for flow is not verified.",
        "scores: softmax outputs of the steps are averaged at test, here logits.",
    ),
)


@register(SPEC)
class LRCN(SlicewiseNetwork):
    """A recurrent network over slice features; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: fixed slice size, the paper's initial weights.
    width : float
        Scale of all channel counts and of the units of the LSTM.
    backbone, stem_stride, features, units, bidirectional, readout, norm, feature_dropout, dropout
        The options of ``spec("lrcn")``.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        backbone: str,
        stem_stride: int | None,
        features: str,
        units: int,
        bidirectional: bool,
        readout: str,
        norm: str,
        feature_dropout: float,
        dropout: float,
    ) -> None:
        encoder = create_backbone(
            backbone,
            in_channels=in_channels,
            faithful=faithful,
            width=width,
            norm=norm,
            tail=features,
            dropout=feature_dropout,
            stem_stride=stem_stride,
        )
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(1, *encoder.smallest),
            exact=(None, *encoder.exact) if encoder.exact else None,
        )
        self.readout = readout
        self.backbone = encoder
        # A fully connected tail has its own dropout after every layer.
        self.drop_features = nn.Dropout(feature_dropout if features == "pool" else 0.0)
        units = scale_channels(units, width)
        self.lstm1 = SingleBiasLSTM(encoder.num_features, units, bidirectional=bidirectional)
        if faithful:
            init_lstm(self.lstm1, bound=0.01, forget_bias=0.0)
        else:
            init_lstm(self.lstm1)
        self.drop = nn.Dropout(dropout)
        self.num_features = units * (2 if bidirectional else 1)
        self.classifier = nn.Linear(self.num_features, num_classes)
        self.init_classifier(self.classifier)

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, F, h, w) of slices (N, C, H, W)."""
        return self.backbone.forward_maps(x)

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return features (N, F) of maps (N, F, h, w)."""
        return self.drop_features(self.backbone.forward_tail(maps))

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of slice features (B, T, F)."""
        states = self.drop(self.lstm1(features)[0])
        if self.readout == "mean":
            read = states.mean(1)
        elif self.readout == "max":
            read = states.amax(1)
        else:
            read = self.lstm1.last_step(states)
        return read if pre_logits else self.classifier(read)

    def step_logits(self, features: Tensor) -> Tensor:
        """Return logits (B, T, num_classes) at every step of the LSTM, for slice features (B, T, F).

        Unlike those of `slice_logits` they know the slices before (with ``bidirectional=True`` all slices).
        """
        return self.classifier(self.drop(self.lstm1(features)[0]))
