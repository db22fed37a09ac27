"""Frames of one SeriesInstanceUID to the groups that each make one volume.

A series often holds more than one: echoes, cardiac phases, b-values, magnitude and phase, a scout. Two rules keep this
from cutting a volume to pieces where a tag merely varies from slice to slice: a tag splits only into parts that are
each a regular stack, and the tags that vary for other reasons are asked only where positions repeat.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from volrec.io.geometry import plane_of
from volrec.io.headers import Header

__all__ = ["Group", "could_belong", "group_frames", "normal_of", "projections"]

SAME_PLACE_MM = 1e-2
"""Frames nearer than this along the normal lie at one position."""

_SAME_DIRECTION = 1e-3
_SAME_SPACING = 5e-4
_SCOUT_SLICES = 5
_SCOUT_RATIO = 4
_THREE_PLANE_SLICES = 20


@dataclass
class Group:
    """Frames that make one volume, with what sets them apart.

    Attributes
    ----------
    frames : list of Header
        In any order.
    split_by : dict
        Plain values of the tags that set it apart.
    localizer : str
        Why it is taken for a scout; empty where it is none.
    ordered_by : str
        ``"instance_number"`` or ``"trigger_time"`` where only a rank at each position tells volumes apart.
    """

    frames: list[Header]
    split_by: dict[str, Any] = field(default_factory=dict)
    localizer: str = ""
    ordered_by: str = ""


def normal_of(orientation: Sequence[float]) -> np.ndarray:
    """Return the unit normal (LPS) of an ImageOrientationPatient."""
    normal = np.cross(np.asarray(orientation[:3], dtype=np.float64), np.asarray(orientation[3:], dtype=np.float64))
    return normal / np.linalg.norm(normal)


def projections(frames: Sequence[Header]) -> np.ndarray:
    """Return where frames of one orientation lie along their common normal, mm."""
    orientation = frames[0].orientation
    if orientation is None:
        raise ValueError("frames without orientation have no projection")
    return np.array([frame.position for frame in frames], dtype=np.float64) @ normal_of(orientation)


def group_frames(frames: Sequence[Header]) -> list[Group]:
    """Divide the frames of one series UID, all with geometry, into volumes.

    Parameters
    ----------
    frames : sequence of Header
        With position, orientation and pixel spacing.

    Returns
    -------
    list of Group
        Largest first within an orientation; scouts marked.
    """
    groups = [Group(list(frames))]
    for name, key in _HARD:
        groups = [part for group in groups for part in _split(group, name, _by_value(group.frames, key))]
    groups = [part for group in groups for part in _split(group, "pixel_spacing", _near(group.frames, "pixel_spacing"))]
    groups = [part for group in groups for part in _split(group, "orientation", _near(group.frames, "orientation"))]
    _mark_scouts(groups)
    groups = [part for group in groups for part in (_split_by_tags(group) if not group.localizer else [group])]
    return groups


def _matrix(frame: Header) -> Hashable:
    return frame.rows, frame.columns


def _is_localizer(frame: Header) -> Hashable:
    return any(part.upper() in ("LOCALIZER", "SCOUT") for part in frame.image_type)


# Never one volume across these, whatever the positions.
_HARD: tuple[tuple[str, Callable[[Header], Hashable]], ...] = (
    ("study", lambda frame: frame.study_uid),
    ("modality", lambda frame: frame.modality),
    ("localizer", _is_localizer),
    ("matrix", _matrix),
    ("samples", lambda frame: (frame.samples, frame.pixel_kind)),
)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _direction(frame: Header) -> Hashable:
    if frame.b_value == 0 or frame.diffusion is None:
        return None
    return tuple(round(part, 3) + 0.0 for part in frame.diffusion)


# Asked in this order; the first column says whether a tag is asked also where no position repeats.
_TAGS: tuple[tuple[bool, str, Callable[[Header], Hashable]], ...] = (
    (True, "frame_of_reference", lambda frame: frame.frame_of_reference),
    (True, "image_type", lambda frame: frame.image_type),
    (True, "kernel", lambda frame: frame.kernel),
    (True, "stack", lambda frame: frame.stack),
    (True, "echo_number", lambda frame: frame.echo_number),
    (True, "echo_time", lambda frame: _rounded(frame.echo_time)),
    (True, "b_value", lambda frame: _rounded(frame.b_value)),
    (True, "temporal_position", lambda frame: frame.temporal_position),
    (True, "cardiac_phase", lambda frame: _rounded(frame.cardiac_phase)),
    (False, "diffusion", _direction),
    (False, "inversion_time", lambda frame: _rounded(frame.inversion_time)),
    (False, "flip_angle", lambda frame: _rounded(frame.flip_angle)),
    (False, "acquisition_number", lambda frame: frame.acquisition_number),
    (False, "trigger_time", lambda frame: _rounded(frame.trigger_time)),
    (False, "rescale_type", lambda frame: frame.rescale_type),
)


def _by_value(frames: Sequence[Header], key: Callable[[Header], Hashable]) -> dict[Hashable, list[Header]]:
    parts: dict[Hashable, list[Header]] = defaultdict(list)
    for frame in frames:
        parts[key(frame)].append(frame)
    return parts


def _near(frames: Sequence[Header], name: str) -> dict[Hashable, list[Header]]:
    """Gather frames whose `name` agrees within what rounding in a header explains."""
    parts: dict[Hashable, list[Header]] = defaultdict(list)
    # Values repeat exactly in nearly every series: compare each distinct one once.
    known: dict[Hashable, Hashable] = {}
    for frame in frames:
        value = getattr(frame, name)
        if value not in known:
            known[value] = next((other for other in parts if _agree(value, other, name)), value)
        parts[known[value]].append(frame)
    return parts


def _agree(first: Any, second: Any, name: str) -> bool:
    difference = np.abs(np.subtract(first, second))
    if name == "pixel_spacing":
        return bool((difference <= _SAME_SPACING * np.abs(second)).all())
    return bool((difference <= _SAME_DIRECTION).all())


def _split(group: Group, name: str, parts: dict[Hashable, list[Header]]) -> list[Group]:
    if len(parts) < 2:
        return [group]
    return [
        Group(part, {**group.split_by, name: _plain(value)}, group.localizer, group.ordered_by)
        for value, part in sorted(parts.items(), key=lambda item: (-len(item[1]), _sortable(item[0])))
    ]


def _sortable(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, (int, float)) else (1, 0.0, str(value))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value


def _mark_scouts(groups: Sequence[Group]) -> None:
    """Tell scouts: by their tag, by three planes in one series, or a few slices across a large stack."""
    planes: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        orientation = group.frames[0].orientation
        if _is_localizer(group.frames[0]):
            group.localizer = "its ImageType says LOCALIZER"
        elif orientation is not None:
            planes[plane_of(normal_of(orientation))].append(group)
    rest = [group for part in planes.values() for group in part]
    if len(rest) < 2:
        return
    largest = max(len(group.frames) for group in rest)
    if len(planes) == 3 and largest <= _THREE_PLANE_SLICES:
        for group in rest:
            group.localizer = "its series holds a few slices in each of the three planes"
        return
    main = max(rest, key=lambda group: len(group.frames))
    main_plane = next(plane for plane, part in planes.items() if main in part)
    for plane, part in planes.items():
        for group in part:
            few = len(group.frames) <= _SCOUT_SLICES and len(group.frames) * _SCOUT_RATIO <= largest
            if plane != main_plane and few:
                group.localizer = f"{len(group.frames)} {plane} images in a series of {largest} {main_plane} slices"


def _split_by_tags(group: Group) -> list[Group]:
    groups = [group]
    # Tags that divide without a flaw go first: one that merely jitters never does, but may look regular enough.
    for flawless in (True, False):
        for always, name, key in _TAGS:
            groups = [part for item in groups for part in _try_tag(item, always, name, key, flawless)]
    return [part for item in groups for part in _split_by_rank(item)]


def could_belong(frame: Header, group: Group) -> bool:
    """Say whether a frame without a place is of the kind of a group: no fact that all of its frames share differs."""
    if any(key(frame) != key(group.frames[0]) for _, key in _HARD):
        return False
    first = group.frames[0]
    if frame.orientation and any(frame.orientation) and not _agree(frame.orientation, first.orientation, "orientation"):
        return False
    known = frame.pixel_spacing is not None and min(frame.pixel_spacing) > 0
    if known and not _agree(frame.pixel_spacing, first.pixel_spacing, "pixel_spacing"):
        return False
    for _, _, key in _TAGS:
        values = {key(other) for other in group.frames}
        own = key(frame)
        if len(values) == 1 and own not in values and own not in (None, "", ()):
            return False
    return True


def _try_tag(group: Group, always: bool, name: str, key: Callable[[Header], Hashable], flawless: bool) -> list[Group]:
    parts = _by_value(group.frames, key)
    if len(parts) < 2:
        return [group]
    places, counts = _places(group.frames)
    if counts.max() == 1 and not (always and _worth_dividing(group.frames, list(parts.values()))):
        return [group]
    if all(_is_stack(part, len(places), flawless) for part in parts.values()):
        return _split(group, name, parts)
    return [group]


def _worth_dividing(frames: Sequence[Header], parts: Sequence[Sequence[Header]]) -> bool:
    """Whether to ask a tag although no position repeats: not where slices of one even stack take turns in it."""
    places, _ = _places(frames)
    gaps = np.diff(places)
    if (np.abs(gaps - np.median(gaps)) > 0.05 * np.median(gaps)).any():
        return True
    ends = sorted((float(along.min()), float(along.max())) for along in map(projections, parts))
    return all(upper[0] > lower[1] for lower, upper in pairwise(ends))


def _places(frames: Sequence[Header]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct positions along the normal, mm, and how many frames lie at each."""
    along = np.sort(projections(frames))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(along) > SAME_PLACE_MM]))
    return along[starts], np.diff(np.append(starts, len(along)))


