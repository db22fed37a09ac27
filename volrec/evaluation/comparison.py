"""Two runs on the same studies: the metrics of both, and the difference of each with an interval.

Scores of the same studies rise and fall together, so two overlapping intervals say little about a difference. It is
measured study by study: AUC by DeLong's method, everything else in draws of patients that both runs share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from volrec.data.targets import head_sizes
from volrec.errors import RunError
from volrec.evaluation.delong import auc_difference
from volrec.evaluation.draws import difference_of, owners_of, patient_draws
from volrec.evaluation.metrics import all_metrics, complete_rows, higher_is_better
from volrec.evaluation.resampling import LEVEL
from volrec.evaluation.subgroups import compared_metric, too_small
from volrec.evaluation.tables import evaluate_scores, read_columns
from volrec.inference.joining import RunTable, check_alike, some_names

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare_tables"]

Array = NDArray[np.float64]
Thresholds = Mapping[str, Mapping[str, float]]
SAME = "Compare runs that were trained on the same labels."


@dataclass(frozen=True, eq=False)
class _Side:
    """The scores of one run, under the names of the first."""

    name: str
    rows: pd.DataFrame
    truth: Array
    scores: Array
    thresholds: Thresholds | None


def compare_tables(
    first: RunTable,
    second: RunTable,
    *,
    thresholds: tuple[Thresholds | None, Thresholds | None] = (None, None),
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two runs on the studies that both have scored.

    Parameters
    ----------
    first, second : RunTable
        Score tables with target columns; the order of classes and targets does not matter. Studies are joined by name;
        where a run scores a study several times, by fold and name.
    thresholds : pair
        Of each run, as for `evaluate_scores`, under its own names.
    resamples, seed : int
        Draws of patients, the same for both runs.

    Returns
    -------
    dict
        JSON types only. ``first, second`` (names), ``task, classes, targets, studies, patients``; ``only_first,
        only_second`` (studies that the other has no score of), ``other_fold`` (studies that the runs tested in folds
        of different names), ``left_out`` (joined, but without target or score); ``warning`` (why intervals are not to
        be trusted, or empty); ``metrics``: name to ``{first, second, difference}``, the first two intervals, the
        difference (second minus first) with ``p, method`` and ``better`` (``first``, ``second``, or None where the
        interval holds zero); ``labels``: the same for each of several labels, heads or quantities; ``metric`` (the one
        that the verdict is on), ``verdict`` (``code``: ``first``, ``second``, ``none``, ``undefined``; ``sentence``).

    Raises
    ------
    RunError
        Other tasks, targets or classes; a study that the runs label differently; no study in common.
    """
    try:
        check_alike([first, second])
    except RunError as error:
        remedy = SAME if error.code == "other-task" else "Compare runs with the same targets and classes."
        raise RunError(error.problem, remedy=remedy, code=error.code) from None
    naming: dict[str, Any] = {"task": first.task, "classes": list(first.classes), "targets": list(first.targets)}
    places, missing, other_fold = _joined(first, second)
    one = _side(first, places[0], thresholds[0], naming=naming, flip=False)
    two = _side(second, places[1], thresholds[1], naming=naming, flip=_flipped(first, second))
    truth = _agreed(one, two, naming["targets"])
    usable = complete_rows(truth, one.scores, first.task) & complete_rows(truth, two.scores, first.task)
    chosen = np.asarray(usable.any(1))
    truth = np.where(usable, truth, np.nan)[chosen]
    sides = [_chosen(*pair, chosen, truth, naming) for pair in ((one, two), (two, one))]
    patients = sides[0].rows["patient"].to_numpy()
    result: dict[str, Any] = {
        "first": first.name,
        "second": second.name,
        **naming,
        "studies": int(chosen.sum()),
        "patients": len(set(patients)),
        "only_first": missing[0],
        "only_second": missing[1],
        "other_fold": other_fold,
        "left_out": int((~chosen).sum()),
        "resamples": resamples,
        "level": LEVEL,
        "warning": too_small(truth, patients, **naming),
    }
    if not result["studies"]:
        raise RunError(
            f"{first.name} and {second.name} have no study in common that has a label and two scores.",
            remedy="Compare them on other studies: --folder and --labels.",
            code="nothing-in-common",
        )
    result |= _differences(sides, truth, patients, naming=naming, resamples=resamples, seed=seed)
    result["metric"] = compared_metric(first.task)
    return result | {"verdict": _verdict(result)}


