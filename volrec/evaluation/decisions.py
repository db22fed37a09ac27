"""Thresholds and calibration of a member, fitted on its validation studies and on no others.

The same validation studies have chosen the weights (the epoch, and whether to stop). What is fitted on them once more
is optimistic: on new studies sensitivity and specificity are a little lower, and probabilities a little more sure of
themselves than they should be, the more so the fewer studies there are. The test studies say how much
(``calibration`` of ``metrics.json``).

A temperature has no intercept, as in Guo et al. (2017), who found the one number as good as a slope and intercept for
every class; Platt (1999) fits both. It cannot mend scores that are shifted as a whole, as those of a training that
weights or draws rare classes more often (``data.balance``); an isotonic curve can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volrec.config import DecisionConfig
from volrec.evaluation.tables import read_columns
from volrec.inference.consensus import inverse_link
from volrec.inference.decision import HALF, Decision, Fitted, Question, questions
from volrec.inference.tables import logit_columns

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LEAST_ISOTONIC",
    "LEAST_OF_EACH",
    "LEAST_TEMPERATURE",
    "Cut",
    "best_threshold",
    "choose_cut",
    "decision_facts",
    "fit_decision",
    "fit_isotonic",
    "fit_temperature",
    "read_logits",
    "thresholds_by_fold",
]

Array = NDArray[np.float64]

LEAST_OF_EACH = 3
"""Studies with and without the finding that a threshold or a calibration needs: one or two say nothing."""
LEAST_TEMPERATURE = 10
"""Studies that one temperature needs."""
LEAST_ISOTONIC = 50
"""Studies that a monotone curve needs: of fewer it is a few steps from 0 to 1."""
COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures between which the best is sought."""
NO_VALIDATION = "there were no validation studies"


@dataclass(frozen=True)
class Cut:
    """A threshold with what it reaches on the studies that it was chosen on."""

    threshold: float
    sensitivity: float
    specificity: float


def fit_decision(
    table: pd.DataFrame,
    config: DecisionConfig,
    *,
    task: str,
    classes: Sequence[str],
    targets: Sequence[str],
    unusable: str = "",
) -> Decision | None:
    """Fit thresholds and calibration of one member.

    Parameters
    ----------
    table : DataFrame
        Scores of its validation studies, as of `volrec.inference.tables.score_table` with the target columns. Without
        a row nothing is fitted, and the reason is in the decision.
    config : DecisionConfig
        ``rule, at, calibration``.
    task, classes, targets
        As in the cohort.
    unusable : str
        Why nothing may be fitted on these studies (the network itself has learned from them).

    Returns
    -------
    Decision or None
        None for quantities, on which nothing is decided. A threshold of its own needs `LEAST_OF_EACH` validation
        studies with and without the finding, scores that differ, and (rule youden) one that does better than chance;
        otherwise it is 0.5 and ``fitted`` has the reason. The same holds of the calibration.
    """
    if task == "regression":
        return None
    outputs = len(targets) if task == "multilabel" else 1 if task == "binary" else len(classes)
    if len(table):
        truth, scores = read_columns(table, task=task, classes=classes, targets=targets)
        logits = read_logits(table, scores, task=task, classes=classes, targets=targets)
    else:
        truth, scores, logits = np.empty((0, len(targets))), np.empty((0, outputs)), np.empty((0, outputs))
        unusable = unusable or NO_VALIDATION
    frame = Decision(task, tuple(classes), tuple(targets))
    names = frame.outputs
    thresholds: dict[str, float] = {}
    fitted: dict[str, Fitted] = {}
    parts: dict[str, Any] = {}
    for place, one in enumerate(questions(task, classes=classes, targets=targets)):
        columns = list(one.columns)
        known = np.isfinite(truth[:, place]) & np.isfinite(scores[:, columns]).all(1)
        known &= np.isfinite(logits[:, columns]).all(1)
        own, chance, before = truth[known, place], scores[known][:, columns], logits[known][:, columns]
        facts: dict[str, Any] = {"studies": int(known.sum())}
        # One temperature is of all classes together: a rare one does not stand in its way.
        several = not one.has_threshold and config.calibration == "temperature"
        lack = unusable or _lack(own, one, 0 if several else LEAST_OF_EACH)
        if one.has_threshold:
            facts["positives"] = int((own == 1).sum())
            cut, why = _cut(own, chance[:, 0], config, lack)
            thresholds[names[columns[0]]] = HALF if cut is None else cut.threshold
            facts["threshold_reason"] = why
            if cut is None:
                facts |= _reached(own, chance[:, 0], HALF)
            else:
                facts |= {"sensitivity": cut.sensitivity, "specificity": cut.specificity}
        if config.calibration != "none":
            part, why = _calibration(own, chance, before, one, config.calibration, lack)
            if part is None:
                facts["calibration_reason"] = why
            elif config.calibration == "temperature":
                parts[one.name] = part
            else:
                parts |= {names[column]: curve for column, curve in zip(columns, part, strict=True)}
        fitted[one.name] = Fitted(**facts)
    key = {"temperature": "temperatures", "isotonic": "curves"}.get(config.calibration, "")
    return Decision(
        task,
        frame.classes,
        frame.targets,
        rule=config.rule,
        at=config.at if config.rule in ("sensitivity", "specificity") else None,
        thresholds=thresholds,
        calibration={"method": config.calibration, key: parts} if parts else {"method": "none"},
        fitted=fitted,
    )


