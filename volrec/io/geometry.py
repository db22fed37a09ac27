"""Where voxels are: affines from array index (t, h, w) to LPS millimetres, and what array operations do to them.

DICOM's patient axes (LPS) are x to the left, y to the back (posterior), z to the head (superior); NIfTI's (RAS) have
x and y the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Protocol

import numpy as np

__all__ = [
    "CANONICAL",
    "canonical_axes",
    "canonical_shape",
    "canonicalise",
    "cropped",
    "flip_lps_ras",
    "largest_spacing_plane",
    "plane_of",
    "rescaled",
    "resheared",
    "shear_stack",
    "spacing_of",
    "stacking_plane",
]

# Patient axis (0 left-right, 1 front-back, 2 foot-head) and direction in LPS of the array axes (T, H, W).
CANONICAL: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "axial": ((2, 1), (1, 1), (0, 1)),
    "coronal": ((1, 1), (2, -1), (0, 1)),
    "sagittal": ((0, 1), (2, -1), (1, 1)),
}


class Placed(Protocol):
    """What has a shape, an affine and a plane of its own: a `Series`."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W) as assembled."""

    @property
    def affine(self) -> tuple[tuple[float, ...], ...]:
        """Index to LPS mm."""

    @property
    def orientation(self) -> str:
        """Plane that ``"acquired"`` stands for."""


_PLANES = ("sagittal", "coronal", "axial")  # by the patient axis that the slices are stacked along


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Return the mm between voxels along (t, h, w)."""
    t, h, w = np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0)
    return float(t), float(h), float(w)


def flip_lps_ras(affine: np.ndarray) -> np.ndarray:
    """Return the affine with the first two patient axes turned: LPS to RAS, or back."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64)


def plane_of(direction: Sequence[float] | np.ndarray) -> str:
    """Return the anatomical plane whose slices are stacked along `direction` (LPS), by its largest component."""
    return _PLANES[int(np.argmax(np.abs(np.asarray(direction, dtype=np.float64))))]


def patient_axes(affine: np.ndarray) -> tuple[int, int, int]:
    """Return the patient axis (0 left-right, 1 front-back, 2 foot-head) nearest to each array axis.

    Each patient axis is taken once: of the six ways, the one whose cosines add up to most.
    """
    columns = np.asarray(affine, dtype=np.float64)[:3, :3]
    cosines = np.abs(columns / np.linalg.norm(columns, axis=0))
    best = max(permutations(range(3)), key=lambda axes: round(sum(cosines[axes[i], i] for i in range(3)), 9))
    return best[0], best[1], best[2]


def stacking_plane(affine: np.ndarray) -> str:
    """Return the plane that keeps array axis 0 as the slice axis, however oblique the stack is."""
    return _PLANES[patient_axes(affine)[0]]


def largest_spacing_plane(affine: np.ndarray, *, tolerance: float = 0.01) -> str:
    """Return the plane whose stacking axis has the largest spacing.

    Parameters
    ----------
    affine : ndarray
        (4, 4).
    tolerance : float
        Spacings this near to the largest (relative) are tied; among them axial goes before coronal before sagittal.
    """
    spacing = spacing_of(affine)
    axes = patient_axes(affine)
    tied = [axes[i] for i in range(3) if spacing[i] >= max(spacing) * (1 - tolerance)]
    return _PLANES[max(tied)]


