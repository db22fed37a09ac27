"""Segmental consensus: how the scores of the snippets of a sequence become one, before any softmax (TSN)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError

__all__ = [
    "CONSENSUS",
    "TEST_CONSENSUS",
    "SegmentConsensus",
    "attention_weights",
    "average_consensus",
    "max_consensus",
    "position_weights",
    "top_k_consensus",
    "weighted_consensus",
]

CONSENSUS = ("average", "max", "weighted", "top-k", "attention")
TEST_CONSENSUS = ("average", "same")


def average_consensus(scores: Tensor) -> Tensor:
    """Return the mean over snippets (B, K) of scores (B, S, K)."""
    return scores.mean(1)


def max_consensus(scores: Tensor) -> Tensor:
    """Return the largest score of each class over the snippets, (B, K) of scores (B, S, K)."""
    return scores.amax(1)


def top_k_consensus(scores: Tensor, k: int) -> Tensor:
    """Return the mean of the `k` largest scores of each class, (B, K) of scores (B, S, K).

    The snippets may be others for every class. Of fewer than `k` snippets all are taken.
    """
    return scores.topk(min(k, scores.shape[1]), dim=1).values.mean(1)


def weighted_consensus(scores: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum over snippets, (B, K) of scores (B, S, K) and weights (S,) or (B, S)."""
    return (weights.to(scores.dtype).expand(scores.shape[:2])[:, None] @ scores).squeeze(1)


def position_weights(energies: Tensor, snippets: int) -> Tensor:
    """Return the weights (snippets,) of snippets in order, which sum to one, of learned energies (segments,).

    The weights of the segments are the softmax of the energies. Another number of snippets takes them at the same
    place of the sequence, linearly between the middles of the segments and constant beyond the outer ones, divided by
    their sum.
    """
    weights = energies.softmax(0)
    if snippets == len(energies):
        return weights
    weights = F.interpolate(weights[None, None], size=snippets, mode="linear", align_corners=False)[0, 0]
    return weights / weights.sum()


def attention_weights(features: Tensor, direction: Tensor) -> Tensor:
    """Return weights (B, S) of snippets by their features (B, S, F): the softmax of their products with (F,)."""
    return (features @ direction.to(features.dtype)).softmax(1)


class SegmentConsensus(nn.Module):
    """One of the consensus functions of temporal segment networks (Wang et al., PAMI 2018), with what it learns.

    Parameters
    ----------
    kind : {"average", "max", "weighted", "top-k", "attention"}
        Mean; largest score of each class; learned weights by position (`position_weights`); mean of the `top_k` largest
        scores of each class; learned weights by features (`attention_weights`).
    features : int
        Length F of the features of a snippet.
    segments : int
        Learned weights of ``"weighted"``.
    top_k : int
        Scores of ``"top-k"``.
    test : {"average", "same"}
        In evaluation mode: the mean over the snippets, whatever was trained, or the trained function.

    Notes
    -----
    Learned weights begin as those of the mean.
    """

    def __init__(self, kind: str, *, features: int, segments: int = 3, top_k: int = 3, test: str = "average") -> None:
        super().__init__()
        for name, value, known in (("consensus", kind, CONSENSUS), ("test_consensus", test, TEST_CONSENSUS)):
            if value not in known:
                raise ConfigError(
                    f"there is no {name} {value!r}.", remedy=f"Choose one of {', '.join(known)}.", code="consensus"
                )
        self.kind, self.test, self.top_k = kind, test, top_k
        if kind == "weighted":
            self.energies = nn.Parameter(torch.zeros(segments))
        elif kind == "attention":
            self.direction = nn.Parameter(torch.zeros(features))

    @property
    def active(self) -> str:
        """The function in use: in evaluation mode that of the test."""
        return self.kind if self.training or self.test == "same" else "average"

    @property
    def is_linear(self) -> bool:
        """Whether the consensus of the scores of a linear layer is the layer's answer to the consensus of features."""
        return self.active not in ("max", "top-k")

    def pool(self, values: Tensor, features: Tensor) -> Tensor:
        """Return the weighted mean (B, F) of values (B, S, F): the features, or what dropout left of them.

        The weights are those of the function in use; equal ones where it has none (``"max"``, ``"top-k"``).
        """
        if self.active == "weighted":
            return weighted_consensus(values, position_weights(self.energies, values.shape[1]))
        if self.active == "attention":
            return weighted_consensus(values, attention_weights(features, self.direction))
        return average_consensus(values)

    def forward(self, scores: Tensor, features: Tensor) -> Tensor:
        """Return the consensus (B, K) of scores (B, S, K) of snippets with features (B, S, F)."""
        if self.active == "max":
            return max_consensus(scores)
        if self.active == "top-k":
            return top_k_consensus(scores, self.top_k)
        return self.pool(scores, features)

    def extra_repr(self) -> str:
        """Show the functions when the module is printed."""
        top_k = f", top_k={self.top_k}" if self.kind == "top-k" else ""
        return f"{self.kind}{top_k}, test={self.test}"
