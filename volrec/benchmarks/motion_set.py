"""A rendered video set in UCF101's layout, on which every protocol can be run, and the right order of systems is known.

What the clips show, and why neither single frames nor flow alone tell all classes, is said in
`volrec.benchmarks.motion_clips`. Here they become files::

    OUT/videos/<Class>/v_<Class>_gGG_cCC.avi
    OUT/ucfTrainTestlist/{classInd,trainlist01..03,testlist01..03}.txt
    OUT/{README.txt,settings.json}

Lists end their lines with CR LF, count labels from 1, and give them for training only, as the originals do. Split *k*
tests the groups 7(k-1)+1 to 7k of 25.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from volrec.benchmarks.motion_clips import (
    MOST,
    MOTION_CLASSES,
    ceiling,
    check_frames,
    check_size,
    check_whole,
    render_clip,
)
from volrec.errors import ConfigError, DataError
from volrec.files import TEMPORARY, is_disk_full, write_atomically
from volrec.parallel import available_cpus, map_processes

__all__ = ["MotionSet", "encode_clip", "held_out_groups", "make_motion"]

log = logging.getLogger(__name__)

RENDERING = 1
"""Raise it when the same settings render other pictures."""

SPLITS = 3
QUANTISER = 2  # of MPEG-4, 1 (finest) to 31: see `encode_clip` for what is lost
FASTEST = 240  # frames a second


@dataclass(frozen=True)
class MotionSet:
    """What `make_motion` has written.

    Attributes
    ----------
    folder : Path
        ``OUT``: ``videos`` and ``ucfTrainTestlist`` are in it.
    videos : int
        Number of clips, those that were there already included.
    classes : tuple of str
        In the order of their labels.
    skipped : int
        Clips that were there already.
    """

    folder: Path
    videos: int
    classes: tuple[str, ...]
    skipped: int


@dataclass(frozen=True)
class _Task:
    path: str
    name: str
    group: int
    clip: int
    frames: tuple[int, int]
    size: tuple[int, int]
    shaken: float
    seed: int
    frame_rate: float


def make_motion(
    out: Path | str,
    *,
    classes: Sequence[str] | None = None,
    clips_per_group: int = 1,
    groups: int = 25,
    frames: tuple[int, int] = (28, 40),
    size: tuple[int, int] = (60, 80),
    frame_rate: float = 25,
    shaken: float = 0.2,
    seed: int = 0,
    jobs: int = 1,
) -> MotionSet:
    """Render a video set in UCF101's layout; one that was interrupted goes on.

    Parameters
    ----------
    out : path
        A new or empty folder, or one that was begun with the same settings: clips that are there stay as they are.
    classes : sequence of str, optional
        Keys of `MOTION_CLASSES`; all by default. Their labels follow the alphabet.
    clips_per_group : int
        Clips that share a scene, 1 to 99. A random split leaks where there are two or more.
    groups : int
        Groups of a class, 3 to 99. Each split tests 7 of 25 (of another number as large a part, at least one).
    frames : (int, int)
        Fewest and most frames of a clip, at least 16.
    size : (int, int)
        Height and width, pixels: even numbers from 40 to 1080. Shapes and speeds grow with the shorter side.
    frame_rate : float
        Frames a second that the files state. What moves, moves by the frame.
    shaken : float
        Part of the groups whose camera shakes, 0 to 1.
    seed : int
        Other numbers give other clips. A clip depends on seed, class, group and number alone, besides `frames`, `size`
        and `shaken`.
    jobs : int
        Processes; 0 takes the processors at hand.

    Returns
    -------
    MotionSet

    Raises
    ------
    ConfigError
        A value out of its range, an unknown class, PyAV not installed, or a folder with something else in it.
    DataError
        The folder cannot be written, or the disk is full; clips that were finished are kept.
    """
    names = _check_classes(classes)
    check_whole("clips_per_group", clips_per_group, 1, MOST)
    check_whole("groups", groups, SPLITS, MOST)
    check_whole("seed", seed, 0, 2**63)
    check_whole("jobs", jobs, 0, 4096)
    check_frames(frames)
    check_size(size)
    for field, value, least, most in (("frame_rate", frame_rate, 1, FASTEST), ("shaken", shaken, 0, 1)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise ConfigError(
                f"'{field}' must be a number from {least} to {most}, got {value!r}.",
                remedy="Change it.",
                where=field,
                code="range",
            )
    _pyav()
    out = Path(out)
    settings: dict[str, Any] = {
        "made_by": "volrec benchmark make-motion",
        "rendering": RENDERING,
        "classes": list(names),
        "clips_per_group": clips_per_group,
        "groups": groups,
        "frames": list(frames),
        "size": list(size),
        "frame_rate": float(frame_rate),
        "shaken": float(shaken),
        "seed": seed,
    }
    keys = [
        (name, group, clip)
        for name in names
        for group in range(1, groups + 1)
        for clip in range(1, clips_per_group + 1)
    ]
    low, high = frames
    height, width = size
    tasks = [
        _Task(str(out / "videos" / _listed(*key)), *key, (low, high), (height, width), shaken, seed, frame_rate)
        for key in keys
    ]
    try:
        _begin(out, settings)
        todo = [task for task in tasks if not Path(task.path).exists()]  # a file that is there is whole
        _write_clips(todo, jobs)
        _write_lists(out / "ucfTrainTestlist", names, keys, groups)
        write_atomically(out / "README.txt", _readme(settings))
    except OSError as error:
        raise _unwritable(out, error) from None
    log.info("%d clips of %d classes in %s, %d were there", len(tasks), len(names), out, len(tasks) - len(todo))
    return MotionSet(out, len(tasks), names, len(tasks) - len(todo))


def held_out_groups(split: int, *, groups: int = 25) -> range:
    """Return the groups that are tested in `split` (1, 2 or 3) of a set with so many groups a class."""
    count = max(1, groups * 7 // 25)
    return range(count * (split - 1) + 1, count * split + 1)


def encode_clip(pictures: np.ndarray, *, frame_rate: float = 25) -> bytes:
    """Encode pictures as an .avi file: MPEG-4 part 2 with the tag XVID, as the files of UCF101.

    Every frame is coded by itself: what an encoder keeps of the frames before would betray the motion to whoever reads
    a single one. With quantiser 2, luma differs by 2 grey values on average, and 20 at most; colours, of which the
    format holds a quarter, by 5 on average, more at borders (tests/benchmarks/test_benchmarks_motion_set.py).

    Parameters
    ----------
    pictures : numpy.ndarray
        ``(T, H, W, 3)`` uint8 RGB, height and width even.
    frame_rate : float
        Frames a second.
    """
    av = _pyav()
    file = io.BytesIO()
    with av.open(file, mode="w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(frame_rate).limit_denominator(1001))
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        coder = stream.codec_context
        coder.codec_tag = "XVID"
        coder.gop_size = 1
        coder.qmin = coder.qmax = QUANTISER
        coder.thread_count = 1  # bytes do not depend on the machine's processors
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def _check_classes(classes: Sequence[str] | None) -> tuple[str, ...]:
    chosen = tuple(MOTION_CLASSES) if classes is None else (classes,) if isinstance(classes, str) else tuple(classes)
    unknown = [name for name in chosen if name not in MOTION_CLASSES]
    if unknown or not chosen:
        raise ConfigError(
            f"there is no class {unknown[0]!r}." if unknown else "no class was named.",
            remedy=f"Choose from {', '.join(MOTION_CLASSES)}.",
            where="classes",
            code="unknown-class",
        )
    return tuple(sorted(set(chosen)))


def _begin(out: Path, settings: dict[str, Any]) -> None:
    """Make the folder and note the settings, or make sure that what is there was begun with the same ones."""
    place = out / "settings.json"
    if place.is_file():
        try:
            before = json.loads(place.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if not isinstance(before, dict) or before.get("made_by") != settings["made_by"]:
            raise _occupied(out, "there is something else there already.")
        differ = [key for key in settings if before.get(key) != settings[key]]
        if differ:
            said = "; ".join(f"{key} was {before.get(key)!r}, now {settings[key]!r}" for key in differ)
            raise _occupied(out, f"a set with other settings is there ({said}).")
        for left in out.glob(f"**/*{TEMPORARY}"):
            left.unlink()
        return
    if out.exists() and (not out.is_dir() or any(path.suffix != TEMPORARY for path in out.iterdir())):
        raise _occupied(out, "there is something there already.")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json.dumps(settings, indent=1) + "\n")


def _write_clips(tasks: list[_Task], jobs: int) -> None:
    for folder in {Path(task.path).parent for task in tasks}:
        folder.mkdir(parents=True, exist_ok=True)
    outcomes = map_processes(
        _write_clip,
        tasks,
        jobs=jobs if jobs > 0 else available_cpus(),
        description="rendering clips",
        name=lambda task: task.path,
    )
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error


def _write_clip(task: _Task) -> None:
    pictures = render_clip(
        task.name,
        task.group,
        clip=task.clip,
        frames=task.frames,
        size=task.size,
        shaken=task.shaken,
        seed=task.seed,
    )
    try:
        write_atomically(task.path, encode_clip(pictures, frame_rate=task.frame_rate))
    except OSError as error:
        raise _unwritable(Path(task.path), error) from None


def _write_lists(folder: Path, names: tuple[str, ...], keys: list[tuple[str, int, int]], groups: int) -> None:
    folder.mkdir(exist_ok=True)
    labels = {name: label for label, name in enumerate(names, start=1)}
    _write_lines(folder / "classInd.txt", (f"{label} {name}" for name, label in labels.items()))
    for split in range(1, SPLITS + 1):
        tested = held_out_groups(split, groups=groups)
        train = (f"{_listed(*key)} {labels[key[0]]}" for key in keys if key[1] not in tested)
        test = (_listed(*key) for key in keys if key[1] in tested)
        _write_lines(folder / f"trainlist{split:02d}.txt", train)
        _write_lines(folder / f"testlist{split:02d}.txt", test)


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    write_atomically(path, "".join(f"{line}\r\n" for line in lines))


def _listed(name: str, group: int, clip: int) -> str:
    return f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi"


def _readme(settings: dict[str, Any]) -> str:
    names, shape = settings["classes"], "x".join(str(side) for side in settings["size"])
    width = max(len(name) for name in names)
    listed = "\n".join(
        f"  {name:<{width}}  motion: {MOTION_CLASSES[name].motion}, look: {MOTION_CLASSES[name].look}" for name in names
    )
    best = "\n".join(
        f"  {reads:<{width}}  {ceiling(names, frame=frame, flow=flow):.3f}"
        f"   {ceiling(names, frame=frame, flow=flow, mirrored=True):.3f}"
        for reads, frame, flow in (("single frames", True, False), ("flow", False, True), ("both", True, True))
    )
    return f"""Moving shapes in the layout of UCF101
