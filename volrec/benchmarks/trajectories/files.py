"""Trajectories on disk: a binary file that runs no code when it is read, and the text that other programs print.

The text has one trajectory a line, its numbers apart by a tab (a tab at the end too), plain or compressed by gzip: what
the authors' program prints. Their file of people has a frame a line: its number, then five numbers a person.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from volrec.benchmarks.trajectories.extract import Trajectories
from volrec.benchmarks.trajectories.settings import TrajectorySettings
from volrec.errors import ConfigError, DataError
from volrec.files import replacing

__all__ = ["read_boxes", "read_trajectories", "read_trajectory_text", "write_trajectories", "write_trajectory_text"]

_FORMAT = "volrec trajectories 1"
_LINES = 2048
_GZIP = b"\x1f\x8b"


def write_trajectories(path: Path | str, trajectories: Trajectories) -> None:
    """Write trajectories as safetensors: the rows, and the facts as JSON in its header; all or nothing."""
    from safetensors.numpy import save

    header = {"format": _FORMAT, "facts": json.dumps(dict(trajectories.facts))}
    with replacing(path) as file:
        file.write(save({"rows": np.ascontiguousarray(trajectories.rows, np.float32)}, metadata=header))


def read_trajectories(path: Path | str) -> Trajectories:
    """Read what `write_trajectories` wrote.

    Raises
    ------
    DataError
        For a file that is missing, damaged or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise _unreadable(path, f"is no file of trajectories (its format says {header.get('format')!r})")
            facts, rows = json.loads(header["facts"]), file.get_tensor("rows")
        columns = TrajectorySettings(**facts["settings"]).columns
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise _unreadable(path, f"cannot be read as trajectories ({type(error).__name__}: {error})") from error
    if rows.ndim != 2 or rows.shape[1] != columns["mbhy"].stop:
        raise _unreadable(path, f"has rows of shape {rows.shape}, its settings say {columns['mbhy'].stop} columns")
    return Trajectories(rows, columns, facts)


def write_trajectory_text(path: Path | str, trajectories: Trajectories) -> None:
    """Write the text that others read: numbers with a tab after each, compressed when the name ends in ``.gz``.

    As the authors' program: the frame whole, the other nine fields and the trajectory with six decimals, the histograms
    with seven.
    """
    sixes = trajectories.columns["trajectory"].stop - 1
    sevens = trajectories.rows.shape[1] - sixes - 1
    line = "%d\t" + "%f\t" * sixes + "%.7f\t" * sevens + "\n"
    with replacing(path) as file:
        if not str(path).endswith(".gz"):
            _write_lines(file.write, trajectories.rows, line)
            return
        # Neither name nor time: the same trajectories are the same file.
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            _write_lines(packed.write, trajectories.rows, line)


def read_trajectory_text(path: Path | str, *, settings: TrajectorySettings | None = None) -> Trajectories:
    """Read the text of the authors' program, or of `write_trajectory_text`, plain or compressed.

    Parameters
    ----------
    path : path
    settings : TrajectorySettings, optional
        Those it was made with; they say how many columns there are.

    Returns
    -------
    Trajectories
        The facts are the settings and where it was read from: nothing in the text says what made it.

    Raises
    ------
    DataError
        For a file that is missing or damaged, another number of columns (which is told), or what is no number.
    """
    settings = TrajectorySettings() if settings is None else settings
    blocks = [np.empty((0, settings.width), np.float32)]
    number = 0
    for lines in _blocks(path):
        blocks.append(_parse(lines, path, number, settings.width))
        number += len(lines)
    facts = {"source": Path(path).name, "settings": {**vars(settings)}}
    return Trajectories(np.concatenate(blocks), settings.columns, facts)


def read_boxes(path: Path | str) -> list[np.ndarray]:
    """Read people found in each frame of a video, as the authors' program takes them.

    Returns
    -------
    list of numpy.ndarray
        ``(N, 5)`` float64 a frame, in the order of the lines: x, y of the upper left corner, of the lower right one,
        score.

    Raises
    ------
    DataError
        For a file that is missing, or a line that does not hold a frame and five numbers a person.
    """
    boxes = []
    for number, line in enumerate((line for lines in _blocks(path) for line in lines), 1):
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            values = []
        if len(values) % 5 != 1:
            raise DataError(
                f"line {number} has {len(line.split())} fields: {line.strip()[:60]!r}.",
                remedy="Give the number of the frame and five numbers a person: x, y, x, y, score.",
                where=path,
                code="trajectory-boxes",
            )
        boxes.append(np.array(values[1:], np.float64).reshape(-1, 5))
    return boxes


def _write_lines(write: Callable[[bytes], object], rows: np.ndarray, line: str) -> None:
    for row in rows.tolist():
        write((line % tuple(row)).encode("ascii"))


def _blocks(path: Path | str) -> Iterator[list[str]]:
    """Read the lines that are not empty, some at a time."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            with gzip.open(file) if packed else file as content:
                lines = (line.decode("ascii") for line in content if line.strip())
                while block := list(islice(lines, _LINES)):
                    yield block
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _unreadable(path, f"cannot be read as text ({type(error).__name__}: {error})") from error


def _parse(lines: list[str], path: Path | str, before: int, width: int) -> np.ndarray:
    try:
        rows = np.loadtxt(lines, dtype=np.float32, ndmin=2, comments=None)
        if rows.shape[1] == width and np.isfinite(rows).all():
            return rows
    except ValueError:  # Told below, with the line.
        pass
    for number, line in enumerate(lines, before + 1):
        words = line.split()
        if len(words) != width:
            raise DataError(
                f"line {number} has {len(words)} columns, not {width}.",
                remedy="Rows of other releases or settings differ: give the settings they were made with, or extract "
                "the trajectories again.",
                where=path,
                code="trajectory-columns",
            )
        for column, word in enumerate(words, 1):
            try:
                finite = np.isfinite(float(word))
            except ValueError:
                finite = False
            if not finite:
                raise DataError(
                    f"line {number} has {word[:20]!r} in column {column}.",
                    remedy="Every column holds a finite number; extract the trajectories again.",
                    where=path,
                    code="trajectory-number",
                )
    raise _unreadable(path, f"has lines from {before + 1} on that are not read as numbers")


def _unreadable(path: Path | str, seen: str) -> DataError:
    return DataError(
        f"{seen}.", remedy="Check the path, and extract the trajectories again.", where=path, code="trajectory-file"
    )
