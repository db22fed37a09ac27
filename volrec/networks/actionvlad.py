"""ActionVLAD: local descriptors of all slices are put into the words of a vocabulary, and what is left over is summed.

R. Girdhar, D. Ramanan, A. Gupta, J. Sivic, B. Russell, "ActionVLAD: Learning spatio-temporal aggregation for action
classification", CVPR 2017.

==========  =========================================================  ==================
block       operation                                                  out
==========  =========================================================  ==================
input       clip                                                       3 x 25 x 224 x 224
backbone    VGG-16 on every slice, up to conv5_3 before its ReLU       512 x 25 x 14 x 14
            every descriptor (512 values at a position) to length 1
vlad        shares of each descriptor in 64 words (a softmax), and     25 x 64 x 512
            the sums over the plane of share x (descriptor - word)
            sum over slices; every word to length 1, then the whole    32768
            dropout .5
classifier  32768 -> classes                                           101
==========  =========================================================  ==================

18.09 M parameters with 101 classes: 14.71 M in VGG-16, 32,832 in the shares (weights and biases), 32,768 in the words,
3.31 M in the classifier. A clip takes 25 x 15.35 GMAC in VGG-16 and 25 x 0.013 in the words. Shares start from the
distances to the words, ``softmax_k(-alpha |x - c_k|^2)`` with alpha 1000, and are trained apart from the words
(`volrec.networks.layers.vlad`). Words come from k-means of the descriptors of the training set
(`volrec.training.vocabulary`); until then they are drawn evenly from the sphere. Flow is read as 20 channels (ten
fields). The convolutions, which the paper takes from networks of frames, start as He et al. 2015 have it, and the
classifier from a Gaussian of .01: our choice.

Ambiguities and the option that settles each
--------------------------------------------
pooling : the paper compares with the mean and the maximum of descriptors. Here they are those of the same descriptors
    of length 1, brought to length 1 again, so that nothing but the pooling differs.
tap : conv4_3 is a variant of the paper (its 28 x 28 positions make the words of small parts). The variant on fc7, which
    leaves one descriptor a slice, is not offered.

Adapted to volumes (``faithful=False``)
---------------------------------------
Any size, any number of slices, any `backbone` (its last maps, or with `tap` a convolution of a plain one) with batch
normalisation; instead of it any `network` of the zoo: the slice maps of a slicewise one, or the last maps of a 3D one,
whose descriptors see their neighbours along the slice axis. Sums of slices add up, so that overlapping clips cost one
encoding a slice. `ActionVLAD.assignments` and `ActionVLAD.word_shares` say which words the slices of a study are made
of.

Alpha is 10: on small made-up volumes the log loss on other studies is least with 10 and 30 (.22 and .24), with 1 shares
hardly differ (.42), and from 100 on they are too hard for features that are still to be learned (.43, and .55 with
1000). Words of k-means are better than words drawn from the sphere (.22 against .40), while the plain average is as
often right there (.93 against .91). Means of five seeds, which differ much: ``tests/performance/bench_actionvlad.py``.

Training
--------
From scratch everything is trained at once, from words of k-means of the untrained features: a frozen backbone would
stay what chance made it, and of the same number of epochs two trainings (words found after the first, on features that
were learned with the average or with words drawn from the sphere) did worse there (.44 and .45 against
.22). So the spec has no stages. The two trainings of the paper, which begin with a backbone that is known to be good,
are `PAPERS_TRAINING`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.networks.backbones import STEM_STRIDE, backbone_option, create_backbone
from volrec.networks.backbones.contract import Backbone
from volrec.networks.base import SequenceNetwork, SlicewiseNetwork
from volrec.networks.facts import NetworkSpec, Option, TrainingStage
from volrec.networks.layers import NORMS
from volrec.networks.layers.vlad import VladPooling, normalise_words, unit_length
from volrec.networks.registry import create, register

__all__ = ["PAPERS_TRAINING", "ActionVLAD", "ClipVLAD"]

_POOLINGS = ("vlad", "average", "max")
# The layer that the paper reads.
_TAPS = {"vgg-16": "conv5_3"}

PAPERS_TRAINING = (
    TrainingStage(
        "classifier",
        freeze=("backbone.*", "vlad.*"),
        why="the classifier alone, on fixed words of features that are known to be good",
    ),
    TrainingStage(
        "fine",
        freeze=tuple(f"backbone.trunk.conv{block}_*" for block in (1, 2, 3, 4)),
        lr=0.01,
        epochs=0.8,
        why="conv5, words and classifier together, carefully",
    ),
)
"""The two trainings of the paper, for first weights that exist: 10,000 and 8,000 steps of Adam at .01 and .0001."""

SPEC = NetworkSpec(
    name="actionvlad",
    paper="Girdhar, Ramanan, Gupta, Sivic, Russell",
    title="ActionVLAD: Learning spatio-temporal aggregation for action classification",
    year=2017,
    default_clip=(3, 25, 224, 224),
    smallest=(1, 16, 16),
    num_classes=101,
    slicewise=True,
    segments=25,
    refining=PAPERS_TRAINING,
    summary="Local descriptors of all slices in the words of a vocabulary; the sums of what is left over.",
    options={
        "backbone": backbone_option("vgg-16"),
        "stem_stride": STEM_STRIDE,
        "tap": Option(
            str,
            None,
            "convolution of the backbone that gives the descriptors, before its ReLU "
            "(None: conv5_3 of vgg-16, the last maps of others)",
            free=(None, "conv5_3", "conv4_3"),
        ),
        "network": Option(
            str, None, "network of the zoo whose maps give the descriptors, in place of the backbone; 3D ones too"
        ),
        "network_options": Option(dict, {}, "options of that network"),
        "words": Option(int, 64, "words of the vocabulary, whatever the width", low=1, free=True),
        "alpha": Option(
            float,
            10.0,
            "sharpness of the shares at first: differences of squared distances times alpha",
            low=0,
            paper=1000.0,
            free=True,
        ),
        "pooling": Option(
            str, "vlad", "of the descriptors: in words, or their average or maximum", choices=_POOLINGS, free=_POOLINGS
        ),
        "norm": Option(str, "batch", "normalisation in the backbone, or network", choices=NORMS, paper="none"),
        "dropout": Option(float, 0.5, "dropout before the last layer", low=0, high=0.95),
    },
    ambiguities=(
        "pooling: average and max are those of the same descriptors, brought to length one again.",
        "tap: conv5_3, or the paper's variant conv4_3.",
    ),
)


class _DescriptorNetwork(SequenceNetwork):
    """What both classes share: descriptors of maps, their pooling, the words, the classifier.

    A subclass calls `add_head` after its backbone is in place.
    """

    backbone: nn.Module

    def add_head(
        self, features: int, *, num_classes: int, words: int, alpha: float, pooling: str, dropout: float
    ) -> None:
        """Add pooling and classifier for descriptors of so many features."""
        self.pooling = pooling
        if pooling == "vlad":
            self.vlad = VladPooling(words, features, alpha=alpha)
        self.num_features = features * words if pooling == "vlad" else features
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.num_features, num_classes)
        self.init_classifier(self.classifier)

    @property
    def num_words(self) -> int:
        """Words of the vocabulary; 0 where descriptors are averaged."""
        return len(self.vlad.centres) if self.pooling == "vlad" else 0

    def set_words(self, centres: Tensor) -> None:
        """Take words (K, D), in units of `descriptors`, and the shares that follow from their distances."""
        self._vocabulary().set_words(centres)

    def descriptors(self, x: Tensor) -> Tensor:
        """Return the local descriptors (N, D) of clips (B, C, T, H, W), each of length one: all positions of all."""
        self.check_input(x)
        return _descriptors(self.block_maps(x)).flatten(0, 1)

    def assignments(self, x: Tensor) -> Tensor:
        """Return the shares (B, T', K, h, w) of every position in the words, for clips (B, C, T, H, W).

        They sum to one over the words K. T' is T, or less where a 3D network strides along the slices.

        Raises
        ------
        ConfigError
            When there are no words (``pooling="average"`` or ``"max"``).
        """
        self.check_input(x)
        vocabulary = self._vocabulary()
        maps = self.block_maps(x)
        return vocabulary.shares(_descriptors(maps)).transpose(1, 2).unflatten(2, maps.shape[2:]).transpose(1, 2)

    def word_shares(self, x: Tensor) -> Tensor:
        """Return the mean over the plane (B, T', K) of `assignments`: which words each slice is made of."""
        return self.assignments(x).mean((3, 4))

    def block_maps(self, x: Tensor) -> Tensor:
        """Return the maps (B, F, T', h, w) that the descriptors are read from, for clips (B, C, T, H, W)."""
        return self.forward_features(x)

    def pool(self, maps: Tensor) -> Tensor:
        """Return residual sums (N, K, D) of maps (N, D, ...), or the average or maximum (N, D) of descriptors."""
        found = _descriptors(maps)
        if self.pooling == "vlad":
            return self.vlad(found)
        return found.mean(1) if self.pooling == "average" else found.amax(1)

    def classify(self, pooled: Tensor, *, pre_logits: bool) -> Tensor:
        """Return logits (B, num_classes) of what `pool` gives, or with `pre_logits` what enters the last layer."""
        vector = normalise_words(pooled) if self.pooling == "vlad" else unit_length(pooled, 1)
        return vector if pre_logits else self.classifier(self.dropout(vector))

    def _vocabulary(self) -> VladPooling:
        if self.pooling == "vlad":
            return self.vlad
        raise ConfigError(
            f"{self.registry_name} has no words with pooling={self.pooling!r}.",
            remedy="Build it with pooling='vlad'.",
            where="network.options.pooling",
            code="words",
        )


class ActionVLAD(_DescriptorNetwork, SlicewiseNetwork):
    """VLAD of the maps of single slices; see the head of this file.

    Parameters
    ----------
    backbone : Backbone or SlicewiseNetwork
        2D network, or slicewise network of the zoo without what follows its maps.
    features : int
        Channels of these maps.
    num_classes, in_channels, smallest, exact
        As for `SequenceNetwork`.
    **head
        ``words, alpha, pooling, dropout``: the options of ``spec("actionvlad")``.
    """

    backbone: Backbone | SlicewiseNetwork

    def __init__(
        self,
        backbone: Backbone | SlicewiseNetwork,
        *,
        features: int,
        num_classes: int,
        in_channels: int,
        smallest: tuple[int, int, int],
        exact: tuple[int | None, int | None, int | None] | None,
        **head: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, smallest=smallest, exact=exact)
        self.backbone = backbone
        self.add_head(features, num_classes=num_classes, **head)

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, D, h, w) of slices (N, C, H, W)."""
        backbone = self.backbone
        return backbone.encode_maps(x) if isinstance(backbone, SlicewiseNetwork) else backbone.forward_maps(x)

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return residual sums (N, K, D) of every slice, or the average or maximum (N, D) of its descriptors."""
        return self.pool(maps)

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of slice features (B, T, ...)."""
        if self.pooling == "vlad":
            pooled = features.sum(1)
        else:
            pooled = features.mean(1) if self.pooling == "average" else features.amax(1)
        return self.classify(pooled, pre_logits=pre_logits)

    def block_maps(self, x: Tensor) -> Tensor:
        """Return the maps (B, D, T, h, w) of clips (B, C, T, H, W)."""
        batch, slices = x.shape[0], x.shape[2]
        return self.encode_maps(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, slices)).transpose(1, 2)


class ClipVLAD(_DescriptorNetwork):
    """VLAD of the last maps of a 3D network; see the head of this file.

    Parameters
    ----------
    backbone : SequenceNetwork
        The 3D network, without its head.
    features : int
        Channels of its maps.
    num_classes, in_channels, smallest
        As for `SequenceNetwork`.
    **head
        As for `ActionVLAD`.
    """

    # The network within was laid out as it likes best.
    kernels_channels_last = False
    backbone: SequenceNetwork

    def __init__(
        self,
        backbone: SequenceNetwork,
        *,
        features: int,
        num_classes: int,
        in_channels: int,
        smallest: tuple[int, int, int],
        **head: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, smallest=smallest)
        self.backbone = backbone
        self.cam_layer = f"backbone.{backbone.cam_layer}"
        self.add_head(features, num_classes=num_classes, **head)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last maps (B, D, T', h, w) of the 3D network."""
        return self.backbone.forward_features(x)

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of maps, or with `pre_logits` the VLAD vector (B, num_features)."""
        return self.classify(self.pool(features), pre_logits=pre_logits)


@register(SPEC)
def _build(
    *,
    num_classes: int,
    in_channels: int,
    faithful: bool,
    width: float,
    backbone: str,
    stem_stride: int | None,
    tap: str | None,
    network: str | None,
    network_options: dict[str, Any],
    words: int,
    alpha: float,
    pooling: str,
    norm: str,
    dropout: float,
) -> SequenceNetwork:
    """Build `ActionVLAD` on a backbone or a slicewise network, or `ClipVLAD` on a 3D network."""
    common: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels}
    common |= {"words": words, "alpha": alpha, "pooling": pooling, "dropout": dropout}
    if network is None:
        if network_options:
            raise _unused("network_options", network_options, "name a network, or give the options of the backbone")
        encoder = create_backbone(
            backbone, in_channels=in_channels, faithful=faithful, width=width, norm=norm, stem_stride=stem_stride
        )
        layer = tap or _TAPS.get(backbone)
        if layer is not None:
            encoder.end_at(layer)
        return ActionVLAD(
            encoder,
            features=encoder.num_maps,
            smallest=(1, *encoder.smallest),
            exact=(None, *encoder.frame_size) if faithful else None,
            **common,
        )
    for name, value in (("tap", tap), ("stem_stride", stem_stride)):
        if value is not None:
            raise _unused(name, value, f"give network_options what {network} has of the kind")
    if network == SPEC.name:
        raise ConfigError(
            f"{SPEC.name} cannot stand within itself.",
            remedy="Choose another network, or leave it out.",
            where="network.options.network",
            code="network-option",
        )
    inner = create(network, num_classes=1, in_channels=in_channels, width=width, **{"norm": norm, **network_options})
    features = _keep_what_maps_need(inner)
    if isinstance(inner, SlicewiseNetwork):
        return ActionVLAD(inner, features=features, smallest=inner.smallest, exact=None, **common)
    return ClipVLAD(inner, features=features, smallest=inner.smallest, **common)


def _keep_what_maps_need(network: SequenceNetwork) -> int:
    """Take out of a network the modules that its maps do not depend on, and return the channels of the maps.

    Raises
    ------
    ConfigError
        When it gives no maps.
    """
    labels, parameters = zip(*network.named_parameters(), strict=True)
    # Found by differentiating: who is called by whom would not tell of weights that are used without a call. Of two
    # clips, because group normalisation takes no single value.
    x = parameters[0].new_zeros(2, network.in_channels, *network.smallest)
    training = network.training
    network.eval()
    with torch.enable_grad():
        if isinstance(network, SlicewiseNetwork):
            maps, axes = network.encode_maps(x[:, :, 0]), 4
        else:
            maps, axes = network.forward_features(x), 5
        if not isinstance(maps, Tensor) or maps.ndim != axes:
            raise ConfigError(
                f"{network.registry_name} gives no maps that descriptors could be read from.",
                remedy="Choose a 3D or slicewise network, such as i3d or slice-mean.",
                where="network.options.network",
                code="network-option",
            )
        gradients = torch.autograd.grad(maps.sum(), parameters, allow_unused=True)
    network.train(training)
    used = {label for label, gradient in zip(labels, gradients, strict=True) if gradient is not None}
    _take_out_unused(network, used, "")
    return int(maps.shape[1])


def _take_out_unused(module: nn.Module, used: set[str], prefix: str) -> None:
    for name, child in list(module.named_children()):
        own = {f"{prefix}{name}.{label}" for label, _ in child.named_parameters()}
        if own and not own & used:
            module.set_submodule(name, nn.Identity())
        elif own - used:
            _take_out_unused(child, used, f"{prefix}{name}.")


def _descriptors(maps: Tensor) -> Tensor:
    """Return descriptors (N, P, D) of length one of maps (N, D, ...), in float32 at least."""
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return unit_length(wide.flatten(2).transpose(1, 2), 2)


def _unused(name: str, value: Any, remedy: str) -> ConfigError:
    return ConfigError(
        f"{name}={value!r} has nothing to act on here.",
        remedy=f"Leave it out, or {remedy}.",
        where=f"network.options.{name}",
        code="network-option",
    )
