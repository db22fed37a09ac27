"""Frames and flow that other tools left on disk, without a word about how: where they are, and what can be said.

===========================  ======================================================================================
left by                      layout, of a video
===========================  ======================================================================================
TSN, dense_flow              ``NAME/img_00001.jpg``, ``NAME/flow_x_00001.jpg``, ``NAME/flow_y_00001.jpg``, all videos
                             side by side; as many fields as frames (the first frame is left out), from 1
mmaction2, denseflow         ``CLASS/NAME/..`` or ``NAME/..`` of the same names, from 0 or from 1, frames and flow each
                             on their own
dense_flow (first version)   ``image_0001.jpg``, ``flow_x_0001.jpg``, ``flow_y_0001.jpg``; also below ``flow_i/``,
                             ``flow_x/``, ``flow_y/`` in the folder of the video
3D ResNets (frames)          ``CLASS/NAME/image_00001.jpg``
two-stream fusion            ``jpegs_256/NAME/frame000001.jpg``, ``tvl1_flow/u/NAME/frame000001.jpg`` (x),
                             ``tvl1_flow/v/NAME/frame000001.jpg`` (y)
===========================  ======================================================================================

jpg or png, any count of digits, frames alone and flow alone too. Not read: zip and HDF5 files, ``.flo`` and numpy
arrays, flow whose range differs from picture to picture (LTC, and tools that stretch each picture to 0 to 255: nothing
in the pictures tells them), and warped flow under the names of plain flow (``extract_warp_gpu``: rename it to
``warp_x_00001.jpg``, ``warp_y_00001.jpg``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from volrec.benchmarks.sets.common import Video
from volrec.errors import DataError
from volrec.io.flow_pictures import flow_files
from volrec.io.frame_folders import frame_files

__all__ = ["USUAL_BOUND", "ForeignVideo", "find_extracted", "scan_video"]

USUAL_BOUND = 20.0
"""Pixels that TSN's tools, denseflow and mmaction2's scripts clip flow to."""

# Below the folder of a video, or above it with the videos in each.
_FRAMES = ("img", "rgb", "jpg", "frames", "images", "flow_i")
_COMPONENTS = (("flow_x", "flow_y"), ("x", "y"), ("u", "v"))
_FRAME_TREES = ("jpegs_256", "rgb", "frames")
_FLOW_TREES = (("tvl1_flow/u", "tvl1_flow/v"), ("u", "v"), ("flow_x", "flow_y"), ("x", "y"))
_NAMELESS = re.compile(r"(?:frame_?)?\d+\.\w+", re.IGNORECASE)
"""Names that frames have, and fields in trees of their own."""


@dataclass(frozen=True)
class ForeignVideo:
    """The pictures of one video that another tool left.

    Attributes
    ----------
    frames : list of Path
        In order; none where there are none.
    fields : dict
        ``"flow"`` and ``"warped"``, where they are there: x and y of each field, in order.
    notes : list of str
        What the counts tell.
    """

    frames: list[Path]
    fields: dict[str, list[tuple[Path, Path]]]
    notes: list[str] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Frames that can be used: no more than there are, and than the fields lie between."""
        return min([len(self.frames)] * bool(self.frames) + [len(pairs) + 1 for pairs in self.fields.values()])

    def describe(self, *, bound: float | None = None) -> dict[str, Any]:
        """Return facts as ``extraction.json`` has them, as far as the pictures tell.

        Parameters
        ----------
        bound : float, optional
            Of the flow, pixels; 20 is taken where it is not given, and said.
        """
        facts: dict[str, Any] = {"origin": "other tools", "frames": self.length, "frame_rate": None}
        notes = list(self.notes)
        if self.frames:
            facts["rgb"] = {"size": _size(self.frames[0]), "files": self.frames[0].name}
        for part, pairs in self.fields.items():
            taken = USUAL_BOUND if bound is None else bound
            facts[part] = {"size": _size(pairs[0][0]), "files": pairs[0][0].name, "bound": float(taken)}
        if self.fields:
            notes.append(
                f"bound of flow not said: {USUAL_BOUND:g} taken" if bound is None else "bound of flow as given"
            )
        facts["size"] = next(facts[part]["size"] for part in ("rgb", *self.fields) if part in facts)
        return {**facts, "notes": notes}


def scan_video(folder: Path) -> ForeignVideo | None:
    """Look for the pictures of a video in its folder, in folders of it, and where trees of frames and flow stand apart.

    Returns
    -------
    ForeignVideo or None
        None where there is no picture of a known name.

    Raises
    ------
    DataError
        Where a number is missing or there twice, or x and y do not go together.
    """
    frame_places, flow_places = _places(folder.absolute())
    frames = next((files for place in frame_places if (files := frame_files(place))), [])
    fields: dict[str, list[tuple[Path, Path]]] = {}
    if pairs := next((found for x, y in flow_places if (found := flow_files(x, y))), []):
        fields["flow"] = pairs
    if warped := flow_files(folder, stream="warped"):
        fields["warped"] = warped
    if not frames and not fields:
        return None
    return ForeignVideo(frames, fields, [note for pairs in fields.values() for note in _compare(frames, pairs)])


