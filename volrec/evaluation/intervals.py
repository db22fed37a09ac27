"""Intervals of what is counted or averaged over studies: proportions, bootstrap, and what to do at 0 and 1.

Proportions (accuracy, sensitivity, specificity) get Wilson's score interval (Probable inference, the law of
succession, and statistical inference, 1927) at the number of independent studies that the patients are worth. The
calibration error, which noise can only raise, has an interval of its own. All else gets the bootstrap interval BCa
(Efron: Better bootstrap confidence intervals, 1987) with the tails of the t distribution for few patients (Hesterberg:
What teachers should know about the bootstrap, The American Statistician 2015). How often they hold the truth:
`tests/performance/bench_coverage.py`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from volrec.evaluation.delong import auc_limits
from volrec.evaluation.weighted import BINS, bin_of

__all__ = ["bootstrap_interval", "calibration_interval", "edge_interval", "proportion_interval", "wilson"]

Array = NDArray[np.float64]

# Patients that full agreement of the studies of a patient counts for, before the studies themselves are asked.
_PRIOR_PATIENTS = 5
_OF_ALL = frozenset({"accuracy", "brier", "ece"})


def wilson(share: float, size: float, *, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a share seen in `size` independent studies (above 0, need not be whole)."""
    z = float(ndtri((1 + level) / 2))
    middle = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * math.sqrt(max(0.0, share * (1 - share) / size + z**2 / (4 * size**2)))
    # At 0 and 1 the end is exact; rounding must not move it.
    return 0.0 if share <= 0 else max(0.0, middle - half), 1.0 if share >= 1 else min(1.0, middle + half)