def best_threshold(truth: Array, scores: Array) -> float | None:
    """Return the threshold with the best mean of sensitivity and specificity, between two scores; None for one class.

    Among equally good ones the middle of the widest gap is taken.
    """
    if len(np.unique(truth)) < 2 or len(np.unique(scores)) < 2:
        return None
    return choose_cut(truth, scores, rule="youden").threshold


def choose_cut(truth: Array, scores: Array, *, rule: str, at: float = 0.5) -> Cut:
    """Return the threshold that a rule takes of all there are, halfway between two neighbouring scores.

    Parameters
    ----------
    truth, scores : array of shape (N,)
        0 and 1, both of them there; probabilities.
    rule : {"youden", "sensitivity", "specificity"}
        Best mean of sensitivity and specificity (Youden, 1950), the middle of the widest gap among equals; the highest
        that reaches `at` in sensitivity; the lowest that reaches it in specificity. The last two may call all or none.
    at : float
        Share that has to be reached.
    """
    thresholds, sensitivity, specificity, gaps = _cuts(np.asarray(truth), np.asarray(scores, dtype=np.float64))
    if rule == "sensitivity":
        place = int(np.flatnonzero(sensitivity >= at)[-1])
    elif rule == "specificity":
        place = int(np.flatnonzero(specificity >= at)[0])
    else:
        quality = (sensitivity + specificity)[1:-1]  # to call all or none is no decision
        equal = np.flatnonzero(quality >= quality.max() - 1e-12)
        place = 1 + int(equal[np.argmax(gaps[equal])])
    return Cut(float(thresholds[place]), float(sensitivity[place]), float(specificity[place]))


def fit_temperature(truth: Array, logits: Array) -> tuple[float | None, str]:
    """Return the temperature of least log loss; or None, and why there is none.

    In 1/T the log loss is convex: its slope rises, and the minimum is the one zero of the slope, which is exact where
    a search for the lowest value ends at half the digits.

    Parameters
    ----------
    truth : array of shape (N,)
        Class index.
    logits : array of shape (N, K)
        Of exclusive classes; of a yes-or-no question (N, 1), the log odds of yes.
    """
    from scipy.optimize import brentq
    from scipy.special import softmax

    values = np.asarray(logits, dtype=np.float64)
    values = np.column_stack([np.zeros(len(values)), values[:, 0]]) if values.shape[1] == 1 else values
    right = values[np.arange(len(values)), np.asarray(truth).astype(int)]

    def slope(sharpness: float) -> float:
        return float(((softmax(values * sharpness, axis=1) * values).sum(axis=1) - right).mean())

    if slope(1 / HOTTEST) >= 0:
        return None, "the scores of the validation studies say nothing about their labels"
    if slope(1 / COLDEST) <= 0:
        return None, "the validation studies are told apart without an error, which fits every temperature near 0"
    return 1 / float(brentq(slope, 1 / HOTTEST, 1 / COLDEST, xtol=1e-14, rtol=1e-14)), ""


def fit_isotonic(truth: Array, scores: Array) -> dict[str, list[float]]:
    """Return the knots ``scores, values`` of the monotone curve of least squares, constant beyond its ends.

    Parameters
    ----------
    truth, scores : array of shape (N,)
        0 and 1; probabilities.
    """
    from sklearn.isotonic import IsotonicRegression

    found = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, truth)
    return {"scores": found.X_thresholds_.tolist(), "values": np.clip(found.y_thresholds_, 0.0, 1.0).tolist()}


def read_logits(
    table: pd.DataFrame, scores: Array, *, task: str, classes: Sequence[str], targets: Sequence[str]
) -> Array:
    """Return the logits (N, K') of a score table; of one that has none those that follow from its scores."""
    import pandas as pd

    names = logit_columns(task, classes=classes, targets=targets)
    if any(name not in table for name in names):
        return np.asarray(inverse_link(scores, task), dtype=np.float64)
    return np.stack([pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64) for name in names], axis=1)