def _is_stack(frames: Sequence[Header], all_places: int, flawless: bool) -> bool:
    """Whether frames look like a stack of their own: evenly spaced, each position as often as the others.

    `flawless` allows no exception; otherwise some slices may be missing. One position alone is a stack only where there
    are no more of them at all.
    """
    places, counts = _places(frames)
    if len(places) == 1:
        return all_places == 1
    if len(places) == 2 and all_places > 3:
        return False
    gaps = np.diff(places)
    even = np.abs(gaps - np.median(gaps)) <= 0.05 * np.median(gaps)
    usual = counts == np.bincount(counts).argmax()
    if flawless:
        return bool(even.all() and usual.all())
    return bool(even.mean() >= 0.7 and usual.mean() >= 0.75)


def _split_by_rank(group: Group) -> list[Group]:
    """Where every position repeats equally often and no tag tells why, take the rank at each position.

    TriggerTime first: in gated series it rises through the phases but differs from slice to slice. InstanceNumber is
    the last resort, and what is done is recorded.
    """
    places, counts = _places(group.frames)
    repeats = int(counts.max())
    if repeats == 1 or counts.min() != repeats or len(places) < 2:
        return [group]
    along = projections(group.frames)
    at_place: dict[int, list[Header]] = defaultdict(list)
    for frame, where in zip(group.frames, along, strict=True):
        at_place[int(np.argmin(np.abs(places - where)))].append(frame)
    for name in ("trigger_time", "instance_number"):
        volumes: list[list[Header]] = [[] for _ in range(repeats)]
        for members in at_place.values():
            values = [getattr(frame, name) for frame in members]
            if None in values or len(set(values)) < repeats:
                break
            for rank, frame in enumerate(sorted(members, key=lambda frame: getattr(frame, name))):
                volumes[rank].append(frame)
        else:
            return [
                Group(volume, {**group.split_by, f"{name}_rank": rank + 1}, group.localizer, name)
                for rank, volume in enumerate(volumes)
            ]
    return [group]
