"""From a score table to numbers with intervals: overall, per label and per fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volrec.data.targets import head_classes, head_sizes
from volrec.errors import ConfigError, LabelsError
from volrec.evaluation.metrics import complete_rows, metric_names
from volrec.evaluation.resampling import LEVEL, Draws, Scored, plain, resampled, with_intervals
from volrec.inference.consensus import split_heads
from volrec.inference.tables import score_columns

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["evaluate_scores", "read_columns", "score_columns"]

Array = NDArray[np.float64]


def evaluate_scores(
    table: pd.DataFrame,
    *,
    task: str,
    classes: Sequence[str],
    targets: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
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
    thresholds : mapping, optional
        From fold ("" for all rows) to output (a score column without "score_") to the score from which a binary output
        says yes: what was chosen on the validation studies of each fold. Rows of another fold take "", else the mean
        over folds; outputs that are nowhere take 0.5. Other tasks have none.

    Returns
    -------
    dict
        JSON types only. ``task, studies, patients, left_out`` (rows without target or score), ``resamples, level``;
        ``metrics``: from name to ``{value, low, high, method}`` over all studies pooled, with ``reason`` where one of
        them is None; ``labels``: the same for each of several labels, heads or quantities; with folds also ``folds``
        (per fold ``studies, patients, metrics`` as plain values) and ``fold_mean`` (mean over folds with interval,
        patients drawn within each fold); for binary outputs ``thresholds``, those used: from fold ("" where there are
        none) to output to threshold.

    Raises
    ------
    LabelsError
        For missing columns or targets that are none of the classes.
    ConfigError
        For an unknown task, a negative number of resamples, or thresholds of outputs that do not exist.

    Notes
    -----
    Patients are kept whole in every interval. AUC of a binary output: DeLong (`volrec.evaluation.delong`). Accuracy,
    and sensitivity and specificity of a binary output: Wilson. ECE: from the error of each
    bin. All else: bootstrap. Where all resamples agree on 0 or 1, the interval is that of the count of patients.
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
        "level": LEVEL,
    }
    group = next((name for name in ("fold", "split") if name in rows), None)
    folds = np.array([""] * len(rows)) if group is None else rows[group].astype(str).to_numpy()
    cut = None
    if task in {"binary", "multilabel"}:
        outputs = [name.removeprefix("score_") for name in score_columns(task, classes=classes, targets=targets)]
        cut, result["thresholds"] = _row_thresholds(thresholds or {}, outputs, folds)
    rng = np.random.default_rng(seed)
    scored = Scored(task, truth, scores, patients, cut, head_sizes(task, classes, targets))
    ones = np.ones((1, len(truth)))
    point, point_columns = scored.values(ones)
    drawn, drawn_columns = resampled(scored, resamples, rng)
    why = _reason(task, truth, scores, classes)
    named = head_classes(task, classes, targets)
    parts = split_heads(scores, scored.heads) if scored.heads else np.split(scores, len(targets), axis=1)
    entries = []
    for index, name in enumerate(targets if len(targets) > 1 else ()):
        own_task = "multiclass" if scored.heads else task
        reason = _reason(own_task, truth[:, [index]], parts[index], named[name] if scored.heads else classes)
        own_cut = None if cut is None else cut[:, [index]]
        own = Scored(own_task, truth[:, [index]], parts[index], patients, own_cut, ())
        entries.append(with_intervals(point_columns[index], drawn_columns[index], reason, own))
    result["metrics"] = with_intervals(point, drawn, why, scored, entries)
    if entries:
        counts = complete_rows(truth, scores, task).sum(0).tolist()
        result["labels"] = {
            name: {"studies": count, "metrics": entry}
            for name, count, entry in zip(targets, counts, entries, strict=True)
        }
    if len(set(folds)) > 1:
        result |= _by_fold(scored, folds, resamples, rng)
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


def _row_thresholds(
    thresholds: Mapping[str, Mapping[str, float]], outputs: Sequence[str], folds: NDArray[Any]
) -> tuple[Array, dict[str, dict[str, float]]]:
    """Return the threshold of every row and output, (N, K), and those of each fold that occurs."""
    for fold, chosen in thresholds.items():
        for name, value in chosen.items():
            if name not in outputs:
                raise ConfigError(
                    f"thresholds of fold {fold!r} name an output {name!r} that the scores do not have.",
                    remedy=f"Outputs are {', '.join(outputs)}.",
                    code="parameter",
                )
            if not np.isfinite(value):
                raise ConfigError(
                    f"the threshold of {name!r} in fold {fold!r} is {value!r}.",
                    remedy="Give a number; 2 calls nobody, 0 calls everybody.",
                    code="parameter",
                )
    used: dict[str, dict[str, float]] = {}
    for fold in sorted(set(folds), key=_natural) or [""]:
        used[fold] = {}
        for name in outputs:
            own = next((thresholds[key][name] for key in (fold, "") if name in thresholds.get(key, {})), None)
            known = [chosen[name] for chosen in thresholds.values() if name in chosen]
            used[fold][name] = float(own if own is not None else np.mean(known) if known else 0.5)
    rows = np.array([[used[fold][name] for name in outputs] for fold in folds], dtype=np.float64)
    return rows.reshape(len(folds), len(outputs)), used


def _by_fold(scored: Scored, folds: NDArray[Any], resamples: int, rng: np.random.Generator) -> dict[str, Any]:
    values: list[dict[str, Array]] = []
    draws: list[dict[str, Draws]] = []
    entries: dict[str, dict[str, Any]] = {}
    parts = {fold: scored.only(folds == fold) for fold in sorted(set(folds), key=_natural)}
    for fold, own in parts.items():
        point, _ = own.values(np.ones((1, len(own.truth))))
        drawn, _ = resampled(own, resamples, rng)
        values.append(point)
        draws.append(drawn)
        entries[fold] = {
            "studies": len(own.truth),
            "patients": len(np.unique(own.patients)),
            "metrics": {name: plain(value[0]) for name, value in point.items()},
        }
    mean = {name: np.mean([value[name] for value in values], axis=0) for name in values[0]}
    # A fold of one patient has no draws, and then the mean over folds has none.
    least = min(len(next(iter(drawn.values())).drawn) for drawn in draws)
    together = {}
    for name in mean:
        # Leaving out a patient of a fold moves the mean by its share of what it moves the fold.
        moved = [
            mean[name] + (own[name].left_out - value[name]) / len(values)
            for own, value in zip(draws, values, strict=True)
        ]
        together[name] = Draws(np.mean([own[name].drawn[:least] for own in draws], axis=0), np.concatenate(moved))
    absent = {name: [fold for fold, each in entries.items() if each["metrics"][name] is None] for name in mean}
    why = {name: f"not defined in fold {', '.join(found)}" if found else "" for name, found in absent.items()}
    return {"folds": entries, "fold_mean": with_intervals(mean, together, why, scored, folds=list(parts.values()))}


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


def _natural(fold: str) -> tuple[str, int]:
    """Sort fold-2 before fold-10."""
    head = fold.rstrip("0123456789")
    return head, int(fold[len(head) :] or -1)
