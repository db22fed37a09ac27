"""Hidden Two-Stream: a network predicts the motion between slices, and a two-stream classifier reads it.

Y. Zhu, Z. Lan, S. Newsam, A. Hauptmann, "Hidden Two-Stream Convolutional Networks for Action Recognition", ACCV 2018.

==========  =============================================================================  ==================
block       operation                                                                      out
==========  =============================================================================  ==================
input       BGR less (104, 117, 123), over 255                                             3 x 11 x 224 x 224
motion      MotionNet (`volrec.networks.motionnet`) on all slices: predict_flow2 x 20,     20 x 224 x 224
            clipped to +-20 pixels, enlarged twice
hand-over   (+ 20) x 255 / 40 - 128: as if read from pictures of 8 bits                    20 x 224 x 224
temporal    VGG-16 up to fc7 on the 10 fields (x, y, x, y …)                               4096
spatial     VGG-16 up to fc7 on the middle slice                                           4096
classifier  a last layer for each                                                          2 x 101
fusion      ReLU, L1-normalised; spatial + 1.5 x temporal                                  101
==========  =============================================================================  ==================

MotionNet 42.32 M parameters and 20.05 GMAC, with the temporal stream 177.0 M and 36.0 GMAC ("stacked temporal stream",
``use_spatial=False``), with both 311.7 M and 51.5 GMAC for a stack of 11 slices.

Training (``spec("hidden-two-stream").training``) is in stages, of which a user may leave some out. MotionNet learns to
restore each slice from the next one, without labels (objective "motion", `HiddenTwoStream.auxiliary_loss`). Then
(a) the labels train the rest while MotionNet stays as it is (objective "labels", frozen ``motion.*``); or (b) they
train all of it ("labels", nothing frozen); or (c) labels and motion together train all of it ("joint"), the paper's
best. The stages listed are motion, (a), then (c).

Scores with ``stage="softmax"`` or ``"relu-l1"`` are fused as the stage says and given as logarithms, so that softmax
(one output: sigmoid) gives the fused scores. A loss on those of relu-l1 does not reach what is below zero:
`forward_branches` gives the scores of each stream, which the paper trains one by one.

Ambiguities and the option that settles each
--------------------------------------------
scale_weights : what the weights of the levels multiply in the loss of MotionNet (`volrec.networks.motion_losses`).
motion : the small network of the paper is not among the released files; "tiny-motionnet" is a published one.
use_spatial : the paper tells of both the temporal stream alone and the two.
dropout : the released temporal stream drops .9 after fc6 and .8 after fc7; the spatial one has the same here.

Adapted to volumes (``faithful=False``)
---------------------------------------
Windows of `fields` + 1 slices lie evenly over the clip, as few as cover all of it; features are means over windows, the
spatial stream reads the middle slice of each. A clip of fewer slices is continued at both ends by its first and last.
`fields` is 5, not 10: the two-stream paper (Simonyan and Zisserman 2014) loses little by it (80.4 against 81.0), and
stacks of thick slices have few: with 10, one of 8 would have to be continued.

Any 2D network (`spatial`, `temporal`), the mean of its maps, one last layer over both streams (logits of spatial +
`motion_weight` x temporal). ``temporal_network`` is any other network of the registry in place of the temporal 2D one:
it reads all fields of the clip as a sequence (B, 2, T - 1, H, W).

Displacements go to the temporal stream over 20, in [-1, 1]. The motion network reads every channel of a clip less its
mean, over four times its standard deviation in that clip: intensities may have any range (windows in [0, 1], z-scores),
and the losses see the contrasts that their constants were chosen for. It is Tiny-MotionNet: shifts between slices are
small, and on canvases of some 64 pixels the levels 5 and 6 of MotionNet would have 2 to 4 positions a side. Its
predictions start near zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks.backbones import STEM_STRIDE, backbone_option, create_backbone
from volrec.networks.base import SequenceNetwork, pass_as_block
from volrec.networks.facts import NetworkSpec, Option, TrainingStage
from volrec.networks.layers import NORMS
from volrec.networks.motion_losses import SCALE_WEIGHTS, motion_loss
from volrec.networks.motionnet import BOUND, MotionNet, TinyMotionNet
from volrec.networks.registry import create, register

__all__ = ["HiddenTwoStream"]

_MOTION = {"motionnet": MotionNet, "tiny-motionnet": TinyMotionNet}
# Standard deviation of a channel as the motion network reads it, about that of the paper's pictures over 255.
_SPREAD = 0.25

SPEC = NetworkSpec(
    name="hidden-two-stream",
    paper="Zhu, Lan, Newsam, Hauptmann",
    title="Hidden Two-Stream Convolutional Networks for Action Recognition",
    year=2018,
    default_clip=(3, 11, 224, 224),
    smallest=(1, 32, 32),
    num_classes=101,
    summary="Motion between slices predicted by a network of its own, then two streams: motion and slices.",
    options={
        "fields": Option(int, 5, "fields of motion in a window, of one slice more", low=1, high=64, paper=10),
        "motion": Option(
            str,
            "tiny-motionnet",
            "network that predicts the motion",
            choices=tuple(_MOTION),
            paper="motionnet",
            free=tuple(_MOTION),
        ),
        "levels": Option(
            int, None, "deepest level of the motion network (None: the paper's, 6, or 4 for tiny)", low=3, high=6
        ),
        "temporal": backbone_option("resnet-18", paper="vgg-16", use="that reads the fields of a window"),
        "use_spatial": Option(bool, True, "False leaves the motion alone, without the spatial stream", free=True),
        "spatial": backbone_option("resnet-18", paper="vgg-16", use="that reads the middle slice of a window"),
        "temporal_network": Option(
            str,
            None,
            "network of the registry that reads all fields (B, 2, T - 1, H, W), in place of temporal",
        ),
        "temporal_options": Option(dict, {}, "options of temporal_network"),
        "stem_stride": STEM_STRIDE,
        "stage": Option(
            str,
            "logits",
            "where the streams are fused: logits, softmax, or ReLU then L1-normalised (relu-l1)",
            choices=("logits", "softmax", "relu-l1"),
            paper="relu-l1",
        ),
        "motion_weight": Option(
            float, 1.5, "weight of the temporal stream in the fusion, over that of the spatial", low=0.01, high=100
        ),
        "scale_weights": Option(
            str,
            "ssim",
            "what the weights of the levels multiply in the motion loss: ssim alone, the whole, or smoothness alone",
            choices=SCALE_WEIGHTS,
            free=True,
        ),
        "norm": Option(
            str, "batch", "normalisation of the 2D networks; the motion network has none", choices=NORMS, paper="none"
        ),
        "dropout": Option(float, 0.2, "dropout before the last layer", low=0, high=0.95, paper=0.9),
    },
    ambiguities=(
        "scale_weights: released code, paper and a re-implementation weigh the levels of the motion loss differently.",
        "motion: the paper's small network was not released; tiny-motionnet is a re-implementation's.",
        "use_spatial: the paper has both the temporal stream alone and the two.",
    ),
    training=(
        TrainingStage(
            "motion",
            objective="motion",
            freeze=("[!m]*",),  # all but motion.*, whichever streams there are
            epochs=0.3,
            why="the motion network learns to restore each slice from the next one, without labels",
        ),
        TrainingStage(
            "temporal",
            objective="labels",
            freeze=("motion.*",),
            epochs=0.4,
            why="the streams learn the labels while the motion network stays as it is: the paper's (a)",
        ),
        TrainingStage(
            "joint",
            objective="joint",
            lr=0.1,
            epochs=0.3,
            motion_weight=0.03,  # the loss of a clip is 15 to 30, that of its label below 1
            why="labels and motion together refine all of it: the paper's (c), its best, at a smaller rate as there",
        ),
    ),
)


@register(SPEC)
class HiddenTwoStream(SequenceNetwork):
    """A motion network under a two-stream classifier; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels (intensities only).
    faithful : bool
        The paper's form: one stack of fixed size, the paper's hand-over and initial weights.
    width : float
        Scale of all channel counts.
    fields, motion, levels, temporal, use_spatial, spatial, temporal_network, temporal_options, stem_stride, stage
        The options of ``spec("hidden-two-stream")``; so are the following.
    motion_weight, scale_weights, norm, dropout
        See there.
    """

    motion: MotionNet
    temporal: Any
    spatial: Any

    tower_names = ("spatial", "temporal")

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        fields: int,
        motion: str,
        levels: int | None,
        temporal: str,
        use_spatial: bool,
        spatial: str,
        temporal_network: str | None,
        temporal_options: dict[str, Any],
        stem_stride: int | None,
        stage: str,
        motion_weight: float,
        scale_weights: str,
        norm: str,
        dropout: float,
    ) -> None:
        given: dict[str, Any] = {"faithful": faithful, "width": width, "norm": norm, "stem_stride": stem_stride}
        given |= {"tail": "fc7", "dropout": dropout} if faithful else {"tail": "pool"}
        scene: Any = create_backbone(spatial, in_channels=in_channels, **given) if use_spatial else None
        if temporal_network is None:
            _check_unused(temporal_options)
            reader: Any = create_backbone(temporal, in_channels=2 * fields, **given)
            cam_layer, slices = "temporal_maps", 1
        else:
            reader = _inner_network(temporal_network, temporal_options, width=width)
            cam_layer, slices = f"temporal.{reader.cam_layer}", reader.smallest[0]
            # A clip of one slice is read as two, and so as one field of no motion.
            slices = slices if slices == 1 else slices + 1
        # Batch statistics of a single clip need more than one position, which 2D networks leave from 33 on.
        sides = [(32, 32), *(one.smallest[-2:] for one in (scene, reader) if one is not None)]
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(slices, max(side[0] for side in sides), max(side[1] for side in sides)),
            exact=(fields + 1, 224, 224) if faithful else None,
        )
        self.cam_layer = cam_layer
        self.faithful, self.fields, self.stage = faithful, fields, stage
        self.motion_weight, self.scale_weights = motion_weight, scale_weights
        self.reads_sequence = temporal_network is not None
        # In the order in which a clip passes them.
        self.motion = _MOTION[motion](in_channels, fields + 1, width=width, levels=levels, faithful=faithful)
        self.temporal = reader
        if temporal_network is None:
            # Does nothing: the maps of all windows pass through it as one block, where hooks (Grad-CAM) find them.
            self.temporal_maps = nn.Identity()
        self.spatial = scene
        if faithful:
            for one in (reader, scene) if use_spatial else (reader,):
                one.tail.drop7.p = 0.8
        # The paper's dropout is within its fully connected layers.
        self.drop = nn.Dropout(0.0 if faithful else dropout)
        self.spatial_features = scene.num_features if use_spatial else 0
        self.num_features = self.spatial_features + int(reader.num_features)
        self._check_outputs(num_classes)
        self.classifier: nn.Linear = nn.Linear(self.num_features, num_classes)
        self.init_classifier(self.classifier)
        self._separate_scores()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return features (B, F) of clips (B, C, T, H, W): those of the spatial stream, then of the temporal one."""
        batch, slices = x.shape[0], x.shape[2]
        starts = _starts(slices, self.fields)
        if self.reads_sequence:
            sequence = self._all_fields(x).transpose(1, 2) / BOUND
            temporal = self.temporal.forward_head(self.temporal.forward_features(sequence), pre_logits=True)
        else:
            maps = self.temporal.forward_maps(self._hand_over(self.motion.flow(self._stacks(x))))
            maps = pass_as_block(maps, self.temporal_maps, batch=batch, slices=len(starts))
            temporal = self.temporal.forward_tail(maps).unflatten(0, (batch, len(starts))).mean(1)
        if self.spatial is None:
            return temporal
        middles = [_inside(start + (self.fields + 1) // 2, slices) for start in starts]
        seen = x.index_select(2, torch.tensor(middles, device=x.device)).transpose(1, 2).flatten(0, 1)
        return torch.cat([self.spatial(seen).unflatten(0, (batch, len(starts))).mean(1), temporal], 1)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return scores (B, num_classes) of features (B, F); see the head of this file for those of fused streams."""
        fuses_scores = isinstance(self.classifier, _ScoresOfStreams)
        if self.spatial is not None and not fuses_scores:
            spatial, temporal = features.tensor_split([self.spatial_features], 1)
            features = torch.cat([spatial, self.motion_weight * temporal], 1)
        if pre_logits:
            return features
        scores = self.classifier(self.drop(features))
        return _fuse(*scores.unbind(1), weight=self.motion_weight, stage=self.stage) if fuses_scores else scores

    def forward_branches(self, features: Tensor) -> dict[str, Tensor]:
        """Return logits (B, num_classes) of each stream: ``spatial`` and ``temporal``, or ``temporal`` alone.

        Fused at the stage of logits, a stream has its columns of the last layer and its share of the bias:
        spatial + `motion_weight` x temporal are the scores of `forward_head` (without dropout).
        """
        features = self.drop(features)
        if self.spatial is None:
            return {"temporal": self.classifier(features)}
        if isinstance(self.classifier, _ScoresOfStreams):
            return dict(zip(("spatial", "temporal"), self.classifier(features).unbind(1), strict=True))
        cut = [self.spatial_features]
        parts = zip(features.tensor_split(cut, 1), self.classifier.weight.tensor_split(cut, 1), strict=True)
        bias = self.classifier.bias / (1 + self.motion_weight)
        spatial, temporal = (F.linear(part, weight, bias) for part, weight in parts)
        return {"spatial": spatial, "temporal": temporal}

    def auxiliary_loss(self, x: Tensor) -> Tensor:
        """Return the loss of the motion network on clips (B, C, T, H, W), a scalar; it needs no labels."""
        self.check_input(x)
        stacks = self._stacks(x)
        return motion_loss(stacks, self.motion(stacks), scale_weights=self.scale_weights)

    def predict_flow(self, x: Tensor) -> Tensor:
        """Return how each slice of clips (B, C, T, H, W) moves to the next: (B, 2, T - 1, H, W), x first, in voxels.

        Where windows overlap, the mean of what they say; within +-20 voxels.
        """
        self.check_input(x)
        return self._all_fields(x).transpose(1, 2)[:, :, : x.shape[2] - 1]

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh last layer with `num_classes` outputs in place, for both streams."""
        self._check_outputs(num_classes)
        super().reset_classifier(num_classes)
        self._separate_scores()

    def init_classifier(self, layer: nn.Linear) -> None:
        """Draw the weights of a last layer, of a standard deviation of .001 as released, or of .01 where adapted."""
        super().init_classifier(layer)
        if self.faithful:
            with torch.no_grad():
                layer.weight *= 0.1

    def _stacks(self, x: Tensor) -> Tensor:
        """Return the windows (B * windows, fields + 1, C, H, W) of clips as the motion network reads them."""
        slices = x.shape[2]
        if not self.faithful:
            # In float32 at least: the variance of Hounsfield units is infinite in float16.
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            spread, mean = torch.var_mean(wide, (2, 3, 4), correction=0, keepdim=True)
            x = ((wide - mean) * (_SPREAD * torch.rsqrt(spread + 1e-8))).to(x.dtype)
        starts = _starts(slices, self.fields)
        indices = [_inside(start + place, slices) for start in starts for place in range(self.fields + 1)]
        stacks = x.index_select(2, torch.tensor(indices, device=x.device)).unflatten(2, (len(starts), -1))
        return stacks.permute(0, 2, 3, 1, 4, 5).flatten(0, 1)

    def _all_fields(self, x: Tensor) -> Tensor:
        """Return the fields of clips one after another, (B, max(T, 2) - 1, 2, H, W), in voxels."""
        batch, steps, starts = x.shape[0], max(x.shape[2], 2) - 1, _starts(x.shape[2], self.fields)
        # What windows say of steps before the first and after the last slice goes to a place behind the others.
        places = [
            start + place if 0 <= start + place < steps else steps for start in starts for place in range(self.fields)
        ]
        found = self.motion.flow(self._stacks(x)).unflatten(0, (batch, len(starts))).flatten(1, 2)
        total = found.new_zeros(batch, steps + 1, *found.shape[2:])
        total = total.index_add(1, torch.tensor(places, device=x.device), found)[:, :steps]
        counts = torch.tensor([places.count(step) for step in range(steps)], device=x.device)
        return total / counts[:, None, None, None]

    def _hand_over(self, flow: Tensor) -> Tensor:
        """Return fields (N, fields, 2, H, W) as the temporal stream reads them, (N, 2 * fields, H, W)."""
        flat = flow.flatten(1, 2)
        return (flat + BOUND) * (255 / (2 * BOUND)) - 128 if self.faithful else flat / BOUND

    def _separate_scores(self) -> None:
        """Let the last layer give the scores of each stream where it is these that are fused."""
        if self.spatial is not None and self.stage != "logits":
            self.classifier = _ScoresOfStreams(self.classifier, self.spatial_features)

    def _check_outputs(self, num_classes: int) -> None:
        if num_classes == 1 and self.stage == "relu-l1" and self.spatial is not None:
            raise ConfigError(
                "scores of a single output are all 1 once they are L1-normalised, got num_classes=1 and "
                "stage='relu-l1'.",
                remedy="Use two classes, or another stage (faithful=False).",
                where="network.options.stage",
                code="network-option",
            )


class _ScoresOfStreams(nn.Linear):
    """The last layers of both streams: features (B, F) to scores (B, 2, num_classes), spatial first.

    Parameters
    ----------
    layer : nn.Linear
        Over the features of both streams; its bias is that of the temporal one.
    spatial_features : int
        Features of the spatial stream, which stand first.
    """

    def __init__(self, layer: nn.Linear, spatial_features: int) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.spatial_features = spatial_features
        self.weight, self.bias = layer.weight, layer.bias
        self.spatial_bias = nn.Parameter(torch.zeros_like(layer.bias))

    def forward(self, input: Tensor) -> Tensor:
        """Return the scores."""
        cut = [self.spatial_features]
        (seen, moved), weights = input.tensor_split(cut, 1), self.weight.tensor_split(cut, 1)
        return torch.stack([F.linear(seen, weights[0], self.spatial_bias), F.linear(moved, weights[1], self.bias)], 1)


def _fuse(spatial: Tensor, temporal: Tensor, *, weight: float, stage: str) -> Tensor:
    """Return logarithms of fused scores (B, K): their softmax (K = 1: sigmoid) is the weighted mean of the streams'."""
    wide = torch.promote_types(spatial.dtype, torch.float32)
    spatial, temporal = spatial.to(wide), temporal.to(wide)
    if stage == "relu-l1":
        shares = [F.normalize(scores.relu(), p=1.0, dim=1) for scores in (spatial, temporal)]
        return ((shares[0] + weight * shares[1]) / (1 + weight)).clamp(min=1e-12).log()

    def mixed(first: Tensor, second: Tensor) -> Tensor:
        return torch.logaddexp(first, second + math.log(weight)) - math.log1p(weight)

    if spatial.shape[1] == 1:
        return mixed(F.logsigmoid(spatial), F.logsigmoid(temporal)) - mixed(
            F.logsigmoid(-spatial), F.logsigmoid(-temporal)
        )
    return mixed(F.log_softmax(spatial, 1), F.log_softmax(temporal, 1))


def _starts(slices: int, fields: int) -> list[int]:
    """Return where windows of `fields` + 1 slices begin: as few as cover all steps, evenly laid.

    A stack of fewer slices has one window, which begins before it where it is continued there.
    """
    spare = max(slices, 2) - 1 - fields
    count = 1 + max(0, -(-spare // fields))
    if count == 1:
        return [spare // 2]
    return [(2 * index * spare + count - 1) // (2 * (count - 1)) for index in range(count)]


def _inside(index: int, slices: int) -> int:
    return min(max(index, 0), slices - 1)


def _inner_network(name: str, options: dict[str, Any], *, width: float) -> SequenceNetwork:
    """Build the network of the registry that reads sequences of fields, without its last layer."""
    if name == SPEC.name:
        raise ConfigError(
            f"{name} cannot be its own temporal_network.",
            remedy="Choose another network (`volrec models` lists them), or leave it out for a 2D network.",
            where="network.options.temporal_network",
            code="network-option",
        )
    network = create(name, num_classes=1, in_channels=2, width=width, **options)
    network.set_submodule(network.classifier_name, nn.Identity())
    return network


def _check_unused(options: dict[str, Any]) -> None:
    if options:
        raise ConfigError(
            f"temporal_options are those of temporal_network, got {options!r} without one.",
            remedy="Name the network, or leave the options out.",
            where="network.options.temporal_options",
            code="network-option",
        )