def _compare(frames: list[Path], pairs: list[tuple[Path, Path]]) -> Iterator[str]:
    if not frames or len(frames) == len(pairs) + 1:
        return
    if len(frames) == len(pairs):
        yield "as many fields as frames"
    else:
        yield f"frames less fields is {len(frames) - len(pairs)}, not 1 or 0: the shorter count is used"


def _places(folder: Path) -> tuple[list[Path], list[tuple[Path, Path | None]]]:
    """Return where frames may be, and where x and y may be (None: in the folder of x), the likeliest first."""
    flow = _tree(folder, (x for x, _ in _FLOW_TREES))
    if flow is not None:
        root, tree, rest = flow
        y = root / dict(_FLOW_TREES)[tree] / rest
        if y.is_dir():
            return _existing(root / name / rest for name in _FRAME_TREES), [(folder, y)]
        if any(_NAMELESS.fullmatch(path.name) for path in folder.iterdir()):
            raise DataError(
                "there is no folder of the other component of the flow.",
                remedy="Unpack all parts of the archive, or extract the flow of this video again.",
                where=y,
                code="flow-pictures",
            )
    apart: list[tuple[Path, Path | None]] = [(folder / x, folder / y) for x, y in _COMPONENTS]
    frames = _tree(folder, _FRAME_TREES)
    if frames is not None:
        root, _, rest = frames
        apart += [(root / x / rest, root / y / rest) for x, y in _FLOW_TREES]
    flat: list[tuple[Path, Path | None]] = [(place, None) for place in _existing([folder, folder / "flow"])]
    apart = [(x, y) for x, y in apart if x.is_dir() and y is not None and y.is_dir()]
    return _existing([folder, *(folder / name for name in _FRAMES)]), flat + apart


def _existing(places: Iterable[Path]) -> list[Path]:
    return [place for place in places if place.is_dir()]


def _tree(folder: Path, trees: Iterable[str]) -> tuple[Path, str, str] | None:
    """Split ``ROOT/TREE/NAME`` or ``ROOT/TREE/CLASS/NAME``; None where the folder is in none of `trees`."""
    for tree in trees:
        for depth in (1, 2):
            above = folder.parents[depth - 1] if len(folder.parents) > depth else folder
            if above != folder and above.as_posix().endswith(f"/{tree}"):
                return above.parents[tree.count("/")], tree, folder.relative_to(above).as_posix()
    return None


def find_extracted(root: Path | str, video: Video) -> Path | None:
    """Find the folder of a video's frames and flow below `root`, volrec's own or of another tool.

    Parameters
    ----------
    root : path or str
        Of all videos.
    video : Video
        Its name is looked for whole (``CLASS/NAME``) and without its class, and where these are not there, in other
        capitals (UCF101's HandstandPushups and HandStandPushups) and with other signs between words of the class
        (``apply_eye_makeup``, ``apply eye makeup``); then in the trees of two-stream fusion and the like.

    Returns
    -------
    Path or None
        None where there is none, or where several answer to another spelling. For trees that stand apart it is the
        folder of the frames, or of x: `scan_video` finds the others.
    """
    root, name = Path(root), PurePosixPath(video.name)
    for tree in ("", *_FRAME_TREES, *(x for x, _ in _FLOW_TREES)):
        top = root / tree
        if not top.is_dir():
            continue
        for place in dict.fromkeys((top / name, top / name.name)):
            if place.is_dir():
                return place
        other = _spelt(top, str(name.parent), words=True) if len(name.parts) > 1 else None
        if other is not None and (other / name.name).is_dir():
            return other / name.name
        found = (_spelt(other, name.name) if other is not None else None) or _spelt(top, name.name)
        if found is not None:
            return found
    return None


def _spelt(folder: Path, name: str, *, words: bool = False) -> Path | None:
    """Return the one folder in `folder` that has this name in other capitals (and, of words, other signs between)."""
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return None
    found = _listing(folder, changed, words).get(_key(name, words), ())
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=256)
def _listing(folder: Path, changed: int, words: bool) -> dict[str, tuple[Path, ...]]:
    names: dict[str, tuple[Path, ...]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            key = _key(path.name, words)
            names[key] = (*names.get(key, ()), path)
    return names


def _key(name: str, words: bool) -> str:
    return re.sub(r"[\W_]+", "", name).casefold() if words else name.casefold()


def _size(path: Path) -> list[int]:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return [picture.height, picture.width]
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"the picture cannot be read ({error}).",
            remedy="Extract this video again.",
            where=path,
            code="video-frames",
        ) from error
