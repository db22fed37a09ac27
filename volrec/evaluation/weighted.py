"""Metrics under weights, for many weightings at once: the arithmetic behind values and bootstrap intervals.

A resample with replacement is a vector of counts, so every function takes weights ``(R, N)``, one row a resample, and
returns ``(R,)`` values; NaN where the metric is not defined (one class only, constant targets). Values equal those of
scikit-learn on the rows repeated as often as they were drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["binary", "multiclass", "regression"]

Array = NDArray[np.float64]
_TINY = 1e-7


def binary(targets: Array, scores: Array, weights: Array) -> dict[str, Array]:
    """Return the metrics of one yes/no question.

    Parameters
    ----------
    targets : array of shape (N,)
        0 or 1.
    scores : array of shape (N,)
        Probability of 1; "yes" from 0.5 on.
    weights : array of shape (R, N)
        Weight of each row in each resample.
    """
    truth = targets > 0.5
    said = scores >= 0.5
    hits = _sum(weights, truth & said)
    misses = _sum(weights, truth & ~said)
    alarms = _sum(weights, ~truth & said)
    rejections = _sum(weights, ~truth & ~said)
    total = hits + misses + alarms + rejections
    sensitivity = _ratio(hits, hits + misses)
    specificity = _ratio(rejections, rejections + alarms)
    chance = np.clip(scores, _TINY, 1 - _TINY)
    loss = -np.where(truth, np.log(chance), np.log1p(-chance))
    ranking = _Ranking(scores)
    return {
        "auc": ranking.auc(truth, weights),
        "average_precision": ranking.average_precision(truth, weights),
        "accuracy": _ratio(hits + rejections, total),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        # Without a positive in targets or predictions scikit-learn gives 0 and warns; so does this, silently.
        "f1": np.nan_to_num(_ratio(2 * hits, 2 * hits + misses + alarms)),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "brier": _ratio(weights @ (scores - truth) ** 2, total),
        "loss": _ratio(weights @ loss, total),
    }


def multiclass(targets: Array, scores: Array, weights: Array) -> dict[str, Array]:
    """Return the metrics of one choice among K classes.

    Parameters
    ----------
    targets : array of shape (N,)
        Class index.
    scores : array of shape (N, K)
        Probabilities.
    weights : array of shape (R, N)
        Weight of each row in each resample.

    Notes
    -----
    AUC and average precision: each class against the rest, mean over classes, undefined where one is absent.
    Balanced accuracy: mean recall of the classes present. F1: mean over classes present in targets or predictions.
    """
    truth = targets.astype(np.int64)
    said = scores.argmax(1)
    total = weights.sum(1)
    aucs, precisions, recalls, f1s = [], [], [], []
    for index in range(scores.shape[1]):
        own, called = truth == index, said == index
        ranking = _Ranking(scores[:, index])
        aucs.append(ranking.auc(own, weights))
        precisions.append(ranking.average_precision(own, weights))
        hits = _sum(weights, own & called)
        recalls.append(_ratio(hits, _sum(weights, own)))
        f1s.append(_ratio(2 * hits, _sum(weights, own) + _sum(weights, called)))
    chance = np.clip(scores[np.arange(len(truth)), truth], _TINY, 1.0)
    return {
        "auc": np.mean(aucs, axis=0),
        "average_precision": np.mean(precisions, axis=0),
        "accuracy": _ratio(_sum(weights, truth == said), total),
        "balanced_accuracy": _mean_defined(np.stack(recalls)),
        "f1": _mean_defined(np.stack(f1s)),
        "loss": _ratio(weights @ -np.log(chance), total),
    }


def regression(targets: Array, scores: Array, weights: Array) -> dict[str, Array]:
    """Return the metrics of one predicted quantity.

    Parameters
    ----------
    targets, scores : array of shape (N,)
        In the target's own unit.
    weights : array of shape (R, N)
        Weight of each row in each resample.
    """
    total = weights.sum(1)
    error = scores - targets
    squared = _ratio(weights @ error**2, total)
    # Centred first: the variance as a difference of moments would lose digits on large values.
    centred = targets - targets.mean()
    mean = _ratio(weights @ centred, total)
    variance = _ratio(weights @ centred**2, total) - mean**2
    scale = float((centred**2).mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(variance > 1e-12 * scale, 1 - squared / variance, np.nan)
    return {
        "mae": _ratio(weights @ np.abs(error), total),
        "rmse": np.sqrt(squared),
        "r2": r2,
        "loss": squared,
    }


class _Ranking:
    """Rows in falling order of score, with ties as one step."""

    def __init__(self, scores: Array) -> None:
        self.order = np.argsort(-scores, kind="stable")
        ordered = scores[self.order]
        self.starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1])

    def steps(self, positive: NDArray[np.bool_], weights: Array) -> tuple[Array, Array]:
        """Return the weight of positives and of negatives at each distinct score, both (R, G)."""
        ordered, own = weights[:, self.order], positive[self.order]
        positives = np.add.reduceat(ordered * own, self.starts, axis=1)
        return positives, np.add.reduceat(ordered, self.starts, axis=1) - positives

    def auc(self, positive: NDArray[np.bool_], weights: Array) -> Array:
        positives, negatives = self.steps(positive, weights)
        above = np.cumsum(positives, axis=1) - positives / 2
        return _ratio((above * negatives).sum(1), positives.sum(1) * negatives.sum(1))

    def average_precision(self, positive: NDArray[np.bool_], weights: Array) -> Array:
        positives, negatives = self.steps(positive, weights)
        found = np.cumsum(positives, axis=1)
        called = found + np.cumsum(negatives, axis=1)
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        return _ratio((precision * positives).sum(1), positives.sum(1))


def _sum(weights: Array, rows: NDArray[np.bool_]) -> Array:
    return weights @ rows.astype(np.float64)


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _mean_defined(values: Array) -> Array:
    """Mean over the first axis without NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(0), known.sum(0).astype(np.float64))
