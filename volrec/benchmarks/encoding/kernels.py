"""Inner products and chi-square distances between the vectors of videos, in blocks.

A linear machine on N vectors of F numbers needs only their inner products: `Coordinates` turns N vectors into N new
ones of at most N numbers with the same inner products, and weights learned there back into weights of F numbers. The
machine is the same to rounding, and the solver sees N x N numbers: for the training videos of UCF101 and Fisher vectors
9,537 x 9,537 instead of 9,537 x 109,056, 0.7 GB instead of the 25 GB that liblinear makes of the latter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from volrec.errors import ConfigError, DataError
from volrec.progress import track

__all__ = ["Coordinates", "channel_distances", "chi_square", "chi_square_kernel", "side_by_side"]

_COLUMNS = 2048
_ROWS = 128

Vectors = np.ndarray | Sequence[np.ndarray]
"""(N, F), or several (N, F1), (N, F2) … that count as one side by side."""


def side_by_side(vectors: Vectors) -> list[np.ndarray]:
    """Return the parts of vectors, each (N, F), unread where they are on disk.

    Raises
    ------
    DataError
        Parts of different numbers of videos, or that are not two-dimensional.
    """
    parts = [vectors] if isinstance(vectors, np.ndarray) else list(vectors)
    shapes = [part.shape for part in parts]
    if not parts or any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise DataError(
            f"vectors lie side by side as (N, F1), (N, F2) …, got {', '.join(map(str, shapes)) or 'none'}.",
            remedy="Give the same videos in the same order.",
            code="vectors",
        )
    return parts


class Coordinates:
    """N vectors in coordinates of their own span.

    Parameters
    ----------
    vectors : ndarray or sequence of ndarray
        (N, F), or parts side by side; float16 or float32 on disk is read in blocks and summed in float64.

    Attributes
    ----------
    rows : ndarray
        (N, R) float64 with R at most N and F, and ``rows @ rows.T`` as of the vectors.

    Raises
    ------
    DataError
        Numbers that are not finite.
    """

    def __init__(self, vectors: Vectors) -> None:
        self._parts = side_by_side(vectors)
        count, width = len(self._parts[0]), sum(part.shape[1] for part in self._parts)
        self._back: np.ndarray | None = None
        if width <= count:
            self.rows = np.concatenate([np.asarray(part, dtype=np.float64) for part in self._parts], axis=1)
            _check(self.rows)
            return
        products = np.zeros((count, count))
        for part in self._parts:
            for start in track(range(0, part.shape[1], _COLUMNS), "inner products"):
                block = np.asarray(part[:, start : start + _COLUMNS], dtype=np.float64)
                _check(block)
                products += block @ block.T
        values, directions = np.linalg.eigh(products)
        # What is below is rounding of the products; a machine with a finite C cannot use such directions anyway.
        kept = values > max(float(values[-1]), 0.0) * count * np.finfo(np.float64).eps
        root = np.sqrt(values[kept])
        self.rows = directions[:, kept] * root
        self._back = directions[:, kept] / root

    def weights(self, own: np.ndarray) -> np.ndarray:
        """Return weights (K, F) float32 of the vectors for weights (K, R) of the rows."""
        if self._back is None:
            return np.ascontiguousarray(own, dtype=np.float32)
        of_videos = own @ self._back.T
        found = np.empty((len(own), sum(part.shape[1] for part in self._parts)), dtype=np.float32)
        place = 0
        for part in self._parts:
            for start in range(0, part.shape[1], _COLUMNS):
                block = np.asarray(part[:, start : start + _COLUMNS], dtype=np.float64)
                found[:, place : place + block.shape[1]] = of_videos @ block
                place += block.shape[1]
        return found


def chi_square(first: np.ndarray, second: np.ndarray | None = None, *, jobs: int = 1) -> np.ndarray:
    """Return chi-square distances (N, M) float64 between histograms (N, K) and (M, K), ``1/2 sum (a - b)^2 / (a + b)``.

    Computed by scikit-learn over blocks of rows, in `jobs` threads.

    Parameters
    ----------
    first : ndarray
        Not negative.
    second : ndarray, optional
        `first` itself by default: then each pair is computed once.
    jobs : int
        Threads; the numbers are the same.
    """
    from sklearn.metrics.pairwise import additive_chi2_kernel

    same = second is None
    # Copies: scikit-learn's loop takes no array that is read-only, as tables on disk are.
    first = np.array(first)
    other = first if second is None else np.array(second)
    found = np.zeros((len(first), len(other)))

    def fill(start: int) -> None:
        end = min(start + _ROWS, len(first))
        begin = start if same else 0
        block = -0.5 * additive_chi2_kernel(first[start:end], other[begin:])
        found[start:end, begin:] = block
        if same:
            found[begin:, start:end] = block.T

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        for _ in track(pool.map(fill, range(0, len(first), _ROWS)), "chi-square distances", -(-len(first) // _ROWS)):
            pass
    return found


def channel_distances(
    first: np.ndarray,
    second: np.ndarray | None = None,
    *,
    channels: Mapping[str, tuple[int, int]],
    scales: Mapping[str, float] | None = None,
    jobs: int = 1,
) -> tuple[np.ndarray, dict[str, float]]:
    """Return the mean over channels of distances divided by their scale, (N, M), and the scales.

    Parameters
    ----------
    first, second : ndarray
        (N, F) and (M, F) bags of words, all channels side by side.
    channels : mapping
        From name to first column and the one after its last.
    scales : mapping, optional
        As found on the training videos; where it is not given, the mean distance between two different rows of `first`.

    Raises
    ------
    ConfigError
        No channel.
    """
    if not channels:
        raise ConfigError("a chi-square kernel needs channels.", remedy="Name at least one descriptor.", code="kernel")
    total: Any = 0.0
    used: dict[str, float] = {}
    for name, (start, end) in channels.items():
        distances = chi_square(first[:, start:end], None if second is None else second[:, start:end], jobs=jobs)
        if scales is None:
            pairs = len(first) * (len(first) - 1)
            mean = float(distances.sum() / pairs) if pairs else 0.0
            used[name] = mean if mean > 0 else 1.0  # all alike: the channel says nothing, whatever its scale
        else:
            used[name] = float(scales[name])
        distances /= used[name]
        total = distances if isinstance(total, float) else np.add(total, distances, out=total)
    total /= len(channels)
    return total, used


def chi_square_kernel(distances: np.ndarray) -> np.ndarray:
    """Return exp(-d) of distances, in place."""
    np.negative(distances, out=distances)
    return np.exp(distances, out=distances)


def _check(block: np.ndarray) -> None:
    if not np.isfinite(block).all():
        raise DataError(
            "vectors of videos are not finite (NaN or infinite).",
            remedy="Encode the videos again, and look at the network or trajectories that they come from.",
            code="not-finite",
        )
