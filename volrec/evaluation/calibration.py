"""Whether scores mean what they say: Brier score, log loss and calibration error, before and after calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volrec.data.targets import head_sizes
from volrec.evaluation.decisions import read_logits
from volrec.evaluation.metrics import study_metric
from volrec.evaluation.tables import read_columns
from volrec.inference.decision import Decision

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["calibration_report", "score_quality"]

Array = NDArray[np.float64]


def score_quality(
    truth: Array, scores: Array, *, task: str, classes: Sequence[str], targets: Sequence[str]
) -> dict[str, float]:
    """Return Brier score, log loss and calibration error of scores, as `study_metric` has them.

    Empty where nothing is known.

    Parameters
    ----------
    truth, scores : array of shape (N, questions), (N, K')
        As of `volrec.evaluation.read_columns`.
    task, classes, targets
        As in the cohort.
    """
    heads = head_sizes(task, classes, targets)
    names = {"brier": "brier", "log_loss": "loss", "ece": "ece"}
    found = {name: study_metric(metric, task, truth, scores, heads=heads) for name, metric in names.items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


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
