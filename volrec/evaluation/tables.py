"""From a score table to numbers with intervals: overall, per label and per fold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volrec.data.targets import head_classes, head_sizes
from volrec.errors import ConfigError, LabelsError
from volrec.evaluation.metrics import all_metrics, complete_rows, metric_names
from volrec.inference.consensus import split_heads
from volrec.inference.tables import score_columns

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["evaluate_scores", "read_columns", "score_columns"]

Array = NDArray[np.float64]

_LEVEL = 0.95
# A chunk of resamples holds at most this many weights (32 MB), whatever the number of studies.
_CHUNK = 4_000_000
# Below this share of resamples in which a metric is defined, their percentiles say little.
_LEAST_DEFINED = 0.5


def evaluate_scores(
    table: pd.DataFrame,
    *,
    task: str,
    classes: Sequence[str],
    targets: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate a score table.

    Parameters
    ----------
    table : DataFrame
        A row a study: ``patient`` (else ``study``), the target columns, the score columns (`score_columns`), and
        ``fold`` (or ``split``) where it comes from cross-validation.
    task : {"binary", "multiclass", "multilabel", "multihead", "regression"}
        What the targets are.
    classes : sequence of str
        Class names; for a binary task (negative, positive).
    targets : sequence of str
        Target columns.
    resamples : int
        Bootstrap resamples of patients; 0 gives values without intervals.
    seed : int
        Seed of the resampling alone.

    Returns
    -------
    dict
        JSON types only. ``task, studies, patients, left_out`` (rows without target or score), ``resamples, level``;
        ``metrics``: from name to ``{value, low, high}`` over all studies pooled, with ``reason`` where one of them
        is None; ``labels``: the same for each of several labels, heads or quantities; with folds also ``folds`` (per
        fold ``studies, patients, metrics`` as plain values) and ``fold_mean`` (mean over folds with interval, patients
        drawn within each fold).

    Raises
    ------
    LabelsError
        For missing columns or targets that are none of the classes.
    ConfigError
        For an unknown task, or a negative number of resamples.
    """
    if resamples < 0:
        raise ConfigError(
            f"The 'resamples' parameter of evaluate_scores must be an int in [0, inf). Got {resamples!r} instead.",
            code="parameter",
        )
    truth, scores = read_columns(table, task=task, classes=classes, targets=targets)
    usable = np.asarray(complete_rows(truth, scores, task).any(1))
    rows = table.loc[usable]
    truth, scores = truth[usable], scores[usable]
    owner = "patient" if "patient" in rows else "study"
    _, patients = np.unique(rows[owner].astype(str).to_numpy(), return_inverse=True)
    result: dict[str, Any] = {
        "task": task,
        "studies": len(rows),
        "patients": _count(patients),
        "left_out": int((~usable).sum()),
        "resamples": resamples,
        "level": _LEVEL,
    }
    rng = np.random.default_rng(seed)
    heads = head_sizes(task, classes, targets)
    point, point_columns = all_metrics(task, truth, scores, np.ones((1, len(truth))), heads=heads)
    drawn, drawn_columns = _resampled(task, truth, scores, patients, resamples, rng, heads)
    why = _reason(task, truth, scores, classes)
    result["metrics"] = _with_intervals(point, drawn, why)
    if len(targets) > 1:
        result["labels"] = {}
        parts = split_heads(scores, heads) if heads else np.split(scores, len(targets), axis=1)
        named = head_classes(task, classes, targets)
        for index, name in enumerate(targets):
            own = _reason(
                "multiclass" if heads else task, truth[:, [index]], parts[index], named[name] if heads else classes
            )
            entry = _with_intervals(point_columns[index], drawn_columns[index], own)
            result["labels"][name] = {
                "studies": int(complete_rows(truth, scores, task)[:, index].sum()),
                "metrics": entry,
            }
    group = next((name for name in ("fold", "split") if name in rows), None)
    folds = np.array([]) if group is None else rows[group].astype(str).to_numpy()
    if len(set(folds)) > 1:
        result |= _by_fold(task, truth, scores, patients, folds, resamples, rng, heads)
    return result


def read_columns(
    table: pd.DataFrame, *, task: str, classes: Sequence[str], targets: Sequence[str]
) -> tuple[Array, Array]:
    """Return targets (N, K) and scores (N, K') of a score table as float64, NaN where missing.

    Raises
    ------
    LabelsError
        For missing columns, or targets that are none of the classes (classes are compared as text; 1.0 equals "1").
    """
    metric_names(task)  # an unknown task is named as such
    wanted = [*targets, *score_columns(task, classes=classes, targets=targets)]
    missing = [name for name in wanted if name not in table]
    if missing:
        raise LabelsError(
            f"the score table lacks column(s) {', '.join(missing)}.",
            remedy=f"It has {', '.join(map(str, table.columns))}; the names follow targets and classes.",
            code="score-columns",
        )
    import pandas as pd

    numbers = [pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64) for name in wanted[len(targets) :]]
    scores = np.stack(numbers, axis=1)
    columns = []
    heads = head_classes(task, classes, targets)
    for name in targets:
        if heads or task in {"binary", "multiclass"}:
            columns.append(_class_indices(table[name], heads.get(name, classes), name))
        else:
            columns.append(pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64))
    return np.stack(columns, axis=1), scores


