"""Scores and losses of last layers that hold several tasks side by side, and what two streams' biases differ by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError

__all__ = ["StreamBias", "as_logits", "head_loss", "log_probabilities", "split_heads"]


def split_heads(scores: Tensor, heads: Sequence[int] | None) -> tuple[Tensor, ...]:
    """Return the part of scores (..., sum of heads) that belongs to each head; all of it where there are no heads."""
    return scores.split(list(heads), dim=-1) if heads else (scores,)


def log_probabilities(logits: Tensor, heads: Sequence[int] | None = None) -> Tensor:
    """Return the logarithms of the probabilities that logits stand for.

    Parameters
    ----------
    logits : Tensor
        (..., K).
    heads : sequence of int, optional
        Outputs of each task; the softmax is taken within each.

    Returns
    -------
    Tensor
        (..., K) of the softmax; (..., 2) of no and yes, by the sigmoid, where there is one output.
    """
    if logits.shape[-1] == 1:
        return F.logsigmoid(torch.cat([-logits, logits], dim=-1))
    parts = split_heads(logits, heads)
    return torch.cat([part.log_softmax(-1) for part in parts], dim=-1) if heads else parts[0].log_softmax(-1)


def as_logits(log_scores: Tensor, outputs: int) -> Tensor:
    """Return logits (..., outputs) that stand for the probabilities whose logarithms `log_probabilities` gives."""
    return log_scores[..., 1:] - log_scores[..., :1] if outputs == 1 else log_scores


def head_loss(
    logits: Tensor,
    targets: Tensor,
    heads: Sequence[int],
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the multi-task loss: a study feeds only the heads that it has a class of; the heads' losses are summed.

    K. Simonyan, A. Zisserman, "Two-Stream Convolutional Networks for Action Recognition in Videos", NIPS 2014.

    Parameters
    ----------
    logits : Tensor
        (B, sum of heads), the heads one after the other.
    targets : Tensor
        (B, sum of heads): probabilities of the classes of each head, zeros where a study does not feed it. Where
        mixup blended a study with one that does not, they sum to its share, which is then the weight of its loss.
    heads : sequence of int
        Outputs of each head.
    weights : Tensor, optional
        (sum of heads,) of the classes.
    label_smoothing : float
        Share of the probability mass that is spread over all classes of the head.

    Returns
    -------
    Tensor
        Sum over heads of the mean cross entropy of their studies; a head without studies in the batch adds 0.

    Raises
    ------
    ConfigError
        Where the logits or targets do not have as many columns as the heads have outputs.
    """
    if not logits.shape[-1] == targets.shape[-1] == sum(heads):
        raise ConfigError(
            f"heads of {' + '.join(map(str, heads))} outputs need {sum(heads)} logits and targets, got "
            f"{logits.shape[-1]} and {targets.shape[-1]}.",
            remedy="Give the network num_classes equal to the sum of its heads.",
            code="heads",
        )
    total = logits.new_zeros(())
    shares = [None] * len(heads) if weights is None else split_heads(weights, heads)
    for part, own, share in zip(split_heads(logits, heads), split_heads(targets, heads), shares, strict=True):
        # Sums over shares instead of a selection: a head without studies gives 0 and keeps its gradient (of 0).
        fed = own.sum(-1, keepdim=True)
        smooth = own * (1 - label_smoothing) + fed * label_smoothing / part.shape[-1]
        loss = F.cross_entropy(part, smooth, weight=share, reduction="sum")
        total = total + loss / fed.sum().clamp(min=1)
    return total


class StreamBias(nn.Module):
    """Half of what the biases of two streams differ by, beside the one bias of a last layer that both share.

    Two networks that are trained by themselves have a bias each. Where their probabilities are averaged both count;
    where their logits are, only the mean does, which is the bias of the last layer.

    Parameters
    ----------
    outputs : int
        Outputs of the last layer.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.gap = nn.Parameter(torch.zeros(outputs))

    def forward(self, logits: Tensor) -> Tensor:
        """Return the logits (..., 2, K) of two streams with the bias of each."""
        return logits + torch.stack([self.gap, -self.gap])
