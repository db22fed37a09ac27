"""Videos through OpenCV: always decoded from the start, frames in between are grabbed without being converted.

OpenCV's frame count is computed from duration and rate, and its seeking lands where the container pleases. Here frames
are counted by decoding once when the file is opened, and reading backwards opens it again: slower than PyAV, the same
frames. Meant for comparing decoders.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from volrec.io.video_reader import VideoInfo, VideoReader, broken, empty, missing_package, unreadable

__all__ = ["OpencvReader"]


class OpencvReader(VideoReader):
    """A video file, decoded by OpenCV.

    Parameters
    ----------
    path : Path
        The file.
    threads : int
        Of the decoder; 0 lets FFmpeg choose.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self.path = path
        self._threads = threads
        try:
            self._cv2 = importlib.import_module("cv2")
        except ImportError as error:
            raise missing_package(
                path, decoder="opencv", why=str(error), remedy="Install it with: pip install 'volrec[video]'"
            ) from error
        self._capture: Any = None
        self._restart()
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _prepare(self) -> None:
        frames = 0
        first = None
        while self._capture.grab():
            if first is None:
                first = self._capture.retrieve()[1]
            frames += 1
        if first is None:
            raise empty(self.path)
        rate = self._capture.get(self._cv2.CAP_PROP_FPS)
        characters = int(self._capture.get(self._cv2.CAP_PROP_FOURCC)).to_bytes(4, "little")
        self.info = VideoInfo(
            frames=frames,
            frame_rate=float(rate) if rate and math.isfinite(rate) else math.nan,
            height=first.shape[0],
            width=first.shape[1],
            codec=characters.decode("ascii", "replace").strip("\0 "),
            decoder="opencv",
            version=f"opencv {self._cv2.__version__}",
        )
        self._restart()

    def _restart(self) -> None:
        self.close()
        options = [self._cv2.CAP_PROP_N_THREADS, self._threads]
        self._capture = self._cv2.VideoCapture(str(self.path.absolute()), self._cv2.CAP_FFMPEG, options)
        if not self._capture.isOpened():
            self.close()
            raise unreadable(self.path, "OpenCV finds no video in it")
        self._next = 0

    def _decode(self, wanted: list[int]) -> Iterator[np.ndarray]:
        if wanted and wanted[0] < self._next:
            self._restart()
        for index in wanted:
            while self._next <= index:
                if not self._capture.grab():
                    raise broken(self.path, done=self._next, of=self.info.frames)
                self._next += 1
            yield self._cv2.cvtColor(self._capture.retrieve()[1], self._cv2.COLOR_BGR2RGB)
