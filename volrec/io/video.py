"""Videos as arrays: one reader for files and folders of frames, whichever package decodes.

==========  ============================================  ==========================================================
decoder     what it is                                    needs
==========  ============================================  ==========================================================
pyav        FFmpeg by packets; exact frames, seeks        ``pip install 'volrec[video]'``
opencv      FFmpeg inside of OpenCV; always from the      the same
            start, so slow at random places
torchcodec  PyTorch's decoder; exact frames, seeks        ``pip install torchcodec``, and FFmpeg on the system
frames      a folder of ``img_00001.jpg`` .. (or png);    nothing more
            chosen by itself where the path is a folder
==========  ============================================  ==========================================================

All give the same frames in the same order; ``tests/io/test_io_video.py`` compares them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from volrec.errors import ConfigError, DataError
from volrec.io.video_reader import VideoInfo, VideoReader

__all__ = ["DECODERS", "VideoInfo", "VideoReader", "open_video", "read_video"]

DECODERS = ("pyav", "opencv", "torchcodec", "frames")


def open_video(path: Path | str, *, decoder: str = "pyav", threads: int = 1) -> VideoReader:
    """Open a video to read frames from it.

    Parameters
    ----------
    path : path or str
        A video file, or a folder of frames ``img_00001.jpg``, ``img_00002.jpg`` .. (from 1 or 0, or png).
    decoder : {"pyav", "opencv", "torchcodec", "frames"}
        For files; a folder is read as frames whatever is asked for.
    threads : int
        Of the decoder; 1 suits many workers, 0 lets FFmpeg choose. The frames do not depend on it.

    Returns
    -------
    VideoReader
        To be used with ``with``: ``.info`` has the facts, ``.read(indices)`` gives uint8 ``(N, H, W, 3)`` RGB.

    Raises
    ------
    ConfigError
        For a decoder that there is not.
    DataError
        Where there is no such file, it is no video, holds no frame or breaks off, or a package is missing; it names
        the file, so that a caller can set it aside and go on.
    """
    path = Path(path)
    if decoder not in DECODERS:
        raise ConfigError(
            f"decoder must be one of {', '.join(DECODERS)}; got {decoder!r}.",
            remedy="Choose one of these; pyav is the usual one.",
            where="decoder",
            code="video-decoder",
        )
    if path.is_dir():
        from volrec.io.frame_folders import FrameFolder

        return FrameFolder(path)
    if not path.is_file():
        raise DataError(
            "there is no such video.",
            remedy="Check the path, and that the data set is complete.",
            where=path,
            code="video-missing",
        )
    if decoder == "frames":
        raise DataError(
            "it is a file, and decoder 'frames' reads folders of pictures.",
            remedy="Give a folder with img_00001.jpg, img_00002.jpg .., or decoder 'pyav'.",
            where=path,
            code="video-unreadable",
        )
    if decoder == "opencv":
        from volrec.io.video_opencv import OpencvReader

        return OpencvReader(path, threads=threads)
    if decoder == "torchcodec":
        from volrec.io.video_torchcodec import TorchcodecReader

        return TorchcodecReader(path, threads=threads)
    from volrec.io.video_pyav import PyavReader

    return PyavReader(path, threads=threads)


def read_video(path: Path | str, *, decoder: str = "pyav", threads: int = 1) -> np.ndarray:
    """Decode a whole video: uint8 ``(T, H, W, 3)`` RGB. Parameters and errors are those of `open_video`."""
    with open_video(path, decoder=decoder, threads=threads) as reader:
        return reader.read(range(reader.info.frames))