=====================================

These are no recordings: the clips were rendered by volrec (seed {settings["seed"]}, height x width {shape},
{settings["groups"]} groups a class, {settings["clips_per_group"]} clips a group). The scores of a network on them say
whether its protocol runs and whether its streams see what they should; they compare with no published number.

Classes
{listed}

A look cannot be told from flow, nor a motion from single frames. The best possible accuracy when a network reads
  {"":<{width}}  exact   mirrored
{best}
"Mirrored" is a training that flips clips left to right: left and right, clockwise and counterclockwise are one then.
Slow and fast swings differ in no single field of flow, only in several.

videos/<Class>/v_<Class>_gGG_cCC.avi: clips of one group show the same scene and are never on both sides of a split.
ucfTrainTestlist: the three splits. settings.json: what the clips were made with.
"""


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError:
        raise ConfigError(
            "videos are written with PyAV, which is not installed.",
            remedy="Install it with: pip install 'volrec[video]'.",
            code="no-pyav",
        ) from None
    return av


def _occupied(out: Path, problem: str) -> ConfigError:
    remedy = "Name a new or an empty folder, or give the settings with which this one was begun."
    return ConfigError(problem, remedy=remedy, where=out, code="not-empty")


def _unwritable(place: Path, error: OSError) -> DataError:
    full = is_disk_full(error)
    return DataError(
        "the disk is full." if full else f"it cannot be written ({error.strerror or error}).",
        remedy="Free some space and give the same command again." if full else "Choose another place.",
        where=place,
        code="disk-full" if full else "unwritable",
    )
