"""Videos that were taken apart before: a folder of ``img_00001.jpg``, ``img_00002.jpg`` .. a video."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from volrec.errors import DataError
from volrec.io.video_reader import VideoInfo, VideoReader

__all__ = ["FrameFolder", "load_picture"]

_NAME = re.compile(r"img_(\d+)\.(jpg|jpeg|png)", re.IGNORECASE)


class FrameFolder(VideoReader):
    """A folder of frames: ``img_NUMBER``, jpg or png, numbered from 1 (or from 0) without a gap.

    Parameters
    ----------
    path : Path
        The folder. Other files in it are not looked at.
    """

    def __init__(self, path: Path) -> None:
        from PIL import __version__

        self.path = path
        self._pictures = _numbered(path)
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


def _numbered(folder: Path) -> list[Path]:
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        number = int(match[1])
        if number in found:
            raise DataError(
                f"frame {number} is there twice, as {found[number].name} too.",
                remedy="Remove one of the two.",
                where=path,
                code="video-frames",
            )
        found[number] = path
    if not found:
        raise DataError(
            "the folder holds no frames.",
            remedy="They are named img_00001.jpg, img_00002.jpg .. (or png).",
            where=folder,
            code="video-empty",
        )
    numbers = sorted(found)
    for number in range(min(1, numbers[0]), numbers[-1] + 1):
        if number not in found:
            raise DataError(
                f"frame {number} is missing, of those up to {numbers[-1]}.",
                remedy="Extract the frames of this video again.",
                where=folder / f"img_{number:05d}{found[numbers[0]].suffix}",
                code="video-frames",
            )
    return [found[number] for number in numbers]


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
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow has a SyntaxError for broken PNG files.
        raise DataError(
            f"the frame cannot be read ({error}).",
            remedy="Extract the frames of this video again.",
            where=path,
            code="video-frames",
        ) from error
