"""Intervals of an AUC and of the difference of two, from the scores alone: DeLong's variance, patients kept whole.

An AUC is the share of pairs (one study with the finding, one without) that the scores put in the right order. Its
variance comes from the share of each study by itself, the structural components (DeLong, DeLong and Clarke-Pearson:
Comparing the areas under two or more correlated receiver operating characteristic curves, Biometrics 1988), which are
differences of midranks (Sun and Xu: Fast implementation of DeLong's algorithm, IEEE Signal Processing Letters 2014).
Studies of one patient are not independent; their components are added first (Obuchowski: Nonparametric analysis of
clustered ROC curve data, Biometrics 1997).

With few patients, or an AUC near 1, value plus or minus 1.96 standard errors holds the truth far less often than
95 % of the time (`tests/performance/bench_coverage.py`), and for an AUC of 1 it is a point. The interval is therefore
the set of AUCs that the value does not contradict (score interval): Hanley and McNeil's variance as a function of the
AUC, as in method 5 of Newcombe (Confidence intervals for an effect size measure based on the Mann-Whitney statistic,
part 2, Statistics in Medicine 2006), times the ratio of DeLong's variance to it at the value seen. That ratio is drawn
towards 1 where patients are few; with many the interval is DeLong's. The interval of a difference combines the two
score intervals with their correlation (Zou and Donner: Construction of confidence limits about effect measures,
Statistics in Medicine 2008); z and p are DeLong's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from volrec.errors import ConfigError

__all__ = ["auc_difference", "auc_interval", "auc_limits"]

Array = NDArray[np.float64]

# Patients that the prior knowledge counts for: Hanley and McNeil's variance, and two runs without correlation. Chosen
# by coverage with 2 to 100 patients on the smaller side (tests/performance/bench_coverage.py).
_PRIOR_VARIANCE = 5
_PRIOR_CORRELATION = 2
_STEPS = 60
# What rounding leaves of a variance of 0.
_NONE = 1e-15


class _Areas(NamedTuple):
    """AUCs of K scores on the same studies, their covariance, and patients with and without the finding."""

    values: Array
    covariance: Array
    with_finding: int
    without: int


def auc_interval(
    truth: ArrayLike, scores: ArrayLike, *, patients: ArrayLike | None = None, level: float = 0.95
) -> dict[str, Any]:
    """Return the AUC of one score with its interval.

    Parameters
    ----------
    truth : array of shape (N,)
        1 with the finding, 0 without. Rows with NaN in truth or scores are left out.
    scores : array of shape (N,)
        Higher where the finding is more likely.
    patients : array of shape (N,), optional
        Whose study each row is; without it every row is a patient.
    level : float
        Of the interval, between 0 and 1.

    Returns
    -------
    dict
        ``value, low, high, method``: "DeLong", or "Newcombe" where the scores show no variance (an AUC of 1, a single
        patient on one side). All None with a ``reason`` where a class is missing; without an interval for one patient.
    """
    yes, (own,), owners = _rows(truth, [scores], patients, level, "auc_interval")
    if yes.all() or not yes.any():
        return {"value": None, "low": None, "high": None, "reason": f"only one class among {len(yes)} studies"}
    areas = _areas(yes, [own], owners)
    value = float(areas.values[0])
    if owners.max() == 0:
        return {"value": value, "low": None, "high": None, "reason": "no interval: there is a single patient"}
    variance = float(areas.covariance[0, 0])
    low, high = auc_limits(value, areas.with_finding, areas.without, variance=variance, level=level)
    return {"value": value, "low": low, "high": high, "method": "DeLong" if variance > _NONE else "Newcombe"}


def auc_difference(
    truth: ArrayLike, first: ArrayLike, second: ArrayLike, *, patients: ArrayLike | None = None, level: float = 0.95
) -> dict[str, Any]:
    """Return by how much the AUC of the second score exceeds that of the first on the same studies.

    Parameters
    ----------
    truth, patients, level
        As for `auc_interval`.
    first, second : array of shape (N,)
        Two scores of each study; rows with NaN in either are left out.

    Returns
    -------
    dict
        ``difference`` (second minus first), ``low, high, z, p, method``; z and p (two-sided) are None where neither
        score shows variance. All None with a ``reason`` where a class is missing, or there is a single patient. With
        few patients the interval is the more careful of the two: p below 5 % while the interval holds 0 happens.
    """
    empty: dict[str, Any] = dict.fromkeys(("difference", "low", "high", "z", "p"))
    yes, scores, owners = _rows(truth, [first, second], patients, level, "auc_difference")
    if yes.all() or not yes.any():
        return empty | {"reason": f"only one class among {len(yes)} studies"}
    areas = _areas(yes, scores, owners)
    before, after = areas.values.tolist()
    change = after - before
    if owners.max() == 0:
        return empty | {"difference": change, "reason": "no interval: there is a single patient"}
    found = empty | {"difference": change, "method": "DeLong"}
    if np.array_equal(_midranks(scores[0]), _midranks(scores[1])):  # the same order of studies: nothing can differ
        return found | {"low": 0.0, "high": 0.0, "z": 0.0, "p": 1.0}
    (one, both), (_, two) = areas.covariance.tolist()
    spread = one + two - 2 * both
    if spread > _NONE:
        z = change / math.sqrt(spread)
        found |= {"z": z, "p": float(2 * ndtr(-abs(z)))}
    elif change == 0:
        found |= {"z": 0.0, "p": 1.0}
    fewest = min(areas.with_finding, areas.without)
    alike = both / math.sqrt(one * two) * fewest / (fewest + _PRIOR_CORRELATION) if min(one, two) > _NONE else 0.0
    limits = [
        auc_limits(value, areas.with_finding, areas.without, variance=variance, level=level)
        for value, variance in ((before, one), (after, two))
    ]
    down = _combined(after - limits[1][0], limits[0][1] - before, alike)
    up = _combined(limits[1][1] - after, before - limits[0][0], alike)
    return found | {"low": max(-1.0, change - down), "high": min(1.0, change + up)}


def auc_limits(
    value: float, with_finding: int, without: int, *, variance: float = math.nan, level: float = 0.95
) -> tuple[float, float]:
    """Return the ends of the score interval of an AUC.

    Parameters
    ----------
    value : float
        AUC seen.
    with_finding, without : int
        Patients on each side, at least 1.
    variance : float
        Of the AUC, by DeLong; NaN or 0 where the scores show none, for Newcombe's interval.
    level : float
        Of the interval.
    """
    ratio = 1.0
    if variance > _NONE and 0 < value < 1:
        fewest = min(with_finding, without)
        seen = variance / _hanley(value, with_finding, without)
        ratio = (fewest * seen + _PRIOR_VARIANCE) / (fewest + _PRIOR_VARIANCE)
    reach = float(ndtri((1 + level) / 2)) * math.sqrt(ratio)
    ends = []
    for edge in (0.0, 1.0):
        inside, outside = value, edge
        for _ in range(_STEPS):
            middle = (inside + outside) / 2
            if abs(middle - value) <= reach * math.sqrt(_hanley(middle, with_finding, without)):
                inside = middle
            else:
                outside = middle
        ends.append(edge if value == edge else inside)
    return ends[0], ends[1]


def _hanley(area: float, with_finding: int, without: int) -> float:
    """Variance of an AUC for exponential scores (Hanley and McNeil 1982), both group sizes as their mean (Newcombe)."""
    more = (with_finding + without) / 2 - 1
    pairs = with_finding * without
    return max(0.0, area * (1 - area) * (1 + more * (1 - area) / (2 - area) + more * area / (1 + area)) / pairs)


def _areas(yes: NDArray[np.bool_], scores: list[Array], owners: NDArray[np.intp]) -> _Areas:
    above, below = zip(*(_components(yes, own) for own in scores), strict=True)
    values = np.array([own.mean() for own in above])
    count = int(owners.max()) + 1
    sums = []
    for parts, side in ((above, yes), (below, ~yes)):
        excess = [np.bincount(owners[side], part - value, count) for part, value in zip(parts, values, strict=True)]
        sums.append(np.stack(excess, axis=1))
    positives, negatives = int(yes.sum()), int((~yes).sum())
    with_finding, without = len(np.unique(owners[yes])), len(np.unique(owners[~yes]))
    if min(with_finding, without) < 2:
        return _Areas(values, np.full((len(scores), len(scores)), np.nan), with_finding, without)
    own = with_finding / (with_finding - 1) / positives**2 * sums[0].T @ sums[0]
    other = without / (without - 1) / negatives**2 * sums[1].T @ sums[1]
    shared = count / (count - 1) / (positives * negatives) * sums[0].T @ sums[1]
    return _Areas(values, own + other + shared + shared.T, with_finding, without)


def _components(yes: NDArray[np.bool_], scores: Array) -> tuple[Array, Array]:
    """Return for each study with the finding the share of those without below it, and for those the share above."""
    ranks = _midranks(scores)
    negatives = len(yes) - yes.sum()
    above = (ranks[yes] - _midranks(scores[yes])) / negatives
    below = 1 - (ranks[~yes] - _midranks(scores[~yes])) / yes.sum()
    return above, below


def _midranks(values: Array) -> Array:
    """Return ranks from 1, those of equal values as their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[place])


