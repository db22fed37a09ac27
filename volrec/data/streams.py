"""What a network reads beside the slices: displacement fields, computed once a study and kept in the store.

The fields of a study are an entry of the store like its volume: the same locks, checksums and memory maps. Their array
is (2 (T - 1), H, W) int16: x (along W) and y (along H) of every slice in turn, in voxels times 32767 / `STORED_BOUND`.
The field of slice t says where what lies in slice t has moved to in slice t + 1. A stack of one slice has one field,
of zeros.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from volrec.config import IntensityConfig, StreamsConfig
from volrec.data.entries import Entry, StoredVolume, locked, open_entry, remove_leftovers, write_entry
from volrec.data.store import HasSeries, Store, fill_entries, sound_entry
from volrec.errors import ConfigError, DataError, Problem
from volrec.parallel import available_cpus
from volrec.transforms.flow import flow_backend, flow_settings, slice_flow
from volrec.transforms.flow_fields import STORED_BOUND, from_pictures, quantise, stack_fields
from volrec.transforms.windows import resolve_windows

__all__ = ["add_streams", "check_streams", "field_source", "fill_streams", "no_streams", "read_streams"]

log = logging.getLogger(__name__)

SCHEMA = 1
"""Layout and convention of stored fields: raise it when they change."""


@dataclass(frozen=True)
class _Task:
    """All that a worker needs to compute the fields of one study."""

    folder: str
    format: Literal["npy", "blosc2"]
    full: bool
    key: str
    study: str
    entry: Entry
    streams: dict[str, Any]
    intensity: dict[str, Any]


def field_source(streams: StreamsConfig) -> str:
    """Return what computes the fields here, with its version; empty where the network reads none.

    Raises
    ------
    ConfigError
        A package is missing.
    """
    if streams.field is None:
        return ""
    return "pictures" if streams.flow.method == "folder" else flow_backend(streams.flow.method)


def check_streams(streams: StreamsConfig, *, trained_on: str = "") -> None:
    """Make sure that fields can be had here at all, before the first study is read.

    Parameters
    ----------
    streams : StreamsConfig
        Which fields, and how.
    trained_on : str
        What computed those that the network learned from (`field_source`); another is told in the log.

    Raises
    ------
    ConfigError
        A package is missing, or the folder of flow pictures.
    """
    found = field_source(streams)
    if trained_on and found != trained_on:
        log.warning(
            "the network learned from fields of %s, and here they are of %s: its scores may be other ones.",
            trained_on,
            found,
        )
    if found and streams.flow.folder is not None and not Path(streams.flow.folder).is_dir():
        raise ConfigError(
            f"there is no folder of flow pictures {streams.flow.folder}.",
            remedy="Bring it back, or let the flow be computed by another streams.flow.method.",
            where="streams.flow.folder",
            code="no-flow",
        )


def fill_streams(
    store: Store,
    studies: Sequence[HasSeries],
    entries: Mapping[str, Entry],
    streams: StreamsConfig,
    intensity: IntensityConfig,
    *,
    jobs: int = 0,
) -> tuple[dict[str, Entry], list[Problem]]:
    """Compute the fields that are not there yet.

    Parameters
    ----------
    store : Store
        Holds the volumes, and will hold their fields.
    studies : sequence of Case or StudyRecord
        Those without an entry are left out.
    entries : mapping of str to Entry
        By series uid, from `Store.fill`.
    streams : StreamsConfig
        Which fields, and how.
    intensity : IntensityConfig
        The estimators see the volume as the network does (the first window, or the percentiles).
    jobs : int
        Processes; 0 takes the processors at hand.

    Returns
    -------
    dict of str to Entry
        The entries with their fields under ``Entry.fields``; studies without fields are in none.
    list of Problem
        One a study whose fields could not be had: the rest is there.

    Raises
    ------
    ConfigError
        A package is missing.
    StoreError
        The disk is full, or cannot be written.
    """
    if streams.field is None:
        return dict(entries), []
    backend = field_source(streams)
    tasks = {}
    for study in studies:
        entry = entries.get(study.series.uid)
        if entry is None:
            continue
        key = _key(entry, study.study, streams, intensity, backend)
        plain = streams.model_dump(mode="json"), intensity.model_dump(mode="json")
        full = store.verify == "full"
        tasks[entry.uid] = _Task(str(store.folder), store.format, full, key, study.study, entry, *plain)
    # Checksums release the interpreter lock: threads suffice.
    with ThreadPoolExecutor(min(8, available_cpus())) as pool:
        there = dict(zip(tasks, pool.map(_sound, tasks.values()), strict=True))
    found = {uid: entry for uid, entry in there.items() if entry is not None}
    todo = [task for uid, task in tasks.items() if uid not in found]
    log.info("%s (%s): %d of %d studies have it", streams.field, backend, len(found), len(tasks))
    store.require_space(len(todo), sum(_bytes_of(task.entry) for task in todo), what="fields")
    made, problems = fill_entries(
        _fill_one,
        todo,
        jobs=jobs if jobs > 0 else available_cpus(),
        description=f"{streams.field} ({backend})",
        folder=store.folder,
    )
    found |= made
    return {uid: replace(entries[uid], fields=found[uid]) for uid in tasks if uid in found}, problems


def add_streams(
    volume: StoredVolume, streams: StreamsConfig, intensity: IntensityConfig, *, study: str = ""
) -> StoredVolume:
    """Return a volume that is in no store with its fields, computed now.

    Parameters
    ----------
    volume : StoredVolume
        As `volrec.data.store.preprocess_volume` gives it.
    streams, intensity
        As for `fill_streams`.
    study : str
        Name of the study: of its folder, where pictures are read.

    Raises
    ------
    ConfigError
        A package is missing.
    DataError
        The pictures are missing or do not fit.
    """
    if streams.field is None:
        return volume
    return replace(volume, fields=_compute(volume, streams, intensity, study=study))


def read_streams(
    volume: StoredVolume, streams: StreamsConfig, slices: Sequence[int] | np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Read some slices of a study with what belongs to them, reading no more than that.

    Parameters
    ----------
    volume : StoredVolume
        With its fields, where the streams ask for them.
    streams : StreamsConfig
        Which streams, and how many fields a slice carries (L).
    slices : sequence of int, optional
        Slices in any order; None takes all.

    Returns
    -------
    dict
        ``image`` (1, T', H, W) as stored; with fields ``fields`` (2 L, T', H, W) int16 as stored and ``pixel`` (2,)
        float32, mm along W and H; with differences of D slices ``following`` (D + 1, T', H, W): each slice and the D
        that follow it, moved back at the end of the stack so that they are there.
    """
    wanted = np.arange(volume.shape[0]) if slices is None else np.asarray(slices, dtype=np.int64)
    found: dict[str, np.ndarray] = {"image": volume.read(None if slices is None else wanted)[None]}
    if streams.field is not None:
        found["fields"] = _read_fields(volume, streams, wanted)
        found["pixel"] = np.linalg.norm(volume.affine[:3, [2, 1]], axis=0).astype(np.float32)
    if "difference" in streams.inputs:
        steps = np.arange(streams.difference_stack + 1)
        start: np.ndarray = np.clip(wanted, 0, max(0, volume.shape[0] - len(steps)))
        places = np.minimum(start[None] + steps[:, None], volume.shape[0] - 1)
        found["following"] = volume.read(places.reshape(-1)).reshape(*places.shape, *volume.shape[1:])
    return found


