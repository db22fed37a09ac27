"""Trajectories of every study of a store, once each, on a grid that all studies of a run share.

The constants of improved dense trajectories (points every 5 pixels, tubes of 32 pixels, 15 steps) were set on videos of
240 x 320 pixels. A volume is brought to where they mean something: left alone, `choose_settings` takes the studies'
own pixels, made finer until the shorter side has three tubes (96 pixels) and coarser until it has 240, and mixes frames
between slices where there are fewer than 20. All in mm and from the median study, so that one shift in the body is one
shift in every row. Crops of 35 x 50 x 35 voxels of 1 mm become 96 x 137 pixels. The smallest volume that can have a
trajectory is two slices in which something moves; only whole studies much smaller than the median one have no tube
(they are quarantined) or too few slices (they have no trajectory).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from volrec.benchmarks.opencv import load_opencv
from volrec.benchmarks.trajectories.files import read_trajectories, write_trajectories
from volrec.benchmarks.trajectories.settings import TrajectorySettings
from volrec.benchmarks.trajectories.volume import volume_trajectories
from volrec.config import IntensityConfig
from volrec.data.entries import Entry, StoredVolume
from volrec.data.store import Store
from volrec.errors import ConfigError, DataError, Problem, StoreError, VolrecError
from volrec.files import is_disk_full
from volrec.inference.studies import Studies
from volrec.parallel import available_cpus, map_processes
from volrec.transforms.windows import resolve_windows

__all__ = [
    "StudyTrajectories",
    "VolumeSettings",
    "choose_settings",
    "own_box",
    "own_windows",
    "study_trajectories",
]

SCHEMA = 1
"""Raise it when the same settings would give other rows."""
SHORTEST, LONGEST = 96, 240
"""Pixels of the shorter side of a slice: three tubes; that of the videos that the constants were set on."""
FRAMES = 20
"""Tracks of 15 steps can begin in five frames at least."""
OUTER = (0.5, 99.5)
"""Percentiles that are black and white where the run's intensities are as stored."""


@dataclass(frozen=True)
class VolumeSettings:
    """What determines the trajectories of all studies of a run.

    Attributes
    ----------
    grid_mm, slice_mm : float
        Side of the square pixels that slices are brought to; distance of the frames that tracks go through.
    step_mm, patch_mm : float, optional
        Distance of the points, side of the tubes; None: 5 and 32 pixels of the grid.
    drift : {"none", "homography"}
        Whether what moves as a whole from slice to slice is taken out.
    tracks : TrajectorySettings
        The other constants. Length and cells are fixed: rows of other widths cannot be encoded.
    """

    grid_mm: float
    slice_mm: float
    step_mm: float | None = None
    patch_mm: float | None = None
    drift: str = "none"
    tracks: TrajectorySettings = field(default_factory=TrajectorySettings)


