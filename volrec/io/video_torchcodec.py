"""Videos through TorchCodec, where it is installed: it scans the file when it opens it and seeks exactly."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

from volrec.io.video_reader import VideoInfo, VideoReader, broken, empty, missing_package, unreadable

__all__ = ["TorchcodecReader"]

_AT_ONCE = 32  # frames


class TorchcodecReader(VideoReader):
    """A video file, decoded by TorchCodec.

    Parameters
    ----------
    path : Path
        The file.
    threads : int
        Of the decoder; 0 lets FFmpeg choose.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self.path = path
        try:
            package = importlib.import_module("torchcodec.decoders")
        except (ImportError, OSError, RuntimeError) as error:  # It loads FFmpeg's libraries, of the system.
            raise missing_package(
                path,
                decoder="torchcodec",
                why=str(error).splitlines()[0] if str(error) else type(error).__name__,
                remedy="Install it with: pip install torchcodec (with FFmpeg on the system); or use decoder 'pyav'.",
            ) from error
        try:
            self._decoder = package.VideoDecoder(
                str(path.absolute()), dimension_order="NHWC", seek_mode="exact", num_ffmpeg_threads=threads
            )
        except (RuntimeError, ValueError) as error:
            raise unreadable(path, str(error).splitlines()[0]) from error
        known = self._decoder.metadata
        frames = int(known.num_frames or 0)
        if not frames:
            raise empty(path)
        self.info = VideoInfo(
            frames=frames,
            frame_rate=math.nan if known.average_fps is None else float(known.average_fps),
            height=int(known.height),
            width=int(known.width),
            codec=str(known.codec),
            decoder="torchcodec",
            version=f"torchcodec {metadata.version('torchcodec')}",
        )

    def _decode(self, wanted: list[int]) -> Iterator[np.ndarray]:
        for start in range(0, len(wanted), _AT_ONCE):
            try:
                batch = self._decoder.get_frames_at(indices=wanted[start : start + _AT_ONCE]).data.numpy()
            except (RuntimeError, IndexError) as error:
                why = str(error).splitlines()[0]
                raise broken(self.path, done=wanted[start], of=self.info.frames, why=why) from error
            yield from batch
