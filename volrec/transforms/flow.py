"""Optical flow between neighbouring slices, and their difference: the motion streams of a volume or a video.

The field of slice t says where what lies in slice t has moved to in slice t + 1: components (x, y) in this order, x
along W, y along H, in voxels (pixels). So ``warp(next, flow)(h, w) = next(h + y, w + x)`` restores slice t.

These are functions of numpy arrays that load neither torch nor MONAI: a decoding process may call them.
`volrec.transforms.streams` has the MONAI transforms, `volrec.transforms.drift` the flow without the motion of the
camera, `volrec.transforms.flow_fields` what is done with fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from volrec.errors import DataError
from volrec.progress import track
from volrec.transforms.flow_estimators import METHODS, SETTINGS, find_estimator

__all__ = ["FLOW_METHODS", "estimate_flow", "flow_backend", "flow_settings", "slice_difference", "slice_flow"]

FLOW_METHODS = METHODS
_SMALLEST = 16  # A side that every estimator can read.
_TOLERANCE = 1e-4  # What interpolation and rounding may leave outside of [0, 1].


def estimate_flow(
    first: np.ndarray, second: np.ndarray, *, method: str = "tvl1", spacing: Sequence[float] = (1.0, 1.0)
) -> np.ndarray:
    """Estimate where each pixel of one slice lies in another.

    Parameters
    ----------
    first, second : numpy.ndarray
        ``(H, W)`` of one shape: floats in [0, 1] (windowed), or uint8. A slice with a side below 16 pixels is enlarged
        for the estimator by repeating its border. ``dis`` reads 8 bits: floats are rounded to 255 steps for it.
    method : {"tvl1", "farneback", "dis", "demons"}
        See `volrec.transforms.flow_estimators`.
    spacing : (float, float)
        Along H and W, mm. ``demons`` is as stiff along both in mm; the others see pixels alone.

    Returns
    -------
    numpy.ndarray
        ``(2, H, W)`` float32, (x, y) in pixels. Exactly zero where both slices are the same.

    Raises
    ------
    ConfigError
        For an unknown method, or one whose package is not installed.
    DataError
        For shapes that differ, values outside [0, 1] or not finite, or a spacing that is not above zero.
    """
    estimator = find_estimator(method)[2]
    first, second = _unit(first, ndim=2), _unit(second, ndim=2)
    if first.shape != second.shape:
        raise DataError(
            f"both slices must have one shape, got {first.shape} and {second.shape}.",
            remedy="Bring them to one grid first.",
            code="shape",
        )
    steps = _check_spacing(spacing, 2)
    height, width = first.shape
    if np.array_equal(first, second):  # Not every estimator finds exactly nothing.
        return np.zeros((2, height, width), dtype=np.float32)
    edges = [(0, max(0, _SMALLEST - side)) for side in (height, width)]
    if any(after for _, after in edges):
        first, second = (np.pad(image, edges, mode="edge") for image in (first, second))
    flow = estimator(np.ascontiguousarray(first), np.ascontiguousarray(second), steps)
    return np.ascontiguousarray(flow[:, :height, :width], dtype=np.float32)


def slice_flow(
    volume: np.ndarray,
    *,
    method: str = "tvl1",
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    progress: bool = False,
) -> np.ndarray:
    """Estimate the flow from every slice to the next.

    Parameters
    ----------
    volume : numpy.ndarray
        ``(T, H, W)``: floats in [0, 1] (windowed), or uint8.
    method : {"tvl1", "farneback", "dis", "demons"}
        As in `estimate_flow`.
    spacing : (float, float, float)
        Along T, H, W, mm; that along T is not used.
    progress : bool
        Show a bar on a terminal.

    Returns
    -------
    numpy.ndarray
        ``(T - 1, 2, H, W)`` float32 in voxels.

    Raises
    ------
    ConfigError, DataError
        As `estimate_flow`.
    """
    volume = _unit(volume, ndim=3)
    steps = _check_spacing(spacing, 3)[1:]
    find_estimator(method)  # A method that is missing is told before the first slice, and for one slice too.
    depth, height, width = volume.shape
    fields = np.zeros((depth - 1, 2, height, width), dtype=np.float32)
    pairs = range(depth - 1)
    for t in track(pairs, "estimating flow") if progress else pairs:
        fields[t] = estimate_flow(volume[t], volume[t + 1], method=method, spacing=steps)
    return fields


def slice_difference(volume: np.ndarray) -> np.ndarray:
    """Subtract each slice from the next: ``(..., T, H, W)`` to ``(..., T - 1, H, W)`` float32, in the input's units."""
    volume = np.asarray(volume)
    if volume.ndim < 3 or volume.shape[-3] < 1:
        raise DataError(
            f"a volume has shape (..., T, H, W), got {volume.shape}.",
            remedy="Give at least one slice of two axes.",
            code="shape",
        )
    volume = volume.astype(np.float32, copy=False)
    return volume[..., 1:, :, :] - volume[..., :-1, :, :]


def flow_backend(method: str) -> str:
    """Name what estimates `method` here, for example ``"opencv-4.13 tvl1"`` or ``"scikit-image-0.25 tvl1"``.

    Fields that are kept belong to this name and to `flow_settings`: two packages do not find the same field.

    Raises
    ------
    ConfigError
        For an unknown method, or one whose package is not installed.
    """
    return f"{find_estimator(method)[0]} {method}"


def flow_settings(method: str) -> dict[str, Any]:
    """Return the constants that `method` is run with here (`volrec.transforms.flow_estimators.SETTINGS`)."""
    return dict(SETTINGS[find_estimator(method)[1]])


def _unit(image: np.ndarray, *, ndim: int) -> np.ndarray:
    """Check shape and range, and give float32 in [0, 1]."""
    image = np.asarray(image)
    axes = "(T, H, W)" if ndim == 3 else "(H, W)"
    if image.ndim != ndim or not image.size:
        raise DataError(
            f"flow is estimated of {axes}, got an array of shape {image.shape}.",
            remedy="Give one channel, with no empty axis.",
            code="shape",
        )
    if image.dtype == np.uint8:
        return image.astype(np.float32) / np.float32(255)
    if image.dtype.kind != "f":
        raise DataError(
            f"flow is estimated of floats in [0, 1] or of uint8, got {image.dtype}.",
            remedy="Show the volume through a window first (window_channels).",
            code="flow-range",
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # False for values that are not finite, too.
        raise DataError(
            f"flow is estimated of values in [0, 1], got values from {low:g} to {high:g}.",
            remedy="Show the volume through a window first (window_channels).",
            code="flow-range",
        )
    return image.astype(np.float32, copy=False)


def _check_spacing(spacing: Sequence[float], count: int) -> list[float]:
    steps = np.asarray(spacing, dtype=np.float64)
    if steps.shape != (count,) or not (np.isfinite(steps).all() and (steps > 0).all()):
        raise DataError(
            f"spacing must be {count} finite values above zero, got {tuple(spacing)}.",
            remedy=f"Give mm along {'T, H, W' if count == 3 else 'H, W'}.",
            code="spacing",
        )
    return [float(step) for step in steps]
