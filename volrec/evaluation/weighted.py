"""Metrics under weights, for many weightings at once: the arithmetic behind values and bootstrap intervals.

A resample with replacement is a vector of counts, so every function takes weights ``(R, N)``, one row a resample, and
returns ``(R,)`` values; NaN where the metric is not defined (one class only, constant targets). Values equal those of
scikit-learn on the rows repeated as often as they were drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "OPERATING_POINTS", "bin_of", "binary", "multiclass", "regression"]

Array = NDArray[np.float64]
_TINY = 1e-7
BINS = 15
"""Equally wide bins of the expected calibration error (Guo et al. 2017)."""
# A false positive rate of 0.1 is no more than 1 - 0.9, whatever the last digit says.
_SLACK = 1e-9

OPERATING_POINTS = {
    f"{found}_at_{percent}_{held}": (found, percent / 100)
    for found, held in (("sensitivity", "specificity"), ("specificity", "sensitivity"))
    for percent in (90, 95)
}
"""From the name of a metric to what it is, and the least value of the other that the threshold has to keep."""


def binary(targets: Array, scores: Array, weights: Array, *, threshold: float | Array = 0.5) -> dict[str, Array]:
    """Return the metrics of one yes/no question.

    Parameters
    ----------
    targets : array of shape (N,)
        0 or 1.
    scores : array of shape (N,)
        Probability of 1.
    weights : array of shape (R, N)
        Weight of each row in each resample.
    threshold : float, or array of shape (N,)
        "Yes" from here on.

    Notes
    -----
    ``ece``: expected calibration error over 15 equally wide bins (Guo et al.: On calibration of modern neural networks,
    2017), on the probability of 1. ``sensitivity_at_90_specificity`` and its like: the best over all thresholds of the
    empirical ROC curve at which the other is at least so high; it may be 0, where nobody is called.
    """
    truth = targets > 0.5
    said = scores >= threshold
    hits = _sum(weights, truth & said)
    misses = _sum(weights, truth & ~said)
    alarms = _sum(weights, ~truth & said)
    rejections = _sum(weights, ~truth & ~said)
    total = hits + misses + alarms + rejections
    sensitivity = _ratio(hits, hits + misses)
    specificity = _ratio(rejections, rejections + alarms)
    chance = np.clip(scores, _TINY, 1 - _TINY)
    loss = -np.where(truth, np.log(chance), np.log1p(-chance))
    ranking = _Ranking(scores, truth, weights)
    return {
        "auc": ranking.auc(),
        "average_precision": ranking.average_precision(),
        "accuracy": _ratio(hits + rejections, total),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        # Without a positive in targets or predictions scikit-learn gives 0 and warns; so does this, silently.
        "f1": np.nan_to_num(_ratio(2 * hits, 2 * hits + misses + alarms)),
        "sensitivity": sensitivity,
        "specificity": specificity,
        **{name: ranking.operating_point(*point) for name, point in OPERATING_POINTS.items()},
        "brier": _ratio(weights @ (scores - truth) ** 2, total),
        "ece": _calibration_error(truth, scores, weights),
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
    Brier score: squared differences added over classes (Brier 1950: 0 to 2; with two classes twice the binary form).
    ECE: as for `binary`, on the probability of the class that is called against whether it is right (Guo et al. 2017).
    """
    truth = targets.astype(np.int64)
    said = scores.argmax(1)
    total = weights.sum(1)
    aucs, precisions, recalls, f1s = [], [], [], []
    for index in range(scores.shape[1]):
        own, called = truth == index, said == index
        ranking = _Ranking(scores[:, index], own, weights)
        aucs.append(ranking.auc())
        precisions.append(ranking.average_precision())
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
        "brier": _ratio(weights @ ((scores - np.eye(scores.shape[1])[truth]) ** 2).sum(1), total),
        "ece": _calibration_error(truth == said, scores.max(1), weights),
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
    """Weight of positives and of negatives at each distinct score, both (R, G), from the highest score down."""

    def __init__(self, scores: Array, positive: NDArray[np.bool_], weights: Array) -> None:
        order = np.argsort(-scores, kind="stable")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(scores[order])) + 1])
        ordered = weights[:, order]
        self.positives = np.add.reduceat(ordered * positive[order], starts, axis=1)
        self.negatives = np.add.reduceat(ordered, starts, axis=1) - self.positives
        self.found = np.cumsum(self.positives, axis=1)
        self.alarms = np.cumsum(self.negatives, axis=1)

    def auc(self) -> Array:
        above = self.found - self.positives / 2
        return _ratio((above * self.negatives).sum(1), self.found[:, -1] * self.alarms[:, -1])

    def average_precision(self) -> Array:
        called = self.found + self.alarms
        precision = np.divide(self.found, called, out=np.zeros_like(called), where=called > 0)
        return _ratio((precision * self.positives).sum(1), self.found[:, -1])

    def operating_point(self, wanted: str, least: float) -> Array:
        """Return the highest sensitivity at a specificity of at least `least`, or the reverse."""
        positives, negatives = self.found[:, -1], self.alarms[:, -1]
        # Both only grow as the threshold falls, so the best is at the last step that still keeps the other, or the
        # first that does.
        if wanted == "sensitivity":
            kept = self.alarms <= (1 - least + _SLACK) * negatives[:, None]
            best = np.where(kept, self.found, 0.0).max(1)
            return np.where(negatives > 0, _ratio(best, positives), np.nan)
        kept = self.found >= (least - _SLACK) * positives[:, None]
        fewest = np.where(kept, self.alarms, negatives[:, None]).min(1)
        return np.where(positives > 0, 1 - _ratio(fewest, negatives), np.nan)


def bin_of(chance: Array) -> NDArray[np.intp]:
    """Return the bin of each probability, from 0; an edge belongs to the lower bin."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], chance)


def _calibration_error(right: NDArray[np.bool_], chance: Array, weights: Array) -> Array:
    """Mean gap between chance and share of right ones over the bins."""
    gaps = np.zeros((len(chance), BINS))
    gaps[np.arange(len(chance)), bin_of(chance)] = right - chance
    return _ratio(np.abs(weights @ gaps).sum(1), weights.sum(1))


def _sum(weights: Array, rows: NDArray[np.bool_]) -> Array:
    return weights @ rows.astype(np.float64)


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _mean_defined(values: Array) -> Array:
    """Mean over the first axis without NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(0), known.sum(0).astype(np.float64))
