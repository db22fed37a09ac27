"""Draws of patients with replacement that two sides share: what intervals of differences are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volrec.evaluation.resampling import LEVEL

__all__ = ["difference_of", "owners_of", "patient_draws"]

Array = NDArray[np.float64]

# A chunk of resamples holds at most this many weights (32 MB), whatever the number of studies.
_CHUNK = 4_000_000
# Below this share of resamples in which a difference is defined, their percentiles say little.
_LEAST_DEFINED = 0.5


def owners_of(patients: ArrayLike) -> NDArray[np.intp]:
    """Return a number for each patient, (N,), in the order of their names."""
    return np.unique(np.asarray(patients).astype(str), return_inverse=True)[1]


def patient_draws(owners: NDArray[np.intp], *, resamples: int, seed: int = 0) -> Iterator[Array]:
    """Draw patients with replacement; all studies of a patient are drawn together.

    Parameters
    ----------
    owners : array of shape (N,)
        Patient of each study (`owners_of`).
    resamples : int
        Number of draws in all.
    seed : int
        The same seed and patients give the same draws, and those of `volrec.evaluation.evaluate_scores`.

    Yields
    ------
    array of shape (R, N)
        How often each study is in each draw; in chunks that fit into memory. Nothing for fewer than two patients.
    """
    count = int(owners.max()) + 1 if len(owners) else 0
    if count < 2:
        return
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(owners))
    for start in range(0, resamples, step):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start))
        yield drawn[:, owners].astype(np.float64)


def difference_of(value: float, drawn: ArrayLike) -> dict[str, Any]:
    """Return a difference with its percentile interval and p value.

    Parameters
    ----------
    value : float
        The difference on the studies as they are; NaN where it is not defined.
    drawn : array of shape (R,)
        The same in each draw.

    Returns
    -------
    dict
        ``value, low, high, p, method``; ``reason`` where one of them is None. The p value is two-sided: twice the share
        of draws on the other side of zero, of which there is always one more than was counted (Davison and Hinkley,
        Bootstrap Methods and their Application, 1997, section 4.2).
    """
    draws = np.asarray(drawn, dtype=np.float64)
    defined = draws[np.isfinite(draws)]
    found: dict[str, Any] = {"value": None, "low": None, "high": None, "p": None, "method": "bootstrap over patients"}
    if not np.isfinite(value):
        return found | {"reason": "not defined on these studies"}
    found["value"] = float(value)
    if not len(draws):
        return found | {"reason": "no interval: no resamples were drawn, or there is a single patient"}
    if len(defined) < _LEAST_DEFINED * len(draws):
        return found | {"reason": f"no interval: defined in {len(defined)} of {len(draws)} resamples only"}
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    beyond = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(defined) + 1))
    return found | {"low": float(low), "high": float(high), "p": p}
