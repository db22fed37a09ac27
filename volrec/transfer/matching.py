"""Do these slices and this clip belong together? The head that answers, and its loss over pairs of several kinds.

A. Diba et al., "Temporal 3D ConvNets: New Architecture and Transfer Learning for Video Classification", arXiv
1711.08200, 2017: the features of a frozen 2D network, averaged over the frames of a clip, and those of a 3D network
that reads the clip go side by side through layers of 512 and 128 units to one answer, match or no match. Only the 3D
network and these layers learn.

The paper draws pairs one by one. Here every clip of a batch is asked against the slices of every other
patient in it: the same question many times, for the cost of the head alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from volrec.errors import ConfigError
from volrec.networks import SequenceNetwork

__all__ = ["MatchingHead", "MatchingNetwork", "PairLogits", "matching_loss", "shuffled_order"]


class MatchingHead(nn.Module):
    """Answer whether features of slices and of a clip belong together.

    Parameters
    ----------
    teacher_features, student_features : int
        Lengths of the two features.
    projection : int, optional
        Length of the student's feature after a linear layer; None: the teacher's (the paper's 1024 are both); 0: no
        such layer.
    hidden : sequence of int
        Layers before the answer; the paper has 512 and 128.
    head : {"concat", "product"}
        The two features side by side, as in the paper, or with their product as well: a layer of sums finds it hard to
        say whether two things agree.
    dropout : float
        Of what the layers read.

    Raises
    ------
    ConfigError
        For a product of features of different length.
    """

    def __init__(
        self,
        *,
        teacher_features: int,
        student_features: int,
        projection: int | None,
        hidden: Sequence[int],
        head: str,
        dropout: float,
    ) -> None:
        super().__init__()
        length = teacher_features if projection is None else projection or student_features
        self.projection = nn.Linear(student_features, length) if projection != 0 else nn.Identity()
        if head == "product" and length != teacher_features:
            raise ConfigError(
                f"matching.head 'product' multiplies the teacher's {teacher_features} features with the student's "
                f"{length}.",
                remedy="Leave matching.projection out, or set the head to concat.",
                where="matching.projection",
                code="matching",
            )
        self.product = head == "product"
        # Features of a pooled ReLU network share a large mean: without it the layers would see little else.
        self.teacher_norm = nn.BatchNorm1d(teacher_features, affine=False)
        self.student_norm = nn.BatchNorm1d(length, affine=False)
        size = teacher_features + length + (length if self.product else 0)
        layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
        for width in hidden:
            layers += [nn.Linear(size, width), nn.ReLU()]
            size = width
        self.layers = nn.Sequential(*layers, nn.Linear(size, 1))

    def forward(self, slices: Tensor, clips: Tensor) -> Tensor:
        """Return logits (...,) of pairs: `slices` (..., F) and `clips` (..., D), both from the norms."""
        parts = [slices, clips, slices * clips] if self.product else [slices, clips]
        return self.layers(torch.cat(parts, dim=-1))[..., 0]


class MatchingNetwork(nn.Module):
    """The student with the head: all that learns.

    Parameters
    ----------
    student : SequenceNetwork
        Any network of the zoo; its classifier takes no part.
    head : MatchingHead
        See there.
    """

    def __init__(self, student: SequenceNetwork, head: MatchingHead) -> None:
        super().__init__()
        self.student = student
        self.head = head
        student.get_classifier().requires_grad_(False)

    def clip_features(self, clips: Tensor) -> Tensor:
        """Return features (B, D) of clips (B, C, T', H, W), before the norm."""
        self.student.check_input(clips)
        features = self.student.forward_head(self.student.forward_features(clips), pre_logits=True)
        return self.head.projection(features)

    def forward(self, clips: Tensor) -> Tensor:
        """Return `clip_features`."""
        return self.clip_features(clips)


@dataclass(frozen=True)
class PairLogits:
    """Answers to the pairs of one batch.

    Attributes
    ----------
    match : Tensor
        ``(B,)``: slices and clip of one place.
    patient : Tensor
        ``(P,)``: slices of another patient.
    place : Tensor
        ``(Q,)``: slices of the same patient elsewhere along the axis.
    order : Tensor
        ``(R,)``: slices of the same place, and the clip with its slices shuffled.
    """

    match: Tensor
    patient: Tensor
    place: Tensor
    order: Tensor


def matching_loss(pairs: PairLogits, negatives: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy of the pairs: half its weight on those that match, half on the mix of those that do not.

    Parameters
    ----------
    pairs : PairLogits
        Answers; a kind may be empty (short stacks have no elsewhere), and then gives its weight to the others.
    negatives : mapping
        Kind -> weight.

    Returns
    -------
    loss : Tensor
        Scalar.
    parts : dict
        Mean cross-entropy of each kind that is there, and of ``"match"``.
    """
    parts = {"match": functional.softplus(-pairs.match).mean()}
    total, weight = pairs.match.new_zeros(()), 0.0
    for kind, share in negatives.items():
        logits = getattr(pairs, kind)
        if not share or not len(logits):
            continue
        parts[kind] = functional.softplus(logits).mean()
        total, weight = total + share * parts[kind], weight + share
    loss = parts["match"] if not weight else (parts["match"] + total / weight) / 2
    return loss, parts


def shuffled_order(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Draw orders ``(count, length)`` of the slices of a clip, none of which is the true one or its mirror image."""
    if length < 3:
        raise ConfigError(
            f"clips of {length} slices have no order that could be shuffled.",
            remedy="Give longer clips, or take 'order' out of matching.negatives.",
            where="sampling.clip_length",
            code="matching",
        )
    straight = torch.arange(length)
    orders: list[Tensor] = []
    while len(orders) < count:
        order = torch.randperm(length, generator=generator)
        if not torch.equal(order, straight) and not torch.equal(order, straight.flip(0)):
            orders.append(order)
    return torch.stack(orders) if orders else torch.empty((0, length), dtype=torch.int64)
