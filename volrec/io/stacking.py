"""Frames of one volume to an ordered stack: position decides; what does not fit is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from volrec.io.geometry import CANONICAL, resheared, stacking_plane
from volrec.io.grouping import SAME_PLACE_MM, normal_of
from volrec.io.headers import Header

__all__ = ["Stack", "stack_frames"]

_UNEVEN = 0.05
"""Largest deviation of a slice from an even grid, as a share of the spacing, that rounding explains."""
_UNEVEN_MM = 0.11
"""The same in mm: positions rounded to a tenth make gaps that differ by as much."""
_NOTED = 0.01
_DRIFT_VOXELS = 0.1
"""In-plane drift over the whole stack, in voxels, from which slices are shifted back."""
_IRREGULAR_VOXELS = 0.5
_MANY_GAPS = 0.3


@dataclass
class Stack:
    """An ordered stack and its geometry.

    Attributes
    ----------
    frames : list of Header
        In slice order: T runs as in the canonical orientation of its plane.
    affine : ndarray
        (4, 4), (t, h, w, 1) to LPS mm, after the correction of a tilt.
    shape : tuple of int
        (T, H, W) after the correction of a tilt, missing slices counted.
    tilt : float
        Degrees.
    missing : tuple of int
        Indices of slices that are not there.
    shifts : ndarray or None
        (T, 2) voxels by which slices are shifted in plane.
    problems : list of (code, reason, remedy, fatal)
        Without the place, which the caller knows.
    """

    frames: list[Header]
    affine: np.ndarray
    shape: tuple[int, int, int]
    tilt: float = 0.0
    missing: tuple[int, ...] = ()
    shifts: np.ndarray | None = None
    problems: list[tuple[str, str, str, bool]] = field(default_factory=list)


def stack_frames(frames: Sequence[Header]) -> Stack:
    """Order frames of one orientation, matrix and pixel spacing, and check that they make a volume.

    Parameters
    ----------
    frames : sequence of Header
        All with position, orientation and pixel spacing.

    Returns
    -------
    Stack
        With the problems found; fatal ones leave a geometry that is for display only.
    """
    orientation = np.asarray(frames[0].orientation, dtype=np.float64)
    normal = normal_of(frames[0].orientation or ())
    axes = np.eye(4)
    axes[:3, :3] = np.stack([normal, orientation[3:], orientation[:3]], axis=1)
    patient_axis, direction = CANONICAL[stacking_plane(axes)][0]
    upward = normal if np.sign(normal[patient_axis]) == direction else -normal
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    along = positions @ upward
    order = np.lexsort(([frame.sop_uid for frame in frames], [frame.frame for frame in frames], along))
    frames = [frames[index] for index in order]
    positions, along = positions[order], along[order]
    spacing_h, spacing_w = frames[0].pixel_spacing or (0.0, 0.0)
    affine = np.eye(4)
    affine[:3, 1] = orientation[3:] / np.linalg.norm(orientation[3:]) * spacing_h
    affine[:3, 2] = orientation[:3] / np.linalg.norm(orientation[:3]) * spacing_w
    affine[:3, 3] = positions[0]
    stack = Stack(frames, affine, (len(frames), frames[0].rows, frames[0].columns))
    _check_orientation(stack, orientation)
    if len(frames) == 1:
        affine[:3, 0] = upward
        stack.problems.append(
            ("single-slice", "it has one slice: no volume.", "Nothing, unless slices were lost in the export.", True)
        )
        return stack
    gaps = np.diff(along)
    repeated = int(np.count_nonzero(gaps <= SAME_PLACE_MM))
    if repeated:
        affine[:3, 0] = upward * max(float(np.median(gaps)), 1e-3)
        stack.problems.append(
            (
                "duplicate-positions",
                f"{repeated} of {len(frames)} slices lie where another one does, and no tag tells them apart.",
                "Keep one of each pair, or export the volumes as series of their own.",
                True,
            )
        )
        return stack
    index = _grid_index(stack, along, upward)
    if index is None:
        return stack
    _place(stack, positions, along, index, upward)
    return stack


def _check_orientation(stack: Stack, orientation: np.ndarray) -> None:
    rows, columns = orientation[:3], orientation[3:]
    skew = abs(float(rows @ columns)) / (np.linalg.norm(rows) * np.linalg.norm(columns))
    if skew > 1e-3:
        stack.problems.append(
            (
                "orientation",
                f"its rows and columns are not at right angles (cosine {skew:.4f}).",
                "Export the series again.",
                True,
            )
        )
    others = {frame.orientation for frame in stack.frames if frame.orientation}
    if len(others) > 1:
        drift = float(max(np.abs(np.subtract(other, orientation)).max() for other in others))
        if drift > 1e-4:
            stack.problems.append(
                (
                    "orientation-drift",
                    f"direction cosines differ between slices by up to {drift:.5f}; those of one slice were used.",
                    "",
                    False,
                )
            )


def _grid_index(stack: Stack, along: np.ndarray, upward: np.ndarray) -> np.ndarray | None:
    """Return the index of each slice on an even grid, or say why there is none."""
    gaps = np.diff(along)
    spacing = float(np.median(gaps))
    steps = np.rint(gaps / spacing)
    allowed = min(max(_UNEVEN * spacing, _UNEVEN_MM), spacing / 4)
    # Gaps of one size: the mean of those without a hole is a better ruler than their median.
    single = np.abs(gaps - spacing) <= allowed
    if single.any():
        spacing = float(gaps[single].mean())
    fits = (steps >= 1) & (np.abs(gaps - steps * spacing) <= allowed)
    stack.affine[:3, 0] = upward * spacing
    holes = int((steps - 1).sum()) if fits.all() else 0
    if not fits.all() or holes > _MANY_GAPS * len(along):
        stack.problems.append(
            (
                "non-uniform-spacing",
                f"the distance between slices varies from {gaps.min():.3f} to {gaps.max():.3f} mm.",
                "Reconstruct it with even spacing, or split it where the spacing changes.",
                True,
            )
        )
        return None
    index = np.concatenate([[0], np.cumsum(steps)]).astype(int)
    # A straight line through all positions: single gaps may each pass and still add up.
    slope, start = np.polyfit(index, along, 1)
    deviation = float(np.abs(along - (start + slope * index)).max())
    if deviation > allowed:
        stack.problems.append(
            (
                "non-uniform-spacing",
                f"slices lie up to {deviation:.3f} mm beside an even grid of {slope:.3f} mm.",
                "Reconstruct it with even spacing.",
                True,
            )
        )
        return None
    if deviation > max(_NOTED * slope, 1e-3):
        stack.problems.append(
            ("spacing-jitter", f"slices lie up to {deviation:.3f} mm beside an even grid of {slope:.3f} mm.", "", False)
        )
    absent = np.setdiff1d(np.arange(index[-1] + 1), index)
    stack.missing = tuple(int(number) for number in absent)
    if holes == 1:
        stack.problems.append(
            (
                "missing-slice",
                f"slice {absent[0]} of {index[-1] + 1} is missing (gap at {along[0] + slope * absent[0]:.1f} mm).",
                "Find it and add it, or allow interpolation (missing_slices: interpolate).",
                False,
            )
        )
    elif holes:
        shown = ", ".join(str(number) for number in absent[:8]) + (" …" if holes > 8 else "")
        stack.problems.append(
            ("missing-slices", f"{holes} of {index[-1] + 1} slices are missing ({shown}).", "Find and add them.", True)
        )
    return index


def _place(stack: Stack, positions: np.ndarray, along: np.ndarray, index: np.ndarray, upward: np.ndarray) -> None:
    """Set the geometry of an even stack, and the shifts that undo a tilt."""
    count = int(index[-1]) + 1
    spacing = float((along[-1] - along[0]) / (count - 1))
    rows, columns = stack.shape[1:]
    affine = stack.affine
    affine[:3, 0] = upward * spacing
    stack.shape = (count, rows, columns)
    moved = positions - positions[0] - np.outer(along - along[0], upward)
    pixel = np.linalg.norm(affine[:3, 1:3], axis=0)
    offsets = moved @ (affine[:3, 1:3] / pixel**2)  # in voxels along (h, w)
    slope = np.array([np.polyfit(index, offsets[:, axis], 1)[0] for axis in range(2)])
    residual = float(np.abs(offsets - offsets[0] - np.outer(index - index[0], slope)).max())
    drift = float(np.abs(slope).max() * (count - 1))
    if residual > _IRREGULAR_VOXELS:
        stack.problems.append(
            (
                "irregular-positions",
                f"slices are displaced in their plane by up to {residual:.1f} voxels, not along a line.",
                "Export the series again, or split it where the field of view changes.",
                True,
            )
        )
        return
    if drift <= _DRIFT_VOXELS:
        # Rounding in the header: the step from first to last slice is the truth to more digits.
        affine[:3, 0] = (positions[-1] - positions[0]) / (count - 1)
        return
    degrees = float(np.degrees(np.arctan(np.linalg.norm(slope * pixel) / spacing)))
    line = np.outer(np.arange(count), slope)
    stack.affine, stack.shape, stack.shifts = resheared(affine, stack.shape, line)
    stack.tilt = degrees
    stack.problems.append(
        (
            "tilt",
            f"the gantry was tilted: slices drift by {drift:.1f} voxels over the stack ({degrees:.2f} degrees);"
            " corrected by shifting each in its plane.",
            "",
            False,
        )
    )
