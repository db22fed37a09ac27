"""Phantom studies: real DICOM CT of made-up patients, with labels, to try things on and to test with.

Three tasks. *nodule*: a sphere among vessels against vessels alone; a slice, or any set of slices without their order,
cannot tell the classes apart, the order of the slices can (see `volrec.data.phantom_geometry`). *bleed*: a bright blob
that a single slice shows, against none. *motion*: textured shapes drift from slice to slice, and which way they go, in
the patient's own axes, is the class (see `volrec.data.phantom_motion`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from volrec.data.phantom_dicom import SliceWriter
from volrec.data.phantom_geometry import FIELD_OF_VIEW, Anatomy, draw_anatomy, render
from volrec.data.phantom_motion import DIRECTIONS, Scene, draw_scene, render_scene
from volrec.errors import ConfigError, DataError
from volrec.files import is_disk_full, write_atomically
from volrec.progress import track

__all__ = ["Phantom", "draw_phantoms", "make_phantoms"]

log = logging.getLogger(__name__)

Task = Literal["nodule", "bleed", "motion"]
TASKS = ("nodule", "bleed", "motion")
SPACING = 5.0  # mm between slices
STEEPEST = 30.0  # degrees; gantries do not lean further
FARTHEST = 4.0  # pixels a slice of a common drift


@dataclass(frozen=True)
class Phantom:
    """One study before it is written.

    Attributes
    ----------
    study, patient : str
        Folder name and patient id.
    anatomy : Anatomy or Scene
        What it shows; a scene of moving shapes (task "motion") knows its ``flow()``.
    origin : tuple of float
        Centre of the lowest slice, LPS mm.
    image_seed : tuple of int
        Seed of its noise.
    """

    study: str
    patient: str
    anatomy: Anatomy | Scene
    origin: tuple[float, float, float]
    image_seed: tuple[int, ...]

    def image(self, *, noise: float = 20.0) -> np.ndarray:
        """Return the image ``(T, H, W)`` float32 in HU, slices upwards; `noise` is its standard deviation in HU."""
        rng = np.random.default_rng(self.image_seed)
        if isinstance(self.anatomy, Scene):
            return render_scene(self.anatomy, rng, noise=noise)
        return render(self.anatomy, rng, noise=noise)

    @property
    def label(self) -> int | str:
        """What ``labels.csv`` says: 0 or 1, or a direction."""
        return self.anatomy.direction if isinstance(self.anatomy, Scene) else int(self.anatomy.positive)


def make_phantoms(
    out: Path | str,
    *,
    task: Task = "nodule",
    studies: int = 40,
    seed: int = 0,
    size: int = 64,
    slices: int = 32,
    tilt: float = 0.0,
    vary_spacing: bool = False,
    noise: float = 20.0,
    shuffle: bool = True,
    directions: int = 4,
    drift: float = 0.0,
) -> Path:
    """Write a folder of DICOM CT studies with ``labels.csv`` and, where slices have labels, ``slice_labels.csv``.

    A study is a folder, a patient has one study, a slice is one file. ``labels.csv`` holds ``study, patient, label``;
    ``slice_labels.csv`` holds ``study, slice`` (index from the lowest slice, as volrec orders an axial series),
    ``z`` (third coordinate of ImagePositionPatient, mm) and ``label`` (1 where the slice shows sphere or blob). Task
    "motion" has ``study, patient, direction`` and no labels of slices: none shows the class.

    Parameters
    ----------
    out : path
        New or empty folder.
    task : {"nodule", "bleed", "motion"}
        What tells the classes apart: the order of the slices, one slice, or the way that shapes go from slice to slice.
    studies : int
        Number of studies; every other one is positive on average, exactly half in all. Motion: as many of each
        direction, up to one.
    seed : int
        Same arguments, same bytes.
    size : int
        Rows and columns; the field of view stays 320 mm.
    slices : int
        Slices a study, 5 mm apart.
    tilt : float
        Largest gantry tilt in degrees; each study draws its own, either way.
    vary_spacing : bool
        Draw pixel spacing (± 10 %) and slice distance (3.5 to 6 mm) for every study.
    noise : float
        Standard deviation of the image noise, HU.
    shuffle : bool
        File names and InstanceNumber in random order: only positions tell the order, as in many archives.
    directions : {4, 2}
        Task "motion": shapes go to the patient's left, right, front or back on the way to the head; 2: left or right.
        A mirror along such an axis, or along the slices, changes the class: train with `augment.flip` empty.
    drift : float
        Task "motion": largest displacement that shapes and background of a study share, as if the table moved in
        plane, pixels a slice along each axis; each study draws its own, whatever its class.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConfigError
        An argument out of range, or a folder that already holds something.
    DataError
        The folder cannot be written, or the disk is full.
    """
    phantoms = draw_phantoms(
        task=task,
        studies=studies,
        seed=seed,
        size=size,
        slices=slices,
        tilt=tilt,
        vary_spacing=vary_spacing,
        directions=directions,
        drift=drift,
    )
    if not 0 <= noise <= 1000:
        raise _out_of_range("noise", noise, "from 0 to 1000 HU")
    out = Path(out)
    _check_empty(out)
    labels: list[tuple[object, ...]] = []
    slice_labels: list[tuple[object, ...]] = []
    try:
        for number, phantom in enumerate(track(phantoms, "phantoms", studies)):
            rng = np.random.default_rng((*_key(task, seed, number), 3))
            positions = _write_study(out / phantom.study, phantom, noise=noise, order=rng if shuffle else None)
            labels.append((phantom.study, phantom.patient, phantom.label))
            if isinstance(phantom.anatomy, Anatomy):
                marked = zip(positions, phantom.anatomy.slice_labels(), strict=True)
                slice_labels += [(phantom.study, index, z, label) for index, (z, label) in enumerate(marked)]
        # The tables come last: a folder with labels is a complete one.
        if slice_labels:
            _write_table(out / "slice_labels.csv", ("study", "slice", "z", "label"), slice_labels)
        target = "direction" if task == "motion" else "label"
        _write_table(out / "labels.csv", ("study", "patient", target), labels)
    except OSError as error:
        full = is_disk_full(error)
        raise DataError(
            "the disk is full." if full else f"it cannot be written ({error.strerror or error}).",
            remedy="Free some space and start again with an empty folder." if full else "Choose another place.",
            where=out,
            code="disk-full" if full else "unwritable",
        ) from None
    log.info("%d %s phantoms in %s", studies, task, out)
    return out


def draw_phantoms(
    *,
    task: Task = "nodule",
    studies: int = 40,
    seed: int = 0,
    size: int = 64,
    slices: int = 32,
    tilt: float = 0.0,
    vary_spacing: bool = False,
    directions: int = 4,
    drift: float = 0.0,
) -> Iterator[Phantom]:
    """Draw the studies that `make_phantoms` writes, one at a time; arguments as there."""
    if task not in TASKS:
        raise _out_of_range("task", task, " or ".join(repr(name) for name in TASKS))
    if isinstance(directions, bool) or not isinstance(directions, int) or directions not in (2, 4):
        raise _out_of_range("directions", directions, "4 or 2")
    if not 0 <= drift <= FARTHEST:
        raise _out_of_range("drift", drift, f"from 0 to {FARTHEST:g} pixels a slice")
    for name, value, usual in (("directions", directions, 4), ("drift", drift, 0)):
        if task != "motion" and value != usual:
            raise _out_of_range(name, value, f"left out for task '{task}': nothing moves there")
    for name, value, least, most in (
        ("studies", studies, directions if task == "motion" else 2, 99_999),
        ("seed", seed, 0, 2**63),
        ("size", size, 16, 2048),
        ("slices", slices, 12, 2000),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _out_of_range(name, value, f"a whole number from {least} to {most}")
    if not 0 <= tilt <= STEEPEST:
        raise _out_of_range("tilt", tilt, f"from 0 to {STEEPEST:g} degrees")
    return _draw(task, studies, seed, size, slices, tilt, vary_spacing, directions, drift)


def _draw(
    task: Task,
    studies: int,
    seed: int,
    size: int,
    slices: int,
    tilt: float,
    vary_spacing: bool,
    directions: int,
    drift: float,
) -> Iterator[Phantom]:
    # An entry a study: whether it is positive, or which way its shapes go.
    classes = np.arange(studies) % directions if task == "motion" else np.arange(studies) < studies // 2
    np.random.default_rng((*_key(task, seed, studies), 0)).shuffle(classes)
    for number in range(studies):
        key = _key(task, seed, number)
        rng = np.random.default_rng((*key, 1))
        pixel, step = FIELD_OF_VIEW / size, SPACING
        if vary_spacing:
            pixel, step = pixel * rng.uniform(0.9, 1.1), rng.uniform(3.5, 6.0)
        lean = float(rng.uniform(-tilt, tilt)) if tilt else 0.0
        # Rounded as DICOM will hold them: what is drawn is what can be read back.
        spacing = (round(step, 3), round(pixel, 4), round(pixel, 4))
        x, y, z = rng.uniform((-15, -20, -600), (15, 20, -100)).round(3).tolist()
        shape, lean = (slices, size, size), round(lean, 3)
        anatomy: Anatomy | Scene
        if task == "motion":
            direction = tuple(DIRECTIONS)[classes[number]]
            anatomy = draw_scene(rng, direction, shape=shape, spacing=spacing, tilt=lean, drift=drift)
        else:
            anatomy = draw_anatomy(rng, bool(classes[number]), task=task, shape=shape, spacing=spacing, tilt=lean)
        yield Phantom(f"{task}-{number:05d}", f"P{number:05d}", anatomy, (x, y, z), (*key, 2))


def _write_study(folder: Path, phantom: Phantom, *, noise: float, order: np.random.Generator | None) -> list[float]:
    """Write one series and return the third coordinate of every slice's ImagePositionPatient, slices upwards."""
    image = phantom.image(noise=noise)
    writer = SliceWriter(phantom.study, phantom.patient, phantom.anatomy, phantom.origin, phantom.image_seed)
    count = len(image)
    number = order.permutation(count) if order is not None else np.arange(count)
    name = order.permutation(count) if order is not None else np.arange(count)
    folder.mkdir(parents=True)
    for index in range(count):
        content = writer.slice(image[index], index=index, instance_number=int(number[index]) + 1)
        (folder / f"IM{name[index] + 1:04d}.dcm").write_bytes(content)
    return [writer.position(index)[2] for index in range(count)]


def _key(task: str, seed: int, number: int) -> tuple[int, ...]:
    """Seed of one study: independent of how many there are."""
    digest = hashlib.blake2b(f"{task}/{seed}/{number}".encode(), digest_size=16).digest()
    return tuple(np.frombuffer(digest, dtype="<u4").tolist())


def _write_table(path: Path, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def _check_empty(out: Path) -> None:
    try:
        occupied = (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir()))
    except OSError as error:
        raise DataError(
            f"it cannot be read ({error.strerror or error}).",
            remedy="Choose another place.",
            where=out,
            code="unwritable",
        ) from None
    if occupied:
        raise ConfigError(
            "there is something there already.",
            remedy="Name a new or an empty folder: phantoms never mix with other files.",
            where=out,
            code="not-empty",
        )


def _out_of_range(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"'{name}' must be {allowed}, got {value!r}.", remedy="Change it.", where=name, code="range")
