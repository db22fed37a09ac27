"""Labels of single slices, brought to the slices of the volume."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volrec.data.label_match import find_study
from volrec.data.label_table import column_named, is_missing, read_table, some, to_number
from volrec.errors import LabelsError, Problem
from volrec.io.geometry import canonical_axes

if TYPE_CHECKING:
    from volrec.data.index import StudyIndex
    from volrec.data.targets import Coding
    from volrec.io import Series

__all__ = ["join_slice_labels", "slice_positions"]

AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}


def slice_positions(series: Series) -> np.ndarray:
    """Return where the slices lie along the slice axis, mm ``(T,)``, in canonical order (growing).

    DICOM: the coordinate of ImagePositionPatient that grows from slice to slice (the third of an axial series), as a
    viewer shows it; lacking slices are interpolated. NIfTI: the same coordinate, LPS, of the centre of the slice.
    """
    patient_axis = AXIS[series.orientation]
    affine = np.asarray(series.affine, dtype=np.float64)
    axis = canonical_axes(affine, series.orientation)[0][0]
    count = series.shape[axis]
    known = [header.position[patient_axis] for header in series.headers if header.position is not None]
    if series.kind == "dicom" and axis == 0 and len(known) + len(series.missing) == count:
        places = np.interp(np.arange(count), np.setdiff1d(np.arange(count), series.missing), known)
    else:
        index = np.tile([*((size - 1) / 2 for size in series.shape), 1.0], (count, 1))
        index[:, axis] = np.arange(count)
        places = index @ affine[patient_axis]
    return np.sort(places)


def join_slice_labels(
    index: StudyIndex, path: Path | str, coding: Coding, studies: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[Problem]]:
    """Read a table of slice labels.

    Parameters
    ----------
    index : StudyIndex
        Studies of the folder.
    path : path
        CSV or TSV with ``study`` (or ``path``), ``slice`` (from 0, canonical order) or ``z`` (mm, see
        `slice_positions`), and ``label``.
    coding : Coding
        Of the study labels: slices share it.
    studies : sequence of str
        Those that are used.

    Returns
    -------
    dict
        Study to float32 ``(T,)``, NaN where a slice has no label.
    list of Problem
        Rows that fit no slice of a study; none is fatal, as the study itself is used.

    Raises
    ------
    LabelsError
        Wrong columns or values, slice and z that contradict each other, rows that contradict each other, or slice
        labels of a task without classes.
    """
    where = str(path)
    if coding.task == "regression":
        raise LabelsError(
            "slice labels are classes, the task is regression.",
            remedy="Leave data.slice_labels out.",
            where=where,
            code="slice-labels",
        )
    if coding.task == "multihead":
        raise LabelsError(
            f"slice labels are those of one target, the task has {len(coding.targets)}.",
            remedy="Leave data.slice_labels out, or learn one target alone.",
            where=where,
            code="slice-labels",
        )
    table = read_table(path)
    name, mark = column_named(table, "path") or column_named(table, "study"), column_named(table, "label")
    number, place = column_named(table, "slice"), column_named(table, "z")
    if name is None or mark is None or (number is None and place is None):
        raise LabelsError(
            f"it needs the columns study, label, and slice or z; it has {some(table.columns, 12)}.",
            remedy="Rename or add them.",
            where=where,
            code="labels-columns",
        )
    by_study: dict[str, list[int]] = defaultdict(list)
    records = {}
    unknown: dict[str, int] = {}
    used = set(studies)
    lines_of: dict[str, list[int]] = defaultdict(list)
    for line, text in zip(map(int, table.index), map(str, table[name]), strict=True):
        lines_of[text].append(line)
    for text, named in lines_of.items():
        record = find_study(index, text, where)
        if record is None or record.study not in used:
            unknown[text] = named[0]
        else:
            records[record.study] = record
            by_study[record.study] += named
    problems = [
        Problem(
            f"{where}:{line}",
            "slice-label-without-study",
            f"Slice labels of '{text}' are not used: no such study is.",
            "Mend the name, or take the rows out.",
            fatal=False,
        )
        for text, line in unknown.items()
    ]
    marks: dict[str, np.ndarray] = {}
    for study, lines in by_study.items():
        places = slice_positions(records[study].series)
        marks[study] = np.full(len(places), np.nan, dtype=np.float32)
        outside = []
        for line in lines:
            cells = {column: str(table.at[line, column]) for column in (number, place, mark) if column is not None}
            slot = _slot(cells.get(number or ""), cells.get(place or ""), places, f"{where}:{line}", study)
            value = _value(coding, cells[mark], f"{where}:{line}")
            if slot is None:
                outside.append(line)
            elif np.isnan(marks[study][slot]):
                marks[study][slot] = value
            elif not np.isnan(value) and value != marks[study][slot]:
                raise LabelsError(
                    f"slice {slot} of {study} has two labels.",
                    remedy="Keep one row a slice.",
                    where=f"{where}:{line}",
                    code="labels-contradiction",
                )
        if outside:
            problems.append(
                Problem(
                    f"{where}:{outside[0]}",
                    "slice-label-outside",
                    f"{len(outside)} slice labels lie outside the series of {len(places)} slices "
                    f"({places[0]:.1f} to {places[-1]:.1f} mm).",
                    "Slices count from 0 at the lowest; z is in mm.",
                    study,
                    fatal=False,
                )
            )
    return marks, problems


def _slot(number: str | None, place: str | None, places: np.ndarray, where: str, study: str) -> int | None:
    """Return the slice that a row means; None if it lies outside."""
    step = abs(places[-1] - places[0]) / max(len(places) - 1, 1)
    z = None if place is None or is_missing(place) else _number(place, "z", where)
    if number is not None and not is_missing(number):
        wanted = _number(number, "slice", where)
        if wanted != int(wanted):
            raise _no_number(number, "slice", where)
        slot = int(wanted)
        if not 0 <= slot < len(places):
            return None
        if z is not None and abs(places[slot] - z) > step / 2 + 1e-3:
            raise LabelsError(
                f"slice {slot} of {study} lies at {places[slot]:.2f} mm, the table says {z:.2f} mm.",
                remedy="Slices count from 0 at the lowest; keep only one of the columns slice and z if in doubt.",
                where=where,
                code="slice-labels",
            )
        return slot
    if z is None:
        raise _no_number("", "slice or z", where)
    slot = int(np.argmin(np.abs(places - z)))
    return slot if abs(places[slot] - z) <= step / 2 + 1e-3 else None


def _number(text: str, column: str, where: str) -> float:
    number = to_number(text)
    if number is None:
        raise _no_number(text, column, where)
    return number


def _no_number(text: str, column: str, where: str) -> LabelsError:
    return LabelsError(
        f"{text!r} in column {column} is no {'whole ' if column == 'slice' else ''}number.",
        remedy="Mend that line.",
        where=where,
        code="labels-value",
    )


def _value(coding: Coding, text: str, where: str) -> float:
    """Return a slice's label: 0 or 1, or the class index."""
    try:
        return coding.value(text)
    except LabelsError as error:
        if coding.task == "binary" and text in ("0", "1"):  # marks instead of the words of the study labels
            return float(text)
        raise LabelsError(error.problem, remedy=error.remedy, where=where, code=error.code) from None
