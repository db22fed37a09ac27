"""One decoded series on disk: an array file, and a JSON file that is written last and vouches for it."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from volrec.errors import StoreError
from volrec.files import TEMPORARY, is_disk_full, readable_size, replacing, write_atomically

__all__ = [
    "QUANTILES",
    "Entry",
    "StoredVolume",
    "check_entry",
    "find_entry",
    "locked",
    "open_entry",
    "remove_leftovers",
    "study_quantiles",
    "write_entry",
]

Format = Literal["npy", "blosc2"]
SUFFIXES: dict[str, str] = {"npy": ".npy", "blosc2": ".b2nd"}
QUANTILES = 1001
"""Number of quantiles kept of a study: 0, 0.1, … 100 %."""
SAMPLE = 2_000_000
"""Voxels that the quantiles of a larger study are taken from."""
BLOCK = 1 << 24


@dataclass(frozen=True)
class Entry:
    """Where a decoded series lies; light enough to send to every worker.

    Attributes
    ----------
    uid, key : str
        Series, and hash of everything that determines the content.
    path : str
        Array file; its JSON lies beside it.
    shape : tuple of int
        (T, H, W).
    dtype, format : str
        ``"int16"`` or ``"float32"``; ``"npy"`` or ``"blosc2"``.
    size : int
        Bytes of the array file.
    checksum : int
        CRC-32 of the array file.
    verified : bool
        Whether its bytes have been compared with the checksum since this process, or the one that handed it over,
        started.
    fields : Entry, optional
        Its displacement fields (`volrec.data.streams`), where the network reads them.
    """

    uid: str
    key: str
    path: str
    shape: tuple[int, int, int]
    dtype: str
    format: str
    size: int
    checksum: int
    verified: bool = False
    fields: Entry | None = None


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """A decoded, resampled series, read slice by slice from the disk.

    Attributes
    ----------
    array : array-like
        (T, H, W) int16 or float32: a read-only memory map (``npy``), or a blosc2 array that decodes what is indexed.
    affine : ndarray
        (4, 4) float64: (t, h, w, 1) of this array to LPS mm.
    quantiles : ndarray
        (1001,) float32: the study's own voxels, before resampling and padding, at 0, 0.1, … 100 %.
    meta : dict
        As `Volume.meta`, and ``source_shape``, ``source_affine``: the canonical volume before resampling and canvas.
    fields : StoredVolume, optional
        Its displacement fields (`volrec.data.streams`).
    """

    array: Any
    affine: np.ndarray
    quantiles: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)
    fields: StoredVolume | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        t, h, w = self.array.shape
        return int(t), int(h), int(w)

    @property
    def dtype(self) -> np.dtype[Any]:
        """int16 or float32."""
        return np.dtype(self.array.dtype)

    def read(self, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return a copy of some slices, (T', H, W), reading only those.

        Parameters
        ----------
        indices : sequence of int, optional
            Slices in any order, repeats allowed; None reads all.

        Raises
        ------
        IndexError
            When an index is outside the stack.
        """
        if indices is None:
            return np.array(self.array[:])
        wanted = np.asarray(indices, dtype=np.int64)
        count = self.shape[0]
        if wanted.size and (wanted.min() < 0 or wanted.max() >= count):
            raise IndexError(f"slices {wanted.min()} to {wanted.max()} were asked of a stack of {count}")
        if isinstance(self.array, np.ndarray):
            return np.asarray(self.array)[wanted]
        # blosc2 decodes whole chunks: each run of neighbours is read once, repeats are copied.
        unique, inverse = np.unique(wanted, return_inverse=True)
        read = np.empty((len(unique), *self.shape[1:]), dtype=self.dtype)
        starts = np.flatnonzero(np.diff(unique, prepend=-2) != 1)
        for start, stop in zip(starts, [*starts[1:], len(unique)], strict=True):
            read[start:stop] = self.array[int(unique[start]) : int(unique[stop - 1]) + 1]
        return read[inverse]


