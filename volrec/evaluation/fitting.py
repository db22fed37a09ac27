"""Rules of fusion fitted on validation scores: weights on the simplex, or a linear support vector machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volrec.errors import ConfigError
from volrec.evaluation.tables import read_columns
from volrec.inference.fusion import Combination, FusionRule, check_stage, check_weights, combine, svm_inputs
from volrec.inference.joining import Joined, some_names

__all__ = ["SVM_C", "fit_rule"]

Array = NDArray[np.float64]

SVM_C = 1.0
"""Penalty of the support vector machine: fixed, since validation folds are too small to choose it on."""
_TINY = 1e-12


def fit_rule(
    validation: Joined | None,
    *,
    task: str,
    targets: Sequence[str],
    classes: Sequence[str],
    runs: Sequence[str],
    names: Sequence[str],
    method: str = "weights",
    stage: str = "softmax",
    weights: Sequence[float] | None = None,
    as_given: bool = False,
) -> FusionRule:
    """Make a rule of fusion, fold by fold where there are folds; test studies have no part in it.

    Parameters
    ----------
    validation : Joined, optional
        Validation scores of all runs with the target columns; not needed for given weights.
    task, targets, classes
        Of the first run.
    runs, names : sequence of str
        Runs and outputs, as in `Joined`.
    method : {"weights", "svm", "learned"}
        ``weights``: as given, else equal. ``learned``: weights from 0 to 1 with a sum of one, of the least log loss at
        that stage (a convex problem). ``svm``: a linear SVM (squared hinge, penalty `SVM_C`) for each output against
        the others, on the stacked L2-normalised probabilities of all runs.
    stage : {"logits", "softmax", "relu-l1"}
        What is weighted; has no meaning for regression.
    weights : sequence of float, optional
        One a run.
    as_given : bool
        Sum logits with these weights as they are, instead of averaging them.

    Raises
    ------
    ConfigError
        A regression with anything but weights; no validation study with a label, or a class without any (svm).
    """
    parts: dict[str, Combination] = {}
    if method == "weights":
        parts[""] = Combination(weights=check_weights([1.0] * len(runs) if weights is None else weights, runs))
    elif task == "regression":
        raise ConfigError(
            f"method {method!r} needs classes; the targets are quantities.",
            remedy="Give weights.",
            where="method",
            code="fusion-method",
        )
    elif validation is None:
        raise ConfigError(
            f"method {method!r} is fitted on validation studies, and the runs have none.",
            remedy="Give weights, or train with a validation part.",
            where="method",
            code="fusion-method",
        )
    rule: dict[str, Any] = {"task": task, "targets": tuple(targets), "classes": tuple(classes)}
    rule |= {"runs": tuple(runs), "names": tuple(names), "stage": stage, "method": method, "as_given": as_given}
    if validation is not None and method != "weights":
        if method == "learned":
            check_stage(validation, task=task, stage=stage)
        truth = _truth(validation, task, targets, classes, names)
        folds = validation.folds
        for fold in dict.fromkeys(folds.tolist()):
            chosen = folds == fold
            fit = _svm if method == "svm" else _simplex
            parts[fold] = fit(validation.rows(chosen), truth[chosen], rule, f" of {fold}" if fold else "")
    return FusionRule(**rule, parts=parts)


def _truth(joined: Joined, task: str, targets: Sequence[str], classes: Sequence[str], names: Sequence[str]) -> Array:
    """Return 0 and 1 (N, K) in the order of `names`, NaN where the label is not known."""
    outputs = {"binary": names, "multiclass": classes}.get(task, targets)
    blank = joined.keys.assign(**{f"score_{name}": 0.0 for name in outputs})
    labels, _ = read_columns(blank, task=task, classes=classes, targets=targets)
    if task == "multiclass":
        places = np.array([list(names).index(name) for name in classes])
        known = np.isfinite(labels[:, 0])
        hot = np.full((len(labels), len(names)), np.nan)
        hot[known] = np.eye(len(names))[places[labels[known, 0].astype(int)]]
        return hot
    return labels if task == "binary" else labels[:, [list(targets).index(name) for name in names]]


def _simplex(joined: Joined, truth: Array, rule: dict[str, Any], where: str) -> Combination:
    """Return the weights of least log loss, from 0 to 1 with a sum of one."""
    from scipy.optimize import minimize

    known = np.asarray(np.isfinite(truth).any(axis=1))
    if not known.any():
        raise _unlabelled(where)
    joined, truth = joined.rows(known), truth[known]
    count = len(joined.runs)

    def loss(weights: Array) -> float:
        part = Combination(weights=np.maximum(weights, 0.0) + _TINY)
        chances, _ = combine(FusionRule(**{**rule, "as_given": False}, parts={"": part}), joined)
        if rule["task"] == "multiclass":
            return float(-np.log(np.clip((chances * truth).sum(axis=1), _TINY, 1)).mean())
        chances = np.clip(chances, _TINY, 1 - _TINY)
        each = -(truth * np.log(chances) + (1 - truth) * np.log1p(-chances))
        return float(np.nanmean(each))

    found = minimize(
        loss,
        np.full(count, 1 / count),
        method="SLSQP",
        jac="3-point",
        bounds=[(0.0, 1.0)] * count,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    weights = np.clip(found.x, 0.0, 1.0)
    return Combination(weights=weights / weights.sum())


def _svm(joined: Joined, truth: Array, rule: dict[str, Any], where: str) -> Combination:
    """Return a linear SVM for each output against the others."""
    from sklearn.svm import LinearSVC

    inputs = svm_inputs(joined.scores, rule["task"])
    coefficients, intercepts = [], []
    lacking = [name for name, labels in zip(rule["names"], truth.T, strict=True) if not (labels == 1).any()]
    if lacking and np.isfinite(truth).any():
        raise ConfigError(
            f"no validation study{where} is of class {some_names(lacking)}: a support vector machine cannot learn it.",
            remedy="Choose method weights or learned, or validate on more studies.",
            where="method",
            code="fusion-method",
        )
    for name, own, labels in zip(rule["names"], inputs, truth.T, strict=True):
        known = np.isfinite(labels)
        if not known.any():
            raise _unlabelled(where)
        if (labels[known] == 1).all():
            raise ConfigError(
                f"all validation studies{where} are of class {name}: there is nothing to tell it from.",
                remedy="Choose method weights or learned, or validate on more studies.",
                where="method",
                code="fusion-method",
            )
        # The primal problem draws nothing: the same scores give the same coefficients.
        machine = LinearSVC(C=SVM_C, dual=False, tol=1e-8, max_iter=10_000).fit(own[known], labels[known].astype(int))
        coefficients.append(machine.coef_[0])
        intercepts.append(float(machine.intercept_[0]))
    return Combination(coefficients=np.stack(coefficients), intercepts=np.array(intercepts))


def _unlabelled(where: str) -> ConfigError:
    return ConfigError(
        f"no validation study{where} has a label to fit on.",
        remedy="Give weights instead.",
        where="method",
        code="fusion-method",
    )
