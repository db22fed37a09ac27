"""Five stacked LSTM layers over slice features, with a prediction at every slice.

J. Y.-H. Ng, M. Hausknecht, S. Vijayanarasimhan, O. Vinyals, R. Monga, G. Toderici, "Beyond Short Snippets: Deep
Networks for Video Classification", CVPR 2015. The pooling networks of the paper are in ``short_snippets.py``.

===========  ===============================================================  ==============
block        operation                                                        out, T frames
===========  ===============================================================  ==============
frames       GoogLeNet at 224 x 224 (or AlexNet up to fc7 at 220 x 220)       T x 1024 (4096)
lstm         five layers of 512 units                                         T x 512
classifier   512 -> K classes and softmax, at every frame                     T x K
clip         sum over frames, with weights that rise linearly from 0 to 1     K
===========  ===============================================================  ==============

The LSTM has 11,544,576 parameters on 1024 features, 17,836,032 on 4096; with 487 classes the network has 17,767,959
with GoogLeNet (47.8 GMAC for 30 frames), 76,367,207 with AlexNet.

The loss of the paper is the cross entropy of every frame times the same weights; how a trainer gets it is told at
`StackedLSTM.step_logits`. Without that, the logits of the clip are trained, in which late slices count for more too.

Ambiguities and the option that settles each
--------------------------------------------
backbone, features : GoogLeNet ends in its mean over the plane, AlexNet in fc7, and the LSTM reads that end.
readout : how frames become one answer. "linear" is the paper's; "last", "max" and "mean" are the others that it tried.
    The paper weighs the softmax outputs of the frames; here the states before the last layer are weighed (divided by
    the sum of the weights), which gives the weighted mean of the frames' logits, or their states' maximum. The paper's
    own rule on outputs is `combine_steps`.
biases : one bias a gate, as the published equations of LSTM have it (torch.nn.LSTM has two that add up).
dropout : not known; none in the paper's form, any value can be set.
weights : they rise from 0 to 1, read as t / T for t = 1 … T, so that the first slice counts as well.
initial weights : the paper's frame network starts from ImageNet. Our choice for the rest: the LSTM from
    U(-1/sqrt(units), 1/sqrt(units)) with biases of 0, the last layer from a Gaussian of 1/sqrt(units).

Adapted to volumes (``faithful=False``)
---------------------------------------
Any plane from `smallest` up (`stem_stride` 1 keeps the detail of small ones), any number of slices, two layers of 256
units whose forget gates start open (bias 1). A volume has no arrow of time and no end that comes last: the stack is
read from both ends (`bidirectional`), so that every slice knows those on both sides, and the states are averaged, for
with weights that rise the first slices would hardly count.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.networks.backbones import STEM_STRIDE, backbone_option, create_backbone
from volrec.networks.base import SlicewiseNetwork
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import NORMS, SingleBiasLSTM, init_lstm, scale_channels
from volrec.networks.registry import register
from volrec.networks.short_snippets import PAPERS_BACKBONES

__all__ = ["StackedLSTM", "combine_steps", "linear_gain"]

_READOUTS = ("linear", "last", "max", "mean")

SPEC = NetworkSpec(
    name="stacked-lstm",
    paper="Ng, Hausknecht, Vijayanarasimhan, Vinyals, Monga, Toderici",
    title="Beyond Short Snippets: Deep Networks for Video Classification",
    year=2015,
    default_clip=(3, 30, 224, 224),
    smallest=(1, 16, 16),
    num_classes=487,
    slicewise=True,
    summary="Stacked LSTM layers over slice features, with an answer at every slice.",
    options={
        "backbone": backbone_option("googlenet", free=PAPERS_BACKBONES),
        "stem_stride": STEM_STRIDE,
        "norm": Option(str, "batch", "normalisation in the backbone", NORMS, paper="none"),
        "features": Option(
            str,
            "pool",
            "what the LSTM reads: the mean over the plane of the maps, or the backbone's last fully connected layer "
            "(None: as the paper's backbone goes on)",
            choices=("pool", "fc"),
            paper=None,
        ),
        "layers": Option(int, 2, "LSTM layers", low=1, high=16, paper=5),
        "units": Option(int, 256, "units of an LSTM layer, times width", low=1, paper=512),
        "bidirectional": Option(bool, True, "a second LSTM reads the slices from the other end", paper=False),
        "readout": Option(
            str, "mean", "how the states of the slices become one", _READOUTS, paper="linear", free=_READOUTS
        ),
        "dropout": Option(
            float,
            0.2,
            "dropout after fc layers of the backbone, between LSTM layers and before the last layer",
            low=0,
            high=0.95,
            paper=0.0,
            free=True,
        ),
    },
    ambiguities=(
        "backbone: GoogLeNet reads frames of 224 x 224, AlexNet of 220 x 220.",
        "readout: the paper weighs softmax outputs, here logits are weighed; combine_steps weighs outputs.",
        "layers: one bias a gate is counted, 11.5 M weights on 1024 features; torch.nn.LSTM has two.",
        "dropout: not known, 0.",
    ),
)


def linear_gain(slices: int, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the weights (T,) of the slices of a stack, t / T for t = 1 … T: from near 0 to 1."""
    return torch.arange(1, slices + 1, device=device, dtype=dtype) / slices