def thresholds_by_fold(decisions: Mapping[str, Decision]) -> dict[str, dict[str, float]]:
    """Return fold to output to threshold; nothing where no question is one of yes or no."""
    return {fold: dict(one.thresholds) for fold, one in decisions.items() if one.thresholds}


def decision_facts(decisions: Mapping[str, Decision]) -> dict[str, Any]:
    """Return what was decided, in JSON types, for the metrics of a run.

    Returns
    -------
    dict
        ``rule, at``; ``thresholds`` as of `thresholds_by_fold`; ``members``: of each what it rests on (``fitted``) and
        how it is calibrated; ``sentences`` a person can read.
    """
    first = next(iter(decisions.values()))
    members, sentences = {}, []
    for fold, one in decisions.items():
        plain = one.to_card()
        own: dict[str, Any] = {"method": one.method}
        if one.method == "temperature":
            own["temperatures"] = plain["calibration"]["temperatures"]
        members[fold] = {"fitted": plain["fitted"], "calibration": own}
        sentences += [f"{fold}, {sentence}" if fold else sentence for sentence in one.describe()]
    return {
        "rule": first.rule,
        "at": first.at,
        "thresholds": thresholds_by_fold(decisions),
        "members": members,
        "sentences": sentences,
    }


def _cuts(truth: Array, scores: Array) -> tuple[Array, Array, Array, Array]:
    """Return every cut from "all are called" to "none is": thresholds, sensitivity, specificity; and the gaps between.

    Scores are probabilities: beyond the lowest and the highest the threshold lies halfway to 0 and to 1.
    """
    values, place = np.unique(scores, return_inverse=True)
    positive = np.bincount(place, weights=truth == 1, minlength=len(values))
    negative = np.bincount(place, weights=truth == 0, minlength=len(values))
    # Cut i lies below value i: called are the values from there on.
    sensitivity = np.append(positive[::-1].cumsum()[::-1], 0.0) / positive.sum()
    specificity = np.append(0.0, negative.cumsum()) / negative.sum()
    lower, upper = np.append(0.0, values), np.append(values, 1.0)
    middles = lower + (upper - lower) / 2
    # Between two neighbouring floats there is no middle; a score equal to the threshold is called.
    middles = np.where(middles > lower, middles, upper)
    if middles[-1] <= values[-1]:
        middles[-1] = np.nextafter(values[-1], np.inf)
    return middles, sensitivity, specificity, np.diff(values)


def _cut(truth: Array, scores: Array, config: DecisionConfig, lack: str) -> tuple[Cut | None, str]:
    """Return the cut of a yes-or-no question; or None, and why it is 0.5."""
    if config.rule == "half":
        return None, ""
    if lack:
        return None, lack
    if len(np.unique(scores)) < 2:
        return None, "all validation studies have the same score"
    cut = choose_cut(truth, scores, rule=config.rule, at=config.at)
    if config.rule == "youden" and cut.sensitivity + cut.specificity <= 1 + 1e-12:
        return None, "no threshold does better than chance on the validation studies"
    return cut, ""


def _reached(truth: Array, scores: Array, threshold: float) -> dict[str, float]:
    said = scores >= threshold
    found = {}
    if (truth == 1).any():
        found["sensitivity"] = float(said[truth == 1].mean())
    if (truth == 0).any():
        found["specificity"] = float((~said[truth == 0]).mean())
    return found


def _calibration(
    truth: Array, scores: Array, logits: Array, question: Question, method: str, lack: str
) -> tuple[Any, str]:
    """Return a temperature, or the curve of each output; or None, and why."""
    least = LEAST_TEMPERATURE if method == "temperature" else LEAST_ISOTONIC
    if lack:
        return None, lack
    if len(truth) < least:
        hint = "; decision.calibration=temperature needs fewer" if method == "isotonic" else ""
        return None, f"{len(truth)} validation studies are too few, {least} are needed{hint}"
    if method == "temperature":
        return fit_temperature(truth, logits)
    if question.has_threshold:
        return [fit_isotonic(truth, scores[:, 0])], ""
    return [fit_isotonic((truth == index).astype(float), own) for index, own in enumerate(scores.T)], ""


def _lack(truth: Array, question: Question, least: int) -> str:
    """Say what is too few of the validation studies for anything to be fitted; empty where there are enough."""
    if not len(truth):
        return "no validation study has a label"
    counts = np.bincount(truth.astype(int), minlength=len(question.answers))
    if (counts > 0).sum() == 1:
        return f"all {len(truth)} validation studies are of one class"
    few = [index for index, count in enumerate(counts) if count < least]
    if not few:
        return ""
    kinds = ("negative", "positive") if question.has_threshold else [f"of {name}" for name in question.answers]
    found = " and ".join(f"{counts[index]} {kinds[index]}" for index in few)
    return f"of the {len(truth)} validation studies only {found}; {least} of each class are needed"
