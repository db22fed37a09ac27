"""The files of a prediction: scores as CSV and JSON, slices and quarantine beside them, each whole or not there."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec.errors import ConfigError, Problem
from volrec.files import replacing, write_atomically
from volrec.inference.journal import unwritable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["beside", "check_out", "write_outputs"]

FORMAT = "volrec prediction 1"
SUFFIXES = (".csv", ".json")
OF_A_RUN = {f"{name}.csv" for name in ("scores", "validation_scores", "index", "splits", "quarantine")} | {
    f"{name}.json" for name in ("versions", "metrics", "fusion", "audit")
}
OURS = (FORMAT.encode(), b"study,patient,", b"study,slice,", b"run,study,slice,", b"where,code,reason,")
"""How files of a prediction begin."""


def beside(out: Path) -> dict[str, Path]:
    """Return the files of a prediction: ``scores`` (CSV), ``record`` (JSON), ``slices`` and ``quarantine`` (CSV)."""
    return {
        "scores": out.with_suffix(".csv"),
        "record": out.with_suffix(".json"),
        "slices": out.with_name(f"{out.stem}-slices.csv"),
        "quarantine": out.with_name(f"{out.stem}-quarantine.csv"),
    }


def check_out(out: Path | str) -> Path:
    """Return where scores go, its folder made, before hours are spent on them.

    Raises
    ------
    ConfigError
        Another suffix than .csv or .json, or a file that is no prediction's would be overwritten.
    RunError
        The folder cannot be made.
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES or out.is_dir():
        raise ConfigError(
            f"scores are written as .csv and .json, not as {out.suffix or 'a file without suffix'}.",
            remedy=f"Name it {out.stem or 'scores'}.csv: the JSON file lies beside it.",
            where=out,
            code="suffix",
        )
    for path in beside(out).values():
        if _is_not_ours(path, asked_for=path == out):
            raise ConfigError(
                f"{path} would be overwritten, and it is no table of a prediction.",
                remedy="Choose another name.",
                where=out,
                code="overwrites",
            )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out.parent, error) from error
    return out


def write_outputs(
    out: Path,
    table: pd.DataFrame,
    problems: Sequence[Problem],
    *,
    record: Mapping[str, Any],
    slices: Iterator[Mapping[str, Any]],
) -> dict[str, Path]:
    """Write the files of a prediction; one of an earlier prediction that this one has not is removed.

    Parameters
    ----------
    out : path
        ``NAME.csv`` or ``NAME.json``: both are written.
    table : DataFrame
        A row a study.
    problems : sequence of Problem
        The quarantine: written where there is one.
    record : mapping
        What the JSON file says beside rows and quarantine.
    slices : iterator of mapping
        A row a slice, never held together in memory; written where there is one.

    Returns
    -------
    dict
        From ``scores``, ``record``, ``slices`` and ``quarantine`` to the file, of those that were written.

    Raises
    ------
    RunError
        A file cannot be written.
    """
    files = beside(out)
    lines = [problem.as_dict() for problem in problems]
    written = {}
    for name, path in files.items():
        rows: Iterator[Mapping[str, Any]] = slices if name == "slices" else iter(lines)
        try:
            if name == "scores":
                # File names, and so studies, may hold bytes that are no text.
                text = table.to_csv(index=False, lineterminator="\n")
                write_atomically(path, text.encode("utf-8", "backslashreplace"))
            elif name == "record":
                whole = {"format": FORMAT, **record, "rows": _plain(table), "quarantine": lines}
                write_atomically(path, json.dumps(whole, indent=1, allow_nan=False) + "\n")
            elif not _write_rows(path, rows):
                path.unlink(missing_ok=True)
                continue
        except OSError as error:
            raise unwritable(path, error) from error
        written[name] = path
    return written


def _is_not_ours(path: Path, *, asked_for: bool) -> bool:
    """Tell whether a file belongs to a run, or was not asked for by name and is something else."""
    if not path.is_file():
        return False
    if (path.parent / "versions.json").is_file() and path.name in OF_A_RUN:
        return True
    with open(path, "rb") as file:
        start = file.read(200)
    return not asked_for and not any(mark in start for mark in OURS)


def _write_rows(path: Path, rows: Iterator[Mapping[str, Any]]) -> bool:
    """Write a table row by row; return False, having written nothing, where there is none."""
    first = next(rows, None)
    if first is None:
        return False
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.DictWriter(text, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerows(chain([first], rows))
        text.flush()
        text.detach()
    return True


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows of plain JSON types, null where a cell is empty."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value.item() if hasattr(value, "item") else value for key, value in row.items()} for row in rows]
