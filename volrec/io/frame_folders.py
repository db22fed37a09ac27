"""Videos that were taken apart before: a folder of ``img_00001.jpg``, ``img_00002.jpg`` .. a video.

Other names that circulate are read too: ``image_00001.jpg`` (3D ResNets, dense_flow), ``frame000001.jpg`` (two-stream
fusion) and bare numbers, of any count of digits, from 1 or from 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from volrec.errors import DataError
from volrec.io.video_reader import VideoInfo, VideoReader

__all__ = ["FrameFolder", "frame_files", "load_picture", "number_pictures"]

_NAME = re.compile(r"(?:img_|image_|frame_?|flow_i_)?(\d+)\.(?:jpg|jpeg|png)", re.IGNORECASE)


class FrameFolder(VideoReader):
    """A folder of frames: ``img_NUMBER`` (or as above), jpg or png, numbered from 1 (or from 0) without a gap.

    Parameters
    ----------
    path : Path
        The folder. Other files in it are not looked at.
    """

    def __init__(self, path: Path) -> None:
        from PIL import __version__

        self.path = path
        self._pictures = frame_files(path)
        if not self._pictures:
            raise DataError(
                "the folder holds no frames.",
                remedy="They are named img_00001.jpg, img_00002.jpg .. (or png).",
                where=path,
                code="video-empty",
            )
        first = load_picture(self._pictures[0])
        self.info = VideoInfo(
            frames=len(self._pictures),
            frame_rate=math.nan,
            height=first.shape[0],
            width=first.shape[1],
            codec=self._pictures[0].suffix[1:].lower(),
            decoder="frames",
            version=f"pillow {__version__}",
        )

    def _decode(self, wanted: list[int]) -> Iterator[np.ndarray]:
        for index in wanted:
            yield load_picture(self._pictures[index])


def frame_files(folder: Path) -> list[Path]:
    """Return the frames of a folder in the order of their numbers; none where it holds none.

    Raises
    ------
    DataError
        Where a number is missing, or there twice.
    """
    found = number_pictures(folder, _NAME)
    numbers = sorted(found)
    for number in range(min(1, numbers[0]), numbers[-1] + 1) if numbers else ():
        if number not in found:
            like = found[numbers[0]]
            prefix = like.stem.rstrip("0123456789")
            name = f"{prefix}{number:0{len(like.stem) - len(prefix)}d}{like.suffix}"
            raise DataError(
                f"frame {number} is missing, of those up to {numbers[-1]}.",
                remedy="Extract the frames of this video again.",
                where=folder / name,
                code="video-frames",
            )
    return [found[number] for number in numbers]


def number_pictures(
    folder: Path, pattern: re.Pattern[str], *, what: str = "frame {}", code: str = "video-frames"
) -> dict[int, Path]:
    """Return the files of a folder whose whole name fits `pattern`, by the number in its first group.

    Parameters
    ----------
    folder : Path
        Folders in it are not looked into.
    pattern : re.Pattern
        Of names.
    what, code : str
        Of an error: the picture, with its number, and the error's code.

    Raises
    ------
    DataError
        Where a number is there twice.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        number = int(match[1])
        if number in found:
            raise DataError(
                f"{what.format(number)} is there twice, as {found[number].name} too.",
                remedy="Remove one of the two.",
                where=path,
                code=code,
            )
        found[number] = path
    return found


def load_picture(path: Path, *, mode: str = "RGB") -> np.ndarray:
    """Read one picture of a video.

    Parameters
    ----------
    path : Path
        A jpg or png.
    mode : {"RGB", "L"}
        In colour, or grey.

    Returns
    -------
    numpy.ndarray
        uint8 ``(H, W, 3)`` or ``(H, W)``.

    Raises
    ------
    DataError
        Where it is missing or cannot be read.
    """
    shown = _load_fast(path, mode)
    if shown is not None:
        return shown
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow has a SyntaxError for broken PNG files.
        frame = mode == "RGB"
        raise DataError(
            f"the {'frame' if frame else 'picture'} cannot be read ({error}).",
            remedy=f"Extract the {'frames' if frame else 'flow'} of this video again.",
            where=path,
            code="video-frames" if frame else "flow-pictures",
        ) from error


def _load_fast(path: Path, mode: str) -> np.ndarray | None:
    """Read a picture with OpenCV, which is faster, where that gives what Pillow gives; else None."""
    try:
        import cv2

        content = path.read_bytes()
    except (ImportError, OSError):
        return None
    shown: np.ndarray | None
    try:
        shown = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if shown is None or shown.dtype != np.uint8:
        return None
    if mode == "L":
        return shown if shown.ndim == 2 else None
    return cv2.cvtColor(shown, cv2.COLOR_BGR2RGB) if shown.ndim == 3 and shown.shape[2] == 3 else None
