"""What has been scored so far, kept on the disk a line a study: an interrupted prediction goes on from there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from volrec.errors import RunError
from volrec.files import is_disk_full

__all__ = ["Journal", "MemoryRows", "Rows", "StudyRow", "unwritable"]

log = logging.getLogger(__name__)

FORMAT = "volrec journal 1"
SYNC = 5.0
"""Seconds after which lines are forced to the disk: all that a power cut can cost."""

Key = tuple[int, str, str]


@dataclass(frozen=True, eq=False)
class StudyRow:
    """What one run says of one study: all that its outputs are made of.

    Attributes
    ----------
    study, patient, source : str
        Names, and what changes with its files.
    scores, logits : ndarray
        (K,) of the run.
    members, member_logits : ndarray
        (M, K) of each member.
    clips, slices : int
        Clips that were pooled, slices of the study.
    warning : str
        Where it differs from the training data.
    numbers, positions, slice_scores : ndarray
        (S,), (S,) and (S, K): slices, where they lie in mm, and what each got; none where S is 0.
    """

    study: str
    patient: str
    source: str
    scores: np.ndarray
    logits: np.ndarray
    members: np.ndarray
    member_logits: np.ndarray
    clips: int
    slices: int
    warning: str
    numbers: np.ndarray
    positions: np.ndarray
    slice_scores: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; numbers come back bit for bit."""
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StudyRow:
        """Rebuild what `to_json` gave."""
        plain: dict[str, Any] = {
            key: np.asarray(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)


class Rows(Protocol):
    """Where rows are kept until the table is made."""

    def has(self, run: int, study: str, source: str) -> bool:
        """Tell whether a run has scored a study, whose files have not changed since."""

    def add(self, run: int, row: StudyRow) -> None:
        """Keep a row."""

    def get(self, run: int, study: str, source: str) -> StudyRow:
        """Return a row that is there."""


class MemoryRows:
    """Rows in memory, for tables that no file is asked of."""

    def __init__(self) -> None:
        self._rows: dict[Key, StudyRow] = {}

    def has(self, run: int, study: str, source: str) -> bool:
        """See `Rows`."""
        return (run, study, source) in self._rows

    def add(self, run: int, row: StudyRow) -> None:
        """See `Rows`."""
        self._rows[run, row.study, row.source] = row

    def get(self, run: int, study: str, source: str) -> StudyRow:
        """See `Rows`."""
        return self._rows[run, study, source]


class Journal:
    """Rows in a file beside the scores, named after what determines them; removed once those are written.

    A line that is not whole (the process was killed, the machine lost power) does not count, nor does one of a study
    whose files have changed.

    Parameters
    ----------
    beside : path
        The file of scores.
    settings : mapping
        Everything that determines a study's row, in plain JSON types.

    Raises
    ------
    RunError
        It cannot be written.
    """

    def __init__(self, beside: Path, settings: Mapping[str, Any]) -> None:
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.path = beside.with_name(f"{beside.stem}-unfinished-{digest[:8]}.jsonl")
        self._head = json.dumps({"format": FORMAT, "settings": settings}, sort_keys=True).encode() + b"\n"
        self._places: dict[Key, int] = {}
        self._synced = time.monotonic()
        try:
            self._file = open(self.path, "a+b")  # noqa: SIM115  (closed by `close`)
            self._read()
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.found = len(self._places)
        for other in sorted(beside.parent.glob(f"{_escaped(beside.stem)}-unfinished-????????.jsonl")):
            if other != self.path:
                log.warning(
                    "%s is of an unfinished prediction with other settings%s: it is not used. Delete it if that "
                    "prediction is not needed any more.",
                    other,
                    _apart(other, settings),
                )

    def __len__(self) -> int:
        return len(self._places)

    def has(self, run: int, study: str, source: str) -> bool:
        """See `Rows`."""
        return (run, study, source) in self._places

    def get(self, run: int, study: str, source: str) -> StudyRow:
        """See `Rows`."""
        self._file.seek(self._places[run, study, source])
        return StudyRow.from_json(json.loads(self._file.readline())["row"])

    def add(self, run: int, row: StudyRow) -> None:
        """See `Rows`; a killed process loses nothing, a power cut some seconds.

        Raises
        ------
        RunError
            The disk is full.
        """
        line = json.dumps({"run": run, "row": row.to_json()}, allow_nan=False).encode() + b"\n"
        try:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            if time.monotonic() - self._synced > SYNC:
                self._sync()
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._places[run, row.study, row.source] = place

    def close(self) -> None:
        """Leave the file for the next time."""
        if not self._file.closed:
            self._sync()
            self._file.close()
            if not self._places:
                self.path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the file: what it held is written."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        """Find the whole lines of an earlier time; what follows the last of them is cut off."""
        self._file.seek(0)
        end = 0
        while (line := self._file.readline()).endswith(b"\n"):
            if end == 0 and line != self._head:  # damaged, or not ours
                break
            if end and (key := _key_of(line)):
                self._places[key] = end
            end += len(line)
        self._file.truncate(end)
        if end == 0:
            self._file.write(self._head)
            self._sync()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def unwritable(path: Path, error: OSError) -> RunError:
    """Return the error for a file of scores that cannot be written."""
    full = is_disk_full(error)
    return RunError(
        f"it cannot be written ({'the disk is full' if full else error.strerror or error}).",
        remedy="Make room, then go on with the same command." if full else "Choose a place that you may write to.",
        where=path,
        code="disk-full" if full else "unwritable",
    )


def _key_of(line: bytes) -> Key | None:
    """Return what a line is of; None where it is damaged."""
    try:
        found = json.loads(line)
        row = StudyRow.from_json(found["row"])
        return int(found["run"]), row.study, row.source
    except (ValueError, KeyError, TypeError):
        return None


def _apart(path: Path, settings: Mapping[str, Any]) -> str:
    """Name the settings in which a journal differs, where it says so."""
    try:
        with open(path, "rb") as file:
            other = json.loads(file.readline())["settings"]
        names = [key for key in sorted({*other, *settings}) if other.get(key) != settings.get(key)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f" ({', '.join(names)})" if names else ""


def _escaped(stem: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in stem)
