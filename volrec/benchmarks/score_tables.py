"""Tables of scores that others made, read as score sets."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volrec.benchmarks.scores import STAGES, ScoreSet
from volrec.errors import RunError

__all__ = ["read_table"]


def read_table(
    path: Path | str,
    *,
    labels: Mapping[str, int | str | Sequence[int | str]] | None = None,
    kind: str = "softmax",
    video: str = "video",
    label: str = "label",
    facts: Mapping[str, Any] | None = None,
) -> ScoreSet:
    """Read a table of scores that others made: a row a video, a column a class, named in the first line.

    Parameters
    ----------
    path : path
        CSV in UTF-8, separated by commas, semicolons or tabs.
    labels : mapping, optional
        From video to its class or classes (place or name); else the column `label` holds names (several with ``|``).
    kind : {"softmax", "logits"}
        What the scores are; margins of an SVM are logits.
    video, label : str
        Names of these columns.
    facts : mapping, optional
        As for `ScoreSet.from_arrays`.

    Raises
    ------
    RunError
        A column that is missing or stands twice, a video twice or without a label, a cell that is no number.
    """
    path = Path(path)
    if kind not in STAGES:
        raise RunError(f"kind must be one of {', '.join(STAGES)}, got {kind!r}.", where="kind", code="scores-stage")
    head, *rows = _rows(path)
    twice = sorted({name for name in head if head.count(name) > 1})
    lacking = [name for name in (video, *(() if labels is not None else (label,))) if name not in head]
    classes = [name for name in head if name not in (video, label)]
    if twice or lacking or not classes:
        said = f"column {twice[0]!r} stands twice" if twice else f"it has no column {(lacking or ['of a class'])[0]!r}"
        raise _table(path, said, f"Its first line names the columns: {video}, {label} and one a class.")
    names: list[str] = []
    truth: list[int | str | Sequence[int | str]] = []
    values: list[list[float]] = []
    for number, row in enumerate(rows, start=2):
        if len(row) != len(head):
            raise _table(path, f"line {number} has {len(row)} cells, the first {len(head)}", "Mend that line.")
        cells = dict(zip(head, row, strict=True))
        names.append(cells[video])
        if labels is not None and cells[video] not in labels:
            raise _table(path, f"line {number}: video {cells[video]!r} has no label", "Give one, or take it out.")
        truth.append([name for name in cells[label].split("|") if name] if labels is None else labels[cells[video]])
        try:
            values.append([float(cells[name]) for name in classes])
        except ValueError as error:
            raise _table(path, f"line {number} holds a score that is no number ({error})", "Mend it.") from error
    array = np.array(values, dtype=np.float64).reshape(len(names), len(classes))
    logits, probabilities = (array, None) if kind == "logits" else (None, array)
    try:
        return ScoreSet.from_arrays(
            names, classes, labels=truth, logits=logits, probabilities=probabilities, facts=facts
        )
    except RunError as error:
        raise RunError(error.problem, remedy="Correct the table.", where=path, code=error.code) from error


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RunError("there is no such file.", remedy="Give a table.", where=path, code="missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _table(path, f"it cannot be read as text in UTF-8 ({error})", "Save it as CSV in UTF-8.") from error
    first = text.partition("\n")[0]
    separator = max((",", ";", "\t"), key=first.count)
    try:
        found = [row for row in csv.reader(text.splitlines(), delimiter=separator, strict=True) if row]
    except csv.Error as error:
        raise _table(path, f"it is no CSV ({error})", "Save it as CSV in UTF-8.") from error
    if not found:
        raise _table(path, "it is empty", "Give a table with a line of names.")
    return found


def _table(path: Path, problem: str, remedy: str) -> RunError:
    return RunError(f"{problem}.", remedy=remedy, where=path, code="scores-table")
