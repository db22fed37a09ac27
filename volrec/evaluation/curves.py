"""Points for plots: ROC, precision and recall, calibration, confusion. Plain lists, ready for JSON."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["calibration_points", "confusion", "pr_points", "roc_points"]

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


def calibration_points(targets: ArrayLike, scores: ArrayLike, *, bins: int = 10) -> dict[str, list[float]]:
    """Return mean predicted probability, observed share and number of studies of equally wide bins that hold any.

    Parameters
    ----------
    targets, scores : array of shape (N,)
        0/1 and probabilities.
    bins : int
        Number of bins of [0, 1].
    """
    truth, guess = _known(targets, scores)
    # A score on an edge belongs to the lower bin, as in scikit-learn.
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], guess)
    count = np.bincount(place, minlength=bins)
    held = count > 0
    predicted = np.bincount(place, weights=guess, minlength=bins)[held] / count[held]
    observed = np.bincount(place, weights=truth, minlength=bins)[held] / count[held]
    return {"predicted": predicted.tolist(), "observed": observed.tolist(), "studies": count[held].tolist()}


def confusion(targets: ArrayLike, scores: ArrayLike, *, num_classes: int) -> list[list[int]]:
    """Return the confusion matrix: rows are true classes, columns predicted ones.

    Parameters
    ----------
    targets : array of shape (N,) or (N, 1)
        Class index (0/1 for binary).
    scores : array of shape (N, K), (N, 1) or (N,)
        Probabilities of every class, or of the positive class ("yes" from 0.5 on).
    num_classes : int
        Rows of the matrix.
    """
    truth = np.asarray(targets, dtype=np.float64).reshape(-1)
    guess = np.asarray(scores, dtype=np.float64).reshape(len(truth), -1)
    known = np.isfinite(truth) & np.isfinite(guess).all(1)
    said = guess.argmax(1) if guess.shape[1] > 1 else (guess[:, 0] >= 0.5).astype(np.int64)
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
