"""From the stored grid back to where the study is: the grid that it was read in, and that of its own file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from volrec.errors import DataError
from volrec.io.geometry import canonical_axes, flip_lps_ras

if TYPE_CHECKING:
    from volrec.explain.study import EvidenceMap
    from volrec.io import Series, Volume

__all__ = ["Grid", "file_affine", "in_file_order", "slice_positions", "slices_in_study", "to_study_geometry"]

HALF = 0.5 + 1e-6
"""How far from the centre of an outermost voxel, in voxels, its own area reaches."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxels without values.

    Attributes
    ----------
    shape : tuple of int
        Three sizes.
    affine : ndarray
        (4, 4) float64: index to LPS mm; oblique and sheared ones are allowed.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def of(cls, volume: Volume) -> Grid:
        """Return the grid (T, H, W) of a decoded volume."""
        _, t, h, w = volume.shape
        return cls((t, h, w), np.asarray(volume.affine, dtype=np.float64))


def to_study_geometry(evidence: EvidenceMap, volume: Volume | Grid) -> np.ndarray:
    """Bring a map to the grid of the study.

    Parameters
    ----------
    evidence : EvidenceMap
        On the stored grid: resampled, cropped or padded.
    volume : Volume or Grid
        What is to be overlaid.

    Returns
    -------
    ndarray
        float32 of the grid's shape: linear interpolation between the centres of stored voxels; 0 outside the area of
        the outermost ones (a part of the study that the canvas cut off).

    Raises
    ------
    DataError
        An affine that does not map a volume to a volume.
    """
    grid = volume if isinstance(volume, Grid) else Grid.of(volume)
    return resampled(np.asarray(evidence.array, dtype=np.float32), evidence.affine, grid)


def resampled(array: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Resample an array (T, H, W) float32 with its affine onto a grid; see `to_study_geometry`."""
    from scipy.ndimage import affine_transform

    try:
        to_index = np.linalg.inv(np.asarray(affine, dtype=np.float64)) @ grid.affine
    except np.linalg.LinAlgError:
        to_index = np.full((4, 4), np.nan)
    if not np.isfinite(to_index).all():
        raise DataError(
            "the affine of the map does not say where its voxels are.",
            remedy="Look at the spacing of the study with `volrec inspect`.",
            code="orientation",
        )
    # Rounding of the inverse would move whole voxels by a hair: the same grid gives the same numbers.
    to_index = np.round(to_index, 9)
    matrix, offset = to_index[:3, :3], to_index[:3, 3]
    # One factor an axis where the axes run along each other, as they do for whatever preprocessing made: much faster.
    diagonal = not np.any(matrix - np.diag(np.diag(matrix)))
    found = affine_transform(
        array,
        np.diag(matrix) if diagonal else matrix,
        offset=offset,
        output_shape=grid.shape,
        order=1,
        mode="nearest",
    )
    _clear_outside(found, array.shape, matrix, offset)
    return found


def _clear_outside(found: np.ndarray, shape: tuple[int, ...], matrix: np.ndarray, offset: np.ndarray) -> None:
    """Put 0 where a voxel's centre lies outside an array of a shape, a slice at a time."""
    _, height, width = found.shape
    rows, columns = np.arange(height, dtype=np.float64)[:, None], np.arange(width, dtype=np.float64)[None]
    for t, plane in enumerate(found):
        for axis, size in enumerate(shape):
            place = offset[axis] + matrix[axis, 0] * t + matrix[axis, 1] * rows + matrix[axis, 2] * columns
            plane[(place < -HALF) | (place > size - 1 + HALF)] = 0


def slices_in_study(values: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """Return values a stored slice (T,) as values a slice of the study: linear along T, NaN where there are none.

    Parameters
    ----------
    values : ndarray
        (T,), NaN where unknown.
    affine : ndarray
        (4, 4) of the stored grid.
    grid : Grid
        Of the study, whose slices run along those that are stored.
    """
    to_index = np.linalg.inv(np.asarray(affine, dtype=np.float64)) @ grid.affine
    # Through the middle of the plane, wherever the slices lean.
    middle = np.array([0.0, (grid.shape[1] - 1) / 2, (grid.shape[2] - 1) / 2, 1.0])
    places = to_index[0] @ middle + to_index[0, 0] * np.arange(grid.shape[0])
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.full(grid.shape[0], np.nan, dtype=np.float32)
    found = np.interp(places, known, values[known])
    nearest = np.clip(np.rint(places), 0, len(values) - 1).astype(int)
    outside = (places < -HALF) | (places > len(values) - 1 + HALF) | ~np.isfinite(values[nearest])
    return np.where(outside, np.nan, found).astype(np.float32)


def slice_positions(grid: Grid) -> np.ndarray:
    """Return where the middles of slices (T,) lie along the patient axis that they are stacked along, LPS mm."""
    middle = np.array([0.0, (grid.shape[1] - 1) / 2, (grid.shape[2] - 1) / 2, 1.0])
    points = (grid.affine @ middle)[:3] + np.arange(grid.shape[0])[:, None] * grid.affine[:3, 0]
    axis = int(np.abs(grid.affine[:3, 0]).argmax())
    return np.asarray(points[:, axis])


def in_file_order(array: np.ndarray, series: Series, plane: str) -> np.ndarray:
    """Return an array (T, H, W) of a volume as a NIfTI file has its axes (i, j, k), as a view.

    Of a NIfTI series that is the order of its own file, of a DICOM series (W, H, T).

    Parameters
    ----------
    array : ndarray
        In canonical order.
    series : Series
        What it was read from.
    plane : str
        Plane of the slices, as the volume's meta says.
    """
    if series.kind != "nifti":
        return array.transpose(2, 1, 0)
    order, mirrored = canonical_axes(np.asarray(series.affine, dtype=np.float64), plane)
    turned = array[tuple(slice(None, None, -1) if flip else slice(None) for flip in mirrored)]
    return turned.transpose(*np.argsort(order)).transpose(2, 1, 0)


def file_affine(series: Series, grid: Grid) -> np.ndarray:
    """Return the affine (4, 4) to RAS mm that belongs to `in_file_order`."""
    affine = np.asarray(series.affine, dtype=np.float64) if series.kind == "nifti" else grid.affine
    return flip_lps_ras(affine)[:, [2, 1, 0, 3]]
