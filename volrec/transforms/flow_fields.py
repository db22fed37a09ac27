"""What is done with fields of flow: stacks for a network, storage as integers, mirrors, linear maps, warping.

A field is ``(2, H, W)``: (x, y) in this order, x along W, y along H, in voxels, from slice t to slice t + 1. Functions
that say "or tensors" take numpy arrays and torch tensors alike and load no torch themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from volrec.errors import ConfigError, DataError

__all__ = [
    "DEFAULT_BOUND",
    "STACK_ORDERS",
    "STORED_BOUND",
    "dequantise",
    "flip_flow",
    "from_pictures",
    "quantise",
    "stack_fields",
    "subtract_mean_motion",
    "transform_vectors",
    "warp",
]

DEFAULT_BOUND = 20.0  # voxels
STORED_BOUND = 128.0
"""Bound of the fields that are kept in the store, voxels: a step of 0.004 voxels, whatever a network is then shown."""
STACK_ORDERS = ("forward", "centred", "bidirectional", "trajectory")
_STEPS = 32767  # int16 on either side of zero


def stack_fields(
    fields: np.ndarray,
    index: int | Sequence[int] | np.ndarray,
    *,
    length: int,
    order: str = "forward",
    bound: float = DEFAULT_BOUND,
) -> np.ndarray:
    """Stack the fields that a network reads with a slice, channels x1, y1, x2, y2 .. xL, yL ([1]_).

    Parameters
    ----------
    fields : numpy.ndarray
        ``(T - 1, 2, H, W)``: floats in voxels, or int16 of `quantise`. A memory map is read where it is needed alone.
    index : int or sequence of int
        Slices, each in [0, T - 1].
    length : int
        Fields of a stack (L).
    order : {"forward", "centred", "bidirectional", "trajectory"}
        ``forward``: fields t, t + 1, .. t + L - 1, all at the place of the pixel.
        ``centred``: fields t - L // 2 and the L - 1 after it ([2]_): for an even L, slice t is in their very middle.
        ``bidirectional``: L / 2 forward fields t, t + 1, .., then L / 2 backward fields t - 1, t - 2, .. . A backward
        field is minus the field of the slice before, at the same place: an approximation, good where the flow changes
        little over its own length. Exact ones would need the flow estimated from each slice to the one before.
        ``trajectory``: fields t, t + 1, .., each sampled (bilinear) where the fields before have taken the pixel;
        a path that leaves the slice stays on its border.
    bound : float
        Of int16 fields, voxels (`quantise`): a trajectory needs to know how far they go.

    Returns
    -------
    numpy.ndarray
        ``(2 L, H, W)``, for several slices ``(2 L, N, H, W)``; int16 as it was, floats as float32. Past the end of the
        fields the last one is repeated, before their begin the first one. Without any field (one slice): zeros.

    Raises
    ------
    ConfigError
        For an unknown order, a length below 1, or one that is odd with ``bidirectional``.
    DataError
        For fields of another shape or type, or a slice outside.

    References
    ----------
    .. [1] K. Simonyan, A. Zisserman, "Two-Stream Convolutional Networks for Action Recognition in Videos", NIPS 2014.
    .. [2] C. Feichtenhofer, A. Pinz, A. Zisserman, "Convolutional Two-Stream Network Fusion for Video Action
       Recognition", CVPR 2016.
    """
    indices = np.atleast_1d(np.asarray(index))
    _check_stack(fields, indices, length, order)
    count, _, height, width = fields.shape
    kept = np.int16 if fields.dtype == np.int16 else np.float32
    out = np.zeros((2 * length, len(indices), height, width), dtype=kept)
    if count:
        # Which field, and with which sign, is number k of a stack.
        steps, signs = np.arange(length), np.ones(length, dtype=np.int8)
        if order == "centred":
            steps = steps - length // 2
        elif order == "bidirectional":
            half = length // 2
            steps = np.concatenate([np.arange(half), -1 - np.arange(half)])
            signs[half:] = -1
        wanted, places = np.unique(np.clip(indices[:, None] + steps, 0, count - 1), return_inverse=True)
        places = places.reshape(len(indices), length)
        if len(wanted) and wanted[-1] - wanted[0] + 1 == len(wanted):  # neighbours are read in one go
            read = np.asarray(fields[wanted[0] : wanted[-1] + 1])
        else:
            read = np.asarray(fields[wanted])
        if order == "trajectory":
            _follow(read, places, out, bound / _STEPS if kept == np.int16 else 1.0)
        else:
            for k, sign in enumerate(signs):
                np.multiply(read[places[:, k]].swapaxes(0, 1), sign, out=out[2 * k : 2 * k + 2], casting="same_kind")
    return out[:, 0] if np.ndim(index) == 0 else out


def quantise(flow: np.ndarray, *, bound: float = DEFAULT_BOUND) -> np.ndarray:
    """Store displacements as int16: ``rint(displacement / bound * 32767)``, clipped to +-`bound` voxels.

    Displacements within the bound come back from `dequantise` with an error of at most ``bound / 65534`` (0.0003 voxels
    of 20), and float32 rounding.
    """
    _check_bound(bound)
    flow = np.asarray(flow, dtype=np.float32)
    if not np.isfinite(flow).all():
        raise DataError(
            "a displacement is not finite.", remedy="Check the slices that the flow was estimated of.", code="flow"
        )
    return np.rint(np.clip(flow / np.float32(bound), -1, 1) * _STEPS).astype(np.int16)


def dequantise(values: np.ndarray, *, bound: float = DEFAULT_BOUND) -> np.ndarray:
    """Give the displacements of `quantise` back, float32 voxels."""
    _check_bound(bound)
    return np.asarray(values, dtype=np.float32) * np.float32(bound / _STEPS)


def from_pictures(values: np.ndarray, *, bound: float = DEFAULT_BOUND) -> np.ndarray:
    """Give the displacements of 8-bit flow pictures, float32 pixels: ``(value - 128) * bound / 127.5``.

    TSN and its successors clip flow to +-20 pixels and spread it over 0 to 255; their networks take 128 as zero, which
    is half a step (0.08 pixels of 20) beside the middle, 127.5: the same is done here. With the half step of rounding,
    a displacement within the bound comes back with an error of at most one step, ``bound / 127.5``.
    """
    _check_bound(bound)
    values = np.asarray(values)
    if values.dtype != np.uint8:
        raise DataError(
            f"flow pictures are uint8, got {values.dtype}.",
            remedy="Read them with volrec.io.flow_pictures.read_flow_folder.",
            code="flow-type",
        )
    return (values.astype(np.float32) - 128) * np.float32(bound / 127.5)


def flip_flow(fields: Any, axes: Sequence[str], *, axis: int = -3) -> Any:
    """Mirror fields: along W the x components change sign, along H the y components.

    Parameters
    ----------
    fields : numpy.ndarray or torch.Tensor
        ``(..., H, W)`` with channels x1, y1, x2, y2 .. along `axis`; floats, or int16 of `quantise`.
    axes : sequence of {"H", "W"}
        A mirror along T is none of fields: a reversed volume moves from each slice to the one before.
    axis : int
        Of the channels: -3 for ``(T - 1, 2, H, W)`` and ``(2 L, H, W)``, -4 for ``(2, T - 1, H, W)`` and
        ``(B, 2 L, T, H, W)``.

    Returns
    -------
    numpy.ndarray or torch.Tensor
        A new array of the same shape and type.
    """
    unknown = [name for name in axes if name not in ("H", "W")]
    if unknown:
        raise ConfigError(
            f"flow is mirrored along H and W; got {unknown[0]!r}.",
            remedy="For a mirror along T estimate the flow of the reversed volume.",
            where="axes",
            code="flow-axes",
        )
    dims = tuple(-2 if name == "H" else -1 for name in axes)
    out = fields.flip(dims) if hasattr(fields, "flip") else np.flip(fields, dims).copy()
    for component, name in enumerate("WH"):
        if axes and name in axes:
            part = out[_component(out, component, axis)]
            part *= -1
    return out


def transform_vectors(fields: Any, matrix: np.ndarray, *, axis: int = -3) -> Any:
    """Map the vectors of fields by a matrix; the pixels stay where they are (or tensors).

    If the content of all slices is moved by one linear in-plane map A (turned, enlarged; a shift counts nothing), a
    displacement d becomes A d. The fields themselves are then resampled as images are; this function does the rest.

    Parameters
    ----------
    fields : numpy.ndarray or torch.Tensor
        Floats ``(..., H, W)`` with channels x1, y1, x2, y2 .. along `axis`, as in `flip_flow`.
    matrix : array_like
        ``(2, 2)`` in the order (x, y), voxels to voxels: where the content goes, not where a pixel is sampled. A turn
        by an angle a that brings x towards y is ``[[cos a, -sin a], [sin a, cos a]]`` on square pixels.
    axis : int
        Of the channels.

    Returns
    -------
    numpy.ndarray or torch.Tensor
        A new array of the same shape.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (2, 2) or not np.isfinite(matrix).all():
        raise ConfigError(
            f"matrix must be (2, 2) and finite, got {matrix.tolist()}.",
            remedy="Give the linear part of the map, in the order (x, y).",
            where="matrix",
            code="flow-matrix",
        )
    at_x, at_y = _component(fields, 0, axis), _component(fields, 1, axis)
    (xx, xy), (yx, yy) = matrix.tolist()
    out = fields.clone() if hasattr(fields, "clone") else np.array(fields)
    out[at_x] = xx * fields[at_x] + xy * fields[at_y]
    out[at_y] = yx * fields[at_x] + yy * fields[at_y]
    return out


