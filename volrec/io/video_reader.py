"""What every decoder of videos gives: facts that are exact, and frames by their number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from volrec.errors import DataError

__all__ = ["VideoInfo", "VideoReader"]


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video once it is open.

    Attributes
    ----------
    frames : int
        Number of frames that decoding gives, not what the container claims.
    frame_rate : float
        Frames a second, the average where it varies; nan for a folder of frames and where it is unknown.
    height, width : int
        Pixels, as shown: after the rotation that the file asks for.
    codec : str
        FFmpeg's name (``"h264"``, ``"mpeg4"``), the four characters of OpenCV, or the suffix of the pictures.
    decoder : str
        ``"pyav"``, ``"opencv"``, ``"torchcodec"`` or ``"frames"``.
    version : str
        Of the decoder and, where it tells, of its FFmpeg: ``"av 18.1.0, libavcodec 62.28.102"``.
    """

    frames: int
    frame_rate: float
    height: int
    width: int
    codec: str
    decoder: str
    version: str


class VideoReader(ABC):
    """An open video; a context manager that closes it.

    Frame ``i`` is the ``i``-th that decoding from the start gives, whatever was read before it.

    Attributes
    ----------
    path : Path
        The file or folder.
    info : VideoInfo
        Its facts.
    """

    path: Path
    info: VideoInfo

    def read(self, indices: Iterable[int] | np.ndarray) -> np.ndarray:
        """Decode some frames.

        Parameters
        ----------
        indices : iterable of int
            From 0 to ``info.frames - 1``, in any order, repeats allowed.

        Returns
        -------
        numpy.ndarray
            uint8 ``(N, H, W, 3)`` RGB, in the order asked for. Nothing but this and the frame in work is kept.

        Raises
        ------
        DataError
            For a frame that is not there, or where decoding breaks.
        """
        asked = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        if asked.ndim != 1 or (asked.size and asked.dtype.kind not in "iu"):
            raise DataError(
                f"frames are asked for by a row of whole numbers, got shape {asked.shape} of {asked.dtype}.",
                remedy="Give frame numbers, for example range(16).",
                where=self.path,
                code="video-index",
            )
        outside = asked[(asked < 0) | (asked >= self.info.frames)] if asked.size else asked
        if outside.size:
            raise DataError(
                f"frame {outside[0]} is asked for, of {self.info.frames}.",
                remedy=f"Frames are numbered from 0 to {self.info.frames - 1}.",
                where=self.path,
                code="video-index",
            )
        frames = np.empty((len(asked), self.info.height, self.info.width, 3), dtype=np.uint8)
        wanted = np.unique(asked).tolist()
        for index, frame in zip(wanted, self._decode(wanted), strict=True):
            if frame.shape != frames.shape[1:]:
                raise DataError(
                    f"frame {index} is {frame.shape[1]} x {frame.shape[0]} pixels, the first one "
                    f"{self.info.width} x {self.info.height}.",
                    remedy="Encode the video (or extract its frames) again, at one size.",
                    where=self.path,
                    code="video-size",
                )
            frames[asked == index] = frame
        return frames

    def chunks(self, length: int = 32) -> Iterator[np.ndarray]:
        """Give the whole video from the start, uint8 ``(up to length, H, W, 3)`` at a time."""
        for start in range(0, self.info.frames, length):
            yield self.read(range(start, min(start + length, self.info.frames)))

    def close(self) -> None:
        """Let go of the file."""
        return

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def _decode(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """Yield each frame of `wanted` (rising, no repeats, all there): uint8 ``(H, W, 3)`` RGB."""


def broken(path: Path, *, done: int, of: int, why: str = "") -> DataError:
    """Say that decoding ended before the frames did."""
    return DataError(
        f"decoding breaks off: {done} of {of} frames could be decoded{f' ({why})' if why else ''}.",
        remedy="Fetch or encode the video again; what is left of it is not read, since its length would be wrong.",
        where=path,
        code="video-truncated",
    )


def unreadable(path: Path, why: str) -> DataError:
    """Say that a file is no video that can be opened."""
    return DataError(
        f"it cannot be opened as a video ({why}).",
        remedy="See whether a player shows it; fetch it again if not, or take it out of the list.",
        where=path,
        code="video-unreadable",
    )


def empty(path: Path) -> DataError:
    """Say that there is nothing to decode."""
    return DataError(
        "the video holds no frame.", remedy="Fetch it again or take it out of the list.", where=path, code="video-empty"
    )


def missing_package(path: Path, *, decoder: str, why: str, remedy: str) -> DataError:
    """Say that the package of a decoder is not there, or does not start."""
    return DataError(f"decoder {decoder!r} cannot be used ({why}).", remedy=remedy, where=path, code="video-package")
