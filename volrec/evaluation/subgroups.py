"""How good scores are in parts of the studies: women and men, one scanner and the next.

A subgroup is looked at on its own (metrics with intervals) and against all other studies (a difference, with an
interval over patients). Every difference is one more comparison, and of twenty comparisons one is expected to differ
by chance alone; so they are counted and the count is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volrec.data.targets import head_classes, head_sizes
from volrec.errors import LabelsError
from volrec.evaluation.draws import difference_of, owners_of, patient_draws
from volrec.evaluation.groups import MISSING, group_values
from volrec.evaluation.metrics import all_metrics, complete_rows, metric_names
from volrec.evaluation.resampling import LEVEL
from volrec.evaluation.tables import evaluate_scores, read_columns

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LEAST_OF_CLASS", "LEAST_PATIENTS", "compared_metric", "headline_metrics", "subgroup_table", "too_small"]

Array = NDArray[np.float64]

LEAST_PATIENTS = 20
LEAST_OF_CLASS = 10
"""Patients, in all and of each class, below which an interval is not to be trusted."""
_HEADLINE = {
    "binary": ("auc", "sensitivity", "specificity"),
    "multilabel": ("auc", "sensitivity", "specificity"),
    "multiclass": ("auc", "balanced_accuracy"),
    "multihead": ("auc", "balanced_accuracy"),
    "regression": ("mae", "r2"),
}


def headline_metrics(task: str) -> tuple[str, ...]:
    """Return the metrics that a subgroup is described by; an unknown task raises `ConfigError`."""
    metric_names(task)
    return _HEADLINE[task]


def compared_metric(task: str) -> str:
    """Return the metric that groups and runs are compared by: AUC, or the mean absolute error of quantities.

    R2 would not do between groups: it is an error against the spread of the very studies it is measured on.
    """
    return headline_metrics(task)[0]


def subgroup_table(
    table: pd.DataFrame,
    column: str,
    *,
    task: str,
    classes: Sequence[str],
    targets: Sequence[str],
    values: Mapping[str, str] | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate a score table in the groups that a column makes of its studies.

    Parameters
    ----------
    table : DataFrame
        As for `evaluate_scores`.
    column : str
        Name of the column; its cells are in `values`, or in the table itself.
    task, classes, targets, thresholds, resamples, seed
        As for `evaluate_scores`.
    values : mapping of str to str, optional
        Study to the text of its cell. Studies without one, or with a word for nothing, are a group of their own.

    Returns
    -------
    dict
        JSON types only. ``column, cut`` (how numbers were cut into ranges), ``metric`` (the one compared), ``studies,
        patients, resamples, level``; ``groups``, each with ``name, studies, patients, positives`` (studies with the
        finding; of several labels or classes a mapping), ``metrics`` (name to interval), ``warning`` (why intervals
        are not to be trusted, or empty), ``difference`` (group minus all other studies, with interval and p value),
        ``differs`` (whether the interval leaves out zero; None where either side is too small); ``comparisons`` (how
        many differences could be judged; the two of two groups are one); ``sentence``.

    Raises
    ------
    LabelsError
        The column is a target, not there, or none that makes groups (see `volrec.evaluation.groups`).
    """
    import pandas as pd

    cells = _cells(table, column, values, targets)
    truth, scores = read_columns(table, task=task, classes=classes, targets=targets)
    usable = np.asarray(complete_rows(truth, scores, task).any(1))
    rows = table.loc[usable].reset_index(drop=True)
    truth, scores = truth[usable], scores[usable]
    patients = rows["patient" if "patient" in rows else "study"].astype(str).to_numpy()
    grouping = group_values(column, list(np.asarray(cells, dtype=object)[usable]), list(patients))
    of = np.asarray(grouping.of, dtype=object)
    naming: dict[str, Any] = {"task": task, "classes": classes, "targets": targets}
    metric = compared_metric(task)
    found: list[dict[str, Any]] = []
    for name in grouping.names:
        own = of == name
        part = evaluate_scores(pd.DataFrame(rows[own]), **naming, thresholds=thresholds, resamples=resamples, seed=seed)
        found.append(
            {
                "name": name,
                "studies": int(own.sum()),
                "patients": len(set(patients[own])),
                "positives": _positives(truth[own], **naming),
                "metrics": {key: part["metrics"][key] for key in headline_metrics(task)},
                "warning": too_small(truth[own], patients[own], **naming),
            }
        )
    if len(found) > 1:
        _compare_groups(found, of, truth, scores, patients, naming=naming, resamples=resamples, seed=seed)
    judged = [group for group in found if group.get("differs") is not None]
    result: dict[str, Any] = {
        "column": column,
        "cut": grouping.cut,
        "metric": metric,
        "studies": len(rows),
        "patients": len(set(patients)),
        "without_value": int((of == MISSING).sum()),
        "resamples": resamples,
        "level": LEVEL,
        "groups": found,
        "comparisons": 1 if len(found) == 2 and judged else len(judged),
    }
    return result | {"sentence": _sentence(result)}


