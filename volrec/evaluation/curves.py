"""Points for plots: ROC, precision and recall, calibration, confusion. Plain lists, ready for JSON."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volrec.evaluation.intervals import proportion_interval, wilson

__all__ = ["calibration_points", "confusion", "operating_point", "pr_points", "roc_points"]

Array = NDArray[np.float64]


def roc_points(targets: ArrayLike, scores: ArrayLike) -> dict[str, list[float]]:
    """Return the ROC curve of 0/1 targets (N,) and scores (N,).

    Returns
    -------
    dict
        ``false_positive_rate, true_positive_rate, threshold``, from "nobody is called" on; the first threshold is
        None. Empty lists where one class is missing.
    """
    truth, guess = _known(targets, scores)
    found, called, threshold = _counts(truth, guess)
    positives = truth.sum()
    negatives = len(truth) - positives
    if not positives or not negatives:
        return {"false_positive_rate": [], "true_positive_rate": [], "threshold": []}
    return {
        "false_positive_rate": [0.0, *((called - found) / negatives).tolist()],
        "true_positive_rate": [0.0, *(found / positives).tolist()],
        "threshold": [None, *threshold.tolist()],
    }


def pr_points(targets: ArrayLike, scores: ArrayLike) -> dict[str, list[float]]:
    """Return ``recall, precision, threshold`` from the highest score down; empty lists without a positive."""
    truth, guess = _known(targets, scores)
    found, called, threshold = _counts(truth, guess)
    if not truth.sum():
        return {"recall": [], "precision": [], "threshold": []}
    return {
        "recall": (found / truth.sum()).tolist(),
        "precision": (found / called).tolist(),
        "threshold": threshold.tolist(),
    }


def operating_point(
    targets: ArrayLike, scores: ArrayLike, *, threshold: float = 0.5, patients: ArrayLike | None = None
) -> dict[str, Any]:
    """Return sensitivity and specificity at a threshold, for a mark on the ROC curve.

    Parameters
    ----------
    targets, scores : array of shape (N,)
        0/1 and scores.
    threshold : float
        "Yes" from here on.
    patients : array of shape (N,), optional
        Whose study each row is, for the intervals; without it every row is a patient.

    Returns
    -------
    dict
        ``threshold``; ``sensitivity`` and ``specificity``, each ``value, low, high, studies`` with None where there is
        no study of that side. The mark stands at (1 - specificity, sensitivity).
    """
    truth = np.asarray(targets, dtype=np.float64).reshape(-1)
    guess = np.asarray(scores, dtype=np.float64).reshape(-1)
    owners = np.arange(len(truth)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    known = np.isfinite(truth) & np.isfinite(guess)
    found: dict[str, Any] = {"threshold": float(threshold)}
    for name, side in (("sensitivity", truth > 0.5), ("specificity", truth <= 0.5)):
        rows = known & side
        right = (guess[rows] >= threshold) == (truth[rows] > 0.5)
        entry: dict[str, Any] = {"value": None, "low": None, "high": None, "studies": int(rows.sum())}
        if rows.any():
            low, high = proportion_interval(right, owners[rows])
            entry |= {"value": float(right.mean()), "low": low, "high": high}
        found[name] = entry
    return found


def calibration_points(
    targets: ArrayLike, scores: ArrayLike, *, bins: int = 10, equal: Literal["width", "studies"] = "width"
) -> dict[str, list[float]]:
    """Return what was predicted and what was observed in bins of the scores that hold any study.

    Parameters
    ----------
    targets, scores : array of shape (N,)
        0/1 and probabilities.
    bins : int
        Number of bins.
    equal : {"width", "studies"}
        Bins of [0, 1] that are equally wide, or that hold about equally many studies (equal scores stay together).

    Returns
    -------
    dict
        For each bin ``predicted`` (mean probability), ``observed`` (share), ``low, high`` (95 % interval of the
        share, Wilson) and ``studies``.
    """
    truth, guess = _known(targets, scores)
    even = np.linspace(0, 1, bins + 1)[1:-1]
    edges = np.quantile(guess, even) if equal == "studies" and len(guess) else even
    # A score on an edge belongs to the lower bin, as in scikit-learn.
    place = np.searchsorted(edges, guess)
    count = np.bincount(place, minlength=bins)
    held = count > 0
    predicted = np.bincount(place, weights=guess, minlength=bins)[held] / count[held]
    observed = np.bincount(place, weights=truth, minlength=bins)[held] / count[held]
    ends = [wilson(share, size) for share, size in zip(observed.tolist(), count[held].tolist(), strict=True)]
    return {
        "predicted": predicted.tolist(),
        "observed": observed.tolist(),
        "low": [low for low, _ in ends],
        "high": [high for _, high in ends],
        "studies": count[held].tolist(),
    }


def confusion(
    targets: ArrayLike, scores: ArrayLike, *, num_classes: int, threshold: float | ArrayLike = 0.5
) -> list[list[int]]:
    """Return the confusion matrix: rows are true classes, columns predicted ones.

    Parameters
    ----------
    targets : array of shape (N,) or (N, 1)
        Class index (0/1 for binary).
    scores : array of shape (N, K), (N, 1) or (N,)
        Probabilities of every class, or of the positive class.
    num_classes : int
        Rows of the matrix.
    threshold : float, or array of shape (N,)
        "Yes" from here on, where there is one probability.
    """
    truth = np.asarray(targets, dtype=np.float64).reshape(-1)
    guess = np.asarray(scores, dtype=np.float64).reshape(len(truth), -1)
    known = np.isfinite(truth) & np.isfinite(guess).all(1)
    said = guess.argmax(1) if guess.shape[1] > 1 else (guess[:, 0] >= np.asarray(threshold)).astype(np.int64)
    flat = truth[known].astype(np.int64) * num_classes + said[known]
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes).tolist()


def _known(targets: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    truth = np.asarray(targets, dtype=np.float64).reshape(-1)
    guess = np.asarray(scores, dtype=np.float64).reshape(-1)
    known = np.isfinite(truth) & np.isfinite(guess)
    return truth[known], guess[known]


def _counts(truth: Array, guess: Array) -> tuple[Array, Array, Array]:
    """Return positives found, rows called and the threshold at each distinct score, from the highest down."""
    order = np.argsort(-guess, kind="stable")
    ordered = guess[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1) if len(ordered) else np.empty(0, np.int64)
    return np.cumsum(truth[order])[last], (last + 1).astype(np.float64), ordered[last]