def study_quantiles(array: np.ndarray) -> np.ndarray:
    """Return the (1001,) float32 quantiles of an array at 0, 0.1, … 100 %, linear between order statistics.

    Of more than two million voxels an evenly spread sample is taken, always the same one.
    """
    flat = array.reshape(-1)
    if flat.size > SAMPLE:
        step = -(-flat.size // SAMPLE)
        # A step that shares a factor with a row or slice would meet the same columns again and again.
        while math.gcd(step, flat.size) != 1:
            step += 1
        flat = flat[::step]
    ordered = np.sort(flat, kind="stable")  # a radix sort for int16
    places = np.linspace(0.0, ordered.size - 1, QUANTILES)
    below = np.minimum(places.astype(np.int64), max(ordered.size - 2, 0))
    above = np.minimum(below + 1, ordered.size - 1)
    low, high = ordered[below].astype(np.float64), ordered[above].astype(np.float64)
    return (low + (high - low) * (places - below)).astype(np.float32)


def write_entry(folder: Path, key: str, volume: StoredVolume, *, uid: str, format: Format) -> Entry:
    """Write a volume under its key: the array file, then the JSON file that makes it count.

    Raises
    ------
    StoreError
        Out of disk (code ``disk-full``: what is needed, what is free) or not writable (``store-unwritable``). The
        partial file is removed.
    """
    array = np.ascontiguousarray(volume.array)
    path = _array_path(folder, key, format)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            size = checksum = 0
            for block in _encode(array, format):
                file.write(block)
                size += len(block)
                checksum = zlib.crc32(block, checksum)
        t, h, w = (int(n) for n in array.shape)
        entry = Entry(uid, key, str(path), (t, h, w), array.dtype.name, format, size, checksum, verified=True)
        record = {
            "uid": uid,
            "key": key,
            "shape": [t, h, w],
            "dtype": entry.dtype,
            "format": format,
            "size": size,
            "checksum": checksum,
            "affine": volume.affine.tolist(),
            "quantiles": base64.b64encode(volume.quantiles.astype("<f4").tobytes()).decode("ascii"),
            "meta": volume.meta,
        }
        write_atomically(_record_path(path), json.dumps(record))
    except OSError as error:
        raise _cannot_write(error, folder, array.nbytes) from error
    return entry


def find_entry(folder: Path, key: str, *, uid: str, format: Format) -> Entry | None:
    """Return the entry of a key when its JSON file is whole, else None; the array file is not looked at."""
    path = _array_path(folder, key, format)
    record = _read_record(path)
    if record is None or record["key"] != key:
        return None
    t, h, w = record["shape"]
    return Entry(uid, key, str(path), (t, h, w), record["dtype"], format, record["size"], record["checksum"])


def check_entry(entry: Entry, *, full: bool) -> str:
    """Return what is wrong with the array file, empty when nothing is.

    Parameters
    ----------
    entry : Entry
        What the JSON file promises.
    full : bool
        Compare every byte with the checksum; False: length and header alone.
    """
    try:
        size = Path(entry.path).stat().st_size
        if size != entry.size:
            return f"it has {size} bytes instead of {entry.size}"
        array = _open_array(entry)
        if tuple(array.shape) != entry.shape or np.dtype(array.dtype).name != entry.dtype:
            return f"its header says {tuple(array.shape)} {array.dtype} instead of {entry.shape} {entry.dtype}"
        if full and (checksum := _checksum(entry.path)) != entry.checksum:
            return f"its checksum is {checksum:08x} instead of {entry.checksum:08x}"
    except FileNotFoundError:
        return "the file is missing"
    except (OSError, ValueError, RuntimeError) as error:
        return f"it cannot be read ({error})"
    return ""


def open_entry(entry: Entry) -> StoredVolume:
    """Open an entry for reading; only its JSON file is read now.

    Raises
    ------
    StoreError
        When either file is missing or damaged.
    """
    record = _read_record(Path(entry.path))
    if record is None or record["checksum"] != entry.checksum:
        raise damaged(entry, "its description is missing or damaged")
    try:
        array = _open_array(entry)
    except (OSError, ValueError, RuntimeError) as error:
        raise damaged(entry, str(error)) from error
    quantiles = np.frombuffer(base64.b64decode(record["quantiles"]), dtype="<f4").astype(np.float32)
    return StoredVolume(array, np.array(record["affine"], dtype=np.float64), quantiles, record["meta"])


def damaged(entry: Entry, problem: str) -> StoreError:
    """Return the error that names a damaged entry."""
    return StoreError(
        f"the stored copy of series {entry.uid} is damaged: {problem}.",
        remedy="Run the command again: damaged copies are decoded anew from the source.",
        where=entry.path,
        code="store-damaged",
    )


@contextmanager
def locked(folder: Path, key: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold a key for this process, so that two of them do not decode the same series; yields whether it is held.

    The lock ends with the process, however that dies. Where the system has no such locks, work goes on without: files
    are replaced as a whole, so the worst case is work done twice.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    # A few thousand lock files at most, shared by keys: lock files of their own could never be removed safely.
    path = folder / "locks" / key[:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except OSError:  # held elsewhere, or a file system without locks
            held = False
        yield held


def remove_leftovers(folder: Path, key: str | None = None) -> int:
    """Remove partial files of processes that were killed, and return how many.

    Parameters
    ----------
    folder : path
        The store.
    key : str, optional
        Only this key's, whose lock the caller holds; None: of all keys that nobody holds.
    """
    if key is not None:
        leftovers = list((folder / key[:2]).glob(f"{key}*{TEMPORARY}"))
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)
    removed = 0
    for name in {path.name.split(".")[0] for path in folder.glob(f"??/*{TEMPORARY}")}:
        with locked(folder, name, wait=False) as held:
            removed += remove_leftovers(folder, name) if held else 0
    return removed


def _array_path(folder: Path, key: str, format: str) -> Path:
    return folder / key[:2] / f"{key}{SUFFIXES[format]}"


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(_record_path(path).read_bytes())
    except (OSError, ValueError):
        return None
    wanted = {"key", "shape", "dtype", "size", "checksum", "affine", "quantiles", "meta"}
    return record if isinstance(record, dict) and wanted <= record.keys() else None


def _encode(array: np.ndarray, format: Format) -> Iterator[bytes | memoryview]:
    """Give the bytes of the array file, a block at a time."""
    if format == "npy":
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        yield header.getvalue()
        content = memoryview(array.data).cast("B")
    else:
        blosc2 = _blosc2()
        # One slice a chunk: a clip decodes its slices and no others.
        parameters = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.BITSHUFFLE]}
        packed = blosc2.asarray(array, chunks=(1, *array.shape[1:]), cparams=parameters, contiguous=True)
        content = memoryview(packed.to_cframe())
    for start in range(0, len(content), BLOCK):
        yield content[start : start + BLOCK]


