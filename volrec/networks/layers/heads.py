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


def head_loss(logits: Tensor, targets: Tensor, heads: Sequence[int], *, own: Tensor) -> Tensor:
    """Return the multi-task loss: each study feeds the head of its own task only, and the heads' losses are summed.

    K. Simonyan, A. Zisserman, "Two-Stream Convolutional Networks for Action Recognition in Videos", NIPS 2014.

    Parameters
    ----------
    logits : Tensor
        (B, sum of heads), the heads one after the other.
    targets : Tensor
        (B,) ints: the class within the study's own head.
    heads : sequence of int
        Outputs of each head.
    own : Tensor
        (B,) ints: which head a study belongs to, from 0.

    Returns
    -------
    Tensor
        Sum over heads of the mean cross entropy of their studies; a head without studies in the batch adds 0.

    Raises
    ------
    ConfigError
        Where the logits do not have as many outputs as the heads, a head does not exist or a class is not its own.
    """
    if logits.shape[-1] != sum(heads):
        raise ConfigError(
            f"heads of {' + '.join(map(str, heads))} outputs need {sum(heads)} logits, got {logits.shape[-1]}.",
            remedy="Give the network num_classes equal to the sum of its heads.",
            code="heads",
        )
    if bool(((own < 0) | (own >= len(heads))).any()):
        raise ConfigError(
            f"there are heads 0 to {len(heads) - 1}, got own={own.tolist()}.",
            remedy="Give the index of the head of each study.",
            code="heads",
        )
    sizes = torch.tensor(list(heads), device=own.device)[own.long()]
    if bool(((targets < 0) | (targets >= sizes)).any()):
        raise ConfigError(
            f"the heads of these studies have {sizes.tolist()} classes, got targets={targets.tolist()}.",
            remedy="Count the classes of each head from 0.",
            code="heads",
        )
    total = logits.new_zeros(())
    for index, part in enumerate(split_heads(logits, heads)):
        mine = own == index
        # Sums over a mask instead of a selection: a head without studies gives 0 and keeps its gradient (of 0).
        loss = F.cross_entropy(part, targets.where(mine, -100), ignore_index=-100, reduction="sum")
        total = total + loss / mine.sum().clamp(min=1)
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
