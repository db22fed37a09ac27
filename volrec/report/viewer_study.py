"""A study as the slice viewer takes it, and its pictures in a size that a page can carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volrec.errors import DataError
from volrec.report.inspect import printable
from volrec.report.viewer_data import (
    blend,
    colour_map,
    grey_levels,
    pack_voxels,
    pack_weights,
    png_uri,
    quantise,
    reduce_volume,
    viewer_windows,
    weight_levels,
)

__all__ = ["EDGES", "ENDS", "OPACITY", "Pictures", "ViewerStudy", "describe", "prepare"]

OPACITY = 0.6
"""Of the overlay at the beginning and on paper."""

# Letters at the edges of a picture (left, right, top, bottom) and the two ends of the stack, in the canonical order of
# `volrec.io.geometry`: the patient's right on the left of axial and coronal pictures, the front on that of sagittal.
EDGES = {
    "axial": (("R", "right"), ("L", "left"), ("A", "front"), ("P", "back")),
    "coronal": (("R", "right"), ("L", "left"), ("H", "head"), ("F", "feet")),
    "sagittal": (("A", "front"), ("P", "back"), ("H", "head"), ("F", "feet")),
}
ENDS = {
    "axial": (("F", "feet"), ("H", "head")),
    "coronal": (("A", "front"), ("P", "back")),
    "sagittal": (("R", "right"), ("L", "left")),
}


@dataclass(frozen=True, eq=False)
class ViewerStudy:
    """A study as the viewer shows it.

    Attributes
    ----------
    title : str
        Name of the study.
    facts : sequence of (name, value)
        What is known of it (truth, score); the first two stand in the list too.
    image : ndarray
        (T, H, W) int16 (HU) or floats, in canonical order.
    spacing : tuple
        (t, h, w) in mm.
    windows : sequence of (name, level, width)
        Buttons, the first is set at the beginning; empty: from the values (`viewer_windows`).
    overlay : ndarray, optional
        (T, H, W) in [0, 1], or in [-1, 1] where `signed`.
    signed : bool
        Whether the map also says what speaks against.
    slice_scores : ndarray, optional
        (T,), NaN where there is none.
    slice_score_name : str
        What they are.
    group : str
        Heading in the list ("best", "worst", "most uncertain").
    plane : {"axial", "coronal", "sagittal"}
        Of the slices.
    unit : str
        Of the voxels ("HU").
    overlay_name : str
        What the map shows.
    origin : float, optional
        Where the first slice is along the slice axis, mm in LPS; None counts from the first slice.

    Raises
    ------
    DataError
        Where shapes do not fit, or there is no such plane.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    image: np.ndarray
    spacing: tuple[float, float, float]
    windows: Sequence[tuple[str, float, float]] = ()
    overlay: np.ndarray | None = None
    signed: bool = False
    slice_scores: np.ndarray | None = None
    slice_score_name: str = "score"
    group: str = ""
    plane: str = "axial"
    unit: str = ""
    overlay_name: str = "evidence"
    origin: float | None = None

    def __post_init__(self) -> None:
        shape = self.image.shape
        faults = []
        if len(shape) != 3 or 0 in shape:
            faults.append(f"its image has the shape {shape}, not (T, H, W)")
        if self.overlay is not None and self.overlay.shape != shape:
            faults.append(f"its overlay has the shape {self.overlay.shape} and its image {shape}")
        if self.slice_scores is not None and np.shape(self.slice_scores) != shape[:1]:
            faults.append(f"it has {np.size(self.slice_scores)} slice scores for {shape[0]} slices")
        if self.plane not in EDGES:
            faults.append(f"its plane is {self.plane!r}, not axial, coronal or sagittal")
        if len(self.spacing) != 3 or not all(0 < step < math.inf for step in self.spacing):
            faults.append(f"its spacing is {self.spacing}, not three distances in mm")
        if any(not 0 < width < math.inf or not math.isfinite(level) for _, level, width in self.windows):
            faults.append("one of its windows has no level, or no width above 0")
        if faults:
            raise DataError(
                f"the study cannot be shown: {'; '.join(faults)}.",
                remedy="Give image, overlay and scores on one grid (T, H, W), with its spacing and plane.",
                where=self.title,
                code="viewer",
            )


@dataclass(frozen=True)
class Pictures:
    """A study as the page carries it.

    Attributes
    ----------
    voxels, weights : str
        Image and overlay as text; `weights` is empty where there is no overlay.
    scale, offset : float
        Value = stored * scale + offset.
    shape : tuple
        (T', H', W') of what is carried.
    group : int
        Slices of the study in one of the carried ones.
    start : int
        The carried slice that tells most, or the middle one.
    windows : tuple
        Those of the study, or from its values.
    plain, mixed : str
        PNGs of that slice, without and (where there is one) with the overlay.
    """

    voxels: str
    weights: str
    scale: float
    offset: float
    shape: tuple[int, int, int]
    group: int
    start: int
    windows: tuple[tuple[str, float, float], ...]
    plain: str
    mixed: str

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return sum(len(text) for text in (self.voxels, self.weights, self.plain, self.mixed))


