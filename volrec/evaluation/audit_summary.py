"""From what a network said under every condition to numbers with intervals: which window counts, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volrec.evaluation.audit_conditions import AS_IS, FIXED, KINDS, SIZES
from volrec.evaluation.audit_responses import Responses, Scan
from volrec.evaluation.audit_verdict import Facts, judge
from volrec.evaluation.delong import auc_interval
from volrec.evaluation.metrics import all_metrics, complete_rows
from volrec.inference.consensus import split_heads

__all__ = ["Audited", "Chosen", "choose_windows", "headline", "summarise"]

Array = NDArray[np.float64]

_LEVEL = 0.95
_LEAST_DEFINED = 0.5  # below this share of defined resamples their percentiles say little
_FARTHEST = 30.0  # logits beyond are certainty; pooled probabilities of 0 and 1 would be infinitely far


@dataclass(frozen=True, eq=False)
class Audited:
    """A study that was audited.

    Attributes
    ----------
    study, patient, fold : str
        Names; `fold` is the split whose member scored it, empty where all members did.
    target : ndarray
        (K,) float64.
    responses : Responses
        What the network said.
    """

    study: str
    patient: str
    fold: str
    target: np.ndarray
    responses: Responses


@dataclass(frozen=True, eq=False)
class Chosen:
    """The window of one length that counts for each study.

    Attributes
    ----------
    slices : int
        Its length; shorter studies are taken whole.
    scores : ndarray
        (N, K').
    firsts : ndarray
        (N,) int64, from the study's first own slice.
    """

    slices: int
    scores: Array
    firsts: NDArray[np.int64]


def headline(task: str) -> str:
    """Return the metric that the audit is about: AUC for classes, the correlation for quantities.

    Both compare what a network says of one study with what it says of others, whatever its scale: a network that is
    shown less may say everything in a smaller range, and has not lost information by that. R² would call it so; it is
    given beside the correlation.
    """
    return "correlation" if task == "regression" else "auc"


def choose_windows(audited: Sequence[Audited], size: int, *, task: str, heads: Sequence[int] = ()) -> Chosen:
    """Choose the most informative window of `size` slices of each study, without its label.

    It is the window on which the network, **seeing it alone**, departs furthest from what it says of a typical window
    of that length: the median over the windows of a study, then over studies. Distances are taken between logits
    (values of a regression; centred within each set of exclusive classes, whose sum is free), each output divided by
    its median absolute deviation. Of equal ones the nearest to the middle of the study is taken.

    The rule is the same for all studies, knows no direction (positive and negative evidence count alike), and looks at
    nothing but windows of this length. A place that was found with more context, say where the score of the whole
    study falls when it is covered, would carry what that context says into the score of a single slice; the place
    where the score agrees most with that of the whole would do so completely. Scores that hold nothing stay without
    anything: their AUC is 0.5 on average.

    Parameters
    ----------
    audited : sequence of Audited
        All studies.
    size : int
        Slices of the window.
    task : str
        As in the cohort.
    heads : sequence of int
        Outputs of each head of a multihead task.

    Returns
    -------
    Chosen
        A study without windows of this length is as it is.
    """
    scans = {number: one.responses.scans[size] for number, one in enumerate(audited) if size in one.responses.scans}
    values = {number: _comparable(scan.logits, task, heads) for number, scan in scans.items()}
    scores = np.stack([one.responses.fixed[AS_IS] for one in audited]).astype(np.float64)
    firsts = np.zeros(len(audited), dtype=np.int64)
    if values:
        typical = np.median([np.median(own, axis=0) for own in values.values()], axis=0)
        spread = _spread(np.concatenate(list(values.values())) - typical)
        for number, own in values.items():
            distance = np.sqrt((((own - typical) / spread) ** 2).sum(axis=1))
            place = _furthest(distance, scans[number], (audited[number].responses.slices - size) / 2)
            scores[number], firsts[number] = scans[number].scores[place], scans[number].firsts[place]
    return Chosen(size, scores, firsts)


def summarise(
    audited: Sequence[Audited],
    *,
    task: str,
    heads: Sequence[int] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, Any], list[Chosen]]:
    """Return conditions, context and verdict with intervals over patients: DeLong's for the AUC, else by bootstrap.

    The same draws of patients serve every condition, so that differences from "as it is" are paired.

    Returns
    -------
    result : dict
        JSON types: ``metric, studies, patients, left_out, slices, spacing, conditions, context, verdict``.
    chosen : list of Chosen
        The windows, the shortest first.
    """
    truth = np.stack([np.asarray(one.target, dtype=np.float64).reshape(-1) for one in audited])
    lengths = np.array([one.responses.slices for one in audited])
    whole, spacing = float(np.median(lengths)), float(np.median([one.responses.millimetres for one in audited]))
    sizes = [size for size in SIZES if size == 1 or size < whole]
    chosen = [choose_windows(audited, size, task=task, heads=heads) for size in sizes]
    table = {name: np.stack([one.responses.fixed[name] for one in audited]).astype(np.float64) for name in FIXED}
    usable = complete_rows(truth, table[AS_IS], task).any(1)
    rows = np.flatnonzero(usable)
    _, patients = np.unique(np.array([one.patient for one in audited])[rows], return_inverse=True)
    count = int(patients.max()) + 1 if len(rows) else 0
    weights = np.ones((1, len(rows)))
    if count > 1:
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        weights = np.concatenate([weights, drawn[:, patients].astype(np.float64)])

    def metrics(scores: Array) -> dict[str, Array]:
        return _metrics(task, truth[rows], scores[rows], weights, heads)

    name = headline(task)
    found = {condition: metrics(scores) for condition, scores in table.items()}
    reference = found[AS_IS][name]

    def entry(
        condition: str, kind: str, slices: int | None, values: Mapping[str, Array], scores: Array
    ) -> dict[str, Any]:
        shown = {key: interval(each) for key, each in values.items()}
        if task == "binary" and resamples:  # as the report has it beside: an AUC of 1 has an interval, too
            shown["auc"] = auc_interval(truth[rows, 0], scores[rows, 0], patients=patients)
        return {
            "name": condition,
            "kind": kind,
            "slices": slices,
            "metrics": shown,
            "difference": interval(values[name] - reference),
        }

    conditions = [entry(AS_IS, KINDS[AS_IS], None, found[AS_IS], table[AS_IS])]
    context = []
    for window in chosen:
        label = "1 slice" if window.slices == 1 else f"{window.slices} slices"
        kind = "slice" if window.slices == 1 else "window"
        one = entry(label, kind, window.slices, metrics(window.scores), window.scores)
        conditions.append(one)
        context.append(_point(one, name, window.slices, spacing))
    for condition in FIXED:
        if condition != AS_IS:
            conditions.append(
                entry(
                    condition,
                    KINDS[condition],
                    1 if KINDS[condition] == "slice" else None,
                    found[condition],
                    table[condition],
                )
            )
    # Of as many slices as the middle study has; what is shorter or longer is whole too.
    context.append({**_point(conditions[0], name, round(whole), spacing), "whole": True})
    by_name = {one["name"]: one for one in conditions}
    facts = Facts(
        metric=name,
        studies=len(rows),
        patients=count,
        least=_least(task, truth[rows], heads),
        whole=by_name[AS_IS]["metrics"][name],
        single=by_name["1 slice"]["metrics"][name],
        loss=by_name["1 slice"]["difference"],
        shuffled=by_name["shuffled"]["metrics"][name],
        shuffling=by_name["shuffled"]["difference"],
        ignores_order=all(one.responses.ignores_order for one in audited),
        context=context,
    )
    result = {
        "metric": name,
        "studies": len(rows),
        "patients": count,
        "left_out": len(audited) - len(rows),
        "slices": {"median": whole, "least": int(lengths.min()), "most": int(lengths.max())},
        "spacing": spacing,
        "conditions": conditions,
        "context": context,
        "verdict": judge(facts),
    }
    return result, chosen


def interval(values: Array) -> dict[str, Any]:
    """Return ``{value, low, high}`` of a value and its resamples, (1 + R,): percentiles, None with a reason."""
    found: dict[str, Any] = {"value": None, "low": None, "high": None, "method": "bootstrap over patients"}
    if not np.isfinite(values[0]):
        return {**found, "reason": "not defined on these studies"}
    found["value"] = float(values[0])
    drawn = values[1:]
    defined = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return {**found, "reason": "no interval: no resamples were drawn, or there is a single patient"}
    if len(defined) < _LEAST_DEFINED * len(drawn):
        return {**found, "reason": f"no interval: defined in {len(defined)} of {len(drawn)} resamples only"}
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return {**found, "low": float(low), "high": float(high)}


def correlations(truth: Array, scores: Array, weights: Array) -> Array:
    """Return Pearson's correlation (R,) of (N,) and (N,) under weights (R, N); 0 where the scores are all the same.

    What says the same of every study tells nothing; NaN is left for targets that are constant.
    """
    total = weights.sum(1)
    # Centred first: moments of large values would lose digits.
    x, y = truth - truth.mean(), scores - scores.mean()
    mean_x, mean_y = weights @ x / total, weights @ y / total
    cov = weights @ (x * y) / total - mean_x * mean_y
    var_x, var_y = weights @ x**2 / total - mean_x**2, weights @ y**2 / total - mean_y**2
    still = var_y <= 1e-12 * max(float((y**2).mean()), 1e-30)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = cov / np.sqrt(np.clip(var_x, 0, None) * np.clip(var_y, 0, None))
    found[still] = 0.0
    found[var_x <= 1e-12 * max(float((x**2).mean()), 1e-30)] = np.nan
    return np.clip(found, -1.0, 1.0)


def _metrics(task: str, truth: Array, scores: Array, weights: Array, heads: Sequence[int]) -> dict[str, Array]:
    whole, _ = all_metrics(task, truth, scores, weights, heads=heads)
    if task != "regression":
        return {name: whole[name] for name in ("auc", "average_precision")}
    columns = []
    for index in range(truth.shape[1]):
        known = np.isfinite(truth[:, index]) & np.isfinite(scores[:, index])
        if known.any():
            columns.append(correlations(truth[known, index], scores[known, index], weights[:, known]))
    mean = np.mean(columns, axis=0) if columns else np.full(len(weights), np.nan)
    return {"correlation": mean, "r2": whole["r2"], "mae": whole["mae"]}


def _comparable(logits: Array, task: str, heads: Sequence[int]) -> Array:
    """Return logits (P, K') whose distances mean something."""
    if task == "regression":
        return logits
    bounded = np.clip(logits, -_FARTHEST, _FARTHEST)
    if task not in ("multiclass", "multihead"):
        return bounded
    parts = split_heads(bounded, heads) if task == "multihead" else [bounded]
    return np.concatenate([part - part.mean(axis=1, keepdims=True) for part in parts], axis=1)


def _spread(deviations: Array) -> Array:
    """Return the median absolute deviation of each output; the standard deviation, or one, where that is nothing."""
    robust, plain = np.median(np.abs(deviations), axis=0), deviations.std(axis=0)
    robust = np.where(robust > 1e-6 * np.maximum(plain, 1e-30), robust, plain)
    return np.where(robust > 0, robust, 1.0)


def _furthest(distance: Array, scan: Scan, middle: float) -> int:
    furthest = np.flatnonzero(distance >= distance.max() * (1 - 1e-9))
    return int(furthest[np.argmin(np.abs(scan.firsts[furthest] - middle))])


def _point(condition: Mapping[str, Any], name: str, slices: int, spacing: float) -> dict[str, Any]:
    value = condition["metrics"][name]
    return {
        "slices": slices,
        "millimetres": slices * spacing,
        "value": value["value"],
        "low": value["low"],
        "high": value["high"],
        "difference": condition["difference"],
        "whole": False,
    }


def _least(task: str, truth: Array, heads: Sequence[int]) -> int | None:
    """Return the studies of the rarest class (of the target where it is rarest); None for quantities."""
    if task == "regression" or not len(truth):
        return None
    found = []
    for index, column in enumerate(truth.T):
        known = column[np.isfinite(column)].astype(np.int64)
        classes = heads[index] if heads else 2 if task in ("binary", "multilabel") else int(known.max(initial=1)) + 1
        found.append(int(np.bincount(known, minlength=classes).min()))
    return min(found, default=0)
