"""Labels and studies brought together: who is used with which target, who is left out and why."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volrec.data.label_match import Match, match_rows, same_patients
from volrec.data.label_table import KEYS, column_named, is_missing, read_table, some, to_number
from volrec.data.slice_labels import join_slice_labels
from volrec.data.targets import Coding, Task, infer_coding, num_outputs, one_class
from volrec.errors import LabelsError, Problem

if TYPE_CHECKING:
    from pandas import DataFrame

    from volrec.config import DataConfig
    from volrec.data.index import StudyIndex
    from volrec.io import Series

__all__ = ["Case", "Cohort", "join", "num_outputs", "read_labels"]

SPLIT = "split"
# A table with several columns still has a default; the choice is said and stands in the plan.
USUAL_TARGETS = frozenset({"label", "labels", "target", "class", "diagnosis", "outcome", "y"})
USUAL_COVARIATES = frozenset(
    {"age", "sex", "gender", "weight", "height", "site", "scanner", "manufacturer", "center", "centre", "fold", "year"}
)
MOST_CLASSES = 10
PARTS = {
    "train": ("train", "training", "tr", "trn"),
    "validation": ("validation", "val", "valid", "dev", "tune", "tuning"),
    "test": ("test", "testing", "ts", "holdout", "hold-out"),
}


@dataclass(frozen=True)
class Case:
    """A study with its target.

    Attributes
    ----------
    study, patient : str
        Name in the index; the patient that keeps it together with others in a split.
    series : Series
        What is read.
    target : numpy.ndarray
        float32: ``(K,)`` for binary, multilabel and regression, ``(1,)`` holding the class index for multiclass;
        multihead: ``(targets,)``, the class index within each, NaN where the study has none.
    split : str, optional
        ``"train"``, ``"validation"`` or ``"test"`` where the table says so.
    slice_targets : numpy.ndarray, optional
        float32 ``(T,)``, one a slice of the volume in canonical order (0 and 1, or the class index), NaN where a slice
        has none.
    """

    study: str
    patient: str
    series: Series
    target: np.ndarray
    split: str | None = None
    slice_targets: np.ndarray | None = None


@dataclass(frozen=True)
class Cohort:
    """The studies that are learned from.

    Attributes
    ----------
    cases : tuple of Case
        Sorted by study.
    task : str
        ``"binary"``, ``"multiclass"``, ``"multilabel"``, ``"multihead"`` or ``"regression"``.
    targets : tuple of str
        Target columns.
    classes : tuple of str
        As of `volrec.data.targets.Coding`.
    problems : tuple of Problem
        Labels without a study, studies without a label, and what else was left out.
    notes : tuple of str
        What was inferred.
    """

    cases: tuple[Case, ...]
    task: Task
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def read_labels(path: Path | str) -> DataFrame:
    """Read a table of labels and check that it is one.

    Parameters
    ----------
    path : path
        CSV or TSV with a column ``study``, ``patient`` or ``path``, and at least one more.

    Returns
    -------
    DataFrame
        Text, as written: ids keep their leading zeros. Index: line in the file.

    Raises
    ------
    LabelsError
        No table, or not these columns.
    """
    table = read_table(path)
    columns = [str(column) for column in table.columns]
    if not any(column_named(table, key) for key in KEYS):
        near = [match for key in ("study", "patient", "path") for match in _near(key, columns)]
        hint = f" Nearest: '{near[0]}'." if near else ""
        raise LabelsError(
            f"it has no column 'study', 'patient' or 'path'; its columns are {some(columns, 12)}.",
            remedy=f"Rename the one that names the studies.{hint}",
            where=path,
            code="labels-columns",
        )
    if not _candidates(table):
        raise LabelsError(
            f"it has no target column; its columns are {some(columns, 12)}.",
            remedy="Add a column with what is to be learned.",
            where=path,
            code="labels-columns",
        )
    return table


def join(index: StudyIndex, labels_path: Path | str, data: DataConfig) -> Cohort:
    """Bring a table of labels to the studies of a folder.

    Parameters
    ----------
    index : StudyIndex
        Studies of the folder.
    labels_path : path
        Table of labels (see `read_labels`). Of the columns ``path``, ``study`` and ``patient``, the first that names a
        study of this folder is used; a column ``patient`` also says which studies stay together in a split.
    data : DataConfig
        Targets, task, classes and slice labels, where they are set.

    Returns
    -------
    Cohort
        Every study with a target (multihead: with one of them at least); its problems name what has none.

    Raises
    ------
    LabelsError
        No such table, wrong columns, no label that fits a study, contradicting rows, a target to be chosen, values
        that fit no task, or one class only.
    """
    where = str(labels_path)
    table = read_labels(labels_path)
    targets, notes = _choose_targets(table, data.target, where)
    match = match_rows(index, table, where)
    rows = _one_row_each(match, table, targets, where)
    problems = list(match.problems)
    notes = [*match.notes, *notes]

    values = {study: [str(table.at[line, name]) for name in targets] for study, line in rows.items()}
    lacking = all if data.task == "multihead" else any
    empty = {study for study, cells in values.items() if lacking(map(is_missing, cells))}
    problems += [_unlabelled(study, values[study], targets, rows[study], where) for study in sorted(empty)]
    used = sorted(values.keys() - empty)
    if not used:
        raise LabelsError(
            f"no study has a value in {_columns(targets)}.",
            remedy="Fill the column, or choose another target.",
            where=where,
            code="labels-nan",
        )
    columns = {name: [values[study][place] for study in used] for place, name in enumerate(targets)}
    coding = infer_coding(columns, task=data.task, classes=data.classes, where=where)
    notes += coding.notes
    encoded = {study: coding.encode(values[study]) for study in used}
    _check_variety(coding, np.stack(list(encoded.values())), where)

    parts = _parts(table, {study: rows[study] for study in used}, where)
    patients, found = same_patients(index, table, rows, match.key)
    problems += found
    records = {record.study: record for record in index.studies}
    cases = [Case(study, patients[study], records[study].series, encoded[study], parts.get(study)) for study in used]
    if data.slice_labels:
        marks, found = join_slice_labels(index, data.slice_labels, coding, used)
        problems += found
        cases = [replace(case, slice_targets=marks.get(case.study)) for case in cases]
        notes.append(f"slice labels: {len(marks)} of {len(cases)} studies")
    return Cohort(tuple(cases), coding.task, coding.targets, coding.classes, tuple(problems), tuple(notes))


def _candidates(table: DataFrame) -> list[str]:
    reserved = {*KEYS, SPLIT}
    return [str(column) for column in table.columns if str(column).lower() not in reserved]


def _choose_targets(table: DataFrame, wanted: Sequence[str], where: str) -> tuple[tuple[str, ...], list[str]]:
    candidates = _candidates(table)
    if wanted:
        chosen = []
        for name in wanted:
            column = name if name in candidates else next((c for c in candidates if c.lower() == name.lower()), None)
            if column is None:
                near = _near(name, candidates)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise LabelsError(
                    f"it has no target column '{name}'; it could be {some(candidates, 12)}.{hint}",
                    remedy="Choose with --target, or data.target in a recipe.",
                    where=where,
                    code="labels-target",
                )
            chosen.append(column)
        return tuple(dict.fromkeys(chosen)), []
    if len(candidates) == 1:
        return (candidates[0],), [f"target: '{candidates[0]}', the only column left"]
    useful = [name for name in candidates if _could_be_target([str(cell) for cell in table[name]])]
    if len(useful) == 1:
        others = some([name for name in candidates if name != useful[0]], 8)
        return (useful[0],), [f"target: '{useful[0]}', as the others ({others}) are constant, empty or free text"]
    if not useful:
        raise LabelsError(
            f"none of its {len(candidates)} columns varies from study to study: {some(candidates, 12)}.",
            remedy="Add a column with what is to be learned.",
            where=where,
            code="labels-target",
        )
    chosen_one, why = _most_likely(table, useful)
    others = some([name for name in useful if name != chosen_one], 8)
    return (chosen_one,), [f"target: '{chosen_one}', {why}; choose another ({others}) with --target"]


def _most_likely(table: DataFrame, useful: Sequence[str]) -> tuple[str, str]:
    """Choose a target where nobody has: by the names that tables of labels use, else the first that holds classes."""
    named = next((name for name in useful if name.lower() in USUAL_TARGETS), None)
    if named is not None:
        return named, "by its name"
    asked = [name for name in useful if name.lower() not in USUAL_COVARIATES] or list(useful)
    for name in asked:
        if len({str(cell) for cell in table[name] if not is_missing(cell)}) <= MOST_CLASSES:
            return name, f"the first of {len(useful)} columns that holds classes"
    return asked[0], f"the first of {len(useful)} columns"


def _could_be_target(cells: list[str]) -> bool:
    """Tell whether a column varies and is not free text or names."""
    filled = [cell for cell in cells if not is_missing(cell)]
    kinds = set(filled)
    numeric = all(to_number(cell) is not None for cell in filled)
    return len(kinds) > 1 and (numeric or 2 * len(kinds) <= len(filled) or len(kinds) == 2)


def _one_row_each(match: Match, table: DataFrame, targets: Sequence[str], where: str) -> dict[str, int]:
    """Return the line of each study; several lines have to say the same."""
    columns = [*targets, *([split] if (split := column_named(table, SPLIT)) else [])]
    chosen: dict[str, int] = {}
    contradictions: dict[str, list[int]] = {}
    for study, lines in match.lines.items():
        if len({tuple(str(table.at[line, column]) for column in columns) for line in lines}) > 1:
            contradictions[study] = lines
        chosen[study] = lines[0]
    if contradictions:
        shown = [f"{study} (lines {', '.join(map(str, lines))})" for study, lines in sorted(contradictions.items())]
        raise LabelsError(
            f"rows of the same study contradict each other in {_columns(columns)}: {some(shown)}.",
            remedy="Keep one row a study.",
            where=where,
            code="labels-contradiction",
        )
    return chosen


def _unlabelled(study: str, cells: Sequence[str], targets: Sequence[str], line: int, where: str) -> Problem:
    empty = [name for name, cell in zip(targets, cells, strict=True) if is_missing(cell)]
    return Problem(
        f"{where}:{line}",
        "label-empty",
        f"Its label is empty ({_columns(empty)}).",
        "Fill it in; the study is left out until then.",
        study,
    )


def _check_variety(coding: Coding, values: np.ndarray, where: str) -> None:
    """Refuse a cohort of one class, or of one number."""
    if coding.task in ("binary", "multiclass"):
        present = np.unique(values)
        if len(present) < 2:
            raise one_class(coding.classes[int(present[0])], len(values), where)
        return
    if coding.task == "multihead":
        if all(len(np.unique(column[np.isfinite(column)])) < 2 for column in values.T):
            raise LabelsError(
                f"each of {_columns(coding.targets)} is the same for all studies that have a value in it.",
                remedy="Add studies of other classes, or choose other targets.",
                where=where,
                code="one-class",
            )
        return
    constant = [name for name, column in zip(coding.targets, values.T, strict=True) if len(np.unique(column)) < 2]
    if constant:
        raise LabelsError(
            f"{_columns(constant)} is the same for all {len(values)} studies.",
            remedy="Leave it out of the targets, or add studies that differ.",
            where=where,
            code="one-class",
        )


def _parts(table: DataFrame, rows: Mapping[str, int], where: str) -> dict[str, str]:
    """Read the column ``split``, if there is one with anything in it."""
    column = column_named(table, SPLIT)
    if column is None:
        return {}
    written = {study: str(table.at[line, column]) for study, line in rows.items()}
    empty = [study for study, word in written.items() if is_missing(word)]
    if len(empty) == len(written):
        return {}
    known = {word: part for part, words in PARTS.items() for word in words}
    wrong = sorted({word for word in written.values() if not is_missing(word) and word.lower() not in known})
    if wrong or empty:
        what = f"holds {some(map(repr, wrong))}" if wrong else f"is empty for {some(empty)}"
        raise LabelsError(
            f"column '{column}' {what}.",
            remedy="Write train, validation or test for every study, or take the column out.",
            where=where,
            code="labels-split",
        )
    return {study: known[word.lower()] for study, word in written.items()}


def _columns(names: Sequence[str]) -> str:
    quoted = ", ".join(f"'{name}'" for name in names)
    return f"column {quoted}" if len(names) == 1 else f"columns {quoted}"


def _near(name: str, known: Sequence[str]) -> list[str]:
    lower = {word.lower(): word for word in known}
    inside = [word for key, word in lower.items() if name.lower() in key]
    return inside or [lower[word] for word in difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)]