def _class_indices(column: pd.Series, classes: Sequence[str], name: str) -> Array:
    index = {str(label): number for number, label in enumerate(classes)}
    missing = column.isna().to_numpy()
    text = [_as_text(value) for value in column]
    unknown = sorted({word for word, gone in zip(text, missing, strict=True) if not gone and word not in index})
    if unknown:
        raise LabelsError(
            f"column {name!r} holds {', '.join(repr(word) for word in unknown[:5])}, which is none of the classes.",
            remedy=f"Classes are {', '.join(index)}; correct the table, or leave the cell empty.",
            code="unknown-class",
        )
    return np.array(
        [np.nan if gone else index[word] for word, gone in zip(text, missing, strict=True)], dtype=np.float64
    )


def _as_text(value: Any) -> str:
    # A column of 0 and 1 with gaps is read as 0.0 and 1.0.
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    return str(int(value)) if isinstance(value, (float, np.floating)) and float(value).is_integer() else str(value)


def _resampled(
    task: str,
    truth: Array,
    scores: Array,
    patients: NDArray[np.intp],
    resamples: int,
    rng: np.random.Generator,
    heads: Sequence[int],
) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """Return every metric in `resamples` draws of patients with replacement."""
    _, owners = np.unique(patients, return_inverse=True)
    count = _count(owners)
    names = metric_names(task)
    width = 1 if task == "multiclass" else truth.shape[1]
    overall: list[dict[str, Array]] = []
    columns: list[list[dict[str, Array]]] = []
    step = max(1, _CHUNK // max(1, len(truth)))
    if count > 1:
        for start in range(0, resamples, step):
            drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start))
            one, several = all_metrics(task, truth, scores, drawn[:, owners].astype(np.float64), heads=heads)
            overall.append(one)
            columns.append(several)
    joined = {name: np.concatenate([part[name] for part in overall] or [np.empty(0)]) for name in names}
    each = [
        {name: np.concatenate([part[index][name] for part in columns] or [np.empty(0)]) for name in names}
        for index in range(width)
    ]
    return joined, each


def _by_fold(
    task: str,
    truth: Array,
    scores: Array,
    patients: NDArray[np.intp],
    folds: NDArray[Any],
    resamples: int,
    rng: np.random.Generator,
    heads: Sequence[int],
) -> dict[str, Any]:
    values: list[dict[str, Array]] = []
    draws: list[dict[str, Array]] = []
    entries: dict[str, dict[str, Any]] = {}
    for fold in sorted(set(folds), key=_natural):
        rows = folds == fold
        point, _ = all_metrics(task, truth[rows], scores[rows], np.ones((1, int(rows.sum()))), heads=heads)
        drawn, _ = _resampled(task, truth[rows], scores[rows], patients[rows], resamples, rng, heads)
        values.append(point)
        draws.append(drawn)
        entries[fold] = {
            "studies": int(rows.sum()),
            "patients": len(np.unique(patients[rows])),
            "metrics": {name: _plain(value[0]) for name, value in point.items()},
        }
    mean = {name: np.mean([value[name] for value in values], axis=0) for name in values[0]}
    # A fold of one patient has no draws, and then the mean over folds has none.
    least = min(len(next(iter(drawn.values()))) for drawn in draws)
    drawn = {name: np.mean([each[name][:least] for each in draws], axis=0) for name in mean}
    absent = {name: [fold for fold, each in entries.items() if each["metrics"][name] is None] for name in mean}
    why = {name: f"not defined in fold {', '.join(found)}" if found else "" for name, found in absent.items()}
    return {"folds": entries, "fold_mean": _with_intervals(mean, drawn, why)}


def _with_intervals(
    point: dict[str, Array], drawn: dict[str, Array], why: dict[str, str] | str
) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for name, values in point.items():
        reason = why if isinstance(why, str) else why.get(name, "")
        entry: dict[str, Any] = {"value": _plain(values[0]), "low": None, "high": None}
        defined = drawn[name][~np.isnan(drawn[name])]
        if entry["value"] is None:
            entry["reason"] = reason or "not defined on these studies"
        elif len(drawn[name]) == 0:
            entry["reason"] = "no interval: no resamples were drawn, or there is a single patient"
        elif len(defined) < _LEAST_DEFINED * len(drawn[name]):
            entry["reason"] = f"no interval: defined in {len(defined)} of {len(drawn[name])} resamples only"
        else:
            tail = 100 * (1 - _LEVEL) / 2
            low, high = np.percentile(defined, [tail, 100 - tail])
            entry |= {"low": _plain(low), "high": _plain(high)}
        out[name] = entry
    return out


def _reason(task: str, truth: Array, scores: Array, classes: Sequence[str]) -> str:
    """Say why a metric may be undefined on these targets."""
    known = complete_rows(truth, scores, task)
    if not known.any():
        return "no study has both target and score"
    if task == "multihead":
        return "for no target are there studies of every class"
    values = np.unique(truth[:, : known.shape[1]][known])
    if task == "regression":
        return "the targets are constant" if len(values) == 1 else ""
    if task == "multiclass":
        absent = [str(name) for index, name in enumerate(classes) if index not in values]
        return f"no study of class {', '.join(absent)}" if absent else ""
    if len(values) == 1:
        return f"only one class among {int(known.any(1).sum())} studies (all {int(values[0])})"
    return ""


def _count(owners: NDArray[np.intp]) -> int:
    return int(owners.max()) + 1 if len(owners) else 0


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _natural(fold: str) -> tuple[str, int]:
    """Sort fold-2 before fold-10."""
    head = fold.rstrip("0123456789")
    return head, int(fold[len(head) :] or -1)