def _joined(first: RunTable, second: RunTable) -> tuple[list[list[int]], tuple[int, int], int]:
    """Return the rows of both that hold the same studies, in rising order of names, and what did not find a mate."""
    once = all(run.table["study"].astype(str).is_unique for run in (first, second))
    with_folds = "fold" in first.table and "fold" in second.table
    found = []
    for run in (first, second):
        studies = run.table["study"].astype(str).tolist()
        folds = run.table["fold"].astype(str).tolist() if with_folds and not once else [""] * len(studies)
        keys = list(zip(folds, studies, strict=True))
        twice = sorted({study for (fold, study), times in _times(keys).items() if times > 1})
        if twice:
            raise RunError(
                f"{run.name} scores study {some_names(twice)} several times.",
                remedy="Compare runs that both have a score a study, or the same folds.",
                code="study-twice",
            )
        found.append({key: row for row, key in enumerate(keys)})
    common = sorted(found[0].keys() & found[1].keys())
    if not common:
        raise RunError(
            f"{first.name} and {second.name} have no study in common: they were divided differently.",
            remedy="Compare them on studies that neither has seen: --folder and --labels.",
            code="nothing-in-common",
        )
    places = [[own[key] for key in common] for own in found]
    other = 0
    if with_folds and once:
        folds_of = [
            run.table["fold"].astype(str).to_numpy()[own] for run, own in zip((first, second), places, strict=True)
        ]
        other = int((folds_of[0] != folds_of[1]).sum())
    return places, (len(found[0]) - len(common), len(found[1]) - len(common)), other


