"""Headers of many files to series: grouped, ordered by position, checked."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from volrec.errors import Problem
from volrec.io.faults import (
    Copies,
    conflicting_copies,
    incomplete_files,
    lost_slices,
    repeated_places,
    set_aside,
    sort_copies,
    unplaced_images,
    without_geometry,
)
from volrec.io.geometry import flip_lps_ras, largest_spacing_plane, spacing_of, stacking_plane
from volrec.io.grouping import Group, group_frames
from volrec.io.headers import Header
from volrec.io.series import Series
from volrec.io.stacking import Stack, stack_frames

__all__ = ["assemble"]

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_VOLUME = 5
"""So many images without a place are more than a scout: a volume that cannot be used."""
_NOT_A_SCAN = {
    "RTDOSE": "a radiotherapy dose",
    "SEG": "a segmentation",
    "US": "an ultrasound image",
    "XA": "an angiogram",
    "RF": "a fluoroscopy",
    "CR": "a radiograph",
    "DX": "a radiograph",
    "MG": "a mammogram",
    "SM": "a microscopy slide",
    "OP": "a photograph",
    "ES": "an endoscopy image",
}
_NOT_FATAL_NOTES = frozenset(
    {"no-rescale", "invalid-tag", "assumed-transfer-syntax", "spacing-by-tag", "mosaic", "sform-qform", "sform-invalid"}
)


def assemble(headers: Sequence[Header], *, root: Path | str | None = None) -> tuple[list[Series], list[Problem]]:
    """Make series of headers: group, order by position, check.

    Parameters
    ----------
    headers : sequence of Header
        Of any number of files, in any order.
    root : path, optional
        Folder that paths in the result (uid of NIfTI, `where` of problems) are relative to.

    Returns
    -------
    list of Series
        Usable and unusable ones; an unusable one carries its fatal problems.
    list of Problem
        What belongs to no series: copies that were dropped.
    """
    base = None if root is None else os.path.abspath(os.fspath(root))
    series: list[Series] = []
    problems: list[Problem] = []
    by_uid: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        if header.kind == "nifti":
            series.append(_nifti_series(header, base))
        else:
            # Without a UID, the files of one folder are taken together, and the series says so.
            by_uid[header.series_uid or f"?{os.path.dirname(header.path)}"].append(header)
    for uid in sorted(by_uid):
        series.extend(_dicom_series(uid, by_uid[uid], base, problems))
    return series, problems


def _nifti_series(header: Header, base: str | None) -> Series:
    place = _relative(header.path, base)
    affine = flip_lps_ras(np.array(header.affine, dtype=np.float64).reshape(4, 4))
    affine = affine[:, [2, 1, 0, 3]]  # the array is read (k, j, i)
    spacing = spacing_of(affine)
    shape = (header.shape[2], header.shape[1], header.shape[0])
    problems = [
        Problem(place, code, f"{text}.", fatal=False) for code, text in header.notes if code in _NOT_FATAL_NOTES
    ]
    plane = largest_spacing_plane(affine)
    if min(shape) < 2:
        sizes = " x ".join(str(size) for size in header.shape)
        problems.append(
            Problem(place, "single-slice", f"it is no volume ({sizes} voxels).", "Nothing: it is set aside.")
        )
    return Series(
        uid=place,
        kind="nifti",
        study_uid="",
        patient_id="",
        modality="",
        orientation=plane,
        image_type=(),
        path=place,
        files=(header.path,),
        headers=(header,),
        shape=shape,
        spacing=spacing,
        affine=_rows(affine),
        problems=tuple(problems),
        signature=_signature((header,)),
    )


def _dicom_series(uid: str, frames: list[Header], base: str | None, problems: list[Problem]) -> list[Series]:
    folder = _relative(_common_folder(frames), base)

    def name(path: str) -> str:
        return _relative(path, base)

    no_uid = uid.startswith("?")
    if no_uid:
        uid = f"{folder or '.'}#no-uid"
    extra: list[Problem] = []
    if no_uid:
        extra.append(
            Problem(
                folder,
                "no-series-uid",
                "no SeriesInstanceUID: the files of one folder were taken together.",
                fatal=False,
            )
        )
    copies = sort_copies(frames, name)
    problems += copies.dropped
    kept = copies.kept
    patients = sorted({frame.patient_id for frame in kept} - {""})
    if len(patients) > 1:
        extra.append(
            Problem(
                folder,
                "two-patients",
                f"one series UID holds images of {len(patients)} patients ({', '.join(patients[:4])}).",
                "Separate the patients, and give each a series UID of its own.",
            )
        )
    aside = _not_a_volume(kept, folder)
    if aside is not None:
        return [_unusable(uid, kept, base, [aside, *extra])]
    placed = [frame for frame in kept if not without_geometry(frame)]
    unplaced = [frame for frame in kept if without_geometry(frame)]
    if not placed:
        faults = _faults_of(kept, folder, copies, name)
        return [_unusable(uid, kept, base, [*faults, *unplaced_images(unplaced, len(kept), folder), *extra])]
    groups = group_frames(placed)
    if len(groups) > 1:
        sizes = Counter((frame.rows, frame.columns) for frame in placed)
        if len(sizes) > 1:
            shown = ", ".join(f"{count} of {rows}x{columns}" for (rows, columns), count in sizes.most_common(4))
            extra.append(
                Problem(
                    folder,
                    "mixed-sizes",
                    f"one series UID holds images of several sizes ({shown}): divided.",
                    fatal=False,
                )
            )
    stacks = [stack_frames(group.frames) for group in groups]
    # What is wrong with one image is a fault of the volume that it belongs to, and of no other.
    lost = [lost_slices(unplaced, group, stack, placed) for group, stack in zip(groups, stacks, strict=True)]
    claimed = {id(frame) for frames in lost for frame in frames}
    rest = [frame for frame in unplaced if id(frame) not in claimed]
    volume = len(rest) >= _VOLUME or all(group.localizer for group in groups)
    series = []
    for number, (group, stack) in enumerate(zip(groups, stacks, strict=True)):
        place = _relative(_common_folder(stack.frames), base)
        own = [replace(problem, where=place) for problem in extra]
        if not group.localizer:
            own += _faults_of(stack.frames, place, copies, name)
            own += unplaced_images(lost[number], len(stack.frames) + len(lost[number]), place)
            if rest and not volume:
                own += [set_aside(frame, name) for frame in rest]
        series.append(_stacked(_numbered(uid, number), group, stack, base, own, len(groups)))
    if rest and volume:
        place = _relative(_common_folder(rest), base)
        own = [*_faults_of(rest, place, copies, name), *unplaced_images(rest, len(rest), place), *extra]
        series.append(_unusable(_numbered(uid, len(groups)), rest, base, own))
    return series


def _numbered(uid: str, number: int) -> str:
    return uid if number == 0 else f"{uid}#{number + 1}"


def _faults_of(frames: Sequence[Header], folder: str, copies: Copies, name: Callable[[str], str]) -> list[Problem]:
    """Return what single images do to the volume that they make."""
    faults = [
        *conflicting_copies(copies.conflicts, frames, folder, name),
        *incomplete_files(frames, folder, name),
    ]
    if any(code == "zero-slope" for frame in frames for code, _ in frame.notes):
        faults.append(
            Problem(folder, "zero-slope", "RescaleSlope is 0: its values are lost.", "Export the series again.")
        )
    return faults


def _not_a_volume(frames: Sequence[Header], folder: str) -> Problem | None:
    first = frames[0]
    nothing = "Nothing: such images are set aside."
    if all(frame.samples > 1 or frame.photometric == "PALETTE COLOR" for frame in frames):
        return Problem(folder, "colour", f"its images are in colour ({first.photometric}).", nothing)
    if all(frame.sop_class.startswith(_SECONDARY_CAPTURE) for frame in frames):
        return Problem(folder, "secondary-capture", "its images are screen captures (Secondary Capture).", nothing)
    if first.modality in _NOT_A_SCAN and len({frame.modality for frame in frames}) == 1:
        return Problem(folder, "not-a-scan", f"it is {_NOT_A_SCAN[first.modality]} ({first.modality}).", nothing)
    return None


def _stacked(uid: str, group: Group, stack: Stack, base: str | None, extra: Sequence[Problem], count: int) -> Series:
    folder = _relative(_common_folder(stack.frames), base)
    problems = list(extra)
    if group.localizer:
        problems.append(
            Problem(folder, "localizer", f"it is a scout: {group.localizer}.", "Nothing: scouts are set aside.")
        )
    else:
        for code, reason, remedy, fatal in stack.problems:
            if code == "duplicate-positions":
                reason += f" For example {repeated_places(stack.frames, lambda path: _relative(path, base))}."
            problems.append(Problem(folder, code, reason, remedy, fatal=fatal))
    if count > 1 and not group.localizer:
        told = ", ".join(f"{name} {value}" for name, value in group.split_by.items())
        problems.append(
            Problem(folder, "split", f"one of {count} volumes under one series UID, set apart by {told}.", fatal=False)
        )
    if group.ordered_by == "instance_number":
        problems.append(
            Problem(
                folder,
                "phases-by-instance-number",
                "every position repeats and no tag tells the repeats apart: told by InstanceNumber.",
                fatal=False,
            )
        )
    notes = {(code, text) for frame in stack.frames for code, text in frame.notes if code in _NOT_FATAL_NOTES}
    problems += [Problem(folder, code, f"{text}.", fatal=False) for code, text in sorted(notes)]
    return _series(uid, stack, folder, group, problems)


def _series(uid: str, stack: Stack, folder: str, group: Group, problems: list[Problem]) -> Series:
    first = stack.frames[0]
    t, h, w = spacing_of(stack.affine)
    orientation = "axial" if min(t, h, w) <= 0 else stacking_plane(stack.affine)
    return Series(
        uid=uid,
        kind="dicom",
        study_uid=first.study_uid,
        patient_id=first.patient_id,
        modality=first.modality,
        orientation=orientation,
        image_type=first.image_type,
        path=folder,
        files=tuple(dict.fromkeys(frame.path for frame in stack.frames)),
        headers=tuple(stack.frames),
        shape=stack.shape,
        spacing=(t if len(stack.frames) > 1 else 0.0, h, w),
        affine=_rows(stack.affine),
        split_by=group.split_by,
        localizer=bool(group.localizer),
        derived="DERIVED" in first.image_type[:1],
        problems=tuple(replace(problem, study=first.study_uid) for problem in problems),
        signature=_signature(stack.frames),
        tilt=stack.tilt,
        missing=stack.missing,
        shifts=() if stack.shifts is None else tuple((float(h), float(w)) for h, w in stack.shifts),
    )


def _unusable(uid: str, frames: Sequence[Header], base: str | None, problems: list[Problem]) -> Series:
    """Return a series that cannot become a volume, for the record."""
    first = frames[0]
    ordered = sorted(frames, key=lambda frame: (frame.path, frame.frame))
    h, w = first.pixel_spacing or (0.0, 0.0)
    stack = Stack(
        ordered,
        np.diag([0.0, h, w, 1.0]),
        (sum(max(1, frame.frames if frame.position is None else 1) for frame in ordered), first.rows, first.columns),
    )
    series = _series(uid, stack, _relative(_common_folder(ordered), base), Group(list(ordered)), problems)
    return replace(series, spacing=(0.0, h, w))


def _common_folder(frames: Sequence[Header]) -> str:
    paths = {frame.path for frame in frames}
    if len(paths) == 1:
        return next(iter(paths))
    return os.path.commonpath([os.path.dirname(path) or "." for path in paths])


def _relative(path: str, base: str | None) -> str:
    if base is None:
        return path
    try:
        return Path(os.path.relpath(os.path.abspath(path), base)).as_posix()
    except ValueError:  # another drive
        return path


def _signature(frames: Sequence[Header]) -> str:
    """Hash what changes when a file does; names count relative to the folder, so that it may move."""
    files = {frame.path: frame for frame in frames}
    folder = os.path.dirname(next(iter(files))) if len(files) == 1 else _common_folder(frames)
    lines = []
    for path, frame in files.items():
        name = os.path.relpath(path, folder or ".") if len(files) > 1 else os.path.basename(path)
        lines.append(f"{name}\0{frame.size}\0{frame.mtime_ns}")
    frames_used = ",".join(str(frame.frame) for frame in frames) if any(frame.frames > 1 for frame in frames) else ""
    return hashlib.sha256("\n".join([*sorted(lines), frames_used]).encode("utf-8", "surrogateescape")).hexdigest()


def _rows(affine: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in affine)