@dataclass(frozen=True)
class StudyTrajectories:
    """Where the trajectories of studies lie.

    Attributes
    ----------
    settings : VolumeSettings
    files : mapping of str to Path
        By study.
    counts : mapping of str to int
        Trajectories of each.
    problems : tuple of Problem
        Studies that could not be tracked, and those without a trajectory (which are used).
    """

    settings: VolumeSettings
    files: Mapping[str, Path]
    counts: Mapping[str, int]
    problems: tuple[Problem, ...] = ()

    def rows(self, studies: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Read the rows (n, 436) of studies, one after the other."""
        for study in studies:
            yield study, read_trajectories(self.files[study]).rows


@dataclass(frozen=True)
class _Task:
    """All that a process needs for one study."""

    study: str
    entry: Entry
    store: dict[str, Any]
    path: Path
    settings: VolumeSettings
    intensity: dict[str, Any]


def choose_settings(
    volumes: Iterable[StoredVolume],
    *,
    grid_mm: float | None = None,
    slice_mm: float | None = None,
    **others: Any,
) -> VolumeSettings:
    """Choose the grid by the size of the median study, so that the constants of the paper fit it.

    Parameters
    ----------
    volumes : iterable of StoredVolume
        Only their shapes and affines are looked at.
    grid_mm, slice_mm : float, optional
        Taken as they are.
    **others
        Further fields of `VolumeSettings`.

    Raises
    ------
    DataError
        No volume.
    """
    found = [(own_box(volume), spacing_of(volume)) for volume in volumes]
    if not found:
        raise DataError("there is no study to track.", remedy="See the quarantine for why.", code="no-studies")
    sizes = np.array([[part.stop - part.start for part in box] for box, _ in found])
    steps = np.array([step for _, step in found])
    side = float(np.median((sizes * steps)[:, 1:].min(axis=1)))
    if grid_mm is None:
        grid_mm = float(np.clip(np.median(steps[:, 1:].min(axis=1)), side / LONGEST, side / SHORTEST))
    if slice_mm is None:
        span = float(np.median(((sizes - 1) * steps)[:, 0]))
        own = float(np.median(steps[:, 0]))
        slice_mm = min(own, span / (FRAMES - 1)) if span > 0 else own
    # Six digits: enough for any place, and the same file whatever the order of sums.
    return VolumeSettings(float(f"{grid_mm:.6g}"), float(f"{slice_mm:.6g}"), **others)


def study_trajectories(
    studies: Studies, names: Sequence[str] | None = None, *, settings: VolumeSettings | None = None, jobs: int = 0
) -> StudyTrajectories:
    """Track every study that has no trajectories yet; what was tracked before an interruption is kept.

    The files lie in the store (``trajectories/``), under a name that volume, intensities, settings and the version of
    OpenCV determine: runs that share preprocessing share them.

    Parameters
    ----------
    studies : Studies
        Of a run (`open_run`) or a configuration (`open_studies`).
    names : sequence of str, optional
        Only these.
    settings : VolumeSettings, optional
        Chosen by `choose_settings` where left out, from all studies.
    jobs : int
        Processes; 0 takes the processors at hand.

    Raises
    ------
    ConfigError
        Settings that cannot be used, or OpenCV is not installed.
    StoreError
        The disk is full, or cannot be written.
    """
    version = str(load_opencv().__version__)
    if settings is None:
        settings = choose_settings(studies.store.open(entry) for entry in studies.entries.values())
    whole = TrajectorySettings()
    fixed = ("length", "cells", "time_cells", "hog_bins", "hof_bins", "mbh_bins")
    if any(getattr(settings.tracks, name) != getattr(whole, name) for name in fixed):
        raise ConfigError(
            f"rows are encoded with {', '.join(f'{name}={getattr(whole, name)}' for name in fixed)} only.",
            remedy="Change slice_mm to follow structures over another distance, and patch_mm for larger tubes.",
            where="tracks",
            code="trajectory-settings",
        )
    tasks = []
    for study in names if names is not None else studies.names:
        entry, intensity = studies.entries[study], studies.config.intensity.model_dump(mode="json")
        facts = [SCHEMA, entry.key, intensity, asdict(settings), version]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]
        path = studies.store.folder / "trajectories" / key[:2] / f"{key}.safetensors"
        store = {"folder": studies.store.folder, "format": studies.store.format, "verify": studies.store.verify}
        tasks.append(_Task(study, entry, store, path, settings, intensity))
    counts: dict[str, int] = {}
    problems: list[Problem] = []
    work = map_processes(
        _track, tasks, jobs=jobs if jobs > 0 else available_cpus(), description="trajectories", name=_name
    )
    for outcome in work:
        task = outcome.item
        if outcome.result is not None:
            counts[task.study] = outcome.result
        elif isinstance(outcome.error, VolrecError):
            if isinstance(outcome.error, ConfigError) or outcome.error.code in ("disk-full", "store-unwritable"):
                raise outcome.error  # no study's fault, and the next one would meet it too
            problems.append(Problem.of(outcome.error, where=task.entry.path, study=task.study))
    files = {task.study: task.path for task in tasks if task.study in counts}
    problems += [_empty(study) for study in files if not counts[study]]
    return StudyTrajectories(
        settings,
        files,
        {study: counts[study] for study in files},
        tuple(sorted(problems, key=lambda problem: problem.study)),
    )


def own_windows(intensity: IntensityConfig, quantiles: np.ndarray) -> list[tuple[float, float]]:
    """Return level and width of what the run's intensities spread over grey values; CT may have several windows.

    Parameters
    ----------
    intensity : IntensityConfig
        ``window``: its windows. ``percentile`` and ``zscore``: between the study's percentiles, where they clip.
        ``none``: between 0.5 and 99.5 %.
    quantiles : ndarray
        (Q,) of the study, at even steps from 0 to 100 %.
    """
    if intensity.kind == "window":
        return list(resolve_windows(intensity.windows))
    ends = OUTER if intensity.kind == "none" else intensity.percentiles
    low, high = np.interp(np.asarray(ends) / 100 * (len(quantiles) - 1), np.arange(len(quantiles)), quantiles)
    # A study of one value is grey, and no point is found in it.
    return [(float(low + high) / 2, float(high - low) or 1.0)]


def own_box(volume: StoredVolume) -> tuple[slice, slice, slice]:
    """Return the part of a stored volume that is the study's own: what the canvas padded is an edge, not anatomy."""
    back = np.linalg.inv(np.asarray(volume.meta["source_affine"], dtype=np.float64)) @ volume.affine
    middle = (np.asarray(volume.shape) - 1) / 2
    parts = []
    for axis, (size, source) in enumerate(zip(volume.shape, volume.meta["source_shape"], strict=True)):
        places = np.tile([*middle, 1.0], (size, 1))
        places[:, axis] = np.arange(size)
        own = places @ back[axis]
        inside = np.flatnonzero((own > -0.5 - 1e-6) & (own < source - 0.5 + 1e-6))
        parts.append(slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, size))
    return parts[0], parts[1], parts[2]


