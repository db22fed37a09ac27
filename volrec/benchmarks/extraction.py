"""Extraction of videos: decoded and resized once, flow estimated once, both kept as pictures.

For every video, in this order: decode, resize, estimate flow (at the size that is kept, on decoded frames, not on the
JPEG). One video at a time is built beside its folder and moved there whole, ``extraction.json`` last, so that what is
there is complete; videos that were done before with the same settings and of the same file are skipped, and flow can be
added to frames. How frames were extracted is worth several points of accuracy in replications of TSN, so everything
that matters is in ``extraction.json`` (`volrec.benchmarks.extracted`). Unless asked otherwise, frames are resized as
they are when a run decodes them itself: by OpenCV, bilinear without smoothing, which is also what TSN's tools do.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from volrec.benchmarks.extracted import FACTS, FORMAT, PARTS, read_facts, to_pictures
from volrec.benchmarks.extracted_of_others import find_extracted, scan_video
from volrec.benchmarks.opencv import load_opencv
from volrec.benchmarks.sets.common import Video
from volrec.errors import ConfigError, DataError, Problem, StoreError, VolrecError
from volrec.files import TEMPORARY, is_disk_full, write_atomically
from volrec.io.video import DECODERS, VideoInfo, open_video
from volrec.parallel import available_cpus, map_processes
from volrec.transforms.drift import warped_flow
from volrec.transforms.flow import estimate_flow, flow_backend, flow_settings

__all__ = ["INTERPOLATIONS", "extract"]

INTERPOLATIONS = ("bilinear", "bicubic", "area", "antialiased")
"""Resizes: OpenCV's three that protocols know, and Pillow's bilinear one, which smooths before it shrinks."""

_DRIFT = "homography"
_AT_ONCE = 16  # frames
_ENDS_ALL = {"video-package", "disk-full"}  # No other video would fare better.


@dataclass(frozen=True)
class _Wanted:
    out: Path
    parts: tuple[str, ...]
    size: int | tuple[int, int] | None
    quality: int
    estimator: str
    bound: float
    decoder: str
    interpolation: str
    overwrite: bool


def extract(
    videos: Sequence[Video],
    out: Path | str,
    *,
    what: Sequence[str] = ("rgb", "flow"),
    size: int | tuple[int, int] | None = None,
    quality: int = 95,
    estimator: str = "tvl1",
    bound: float = 20.0,
    decoder: str = "pyav",
    interpolation: str = "bilinear",
    jobs: int | None = None,
    overwrite: bool = False,
) -> list[Problem]:
    """Write frames and flow of videos as pictures, one folder a video: ``OUT/<video.name>/``.

    Parameters
    ----------
    videos : sequence of Video
        Files or folders of frames; their names must differ.
    out : path or str
        Made if it is not there. Only one extraction at a time may write to it.
    what : sequence of {"rgb", "flow", "warped"}
        Frames; flow; flow without the motion of the camera (a homography).
    size : int or (int, int), optional
        Short side, or height and width, in pixels; flow is estimated at this size. None keeps the size.
    quality : int
        Of the JPEG files, 1 to 100.
    estimator : str
        Of flow: see `volrec.transforms.flow_estimators`.
    bound : float
        Pixels; displacements beyond are clipped.
    decoder : str
        See `volrec.io.video`.
    interpolation : {"bilinear", "bicubic", "area", "antialiased"}
        Of the resize: see `INTERPOLATIONS`.
    jobs : int, optional
        Processes; all that there are where it is not given.
    overwrite : bool
        Do again what is there; else a folder that was made with other settings, or of a file that has changed since,
        is a problem. What another tool left is never touched.

    Returns
    -------
    list of Problem
        Videos that could not be extracted, in the order given: reason and remedy. The others are done.

    Raises
    ------
    ConfigError
        For values that cannot be used, or an estimator whose package is missing.
    DataError
        For two videos of one name or a name that leaves `out`, or where the package of the decoder is missing.
    StoreError
        Where the disk is full.
    """
    wanted = _check(_Wanted(Path(out), tuple(what), size, quality, estimator, bound, decoder, interpolation, overwrite))
    if jobs is not None and jobs < 1:
        raise _refused("jobs", "a whole number of at least 1", jobs)
    _check_names(videos)
    wanted.out.mkdir(parents=True, exist_ok=True)
    problems: dict[str, Problem] = {}
    outcomes = map_processes(
        partial(_extract_one, wanted=wanted),
        list(videos),
        jobs=available_cpus() if jobs is None else jobs,
        description="extracting",
        name=_name,
    )
    for outcome in outcomes:
        error = outcome.error
        if error is None:
            continue
        if not isinstance(error, VolrecError) or error.code in _ENDS_ALL:
            raise error
        problems[outcome.item.name] = Problem.of(error, where=outcome.item.name, study=outcome.item.name)
    return [problems[video.name] for video in videos if video.name in problems]


def _name(video: Video) -> str:
    return video.name


def _extract_one(video: Video, *, wanted: _Wanted) -> None:
    folder = wanted.out / video.name
    _finish_removal(folder)
    source = _source(video.path)
    asked = _asked(wanted)
    facts = read_facts(folder)
    if facts is None:
        _refuse_foreign(video, wanted.out)
    if facts is not None:
        differs = _difference(facts, source, asked, wanted)
        if differs and not wanted.overwrite:
            raise DataError(
                f"it was extracted before, with another {differs}.",
                remedy="Extract to another folder, or ask for overwriting.",
                where=folder,
                code="extraction-differs",
            )
        # What is there does not go together with what is to come.
        if differs in {"source", "size", "decoder", "interpolation"}:
            facts = None
    parts = [part for part in wanted.parts if facts is None or wanted.overwrite or part not in facts]
    if not parts:
        return
    temporary = folder.with_name(folder.name + TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)  # Of a run that was killed.
    try:
        temporary.mkdir(parents=True)
        made = _make(video.path, temporary, parts, wanted)
        kept = {part: facts[part] for part in PARTS if facts is not None and part in facts}
        description = {
            "format": FORMAT,
            "video": video.name,
            "source": source,
            "requested_size": _plain(wanted.size),
            "interpolation": wanted.interpolation,
            **made,
            **kept,
            **{part: asked[part] for part in parts},
        }
        _publish(temporary, folder, parts, json.dumps(description, indent=2) + "\n", keep=facts is not None)
    except OSError as error:
        if is_disk_full(error):
            raise StoreError(
                "the disk is full.",
                remedy="Make room and start again: what is complete is skipped.",
                where=wanted.out,
                code="disk-full",
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_foreign(video: Video, out: Path) -> None:
    """Raise where another tool left pictures of a video: neither replace them nor stand before them unnoticed."""
    there = find_extracted(out, video)
    if there is not None and not (there / FACTS).exists() and scan_video(there) is not None:
        raise DataError(
            "another tool left its pictures there.",
            remedy="Extract to another folder.",
            where=there,
            code="extraction-foreign",
        )


def _asked(wanted: _Wanted) -> dict[str, dict[str, Any]]:
    """Describe how each part is made."""
    from PIL import __version__ as pillow

    asked: dict[str, dict[str, Any]] = {}
    for part in wanted.parts:
        asked[part] = {"quality": wanted.quality, "jpeg": f"pillow {pillow}"}
        if part != "rgb":
            asked[part] |= {
                "bound": float(wanted.bound),
                "method": wanted.estimator,
                "estimator": flow_backend(wanted.estimator),
                "settings": json.loads(json.dumps(flow_settings(wanted.estimator))),  # Tuples become lists.
                "grey": "ITU-R 601-2 luma (pillow)",
            }
        if part == "warped":
            asked[part] |= {"drift": _DRIFT, "seed": 0}
    return asked


_VERSIONS = {"jpeg", "estimator"}  # An upgrade of a package is no reason to do days of work again: it is written down.


def _difference(
    facts: dict[str, Any], source: dict[str, Any], asked: dict[str, dict[str, Any]], wanted: _Wanted
) -> str:
    """Name the first thing in which an earlier extraction differs from this one."""
    if facts["source"] != source:
        return "source"
    if facts["requested_size"] != _plain(wanted.size):
        return "size"
    # Before there was a choice, all that was resized was smoothed.
    if facts["resize"] is not None and facts.get("interpolation", "antialiased") != wanted.interpolation:
        return "interpolation"
    if facts["decoder"] != (wanted.decoder if wanted.decoder == facts["decoder"] else _decoder_of(facts, wanted)):
        return "decoder"
    for part, how in asked.items():
        for key in how:
            if part in facts and key not in _VERSIONS and facts[part].get(key) != how[key]:
                return f"{key} of {part}"
    return ""


def _decoder_of(facts: dict[str, Any], wanted: _Wanted) -> str:
    # Folders of frames are read as frames whatever decoder is asked for.
    return "frames" if facts["source"]["files"] is not None else wanted.decoder


def _source(path: Path) -> dict[str, Any]:
    """Tell a source from a changed one, without its folder: it may be moved."""
    try:
        if path.is_dir():
            files = [item.stat() for item in path.iterdir() if item.is_file()]
            return {
                "name": path.name,
                "size": sum(file.st_size for file in files),
                "mtime_ns": max((file.st_mtime_ns for file in files), default=0),
                "files": len(files),
            }
        about = path.stat()
    except OSError as error:
        raise DataError(
            f"there is no such video ({error.strerror}).",
            remedy="Check the path, and that the data set is complete.",
            where=path,
            code="video-missing",
        ) from error
    return {"name": path.name, "size": about.st_size, "mtime_ns": about.st_mtime_ns, "files": None}


def _make(path: Path, folder: Path, parts: Sequence[str], wanted: _Wanted) -> dict[str, Any]:
    """Write the pictures of `parts` and return the facts of the video."""
    with open_video(path, decoder=wanted.decoder) as reader:
        height, width = _target(reader.info, wanted.size)
        resized = (height, width) != (reader.info.height, reader.info.width)
        before: np.ndarray | None = None
        for number, frame in enumerate(_frames(reader.chunks(_AT_ONCE)), start=1):
            shown = _resize(frame, height, width, wanted.interpolation)
            if "rgb" in parts:
                _save(folder / f"img_{number:05d}.jpg", shown, wanted.quality)
            if not set(parts) - {"rgb"}:
                continue
            grey = _grey(shown)
            if before is not None:
                for part, fields in _estimates(before, grey, parts, wanted.estimator):
                    for name, field in zip(PARTS[part], fields, strict=True):
                        values = to_pictures(field, bound=wanted.bound)
                        _save(folder / f"{name}_{number - 1:05d}.jpg", values, wanted.quality)
            before = grey
        facts = asdict(reader.info)
    return {
        "frames": facts["frames"],
        "frame_rate": None if math.isnan(facts["frame_rate"]) else facts["frame_rate"],
        "codec": facts["codec"],
        "original_size": [facts["height"], facts["width"]],
        "size": [height, width],
        "resize": _resizer(wanted.interpolation) if resized else None,
        "order": "decode, resize, flow",
        "decoder": facts["decoder"],
        "decoder_version": facts["version"],
    }


def _estimates(
    before: np.ndarray, grey: np.ndarray, parts: Sequence[str], method: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Give the fields of each part; that without the motion of the camera begins from the other."""
    flow = estimate_flow(before, grey, method=method)
    if "flow" in parts:
        yield "flow", flow
    if "warped" in parts:
        yield "warped", warped_flow(before, grey, drift=_DRIFT, method=method, flow=flow)[0]


