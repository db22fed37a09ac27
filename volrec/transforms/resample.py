"""Resampling to a spacing: in plane first, then through the slices; anti-aliased along every axis that shrinks.

Each axis is resampled by itself with a triangle filter. Where the new spacing is finer, the triangle is as wide as an
input voxel: linear interpolation. Where it is coarser, the triangle is as wide as an output voxel, so that everything
the output grid cannot hold is averaged away instead of folded back (the filter of Pillow's and torch's antialiased
``bilinear``). The weights of one axis form a banded matrix, applied as small dense products: this costs less than
trilinear interpolation without anti-aliasing (``tests/performance/bench_resample.py``), and needs numpy alone, so that
a decoding process starts without torch.

The grids are centred on each other: the middle of the volume stays where it is, the spacing is reached exactly, and
the number of voxels is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from volrec.errors import ConfigError, DataError
from volrec.transforms.slice_axis import spacing_of

__all__ = ["AxisGrid", "axis_grids", "resample", "resample_to_grids"]

# Outputs a product: few enough to skip most zeros of the band, which is wider where the axis shrinks.
_BLOCK_GROWING, _BLOCK_SHRINKING = 16, 8
# Multiplications a product: the largest that OpenBLAS does on one thread. Such small products spend more time waiting
# for a second thread than it saves, many times more where other processes (decoding workers) want the processors too.
_PRODUCT = 2**18
_EXACT_IN_FLOAT32 = (np.int8, np.uint8, np.int16, np.uint16)

Bands = list[tuple[slice, slice, np.ndarray]]


@dataclass(frozen=True)
class AxisGrid:
    """Where the output voxels of one axis lie in its input.

    Attributes
    ----------
    inputs, size : int
        Number of input and of output voxels.
    ratio : float
        Step of the output in input voxels; above 1 the axis shrinks.
    origin : float
        Input index (not an integer in general) of output voxel 0.
    """

    inputs: int
    size: int
    ratio: float = 1.0
    origin: float = 0.0

    def window(self, start: int, size: int) -> AxisGrid:
        """Return the same grid, `size` output voxels from `start` on."""
        return AxisGrid(self.inputs, size, self.ratio, self.origin + start * self.ratio)

    @property
    def positions(self) -> np.ndarray:
        """Input index of every output voxel, float64 ``(size,)``."""
        return self.origin + self.ratio * np.arange(self.size)

    @property
    def copies(self) -> bool:
        """Whether the output voxels are input voxels, so that a slice does."""
        return self.ratio == 1.0 and float(self.origin).is_integer() and 0 <= self.origin <= self.inputs - self.size

    @property
    def cut(self) -> slice:
        """The slice that makes the output, where `copies` holds."""
        return slice(int(self.origin), int(self.origin) + self.size)


def axis_grids(
    shape: Sequence[int], affine: np.ndarray, *, spacing: Sequence[float | None] | None
) -> tuple[AxisGrid, AxisGrid, AxisGrid]:
    """Lay the output grid of each axis over a volume.

    Parameters
    ----------
    shape : sequence of int
        ``(T, H, W)``.
    affine : numpy.ndarray
        ``(4, 4)``, index to mm.
    spacing : sequence of float or None, optional
        Wanted spacing in mm along T, H, W; None keeps the study's own, as a whole or for an axis.

    Returns
    -------
    tuple of AxisGrid
        One an axis: as many voxels as fill the extent of the input, rounded, at least one.

    Raises
    ------
    ConfigError
        If `spacing` is not three positive values.
    """
    own = spacing_of(affine)
    if spacing is None:
        wanted: list[float | None] = [None, None, None]
    else:
        wanted = list(spacing)
    if len(wanted) != 3 or any(value is not None and not (np.isfinite(value) and value > 0) for value in wanted):
        raise ConfigError(
            f"spacing must be three values in mm above zero (or null) for T, H, W; got {spacing!r}.",
            remedy="Give for example [null, 1.0, 1.0].",
            where="preprocess.spacing",
            code="spacing",
        )
    if len(shape) != 3 or min(shape) < 1:
        raise DataError(
            f"a volume of shape {tuple(shape)} cannot be resampled.",
            remedy="Give (T, H, W) with voxels on every axis.",
            code="shape",
        )
    grids = []
    for inputs, have, want in zip(shape, own, wanted, strict=True):
        ratio = 1.0 if want is None else float(want / have)
        if abs(ratio - 1.0) * inputs < 1e-3:  # Rounding in headers: a thousandth of a voxel over the whole axis.
            grids.append(AxisGrid(inputs, inputs))
            continue
        size = max(1, int(np.floor(inputs / ratio + 0.5)))
        grids.append(AxisGrid(inputs, size, ratio, (inputs - 1) / 2 - ratio * (size - 1) / 2))
    return grids[0], grids[1], grids[2]


def resample(
    array: np.ndarray,
    affine: np.ndarray,
    *,
    spacing: Sequence[float | None] | None,
    interpolation: str = "linear",
) -> tuple[np.ndarray, np.ndarray]:
    """Resample a volume to a spacing.

    Parameters
    ----------
    array : numpy.ndarray
        ``(T, H, W)``. Integers of at most 16 bits stay what they are (rounded); everything else becomes float32.
    affine : numpy.ndarray
        ``(4, 4)``, index ``(t, h, w, 1)`` to mm.
    spacing : sequence of float or None, optional
        Wanted spacing in mm along T, H, W; None keeps the study's own, as a whole or for an axis.
    interpolation : {"linear", "nearest"}
        ``"linear"`` is anti-aliased where an axis shrinks. Beyond the outermost voxel centres the edge is repeated.

    Returns
    -------
    array : numpy.ndarray
        ``(T', H', W')``.
    affine : numpy.ndarray
        ``(4, 4)`` float64 of the new grid, exact.
    """
    grids = axis_grids(array.shape, affine, spacing=spacing)
    return resample_to_grids(array, affine, grids=grids, interpolation=interpolation)


def resample_to_grids(
    array: np.ndarray, affine: np.ndarray, *, grids: Sequence[AxisGrid], interpolation: str = "linear"
) -> tuple[np.ndarray, np.ndarray]:
    """Sample a volume at the voxels of three `AxisGrid`; only these are computed (see `resample`)."""
    if interpolation not in ("linear", "nearest"):
        raise ConfigError(
            f"interpolation must be linear or nearest, got {interpolation!r}.",
            remedy="Choose one of the two.",
            where="preprocess.interpolation",
            code="interpolation",
        )
    to_old = np.diag([*(grid.ratio for grid in grids), 1.0])
    to_old[:3, 3] = [grid.origin for grid in grids]
    moved = np.asarray(affine, dtype=np.float64) @ to_old
    if all(grid.copies for grid in grids):
        return array[tuple(grid.cut for grid in grids)], moved
    if interpolation == "nearest":
        for axis, grid in enumerate(grids):
            nearest = np.clip(np.floor(grid.positions + 0.5).astype(np.intp), 0, grid.inputs - 1)
            array = array.take(nearest, axis=axis)
        return array, moved
    return _linear(array, grids), moved


def _linear(array: np.ndarray, grids: Sequence[AxisGrid]) -> np.ndarray:
    dtype = array.dtype if array.dtype in _EXACT_IN_FLOAT32 else np.dtype(np.float32)
    slices, rows, columns = grids
    bands: Bands = []
    if slices.copies:  # Only what the canvas keeps is computed.
        array = array[slices.cut]
    else:
        bands = _bands(slices)
        low = min(inputs.start for _, inputs, _ in bands)
        array = array[low : max(inputs.stop for _, inputs, _ in bands)]
        bands = [(outputs, slice(inputs.start - low, inputs.stop - low), w) for outputs, inputs, w in bands]
    if rows.copies:
        array = array[:, rows.cut]
    if columns.copies:
        array = array[:, :, columns.cut]
    planes = array if rows.copies and columns.copies else _in_plane(array, rows, columns)
    if bands:
        return _through_plane(planes, slices.size, bands, dtype)
    return planes if planes.dtype == dtype else np.rint(planes, out=planes).astype(dtype)


def _in_plane(array: np.ndarray, rows: AxisGrid, columns: AxisGrid) -> np.ndarray:
    """Resample H, then W, a slice at a time: the slice stays in cache. Gives float32 ``(T, H', W')``."""
    row_bands = None if rows.copies else _bands(rows)
    column_bands = None if columns.copies else [(j, i, np.ascontiguousarray(w.T)) for j, i, w in _bands(columns)]
    depth, height, width = array.shape
    out = np.empty((depth, rows.size, columns.size), np.float32)
    plane = np.empty((height, width), np.float32)
    squeezed = np.empty((rows.size, width), np.float32)
    for index in range(depth):
        if array.dtype == np.float32:
            plane = array[index]
        else:
            np.copyto(plane, array[index], casting="unsafe")
        if row_bands is None:
            squeezed = plane
        else:
            target = out[index] if column_bands is None else squeezed
            for outputs, inputs, weights in row_bands:
                np.matmul(weights, plane[inputs], out=target[outputs])
        if column_bands is not None:
            for outputs, inputs, weights in column_bands:
                np.matmul(squeezed[:, inputs], weights, out=out[index, :, outputs])
    return out


def _through_plane(planes: np.ndarray, size: int, bands: Bands, dtype: np.dtype) -> np.ndarray:
    """Resample T to `size` slices, in strips of rows, so that the float copy of the output stays small."""
    depth, height, width = planes.shape
    out = np.empty((size, height, width), dtype)
    largest = max(weights.size for _, _, weights in bands)
    step = max(1, _PRODUCT // largest // width)
    for start in range(0, height, step):
        strip = np.ascontiguousarray(planes[:, start : start + step], dtype=np.float32).reshape(depth, -1)
        result = np.empty((size, strip.shape[1]), np.float32)
        for outputs, inputs, weights in bands:
            np.matmul(weights, strip[inputs], out=result[outputs])
        if dtype != np.float32:
            np.rint(result, out=result)
        target = out[:, start : start + step]
        np.copyto(target, result.reshape(target.shape), casting="unsafe")
    return out


def _bands(grid: AxisGrid) -> Bands:
    """Give the weights of an axis as dense blocks: (outputs, inputs, float32 ``(outputs, inputs)``)."""
    half_width = max(grid.ratio, 1.0)
    centres = grid.positions
    if half_width == 1.0:
        centres = np.clip(centres, 0, grid.inputs - 1)  # Linear interpolation repeats the edge.
    first = np.ceil(centres - half_width).astype(np.intp)
    taps = first[:, None] + np.arange(int(np.ceil(2 * half_width)) + 1)
    # The part of the filter that reaches outside is left out, and the rest weighs more.
    weights = np.clip(1 - np.abs(taps - centres[:, None]) / half_width, 0, None)
    weights *= (taps >= 0) & (taps < grid.inputs)
    empty = weights.sum(axis=1) == 0  # Further outside than the filter is wide: the edge.
    taps[empty, 0] = np.clip(np.rint(centres[empty]), 0, grid.inputs - 1)
    weights[empty, 0] = 1.0
    weights /= weights.sum(axis=1, keepdims=True)

    blocks = []
    block = _BLOCK_SHRINKING if grid.ratio > 1 else _BLOCK_GROWING
    for start in range(0, grid.size, block):
        stop = min(start + block, grid.size)
        used = taps[start:stop][weights[start:stop] > 0]
        low, high = int(used.min()), int(used.max()) + 1
        dense = np.zeros((stop - start, high - low), np.float32)
        place, tap = np.nonzero(weights[start:stop])
        dense[place, taps[start:stop][place, tap] - low] = weights[start:stop][place, tap]
        blocks.append((slice(start, stop), slice(low, high), dense))
    return blocks
