"""Two-stream network: one tower reads slices, another the motion between them, and their scores are averaged.

K. Simonyan, A. Zisserman, "Two-Stream Convolutional Networks for Action Recognition in Videos", NIPS 2014.

==========  =====================================================  ================  =================
block       operation, each slice by itself                        spatial           temporal
==========  =====================================================  ================  =================
input       an RGB frame; ten displacement fields                  3 x 224 x 224     20 x 224 x 224
mean        each component of each field less its mean             -                 20 x 224 x 224
conv1       7x7, stride 2, ReLU, response norm., max pool 3x3 / 2  96 x 54 x 54      96 x 54 x 54
conv2       5x5, stride 2, padding 1, ReLU, max pool 3x3 / 2       256 x 13 x 13     256 x 13 x 13
            (response normalisation in the spatial tower only)
conv3, 4    3x3, padding 1, ReLU                                   512 x 13 x 13     512 x 13 x 13
conv5       3x3, padding 1, ReLU, max pool 3x3 / 2                 512 x 6 x 6       512 x 6 x 6
fc6         18432 -> 4096, ReLU, dropout                           4096              4096
fc7         4096 -> 2048, ReLU, dropout                            2048              2048
classifier  2048 -> classes, softmax                               101               101
mean        over frames and both towers                            101
==========  =====================================================  ================  =================

Both towers are CNN-M-2048 (``volrec/networks/backbones/cnn_m.py``). With 101 classes the spatial one has 90,627,813
parameters and 1.66 GMAC a frame, the temporal one 90,707,781 and 2.61; together 181,335,594.

A slice carries its own stack of fields: channels are those of appearance, then x1, y1, x2, y2 … xL, yL of L fields. How
fields are stacked (forward, in both directions, along trajectories) is settled where they are loaded. The mean of every
component is taken away in the network: a field that is constant, such as that of a moving camera, gives zeros.

Scores
------
`TwoStream.forward` gives the fused logits, `TwoStream.forward_branches` those of each tower, on which the paper trains
each by itself; no weight but the bias of the last layer is in both. That layer is one linear layer over the features of
both towers, each times its share in the mean. With ``stage="logits"`` it gives the weighted mean of the towers' logits,
and of the two biases that two layers would have only the mean counts: the towers share it. With ``stage="softmax"``
probabilities are averaged, `stream_bias` holds by how much each tower's bias differs from the shared one, and logits
are the logarithms of the averaged probabilities (several outputs are taken as classes that exclude one another).

With ``fusion="svm"`` a linear SVM reads the probabilities of both towers (`TwoStream.stream_scores`): averaged over the
slices, then divided by their L2 norm for each tower, then one after the other. It is fitted elsewhere and put in with
`TwoStream.set_svm`; until then the network gives the average. Its decisions take the place of logits.

Ambiguities and the option that settles each
--------------------------------------------
stage : the paper averages softmax scores, of 25 frames and 10 crops; later systems average logits.
motion_weight : the towers weigh the same in the paper; 1.5 for motion in temporal segment networks, 2 in ActionVLAD.
subtract_mean : the paper found it better for ten fields, and trains without it too.
dropout : the paper tries .5 and .9; .9 is the choice for the temporal tower, and for a spatial one from scratch. One
    that starts from ImageNet and trains its last layer only has .5.
heads : two data sets at once share the towers and have a softmax each (101 and 51 classes); a sample feeds its own
    (``volrec.networks.layers.heads.head_loss``). In the paper only the temporal tower is trained so.
pools : the figure of the paper calls them 2x2, its text says 3x3 with stride 2; so it is here.
svm : whether scores are normalised before or after the mean over frames is not said; here after.
tower : the paper trains and tests each tower by itself and averages scores of videos; ``"spatial"`` and ``"temporal"``
    are one of them alone, which reads every channel of the input. ``"both"`` is the system in one piece.

Adapted to volumes (``faithful=False``)
---------------------------------------
Any `backbone` for both towers, which end in the mean over the plane (``features="last"``: the fully connected layers
behind an adaptive pool); batch normalisation; any size from 16 x 16 in the plane, with a finer `stem_stride` for small
canvases; any number of slices; logits are averaged. Without channels of motion both towers read the same slices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks.backbones import STEM_STRIDE, backbone_option
from volrec.networks.backbones.contract import Backbone
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import NORMS
from volrec.networks.layers.heads import log_probabilities, split_heads
from volrec.networks.registry import register
from volrec.networks.two_stream_common import (
    APPEARANCE,
    OPTIONS,
    STREAMS,
    StreamScores,
    check_heads,
    create_towers,
    split_streams,
)

__all__ = ["TwoStream"]

SPEC = NetworkSpec(
    name="two-stream",
    paper="Simonyan, Zisserman",
    title="Two-Stream Convolutional Networks for Action Recognition in Videos",
    year=2014,
    default_clip=(23, 1, 224, 224),
    smallest=(1, 16, 16),
    num_classes=101,
    slicewise=True,
    streams=("intensity", "flow"),
    summary="One 2D network on each slice, one on its motion, the mean of their scores.",
    options=OPTIONS
    | {
        "backbone": backbone_option(
            "cnn-m-2048", free=("cnn-m-2048", "vgg-16"), use="of both towers, each with weights of its own"
        ),
        "stem_stride": STEM_STRIDE,
        "features": Option(
            str,
            "pool",
            "what a tower ends in: the mean over the plane, or its last fully connected layer",
            choices=("pool", "last"),
            paper="last",
        ),
        "tower": Option(
            str,
            "both",
            "the two towers, or one of them alone, which then reads every channel",
            choices=("both", *STREAMS),
            free=True,
        ),
        "subtract_mean": Option(bool, True, "take its mean over the plane from each channel of motion", free=True),
        "motion_weight": Option(
            float, 1.0, "weight of the temporal tower in the mean; the spatial one has 1", low=0.01, high=100, free=True
        ),
        "fusion": Option(
            str,
            "average",
            "how the towers' scores become one: their mean, or a linear SVM once it is fitted",
            choices=("average", "svm"),
            free=True,
        ),
        "norm": Option(str, "batch", "normalisation after every convolution", choices=NORMS, paper="none"),
        "dropout": Option(
            float,
            0.2,
            "dropout after each fully connected layer, or before the last layer",
            low=0,
            high=0.95,
            paper=0.9,
            free=(0.5, 0.9),
        ),
    },
    ambiguities=(
        "stage: the paper averages softmax scores; later systems average logits.",
        "motion_weight: 1 in the paper, 1.5 in temporal segment networks, 2 in ActionVLAD.",
        "dropout: .5 and .9 are both tried; .9 is the choice for motion and for training from scratch.",
        "pools: 2x2 in the figure of the paper, 3x3 with stride 2 in its text and here.",
        "svm: scores are averaged over frames, then divided by their L2 norm; the paper does not say in which order.",
        "tower: the paper trains each tower by itself; 'spatial' or 'temporal' is one of them alone.",
    ),
)


class ScoreSVM(nn.Module):
    """A linear SVM in buffers: it is fitted as a whole, and no gradient moves it.

    Parameters
    ----------
    columns : int
        Scores that it reads.
    outputs : int
        Decisions that it gives.
    """

    weight: Tensor
    bias: Tensor
    fitted: Tensor

    def __init__(self, columns: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, columns))
        self.register_buffer("bias", torch.zeros(outputs))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, scores: Tensor) -> Tensor:
        """Return decisions (B, outputs) of scores (B, columns)."""
        return F.linear(scores, self.weight.to(scores), self.bias.to(scores))


@register(SPEC)
class TwoStream(StreamScores):
    """Two towers and the mean of their scores; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels (of appearance, then of motion).
    faithful : bool
        The paper's form: fixed slice size, the paper's towers.
    width : float
        Scale of all channel counts.
    appearance_channels, stage, backbone, stem_stride, features, tower, subtract_mean, motion_weight, fusion, heads, \