def subtract_mean_motion(fields: Any) -> Any:
    """Subtract its own mean vector from each field of ``(..., H, W)`` floats (or tensors), as Two-Stream does."""
    return fields - fields.mean(axis=(-2, -1), keepdims=True)


def warp(images: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Sample images where the flow points: ``out(h, w) = image(h + y, w + x)``, bilinear, the border repeated.

    Parameters
    ----------
    images : numpy.ndarray
        ``(..., H, W)``; with the slices after those that `flow` starts from, those are restored.
    flow : numpy.ndarray
        ``(..., 2, H, W)`` voxels, with the same leading axes.

    Returns
    -------
    numpy.ndarray
        ``(..., H, W)`` float32.
    """
    images = np.asarray(images, dtype=np.float32)
    height, width = images.shape[-2:]
    planes = images.reshape(-1, 1, height, width)
    vectors = np.asarray(flow, dtype=np.float32).reshape(-1, 2, height, width)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return _sample(planes, columns + vectors[:, 0], rows + vectors[:, 1]).reshape(images.shape)


def _follow(read: np.ndarray, places: np.ndarray, out: np.ndarray, unit: float) -> None:
    """Fill `out` ``(2 L, N, H, W)`` along the paths; `unit` is the displacement of a value of 1."""
    height, width = read.shape[-2:]
    y, x = (np.broadcast_to(axis, out.shape[1:]) for axis in np.mgrid[:height, :width].astype(np.float32))
    for k in range(places.shape[1]):
        found = _sample(read[places[:, k]], x, y)  # (N, 2, H, W)
        values = found.swapaxes(0, 1)
        out[2 * k : 2 * k + 2] = np.rint(values) if out.dtype == np.int16 else values
        x = np.clip(x + np.float32(unit) * found[:, 0], 0, width - 1)
        y = np.clip(y + np.float32(unit) * found[:, 1], 0, height - 1)


def _sample(planes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample ``(N, C, H, W)`` at ``(N, H', W')``, bilinear, the border repeated; float32 ``(N, C, H', W')``."""
    batch, channels, height, width = planes.shape
    x, y = np.clip(x, 0, width - 1).reshape(batch, 1, -1), np.clip(y, 0, height - 1).reshape(batch, 1, -1)
    left, top = x.astype(np.intp), y.astype(np.intp)
    along, down = (x - left).astype(np.float32), (y - top).astype(np.float32)
    start = top * width + left
    right, below = (left < width - 1).astype(np.intp), (top < height - 1) * width
    flat = planes.reshape(batch, channels, -1)
    upper, upper_right, lower, lower_right = (
        np.take_along_axis(flat, start + step, axis=2).astype(np.float32, copy=False)
        for step in (0, right, below, right + below)
    )
    upper = upper + along * (upper_right - upper)
    lower = lower + along * (lower_right - lower)
    return (upper + down * (lower - upper)).reshape(batch, channels, height, width)


def _component(fields: Any, component: int, axis: int) -> tuple[slice, ...]:
    """Index every second channel from `component` on."""
    if fields.shape[axis] % 2:
        raise DataError(
            f"channels of flow come in pairs x, y; got shape {tuple(fields.shape)} and axis {axis}.",
            remedy="Say which axis holds them (axis=).",
            code="shape",
        )
    where = [slice(None)] * fields.ndim
    where[axis] = slice(component, None, 2)
    return tuple(where)


def _check_bound(bound: float) -> None:
    if not 0 < bound < float("inf"):
        raise ConfigError(
            f"bound must be a finite number of voxels above 0, got {bound}.",
            remedy=f"The usual bound is {DEFAULT_BOUND:g}.",
            where="flow.bound",
            code="flow-bound",
        )


def _check_stack(fields: np.ndarray, indices: np.ndarray, length: int, order: str) -> None:
    if order not in STACK_ORDERS:
        raise ConfigError(
            f"order must be one of {', '.join(STACK_ORDERS)}; got {order!r}.",
            remedy="Choose one of these.",
            where="flow.order",
            code="flow-order",
        )
    if length < 1 or (order == "bidirectional" and length % 2):
        raise ConfigError(
            f"a {order} stack cannot hold {length} fields.",
            remedy="Give an even number." if order == "bidirectional" else "Give at least 1.",
            where="flow.length",
            code="flow-length",
        )
    if fields.ndim != 4 or fields.shape[1] != 2 or (fields.dtype != np.int16 and fields.dtype.kind != "f"):
        raise DataError(
            f"fields are (T - 1, 2, H, W) in floats or int16, got {fields.dtype} of shape {fields.shape}.",
            remedy="Bring 8-bit pictures to voxels with from_pictures.",
            code="flow-type",
        )
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or (len(indices) and indices.min() < 0) or (
        len(indices) and indices.max() > len(fields)
    ):  # fmt: skip
        raise DataError(
            f"slices must be integers from 0 to {len(fields)}, got {indices.tolist()}.",
            remedy="A volume of T slices has T - 1 fields.",
            code="index",
        )
