"""Whether scores mean what they say: Brier score, log loss and calibration error, before and after calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volrec.evaluation.curves import calibration_points
from volrec.evaluation.decisions import read_logits
from volrec.evaluation.tables import read_columns
from volrec.inference.decision import Decision, questions

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["calibration_error", "calibration_report", "score_quality"]

Array = NDArray[np.float64]

_TINY = 1e-7  # as in the metric "loss": an isotonic curve says 0 and 1


def calibration_error(hits: ArrayLike, chances: ArrayLike, *, bins: int = 10) -> float:
    """Return the expected calibration error: mean distance of observed share and predicted probability over bins.

    Weighted by the studies of each of the equally wide bins (Guo et al., On Calibration of Modern Neural Networks, ICML
    2017, equation 3).

    Parameters
    ----------
    hits, chances : array of shape (N,)
        0 or 1; probability of 1.
    bins : int
        Number of bins of [0, 1].
    """
    points = calibration_points(hits, chances, bins=bins)
    counts = np.asarray(points["studies"], dtype=np.float64)
    if not len(counts):
        return float("nan")
    distance = np.abs(np.asarray(points["observed"]) - np.asarray(points["predicted"]))
    return float((counts * distance).sum() / counts.sum())


def score_quality(
    truth: Array, scores: Array, *, task: str, classes: Sequence[str], targets: Sequence[str]
) -> dict[str, float]:
    """Return Brier score, log loss and calibration error of scores; means over labels or heads where there are several.

    Of exclusive classes the Brier score is the sum over classes (Brier, 1950: from 0 to 2), and the calibration error
    that of the class with the highest score. Empty where nothing is known.

    Parameters
    ----------
    truth, scores : array of shape (N, questions), (N, K')
        As of `volrec.evaluation.read_columns`.
    task, classes, targets
        As in the cohort.
    """
    found: list[tuple[float, float, float]] = []
    for place, one in enumerate(questions(task, classes=classes, targets=targets)):
        own = scores[:, list(one.columns)]
        known = np.isfinite(truth[:, place]) & np.isfinite(own).all(1)
        if not known.any():
            continue
        labels, chances = truth[known, place].astype(int), own[known]
        if one.has_threshold:
            yes = chances[:, 0]
            brier = np.mean((yes - labels) ** 2)
            given = np.where(labels == 1, yes, 1 - yes)
            error = calibration_error(labels, yes)
        else:
            hot = np.eye(len(one.columns))[labels]
            brier = np.mean(((chances - hot) ** 2).sum(1))
            given = chances[np.arange(len(labels)), labels]
            error = calibration_error(chances.argmax(1) == labels, chances.max(1))
        found.append((float(brier), float(-np.log(np.clip(given, _TINY, 1 - _TINY)).mean()), error))
    if not found:
        return {}
    return dict(zip(("brier", "log_loss", "ece"), map(float, np.mean(found, axis=0)), strict=True))


def calibration_report(
    table: pd.DataFrame,
    decisions: Mapping[str, Decision],
    *,
    task: str,
    classes: Sequence[str],
    targets: Sequence[str],
    fitted_on_these: bool = False,
) -> dict[str, Any]:
    """Compare scores before and after the calibration of the member that gave them, all folds pooled.

    Parameters
    ----------
    table : DataFrame
        A row a study, with ``fold`` where there are several.
    decisions : mapping of str to Decision
        Fold (or ``""`` for all) to decision.
    task, classes, targets
        As in the cohort.
    fitted_on_these : bool
        The calibration was fitted on these very studies, which is said.

    Returns
    -------
    dict
        JSON types: ``studies``, ``before`` and ``after`` (as of `score_quality`; ``after`` is None where no member has
        a calibration), and ``note`` where something has to be known about it.
    """
    truth, scores = read_columns(table, task=task, classes=classes, targets=targets)
    logits = read_logits(table, scores, task=task, classes=classes, targets=targets)
    folds = table["fold"].astype(str).to_numpy() if "fold" in table else np.full(len(table), "")
    after = scores.copy()
    without = []
    for fold in dict.fromkeys(folds.tolist()):
        rows = folds == fold
        decision = decisions.get(fold)
        if decision is None or decision.method == "none":
            without.append(fold)
        else:
            after[rows] = decision.calibrated(scores[rows], logits[rows])
    naming: dict[str, Any] = {"task": task, "classes": classes, "targets": targets}
    found: dict[str, Any] = {"studies": len(table), "before": score_quality(truth, scores, **naming), "after": None}
    if len(without) < len(set(folds.tolist())):
        found["after"] = score_quality(truth, after, **naming)
        if without:
            found["note"] = f"not calibrated: {', '.join(without)}; their scores enter as they are"
        if fitted_on_these:
            found["note"] = "the calibration was fitted on these very studies: on new ones it does less well"
    return found
