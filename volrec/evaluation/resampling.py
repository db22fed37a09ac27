"""Metrics in resamples of patients, and from these, or without them, the interval of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volrec.evaluation.delong import auc_interval
from volrec.evaluation.intervals import bootstrap_interval, calibration_interval, edge_interval, proportion_interval
from volrec.evaluation.metrics import all_metrics, complete_rows, metric_names
from volrec.inference.consensus import split_heads

__all__ = ["LEVEL", "Draws", "Scored", "plain", "resampled", "with_intervals"]

Array = NDArray[np.float64]

LEVEL = 0.95
"""Of every interval."""

# A chunk of resamples holds at most this many weights (32 MB), whatever the number of studies.
_CHUNK = 4_000_000
# Below this share of resamples in which a metric is defined, their percentiles say little.
_LEAST_DEFINED = 0.5
# Left out one after another for the skewness of a metric; more patients than these go in groups.
_GROUPS = 200
_PROPORTIONS = ("accuracy", "sensitivity", "specificity")
# Of all studies, whichever side they are on.
_OF_ALL = ("accuracy", "brier", "ece")


@dataclass(frozen=True)
class Scored:
    """Rows with target and score: what is evaluated, and whose.

    Attributes
    ----------
    task : str
        What the targets are.
    truth, scores : array of shape (N, K), (N, K')
        As for `volrec.evaluation.metrics.all_metrics`.
    patients : array of shape (N,)
        Whose row it is, as numbers.
    thresholds : array of shape (N, K), optional
        From where on each row of each binary output is a yes.
    heads : sequence of int
        Outputs of each head of a multihead task.
    """

    task: str
    truth: Array
    scores: Array
    patients: NDArray[np.intp]
    thresholds: Array | None = None
    heads: Sequence[int] = ()

    def values(self, weights: Array) -> tuple[dict[str, Array], list[dict[str, Array]]]:
        """Return every metric under weights (R, N): together, and of each column."""
        return all_metrics(self.task, self.truth, self.scores, weights, heads=self.heads, thresholds=self.thresholds)

    def only(self, rows: NDArray[np.bool_]) -> Scored:
        """Return some of the rows."""
        cut = None if self.thresholds is None else self.thresholds[rows]
        return Scored(self.task, self.truth[rows], self.scores[rows], self.patients[rows], cut, self.heads)


@dataclass(frozen=True)
class Draws:
    """A metric in resamples of patients (R,), and with each patient, or group of them, left out (J,)."""

    drawn: Array
    left_out: Array


def resampled(
    scored: Scored, resamples: int, rng: np.random.Generator
) -> tuple[dict[str, Draws], list[dict[str, Draws]]]:
    """Return every metric in `resamples` draws of patients with replacement, and with patients left out."""
    _, owners = np.unique(scored.patients, return_inverse=True)
    count, names = len(np.unique(owners)), metric_names(scored.task)
    width = 1 if scored.task == "multiclass" else scored.truth.shape[1]
    overall: list[dict[str, Array]] = []
    columns: list[list[dict[str, Array]]] = []
    step = max(1, _CHUNK // max(1, len(owners)))
    resamples = resamples if count > 1 else 0
    groups = min(count, _GROUPS) if resamples else 0

    def add(weights: Array) -> None:
        one, several = scored.values(weights)
        overall.append(one)
        columns.append(several)

    for start in range(0, resamples, step):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start))
        add(drawn[:, owners].astype(np.float64))
    for start in range(0, groups, step):
        gone = np.arange(start, min(start + step, groups))
        add((owners % groups != gone[:, None]).astype(np.float64))

    def joined(parts: list[dict[str, Array]]) -> dict[str, Draws]:
        whole = {name: np.concatenate([part[name] for part in parts] or [np.empty(0)]) for name in names}
        return {name: Draws(values[:resamples], values[resamples:]) for name, values in whole.items()}

    return joined(overall), [joined([part[index] for part in columns]) for index in range(width)]


def with_intervals(
    point: dict[str, Array],
    draws: dict[str, Draws],
    why: dict[str, str] | str,
    scored: Scored,
    labels: Sequence[dict[str, dict[str, Any]]] = (),
    *,
    folds: Sequence[Scored] = (),
) -> dict[str, dict[str, Any]]:
    """Return value and interval of every metric; means over `labels` and over `folds` have theirs by bootstrap.

    Parameters
    ----------
    point : dict
        From name to an array of one value, on the studies as they are.
    draws : dict
        From name to the same in resamples.
    why : str, or dict of str
        Why a metric may be undefined, for all or by name.
    scored : Scored
        The studies.
    labels : sequence
        Of a mean over several: the metrics of each with their intervals.
    folds : sequence of Scored
        Of a mean over folds: the studies of each.
    """
    out: dict[str, dict[str, Any]] = {}
    single = not folds and not labels
    for name, values in point.items():
        reason = why if isinstance(why, str) else why.get(name, "")
        entry: dict[str, Any] = {"value": plain(values[0]), "low": None, "high": None}
        drawn = draws[name].drawn
        defined = drawn[~np.isnan(drawn)]
        direct = _direct(name, scored) if single and entry["value"] is not None and len(drawn) else None
        if entry["value"] is None:
            entry["reason"] = reason or "not defined on these studies"
        elif len(drawn) == 0:
            entry["reason"] = "no interval: no resamples were drawn, or there is a single patient"
        elif direct is not None:
            entry |= direct
        elif name == "ece":
            ends = _mean_ends([end for each in folds or [scored] if (end := _calibration_ends(each)) is not None])
            entry |= _at_edge(name, entry["value"], ends or (np.nan, np.nan), "bins", scored, labels)
        elif len(defined) < _LEAST_DEFINED * len(drawn):
            entry["reason"] = f"no interval: defined in {len(defined)} of {len(drawn)} resamples only"
        else:
            entry |= _bootstrapped(name, entry["value"], Draws(defined, draws[name].left_out), scored, labels)
        out[name] = entry
    return out


def _direct(name: str, scored: Scored) -> dict[str, Any] | None:
    """Return the interval of what needs no resamples: the AUC of a yes/no question, and proportions."""
    if scored.task not in {"binary", "multilabel", "multiclass"}:
        return None
    known = complete_rows(scored.truth, scored.scores, scored.task)[:, 0]
    truth, scores, patients = scored.truth[known, 0], scored.scores[known], scored.patients[known]
    if scored.task == "multiclass":
        if name != "accuracy":
            return None
        right = scores.argmax(1) == truth
    elif name == "auc":
        found = auc_interval(truth, scores[:, 0], patients=patients, level=LEVEL)
        return {key: found[key] for key in ("low", "high", "method")} if found["low"] is not None else None
    elif name in _PROPORTIONS:
        cut = np.full(len(truth), 0.5) if scored.thresholds is None else scored.thresholds[known, 0]
        right = (scores[:, 0] >= cut) == (truth > 0.5)
        side = {"accuracy": truth >= 0, "sensitivity": truth > 0.5, "specificity": truth <= 0.5}[name]
        right, patients = right[side], patients[side]
    else:
        return None
    low, high = proportion_interval(right, patients, level=LEVEL)
    return {"low": low, "high": high, "method": "Wilson"}


def _bootstrapped(
    name: str, value: float, draws: Draws, scored: Scored, labels: Sequence[dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    patients = len(np.unique(scored.patients))
    ends = bootstrap_interval(value, draws.drawn, draws.left_out, patients=patients, level=LEVEL)
    return _at_edge(name, value, ends, "bootstrap", scored, labels)


def _at_edge(
    name: str,
    value: float,
    ends: tuple[float, float],
    method: str,
    scored: Scored,
    labels: Sequence[dict[str, dict[str, Any]]],
) -> dict[str, Any]:
    """Return an interval as it is, or from the count of patients where it is a point at 0 or 1."""
    low, high = ends
    if low == high == value:
        edge = _label_edges(name, labels) if labels else _edges(name, value, scored)
        if edge is not None:
            method, (low, high) = "count of patients", edge
    return {"low": plain(low), "high": plain(high), "method": method}


def _calibration_ends(scored: Scored) -> tuple[float, float] | None:
    """Return the interval of the calibration error, as a mean over outputs or heads where there are several."""
    known = complete_rows(scored.truth, scored.scores, scored.task)
    if scored.task in {"multiclass", "multihead"}:
        parts = split_heads(scored.scores, scored.heads) if scored.heads else [scored.scores]
        said = [(part.max(1), part.argmax(1)) for part in parts]
    else:
        said = [(scored.scores[:, column], np.ones(len(known))) for column in range(known.shape[1])]
    ends = []
    for column, (chance, called) in enumerate(said):
        rows = known[:, column]
        if rows.any():
            right = (scored.truth[:, column] == called)[rows]
            ends.append(calibration_interval(right, chance[rows], scored.patients[rows], level=LEVEL))
    return _mean_ends(ends)


def _label_edges(name: str, labels: Sequence[dict[str, dict[str, Any]]]) -> tuple[float, float] | None:
    """Return the mean of the labels' ends, since the labels of a study are not independent."""
    ends = [(each[name]["low"], each[name]["high"]) for each in labels if each[name]["low"] is not None]
    return _mean_ends(ends)


def _edges(name: str, value: float, scored: Scored) -> tuple[float, float] | None:
    """Return the interval of a metric at 0 or 1 from the patients behind it, as a mean over outputs or classes."""
    if scored.task == "regression":
        return None
    several = scored.task in {"multiclass", "multihead"}
    known = complete_rows(scored.truth, scored.scores, scored.task)
    ends = []
    for column in range(known.shape[1]):
        rows = known[:, column]
        truth, owners = scored.truth[rows, column], scored.patients[rows]
        if name in _OF_ALL:
            questions = [np.ones(len(truth), dtype=bool)]
        else:
            questions = [truth == one for one in np.unique(truth)] if several else [truth > 0.5]
        asked = "sensitivity" if several and name == "balanced_accuracy" else name
        for side in questions:
            counts = {"with_finding": len(np.unique(owners[side])), "without": len(np.unique(owners[~side]))}
            edge = edge_interval(asked, value, **counts, level=LEVEL)
            # The squared differences of classes add up to twice those of one yes/no question.
            ends += [] if edge is None else [tuple((2 if several and name == "brier" else 1) * end for end in edge)]
    return _mean_ends(ends)


def _mean_ends(ends: Sequence[tuple[float, ...]]) -> tuple[float, float] | None:
    if not ends:
        return None
    low, high = np.mean(ends, axis=0).tolist()
    return low, high


def plain(value: Any) -> float | None:
    """Return a number for JSON, None for what is not finite."""
    return float(value) if np.isfinite(value) else None
