"""Parts of a run folder on the disk: written all or nothing, and read with errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from volrec.errors import RunError
from volrec.files import is_disk_full, write_atomically

__all__ = ["cannot_write", "missing", "read_json", "write_part"]


def write_part(path: Path, content: str) -> None:
    """Write a file, all or nothing; one that was there stays as it was where that fails.

    Raises
    ------
    RunError
        When it cannot be written, with the reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> RunError:
    """Return the error for a path that cannot be written."""
    if is_disk_full(error):
        return RunError(
            "it cannot be written: the disk is full.",
            remedy="Make room, then go on with `volrec train --resume`.",
            where=path,
            code="disk-full",
        )
    return RunError(
        f"it cannot be written ({error.strerror or error}).",
        remedy="Choose a folder you may write to.",
        where=path,
        code="run-unwritable",
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read keys and values.

    Raises
    ------
    RunError
        When the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path, path.parent) from None
    except (OSError, ValueError) as error:
        raise RunError(
            f"it cannot be read ({error}).", remedy="Restore it, or train again.", where=path, code="run-damaged"
        ) from error
    if not isinstance(content, dict):
        raise RunError(
            "it holds no keys and values.", remedy="Restore it, or train again.", where=path, code="run-damaged"
        )
    return content


def missing(path: Path, run: Path) -> RunError:
    """Return the error for a part of `run` that is not there: whether to finish the run or to restore the part."""
    unfinished = path.name in {"scores.csv", "metrics.json"}
    remedy = f"Finish it with `volrec train --resume {run}`." if unfinished else "Restore it, or train again."
    return RunError("this part of the run is missing.", remedy=remedy, where=path, code="run-incomplete")