def spacing_of(volume: StoredVolume) -> np.ndarray:
    """Return mm between slices, rows and columns, (3,)."""
    return np.asarray(np.linalg.norm(volume.affine[:3, :3], axis=0))


def _track(task: _Task) -> int:
    """Track one study unless its file is there and whole; return how many trajectories it has."""
    if task.path.is_file():
        try:
            return len(read_trajectories(task.path))
        except DataError:  # damaged: made anew
            pass
    volume = Store(**task.store).open(task.entry)
    box = own_box(volume)
    voxels = volume.read(range(box[0].start, box[0].stop))[:, box[1], box[2]]
    settings = task.settings
    found = [
        volume_trajectories(
            voxels,
            [float(step) for step in spacing_of(volume)],
            window=window,
            grid_mm=settings.grid_mm,
            slice_mm=settings.slice_mm,
            step_mm=settings.step_mm,
            patch_mm=settings.patch_mm,
            drift=settings.drift,
            settings=settings.tracks,
        )
        for window in own_windows(IntensityConfig(**task.intensity), volume.quantiles)
    ]
    # The tracks of several windows are one bag: each is an image in its own right.
    rows = np.concatenate([one.rows for one in found])
    facts = {**found[0].facts, "windows": [one.facts["window"] for one in found]}
    try:
        task.path.parent.mkdir(parents=True, exist_ok=True)
        write_trajectories(task.path, type(found[0])(rows, found[0].columns, facts))
    except OSError as error:
        full = is_disk_full(error)
        raise StoreError(
            "the disk is full." if full else f"it cannot be written ({error.strerror or error}).",
            remedy="Make room, or set store.folder to another disk: what was tracked is kept.",
            where=task.path,
            code="disk-full" if full else "store-unwritable",
        ) from error
    return len(rows)


def _name(task: _Task) -> str:
    return task.study


def _empty(study: str) -> Problem:
    return Problem(
        study,
        "no-trajectories",
        "it has no trajectory: its slices are too few, or nothing moves from one to the next.",
        "A smaller slice_mm or grid_mm finds more; its vector is zero.",
        study,
        fatal=False,
    )
