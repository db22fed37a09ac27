"""Crop or pad a volume around its centre to a canvas of fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from volrec.errors import ConfigError

__all__ = ["check_canvas", "crop_or_pad", "margins"]

PADDINGS = ("minimum", "edge", "zero")


def check_canvas(canvas: Sequence[int | None] | None, padding: str) -> tuple[int | None, int | None, int | None]:
    """Return the canvas as three entries, None where an axis is kept; raise `ConfigError` for anything else."""
    wanted = [None, None, None] if canvas is None else list(canvas)
    if len(wanted) != 3 or any(size is not None and (size != int(size) or size < 1) for size in wanted):
        raise ConfigError(
            f"canvas must be three sizes in voxels (or null) for T, H, W; got {canvas!r}.",
            remedy="Give for example [null, 224, 224].",
            where="preprocess.canvas",
            code="canvas",
        )
    if padding not in PADDINGS:
        raise ConfigError(
            f"padding must be one of {', '.join(PADDINGS)}; got {padding!r}.",
            remedy="Choose one of these.",
            where="preprocess.padding",
            code="padding",
        )
    return wanted[0], wanted[1], wanted[2]


def margins(size: int, wanted: int | None) -> tuple[int, int, int]:
    """Return (voxels padded before, first voxel kept, voxels kept) of an axis of `size` on a canvas of `wanted`.

    Cropping what was padded gives back the same voxels: both put the odd voxel on the far side.
    """
    if wanted is None or wanted == size:
        return 0, 0, size
    if wanted > size:
        return (wanted - size) // 2, 0, size
    return 0, (size - wanted) // 2, wanted


def crop_or_pad(
    array: np.ndarray,
    affine: np.ndarray,
    *,
    canvas: Sequence[int | None] | None,
    padding: str = "minimum",
) -> tuple[np.ndarray, np.ndarray]:
    """Crop or pad the last three axes around the centre.

    Parameters
    ----------
    array : numpy.ndarray
        ``(..., T, H, W)``.
    affine : numpy.ndarray
        ``(4, 4)``, index ``(t, h, w, 1)`` to mm.
    canvas : sequence of int or None, optional
        Voxels along T, H, W; None keeps an axis.
    padding : {"minimum", "edge", "zero"}
        What fills the canvas around a smaller volume: the smallest value of the whole input, the outermost voxels
        repeated, or 0.

    Returns
    -------
    array : numpy.ndarray
        A view where nothing is padded.
    affine : numpy.ndarray
        ``(4, 4)`` float64: every kept voxel stays at its place in mm.

    Raises
    ------
    ConfigError
        For a canvas that is not three sizes, or an unknown padding.
    """
    wanted = check_canvas(canvas, padding)
    parts = [margins(size, want) for size, want in zip(array.shape[-3:], wanted, strict=True)]
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] += moved[:3, :3] @ [first - before for before, first, _ in parts]
    where: list[Any] = [Ellipsis, *(slice(first, first + kept) for _, first, kept in parts)]
    cropped = array[tuple(where)]
    sizes = [kept if want is None else want for (_, _, kept), want in zip(parts, wanted, strict=True)]
    before = [part[0] for part in parts]
    return pad(cropped, before, sizes, padding=padding, minimum=array), moved


def pad(
    array: np.ndarray, before: Sequence[int], sizes: Sequence[int], *, padding: str, minimum: np.ndarray
) -> np.ndarray:
    """Put `array` on a canvas of `sizes` at `before`; padding ``"minimum"`` takes the smallest value of `minimum`."""
    if tuple(array.shape[-3:]) == tuple(sizes):
        return array
    leading = array.ndim - 3
    widths = [(0, 0)] * leading + [
        (first, size - first - kept) for first, size, kept in zip(before, sizes, array.shape[-3:], strict=True)
    ]
    if padding == "edge":
        return np.pad(array, widths, mode="edge")
    value = 0 if padding == "zero" else minimum.min()
    return np.pad(array, widths, mode="constant", constant_values=value)
