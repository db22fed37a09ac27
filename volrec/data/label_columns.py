"""What a table of labels says of studies beside their targets: sex, scanner, site, age."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volrec.data.label_match import match_rows
from volrec.data.label_table import KEYS, column_named, is_missing, some
from volrec.data.labels import read_labels
from volrec.data.naming import file_stem
from volrec.errors import LabelsError

if TYPE_CHECKING:
    from pandas import DataFrame

    from volrec.data.index import StudyIndex

__all__ = ["columns_of"]


def columns_of(
    path: Path | str,
    columns: Sequence[str],
    *,
    studies: Mapping[str, str],
    index: StudyIndex | None = None,
) -> dict[str, dict[str, str]]:
    """Read columns of a table of labels for studies that have been scored.

    Parameters
    ----------
    path : path
        The table (see `volrec.data.labels.read_labels`).
    columns : sequence of str
        Names of columns, whatever their case.
    studies : mapping of str to str
        Study to its patient, as in a score table.
    index : StudyIndex, optional
        The folder of these studies: rows are then matched as in a training, by every name that means a study. Without
        it a row has to give the study's own name (in ``study`` or ``path``), or its patient.

    Returns
    -------
    dict
        Column, as the table writes it, to study to the text of its cell. A study without a row has empty text.

    Raises
    ------
    LabelsError
        No such table or column, a column that names studies or patients, no row that means one of these studies, or
        rows of one study that contradict each other.
    """
    table = read_labels(path)
    where = str(path)
    chosen = [_column(table, name, where) for name in columns]
    lines = _lines_by_name(table, studies, where) if index is None else match_rows(index, table, where).lines
    found = {study: lines[study] for study in studies if study in lines}
    if not found:
        raise LabelsError(
            f"none of its rows names one of the {len(studies)} studies that were scored ({some(sorted(studies), 3)}).",
            remedy="Give the table of labels of these studies with --labels.",
            where=where,
            code="labels-unknown",
        )
    return {name: _cells(table, name, studies, found, where) for name in dict.fromkeys(chosen)}


def _column(table: DataFrame, name: str, where: str) -> str:
    found = column_named(table, name)
    usable = [str(column) for column in table.columns if str(column).lower() not in KEYS]
    if found is None:
        near = difflib.get_close_matches(name.lower(), [column.lower() for column in usable], n=1, cutoff=0.6)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise LabelsError(
            f"it has no column '{name}'; it has {some(usable, 12)}.{hint}",
            remedy="Choose one of them with --by, or give another table with --labels.",
            where=where,
            code="subgroup-column",
        )
    if found.lower() in KEYS:
        raise LabelsError(
            f"column '{found}' names studies or patients: a group would be a single person.",
            remedy=f"Choose a column that many patients share: {some(usable, 12)}.",
            where=where,
            code="subgroup-names",
        )
    return found


def _lines_by_name(table: DataFrame, studies: Mapping[str, str], where: str) -> dict[str, list[int]]:
    """Find the rows of studies by their names alone: for a run whose folder of studies is not there."""
    for key in KEYS:
        column = column_named(table, key)
        if column is None:
            continue
        names: dict[str, list[str]] = defaultdict(list)
        for study, patient in studies.items():
            names[patient if key == "patient" else study].append(study)
        lines: dict[str, list[int]] = defaultdict(list)
        for line, cell in zip(map(int, table.index), map(str, table[column]), strict=True):
            for study in next((names[name] for name in _spellings(cell, key) if name in names), []):
                lines[study].append(line)
        if lines:
            return dict(lines)
    return {}


def _spellings(cell: str, key: str) -> Iterable[str]:
    """Yield what a cell may mean: itself; of a path also its last part, with and without the suffix of an image."""
    yield cell
    if key != "patient":
        last = cell.replace("\\", "/").rstrip("/").rpartition("/")[2]
        yield last
        yield file_stem(last)


def _cells(
    table: DataFrame, name: str, studies: Mapping[str, str], lines: Mapping[str, list[int]], where: str
) -> dict[str, str]:
    cells: dict[str, str] = {}
    contradictions: list[str] = []
    for study in studies:
        written = list(dict.fromkeys(str(table.at[line, name]) for line in lines.get(study, [])))
        filled = [text for text in written if not is_missing(text)]
        if len(filled) > 1:
            contradictions.append(f"{study} (lines {', '.join(map(str, lines[study]))})")
        cells[study] = filled[0] if filled else ""
    if contradictions:
        raise LabelsError(
            f"rows of the same study contradict each other in column '{name}': {some(contradictions)}.",
            remedy="Keep one row a study.",
            where=where,
            code="labels-contradiction",
        )
    return cells