def _combined(own: float, other: float, alike: float) -> float:
    return math.sqrt(max(0.0, own**2 - 2 * alike * own * other + other**2))


def _rows(
    truth: ArrayLike, scores: list[ArrayLike], patients: ArrayLike | None, level: float, name: str
) -> tuple[NDArray[np.bool_], list[Array], NDArray[np.intp]]:
    """Return what is known of truth, scores and the patients' numbers, all of one length."""
    if not 0 < level < 1:
        raise ConfigError(
            f"The 'level' parameter of {name} must be a float in (0, 1). Got {level!r} instead.",
            remedy="Use 0.95 for a 95 % interval.",
            code="parameter",
        )
    columns = [np.asarray(column, dtype=np.float64).reshape(-1) for column in (truth, *scores)]
    owners = np.arange(len(columns[0])) if patients is None else np.asarray(patients).astype(str).reshape(-1)
    lengths = [len(column) for column in (*columns, owners)]
    if len(set(lengths)) > 1:
        raise ConfigError(
            f"truth, scores and patients of {name} have {', '.join(map(str, lengths))} rows.",
            remedy="Give one row a study to each.",
            code="parameter",
        )
    known = np.isfinite(np.stack(columns)).all(0)
    _, numbers = np.unique(owners[known], return_inverse=True)
    return columns[0][known] > 0.5, [column[known] for column in columns[1:]], numbers
