"""Which study a row of a table means."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from volrec.data.label_table import KEYS, column_named, is_missing, some
from volrec.errors import LabelsError, Problem

if TYPE_CHECKING:
    from pandas import DataFrame

    from volrec.data.index import StudyIndex, StudyRecord

__all__ = ["Match", "find_study", "match_rows", "same_patients"]

MOST_HINTS = 20  # looking for similar names takes time, and nobody reads more


@dataclass(frozen=True)
class Match:
    """What `match_rows` found.

    Attributes
    ----------
    key : str
        ``"path"``, ``"study"`` or ``"patient"``: the column that was used.
    lines : dict
        Study to the lines of the table that mean it.
    problems : tuple of Problem
        Labels without a study, studies without a label.
    notes : tuple of str
        What was assumed.
    """

    key: str
    lines: dict[str, list[int]]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def match_rows(index: StudyIndex, table: DataFrame, where: str) -> Match:
    """Find the study of every row.

    Parameters
    ----------
    index : StudyIndex
        Studies of the folder.
    table : DataFrame
        As `volrec.data.labels.read_labels` gives it.
    where : str
        Path of the table, for messages, and for paths that are relative to it.

    Raises
    ------
    LabelsError
        No row names a study.
    """
    notes: list[str] = []
    tried: list[str] = []
    for key in KEYS:
        column = column_named(table, key)
        if column is None:
            continue
        names = dict(zip(map(int, table.index), map(str, table[column]), strict=True))
        found = _by_patient(index, names) if key == "patient" else _by_name(index, names, where)
        if not found:
            tried.append(column)
            continue
        if tried:
            notes.append(f"column '{column}' names the studies: '{', '.join(tried)}' fits none of this folder")
        lines: dict[str, list[int]] = defaultdict(list)
        for line, studies in found.items():
            for study in studies:
                lines[study].append(line)
        if key == "patient" and any(len(studies) > 1 for studies in found.values()):
            notes.append("the label of a patient holds for all studies of that patient")
        problems = _without_study(index, {line: name for line, name in names.items() if line not in found}, key, where)
        problems += _without_label(index, lines, where)
        return Match(key, dict(lines), tuple(problems), tuple(notes))
    cells = [str(cell) for cell in table[tried[0]] if not is_missing(str(cell))]
    there = [record.patient if tried[0].lower() == "patient" else record.study for record in index.studies]
    raise LabelsError(
        f"none of its rows names a study of {index.root}: column '{tried[0]}' holds {some(cells, 3)}; "
        f"the folder holds {some(there, 3) if there else 'no study that can be used'}.",
        remedy="Write the studies as `volrec inspect` names them, or their path in the folder.",
        where=where,
        code="labels-unknown",
    )


def find_study(index: StudyIndex, name: str, where: str) -> StudyRecord | None:
    """Return the study that a name or path means, or None.

    A path may be relative to the folder or to the table, or absolute, with either kind of slash.
    """
    if is_missing(name):
        return None
    record = index.find(name)
    if record is not None:
        return record
    plain = name.replace("\\", "/").removeprefix("./").rstrip("/")
    beside = Path(where).parent / plain
    return index.find(plain) or index.find(str(beside)) or index.find(str(beside.resolve()))


def same_patients(
    index: StudyIndex, table: DataFrame, rows: Mapping[str, int], key: str
) -> tuple[dict[str, str], list[Problem]]:
    """Return the patient of every study, and what the table and the files disagree on.

    Studies stay together if the table or the files say that they are of one patient: a split can suffer from one
    patient taken for two, not from two taken for one.
    """
    column = column_named(table, "patient")
    by_file = {record.study: record.patient for record in index.studies}
    if column is None or key == "patient":
        return {study: by_file[study] for study in rows}, []
    named = {study: str(table.at[line, column]) for study, line in rows.items()}
    named = {study: by_file[study] if is_missing(name) else name for study, name in named.items()}
    leader = {study: study for study in rows}

    def root(study: str) -> str:
        while leader[study] != study:
            leader[study] = leader[leader[study]]
            study = leader[study]
        return study

    for patient_of in (named, by_file):
        first: dict[str, str] = {}
        for study in sorted(rows):
            other = first.setdefault(patient_of[study], study)
            low, high = sorted((root(study), root(other)))
            leader[high] = low
    problems = []
    together: dict[str, set[str]] = defaultdict(set)
    for study in rows:
        together[root(study)].add(named[study])
    for names in together.values():
        if len(names) > 1:
            problems.append(
                Problem(
                    column,
                    "patients-differ",
                    f"The table tells the patients {some(sorted(names))} apart, the files give them one patient id: "
                    "they stay on one side of every split.",
                    "Mend the table, or the PatientID of the files.",
                    fatal=False,
                )
            )
    return {study: min(together[root(study)]) for study in rows}, problems


def _by_name(index: StudyIndex, names: Mapping[int, str], where: str) -> dict[int, list[str]]:
    found = {line: find_study(index, name, where) for line, name in names.items()}
    return {line: [record.study] for line, record in found.items() if record is not None}


def _by_patient(index: StudyIndex, names: Mapping[int, str]) -> dict[int, list[str]]:
    studies: dict[str, list[str]] = defaultdict(list)
    for record in index.studies:
        studies[record.patient].append(record.study)
    return {line: studies[name] for line, name in names.items() if name in studies}


def _without_study(index: StudyIndex, names: Mapping[int, str], key: str, where: str) -> list[Problem]:
    known = [record.patient if key == "patient" else record.study for record in index.studies]
    problems = []
    for number, (line, name) in enumerate(names.items()):
        place = f"{where}:{line}"
        if is_missing(name):
            problems.append(Problem(place, "label-without-study", f"The {key} is empty.", "Name the study."))
            continue
        inside = _inside(index, name)
        quarantined = [
            problem
            for problem in index.problems
            if problem.fatal and name in (problem.study, problem.where, problem.where.rpartition("/")[2])
        ]
        if len(inside) > 1:
            problems.append(_ambiguous(place, name, inside))
        elif quarantined:
            fault = quarantined[0]
            problems.append(
                Problem(
                    place,
                    "label-without-study",
                    f"Its study {name} cannot be used ({fault.code}: {fault.reason})",
                    fault.remedy,
                    name,
                )
            )
        else:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7) if number < MOST_HINTS else []
            problems.append(
                Problem(
                    place,
                    "label-without-study",
                    f"The folder has no {'study' if key == 'path' else key} '{name}'.",
                    f"Is it '{near[0]}'?" if near else "Add it to the folder, or take the row out.",
                    name,
                )
            )
    return problems


def _inside(index: StudyIndex, name: str) -> list[StudyRecord]:
    """Return the studies that lie in a folder of this name."""
    folder = name.replace("\\", "/").removeprefix("./").strip("/")
    return [
        record
        for record in index.studies
        if f"/{record.path}/".find(f"/{folder}/") >= 0 or record.path.startswith(f"{folder}/")
    ]


def _ambiguous(place: str, name: str, records: list[StudyRecord]) -> Problem:
    patients = sorted({record.patient for record in records})
    if len(patients) > 1:
        return Problem(
            place,
            "several-patients",
            f"One label stands for '{name}', which holds studies of {len(patients)} patients ({some(patients)}).",
            "Give each study a row of its own, by its StudyInstanceUID, its path or its patient.",
            name,
        )
    return Problem(
        place,
        "several-studies",
        f"One label stands for '{name}', which holds {len(records)} studies of patient {patients[0]} "
        f"({some(record.study for record in records)}).",
        "Give each study a row of its own, or label the patient in a column `patient`.",
        name,
    )


def _without_label(index: StudyIndex, lines: Mapping[str, list[int]], where: str) -> list[Problem]:
    return [
        Problem(
            record.path,
            "study-without-label",
            f"{where} has no label for it.",
            "Add a row for it, or take it out of the folder.",
            record.study,
        )
        for record in index.studies
        if record.study not in lines
    ]