norm, dropout
        The options of ``spec("two-stream")``.
    """

    tower_names: tuple[str, ...] = ("spatial", "temporal")

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        faithful: bool,
        width: float,
        appearance_channels: int | None,
        stage: str,
        backbone: str,
        stem_stride: int | None,
        features: str,
        tower: str,
        subtract_mean: bool,
        motion_weight: float,
        fusion: str,
        heads: tuple[int, ...] | None,
        norm: str,
        dropout: float,
    ) -> None:
        check_heads(heads, num_classes)
        if tower != "both" and fusion == "svm":
            raise ConfigError(
                f"an SVM reads the scores of both towers, and tower is {tower!r}.",
                remedy="Leave fusion at 'average', or tower at 'both'.",
                where="network.options.tower",
                code="network-option",
            )
        alone = tower != "both"
        # A tower that is alone reads every channel; with as many of appearance as there are, both would.
        appearance = in_channels if alone else appearance_channels or APPEARANCE
        pair = create_towers(
            (backbone, backbone),
            in_channels=in_channels,
            appearance=appearance,
            faithful=faithful,
            width=width,
            norm=norm,
            tail=features,
            dropout=dropout,
            stem_stride=stem_stride,
        )
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(1, *pair[0].smallest),
            exact=(None, *pair[0].exact) if pair[0].exact else None,
        )
        self.appearance, self.subtract_mean, self.heads = appearance, subtract_mean, heads
        self.tower_names = (tower,) if alone else STREAMS
        for name, part in zip(STREAMS, pair, strict=True):
            if name in self.tower_names:
                self.add_module(name, part)
        # Fully connected layers have dropout of their own.
        own = any(isinstance(layer, nn.Dropout) for layer in pair[0].tail.modules())
        self.add_scores(
            [part.num_features for part in self._towers()],
            weights=(1.0,) if alone else (1.0, motion_weight),
            stage=stage,
            dropout=0.0 if own else dropout,
            num_classes=num_classes,
        )
        self.svm = self._new_svm(num_classes) if fusion == "svm" else None

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh last layer with `num_classes` outputs, of one head, in place; the SVM has to be fitted again."""
        super().reset_classifier(num_classes)
        if self.svm is not None:
            self.svm = self._new_svm(num_classes).to(self.classifier.weight.device)

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, F, h, w) of slices (N, C, H, W): those of the spatial tower, then of the temporal one."""
        if len(self.tower_names) == 1:
            if self.subtract_mean and self.tower_names == ("temporal",):
                x = x - x.mean((2, 3), keepdim=True)
            return self._towers()[0].forward_maps(x)
        parts = split_streams(x, self.appearance, subtract_mean=self.subtract_mean)
        return torch.cat([tower.forward_maps(part) for tower, part in zip(self._towers(), parts, strict=True)], dim=1)

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return features (N, F) of maps: those of the spatial tower, then of the temporal one."""
        towers = self._towers()
        parts = maps.split([tower.num_maps for tower in towers], dim=1)
        return torch.cat([tower.forward_tail(part) for tower, part in zip(towers, parts, strict=True)], dim=1)

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of slice features (B, T, F); decisions of the SVM once there is one.

        With `pre_logits` the mean over slices of the features (B, F), those of each tower times its share.
        """
        fused = self.score(features.split(self.sizes, dim=2), pre_logits=pre_logits)
        if pre_logits or self.svm is None:
            return fused
        return torch.where(self.svm.fitted, self.svm(self.stream_scores(features)), fused)

    def forward_branches(self, features: Tensor) -> dict[str, Tensor]:
        """Return logits (B, num_classes) of each tower by its name, for slice features (B, T, F)."""
        return dict(zip(self.tower_names, self.branch_logits(features.split(self.sizes, dim=2)), strict=True))

    def _towers(self) -> list[Backbone]:
        return [self.get_submodule(name) for name in self.tower_names]  # type: ignore[misc]

    def stream_scores(self, features: Tensor) -> Tensor:
        """Return what the SVM reads of slice features (B, T, F).

        Returns
        -------
        Tensor
            (B, 2 K): probabilities of the spatial tower, then of the temporal one, averaged over the slices and divided
            by their L2 norm (of each head, where there are several). With one output the probabilities are those of no
            and yes, K = 2.
        """
        logits = self.part_logits(features.split(self.sizes, dim=2))
        scores = log_probabilities(logits, self.heads).exp().mean(1)
        return torch.cat([F.normalize(part, dim=-1) for part in split_heads(scores, self.heads)], dim=-1).flatten(1)

    def set_svm(self, weight: Any, bias: Any) -> None:
        """Put a fitted linear SVM in place.

        Parameters
        ----------
        weight : array or Tensor
            (num_classes, 2 K) for the K columns of each tower (`stream_scores`): ``coef_`` of scikit-learn's LinearSVC.
            Of two classes that gives one row, which is for the second of them.
        bias : array or Tensor
            (num_classes,): ``intercept_``.

        Raises
        ------
        ConfigError
            Where the network has no SVM, or the sizes are others.
        """
        if self.svm is None:
            raise ConfigError(
                f"{self.registry_name} was built without an SVM.",
                remedy="Build it with fusion='svm'.",
                where="network.options.fusion",
                code="svm",
            )
        matrix, offset = torch.as_tensor(weight), torch.as_tensor(bias).reshape(-1)
        wanted = tuple(self.svm.weight.shape)
        if self.num_classes == 2 and tuple(matrix.shape) == (1, wanted[1]) and len(offset) == 1:
            # Halves: the two logits then differ by the decision.
            matrix, offset = torch.cat([-matrix, matrix]) / 2, torch.cat([-offset, offset]) / 2
        if tuple(matrix.shape) != wanted or len(offset) != wanted[0]:
            raise ConfigError(
                f"the SVM of {self.registry_name} has weights {wanted}, got {tuple(matrix.shape)} with {len(offset)} "
                "bias value(s).",
                remedy="Fit it on stream_scores of studies of all classes, one row a class.",
                code="svm",
            )
        if not bool(matrix.isfinite().all() and offset.isfinite().all()):
            raise ConfigError(
                f"the weights of the SVM of {self.registry_name} are not all finite.",
                remedy="Fit it on finite scores.",
                code="svm",
            )
        self.svm.weight.copy_(matrix)
        self.svm.bias.copy_(offset)
        self.svm.fitted.fill_(True)

    def _new_svm(self, num_classes: int) -> ScoreSVM:
        return ScoreSVM(2 * max(2, num_classes), num_classes)
