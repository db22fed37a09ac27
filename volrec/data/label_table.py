"""Tables as people save them: CSV or TSV, any delimiter, spaces, byte order mark, decimal commas, words for nothing."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from volrec.errors import LabelsError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["KEYS", "column_named", "is_missing", "read_table", "some", "to_number"]

KEYS = ("path", "study", "patient")
"""Columns that name studies, the most telling first."""
MISSING = frozenset(("", "na", "n/a", "nan", "<na>", "#n/a", "null", "?", "-", "."))
DELIMITERS = ",\t;|"
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(?:e[+-]?\d+)?", re.IGNORECASE)


def read_table(path: Path | str) -> DataFrame:
    """Read a table of text; nothing is converted, so ``007`` stays ``007``.

    Parameters
    ----------
    path : path
        CSV or TSV. UTF-8 (with or without byte order mark), UTF-16 with one, else Latin-1.

    Returns
    -------
    DataFrame
        Cells as text without surrounding spaces; index: the line number in the file. Rows without any text are left
        out.

    Raises
    ------
    LabelsError
        No such file, no table in it, a column twice, a line with too many or too few cells.
    """
    from pandas import DataFrame, Index

    path = Path(path)
    text = _read_text(path)
    delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                lines.append(reader.line_num)
                rows.append(cells)
    except csv.Error as error:
        raise LabelsError(
            f"line {reader.line_num} is no row of a table ({error}).",
            remedy="Save it as CSV (UTF-8).",
            where=path,
            code="labels-format",
        ) from None
    if not rows:
        raise LabelsError("it is empty.", remedy="Give a table with a header line.", where=path, code="labels-empty")
    columns, rows, lines = rows[0], rows[1:], lines[1:]
    while columns and not columns[-1]:  # a spreadsheet's empty columns
        columns.pop()
    _check_columns(columns, path)
    for line, row in zip(lines, rows, strict=True):
        while len(row) > len(columns) and not row[-1]:
            row.pop()
        if len(row) != len(columns):
            raise LabelsError(
                f"line {line} has {len(row)} cells, the header has {len(columns)} ({', '.join(columns)}).",
                remedy=f"Mend that line; cells that hold {delimiter!r} need quotation marks.",
                where=path,
                code="labels-format",
            )
    if not rows:
        raise LabelsError("it has a header and no rows.", remedy="Add a row a study.", where=path, code="labels-empty")
    return DataFrame(rows, columns=Index(columns, dtype=object), index=Index(lines, name="line"), dtype=object)


def column_named(table: DataFrame, name: str) -> str | None:
    """Return the column of this name, whatever its case; None if there is none."""
    return next((str(column) for column in table.columns if str(column).lower() == name.lower()), None)


def is_missing(text: str) -> bool:
    """Tell whether a cell says that there is no value."""
    return text.strip().lower() in MISSING


def to_number(text: str) -> float | None:
    """Return a finite number, also one with a decimal comma; None for anything else."""
    if _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        number = float(text)
    except ValueError:
        return None
    # "1_000" and "infinity" are numbers for Python, and slips in a table.
    return number if abs(number) < float("inf") and "_" not in text else None


def some(names: Iterable[object], most: int = 5) -> str:
    """List the first few, and say how many more there are."""
    listed = [str(name) for name in names]
    return ", ".join(listed[:most]) + (f" … ({len(listed)} in all)" if len(listed) > most else "")


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise LabelsError(
            "there is no such file.", remedy="Check the path of the labels.", where=path, code="labels-missing"
        ) from None
    except OSError as error:
        raise LabelsError(
            f"it cannot be read ({error.strerror or error}).",
            remedy="Give a CSV or TSV file that you may read.",
            where=path,
            code="labels-unreadable",
        ) from None
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace")
    if b"\0" in raw[:4096] or raw[:4] == b"PK\x03\x04":
        raise LabelsError(
            "it is no text file.",
            remedy="Save the spreadsheet as CSV (UTF-8), and give that.",
            where=path,
            code="labels-format",
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _delimiter(text: str) -> str:
    """Return the delimiter by which header and first rows fall into the same number of cells, more than one."""
    head = [line for line in text.splitlines()[:50] if line.strip()][:10]
    best, best_score = ",", (0.0, 0)
    for delimiter in DELIMITERS:
        counts = Counter(len(row) for row in csv.reader(head, delimiter=delimiter, skipinitialspace=True))
        width, times = counts.most_common(1)[0] if counts else (1, 0)
        if width > 1 and (times / len(head), width) > best_score:
            best, best_score = delimiter, (times / len(head), width)
    return best


def _check_columns(columns: list[str], path: Path) -> None:
    twice = [name for name, times in Counter(name.lower() for name in columns).items() if times > 1]
    if twice or "" in columns:
        what = f"the column {twice[0]!r} stands there twice" if twice and twice[0] else "a column has no name"
        raise LabelsError(
            f"{what} ({', '.join(columns)}).",
            remedy="Give every column a name of its own.",
            where=path,
            code="labels-columns",
        )
