"""TSN: snippets from all over a sequence are scored by one network, and a consensus of their scores is trained.

L. Wang, Y. Xiong, Z. Wang, Y. Qiao, D. Lin, X. Tang, L. Van Gool, "Temporal Segment Networks: Towards Good Practices
for Deep Action Recognition", ECCV 2016; "Temporal Segment Networks for Action Recognition in Videos", PAMI 2018.

==========  ================================================================  ====================
block       operation                                                         out
==========  ================================================================  ====================
input       one snippet of each of three equal segments, a frame each         3 x 3 x 224 x 224
backbone    BN-Inception, each snippet by itself                              1024 x 7 x 7 a frame
            (`volrec.networks.backbones.bn_inception` has its table)
pool        mean over the plane                                               3 x 1024
classifier  dropout .8, 1024 -> classes, each snippet by itself               3 x 101
consensus   mean of the scores over the snippets, before the softmax          101
==========  ================================================================  ====================

10,373,765 parameters with 101 classes; 2.03 GMAC a frame of three channels, 2.31 GMAC a stack of flow of ten. The last
layer starts from a Gaussian of .001.

Streams of the papers: RGB frames (3 channels), stacks of five fields of flow (10, ``x1, y1, … x5, y5``), differences
of six frames (15), warped flow (10). A network reads one of them; its number of channels is `in_channels`, and its
first convolution comes from RGB weights as their mean over the channels, once for every channel
(``init.first_layer: mean``). Scores of streams are added before the softmax: 1 RGB and 1.5 flow in the first paper.

In training snippets are drawn by ``sampling.train: segments``. In testing, 25 snippets are evenly spaced
(`volrec.transforms.clips.evenly_spaced`, ``protocol.snippets: 25``) and their scores averaged. All but the first batch
normalisation keep their statistics in the papers' training: ``optim.partial_bn`` knows both meanings of it.

The mean of the scores is the last layer's answer to the mean of the features, and is computed so; so are weighted sums,
whose weights sum to one. `TSN.aggregate` with ``pre_logits=True`` gives that mean of the features. The maximum and the
top-k mean of each class are no function of it: there it is the plain mean of the features, and the last layer's answer
to it is the score only in evaluation with ``test_consensus="average"``.

Ambiguities and the option that settles each
--------------------------------------------
consensus : the first paper has the mean; the second compares it with the maximum, learned weights, the mean of the
    largest scores of each class, and attention. Its exact forms of the last three are not verified. Learned weights are
    softmax outputs here, one a segment (`segments`) or by the features of the snippet, so that equal snippets have the
    scores of one.
test_consensus : "average", the rule of the released test code, takes the mean over the snippets whatever was trained;
    "same" takes what was trained. Weights of segments go to other numbers of snippets by their relative place.
backbone : CNN-M, GoogLeNet and VGG-16 are compared in the paper; with ``faithful=True`` they end in their own fully
    connected layers.
dropout : .8 for RGB and .7 for flow.

Adapted to volumes (``faithful=False``)
---------------------------------------
Any `backbone`, normalisation, slice size from 16 x 16 in the plane, with a finer `stem_stride` for small canvases;
any number of slices, each of which is a snippet.

Any network of the zoo can take the place of the 2D network (`network`, its options in `network_options`): a clip is
then cut into snippets of `snippet_length` slices, in order, that go through it as one batch. T3D with TSN is
``network="t3d-121", snippet_length=16``. Sampling with ``sampling.snippet_length`` draws such clips. The network within
takes `norm` and `stem_stride` from here where its own options do not say them; its dropout before the last layer is
replaced by `dropout`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.networks.backbones import STEM_STRIDE, backbone_option, create_backbone
from volrec.networks.base import SequenceNetwork, SlicewiseNetwork, pass_as_block
from volrec.networks.facts import NetworkSpec, Option
from volrec.networks.layers import CONSENSUS, NORMS, TEST_CONSENSUS, SegmentConsensus
from volrec.networks.registry import register

__all__ = ["TSN", "TSNOfClips", "tsn"]

SPEC = NetworkSpec(
    name="tsn",
    paper="Wang, Xiong, Wang, Qiao, Lin, Tang, Van Gool",
    title="Temporal Segment Networks: Towards Good Practices for Deep Action Recognition",
    year=2016,
    default_clip=(3, 3, 224, 224),
    smallest=(1, 16, 16),
    num_classes=101,
    slicewise=True,
    segments=3,
    summary="A 2D network, or any other of the zoo, scores snippets from all over the sequence; a consensus of them.",
    options={
        "backbone": backbone_option(
            "bn-inception", free=("bn-inception", "cnn-m-2048", "googlenet", "vgg-16"), use="that scores a snippet"
        ),
        "stem_stride": STEM_STRIDE,
        "norm": Option(str, "batch", "normalisation in the network that scores a snippet", choices=NORMS),
        "dropout": Option(float, 0.2, "dropout of a snippet's features", low=0, high=0.95, paper=0.8, free=(0.8, 0.7)),
        "consensus": Option(
            str,
            "average",
            "how the scores of snippets become one: mean; largest of each class; learned weights by position; mean of "
            "the largest of each class; learned weights by features",
            choices=CONSENSUS,
            free=True,
        ),
        "test_consensus": Option(
            str,
            "average",
            "in evaluation: the mean over the snippets, whatever was trained, or the same as in training",
            choices=TEST_CONSENSUS,
            free=True,
        ),
        "segments": Option(int, 3, "learned weights of consensus 'weighted'", low=1, high=1024, free=True),
        "top_k": Option(int, 3, "scores of each class that consensus 'top-k' averages", low=1, high=1024, free=True),
        "network": Option(str, None, "network of the zoo that scores a snippet, in place of the 2D backbone"),
        "network_options": Option(dict, {}, "options of that network"),
        "snippet_length": Option(
            int, None, "slices of a snippet (None: as few as that network reads; 1 with a 2D backbone)", low=1
        ),
    },
    ambiguities=(
        "consensus: the mean in the first paper, four others in the second.",
        "test_consensus: the mean at test whatever was trained, or the trained one.",
        "backbone: BN-Inception; others are compared in the paper.",
        "dropout: .8 for RGB, .7 for flow.",
    ),
)


class _Segmental(SequenceNetwork):
    """The part after the snippets: dropout, last layer, consensus."""

    classifier_std: float

    def add_head(
        self, features: int, *, faithful: bool, dropout: float, consensus: str, test: str, segments: int, top_k: int
    ) -> None:
        """Add the layers that score `features` of a snippet and put the snippets together."""
        self.classifier_std = 0.001 if faithful else 0.01
        self.num_features = features
        self.dropout = nn.Dropout(dropout)
        self.consensus = SegmentConsensus(consensus, features=features, segments=segments, top_k=top_k, test=test)
        self.classifier = nn.Linear(features, self.num_classes)
        self.init_classifier(self.classifier)

    def init_classifier(self, layer: nn.Linear) -> None:
        """Draw the weights of a last layer: a Gaussian of .001 in the paper's form."""
        nn.init.normal_(layer.weight, std=self.classifier_std)
        nn.init.zeros_(layer.bias)

    def snippet_logits(self, features: Tensor) -> Tensor:
        """Return logits (B, S, num_classes) of every snippet, for features (B, S, F)."""
        return self.classifier(self.dropout(features))

    def agree(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return the consensus (B, num_classes) of snippet features (B, S, F), or what `pre_logits` asks for."""
        if pre_logits:
            return self.consensus.pool(features, features)
        if self.consensus.is_linear:
            return self.classifier(self.consensus.pool(self.dropout(features), features))
        return self.consensus(self.snippet_logits(features), features)


class TSN(_Segmental, SlicewiseNetwork):
    """A 2D network scores every slice, a snippet each; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    faithful : bool
        The paper's form: fixed frame size, any number of snippets, the paper's initial weights.
    width : float
        Scale of all channel counts.
    backbone, stem_stride, norm, dropout, consensus, test_consensus, segments, top_k
        The options of ``spec("tsn")``.
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
        dropout: float,
        consensus: str,
        test_consensus: str,
        segments: int,
        top_k: int,
    ) -> None:
        encoder = create_backbone(
            backbone,
            in_channels=in_channels,
            faithful=faithful,
            width=width,
            norm=norm,
            tail="last" if faithful else "pool",
            dropout=dropout,
            stem_stride=stem_stride,
        )
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            smallest=(1, *encoder.smallest),
            exact=(None, *encoder.frame_size) if faithful else None,
        )
        self.backbone = encoder
        self.add_head(
            encoder.num_features,
            faithful=faithful,
            # Fully connected layers have their own dropout after them.
            dropout=0.0 if faithful and encoder.tails else dropout,
            consensus=consensus,
            test=test_consensus,
            segments=segments,
            top_k=top_k,
        )

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, F, h, w) of slices (N, C, H, W)."""
        return self.backbone.forward_maps(x)

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return features (N, F) of maps (N, F, h, w)."""
        return self.backbone.forward_tail(maps)

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of slice features (B, T, F)."""
        return self.agree(features, pre_logits=pre_logits)


class TSNOfClips(_Segmental):
    """A network of the zoo scores snippets of several slices; see the head of this file.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    width : float
        Scale of all channel counts of the network within.
    network : str
        Its registry name.
    network_options : dict
        Its options.
    snippet_length : int, optional
        Slices n of a snippet: a clip of K·n slices is K snippets in order.
    norm, stem_stride, dropout, consensus, test_consensus, segments, top_k
        The options of ``spec("tsn")``.

    Attributes
    ----------
    encoder : SequenceNetwork
        The network within, without its last layer.
    """

    cam_layer = "snippet_maps"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        width: float,
        network: str,
        network_options: dict[str, Any],
        snippet_length: int | None,
        stem_stride: int | None,
        norm: str,
        dropout: float,
        consensus: str,
        test_consensus: str,
        segments: int,
        top_k: int,
    ) -> None:
        encoder = _network_within(
            network, network_options, in_channels=in_channels, width=width, norm=norm, stem_stride=stem_stride
        )
        fewest, *plane = encoder.smallest
        length = fewest if snippet_length is None else snippet_length
        if length < fewest:
            raise ConfigError(
                f"{network} reads clips from {fewest} slices up, got snippet_length={length}.",
                remedy=f"Set snippet_length to {fewest} or more.",
                where="network.options.snippet_length",
                code="network-option",
            )
        super().__init__(
            num_classes=num_classes, in_channels=in_channels, smallest=(length, plane[0], plane[1]), exact=None
        )
        self.snippet_length = length
        self.kernels_channels_last = encoder.kernels_channels_last
        self.encoder = encoder
        # Does nothing: the maps of all snippets pass through it as one block, where hooks (Grad-CAM) find them.
        self.snippet_maps = nn.Identity()
        self.add_head(
            encoder.num_features,
            faithful=False,
            dropout=dropout,
            consensus=consensus,
            test=test_consensus,
            segments=segments,
            top_k=top_k,
        )

    def check_input(self, x: Tensor) -> None:
        """Raise `ConfigError` for an input that this network cannot read, or that is no whole number of snippets."""
        super().check_input(x)
        if x.shape[2] % self.snippet_length:
            raise ConfigError(
                f"clips of {x.shape[2]} slices are no whole number of snippets of {self.snippet_length}.",
                remedy="Set sampling.clip_length to a multiple of the option snippet_length.",
                where="sampling.clip_length",
                code="input-size",
            )

    def forward_features(self, x: Tensor) -> Tensor:
        """Return snippet features (B, K, F) of clips (B, C, K·n, H, W)."""
        batch, slices = len(x), x.shape[2]
        snippets = slices // self.snippet_length
        if isinstance(self.encoder, SlicewiseNetwork):
            maps = self.encoder.encode_maps(x.transpose(1, 2).flatten(0, 1))
            maps = pass_as_block(maps, self.snippet_maps, batch=batch, slices=slices)
            inner = self.encoder.embed_maps(maps).unflatten(0, (batch * snippets, self.snippet_length))
        else:
            inner = self.encoder.forward_features(self._cut(x))
            if inner.ndim == 5:  # maps, as many slices deep as the network leaves
                depth = inner.shape[2]
                maps = inner.transpose(1, 2).flatten(0, 1)
                maps = pass_as_block(maps, self.snippet_maps, batch=batch, slices=snippets * depth)
                inner = maps.unflatten(0, (batch * snippets, depth)).transpose(1, 2)
        return self.encoder.forward_head(inner, pre_logits=True).unflatten(0, (batch, snippets))

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of snippet features (B, K, F), or what enters the last layer."""
        return self.agree(features, pre_logits=pre_logits)

    def auxiliary_loss(self, x: Tensor) -> Tensor | None:
        """Return the loss without labels that the network within has of the snippets, or None."""
        return self.encoder.auxiliary_loss(self._cut(x))

    def _cut(self, x: Tensor) -> Tensor:
        """Return snippets (B·K, C, n, H, W) of clips (B, C, K·n, H, W)."""
        return x.unflatten(2, (-1, self.snippet_length)).transpose(1, 2).flatten(0, 1)


