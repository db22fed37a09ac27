"""Losses on the logits of a study or clip: one class for all tasks, with soft targets for mixup and smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from volrec.networks.layers.heads import head_loss

__all__ = ["StudyLoss", "class_weights", "slice_loss", "soft_slice_targets", "soft_targets"]

Task = Literal["binary", "multiclass", "multilabel", "multihead", "regression"]


class StudyLoss(nn.Module):
    """Loss of a batch of logits against its targets.

    Binary and multilabel targets take the sigmoid cross-entropy of each output, multiclass targets the softmax
    cross-entropy, those of several heads its sum over heads (`volrec.networks.layers.heads.head_loss`), regression
    targets (standardised) the squared error. A target that is NaN (a label that is missing for this study) does not
    count.

    Parameters
    ----------
    task : {"binary", "multiclass", "multilabel", "multihead", "regression"}
        What the targets are.
    label_smoothing : float
        Share of the probability mass that is spread over all classes; no effect on regression.
    weights : Tensor, optional
        Class weights as `class_weights` gives them: ``(K,)`` for multiclass and multihead, ``(2, K)`` (negatives,
        positives) for binary and multilabel.
    heads : sequence of int
        Outputs of each head of a multihead task.
    """

    weights: Tensor | None

    def __init__(
        self, task: Task, *, label_smoothing: float = 0.0, weights: Tensor | None = None, heads: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.task = task
        self.heads = tuple(heads)
        self.label_smoothing = label_smoothing
        # Not persistent: it follows from the training labels, and the weights file holds the network alone.
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss.

        Parameters
        ----------
        logits : Tensor
            ``(B, K)`` outputs of the network.
        targets : Tensor
            ``(B, K)`` soft targets as `soft_targets` gives them, possibly mixed.
        """
        logits = logits.float()
        if self.task == "multiclass":
            return functional.cross_entropy(logits, targets, weight=self.weights, label_smoothing=self.label_smoothing)
        if self.task == "multihead":
            return head_loss(logits, targets, self.heads, weights=self.weights, label_smoothing=self.label_smoothing)
        known = torch.isfinite(targets)
        targets = torch.where(known, targets, torch.zeros_like(targets))
        if self.task == "regression":
            return _mean((logits - targets).square(), known)
        factor = known.to(logits.dtype)
        if self.weights is not None:
            # The weight belongs to the label, so it is taken before smoothing; a mixed label takes a mixed weight.
            factor = factor * (self.weights[0] + (self.weights[1] - self.weights[0]) * targets)
        smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss = functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        return _mean(loss * factor, known)


def soft_targets(targets: Tensor, task: Task, num_outputs: int, *, heads: Sequence[int] = ()) -> Tensor:
    """Return targets as ``(B, K)`` floats that may be mixed: one-hot for multiclass, unchanged otherwise.

    Multihead: one-hot within each head, zeros for a head that the study has no class of.

    Parameters
    ----------
    targets : Tensor
        ``(B, K)``, or ``(B, 1)`` class indices for multiclass, ``(B, heads)`` for multihead.
    task : str
        What they are.
    num_outputs : int
        Outputs of the network, K.
    heads : sequence of int
        Outputs of each head of a multihead task.
    """
    if task == "multihead":
        # NaN is equal to no class.
        parts = zip(targets.split(1, dim=-1), heads, strict=True)
        return torch.cat([own == torch.arange(size, device=own.device) for own, size in parts], dim=-1).float()
    if task == "multiclass":
        return functional.one_hot(targets.reshape(-1).long(), num_outputs).float()
    return targets.float()


def class_weights(targets: Tensor, task: Task, num_outputs: int, *, heads: Sequence[int] = ()) -> Tensor | None:
    """Return weights that give every class (of a head) the same total weight and the average study the weight 1.

    Parameters
    ----------
    targets : Tensor
        ``(N, K)`` training targets (``(N, 1)`` class indices for multiclass, ``(N, heads)`` for multihead).
    task : str
        What they are; regression has no classes and gives None.
    num_outputs : int
        Outputs of the network, K.
    heads : sequence of int
        Outputs of each head of a multihead task.

    Returns
    -------
    Tensor or None
        ``(K,)`` for multiclass and multihead; ``(2, K)``, negatives then positives, for binary and multilabel. A class
        without a training study gets the weight 0: it never occurs.
    """
    if task == "regression":
        return None
    if task == "multihead":
        columns = [column[torch.isfinite(column)] for column in targets.T]
        parts = [class_weights(own, "multiclass", size) for own, size in zip(columns, heads, strict=True)]
        return torch.cat([part for part in parts if part is not None])
    if task == "multiclass":
        counts = torch.bincount(targets.reshape(-1).long(), minlength=num_outputs).float()
        present = (counts > 0).sum()
        return torch.where(counts > 0, counts.sum() / (present * counts.clamp(min=1)), torch.zeros_like(counts))
    known = torch.isfinite(targets)
    positives = ((targets > 0.5) & known).sum(0).float()
    total = known.sum(0).float()
    counts = torch.stack([total - positives, positives])
    present = (counts > 0).sum(0)
    weights = total / (present * counts.clamp(min=1))
    return torch.where(counts > 0, weights, torch.zeros_like(counts))


def soft_slice_targets(targets: Tensor, task: Task, num_outputs: int) -> Tensor:
    """Return slice labels as ``(B, T, K)`` floats that may be mixed, NaN where a slice has none.

    Parameters
    ----------
    targets : Tensor
        ``(B, T)`` labels, 0 or 1 for binary, the class index for multiclass; or ``(B, T, K)``, one a label.
    task : str
        Task of the study labels, which the slices share.
    num_outputs : int
        Outputs of the network, K.
    """
    if targets.ndim == 3 and targets.shape[-1] == num_outputs and task != "multiclass":
        return targets.float()
    targets = targets.reshape(targets.shape[:2]).float()
    if task != "multiclass":
        return targets[..., None].expand(-1, -1, num_outputs)
    known = torch.isfinite(targets)
    classes = torch.where(known, targets, torch.zeros_like(targets)).long()
    hot = functional.one_hot(classes, num_outputs).float()
    return torch.where(known[..., None], hot, torch.full_like(hot, float("nan")))


def slice_loss(logits: Tensor, targets: Tensor, task: Task) -> Tensor:
    """Return the mean loss of single slices of a slicewise network; slices without a label do not count.

    Parameters
    ----------
    logits : Tensor
        ``(B, T, K)`` logits of every slice.
    targets : Tensor
        ``(B, T, K)`` as `soft_slice_targets` gives them, possibly mixed.
    task : str
        As for the study labels.
    """
    known = torch.isfinite(targets)
    filled = torch.where(known, targets, torch.zeros_like(targets))
    logits = logits.float()
    if task == "multiclass":
        known = known.all(-1)
        loss = functional.cross_entropy(logits.flatten(0, 1), filled.flatten(0, 1), reduction="none").view(known.shape)
    elif task == "regression":
        loss = (logits - filled).square()
    else:
        loss = functional.binary_cross_entropy_with_logits(logits, filled, reduction="none")
    return _mean(loss, known)


def _mean(loss: Tensor, known: Tensor) -> Tensor:
    return (loss * known).sum() / known.sum().clamp(min=1)