def no_streams(streams: StreamsConfig, shape: tuple[int, int, int], dtype: str) -> dict[str, np.ndarray]:
    """Return what `read_streams` would give of T' slices of a study that cannot be read: zeros of (T', H, W)."""
    found: dict[str, np.ndarray] = {"image": np.zeros((1, *shape), dtype=dtype)}
    if streams.field is not None:
        found["fields"] = np.zeros((2 * streams.flow.stack, *shape), dtype=np.int16)
        found["pixel"] = np.ones(2, dtype=np.float32)
    if "difference" in streams.inputs:
        found["following"] = np.zeros((streams.difference_stack + 1, *shape), dtype=dtype)
    return found


def _read_fields(volume: StoredVolume, streams: StreamsConfig, wanted: np.ndarray) -> np.ndarray:
    if volume.fields is None:
        raise DataError(
            f"the stream '{streams.field}' was not computed for this volume.",
            remedy="Read it through `volrec.data.streams.add_streams`, or score it with `volrec predict`.",
            code="no-fields",
        )
    count = volume.fields.shape[0] // 2
    # As many fields on both sides as a stack may reach, so that the ends of what is read are no ends of the study.
    reach = streams.flow.stack + 1
    low, high = max(0, int(wanted.min()) - reach), min(count, int(wanted.max()) + reach + 1)
    low = min(low, count - 1)
    rows = volume.fields.array[2 * low : 2 * high]
    fields: np.ndarray = np.asarray(rows).reshape(high - low, 2, *volume.shape[1:])
    return stack_fields(fields, wanted - low, length=streams.flow.stack, order=streams.flow.order, bound=STORED_BOUND)


def _key(entry: Entry, study: str, streams: StreamsConfig, intensity: IntensityConfig, backend: str) -> str:
    facts: dict[str, Any] = {"schema": SCHEMA, "volume": entry.key, "stream": streams.field, "backend": backend}
    flow = streams.flow
    if flow.method == "folder":
        folder = _picture_folder(streams, study)
        files = sorted(folder.glob("flow_[xy]_*")) if folder.is_dir() else []
        facts["files"] = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        facts["bound"] = flow.folder_bound
    else:
        facts["intensity"] = _shown(intensity)
        facts["settings"] = flow_settings(flow.method)
    if streams.field == "warped":
        facts["drift"] = flow.drift
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


