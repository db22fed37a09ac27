"""Slice axis to time: bring any stored index order into the canonical ``(T, H, W)``, by permuting and flipping only."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from volrec.errors import ConfigError, DataError

__all__ = ["CANONICAL", "slice_axis_to_time", "spacing_of"]

# Direction of T, H and W in LPS (x left, y posterior, z superior), as (axis, sign).
CANONICAL: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "axial": ((2, 1), (1, 1), (0, 1)),  # T superior, H posterior, W left
    "coronal": ((1, 1), (2, -1), (0, 1)),  # T posterior, H inferior, W left
    "sagittal": ((0, 1), (2, -1), (1, 1)),  # T left, H inferior, W posterior
}
_ORIENTATION_OF_AXIS = {2: "axial", 1: "coronal", 0: "sagittal"}


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Return the voxel spacing in mm along each index axis of a ``(4, 4)`` affine.

    Raises
    ------
    DataError
        If the affine is not ``(4, 4)``, not finite, or has an axis of no length.
    """
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4):
        raise DataError(
            f"an affine must have shape (4, 4), got {affine.shape}.",
            remedy="Give the index-to-mm matrix of the volume.",
            code="affine",
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (spacing <= 0).any():
        raise DataError(
            f"the affine gives a voxel spacing of {np.round(spacing, 6).tolist()} mm.",
            remedy="Spacings must be finite and above zero: check the file's geometry.",
            code="spacing",
        )
    return spacing


def slice_axis_to_time(
    array: np.ndarray, affine: np.ndarray, *, slice_axis: str = "acquired"
) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip the last three axes of a volume into the canonical order of its slice axis.

    Nothing is interpolated: an oblique volume stays oblique, each of its axes is given to the anatomical axis that it
    follows best.

    Parameters
    ----------
    array : numpy.ndarray
        ``(..., I, J, K)``, axes in any order.
    affine : numpy.ndarray
        ``(4, 4)``: index ``(i, j, k, 1)`` to LPS mm.
    slice_axis : {"acquired", "axial", "coronal", "sagittal"}
        The axis that becomes T. ``"acquired"`` takes the axis of the largest spacing; among axes within 1 % of it the
        axial one if it is there, then the coronal one.

    Returns
    -------
    array : numpy.ndarray
        ``(..., T, H, W)``, a view of the input.
    affine : numpy.ndarray
        ``(4, 4)`` float64: ``(t, h, w, 1)`` to the same LPS mm.

    Raises
    ------
    ConfigError
        For an unknown `slice_axis`.
    DataError
        For an affine without three lengths, or an array of fewer than three axes.
    """
    if slice_axis != "acquired" and slice_axis not in CANONICAL:
        raise ConfigError(
            f"slice_axis must be one of acquired, {', '.join(CANONICAL)}; got {slice_axis!r}.",
            remedy="Choose one of these.",
            where="slice_axis",
            code="slice-axis",
        )
    if array.ndim < 3:
        raise DataError(
            f"a volume has three axes, got an array of shape {array.shape}.",
            remedy="Give (..., I, J, K).",
            code="shape",
        )
    spacing = spacing_of(affine)
    affine = np.asarray(affine, dtype=np.float64)
    direction = affine[:3, :3] / spacing
    # anatomical[i]: the LPS axis that index axis i follows; each is given once, best total agreement.
    anatomical = max(
        itertools.permutations(range(3)), key=lambda axes: sum(abs(direction[axes[index], index]) for index in range(3))
    )
    if slice_axis == "acquired":
        thick = {anatomical[index] for index in range(3) if spacing[index] >= spacing.max() * 0.99}
        slice_axis = _ORIENTATION_OF_AXIS[max(thick)]

    order: list[int] = []
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1.0
    slices: list[Any] = [Ellipsis]
    for new, (lps, sign) in enumerate(CANONICAL[slice_axis]):
        old = anatomical.index(lps)
        order.append(old)
        if direction[lps, old] * sign < 0:
            to_old[old, new] = -1.0
            to_old[old, 3] = array.shape[array.ndim - 3 + old] - 1
            slices.append(slice(None, None, -1))
        else:
            to_old[old, new] = 1.0
            slices.append(slice(None))
    leading = array.ndim - 3
    permuted = array.transpose(*range(leading), *(leading + old for old in order))
    return permuted[tuple(slices)], affine @ to_old
