"""What the slice viewer carries: volumes made small enough for a page, packed as text, and their colours.

A volume is int16 with a scale and an offset, so that every window is computed from true values. Neighbouring voxels are
alike: differences along the rows, folded to small positive numbers and split into low and high bytes, deflate to about
three quarters of what the voxels themselves would take (CT of the liver, 41 x 256 x 256: 1.81 of 2.42 MB).
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from volrec.transforms.windows import WINDOWS

__all__ = [
    "Packed",
    "blend",
    "colour_map",
    "grey_levels",
    "pack_voxels",
    "pack_weights",
    "png_uri",
    "quantise",
    "reduce_volume",
    "viewer_windows",
    "weight_levels",
]

ZERO = 127
"""Byte that stands for no evidence in a signed map; 0 and 254 are the strongest against and for."""

# Colours that the common colour deficiencies keep apart from each other and from grey (M. Okabe, K. Ito, "Color
# Universal Design", 2008): orange and yellow for, blue for against. They get brighter as they get stronger.
_FOR = ((0.0, (166, 60, 0)), (0.35, (213, 94, 0)), (0.7, (240, 160, 30)), (1.0, (255, 236, 110)))
_AGAINST = ((0.0, (0, 60, 120)), (0.35, (0, 114, 178)), (0.7, (86, 180, 233)), (1.0, (190, 232, 255)))
_CT = ("soft-tissue", "lung", "bone", "liver", "brain", "mediastinum")


@dataclass(frozen=True)
class Packed:
    """Voxels as they stand in the page.

    Attributes
    ----------
    text : str
        Base64 of a zlib stream.
    scale, offset : float
        Value = stored * scale + offset.
    """

    text: str
    scale: float = 1.0
    offset: float = 0.0


def viewer_windows(image: np.ndarray, *, modality: str = "") -> tuple[tuple[str, float, float], ...]:
    """Return the windows that a reader expects to find as buttons: (name, level, width).

    CT has its presets in HU. Everything else has ranges of the study's own values, of the voxels above the lowest
    value: air would otherwise take the lower percentiles.

    Parameters
    ----------
    image : ndarray
        (T, H, W).
    modality : str
        As in DICOM; "CT" gives the presets.
    """
    if modality.upper() == "CT":
        return tuple((name.replace("-", " "), *WINDOWS[name]) for name in _CT)
    sample = np.asarray(image)[:: max(1, len(image) // 32), ::2, ::2].astype(np.float64).ravel()
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return (("full range", 0.5, 1.0),)
    lowest, highest = float(np.nanmin(image)), float(np.nanmax(image))
    inner = sample[sample > lowest]
    inner = inner if inner.size else sample
    found = [
        ("standard", *np.percentile(inner, [1, 99.5])),
        ("high contrast", *np.percentile(inner, [10, 95])),
        ("full range", lowest, highest),
    ]
    return tuple((name, float(low + high) / 2, float(high - low) or 1.0) for name, low, high in found)


def reduce_volume(array: np.ndarray, shape: tuple[int, int], group: int) -> np.ndarray:
    """Return the means over areas of the plane and over groups of slices.

    Parameters
    ----------
    array : ndarray
        (T, H, W).
    shape : tuple
        Rows and columns of the result, at most those of `array`. A voxel that lies across two new ones counts in both
        by its share.
    group : int
        Slices that become one; the last group may be smaller.

    Returns
    -------
    ndarray
        float32 (ceil(T / group), rows, columns); values that are not finite count as the lowest finite one.
    """
    rows, columns = (_shares(old, new) for old, new in zip(array.shape[1:], shape, strict=True))
    finite = np.isfinite(array)
    low = float(array[finite].min()) if finite.any() else 0.0
    slices = []
    for start in range(0, len(array), group):
        plane = array[start : start + group].astype(np.float32)
        plane[~finite[start : start + group]] = low
        mean = plane.mean(0, dtype=np.float64).astype(np.float32)
        slices.append(mean if mean.shape == shape else rows @ mean @ columns.T)
    return np.stack(slices).astype(np.float32)


def quantise(array: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return int16 voxels with the scale and the offset that give the values back.

    Whole numbers within int16 are kept as they are. Of anything else the middle 99.8 % of the values get 4,096 levels,
    as many as a scanner gives, and outliers as many more as they need: finer steps would hold noise, which no
    compression takes.
    """
    low, high = float(array.min()), float(array.max())
    if low >= -32768 and high <= 32767 and bool(np.all(array == np.rint(array))):
        return array.astype(np.int16), 1.0, 0.0
    inner_low, inner_high = (float(value) for value in np.percentile(array, [0.1, 99.9]))
    scale = max((inner_high - inner_low) / 4095, (high - low) / 65535) or 1.0
    levels = np.rint((array.astype(np.float64) - low) / scale) - 32768
    return np.clip(levels, -32768, 32767).astype(np.int16), scale, low + 32768 * scale