def _bytes_of(entry: Entry) -> int:
    """Return the bytes that the fields of a volume take: two int16 a voxel, for all slices but the last."""
    depth, height, width = entry.shape
    return 4 * max(1, depth - 1) * height * width + 128


def _sound(task: _Task) -> Entry | None:
    return sound_entry(
        Path(task.folder), task.key, uid=task.entry.uid, format=task.format, study=task.study, full=task.full
    )


def _fill_one(task: _Task) -> Entry:
    """Compute the fields of one study into the store, unless another process has done so meanwhile."""
    folder = Path(task.folder)
    with locked(folder, task.key) as held:
        found = _sound(task)
        if found is not None:
            return found
        if held:
            remove_leftovers(folder, task.key)
        streams, intensity = StreamsConfig(**task.streams), IntensityConfig(**task.intensity)
        fields = _compute(open_entry(task.entry), streams, intensity, study=task.study)
        return write_entry(folder, task.key, fields, uid=task.entry.uid, format=task.format)


def _compute(volume: StoredVolume, streams: StreamsConfig, intensity: IntensityConfig, *, study: str) -> StoredVolume:
    """Return the fields of a volume in the form they are stored in."""
    depth, height, width = volume.shape
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    facts: dict[str, Any] = {
        "stream": streams.field,
        "components": "x along W, y along H, from each slice to the next",
        "units": "voxels",
        "bound": STORED_BOUND,
    }
    if depth == 1:
        fields = np.zeros((1, 2, height, width), dtype=np.float32)
    elif streams.flow.method == "folder":
        fields = _from_pictures(volume, streams, study)
        facts["method"] = "pictures"
    else:
        grey = _grey(volume, intensity)
        method: Any = streams.flow.method
        facts["method"] = flow_backend(method)
        if streams.field == "warped":
            from volrec.transforms.drift import warped_slice_flow

            fields, _ = warped_slice_flow(grey, method=method, spacing=spacing, drift=streams.flow.drift)
            facts["drift"] = streams.flow.drift
        else:
            fields = slice_flow(grey, method=method, spacing=spacing)
    stored = quantise(fields, bound=STORED_BOUND).reshape(-1, height, width)
    return StoredVolume(stored, volume.affine, volume.quantiles, facts)


def _shown(intensity: IntensityConfig) -> tuple[str, float, float]:
    """Return what the estimators see of a volume: from one value to another, in HU or in percentiles."""
    if intensity.kind == "window":
        level, width = resolve_windows(intensity.windows)[0]
        return "HU", level - width / 2, level + width / 2
    low, high = (0.0, 100.0) if intensity.kind == "none" else intensity.percentiles
    return "percentiles", low, high


def _grey(volume: StoredVolume, intensity: IntensityConfig) -> np.ndarray:
    """Return the volume (T, H, W) float32 in [0, 1], through the first window or the percentiles."""
    values = volume.read().astype(np.float32)
    kind, low, high = _shown(intensity)
    if kind == "percentiles":
        low, high = np.interp([low, high], np.linspace(0, 100, len(volume.quantiles)), volume.quantiles)
    if high <= low:
        return np.zeros_like(values)
    values -= low
    values /= high - low
    return np.clip(values, 0, 1, out=values)


def _picture_folder(streams: StreamsConfig, study: str) -> Path:
    return Path(streams.flow.folder or "") / study


def _from_pictures(volume: StoredVolume, streams: StreamsConfig, study: str) -> np.ndarray:
    """Return the fields (T - 1, 2, H, W), voxels, of pictures that somebody else made for this study."""
    from volrec.io.flow_pictures import read_flow_folder

    folder = _picture_folder(streams, study)
    if not folder.is_dir():
        raise DataError(
            "there is no folder of flow pictures for this study.",
            remedy=f"It is looked for under the name of the study: {study}.",
            where=folder,
            code="no-flow",
        )
    pictures = read_flow_folder(folder)
    wanted = (volume.shape[0] - 1, 2, *volume.shape[1:])
    if pictures.shape != wanted:
        raise DataError(
            f"{pictures.shape[0]} fields of {pictures.shape[2]} x {pictures.shape[3]} pixels do not fit a stack of "
            f"{volume.shape[0]} slices of {volume.shape[1]} x {volume.shape[2]}, which needs {wanted[0]}.",
            remedy="Make the pictures from the slices as they are read: leave preprocess.spacing and canvas out, or "
            "let volrec compute the flow (streams.flow.method).",
            where=folder,
            code="flow-size",
        )
    return from_pictures(pictures, bound=streams.flow.folder_bound)