def prepare(study: ViewerStudy, *, side: int, slices: int) -> Pictures:
    """Make the pictures of a study, with at most `side` rows and columns and at most `slices` slices."""
    count, rows, columns = study.image.shape
    # Each axis by itself: thick slices that became the rows of a coronal picture have none to spare.
    plane = (min(rows, side), min(columns, side))
    group = math.ceil(count / slices)
    image = study.image
    if plane != (rows, columns) or group > 1 or not np.issubdtype(image.dtype, np.signedinteger):
        whole = np.issubdtype(image.dtype, np.integer) and int(image.max()) - int(image.min()) >= 255
        image = reduce_volume(image, plane, group)
        # HU stay whole numbers: a fraction of one cannot be seen and would not compress.
        image = np.rint(image) if whole else image
    voxels, scale, offset = quantise(image)
    levels = None
    if study.overlay is not None:
        levels = weight_levels(reduce_volume(study.overlay, plane, group), signed=study.signed)
    telling = most_telling(study)
    start = (count // 2 if telling is None else telling) // group
    windows = tuple(study.windows) or viewer_windows(study.image)
    _, level, width = windows[0]
    grey = grey_levels(voxels[start] * scale + offset, level, width)
    mixed = ""
    if levels is not None:
        mixed = png_uri(blend(grey, colour_map(signed=study.signed)[levels[start]], OPACITY))
    return Pictures(
        voxels=pack_voxels(voxels),
        weights="" if levels is None else pack_weights(levels),
        scale=scale,
        offset=offset,
        shape=(len(voxels), *plane),
        group=group,
        start=start,
        windows=windows,
        plain=png_uri(grey),
        mixed=mixed,
    )


def most_telling(study: ViewerStudy) -> int | None:
    """Return the slice with the strongest evidence: by the map, else by the slice scores, else none."""
    if study.overlay is not None:
        peaks = np.nan_to_num(np.abs(study.overlay).reshape(len(study.overlay), -1).max(1))
        if peaks.max() > 0:
            return int(np.argmax(peaks))
    if study.slice_scores is not None:
        scores = np.asarray(study.slice_scores, dtype=np.float64)
        if np.isfinite(scores).any():
            return int(np.nanargmax(np.where(np.isfinite(scores), scores, np.nan)))
    return None


def describe(study: ViewerStudy, pictures: Pictures) -> dict[str, Any]:
    """Return what the viewer's script is told of a study: plain JSON types."""
    count, rows, columns = study.image.shape
    spans = [(first, min(first + pictures.group, count)) for first in range(0, count, pictures.group)]
    return {
        "title": printable(study.title),
        "facts": [[printable(name), printable(value)] for name, value in study.facts],
        "shape": list(pictures.shape),
        "mm": [columns * study.spacing[2], rows * study.spacing[1]],
        "scale": pictures.scale,
        "offset": pictures.offset,
        "start": pictures.start,
        "strongest": most_telling(study) is not None,
        "total": count,
        "slices": [slice_name(first, end, count) for first, end in spans],
        "positions": [_position(study, (first + end - 1) / 2) for first, end in spans],
        "places": [_share(first, end, count) for first, end in spans],
        "scores": [_mean_score(study, first, end) for first, end in spans],
        "score": printable(study.slice_score_name),
        "edges": [list(edge) for edge in EDGES[study.plane]],
        "ends": [word for _, word in ENDS[study.plane]],
        "plane": study.plane,
        "windows": [[printable(name), float(level), float(width)] for name, level, width in pictures.windows],
        "unit": printable(study.unit),
        "overlay": study.overlay is not None,
        "signed": study.signed,
        "evidence": printable(study.overlay_name),
        "caption": caption(study, pictures),
    }


def caption(study: ViewerStudy, pictures: Pictures) -> str:
    """Say what was done to the voxels before they were shown; empty where nothing was."""
    count, rows, columns = study.image.shape
    shown, high, wide = pictures.shape
    parts = []
    if (high, wide) != (rows, columns):
        parts.append(f"{wide} × {high} of {columns} × {rows} pixels (means over areas)")
    if pictures.group > 1:
        parts.append(f"{shown} pictures of {count} slices (means of {pictures.group})")
    return f"Reduced for this page: {' and '.join(parts)}." if parts else ""


def slice_name(first: int, end: int, count: int) -> str:
    """Return how the slices ``first`` to ``end - 1`` of `count` are called."""
    return f"slice {first + 1} of {count}" if end - first == 1 else f"slices {first + 1}–{end} of {count}"


def _position(study: ViewerStudy, place: float) -> str:
    """Say where a slice is: with DICOM's letters where the patient's coordinate is known, else from the first slice."""
    low, high = ENDS[study.plane]
    if study.origin is None:
        return f"{place * study.spacing[0]:.1f} mm from slice 1"
    millimetres = study.origin + place * study.spacing[0]
    return f"{(high if millimetres >= 0 else low)[0]} {abs(millimetres):.1f} mm"


def _share(first: int, end: int, count: int) -> float:
    """Return where the middle of some slices lies between the first slice (0) and the last (1)."""
    return (first + end - 1) / 2 / (count - 1) if count > 1 else 0.5


def _mean_score(study: ViewerStudy, first: int, end: int) -> float | None:
    if study.slice_scores is None:
        return None
    own = np.asarray(study.slice_scores[first:end], dtype=np.float64)
    own = own[np.isfinite(own)]
    return float(own.mean()) if own.size else None
