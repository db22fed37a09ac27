"""Which group a study belongs to, from what a table says of it; columns that name persons are refused."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from volrec.data.label_table import is_missing, to_number
from volrec.data.naming import natural
from volrec.errors import LabelsError

__all__ = ["MISSING", "Grouping", "group_values"]

MISSING = "no value"
"""Name of the group of studies without a value."""
MOST_VALUES = 6
"""Different numbers up to which each is a group of its own; more are cut into ranges."""
MOST_GROUPS = 30
AGES = (18.0, 40.0, 60.0, 80.0)
OLDEST = 125.0
LONG_NUMBER = 100_000
"""Whole numbers from here on, one a patient, are taken for identifiers."""

_SEPARATED_DATE = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2}))([ T].*)?")
_PLAIN_DATE = re.compile(r"(19|20)\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_DATE_NAME = re.compile(r"(?:^|[^a-z])(?:date|datum|dob|birth|birthday|birthdate|geburtsdatum)s?(?:$|[^a-z])")
_PERSON_NAME = re.compile(
    r"(?:(?:patient|pat|last|first|family|given|full)_?)?names?|(?:patient|pat|subject)_?ids?|surname|nachname|vorname|mrn|ssn"
)
_AGE_NAME = re.compile(r"(?:^|[^a-z])(?:age|alter)(?:$|[^a-z])")
_DICOM_AGE = re.compile(r"(\d{3})([DWMY])")
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


@dataclass(frozen=True)
class Grouping:
    """The group of each study.

    Attributes
    ----------
    names : tuple of str
        Groups in the order in which they are shown: numbers upwards, text in natural order, `MISSING` last.
    of : tuple of str
        Group of each study.
    cut : str
        How numbers were cut, as a sentence; empty where each value is a group.
    """

    names: tuple[str, ...]
    of: tuple[str, ...]
    cut: str = ""


def group_values(column: str, values: Sequence[str], patients: Sequence[str]) -> Grouping:
    """Sort studies into groups by what a column says of them.

    Up to `MOST_VALUES` different numbers are a group each; ages are cut at 18, 40, 60 and 80 years; other numbers at
    their quartiles (of studies). Text is a group a value. DICOM ages (``063Y``) are read as years.

    Parameters
    ----------
    column : str
        Its name: one that says date, birth or a person (name, PatientID, MRN) is refused, one that says age makes ages
        of numbers.
    values : sequence of str
        Text of each study's cell.
    patients : sequence of str
        Of each study.

    Raises
    ------
    LabelsError
        For dates, what tells patients apart (names, identifiers, free text), and more than `MOST_GROUPS` groups.
    """
    cells = [MISSING if is_missing(str(text)) else str(text).strip() for text in values]
    filled = [text for text in cells if text != MISSING]
    _refuse_dates(column, filled)
    if _PERSON_NAME.fullmatch(re.sub(r"[^a-z0-9]+", "_", _words(column)).strip("_")):
        raise _names_persons(column, cells, patients)
    numbers = [_number(text) for text in filled]
    if filled and all(number is not None for number in numbers):
        found = [number for number in numbers if number is not None]
        _refuse_identifiers(column, cells, found, patients)
        names, by_text, cut = _ranges(column, found)
        group = dict(zip(filled, by_text, strict=True))
    else:
        _refuse_names(column, cells, patients)
        names, cut = sorted(set(filled), key=natural), ""
        group = {text: text for text in filled}
    of = [group.get(text, MISSING) for text in cells]
    return Grouping((*names, *([MISSING] if MISSING in of else [])), tuple(of), cut)


def _refuse_dates(column: str, filled: Sequence[str]) -> None:
    plain = bool(filled) and all(_PLAIN_DATE.fullmatch(text) for text in filled)
    if plain or _DATE_NAME.search(_words(column)) or any(_SEPARATED_DATE.fullmatch(text) for text in filled):
        raise LabelsError(
            f"column '{column}' holds dates, which point to persons and make no groups.",
            remedy="Write an age, a year or a period into a column of its own, and give that.",
            where=column,
            code="subgroup-dates",
        )


def _refuse_identifiers(column: str, cells: Sequence[str], numbers: Sequence[float], patients: Sequence[str]) -> None:
    """Refuse long whole numbers of which every patient has an own one."""
    long = all(number.is_integer() and abs(number) >= LONG_NUMBER for number in numbers)
    if long and _tells_apart(cells, patients):
        raise _names_persons(column, cells, patients)


def _refuse_names(column: str, cells: Sequence[str], patients: Sequence[str]) -> None:
    if _tells_apart(cells, patients):
        raise _names_persons(column, cells, patients)
    count = len(set(cells) - {MISSING})
    if count > MOST_GROUPS:
        raise LabelsError(
            f"column '{column}' holds {count} different values; subgroups are made of up to {MOST_GROUPS}.",
            remedy="Put values that belong together under one name.",
            where=column,
            code="subgroup-many",
        )


def _tells_apart(cells: Sequence[str], patients: Sequence[str]) -> bool:
    """Whether more than half of the patients have a value of their own; two values never count as names."""
    held: dict[str, set[str]] = {}
    for text, patient in zip(cells, patients, strict=True):
        if text != MISSING:
            held.setdefault(text, set()).add(patient)
    known = {patient for owners in held.values() for patient in owners}
    return len(held) > 2 and 2 * len(held) > len(known)


def _names_persons(column: str, cells: Sequence[str], patients: Sequence[str]) -> LabelsError:
    count = len(set(cells) - {MISSING})
    return LabelsError(
        f"column '{column}' holds {count} different values for {len(set(patients))} patients: it tells persons apart, "
        "or is free text.",
        remedy="Choose a column that many patients share, such as sex, site or scanner.",
        where=column,
        code="subgroup-names",
    )


def _ranges(column: str, numbers: Sequence[float]) -> tuple[list[str], list[str], str]:
    """Return the groups of numbers in rising order, that of each number, and how they were cut."""
    values = np.asarray(numbers, dtype=np.float64)
    different = np.unique(values)
    if len(different) <= MOST_VALUES:
        return [f"{value:g}" for value in different], [f"{value:g}" for value in values], ""
    if _AGE_NAME.search(_words(column)) and values.min() >= 0 and values.max() <= OLDEST:
        edges: Sequence[float] = AGES
        names = ["under 18", "18 to 39", "40 to 59", "60 to 79", "80 and over"]
        place = np.searchsorted(edges, values, side="right")
        cut = "Ages in years, cut at 18, 40, 60 and 80."
    else:
        # Edges are rounded before they cut, so that what a group is called is what it holds.
        quartiles = (_rounded(float(edge)) for edge in np.quantile(values, [0.25, 0.5, 0.75]))
        edges = sorted({edge for edge in quartiles if values.min() <= edge < values.max()})
        shown = [f"{edge:g}" for edge in edges]
        between = [f"above {low} to {high}" for low, high in pairwise(shown)]
        names = [f"up to {shown[0]}", *between, f"above {shown[-1]}"] if shown else ["all values"]
        place = np.searchsorted(edges, values, side="left")
        cut = f"{len(different)} different numbers, cut at their quartiles." if shown else ""
    of = [names[index] for index in place]
    return [name for name in names if name in set(of)], of, cut


def _rounded(value: float) -> float:
    """Return a number with three significant digits."""
    return value if value == 0 else round(value, 2 - math.floor(math.log10(abs(value))))


def _number(text: str) -> float | None:
    age = _DICOM_AGE.fullmatch(text)
    return int(age[1]) * _YEARS[age[2]] if age else to_number(text)


def _words(column: str) -> str:
    """Return a name in small letters with ``_`` between its words (``PatientAge`` gives ``patient_age``)."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower()
