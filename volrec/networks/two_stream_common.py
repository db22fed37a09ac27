"""What the networks of two towers share: their channels, their towers, and one last layer for both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks.backbones import create_backbone
from volrec.networks.backbones.contract import Backbone
from volrec.networks.base import SlicewiseNetwork
from volrec.networks.facts import Option
from volrec.networks.layers.heads import StreamBias, as_logits, log_probabilities

__all__ = [
    "APPEARANCE",
    "OPTIONS",
    "STAGES",
    "STREAMS",
    "StreamScores",
    "check_heads",
    "create_towers",
    "split_streams",
]

STAGES = ("logits", "softmax")
STREAMS = ("spatial", "temporal")
APPEARANCE = 1

OPTIONS = {
    "appearance_channels": Option(
        int,
        None,
        "channels of a slice, from the first, that the spatial tower reads; motion are all others (None: 1). Where "
        "there are no others both towers read all",
        low=1,
        paper=3,
        free=True,
    ),
    "stage": Option(
        str,
        "logits",
        "where scores of slices and streams are averaged: logits, or probabilities (softmax; sigmoid of one output)",
        choices=STAGES,
        paper="softmax",
        free=STAGES,
    ),
    "heads": Option(
        tuple,
        None,
        "outputs of each of several tasks that share the network; their sum is num_classes. Training sets it from the "
        "targets of a multihead task",
        low=2,
    ),
}
"""Options of every network of two towers."""


def split_streams(x: Tensor, appearance: int, *, subtract_mean: bool) -> tuple[Tensor, Tensor]:
    """Return what the spatial and the temporal tower read of slices (N, C, H, W).

    Parameters
    ----------
    x : Tensor
        Slices; channels of motion (components x, y of displacement fields) after those of appearance.
    appearance : int
        How many are of appearance. Where there are no others, both towers read all channels as they are.
    subtract_mean : bool
        Take the mean over the plane from every channel of motion: what is left is motion against the camera, or
        against the shift of a whole slice.
    """
    if x.shape[1] <= appearance:
        return x, x
    motion = x[:, appearance:]
    if subtract_mean:
        motion = motion - motion.mean((2, 3), keepdim=True)
    return x[:, :appearance], motion


def check_heads(heads: Sequence[int] | None, num_classes: int) -> None:
    """Raise `ConfigError` where the outputs of the heads do not make `num_classes`."""
    if heads and sum(heads) != num_classes:
        raise ConfigError(
            f"heads of {' + '.join(map(str, heads))} outputs make {sum(heads)}, got num_classes={num_classes}.",
            remedy=f"Set num_classes={sum(heads)}, or leave heads out.",
            where="network.options.heads",
            code="network-option",
        )


def create_towers(
    names: tuple[str, str],
    *,
    in_channels: int,
    appearance: int,
    faithful: bool,
    width: float,
    norm: str,
    tail: str,
    dropout: float,
    stem_stride: int | None,
) -> tuple[Backbone, Backbone]:
    """Return the spatial and the temporal tower; arguments as for `volrec.networks.backbones.create_backbone`.

    The temporal tower of the paper is CNN-M-2048 without its second response normalisation.
    """
    motion = in_channels - appearance if in_channels > appearance else in_channels
    channels = (appearance if in_channels > appearance else in_channels, motion)
    spatial, temporal = (
        create_backbone(
            name,
            in_channels=count,
            faithful=faithful,
            width=width,
            norm=norm,
            tail=tail,
            dropout=dropout,
            stem_stride=stem_stride,
        )
        for name, count in zip(names, channels, strict=True)
    )
    if names[1] == "cnn-m-2048" and hasattr(temporal.trunk, "norm2"):
        del temporal.trunk.norm2  # It has no weights.
    return spatial, temporal


class StreamScores(SlicewiseNetwork):
    """A network whose last layer reads the features of one or two parts, each of which also scores alone.

    One linear layer reads the features of both parts, each times its share, so that what it gives is the weighted mean
    of the parts' logits. A part's own logits are what its columns of the layer give of its features, plus the one bias,
    which both have in common. Where probabilities are averaged, two biases make a difference: `StreamBias` holds it.
    """

    heads: tuple[int, ...] | None = None

    def add_scores(
        self, sizes: Sequence[int], *, weights: Sequence[float], stage: str, dropout: float, num_classes: int
    ) -> None:
        """Add dropout and the last layer.

        Parameters
        ----------
        sizes, weights : sequence
            Features and weight of each part (one or two).
        stage : {"logits", "softmax"}
            Where scores are averaged.
        dropout : float
            Before the last layer.
        num_classes : int
            Outputs.
        """
        self.sizes, self.stage = tuple(sizes), stage
        self.shares = tuple(weight / sum(weights) for weight in weights)
        self.num_features = sum(sizes)
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.num_features, num_classes)
        self.init_classifier(self.classifier)
        self.stream_bias = self._new_bias(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh last layer with `num_classes` outputs, of one head, in place."""
        super().reset_classifier(num_classes)
        self.stream_bias = self._new_bias(num_classes).to(self.classifier.weight)
        self.heads = None
        options = self.architecture.get("options", {}) if hasattr(self, "architecture") else {}
        if options.get("heads") is not None:
            self.architecture = {**self.architecture, "options": {**options, "heads": None}}

    def score(self, parts: Sequence[Tensor], *, pre_logits: bool = False) -> Tensor:
        """Return fused logits (B, num_classes) of the features (B, n, F) of each part at n places of the slice axis.

        With `pre_logits` the features that enter the last layer. Where probabilities are averaged the logits are the
        logarithms of their mean (of one output: of the odds), and not what the last layer gives of these features.
        """
        weighted = [part.mean(1) * share for part, share in zip(parts, self.shares, strict=True)]
        joined = torch.cat(weighted, dim=-1)
        if pre_logits:
            return joined
        if self.stage == "logits":
            return self.classifier(self.drop(joined))
        return self._mean_probabilities(self.part_logits(parts), self.shares)

    def part_logits(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the logits (B, n, parts, num_classes) of each part at every place, for its features (B, n, F)."""
        rows, before = [], 0
        for part, size in zip(parts, self.sizes, strict=True):
            # Zeros in the place of the other part, so that the layer is called as it is and its hooks see it.
            rows.append(F.pad(part, (before, self.num_features - before - size)))
            before += size
        return self.stream_bias(self.classifier(self.drop(torch.stack(rows, dim=2))))

    def branch_logits(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits (B, num_classes) of each part alone, over all places, for its features (B, n, F)."""
        if self.stage == "logits":
            return list(self.part_logits([part.mean(1, keepdim=True) for part in parts])[:, 0].unbind(1))
        logits = self.part_logits(parts)
        return [self._mean_probabilities(logits[:, :, [index]], (1.0,)) for index in range(len(parts))]

    def _mean_probabilities(self, logits: Tensor, shares: Sequence[float]) -> Tensor:
        """Return logits (B, K) that stand for the weighted mean of the probabilities of logits (B, n, parts, K)."""
        scores = log_probabilities(logits, self.heads)
        # The logarithm of a sum of exponentials: probabilities near 0 keep their digits.
        weighted = [part + math.log(share) for part, share in zip(scores.unbind(2), shares, strict=True)]
        mean = torch.cat(weighted, dim=1).logsumexp(1) - math.log(logits.shape[1])
        return as_logits(mean, logits.shape[-1])

    def _new_bias(self, num_classes: int) -> nn.Module:
        two = self.stage == "softmax" and len(self.sizes) == 2
        return StreamBias(num_classes) if two else nn.Identity()
