"""Temporal attention: a 2D network on every slice, and an LSTM that chooses at every step which slices it reads.

L. Yao, A. Torabi, K. Cho, N. Ballas, C. Pal, H. Larochelle, A. Courville, "Describing Videos by Exploiting Temporal
Structure", ICCV 2015. The paper writes sentences about videos; here the same decoder recognises what is in a volume,
and its weights tell a reader which slices it looked at.

=========  ======================================================  ===============
block      operation                                               out
=========  ======================================================  ===============
backbone   GoogLeNet up to pool5, each slice by itself             28 x 1024
start      tanh of an affine map of the mean feature: h_0 and c_0  2 x 3518
attend     e_i = w^T tanh(W h_{t-1} + U v_i + b), softmax over i   28 weights
context    sigmoid gate(h_{t-1}) times sum_i weight_i v_i          1024
gates      LSTM cell: context and h_{t-1} to h_t, c_t              3518
readout    tanh of an affine map of h_t and the context, dropout   468
classify   468 -> classes, on the mean readout of the steps        101
=========  ======================================================  ===============

attend to readout are run `steps` times. 83,944,616 parameters with 101 classes and 44.5 GMAC a clip. The decoder has
77,971,064 of them, its cell 63,929,096; with the released vocabulary of 20,000 words of 468 numbers, which this network
does not have, these would be 103.25 M and 70.5 M. Weights start as in the released code: Gaussians of 0.01, orthogonal
recurrent blocks, biases 0. The dropout of 0.5 acts on the pre-activations of the three sigmoid gates of the cell, on
h_t before the readout, and on the readout. Two parameters of the released code that change no result are left out: the
bias before the softmax and the second bias of the readout.

`attention` and `slice_weights` give the weights. They say where the decoder looked, which need not be every place where
evidence lies: with two classes it may look for the signs of one and take their absence for the other.
`volrec.networks.layers.coverage_penalty` is the released code's penalty on slices that no step looks at, which a
training loop can add.

Ambiguities and the option that settles each
--------------------------------------------
recognition : the paper has no classifier. Ours: the decoder without words takes `steps` steps (3; 1 is plain attention
    asked by the mean slice), and the mean of their readouts enters one linear layer with 101 classes, a number that is
    ours too.
gate : the released code multiplies the context by a sigmoid of the state; False leaves that out.
encoder3d : the paper adds features of a 3D network that was not released: histograms of gradients and flow over a
    coarse grid enter three convolutions of 3x3x3, each with a ReLU and a max pool of 2x2x2 (none of this is verified).
    "conv3d" has that form with 32, 64 and 128 filters of our choice and reads the clip itself.
mask : the released code lets frames of padding keep weight in the softmax; here masked slices have none.

Adapted to volumes (``faithful=False``)
---------------------------------------
Normalised backbone of any name and size (`stem_stride` 1 keeps the detail of small canvases), an LSTM of 512 with
forget gates that start open, attention through 256 numbers.

Attention reads its slices as a set: only its state knows an order, that of the steps. What a round spot is (a nodule,
or a vessel that runs through the stack) is told by the slices above and below, and no attention over single slices can
see that. Hence ``context="conv"``: before attention each feature takes in its two neighbours by a 1D convolution, added
to the feature. It is ours, not the paper's, and blurs the weights by one slice to each side; ``"none"`` is the paper's
set, for findings that one slice shows. More context comes from `encoder3d`: the feature of each slice is joined by one
of a 3D network at that same slice, maps pooled over the plane, in time kept (`pool_time` false) or interpolated back to
every slice. Such a network reads slices together and is no longer slicewise; Grad-CAM then shows the 2D half of the
evidence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.networks.backbones import PREFIXES, STEM_STRIDE, backbone_option, create_backbone
from volrec.networks.backbones.contract import Backbone
from volrec.networks.base import SequenceNetwork, SlicewiseNetwork, pass_as_block
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import (
    NORMS,
    CaffeMaxPool3d,
    ConvUnit,
    SoftAttention,
    check_mask,
    init_kaiming,
    scale_channels,
)
from volrec.networks.registry import create, register

__all__ = ["AttentionDecoder", "TemporalAttention", "TemporalAttention3d", "temporal_attention"]

_FILTERS3D = (32, 64, 128)

SPEC = NetworkSpec(
    name="temporal-attention",
    paper="Yao, Torabi, Cho, Ballas, Pal, Larochelle, Courville",
    title="Describing Videos by Exploiting Temporal Structure",
    year=2015,
    default_clip=(3, 28, 224, 224),
    smallest=(1, 16, 16),
    num_classes=101,
    slicewise=True,
    summary="2D features of every slice, read by an LSTM with soft attention over slices.",
    options={
        "backbone": backbone_option("googlenet", paper="googlenet"),
        "stem_stride": STEM_STRIDE,
        "norm": Option(str, "batch", "normalisation in the backbone and the 3D encoder", choices=NORMS, paper="none"),
        "context": Option(
            str,
            "conv",
            "each slice feature takes in its two neighbours before attention, or not (attention then sees a set)",
            choices=("none", "conv"),
            paper="none",
        ),
        "encoder3d": Option(
            str,
            "none",
            "3D network whose features of the same slices join the 2D ones",
            choices=("none", "conv3d", "c3d"),
            free=("none", "conv3d"),
        ),
        "pool_time": Option(
            bool,
            False,
            "the 3D encoder pools along T too, and its features are interpolated back to every slice",
            paper=True,
        ),
        "steps": Option(int, 3, "steps of the decoder, each with weights of its own", low=1, high=64, free=True),
        "gate": Option(bool, True, "a sigmoid of the state scales what attention gives", free=True),
        "units": Option(int, 512, "units of the LSTM, times width", low=1, paper=3518),
        "attention_size": Option(
            int,
            256,
            "numbers in which state and slice feature are compared, times width (0: as many as the feature has)",
            low=0,
            paper=0,
        ),
        "readout_size": Option(int, 256, "numbers that enter the last layer, times width", low=1, paper=468),
        "dropout": Option(float, 0.5, "dropout on the gates of the LSTM, its state and the readout", low=0, high=0.95),
    },
    ambiguities=(
        "recognition: the paper writes sentences; classifier, 101 classes and mean over steps are ours.",
        "steps: a sentence decides in the paper; without words a number of our choice (3).",
        "gate: in the released code; False leaves it out.",
        "encoder3d: never released; the form of 'conv3d' is not verified, filters (32, 64, 128) and input are ours.",
        "mask: the released code lets padding keep weight in the softmax; here it has none.",
    ),
)


class _Attending(SequenceNetwork):
    """What both forms share: an encoder's slice features (B, T, F) are read by an attending decoder."""

    decoder: AttentionDecoder
    neighbours: SliceContext | None
    dropout: nn.Dropout
    classifier: nn.Linear

    def add_decoder(self, features: int, decoder: AttentionDecoder, *, context: bool, dropout: float) -> None:
        """Add what follows the features (B, T, `features`)."""
        self.neighbours = SliceContext(features) if context else None
        self.decoder = decoder
        self.num_features = decoder.num_features
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.num_features, self.num_classes)
        self.init_classifier(self.classifier)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return `aggregate` of the features."""
        return self.aggregate(features, pre_logits=pre_logits)

    def aggregate(self, features: Tensor, *, pre_logits: bool = False, mask: Tensor | None = None) -> Tensor:
        """Return logits (B, num_classes) of slice features (B, T, F), or with `pre_logits` the mean readout.

        `mask` (B, T) is False for slices of padding, which are then not read.
        """
        readout, _ = self._decode(features, mask)
        return readout if pre_logits else self.classifier(self.dropout(readout))

    def step_weights(self, features: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return the weights (B, steps, T) of slice features (B, T, F); every step sums to one."""
        return self._decode(features, mask)[1]

    def slice_weights(self, features: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return the mean weights (B, T) of the steps, for slice features (B, T, F); they sum to one."""
        return self.step_weights(features, mask=mask).mean(1)

    def attention(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return the weights (B, steps, T) with which clips (B, C, T, H, W) are read."""
        self.check_input(x)
        return self.step_weights(self.forward_features(x), mask=mask)

    def _decode(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if mask is not None:
            check_mask(mask, features)
        if self.neighbours is not None:
            features = self.neighbours(features, mask=mask)
        return self.decoder(features, mask=mask)


class TemporalAttention(_Attending, SlicewiseNetwork):
    """Attention over slices that a 2D network encoded one by one; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels, exact
        As for `volrec.networks.base.SequenceNetwork`.
    backbone : Backbone
        Slices to features.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        exact: tuple[int | None, int | None, int | None] | None,
        backbone: Backbone,
    ) -> None:
        super().__init__(
            num_classes=num_classes, in_channels=in_channels, smallest=(1, *backbone.smallest), exact=exact
        )
        self.backbone = backbone

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, F, h, w) of slices (N, C, H, W)."""
        return self.backbone.forward_maps(x)

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return features (N, F) of maps (N, F, h, w)."""
        return self.backbone.forward_tail(maps)


class TemporalAttention3d(_Attending):
    """Attention over slices that a 2D network saw one by one and a 3D network together; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels, exact
        As for `volrec.networks.base.SequenceNetwork`.
    backbone : Backbone
        Slices to features.
    encoder3d : SliceEncoder3d
        Clips to features of every slice.
    """

    cam_layer = "slice_maps"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        exact: tuple[int | None, int | None, int | None] | None,
        backbone: Backbone,
        encoder3d: SliceEncoder3d,
    ) -> None:
        height, width = (max(sizes) for sizes in zip(backbone.smallest, encoder3d.smallest, strict=True))
        super().__init__(num_classes=num_classes, in_channels=in_channels, smallest=(1, height, width), exact=exact)
        self.backbone = backbone
        self.encoder3d = encoder3d
        # Does nothing: the 2D maps of all slices pass through it as one block, where hooks (Grad-CAM) find them.
        self.slice_maps = nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return features (B, T, F) of clips (B, C, T, H, W): those of the backbone, then those of the 3D encoder."""
        batch, _, slices = x.shape[:3]
        maps = self.backbone.forward_maps(x.transpose(1, 2).flatten(0, 1))
        maps = pass_as_block(maps, self.slice_maps, batch=batch, slices=slices)
        single = self.backbone.forward_tail(maps).unflatten(0, (batch, slices))
        return torch.cat([single, self.encoder3d(x)], dim=2)


@register(SPEC)
def temporal_attention(
    *,
    num_classes: int,
    in_channels: int,
    faithful: bool,
    width: float,
    backbone: str,
    stem_stride: int | None,
    norm: str,
    context: str,
    encoder3d: str,
    pool_time: bool,
    steps: int,
    gate: bool,
    units: int,
    attention_size: int,
    readout_size: int,
    dropout: float,
) -> TemporalAttention | TemporalAttention3d:
    """Build the network: slicewise without a 3D encoder, not slicewise with one.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: GoogLeNet for slices of 224 x 224, any number of them.
    width : float
        Scale of all channel counts.
    backbone, stem_stride, norm, context, encoder3d, pool_time, steps, gate, units, attention_size, readout_size,
    dropout
        The options of ``spec("temporal-attention")``.
    """
    # A 3D encoder takes the normalisation even where the backbone of another library cannot.
    own = encoder3d != "none" and backbone.startswith(PREFIXES)
    encoder = create_backbone(
        backbone,
        in_channels=in_channels,
        faithful=faithful,
        width=width,
        norm="batch" if own else norm,
        stem_stride=stem_stride,
    )
    exact = (None, *encoder.frame_size) if faithful else None
    features = encoder.num_features
    network: TemporalAttention | TemporalAttention3d
    if encoder3d == "none":
        network = TemporalAttention(num_classes=num_classes, in_channels=in_channels, exact=exact, backbone=encoder)
    else:
        clips = SliceEncoder3d(encoder3d, in_channels=in_channels, width=width, norm=norm, pool_time=pool_time)
        features += clips.num_features
        network = TemporalAttention3d(
            num_classes=num_classes, in_channels=in_channels, exact=exact, backbone=encoder, encoder3d=clips
        )
    decoder = AttentionDecoder(
        features,
        units=scale_channels(units, width),
        attention_size=scale_channels(attention_size, width) if attention_size else features,
        readout_size=scale_channels(readout_size, width),
        steps=steps,
        gate=gate,
        dropout=dropout,
        faithful=faithful,
    )
    network.add_decoder(features, decoder, context=context == "conv", dropout=dropout)
    return network


class AttentionDecoder(nn.Module):
    """An LSTM cell that attends to slice features (B, T, F) at every step.

    Parameters
    ----------
    features, units, attention_size, readout_size : int
        Lengths of a slice feature, of the state, of the space of the attention, and of the readout.
    steps : int
        Number of steps.
    gate : bool
        A sigmoid of the state scales the context.
    dropout : float
        On the pre-activations of the three sigmoid gates of the cell and on the state before the readout.
    faithful : bool
        The released code's initial weights; otherwise larger ones (Glorot) and forget gates that start open.
    """

    def __init__(
        self,
        features: int,
        *,
        units: int,
        attention_size: int,
        readout_size: int,
        steps: int,
        gate: bool,
        dropout: float,
        faithful: bool,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.units = units
        self.num_features = readout_size
        self.start = nn.Linear(features, 2 * units)
        self.attend = SoftAttention(features, units, attention_size, gate=gate)
        self.gates = nn.Linear(features + units, 4 * units)
        self.readout = nn.Linear(units + features, readout_size)
        self.dropout = nn.Dropout(dropout)
        self._init_weights(faithful)

    def forward(self, features: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean readout (B, R) and the weights (B, steps, T) of features (B, T, F)."""
        state, memory = self.first_state(features, mask=mask)
        projected = self.attend.project(features)
        readouts, weights = [], []
        for _ in range(self.steps):
            context, chosen = self.attend(features, state, mask=mask, projected=projected)
            state, memory = self.step(context, state, memory)
            readouts.append(torch.tanh(self.readout(torch.cat([self.dropout(state), context], dim=1))))
            weights.append(chosen)
        return torch.stack(readouts).mean(0), torch.stack(weights, dim=1)

    def first_state(self, features: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return h_0 and c_0 (B, units), from the mean of the features that are not masked."""
        if mask is None:
            mean = features.mean(1)
        else:
            real = mask[:, :, None].to(features.dtype)
            mean = (features * real).sum(1) / real.sum(1).clamp(min=1)
        state, memory = torch.tanh(self.start(mean)).chunk(2, dim=1)
        return state, memory

    def step(self, context: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state and memory (B, units) after a context (B, F)."""
        sums = self.gates(torch.cat([context, state], dim=1))
        sigmoids, new = sums.split((3 * self.units, self.units), dim=1)
        enter, keep, show = torch.sigmoid(self.dropout(sigmoids)).chunk(3, dim=1)
        memory = keep * memory + enter * torch.tanh(new)
        return show * torch.tanh(memory), memory

    def _init_weights(self, faithful: bool) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                if faithful:
                    nn.init.normal_(layer.weight, std=0.01)
                else:
                    nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():
            for block in self.gates.weight[:, -self.units :].split(self.units):
                nn.init.orthogonal_(block)
            if not faithful:
                self.gates.bias[self.units : 2 * self.units] = 1.0


class SliceContext(nn.Module):
    """Add to each feature (B, T, F) what a 1D convolution over it and its two neighbours finds."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(features, features, 3, padding=1)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return features (B, T, F); masked slices count as zeros, as those beyond the ends do."""
        if mask is not None:
            features = features * mask[:, :, None].to(features.dtype)
        return features + F.relu(self.conv(features.transpose(1, 2))).transpose(1, 2)


class SliceEncoder3d(nn.Module):
    """A 3D network that gives every slice a feature of its own: clips (B, C, T, H, W) to (B, T, F).

    Parameters
    ----------
    kind : {"conv3d", "c3d"}
        Three convolutions with pools, or the convolutions of C3D.
    in_channels, width, norm
        As for `create`.
    pool_time : bool
        Pools halve T as well; the features are then interpolated back to T, the centre of every pooled window to the
        centre of the slices it covers. False keeps every slice.
    """

    def __init__(self, kind: str, *, in_channels: int, width: float, norm: str, pool_time: bool) -> None:
        super().__init__()
        strides: tuple[int, ...]
        if kind == "c3d":
            strides = (1, 2, 2, 2, 2) if pool_time else (1,) * 5
            c3d = create(
                "c3d", num_classes=1, in_channels=in_channels, width=width, norm=norm, temporal_strides=strides
            )
            self.num_features = c3d.num_features
            self.smallest = c3d.smallest[1:]
            c3d.set_submodule(c3d.classifier_name, nn.Identity())  # not reached: only the convolutions are
            self.trunk: nn.Module = c3d
        else:
            strides = (2, 2, 2) if pool_time else (1, 1, 1)
            # Pools round up, so that one position is enough; instance statistics need more than one before the last.
            self.smallest = (8, 8) if norm == "instance" else (4, 4)
            self.trunk = nn.Sequential()
            for number, (filters, stride) in enumerate(zip(_FILTERS3D, strides, strict=True), 1):
                out = scale_channels(filters, width)
                unit = ConvUnit(in_channels, out, kernel_size=3, padding=1, norm=norm, relu=False)
                self.trunk.add_module(f"conv{number}", unit)
                # ReLU commutes with the maximum: pooling first leaves it a fraction of the voxels.
                self.trunk.add_module(f"pool{number}", CaffeMaxPool3d((stride, 2, 2)))
                self.trunk.add_module(f"relu{number}", nn.ReLU(inplace=True))
                in_channels = out
            self.num_features = in_channels
            init_kaiming(self.trunk)
        self.stride = 1
        for stride in strides:
            self.stride *= stride

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, T, F): the maximum over the plane of the maps at every slice."""
        maps = self.trunk.forward_features(x) if isinstance(self.trunk, SequenceNetwork) else self.trunk(x)
        features = maps.amax((3, 4))
        if self.stride > 1:
            # By the stride and not to the size: windows start at slice 0, and the last may hang over the end.
            features = F.interpolate(features, scale_factor=float(self.stride), mode="linear")[:, :, : x.shape[2]]
        return features.transpose(1, 2)