def canonical_axes(affine: np.ndarray, plane: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return which array axis becomes T, H and W, and which of them are then mirrored.

    Parameters
    ----------
    affine : ndarray
        (4, 4), index to LPS mm.
    plane : str
        ``"axial"``, ``"coronal"`` or ``"sagittal"``.
    """
    nearest = patient_axes(affine)
    order = []
    mirrored = []
    for patient_axis, direction in CANONICAL[plane]:
        array_axis = nearest.index(patient_axis)
        order.append(array_axis)
        mirrored.append(bool(np.sign(affine[patient_axis, array_axis]) == -direction))
    return (order[0], order[1], order[2]), (mirrored[0], mirrored[1], mirrored[2])


def canonical_shape(
    series: Placed, slice_axis: str = "acquired"
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Return the shape (T, H, W) and spacing (t, h, w) in mm that reading a series will give, without reading it."""
    affine = np.asarray(series.affine, dtype=np.float64)
    order, _ = canonical_axes(affine, series.orientation if slice_axis == "acquired" else slice_axis)
    spacing = spacing_of(affine)
    t, h, w = order
    return (series.shape[t], series.shape[h], series.shape[w]), (spacing[t], spacing[h], spacing[w])


def canonicalise(array: np.ndarray, affine: np.ndarray, plane: str) -> tuple[np.ndarray, np.ndarray]:
    """Permute and mirror an array (…, three spatial axes) into the canonical order; nothing is resampled.

    Returns
    -------
    array : ndarray
        A view of the input.
    affine : ndarray
        (4, 4) of the new order.
    """
    affine = np.asarray(affine, dtype=np.float64)
    order, mirrored = canonical_axes(affine, plane)
    lead = array.ndim - 3
    array = array.transpose(*range(lead), *(lead + axis for axis in order))
    size = array.shape[lead:]
    result = np.eye(4)
    result[:3, :3] = affine[:3, list(order)]
    result[:3, 3] = affine[:3, 3]
    slices: list[slice] = [slice(None)] * array.ndim
    for axis in range(3):
        if mirrored[axis]:
            result[:3, 3] += result[:3, axis] * (size[axis] - 1)
            result[:3, axis] *= -1
            slices[lead + axis] = slice(None, None, -1)
    return array[tuple(slices)], result


def cropped(affine: np.ndarray, start: Sequence[float]) -> np.ndarray:
    """Return the affine after voxels before `start` (t, h, w) were cut off; negative numbers: padded."""
    result = np.array(affine, dtype=np.float64)
    result[:3, 3] += result[:3, :3] @ np.asarray(start, dtype=np.float64)
    return result


def rescaled(affine: np.ndarray, old_shape: Sequence[int], new_shape: Sequence[int]) -> np.ndarray:
    """Return the affine after the same field of view was sampled with another number of voxels.

    Voxels are areas, not points: the outer edges stay, so the centre of the first voxel moves.
    """
    factor = np.asarray(old_shape, dtype=np.float64) / np.asarray(new_shape, dtype=np.float64)
    result = np.array(affine, dtype=np.float64)
    result[:3, 3] += result[:3, :3] @ ((factor - 1) / 2)
    result[:3, :3] *= factor
    return result


def resheared(
    affine: np.ndarray, shape: Sequence[int], offsets: np.ndarray
) -> tuple[np.ndarray, tuple[int, int, int], np.ndarray]:
    """Plan the correction of a sheared stack (gantry tilt): a grid at right angles that holds every voxel.

    Parameters
    ----------
    affine : ndarray
        (4, 4) of the corrected stack as if slice 0 did not move: the T column along the slice normal.
    shape : sequence of int
        (T, H, W) of the stack.
    offsets : ndarray
        (T, 2): how far, in voxels, slice t lies along (h, w) from where a stack at right angles would have it.

    Returns
    -------
    affine : ndarray
        (4, 4) of the grid.
    shape : tuple of int
        (T, H', W'), enlarged by the drift so that nothing is cut off.
    shifts : ndarray
        (T, 2): voxels by which the content of slice t moves on the grid, never negative.
    """
    low = np.floor(offsets.min(axis=0) + 1e-6)
    shifts = np.maximum(offsets - low, 0.0)
    grow = np.ceil(shifts.max(axis=0) - 1e-6).astype(int)
    grid = cropped(affine, (0.0, float(low[0]), float(low[1])))
    return grid, (int(shape[0]), int(shape[1] + grow[0]), int(shape[2] + grow[1])), shifts


def shear_stack(array: np.ndarray, shape: Sequence[int], shifts: np.ndarray, fill: float) -> np.ndarray:
    """Shift every slice in its plane by linear interpolation (the inverse of a gantry tilt).

    Parameters
    ----------
    array : ndarray
        (T, H, W).
    shape : sequence of int
        (T, H', W') of the result, from `resheared`.
    shifts : ndarray
        (T, 2), voxels along (h, w), not negative.
    fill : float
        Value outside the acquired slices. It is mixed with nothing: a grid point is filled when it lies more than half
        a voxel outside the slice, and takes the slice's edge otherwise.

    Returns
    -------
    ndarray
        (T, H', W') of the input's type; integers are rounded to nearest.
    """
    result = np.full(tuple(shape), fill, dtype=array.dtype)
    for t in range(array.shape[0]):
        plane = array[t].astype(np.float32)
        top, left = (int(np.floor(shift + 1e-6)) for shift in shifts[t])
        down, right = (max(0.0, float(shift - whole)) for shift, whole in zip(shifts[t], (top, left), strict=True))
        plane, top, high = _shift_rows(plane, down, top, shape[1])
        turned, left, wide = _shift_rows(np.ascontiguousarray(plane.T), right, left, shape[2])
        plane = turned.T
        if np.issubdtype(array.dtype, np.integer):
            plane = np.rint(plane)
        result[t, top : top + high, left : left + wide] = plane
    return result


def _shift_rows(plane: np.ndarray, fraction: float, start: int, room: int) -> tuple[np.ndarray, int, int]:
    """Move rows down by a fraction of one; return the rows, where they start, and how many there are."""
    rows = plane.shape[0]
    if fraction < 1e-6:
        return plane, start, rows
    moved = np.empty((rows + 1, *plane.shape[1:]), dtype=np.float32)
    # Grid row r sits at r - fraction of the source: between its rows r - 1 and r.
    moved[1:rows] = plane[:-1] * np.float32(fraction) + plane[1:] * np.float32(1 - fraction)
    moved[0], moved[rows] = plane[0], plane[-1]
    # The two ends lie `fraction` before the first row and `1 - fraction` after the last.
    first = 0 if fraction <= 0.5 else 1
    last = rows + 1 if 1 - fraction <= 0.5 and start + rows + 1 <= room else rows
    return moved[first:last], start + first, last - first
