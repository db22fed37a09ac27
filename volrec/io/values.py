"""Stored values to what they mean: rescaled, padding made air, lost slices and tilt made good.

Sources: DICOM PS3.3 C.7.6.3 (stored values, padding) and C.11.1 (rescale).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from volrec.io.geometry import shear_stack
from volrec.io.headers import Header
from volrec.io.pixels import stored_values
from volrec.io.series import Series

__all__ = ["decode_series"]

AIR_HU = -1024

_MEASURED = frozenset({"CT", "PT", "NM"})  # stored values are physical: MONOCHROME1 only says how to show them


def decode_series(series: Series, *, jobs: int = 1) -> tuple[np.ndarray, list[dict[str, Any]], str]:
    """Decode all slices of a DICOM series.

    Parameters
    ----------
    series : Series
        Usable, or lacking a single slice that may be interpolated.
    jobs : int
        Processes for compressed slices.

    Returns
    -------
    array : ndarray
        (T, H, W) of `series.shape`: int16 where every value is whole and fits, else float32.
    corrections : list of dict
        ``{"code": …, "text": …}``: what was changed.
    units : str
        ``"HU"`` for CT, else what the headers state.

    Raises
    ------
    DataError
        A file is gone, changed, damaged, or needs a decoder that is not installed.
    """
    headers = series.headers
    raw = stored_values(headers, jobs=jobs)
    corrections: list[dict[str, Any]] = []
    array, fill = _values(raw, headers, corrections)
    if series.missing:
        array = _with_interpolated(array, series, corrections)
    if series.shifts:
        array = shear_stack(array, series.shape, np.asarray(series.shifts), fill)
        corrections.append(
            {
                "code": "tilt",
                "text": f"gantry tilt of {series.tilt:.2f} degrees undone: slices shifted in plane by linear"
                f" interpolation, {fill:g} outside",
                "degrees": series.tilt,
            }
        )
    return array, corrections, _units(headers[0])


def _units(header: Header) -> str:
    if header.modality == "CT" and header.rescale_type in ("", "HU", "US"):
        return "HU"
    return header.rescale_type or header.units


def _values(raw: np.ndarray, headers: Sequence[Header], corrections: list[dict[str, Any]]) -> tuple[np.ndarray, float]:
    """Return values, and what lies outside the image (air, or the lowest value)."""
    extremes = np.array([(plane.min(), plane.max()) for plane in raw])
    padding = _padding_ranges(headers, extremes)
    if raw.dtype.kind in "iu":
        _drop_unused_bits(raw, headers, extremes, padding, corrections)
    if padding is None and any(header.padding is not None for header in headers):
        inside = next(header.padding for header in headers if header.padding is not None)
        if _occurs(raw, headers):
            corrections.append(
                {
                    "code": "padding-ignored",
                    "text": f"PixelPaddingValue {inside} lies among the image's own values: left as they are",
                }
            )
    masks = _padding_masks(raw, padding, extremes)
    if _shown_inverted(headers[0]):
        _invert(raw, headers, extremes)
        corrections.append({"code": "monochrome1", "text": "MONOCHROME1: values turned so that bright means high"})
    valid = _valid_extremes(raw, extremes, masks)
    slopes = np.array([header.slope for header in headers])
    intercepts = np.array([header.intercept for header in headers])
    low, high = _range_of(valid, slopes, intercepts)
    is_ct = headers[0].modality == "CT"
    # Padding is air in CT; elsewhere the darkest there is. Zero stays zero: it is background already.
    fill = float(AIR_HU) if is_ct else low
    whole = raw.dtype.kind in "iu" and not (slopes % 1).any() and not (intercepts % 1).any()
    if whole and min(low, fill) >= -32768 and max(high, fill) <= 32767:
        array = _whole_values(raw, slopes, intercepts)
    else:
        array = _real_values(raw, slopes, intercepts)
    replaced = 0
    for number, mask in masks.items():
        before = array[number][mask]
        if before.size and float(before[0]) != fill and (is_ct or float(before[0]) != 0):
            array[number][mask] = fill
            replaced += before.size
    if replaced:
        corrections.append({"code": "padding", "text": f"{replaced} padding voxels became {fill:g}", "value": fill})
    if array.dtype == np.float32 and raw.dtype.kind == "f":
        array = _finite(array, corrections)
    return array, fill if is_ct else float(array.min())


def _padding_ranges(headers: Sequence[Header], extremes: np.ndarray) -> list[tuple[int, int]] | None:
    """Return the padded range of each slice, or None: no padding, or a value that lies among the image's own.

    By the standard a padding value is no image value. Where voxels lie both below and above it, the header is
    mistaken, and applying it would make holes in the patient.
    """
    if all(header.padding is None for header in headers):
        return None
    ranges = []
    for header in headers:
        if header.padding is None:
            ranges.append((1, 0))
            continue
        limit = header.padding if header.padding_limit is None else header.padding_limit
        ranges.append((min(header.padding, limit), max(header.padding, limit)))
    lowest, highest = extremes[:, 0].min(), extremes[:, 1].max()
    for low, high in ranges:
        if low <= high and low > lowest and high < highest:
            return None
    return ranges


def _occurs(raw: np.ndarray, headers: Sequence[Header]) -> bool:
    return any(
        header.padding is not None and bool((plane == header.padding).any())
        for plane, header in zip(raw, headers, strict=True)
    )


def _padding_masks(
    raw: np.ndarray, padding: list[tuple[int, int]] | None, extremes: np.ndarray
) -> dict[int, np.ndarray]:
    if padding is None:
        return {}
    masks = {}
    for number, ((low, high), (lowest, highest)) in enumerate(zip(padding, extremes, strict=True)):
        if low > high or high < lowest or low > highest:
            continue
        plane = raw[number]
        mask = plane == low if low == high else (plane >= low) & (plane <= high)
        if mask.any():
            masks[number] = mask
    return masks


def _drop_unused_bits(
    raw: np.ndarray,
    headers: Sequence[Header],
    extremes: np.ndarray,
    padding: list[tuple[int, int]] | None,
    corrections: list[dict[str, Any]],
) -> None:
    """Make stored values lie in the bits they are said to have (old overlays and missing signs sit in the others)."""
    changed = 0
    for number, header in enumerate(headers):
        plane = raw[number]
        bits = 8 * raw.dtype.itemsize
        shift = header.high_bit + 1 - header.bits_stored
        if header.bits_stored >= min(header.bits_allocated, bits) and shift <= 0:
            continue
        if shift > 0:
            plane >>= shift
        spare = bits - header.bits_stored
        low = -(1 << header.bits_stored - 1) if header.signed else 0
        high = (1 << header.bits_stored - 1) - 1 if header.signed else (1 << header.bits_stored) - 1
        if shift <= 0 and extremes[number, 0] >= low and extremes[number, 1] <= high:
            continue
        fixed = (plane << spare) >> spare
        if padding is not None and padding[number][0] <= padding[number][1]:
            is_padding = (plane >= padding[number][0]) & (plane <= padding[number][1])
            fixed = np.where(is_padding, plane, fixed)
        if (fixed != plane).any() or shift > 0:
            plane[...] = fixed
            changed += 1
            extremes[number] = plane.min(), plane.max()
    if changed:
        corrections.append({"code": "unused-bits", "text": f"bits beyond BitsStored were cleared in {changed} slices"})


def _shown_inverted(header: Header) -> bool:
    return header.photometric == "MONOCHROME1" and header.modality not in _MEASURED and header.rescale_type != "HU"


def _invert(raw: np.ndarray, headers: Sequence[Header], extremes: np.ndarray) -> None:
    for number, header in enumerate(headers):
        total = -1 if header.signed else (1 << header.bits_stored) - 1
        if raw.dtype.kind == "f":
            total = 0
        np.subtract(raw.dtype.type(total), raw[number], out=raw[number])
        extremes[number] = total - extremes[number, 1], total - extremes[number, 0]


def _valid_extremes(raw: np.ndarray, extremes: np.ndarray, masks: dict[int, np.ndarray]) -> np.ndarray:
    """Return lowest and highest value of each slice that is no padding; NaN where all is."""
    valid = extremes.astype(np.float64)
    for number, mask in masks.items():
        inner = raw[number][~mask]
        valid[number] = (inner.min(), inner.max()) if inner.size else (np.nan, np.nan)
    return valid


def _range_of(valid: np.ndarray, slopes: np.ndarray, intercepts: np.ndarray) -> tuple[float, float]:
    ends = valid * slopes[:, None] + intercepts[:, None]
    ends = ends[np.isfinite(ends)]
    return (float(ends.min()), float(ends.max())) if ends.size else (0.0, 0.0)


def _whole_values(raw: np.ndarray, slopes: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
    """Rescale whole numbers whose results are known to fit into int16.

    Arithmetic modulo 2^16 gives the right 16 bits whatever overflows on the way, so 16-bit pixels are rescaled where
    they are; voxels that overflow in the end are padding, which is filled afterwards.
    """
    array = raw.view(np.int16) if raw.dtype.itemsize == 2 else raw.astype(np.int16)
    for number, (slope, intercept) in enumerate(zip(slopes, intercepts, strict=True)):
        if slope != 1:
            array[number] *= _wrapped(slope)
        if intercept != 0:
            array[number] += _wrapped(intercept)
    return array


def _wrapped(value: float) -> np.int16:
    return np.int16((int(value) + 32768) % 65536 - 32768)


def _real_values(raw: np.ndarray, slopes: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
    array = np.empty(raw.shape, dtype=np.float32)
    for number, (slope, intercept) in enumerate(zip(slopes, intercepts, strict=True)):
        if slope == 1 and intercept == 0:
            array[number] = raw[number]
        else:
            array[number] = raw[number] * np.float64(slope) + intercept
    return array


def _finite(array: np.ndarray, corrections: list[dict[str, Any]]) -> np.ndarray:
    finite = np.isfinite(array)
    if finite.all():
        return array
    lost = int(array.size - np.count_nonzero(finite))
    lowest = float(array[finite].min()) if lost < array.size else 0.0
    corrections.append(
        {"code": "non-finite", "text": f"{lost} voxels that are no finite number became the minimum, {lowest:g}"}
    )
    array[~finite] = lowest
    return array


def _with_interpolated(array: np.ndarray, series: Series, corrections: list[dict[str, Any]]) -> np.ndarray:
    """Put the mean of its two neighbours where a slice is missing."""
    complete = np.empty((len(series.headers) + len(series.missing), *array.shape[1:]), dtype=array.dtype)
    present = np.setdiff1d(np.arange(len(complete)), series.missing)
    complete[present] = array
    for number in series.missing:
        mean = (complete[number - 1].astype(np.float32) + complete[number + 1].astype(np.float32)) / 2
        complete[number] = np.rint(mean) if array.dtype == np.int16 else mean
    corrections.append(
        {
            "code": "missing-slice",
            "text": f"slice {series.missing[0]} was missing: the mean of its neighbours",
            "slices": list(series.missing),
        }
    )
    return complete
