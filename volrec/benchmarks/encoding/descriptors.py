"""The columns of improved dense trajectories: one row a trajectory, as the release of Wang and Schmid prints them.

H. Wang, C. Schmid, "Action Recognition with Improved Trajectories", ICCV 2013.

==========  =========  ===========================================================================
columns     name       what
==========  =========  ===========================================================================
0 to 10                frame, mean x, mean y, variance x, variance y, length, scale, place x, y, t
10 to 40    trajectory 15 displacements (x, y), divided by their summed length
40 to 136   hog        gradients, 8 directions in 2 x 2 x 3 cells
136 to 244  hof        flow, 8 directions and one of no motion in 2 x 2 x 3 cells
244 to 340  mbhx       gradients of the flow along x, 8 directions in 2 x 2 x 3 cells
340 to 436  mbhy       those along y
==========  =========  ===========================================================================
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from volrec.errors import DataError

__all__ = ["COLUMNS", "NAMES", "ROW", "check_rows", "descriptor", "width"]

COLUMNS: dict[str, tuple[int, int]] = {
    "trajectory": (10, 40),
    "hog": (40, 136),
    "hof": (136, 244),
    "mbhx": (244, 340),
    "mbhy": (340, 436),
}
"""First column of each descriptor, and the one after its last."""
NAMES = tuple(COLUMNS)
ROW = 436
"""Columns of a row: ten facts of the trajectory, then the descriptors."""


def width(name: str) -> int:
    """Return the length of a descriptor."""
    first, end = COLUMNS[name]
    return end - first


def descriptor(rows: np.ndarray, name: str) -> np.ndarray:
    """Return the columns (n, D) of one descriptor of rows (n, 436), as a view."""
    first, end = COLUMNS[name]
    return rows[:, first:end]


def check_rows(rows: np.ndarray, *, where: Path | str | None = None) -> np.ndarray:
    """Return the trajectories of a video as float32 (n, 436).

    Parameters
    ----------
    rows : ndarray
        (n, 436); n may be 0.
    where : path or str, optional
        The video, for the message.

    Raises
    ------
    DataError
        Another shape, or numbers that are not finite.
    """
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[1] != ROW:
        raise DataError(
            f"trajectories are rows of {ROW} numbers, got an array of shape {rows.shape}.",
            remedy="Compute them again, or give the ten facts and all five descriptors of every trajectory.",
            where=where,
            code="trajectories",
        )
    rows = rows.astype(np.float32, copy=False)
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=1)).sum())
        raise DataError(
            f"{bad} of {len(rows)} trajectories have numbers that are not finite.",
            remedy="Compute them again.",
            where=where,
            code="not-finite",
        )
    return rows
