"""Bags of words: how often each of the words that k-means found is the nearest one to a descriptor of a video.

H. Wang, A. Klaeser, C. Schmid, C.-L. Liu, "Dense Trajectories and Motion Boundary Descriptors for Action Recognition",
IJCV 2013: 4000 words of each descriptor, found among 100,000 of them, the best of 8 runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from volrec.errors import ConfigError, DataError

__all__ = ["RUNS", "Words", "fit_words", "histogram", "nearest_words", "run_of_words"]

RUNS = 8
"""Runs of k-means, of which that with the smallest sum of squared distances is kept."""
_BLOCK = 2048
"""Descriptors at a time: 32 MB of distances to 4000 words."""


@dataclass(frozen=True, eq=False)
class Words:
    """What a run of k-means found.

    Attributes
    ----------
    centres : ndarray
        (K, D) float32.
    loss : float
        Sum of squared distances of the descriptors to their words.
    """

    centres: np.ndarray
    loss: float


def fit_words(rows: np.ndarray, words: int, *, seed: int = 0, runs: int = RUNS) -> np.ndarray:
    """Find words (K, D) float32 among descriptors (n, D): the best of several runs of k-means."""
    return min((run_of_words(rows, words, seed=seed, run=run) for run in range(runs)), key=lambda one: one.loss).centres


def run_of_words(rows: np.ndarray, words: int, *, seed: int = 0, run: int = 0, iterations: int = 100) -> Words:
    """Find words by one run of k-means from k-means++ (scikit-learn), on one thread so that it can be repeated.

    Parameters
    ----------
    rows : ndarray
        (n, D) descriptors.
    words : int
        K.
    seed, run : int
        The draw depends on both.
    iterations : int
        At most.

    Raises
    ------
    DataError
        Fewer different descriptors than words.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows = np.ascontiguousarray(rows, dtype=np.float32)
    distinct = len(np.unique(rows, axis=0))
    if distinct < words:
        raise DataError(
            f"{words} words need as many different descriptors, and there are {distinct} among {len(rows)}.",
            remedy="Give more videos, or fewer words.",
            code="few-descriptors",
        )
    state = int(np.random.SeedSequence([seed, run]).generate_state(1)[0])
    with threadpool_limits(1):
        found = KMeans(words, n_init=1, max_iter=iterations, random_state=state).fit(rows)
    return Words(found.cluster_centers_.astype(np.float32), float(found.inertia_))


def nearest_words(rows: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return the place (n,) of the word (K, D) nearest to each descriptor (n, D); of equals the first."""
    words = np.asarray(words, dtype=np.float32)
    half = 0.5 * (words**2).sum(axis=1)
    found = [
        np.argmin(half - np.asarray(rows[start : start + _BLOCK], dtype=np.float32) @ words.T, axis=1)
        for start in range(0, len(rows), _BLOCK)
    ]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def histogram(rows: np.ndarray, words: np.ndarray, *, normalize: str = "l1") -> np.ndarray:
    """Return how often each word is met, (K,) float64; zeros where there are no descriptors.

    Parameters
    ----------
    rows : ndarray
        (n, D) descriptors.
    words : ndarray
        (K, D).
    normalize : {"l1", "l2", "none"}
        Sum one (for chi-square distances), length one (for inner products), or counts.
    """
    counts = np.bincount(nearest_words(rows, words), minlength=len(words)).astype(np.float64)
    if normalize == "none" or not counts.any():
        return counts
    if normalize not in ("l1", "l2"):
        raise ConfigError(
            f"normalize must be l1, l2 or none, got {normalize!r}.", remedy="Choose one of these.", code="normalize"
        )
    return counts / (counts.sum() if normalize == "l1" else np.linalg.norm(counts))