def proportion_interval(
    right: NDArray[np.bool_], patients: NDArray[np.intp], *, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval of the share of rows that are right, patients whole.

    Parameters
    ----------
    right : array of shape (N,), N at least 1
        Whether each row counts.
    patients : array of shape (N,)
        Whose row it is, as numbers.
    level : float
        Of the interval.

    Notes
    -----
    Where patients have several rows, these count as fewer independent ones by the design effect: variance of the
    share over patients to that over rows (Korn and Graubard 1998), drawn towards that of patients whose rows agree
    fully. At a share of 0 or 1 the patients count.
    """
    _, owners, rows = np.unique(patients, return_inverse=True, return_counts=True)
    count, total, share = len(rows), len(right), float(right.mean())
    size = float(total)
    if count < total:
        effect = agreeing = float((rows**2).sum() / total)
        if 0 < share < 1 and count > 1:
            excess = np.bincount(owners, right - share, count)
            by_patient = count / (count - 1) * float((excess**2).sum()) / total**2
            seen = by_patient / (share * (1 - share) / (total - 1))
            effect = (count * seen + _PRIOR_PATIENTS * agreeing) / (count + _PRIOR_PATIENTS)
        size = total / max(1.0, effect)
    return wilson(share, size, level=level)


def bootstrap_interval(
    value: float, drawn: Array, left_out: Array, *, patients: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the BCa interval of a metric.

    Parameters
    ----------
    value : float
        On the studies as they are.
    drawn : array of shape (R,)
        In resamples of patients, without NaN.
    left_out : array of shape (J,)
        With each patient (or group of patients) left out; NaN where it is not defined then.
    patients : int
        At least 2.
    level : float
        Of the interval.
    """
    ordered = np.sort(drawn)
    count = len(ordered)
    # Resamples that equal the value but for rounding count as half below it.
    near = 1e-9 * float(ordered[-1] - ordered[0])
    below = np.searchsorted(ordered, value - near, "left")
    above = np.searchsorted(ordered, value + near, "right")
    bias = float(ndtri(((below + above) / 2 + 0.5) / (count + 1)))
    jumps = left_out[np.isfinite(left_out)]
    jumps = jumps.mean() - jumps if len(jumps) else jumps
    size = float((jumps**2).sum())
    speed = float((jumps**3).sum()) / (6 * size**1.5) if size > 0 else 0.0
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        reach = bias + math.sqrt(patients / (patients - 1)) * float(stdtrit(patients - 1, tail))
        slope = 1 - speed * reach
        # Beyond the pole of the formula there is nothing but the most extreme resample.
        place = float(ndtr(bias + reach / slope)) if slope > 0.05 else float(reach > 0)
        ends.append(float(np.quantile(ordered, place)))
    return ends[0], ends[1]


def calibration_interval(
    right: NDArray[np.bool_], chance: Array, patients: NDArray[np.intp], *, level: float = 0.95
) -> tuple[float, float]:
    """Return the interval of an expected calibration error, which noise can only raise.

    Parameters
    ----------
    right : array of shape (N,), N at least 1
        Whether what was said with that chance came true.
    chance : array of shape (N,)
        Probabilities.
    patients : array of shape (N,)
        Whose row it is, as numbers.
    level : float
        Of the interval.

    Notes
    -----
    A resample adds noise to the gap of each bin once more, so its error is larger than the value, as the value is
    larger than the truth; a bootstrap interval hardly ever holds it. Here the gap of a bin has a standard error over
    patients. Bins whose gap is within its error may have none: what noise adds to them on average is taken off the
    lower end, beside the error of all bins together.
    """
    bins = bin_of(chance)
    names, owners = np.unique(patients, return_inverse=True)
    excess = np.bincount(bins * len(names) + owners, right - chance, BINS * len(names)).reshape(BINS, len(names))
    gaps, spread = np.abs(excess.sum(1)) / len(right), np.sqrt((excess**2).sum(1)) / len(right)
    reach = float(ndtri((1 + level) / 2))
    clear = gaps > reach * spread
    added = math.sqrt(2 / math.pi) * float(spread[~clear].sum())
    error = reach * math.sqrt(float((spread**2).sum()))
    return max(0.0, float(gaps.sum()) - added - error), min(1.0, float(gaps.sum()) + error)


def edge_interval(
    name: str, value: float, *, with_finding: int, without: int, level: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval of a metric of one yes/no question at 0 or 1, where every resample says the same.

    Parameters
    ----------
    name : str
        Metric; None is returned for one that has no such edge (log loss, errors of quantities).
    value : float
        0 or 1, of balanced accuracy also 0.5; else None is returned.
    with_finding, without : int
        Patients with studies of each side.
    level : float
        Of the interval.

    Notes
    -----
    AUC: Newcombe 2006. Sensitivities, specificities, and means of values between 0 and 1: Wilson over the patients
    that they are a mean of. Balanced accuracy: both combined by their squares (Zou and Donner 2008); 0.5 in every
    resample means that all are called, or none is, and of the two sides the one that is known less well counts. F1 is
    2 J/(1 + J) of the share J of right calls among studies that have the finding or are called, which is the
    proportion.
    """
    yes, no = with_finding, without
    if name == "balanced_accuracy" and value == 0.5 and yes and no:
        reach = max(_width(1.0, size, level) for size in (yes, no)) / 2
        return 0.5 - reach, 0.5 + reach
    if value not in (0, 1):
        return None
    if name in {"auc", "balanced_accuracy"}:
        if not yes or not no:
            return None
        if name == "auc":
            return auc_limits(value, yes, no, level=level)
        reach = math.hypot(*(_width(value, size, level) for size in (yes, no))) / 2
        return (0.0, reach) if value == 0 else (1 - reach, 1.0)
    if name in _OF_ALL:
        size = yes + no
    elif name.startswith("specificity"):
        size = no
    elif name.startswith(("sensitivity", "average_precision", "f1")):
        size = yes
    else:
        return None
    if not size:
        return None
    low, high = wilson(value, size, level=level)
    return (2 * low / (1 + low), 2 * high / (1 + high)) if name == "f1" else (low, high)


def _width(value: float, size: int, level: float) -> float:
    low, high = wilson(value, size, level=level)
    return high - low