def _times(keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    return counts


def _flipped(first: RunTable, second: RunTable) -> bool:
    """Whether the positive class of the second is the negative one of the first."""
    return first.task == "binary" and first.classes[-1] != second.classes[-1]


def _side(
    run: RunTable, places: Sequence[int], thresholds: Thresholds | None, *, naming: Mapping[str, Any], flip: bool
) -> _Side:
    rows = run.table.iloc[list(places)].reset_index(drop=True)
    rows["patient"] = rows["patient" if "patient" in rows else "study"].astype(str)
    if flip:
        theirs, ours = run.classes[-1], naming["classes"][-1]
        rows[f"score_{ours}"] = 1 - rows[f"score_{theirs}"].astype(float)
        if thresholds is not None:
            thresholds = {fold: {ours: 1 - own[theirs]} if theirs in own else {} for fold, own in thresholds.items()}
    truth, scores = read_columns(rows, **naming)
    return _Side(run.name, rows, truth, scores, thresholds)


def _cuts(rows: pd.DataFrame, used: Mapping[str, Mapping[str, float]] | None, width: int) -> Array | None:
    """Return the threshold of each study and output, (N, K), as `evaluate_scores` says that it used them."""
    if used is None:
        return None
    group = next((name for name in ("fold", "split") if name in rows), None)
    folds = [""] * len(rows) if group is None else rows[group].astype(str).tolist()
    return np.array([list(used[fold].values()) for fold in folds], dtype=np.float64).reshape(len(rows), width)


def _agreed(one: _Side, two: _Side, targets: Sequence[str]) -> Array:
    """Return the truth that both runs were measured by, of either where only one knows it."""
    both = np.isfinite(one.truth) & np.isfinite(two.truth)
    wrong = both & ~np.isclose(one.truth, two.truth, rtol=1e-6, atol=0)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        name = targets[column]
        raise RunError(
            f"study {one.rows['study'].iloc[row]}: {name} is {one.rows[name].iloc[row]} in {one.name} and "
            f"{two.rows[name].iloc[row]} in {two.name} ({int(wrong.any(1).sum())} such studies).",
            remedy=SAME,
            code="other-labels",
        )
    return np.where(np.isfinite(one.truth), one.truth, two.truth)


def _chosen(side: _Side, other: _Side, chosen: NDArray[np.bool_], truth: Array, naming: Mapping[str, Any]) -> _Side:
    """Return the studies that both can be measured on, with the labels that either knows."""
    rows = side.rows[chosen].reset_index(drop=True)
    for column, name in enumerate(naming["targets"]):
        either = side.rows[name].where(side.rows[name].notna(), other.rows[name])
        rows[name] = either[chosen].reset_index(drop=True).where(np.isfinite(truth[:, column]))
    return _Side(side.name, rows, truth, side.scores[chosen], side.thresholds)


def _differences(
    sides: Sequence[_Side],
    truth: Array,
    patients: NDArray[Any],
    *,
    naming: Mapping[str, Any],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Return every metric of both with its difference: overall, and of each of several labels."""
    task, targets = naming["task"], naming["targets"]
    heads = head_sizes(task, naming["classes"], targets)
    alone = [
        evaluate_scores(side.rows, **naming, thresholds=side.thresholds, resamples=resamples, seed=seed)
        for side in sides
    ]
    cuts = [_cuts(side.rows, found.get("thresholds"), truth.shape[1]) for side, found in zip(sides, alone, strict=True)]

    def values(weights: Array) -> list[dict[str, Array]]:
        """Return second minus first: overall, then of each label."""
        (all_one, own_one), (all_two, own_two) = (
            all_metrics(task, truth, side.scores, weights, heads=heads, thresholds=cut)
            for side, cut in zip(sides, cuts, strict=True)
        )
        pairs = [(all_one, all_two), *zip(own_one, own_two, strict=True)]
        return [{name: two[name] - one[name] for name in one} for one, two in pairs]

    point = values(np.ones((1, len(truth))))
    drawn = [values(weights) for weights in patient_draws(owners_of(patients), resamples=resamples, seed=seed)]

    def entries(place: int, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name in found[0]:
            draws = np.concatenate([*(chunk[place][name] for chunk in drawn), np.empty(0)])
            difference = difference_of(float(point[place][name][0]), draws)
            if name == "ece":  # every resample has a larger one than the studies themselves
                difference = difference_of(float(point[place][name][0]), np.empty(0)) | {
                    "reason": "no interval: resampling enlarges a calibration error, by different amounts"
                }
            column = 0 if task == "binary" else place - 1
            if name == "auc" and task in ("binary", "multilabel") and column >= 0:
                difference = _delong(truth, sides, column, patients) | {"value": difference["value"]}
            out[name] = {
                "first": found[0][name],
                "second": found[1][name],
                "difference": difference | {"better": _better(name, difference)},
            }
        return out

    result: dict[str, Any] = {"metrics": entries(0, [found["metrics"] for found in alone])}
    if len(targets) > 1:
        result["labels"] = {
            name: {
                "studies": alone[0]["labels"][name]["studies"],
                "metrics": entries(place + 1, [found["labels"][name]["metrics"] for found in alone]),
            }
            for place, name in enumerate(targets)
        }
    return result


def _delong(truth: Array, sides: Sequence[_Side], column: int, patients: NDArray[Any]) -> dict[str, Any]:
    known = np.isfinite(truth[:, column])
    scores = [side.scores[known, column] for side in sides]
    found = auc_difference(truth[known, column], scores[0], scores[1], patients=patients[known], level=LEVEL)
    entry = {key: found.get(key) for key in ("low", "high", "p", "method")}
    return entry | ({"reason": found["reason"]} if found.get("reason") else {})


def _better(name: str, difference: Mapping[str, Any]) -> str | None:
    low, high = difference["low"], difference["high"]
    if low is None or high is None or low <= 0 <= high:
        return None
    return "second" if (low > 0) == higher_is_better(name) else "first"


def _verdict(result: Mapping[str, Any]) -> dict[str, str]:
    """Say in a sentence what the comparison shows."""
    first, second, metric = result["first"], result["second"], result["metric"]
    found = result["metrics"][metric]["difference"]
    shown = {"auc": "AUC", "mae": "MAE"}[metric]
    on = f"on {result['studies']} studies of {result['patients']} patients"
    if found["value"] is None or found["low"] is None:
        why = found.get("reason") or result["metrics"][metric]["first"].get("reason") or "not defined on these studies"
        return {"code": "undefined", "sentence": f"{first} and {second} cannot be compared by {shown} {on}: {why}."}
    sign = -1 if found["value"] < 0 else 1
    low, high = sorted((sign * found["low"], sign * found["high"]))
    size = f"{_number(abs(found['value']))} [{_number(low)}, {_number(high)}]"
    head = f"{second}'s {shown} is {'higher' if sign > 0 else 'lower'} by {size} {on}"
    if found["value"] == 0:
        head = f"{second}'s {shown} is the same as that of {first}, 0 [{_number(low)}, {_number(high)}], {on}"
    code, better = "none", found["better"]
    if better is None:
        tail = "no difference is shown, which does not prove that there is none"
    else:
        code = better
        tail = f"a difference is shown, in favour of {first if better == 'first' else second}"
    p = "" if found["p"] is None else " (p < 0.001)" if found["p"] < 0.001 else f" (p = {found['p']:.2g})"
    caution = f" These are few: {result['warning']}; the interval is not to be trusted." if result["warning"] else ""
    return {"code": code, "sentence": f"{head}{p}: {tail}.{caution}"}


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
