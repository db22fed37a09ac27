"""Decoded volumes on disk: each series once, whole or not at all, found again by what determines its content."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from volrec.config import PreprocessConfig
from volrec.data.entries import (
    SUFFIXES,
    Entry,
    StoredVolume,
    check_entry,
    damaged,
    find_entry,
    locked,
    mark_verified,
    open_entry,
    remove_leftovers,
    study_quantiles,
    write_entry,
)
from volrec.errors import ConfigError, DataError, Problem, StoreError, VolrecError
from volrec.files import readable_size
from volrec.io import Series, Volume, read_series
from volrec.io.geometry import canonical_shape
from volrec.io.series import MissingSlices
from volrec.parallel import available_cpus, map_processes

__all__ = [
    "Entry",
    "HasSeries",
    "Store",
    "StoredVolume",
    "fill_entries",
    "preprocess_volume",
    "sound_entry",
    "study_quantiles",
]

log = logging.getLogger(__name__)

SCHEMA = 1
"""Layout of the files: raise it when they change."""
PREPROCESSING = 1
"""Raise it when decoding or resampling changes what comes out for the same settings."""
SMALL = 200_000_000
"""Bytes of decoded voxels below which starting processes costs more than it saves."""
NARROW = 256
"""Range of whole numbers below which rounding after interpolation would cost too much: float32 is kept instead."""
UNCOMPRESSED = frozenset({"", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})


class HasStudy(Protocol):
    """A task for one study."""

    @property
    def study(self) -> str:
        """Name of the study."""


Task = TypeVar("Task", bound=HasStudy)


class HasSeries(Protocol):
    """A study with its chosen series: a `Case` or a `StudyRecord`."""

    @property
    def study(self) -> str:
        """Name of the study."""

    @property
    def series(self) -> Series:
        """The series to be decoded."""


@dataclass(frozen=True)
class _Task:
    """All that a worker needs to fill one entry."""

    folder: str
    format: Literal["npy", "blosc2"]
    full: bool
    key: str
    study: str
    series: Series
    preprocess: dict[str, Any]
    missing_slices: MissingSlices


class Store:
    """Decoded, oriented, resampled volumes in a folder, filled once and read slice by slice.

    An entry's key is a hash of the source files' signature, the preprocessing contract and the versions of both: what
    has changed in any of them is decoded anew, and what has not never is. Several processes may fill one folder.

    Parameters
    ----------
    folder : path, optional
        None: ``$VOLREC_CACHE/store``, or ``~/.cache/volrec/store``.
    format : {"npy", "blosc2"}
        ``npy`` is read through memory maps; ``blosc2`` takes about half the disk (extra ``blosc2``).
    verify : {"full", "size"}
        How entries already there are checked: every byte, once a process, or length and header.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        format: Literal["npy", "blosc2"] = "npy",
        verify: Literal["full", "size"] = "full",
    ) -> None:
        for name, value, allowed in (("format", format, SUFFIXES), ("verify", verify, ("full", "size"))):
            if value not in allowed:
                raise ConfigError(
                    f"'{name}' must be one of {', '.join(allowed)}, got {value!r}.",
                    where=f"store.{name}",
                    code="config",
                )
        self.folder = _default_folder() if folder is None else Path(folder).expanduser()
        self.format: Literal["npy", "blosc2"] = format
        self.verify = verify
        self._sound: set[str] = set()

    def key(self, series: Series, preprocess: PreprocessConfig, missing_slices: MissingSlices = "quarantine") -> str:
        """Return the hash of all that determines an entry's content."""
        facts = {
            "schema": SCHEMA,
            "preprocessing": PREPROCESSING,
            "uid": series.uid,
            "source": series.signature,
            "contract": preprocess.model_dump(mode="json"),
            "missing_slices": missing_slices,
            "format": self.format,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]

    def forecast(self, series: Iterable[Series], preprocess: PreprocessConfig) -> int:
        """Return the bytes that these series will take, from their headers alone (blosc2: about half is assumed)."""
        total = sum(_bytes_of(one, preprocess) for one in series)
        return total // 2 if self.format == "blosc2" else total

    def fill(
        self,
        studies: Sequence[HasSeries | Series],
        preprocess: PreprocessConfig,
        *,
        missing_slices: MissingSlices = "quarantine",
        jobs: int = 0,
    ) -> tuple[dict[str, Entry], list[Problem]]:
        """Decode what is not there yet.

        Parameters
        ----------
        studies : sequence of Case, StudyRecord or Series
            Each series is decoded once, however often it is listed.
        preprocess : PreprocessConfig
            Slice axis, spacing, canvas, interpolation, padding.
        missing_slices : {"quarantine", "interpolate"}
            What is done about a series that lacks a single slice.
        jobs : int
            Processes; 0 takes the processors at hand, and none but this where the work is small.

        Returns
        -------
        dict of str to Entry
            By series uid.
        list of Problem
            One a series that could not be decoded: the rest is there.

        Raises
        ------
        StoreError
            The disk is, or would be, full, or cannot be written; what was finished is kept.
        """
        tasks: dict[str, _Task] = {}
        for study in studies:
            series = study if isinstance(study, Series) else study.series
            name = (study.path or study.uid) if isinstance(study, Series) else study.study
            key = self.key(series, preprocess, missing_slices)
            contract = preprocess.model_dump()
            full = self.verify == "full"
            tasks[series.uid] = _Task(str(self.folder), self.format, full, key, name, series, contract, missing_slices)
        present = self._present(list(tasks.values()))
        entries = {entry.uid: entry for entry in present if entry is not None}
        todo = [task for task in tasks.values() if task.series.uid not in entries]
        log.info("store %s: %d of %d studies are there", self.folder, len(entries), len(tasks))
        problems: list[Problem] = []
        if todo:
            self.require_space(len(todo), self.forecast((task.series for task in todo), preprocess))
            remove_leftovers(self.folder)
            decoded, problems = fill_entries(
                _fill_one,
                todo,
                jobs=_choose_jobs(jobs, todo, preprocess),
                description="decoding studies",
                folder=self.folder,
            )
            entries.update(decoded)
        self._sound.update(entry.key for entry in entries.values() if entry.verified)
        return {uid: entries[uid] for uid in tasks if uid in entries}, problems

    def open(self, entry: Entry) -> StoredVolume:
        """Open an entry for reading; its bytes are checked when this process has not done so (``verify="full"``).

        Raises
        ------
        StoreError
            When it is missing or damaged (code ``store-damaged``); the next `fill` decodes it anew.
        """
        if not entry.verified and entry.key not in self._sound:
            problem = check_entry(entry, full=self.verify == "full")
            if problem:
                raise damaged(entry, problem)
            self._sound.add(entry.key)
        volume = open_entry(entry)
        return volume if entry.fields is None else replace(volume, fields=self.open(entry.fields))

    def size(self) -> int:
        """Return the bytes that the store takes now."""
        return sum(path.stat().st_size for path in self.folder.glob("??/*") if path.is_file())

    def prune(self, keep: Iterable[Entry] = ()) -> int:
        """Remove every entry but those in `keep`, and what killed processes left; return the bytes that were freed."""
        before = self.size()
        remove_leftovers(self.folder)
        kept = {one.key for entry in keep for one in (entry, entry.fields) if one is not None}
        # The JSON file goes first: from then on the entry does not count, whenever the rest follows.
        for suffix in (".json", *SUFFIXES.values()):
            for path in self.folder.glob(f"??/*{suffix}"):
                if path.stem not in kept:
                    path.unlink(missing_ok=True)
        return before - self.size()

    def _present(self, tasks: list[_Task]) -> list[Entry | None]:
        """Return the sound entry of each task, None where it has to be decoded."""
        # Checksums release the interpreter lock: threads suffice.
        with ThreadPoolExecutor(min(8, available_cpus())) as pool:
            return list(pool.map(lambda task: _sound_entry(task, known=self._sound), tasks))

    def require_space(self, count: int, needed: int, *, what: str = "") -> None:
        """Make sure that the folder can be written and has room for `needed` bytes of `count` studies.

        Raises
        ------
        StoreError
            With what is needed and what is free.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise StoreError(
                f"it cannot be written ({error.strerror or error}).",
                remedy="Set store.folder, or VOLREC_CACHE, to a folder you may write to.",
                where=self.folder,
                code="store-unwritable",
            ) from error
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            whose = f"the {what} of {count} studies" if what else f"{count} studies"
            raise StoreError(
                f"{whose} will take {readable_size(needed)} and {readable_size(free)} are free.",
                remedy="Make room, set store.folder to a larger disk, set store.format to blosc2, or choose a smaller "
                "preprocess.canvas.",
                where=self.folder,
                code="disk-full",
            )


def sound_entry(
    folder: Path,
    key: str,
    *,
    uid: str,
    format: Literal["npy", "blosc2"],
    study: str,
    full: bool,
    known: bool = False,
) -> Entry | None:
    """Return the entry of a key, None where there is none or its file is damaged (which is logged).

    Parameters
    ----------
    folder, key, uid, format
        As for `volrec.data.entries.find_entry`.
    study : str
        For the log.
    full : bool
        Every byte is checked, unless `known`: this process has done so before.
    """
    entry = find_entry(folder, key, uid=uid, format=format)
    if entry is None:
        return None
    problem = check_entry(entry, full=full and not known)
    if problem:
        log.warning("%s: what the store has is damaged (%s) and is made anew", study, problem)
        return None
    return mark_verified(entry) if full else entry


def fill_entries(
    fill: Callable[[Task], Entry], tasks: Sequence[Task], *, jobs: int, description: str, folder: Path
) -> tuple[dict[str, Entry], list[Problem]]:
    """Make entries in processes; what one study does not allow costs that study alone.

    Parameters
    ----------
    fill : callable
        Makes the entry of a task: a function of a module, so that processes can be sent it.
    tasks : sequence
        Each with ``study``.
    jobs, description
        As for `volrec.parallel.map_processes`.
    folder : path
        The store, whose partial files are removed when this is stopped.

    Returns
    -------
    dict of str to Entry
        By series uid.
    list of Problem
        One a task that failed.

    Raises
    ------
    StoreError
        The disk is full, or cannot be written: no study's fault.
    """
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    outcomes = map_processes(fill, tasks, jobs=jobs, description=description, name=lambda task: task.study)
    try:
        for outcome in outcomes:
            if isinstance(outcome.error, StoreError):  # the next one would meet it too
                raise outcome.error
            if outcome.result is not None:
                entries[outcome.result.uid] = outcome.result
            elif isinstance(outcome.error, VolrecError):
                problems.append(Problem.of(outcome.error, study=outcome.item.study))
                log.warning("%s is left out: %s", outcome.item.study, outcome.error)
    except BaseException:
        outcomes.close()  # type: ignore[attr-defined]  # stops the workers, whatever they were writing
        remove_leftovers(folder)
        raise
    return entries, problems


def preprocess_volume(volume: Volume, preprocess: PreprocessConfig) -> StoredVolume:
    """Bring a decoded volume to the spacing and canvas of the contract, with the quantiles of its own voxels.

    The store and prediction without a store share this function: a network sees the same voxels either way.

    Parameters
    ----------
    volume : Volume
        (1, T, H, W), already in the contract's slice axis.
    preprocess : PreprocessConfig
        Spacing, canvas, interpolation and padding are used.
    """
    array, affine = volume.array[0], volume.affine
    meta = {**volume.meta, "source_shape": [int(n) for n in array.shape], "source_affine": affine.tolist()}
    quantiles = study_quantiles(array)
    if preprocess.spacing is not None or preprocess.canvas is not None:
        from volrec.transforms.preprocess import preprocess_array

        if preprocess.spacing is not None and array.dtype == np.int16 and np.ptp(quantiles) < NARROW:
            array = array.astype(np.float32)
        array, affine = preprocess_array(
            array,
            affine,
            spacing=preprocess.spacing,
            canvas=preprocess.canvas,
            interpolation=preprocess.interpolation,
            padding=preprocess.padding,
        )
    return StoredVolume(array, np.asarray(affine, dtype=np.float64), quantiles, meta)


def _fill_one(task: _Task) -> Entry:
    """Decode one series into the store, unless another process has done so meanwhile."""
    folder = Path(task.folder)
    with locked(folder, task.key) as held:
        entry = _sound_entry(task)
        if entry is not None:
            return entry
        if held:
            remove_leftovers(folder, task.key)
        preprocess = PreprocessConfig(**task.preprocess)
        volume = read_series(task.series, slice_axis=preprocess.slice_axis, missing_slices=task.missing_slices)
        stored = preprocess_volume(volume, preprocess)
        return write_entry(folder, task.key, stored, uid=task.series.uid, format=task.format)


def _sound_entry(task: _Task, *, known: set[str] | frozenset[str] = frozenset()) -> Entry | None:
    return sound_entry(
        Path(task.folder),
        task.key,
        uid=task.series.uid,
        format=task.format,
        study=task.study,
        full=task.full,
        known=task.key in known,
    )


def _choose_jobs(jobs: int, tasks: list[_Task], preprocess: PreprocessConfig) -> int:
    if jobs > 0:
        return jobs
    # A decoder of compressed pixels may crash: that must not take the training with it.
    compressed = any(
        task.series.headers and task.series.headers[0].transfer_syntax not in UNCOMPRESSED for task in tasks
    )
    if not compressed and sum(_bytes_of(task.series, preprocess) for task in tasks) < SMALL:
        return 1
    return available_cpus()


def _bytes_of(series: Series, preprocess: PreprocessConfig) -> int:
    """Forecast the bytes of one entry from the headers."""
    from volrec.transforms.preprocess import preprocessed_shape

    shape, spacing = canonical_shape(series, preprocess.slice_axis)
    grid = np.diag([*spacing, 1.0])
    try:
        t, h, w = preprocessed_shape(shape, grid, spacing=preprocess.spacing, canvas=preprocess.canvas)
    except DataError:  # no spacing: it will be quarantined when it is decoded
        t, h, w = shape
    return t * h * w * (2 if _fits_int16(series) else 4) + 128


def _fits_int16(series: Series) -> bool:
    for header in series.headers:
        stored = np.dtype(header.dtype or np.int16)
        if stored.kind not in "iu" or stored.itemsize > (1 if stored.kind == "u" else 2):
            return False
        whole = float(header.slope).is_integer() and float(header.intercept).is_integer()
        if header.pixel_kind != "int" or header.bits_allocated > 16 or not whole:
            return False
    return True


def _default_folder() -> Path:
    base = os.environ.get("VOLREC_CACHE")
    return (Path(base).expanduser() if base else Path.home() / ".cache" / "volrec") / "store"
