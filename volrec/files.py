"""Files that are either whole or not there: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["TEMPORARY", "is_disk_full", "readable_size", "replacing", "write_atomically"]

TEMPORARY = ".tmp"
"""Suffix of files that are being written; whoever was killed leaves one behind."""


@contextmanager
def replacing(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of `path` when the block ends well.

    Until then readers see the old file, or none. When the block raises, or the disk is full, the partial file is
    removed and the old one stays.

    Parameters
    ----------
    path : path
        The file to be written; its folder must exist.

    Yields
    ------
    binary file
        What is written to it goes to a temporary file in the same folder.

    Raises
    ------
    OSError
        As the system reports it (see `is_disk_full`).
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path | str, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path`, all or nothing; it is on the disk, name and all, when this returns."""
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
    _sync_folder(Path(path).parent)


def is_disk_full(error: OSError) -> bool:
    """Tell whether a write failed for want of space or quota."""
    return error.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota error


def readable_size(size: float) -> str:
    """Return bytes in the unit a person would use (``"1.4 GB"``, powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system allows it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse it
        pass
    finally:
        os.close(handle)