def pack_voxels(voxels: np.ndarray) -> str:
    """Return int16 voxels as text: differences, folded, bytes apart, deflated, base64."""
    flat = np.ascontiguousarray(voxels, dtype=np.int16).ravel()
    step = np.diff(flat.view(np.uint16), prepend=np.uint16(0)).view(np.int16)
    folded = ((step << 1) ^ (step >> 15)).view(np.uint16)
    planes = np.concatenate([(folded & 255).astype(np.uint8), (folded >> 8).astype(np.uint8)])
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode("ascii")


def pack_weights(levels: np.ndarray) -> str:
    """Return uint8 levels of a map as text."""
    step = np.diff(np.ascontiguousarray(levels, dtype=np.uint8).ravel(), prepend=np.uint8(0))
    return base64.b64encode(zlib.compress(step.tobytes(), 9)).decode("ascii")


def weight_levels(overlay: np.ndarray, *, signed: bool) -> np.ndarray:
    """Return a map as bytes: [0, 1] on 0 to 255, or [-1, 1] on 0 to 254 around `ZERO`."""
    if signed:
        return (np.rint(np.clip(overlay, -1, 1) * ZERO) + ZERO).astype(np.uint8)
    return np.rint(np.clip(overlay, 0, 1) * 255).astype(np.uint8)


def colour_map(*, signed: bool) -> np.ndarray:
    """Return the colour of every byte of a map, uint8 (256, 4) RGBA: where there is nothing it is clear."""
    if not signed:
        return _ramp(np.linspace(0, 1, 256), _FOR)
    values = (np.arange(256) - ZERO) / ZERO
    table = np.where(values[:, None] < 0, _ramp(np.abs(values).clip(0, 1), _AGAINST), _ramp(values.clip(0, 1), _FOR))
    return table.astype(np.uint8)


def grey_levels(plane: np.ndarray, level: float, width: float) -> np.ndarray:
    """Return values through a window as uint8: its lower end is black, its upper end white."""
    share = (np.asarray(plane, dtype=np.float64) - (level - width / 2)) / width
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def blend(grey: np.ndarray, colours: np.ndarray, opacity: float) -> np.ndarray:
    """Return grey (H, W) under colours (H, W, 4), as uint8 (H, W, 3)."""
    alpha = colours[..., 3:].astype(np.float64) / 255 * opacity
    return np.rint(grey[..., None] * (1 - alpha) + colours[..., :3] * alpha).astype(np.uint8)


def png_uri(picture: np.ndarray) -> str:
    """Return a picture (H, W) or (H, W, 3) of uint8 as the address of a PNG that carries itself."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _shares(old: int, new: int) -> np.ndarray:
    """Return float32 (new, old): how much of each new voxel every old one covers."""
    edges = np.arange(new + 1) * (old / new)
    places = np.arange(old)
    covered = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return (np.clip(covered, 0, None) * (new / old)).astype(np.float32)


def _ramp(values: np.ndarray, stops: Sequence[tuple[float, tuple[int, int, int]]]) -> np.ndarray:
    """Return uint8 RGBA (N, 4) of values in [0, 1]: weak evidence lets the anatomy through."""
    places = [place for place, _ in stops]
    colours = [np.interp(values, places, [colour[channel] for _, colour in stops]) for channel in range(3)]
    alpha = 255 * np.minimum(1, values * 1.5) ** 0.9
    return np.rint(np.stack([*colours, alpha], -1)).astype(np.uint8)