def combine_steps(step_logits: Tensor, readout: str = "linear") -> Tensor:
    """Return class probabilities (B, K) of the logits (B, T, K) of every slice, as the paper tests.

    Each slice goes through the softmax (one output: the sigmoid) before slices are put together. Weighted outputs are
    divided by the sum of the weights, which leaves their order and makes them probabilities again; those of "max" need
    not add up to 1.

    Parameters
    ----------
    step_logits : Tensor
        Of `StackedLSTM.step_logits`.
    readout : {"linear", "last", "max", "mean"}
        The paper's rule, or one of the others that it tried.
    """
    outputs = step_logits.softmax(-1) if step_logits.shape[-1] > 1 else step_logits.sigmoid()
    return _read_out(outputs, readout)


@register(SPEC)
class StackedLSTM(SlicewiseNetwork):
    """Stacked LSTM over slices; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: fixed frame size, any number of frames.
    width : float
        Scale of all channel counts.
    backbone, stem_stride, norm, features, layers, units, bidirectional, readout, dropout
        The options of ``spec("stacked-lstm")``.
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
        norm: str,
        features: str | None,
        layers: int,
        units: int,
        bidirectional: bool,
        readout: str,
        dropout: float,
    ) -> None:
        encoder = create_backbone(
            backbone,
            in_channels=in_channels,
            faithful=faithful,
            width=width,
            norm=norm,
            tail="pool" if features == "pool" else "last",
            dropout=dropout,
            stem_stride=stem_stride,
        )
        if features == "fc" and not encoder.tails:
            raise ConfigError(
                f"{backbone} has no fully connected layer, got features='fc'.",
                remedy="Choose features='pool', or a backbone that has some: hybrid, alexnet, cnn-m-2048, vgg-16.",
                where="network.options.features",
                code="network-option",
            )
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(1, *encoder.smallest),
            exact=(None, *encoder.frame_size) if faithful else None,
        )
        self.backbone = encoder
        self.readout = readout
        units = scale_channels(units, width)
        self.lstm = SingleBiasLSTM(
            encoder.num_features,
            units,
            num_layers=layers,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        init_lstm(self.lstm, forget_bias=0.0 if faithful else 1.0)
        self.num_features = 2 * units if bidirectional else units
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.num_features, num_classes)
        self.init_classifier(self.classifier)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Draw the last layer: states are small, so scores start near equal without the small weights that others have.

        Smaller ones would hardly let a gradient through to the slices.
        """
        nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
        nn.init.zeros_(layer.bias)

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, F, h, w) of slices (N, C, H, W)."""
        return self.backbone.forward_maps(x)

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return features (N, F) of maps (N, F, h, w)."""
        return self.backbone.forward_tail(maps)

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of slice features (B, T, F)."""
        steps = self.lstm(features)[0]
        # The second direction ends at the first slice: its state at the last one has read nothing else.
        states = self.lstm.last_step(steps) if self.readout == "last" else _read_out(steps, self.readout)
        return states if pre_logits else self.classifier(self.dropout(states))

    def step_logits(self, features: Tensor) -> Tensor:
        """Return logits (B, T, num_classes) at every slice, each with the slices before it in memory.

        With ``bidirectional=True`` all other slices are in memory.

        The paper's loss weighs the slices by `linear_gain`; `combine_steps` is its rule at test.

        Examples
        --------
        >>> from volrec.networks import create
        >>> network = create("stacked-lstm", num_classes=2, width=0.0625)
        >>> clips, labels = torch.randn(2, 1, 6, 32, 32), torch.tensor([0, 1])
        >>> logits = network.step_logits(network.forward_features(clips))
        >>> each = nn.functional.cross_entropy(
        ...     logits.transpose(1, 2), labels[:, None].expand(-1, 6), reduction="none"
        ... )
        >>> gain = linear_gain(6)
        >>> loss = (each * gain).sum(1).mean() / gain.sum()
        """
        return self.classifier(self.dropout(self.lstm(features)[0]))


def _read_out(steps: Tensor, readout: str) -> Tensor:
    """Return (B, F) of (B, T, F)."""
    if readout == "last":
        return steps[:, -1]
    if readout == "max":
        return steps.amax(1)
    if readout == "mean":
        return steps.mean(1)
    gain = linear_gain(steps.shape[1], device=steps.device, dtype=steps.dtype)
    return torch.einsum("t,btf->bf", gain / gain.sum(), steps)