def _target(info: VideoInfo, size: int | tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        return info.height, info.width
    if isinstance(size, int):
        scale = size / min(info.height, info.width)  # As runs round it that decode the video themselves.
        return max(size, round(info.height * scale)), max(size, round(info.width * scale))
    return size[0], size[1]


def _frames(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for chunk in chunks:
        yield from chunk


def _resize(frame: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    if interpolation == "antialiased":
        from PIL import Image

        return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
    cv2 = load_opencv()
    methods = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}
    return np.asarray(cv2.resize(frame, (width, height), interpolation=methods[interpolation]))


def _resizer(interpolation: str) -> str:
    """Name what resizes."""
    if interpolation == "antialiased":
        from PIL import __version__ as pillow

        return f"pillow {pillow} bilinear, with antialiasing"
    return f"opencv {load_opencv().__version__} {interpolation}"


def _grey(frame: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(frame).convert("L"))


def _save(path: Path, picture: np.ndarray, quality: int) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path, quality=quality)


def _publish(temporary: Path, folder: Path, parts: Sequence[str], facts: str, *, keep: bool) -> None:
    """Put finished pictures in their place; the folder has its facts only while it is complete."""
    if not keep:
        write_atomically(temporary / FACTS, facts)
        if folder.exists():
            os.replace(folder, _outgoing(folder))  # Whole or not there, never half of it.
        os.replace(temporary, folder)
        _finish_removal(folder)
        return
    before = read_facts(folder) or {}
    if any(part in before for part in parts):  # About to be replaced one by one.
        rest = {name: value for name, value in before.items() if name not in parts}
        write_atomically(folder / FACTS, json.dumps(rest, indent=2) + "\n")
    for picture in temporary.iterdir():
        os.replace(picture, folder / picture.name)
    write_atomically(folder / FACTS, facts)


def _outgoing(folder: Path) -> Path:
    """Name the place where a folder waits for its removal."""
    return folder.with_name(f"{folder.name}.old{TEMPORARY}")


def _finish_removal(folder: Path) -> None:
    shutil.rmtree(_outgoing(folder), ignore_errors=True)


def _plain(size: int | tuple[int, int] | None) -> int | list[int] | None:
    return list(size) if isinstance(size, tuple) else size


def _check(wanted: _Wanted) -> _Wanted:
    if not wanted.parts or set(wanted.parts) - set(PARTS):
        raise _refused("what", f"some of {', '.join(PARTS)}", ", ".join(wanted.parts) or "nothing")
    if wanted.decoder not in DECODERS:
        raise _refused("decoder", f"one of {', '.join(DECODERS)}", wanted.decoder)
    sides = [] if wanted.size is None else [wanted.size] if isinstance(wanted.size, int) else list(wanted.size)
    if not all(isinstance(side, int) and side >= 1 for side in sides) or len(sides) not in {0, 1, 2}:
        raise _refused("size", "a short side or a height and a width, in whole pixels above 0", wanted.size)
    if not 1 <= wanted.quality <= 100:
        raise _refused("quality", "from 1 to 100", wanted.quality)
    if not 0 < wanted.bound < math.inf:
        raise _refused("bound", "a finite number of pixels above 0", wanted.bound)
    if wanted.interpolation not in INTERPOLATIONS:
        raise _refused("interpolation", f"one of {', '.join(INTERPOLATIONS)}", wanted.interpolation)
    if wanted.size is not None and wanted.interpolation != "antialiased" and find_spec("cv2") is None:
        raise ConfigError(
            f"a resize by {wanted.interpolation!r} needs OpenCV, which is not installed.",
            remedy="Install it with: pip install 'volrec[video]'; or choose 'antialiased'.",
            where="extract.interpolation",
            code="extract",
        )
    if set(wanted.parts) - {"rgb"}:
        flow_backend(wanted.estimator)  # An estimator that is missing is told before the first video.
    return wanted


def _refused(field: str, must: str, value: object) -> ConfigError:
    return ConfigError(
        f"{field} must be {must}; got {value}.", remedy="Choose such a value.", where=f"extract.{field}", code="extract"
    )


def _check_names(videos: Sequence[Video]) -> None:
    seen: set[str] = set()
    for video in videos:
        name = PurePosixPath(video.name)
        if not video.name or name.is_absolute() or ".." in name.parts:
            raise DataError(
                f"the name {video.name!r} is no place inside of the output folder.",
                remedy="Give names as Class/video, without leading slash and without '..'.",
                where=video.path,
                code="extraction-name",
            )
        if str(name) in seen:
            raise DataError(
                f"two videos have the name {video.name!r}.",
                remedy="Give each a name of its own: it is the name of its folder.",
                where=video.path,
                code="extraction-name",
            )
        seen.add(str(name))
