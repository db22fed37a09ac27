"""Studies without labels, for trainings that need none: which of a folder are used, and which patients are held out."""

from __future__ import annotations

import csv
import difflib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volrec.data.labels import Case
from volrec.errors import DataError, LabelsError, Problem

if TYPE_CHECKING:
    from volrec.data.index import StudyIndex

__all__ = ["ImageSet", "hold_out", "read_studies", "unlabelled"]

UNLABELLED = np.empty(0, dtype=np.float32)


@dataclass(frozen=True)
class ImageSet:
    """The studies whose images are used.

    Attributes
    ----------
    cases : tuple of Case
        In the order of the index; `Case.target` is empty.
    problems : tuple of Problem
        Studies that were asked for and are not there.
    task : str
        ``"none"``: there is nothing to predict.
    """

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...] = ()
    task: str = "none"


def unlabelled(index: StudyIndex, studies: Path | str | None = None) -> ImageSet:
    """Take the studies of a folder without any label.

    Parameters
    ----------
    index : StudyIndex
        Studies of the folder.
    studies : path, optional
        Only those that this file names (see `read_studies`).

    Raises
    ------
    DataError
        When no study is left.
    LabelsError
        When the file cannot be read.
    """
    records = index.studies
    problems: list[Problem] = []
    if studies is not None:
        names = read_studies(studies)
        owners = {alias: record for record in records for alias in (record.study, *record.aliases)}
        wanted = {owners[name].study for name in names if name in owners}
        problems = [_unknown(name, owners, str(studies)) for name in names if name not in owners]
        records = [record for record in records if record.study in wanted]
    if not records:
        raise DataError(
            f"none of the {len(index.studies)} studies of the folder is to be used.",
            remedy="Check data.studies, or run `volrec inspect` to see what was found.",
            where=studies or index.root,
            code="no-studies",
        )
    cases = tuple(Case(record.study, record.patient, record.series, UNLABELLED) for record in records)
    return ImageSet(cases, tuple(problems))


def read_studies(path: Path | str) -> list[str]:
    """Read names of studies: a text file with one a line, or a CSV or TSV with a column ``study``.

    Of a table with a column ``part`` (``splits.csv`` of a run), the rows of ``test`` are left out.

    Raises
    ------
    LabelsError
        When it cannot be read, names none, or belongs to several folds.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelsError(
            f"the list of studies cannot be read ({error}).",
            remedy="Give a text file with one study a line.",
            where=path,
            code="studies-list",
        ) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    separator = "\t" if path.suffix == ".tsv" else ","
    if lines and "study" in next(csv.reader([lines[0]], delimiter=separator)):
        rows = list(csv.DictReader(lines, delimiter=separator))
        if len({row.get("fold") or row.get("split") or "" for row in rows}) > 1:
            raise LabelsError(
                "it holds several folds, which together train on every study.",
                remedy="Write the studies of one fold into a file of their own.",
                where=path,
                code="studies-list",
            )
        names = [row["study"] for row in rows if row.get("part") != "test"]
    else:
        names = lines
    if not names:
        raise LabelsError("it names no study.", remedy="One study a line.", where=path, code="studies-list")
    return list(dict.fromkeys(names))


def hold_out(cases: Sequence[Case], share: float, *, seed: int) -> tuple[list[Case], list[Case]]:
    """Set patients aside, whole.

    Which ones follows from seed and name alone: a patient stays on its side when others come or go, as far as the
    number to be held out allows.

    Parameters
    ----------
    cases : sequence of Case
        The studies.
    share : float
        Of the patients, in [0, 1): rounded, but at least two where there are eight or more, since a pair that does not
        belong together takes two.
    seed : int
        Of the choice.

    Returns
    -------
    kept, held : list of Case
        In the given order.
    """
    patients = sorted({case.patient for case in cases}, key=lambda name: _hash(f"{seed}/{name}"))
    count = round(share * len(patients))
    if share > 0 and len(patients) >= 8:
        count = max(2, count)
    held = set(patients[: min(count, len(patients) - 1)])
    return [case for case in cases if case.patient not in held], [case for case in cases if case.patient in held]


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _unknown(name: str, known: Iterable[str], where: str) -> Problem:
    near = difflib.get_close_matches(name, list(known), n=1)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    return Problem(
        where, "unknown-study", f"'{name}' is no study of the folder.{guess}", "Correct the list.", name, fatal=False
    )
