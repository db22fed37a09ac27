"""One video as it is looked at: its frames, decoded or from pictures, and the displacement fields between them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from volrec.benchmarks.extracted import ExtractedVideo, find_extracted
from volrec.benchmarks.sets import Video
from volrec.benchmarks.views import frames_at_rate
from volrec.errors import DataError
from volrec.io.video import VideoReader, open_video

__all__ = ["Footage"]


class Footage:
    """A video that is open for reading; a context manager.

    Frames come from the extracted pictures where there are some, else from the video itself. Fields come from extracted
    pictures alone: to estimate them takes longer than all the rest.

    Parameters
    ----------
    video : Video
        File or folder of frames.
    decoder : str
        As in `volrec.io.video.open_video`.
    extracted : path, optional
        Folder that `volrec.benchmarks.extraction.extract` wrote, or that another tool left in one of the layouts of
        `volrec.benchmarks.extracted_of_others`.
    frame_rate : float, optional
        Frames a second that are looked at; None: all of them. A video that tells no rate is looked at whole.
    fields : str, optional
        ``"flow"`` or ``"warped"`` where these are read.
    frames : bool
        Whether frames are read too: without them the video itself is not opened.

    Raises
    ------
    DataError
        The video cannot be opened, has no frame, or its fields are not there.
    """

    def __init__(
        self,
        video: Video,
        *,
        decoder: str = "pyav",
        extracted: Path | str | None = None,
        frame_rate: float | None = None,
        fields: str | None = None,
        frames: bool = True,
    ) -> None:
        self.video = video
        self._fields = fields
        self._pictures: ExtractedVideo | None = None
        self._reader: VideoReader | None = None
        folder = None if extracted is None else find_extracted(extracted, video)
        if folder is not None:
            self._pictures = ExtractedVideo(folder)
        if fields is not None and (self._pictures is None or fields not in self._pictures.facts):
            raise DataError(
                f"there is no extracted {fields} of this video.",
                remedy="Run `volrec benchmark extract` first, and give its folder as --extracted.",
                where=folder or video.path,
                code="no-flow",
            )
        if self._pictures is not None and ("rgb" in self._pictures.facts or not frames):
            total, rate = self._pictures.length, self._pictures.facts.get("frame_rate") or float("nan")
        else:
            self._reader = open_video(video.path, decoder=decoder)
            info = self._reader.info
            total, rate = info.frames, info.frame_rate
        if fields is not None and self._pictures is not None:
            # What follows the last frame has no field: extracted flow is one shorter, and decoders may differ.
            total = min(total, self._pictures.length)
        if total < 1:
            self.close()
            raise DataError("it has no frame.", remedy="Extract or download it again.", where=video.path, code="empty")
        self.rate = float(rate)
        self._places = frames_at_rate(total, self.rate, frame_rate)

    @property
    def count(self) -> int:
        """Frames that are looked at."""
        return len(self._places)

    @property
    def field_size(self) -> tuple[int, int]:
        """Height and width of the fields."""
        if self._pictures is None:
            raise DataError("no fields were opened.", remedy="Open it with fields.", where=self.video.path)
        return self._pictures.size_of(str(self._fields))

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frames (N, H, W, 3) uint8 RGB, each decoded once however often it is asked for."""
        wanted, back = np.unique(self._places[np.asarray(indices)], return_inverse=True)
        if self._reader is not None:
            found = self._reader.read(wanted)
        else:
            found = self._pictures.frames(wanted.tolist())  # type: ignore[union-attr]
        return found[back.reshape(-1)]

    def fields(self, low: int, high: int) -> np.ndarray:
        """Return the fields (N, 2, H, W) float32, pixels, of frames low to high - 1 to the frame after each.

        The frame after is that of the video, also where fewer frames a second are looked at; its last frame has the
        field of the one before.
        """
        if self._pictures is None or self._fields is None:
            raise DataError("no fields were opened.", remedy="Open it with fields.", where=self.video.path)
        there = self._pictures.length - 1
        if there < 1:
            return np.zeros((high - low, 2, *self.field_size), np.float32)
        # A video slower than what is looked at shows its last frame several times.
        wanted, back = np.unique(np.minimum(self._places[low:high], there - 1), return_inverse=True)
        return self._pictures.flow(wanted.tolist(), stream=self._fields)[back.reshape(-1)]

    def close(self) -> None:
        """Let go of the file."""
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> Footage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
