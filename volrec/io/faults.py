"""Images that cannot be used: which volume of their series each of them spoils, and which it does not."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from volrec.errors import Problem
from volrec.io.grouping import SAME_PLACE_MM, Group, could_belong, projections
from volrec.io.headers import Header
from volrec.io.stacking import Stack

__all__ = [
    "Copies",
    "conflicting_copies",
    "incomplete_files",
    "lost_slices",
    "repeated_places",
    "set_aside",
    "sort_copies",
    "unplaced_images",
    "without_geometry",
]

_INCOMPLETE = ("truncated", "no-pixels")
_COPIES = {
    "copy": "it is a copy of",
    "incomplete-copy": "it is an incomplete copy of",
    "conflicting-copies": "it has other content under the SOPInstanceUID of",
}
_INVALID = "valid geometry"
_SHOWN = 4

Name = Callable[[str], str]
"""What a path is called in messages."""


def _is_incomplete(frame: Header) -> bool:
    """Say whether a part of the pixels, or all of them, is not there."""
    return any(code in _INCOMPLETE for code, _ in frame.notes)


@dataclass
class Copies:
    """What is left of the images of a series when copies are taken out.

    Attributes
    ----------
    kept : list of Header
        One of each image; two that differ in more than their pixels both stay.
    conflicts : list of (str, str)
        Files with one SOPInstanceUID and different content.
    dropped : list of Problem
        Copies that were left out.
    """

    kept: list[Header]
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    dropped: list[Problem] = field(default_factory=list)


def sort_copies(frames: list[Header], name: Name) -> Copies:
    """Drop copies of an image, whole or cut short; two different whole ones under one UID are a conflict."""
    by_image: dict[tuple[str, int], list[Header]] = defaultdict(list)
    for frame in frames:
        by_image[frame.sop_uid or frame.path, frame.frame].append(frame)
    if len(by_image) == len(frames):
        return Copies(frames)
    copies = Copies([])
    dropped: dict[str, tuple[str, str]] = {}
    at_odds: dict[tuple[str, str], None] = {}
    for members in by_image.values():
        # Which of several identical files is used does not matter; that it is the same one each time does.
        first, *others = sorted(members, key=lambda frame: (_is_incomplete(frame), frame.path))
        copies.kept.append(first)
        for other in others:
            if _bare(other) == _bare(first):
                dropped[other.path] = (first.path, "copy")
            elif _is_incomplete(other) and _facts(other) == _facts(first):
                dropped[other.path] = (first.path, "incomplete-copy")
            else:
                at_odds[other.path, first.path] = None
                if _facts(other) != _facts(first):
                    copies.kept.append(other)  # it may be an image of another volume
                else:
                    dropped[other.path] = (first.path, "conflicting-copies")
    for path, (original, code) in sorted(dropped.items()):
        reason = f"{_COPIES[code]} {name(original)} and was left out."
        copies.dropped.append(Problem(name(path), code, reason, fatal=False))
    copies.conflicts = list(at_odds)
    return copies


def _bare(frame: Header) -> Header:
    return replace(frame, path="", mtime_ns=0, pixel_offset=0, size=0)


def _facts(frame: Header) -> Header:
    """Keep what a header says of the image, whatever its pixels and their encoding."""
    return replace(
        _bare(frame),
        fingerprint=0,
        frames=0,
        notes=(),
        pixel_kind="",
        pixel_length=0,
        transfer_syntax="",
        photometric="",
    )


def conflicting_copies(
    conflicts: Sequence[tuple[str, str]], frames: Sequence[Header], folder: str, name: Name
) -> list[Problem]:
    """Say which images of a volume have two contents under one name."""
    paths = {frame.path for frame in frames}
    found = [pair for pair in conflicts if not paths.isdisjoint(pair)]
    if not found:
        return []
    other, first = map(name, found[0])
    more = f" ({len(found)} such pairs)" if len(found) > 1 else ""
    return [
        Problem(
            folder,
            "conflicting-copies",
            f"{other} has the SOPInstanceUID of {first} but other content{more}.",
            "Keep the right one of the two.",
        )
    ]


def repeated_places(frames: Sequence[Header], name: Name) -> str:
    """Name two images at one position, and the folders where the images of the volume lie if they are several."""
    along = projections(frames)
    order = np.argsort(along, kind="stable")
    first = int(np.flatnonzero(np.diff(along[order]) <= SAME_PLACE_MM)[0])
    pair = sorted(name(frames[order[index]].path) for index in (first, first + 1))
    folders = sorted({os.path.dirname(name(frame.path)) or "." for frame in frames})
    shown = ", ".join(folders[:_SHOWN]) + (" …" if len(folders) > _SHOWN else "")
    return f"{pair[0]} and {pair[1]}" + (f"; its files lie in {shown}" if len(folders) > 1 else "")


def incomplete_files(frames: Sequence[Header], folder: str, name: Name) -> list[Problem]:
    """Say which files of a volume lack pixels: those cut short, and those that never held any."""
    problems = []
    total = len({frame.path for frame in frames})
    for code in _INCOMPLETE:
        found = {frame.path: text for frame in frames for noted, text in frame.notes if noted == code}
        if not found:
            continue
        paths = sorted(found)
        names = ", ".join(name(path) for path in paths[:_SHOWN]) + (" …" if len(paths) > _SHOWN else "")
        if code == "no-pixels":
            told = "" if len(paths) == total else f" ({names})"
            problems.append(
                Problem(
                    folder,
                    code,
                    f"{len(paths)} of {total} files hold no pixel data{told}.",
                    "Export the series again with its images: these files are complete, but headers alone.",
                )
            )
        else:
            problems.append(
                Problem(
                    folder,
                    code,
                    f"{len(paths)} of its {total} files are cut short ({names}): {found[paths[0]]}.",
                    "Copy them again from their source.",
                )
            )
    return problems


def without_geometry(frame: Header) -> str:
    """Return what an image lacks to have a place; empty where it has one."""
    absent = [
        tag
        for tag, value in (
            ("ImagePositionPatient", frame.position),
            ("ImageOrientationPatient", frame.orientation),
            ("PixelSpacing", frame.pixel_spacing),
        )
        if not value
    ]
    if absent:
        return ", ".join(absent)
    axes = np.asarray(frame.orientation, dtype=np.float64).reshape(2, 3)
    unit = bool((np.abs(np.linalg.norm(axes, axis=1) - 1) < 0.01).all())
    return "" if min(frame.pixel_spacing or (0.0,)) > 0 and unit else _INVALID


def unplaced_images(unplaced: Sequence[Header], total: int, folder: str) -> list[Problem]:
    """Say how many of `total` images have no place: the volume lacks them."""
    problems = []
    for invalid in (True, False):
        found = [frame for frame in unplaced if (without_geometry(frame) == _INVALID) == invalid]
        if not found:
            continue
        frames = f" of {found[0].frames} frames each" if found[0].frames > 1 else ""
        lack = (
            f"have no {_INVALID} (pixel spacing {found[0].pixel_spacing})"
            if invalid
            else f"lack {without_geometry(found[0])}"
        )
        problems.append(
            Problem(
                folder,
                "spacing" if invalid else "missing-geometry",
                f"{len(found)} of its {total} images{frames} {lack}.",
                "Export the series again with its geometry.",
            )
        )
    return problems


def set_aside(frame: Header, name: Name) -> Problem:
    """Say that an image without a place was left out, as none of the slices."""
    return Problem(
        name(frame.path),
        "unplaced-image",
        f"it has no {without_geometry(frame)}, is none of the slices beside it, and was set aside.",
        fatal=False,
    )


def lost_slices(unplaced: Sequence[Header], group: Group, stack: Stack, placed: Sequence[Header]) -> list[Header]:
    """Return the images without a place that may be slices of this volume.

    Where the stack has a hole, any image of its kind may be the slice that fills it. Where it has none, an image whose
    InstanceNumber is taken already, or far from those of the stack, is none of its slices; one that continues them may
    well be the last slice, which no position would show to be lost.
    """
    alike = [frame for frame in unplaced if could_belong(frame, group)]
    if not alike or group.localizer:
        return []
    holes = stack.missing or any(fatal for *_, fatal in stack.problems)
    numbers = sorted(frame.instance_number for frame in group.frames if frame.instance_number is not None)
    if holes or len(numbers) < 2 or len(set(numbers)) < len(group.frames):
        return alike  # numbers that are absent or repeated tell nothing
    step = max(1, int(np.median(np.diff(numbers))))
    taken = {frame.instance_number for frame in placed}
    return [
        frame
        for frame in alike
        if frame.instance_number is None
        or (frame.instance_number not in taken and numbers[0] - step <= frame.instance_number <= numbers[-1] + step)
    ]
