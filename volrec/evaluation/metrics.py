"""Metrics of studies by task and name: one implementation for training, testing and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volrec.errors import ConfigError
from volrec.evaluation import weighted
from volrec.inference.consensus import split_heads

__all__ = ["all_metrics", "complete_rows", "default_metric", "higher_is_better", "metric_names", "study_metric"]

Array = NDArray[np.float64]

_BINARY = (
    "auc",
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "sensitivity",
    "specificity",
    *weighted.OPERATING_POINTS,
    "brier",
    "ece",
    "loss",
)
_CLASSES = ("auc", "average_precision", "accuracy", "balanced_accuracy", "f1", "brier", "ece", "loss")
_NAMES = {
    "binary": _BINARY,
    "multiclass": _CLASSES,
    "multilabel": _BINARY,
    "multihead": _CLASSES,
    "regression": ("mae", "rmse", "r2", "loss"),
}
_LOWER_IS_BETTER = frozenset({"brier", "ece", "loss", "mae", "rmse"})


def metric_names(task: str) -> tuple[str, ...]:
    """Return the metrics of a task; an unknown task raises `ConfigError`."""
    if task not in _NAMES:
        raise ConfigError(
            f"there is no task {task!r}.", remedy=f"Known tasks: {', '.join(_NAMES)}.", where="data.task", code="task"
        )
    return _NAMES[task]


def default_metric(task: str) -> str:
    """Return the metric that chooses the checkpoint: AUC for classes, R² for regression."""
    metric_names(task)
    return "r2" if task == "regression" else "auc"


def higher_is_better(name: str) -> bool:
    """Say whether a metric grows with quality; an unknown name raises `ConfigError`."""
    known = {metric for names in _NAMES.values() for metric in names}
    if name not in known:
        raise _unknown(name, sorted(known))
    return name not in _LOWER_IS_BETTER


def study_metric(name: str, task: str, targets: ArrayLike, scores: ArrayLike, *, heads: Sequence[int] = ()) -> float:
    """Return one metric of a set of studies.

    Parameters
    ----------
    name : str
        Metric (`metric_names`), or "auto" for the task's default.
    task : {"binary", "multiclass", "multilabel", "multihead", "regression"}
        What the targets are.
    targets : array of shape (N, K), or (N,) where K is 1
        0/1 per label, one class index (per head), or quantities. NaN marks a missing target: the row (the entry, where
        there are several labels or heads) is left out.
    scores : array of shape (N, K')
        Probabilities of the positive class, of every class (of every head), of every label, or predicted quantities.
    heads : sequence of int
        Outputs of each head of a multihead task.

    Returns
    -------
    float
        Mean over labels, heads or quantities where there are several; NaN where it is not defined.

    Raises
    ------
    ConfigError
        For a task or metric that does not exist.
    """
    name = default_metric(task) if name == "auto" else name
    if name not in metric_names(task):
        raise _unknown(name, metric_names(task), task)
    truth, guess = as_columns(targets), as_columns(scores)
    ones = np.ones((1, len(truth)))
    overall, _ = all_metrics(task, truth, guess, ones, heads=heads)
    return float(overall[name][0])


def all_metrics(
    task: str,
    targets: Array,
    scores: Array,
    weights: Array,
    *,
    heads: Sequence[int] = (),
    thresholds: Array | None = None,
) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """Return every metric of a task for many weightings of the studies.

    Parameters
    ----------
    task : str
        What the targets are.
    targets, scores : array of shape (N, K), (N, K')
        As for `study_metric`.
    weights : array of shape (R, N)
        One row a resample.
    heads : sequence of int
        Outputs of each head of a multihead task.
    thresholds : array of shape (N, K), optional
        "Yes" from here on, for each row of each binary output; without them from 0.5 on.

    Returns
    -------
    overall : dict
        From name to (R,) values; means over labels or heads that are defined where there are several.
    columns : list of dict
        The same for each label, head or quantity by itself.
    """
    names = metric_names(task)
    if task == "multihead":
        parts = zip(targets.T, split_heads(scores, heads), strict=True)
        columns = [all_metrics("multiclass", own[:, None], part, weights)[0] for own, part in parts]
        return {name: _mean_known([column[name] for column in columns]) for name in names}, columns
    known = complete_rows(targets, scores, task)
    if task == "multiclass":
        rows = known[:, 0]
        values = (
            weighted.multiclass(targets[rows, 0], scores[rows], weights[:, rows])
            if rows.any()
            else _undefined(names, weights)
        )
        return values, [values]
    columns = []
    for index in range(targets.shape[1]):
        rows = known[:, index]
        own = (targets[rows, index], scores[rows, index], weights[:, rows])
        if not rows.any():
            columns.append(_undefined(names, weights))
        elif task == "regression":
            columns.append(weighted.regression(*own))
        else:
            columns.append(weighted.binary(*own, threshold=0.5 if thresholds is None else thresholds[rows, index]))
    if len(columns) == 1:
        return columns[0], columns
    return {name: _mean_known([column[name] for column in columns]) for name in names}, columns


def complete_rows(targets: Array, scores: Array, task: str) -> NDArray[np.bool_]:
    """Return where target and score are both known: (N, K), one column for multiclass, one a head for multihead."""
    if task in ("multiclass", "multihead"):
        own = targets[:, :1] if task == "multiclass" else targets
        return np.asarray(np.isfinite(own) & np.isfinite(scores).all(1, keepdims=True))
    return np.asarray(np.isfinite(targets) & np.isfinite(scores))


def as_columns(values: ArrayLike) -> Array:
    """Return float64 (N, K) of (N, K) or (N,)."""
    array = np.asarray(values, dtype=np.float64)
    return array[:, None] if array.ndim == 1 else array


def _mean_known(columns: list[Array]) -> Array:
    stacked = np.stack(columns)
    known = ~np.isnan(stacked)
    count = known.sum(0)
    total = np.where(known, stacked, 0.0).sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _undefined(names: tuple[str, ...], weights: Array) -> dict[str, Array]:
    return {name: np.full(len(weights), np.nan) for name in names}


def _unknown(name: Any, known: Any, task: str = "") -> ConfigError:
    of = f" of a {task} task" if task else ""
    return ConfigError(
        f"there is no metric {name!r}{of}.",
        remedy=f"Known metrics: {', '.join(known)}.",
        where="protocol.metric",
        code="metric",
    )