def _open_array(entry: Entry) -> Any:
    if entry.format == "npy":
        return np.load(entry.path, mmap_mode="r", allow_pickle=False)
    return _blosc2().open(entry.path, mode="r")


def _blosc2() -> Any:
    try:
        import blosc2
    except ImportError:
        raise StoreError(
            "the format blosc2 needs the package blosc2, which is not installed.",
            remedy="Install it with `pip install volrec[blosc2]`, or set store.format to npy.",
            where="store.format",
            code="missing-package",
        ) from None
    return blosc2


def _checksum(path: str) -> int:
    checksum = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _cannot_write(error: OSError, folder: Path, needed: int) -> StoreError:
    if is_disk_full(error):
        existing = next((place for place in (folder, *folder.parents) if place.is_dir()), Path("/"))
        free = shutil.disk_usage(existing).free
        return StoreError(
            f"the disk is full: a study needs {readable_size(needed)} and {readable_size(free)} are free.",
            remedy="Make room or set store.folder to a larger disk, then run again: finished studies are kept.",
            where=folder,
            code="disk-full",
        )
    return StoreError(
        f"it cannot be written ({error.strerror or error}).",
        remedy="Set store.folder, or VOLREC_CACHE, to a folder you may write to.",
        where=folder,
        code="store-unwritable",
    )


def mark_verified(entry: Entry) -> Entry:
    """Return the entry with its bytes known to be sound."""
    return replace(entry, verified=True)
