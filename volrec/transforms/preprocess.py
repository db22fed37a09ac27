"""What is done to a decoded volume once, before the store: resample, then crop or pad, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from volrec.errors import DataError
from volrec.transforms.canvas import check_canvas, margins, pad
from volrec.transforms.resample import AxisGrid, axis_grids, resample_to_grids

__all__ = ["own_region", "preprocess_array", "preprocessed_shape"]

Grids = tuple[AxisGrid, AxisGrid, AxisGrid]


def preprocess_array(
    array: np.ndarray,
    affine: np.ndarray,
    *,
    spacing: Sequence[float | None] | None = None,
    canvas: Sequence[int | None] | None = None,
    interpolation: str = "linear",
    padding: str = "minimum",
) -> tuple[np.ndarray, np.ndarray]:
    """Bring a volume to spacing and canvas: `resample` followed by `crop_or_pad`, computing only what is kept.

    Parameters
    ----------
    array : numpy.ndarray
        ``(T, H, W)`` in canonical order.
    affine : numpy.ndarray
        ``(4, 4)``, index ``(t, h, w, 1)`` to LPS mm.
    spacing : sequence of float or None, optional
        Wanted spacing in mm along T, H, W; None keeps the study's own, as a whole or for an axis.
    canvas : sequence of int or None, optional
        Voxels along T, H, W, around the centre; None keeps what the resampling gives.
    interpolation : {"linear", "nearest"}
        ``"linear"`` is anti-aliased where an axis shrinks.
    padding : {"minimum", "edge", "zero"}
        What fills the canvas around a smaller study; ``"minimum"`` is the smallest value of the whole input.

    Returns
    -------
    array : numpy.ndarray
        C-contiguous ``(T', H', W')``; int16 stays int16 (rounded), float32 stays float32, other floats become float32.
    affine : numpy.ndarray
        ``(4, 4)`` float64 of the new grid.

    Raises
    ------
    ConfigError
        For a spacing, canvas, interpolation or padding that cannot be.
    DataError
        If `array` is not three-dimensional or its affine has no spacing.
    """
    if array.ndim != 3:
        raise DataError(
            f"a volume has shape (T, H, W), got {array.shape}.",
            remedy="Give one channel of one volume at a time.",
            code="shape",
        )
    grids, before, sizes = _plan(array.shape, affine, spacing, canvas, padding)
    if array.dtype.kind == "f" and array.dtype != np.float32:
        array = array.astype(np.float32)
    kept, moved = resample_to_grids(array, affine, grids=grids, interpolation=interpolation)
    moved[:3, 3] -= moved[:3, :3] @ before
    return np.ascontiguousarray(pad(kept, before, sizes, padding=padding, minimum=array)), moved


def preprocessed_shape(
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    spacing: Sequence[float | None] | None = None,
    canvas: Sequence[int | None] | None = None,
) -> tuple[int, int, int]:
    """Return the ``(T', H', W')`` that `preprocess_array` would give, from shape and affine alone."""
    _, _, sizes = _plan(shape, affine, spacing, canvas, "minimum")
    return sizes


def own_region(
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    spacing: Sequence[float | None] | None = None,
    canvas: Sequence[int | None] | None = None,
) -> tuple[slice, slice, slice]:
    """Return where, in the result of `preprocess_array`, the study's own voxels lie: everything else is padding."""
    grids, before, _ = _plan(shape, affine, spacing, canvas, "minimum")
    regions = [slice(first, first + grid.size) for first, grid in zip(before, grids, strict=True)]
    return regions[0], regions[1], regions[2]


def _plan(
    shape: Sequence[int],
    affine: np.ndarray,
    spacing: Sequence[float | None] | None,
    canvas: Sequence[int | None] | None,
    padding: str,
) -> tuple[Grids, list[int], tuple[int, int, int]]:
    wanted = check_canvas(canvas, padding)
    grids, before, sizes = [], [], []
    for grid, want in zip(axis_grids(shape, affine, spacing=spacing), wanted, strict=True):
        padded, first, kept = margins(grid.size, want)
        grids.append(grid.window(first, kept))
        before.append(padded)
        sizes.append(kept if want is None else want)
    return (grids[0], grids[1], grids[2]), before, (sizes[0], sizes[1], sizes[2])