@register(SPEC)
def tsn(
    *,
    num_classes: int,
    in_channels: int,
    faithful: bool,
    width: float,
    backbone: str,
    stem_stride: int | None,
    norm: str,
    dropout: float,
    consensus: str,
    test_consensus: str,
    segments: int,
    top_k: int,
    network: str | None,
    network_options: dict[str, Any],
    snippet_length: int | None,
) -> SequenceNetwork:
    """Build `TSN`, or `TSNOfClips` where a `network` is named; see the head of this file.

    Raises
    ------
    ConfigError
        For options that the form chosen does not have, an unknown network, or one within itself.
    """
    shared: dict[str, Any] = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "width": width,
        "stem_stride": stem_stride,
        "norm": norm,
        "dropout": dropout,
        "consensus": consensus,
        "test_consensus": test_consensus,
        "segments": segments,
        "top_k": top_k,
    }
    if network is not None:
        if backbone != SPEC.options["backbone"].default:
            raise _no_option(
                f"the network {network} takes the place of the backbone, got backbone={backbone!r} as well.",
                "Leave it out, or give it in network_options where that network has one.",
                "backbone",
            )
        return TSNOfClips(network=network, network_options=network_options, snippet_length=snippet_length, **shared)
    if network_options:
        raise _no_option(
            f"there is no network within, got network_options={network_options!r}.",
            "Name one by the option network.",
            "network_options",
        )
    if snippet_length not in (None, 1):
        raise _no_option(
            f"a 2D backbone reads snippets of one slice, got snippet_length={snippet_length}.",
            "Leave it out, or name a network that reads several by the option network.",
            "snippet_length",
        )
    return TSN(faithful=faithful, backbone=backbone, **shared)


def _network_within(
    name: str, options: dict[str, Any], *, in_channels: int, width: float, norm: str, stem_stride: int | None
) -> SequenceNetwork:
    """Build the network that scores snippets, without its last layer."""
    from volrec.networks import registry

    if name == SPEC.name:
        raise _no_option("tsn cannot be the network within itself.", "Name another network.", "network")
    own = {} if stem_stride is None else {"stem_stride": stem_stride}
    if "norm" in registry.spec(name).options:
        own["norm"] = norm  # type: ignore[assignment]
    network = registry.create(name, num_classes=1, in_channels=in_channels, width=width, **{**own, **options})
    # What enters the last layer are the features of a snippet; one that nobody asks would have no gradient.
    network.set_submodule(network.classifier_name, nn.Identity())
    return network


def _no_option(problem: str, remedy: str, option: str) -> ConfigError:
    return ConfigError(problem, remedy=remedy, where=f"network.options.{option}", code="network-option")