def too_small(
    truth: Array, patients: NDArray[Any], *, task: str, classes: Sequence[str], targets: Sequence[str]
) -> str:
    """Say why intervals of some studies are not to be trusted; empty text where they are.

    The rule: at least `LEAST_PATIENTS` patients, and of each class at least `LEAST_OF_CLASS` patients with such a
    study (of several labels or heads: within each; quantities have no classes).

    Parameters
    ----------
    truth : array of shape (N, K)
        As `volrec.evaluation.read_columns` gives it.
    patients : array of shape (N,)
        Of each study.
    task, classes, targets
        Of the scores.
    """
    reasons = []
    count = len(set(patients))
    if count < LEAST_PATIENTS:
        reasons.append(f"{count} patient{'s' * (count != 1)} (fewer than {LEAST_PATIENTS})")
    few = []
    for name, column, index in _class_questions(truth, task=task, classes=classes, targets=targets):
        held = len(set(patients[column == index]))
        if held < LEAST_OF_CLASS:
            few.append(f"{held} of {name}")
    if few:
        shown = ", ".join(few[:4]) + (" …" if len(few) > 4 else "")
        reasons.append(f"patients of a class: {shown} (fewer than {LEAST_OF_CLASS})")
    return "; ".join(reasons)


def _class_questions(
    truth: Array, *, task: str, classes: Sequence[str], targets: Sequence[str]
) -> list[tuple[str, Array, int]]:
    """Return name, column of the truth (N,) and value of every class there is."""
    if task == "regression":
        return []
    if task in ("binary", "multiclass"):
        return [(str(name), truth[:, 0], index) for index, name in enumerate(classes)]
    heads = head_classes(task, classes, targets)
    found = []
    for place, target in enumerate(targets):
        names = heads.get(target, ("0", "1"))
        found += [(f"{target}={name}", truth[:, place], index) for index, name in enumerate(names)]
    return found


def _positives(
    truth: Array, *, task: str, classes: Sequence[str], targets: Sequence[str]
) -> int | dict[str, int] | None:
    if task == "regression":
        return None
    if task == "binary":
        return int((truth[:, 0] == 1).sum())
    if task == "multilabel":
        return {str(name): int((column == 1).sum()) for name, column in zip(targets, truth.T, strict=True)}
    questions = _class_questions(truth, task=task, classes=classes, targets=targets)
    return {name: int((column == index).sum()) for name, column, index in questions}


def _cells(table: pd.DataFrame, column: str, values: Mapping[str, str] | None, targets: Sequence[str]) -> list[str]:
    if column in targets:
        raise LabelsError(
            f"column '{column}' is what is recognised: within one of its values there is nothing to tell apart.",
            remedy="Choose another column.",
            where=column,
            code="subgroup-target",
        )
    if values is not None:
        return [str(values.get(str(study), "")) for study in table["study"]]
    if column not in table:
        raise LabelsError(
            f"the score table has no column '{column}'.",
            remedy="Give the values of the studies, or a table that has it.",
            where=column,
            code="subgroup-column",
        )
    missing = table[column].isna()
    return ["" if gone else str(value) for value, gone in zip(table[column], missing, strict=True)]


def _compare_groups(
    found: list[dict[str, Any]],
    of: NDArray[Any],
    truth: Array,
    scores: Array,
    patients: NDArray[Any],
    *,
    naming: Mapping[str, Any],
    resamples: int,
    seed: int,
) -> None:
    """Add to each group its difference from all other studies.

    Patients are drawn from all studies, so that one with studies on both sides is drawn for both.
    """
    task, metric = naming["task"], compared_metric(naming["task"])
    heads = head_sizes(task, naming["classes"], naming["targets"])

    def value(chosen: NDArray[np.bool_], weights: Array) -> Array:
        overall, _ = all_metrics(task, truth[chosen], scores[chosen], weights[:, chosen], heads=heads)
        return overall[metric]

    sides = [of == group["name"] for group in found]
    ones = np.ones((1, len(of)))
    drawn: list[list[Array]] = [[] for _ in sides]
    for weights in patient_draws(owners_of(patients), resamples=resamples, seed=seed):
        for own, parts in zip(sides, drawn, strict=True):
            parts.append(value(own, weights) - value(~own, weights))
    for group, own, parts in zip(found, sides, drawn, strict=True):
        point = float((value(own, ones) - value(~own, ones))[0])
        difference = difference_of(point, np.concatenate([*parts, np.empty(0)]))
        small = group["warning"] or too_small(truth[~own], patients[~own], **naming)
        judged = not small and difference["low"] is not None
        group["difference"] = difference
        group["differs"] = bool(difference["low"] > 0 or difference["high"] < 0) if judged else None


def _sentence(result: Mapping[str, Any]) -> str:
    groups, count = result["groups"], result["comparisons"]
    if len(groups) == 1:
        return f"All studies are of one group ({groups[0]['name']}): there is nothing to compare."
    if not count:
        return "No group is large enough to be compared with the rest."
    metric = {"auc": "AUC", "mae": "MAE"}[result["metric"]]
    made = f"{count} comparison{'s' * (count != 1)}{' with the rest' * (len(groups) > 2)}"
    differing = [group["name"] for group in groups if group["differs"]]
    if not differing:
        return f"{metric}: no difference is shown in {made}, which does not prove that there is none."
    if len(groups) == 2:
        return f"{metric}: {' and '.join(differing)} differ from each other ({made})."
    chance = f"Of {count}, {count * (1 - result['level']):.2g} would be expected to differ by chance alone."
    told = f"{', '.join(differing)} differ{'s' * (len(differing) == 1)} from the rest"
    return f"{metric}: {told} ({count} comparison{'s' * (count != 1)}). {chance}"
