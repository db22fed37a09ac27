"""Videos through PyAV (FFmpeg): exact frames from any place, decoding no more than it takes.

The packets are read once, without decoding. Where their presentation times tell each frame apart, frame ``i`` is the
one with the ``i``-th time: a read seeks to the keyframe before it and decodes on. Where they do not (no times, times
twice, .avi with reordered frames, hidden frames, fields), the frames are counted by decoding all of them once, and
every read decodes from the start or from where the last one ended. A time that turns up out of turn after a seek ends
seeking for the file: what decoding from the start gives is what counts.

What the decoder conceals (damaged blocks inside of a frame) is taken as it comes, as OpenCV takes it. What breaks off
is an error.
"""

from __future__ import annotations

import importlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from volrec.errors import DataError
from volrec.io.video_reader import VideoInfo, VideoReader, broken, empty, missing_package, unreadable

__all__ = ["PyavReader"]

# A seek drops what the decoder holds and demuxes again; decoding (without conversion) of this many frames costs less.
_SEEK_COST = 8
# Codecs whose packets are one shown frame each; in others some show nothing (vp8's references, repeats of theora).
_ONE_A_PACKET = {
    "av1", "dnxhd", "ffv1", "h264", "hevc", "huffyuv", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "png", "prores",
    "rawvideo", "vp9",
}  # fmt: skip
_DROPPED = 20  # bytes: an mpeg4 packet below may be a frame that was dropped, which is not shown again.
_NO_TIMES = {"avi", "h264", "hevc", "m4v", "mpegvideo", "h263", "ivf"}  # Containers that number packets, not frames.


@dataclass(frozen=True)
class _Packets:
    """Presentation times in order, and the keyframes: time of presentation and of decoding."""

    times: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]
    clear: bool


class PyavReader(VideoReader):
    """A video file, decoded by PyAV.

    Parameters
    ----------
    path : Path
        The file.
    threads : int
        Of the decoder; 1 suits many workers, 0 lets FFmpeg choose.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self.path = path
        self._threads = threads
        try:
            self._av = importlib.import_module("av")
        except ImportError as error:
            raise missing_package(
                path, decoder="pyav", why=str(error), remedy="Install it with: pip install 'volrec[video]'"
            ) from error
        # One for all frames: to set it up takes several times as long as to convert a small frame.
        self._convert = importlib.import_module("av.video.reformatter").VideoReformatter().reformat
        self._container: Any = None
        try:
            self._open()
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _prepare(self) -> None:
        packets = self._demux()
        if not packets.times:
            raise empty(self.path)
        self._open()
        decoded = self._frames()
        first = next(decoded, None)
        if first is None:
            raise broken(self.path, done=0, of=len(packets.times))
        self._turns = _quarter_turns(first)
        height, width = (first.height, first.width) if self._turns % 2 == 0 else (first.width, first.height)
        self._times, self._keys = packets.times, packets.keys
        self._seeks = packets.clear and first.pts == packets.times[0] and not first.interlaced_frame
        frames = len(self._times) if self._seeks else self._count(len(self._times))
        rate = self._stream.average_rate
        library = ".".join(map(str, self._av.library_versions["libavcodec"]))
        self.info = VideoInfo(
            frames=frames,
            frame_rate=float(rate) if rate else math.nan,
            height=height,
            width=width,
            codec=self._stream.codec_context.codec.canonical_name,
            decoder="pyav",
            version=f"av {self._av.__version__}, libavcodec {library}",
        )
        if self._seeks:
            self._begin(chain([first], decoded))
        else:  # counting has gone through the file
            self._restart()

    def _open(self) -> None:
        self.close()
        try:
            # An absolute path: FFmpeg would take what is before a colon for a protocol.
            self._container = self._av.open(str(self.path.absolute()))
        except (self._av.error.FFmpegError, ValueError, OSError) as error:
            raise unreadable(self.path, _why(error)) from error
        if not self._container.streams.video:
            raise DataError(
                "there is no video in the file, only sound or data.",
                remedy="Take it out of the list, or fetch it again.",
                where=self.path,
                code="video-stream",
            )
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = self._threads

    def _demux(self) -> _Packets:
        times: list[int | None] = []
        keys: list[tuple[int, int]] = []
        rising, smallest = True, _DROPPED
        declared, whole = self._stream.frames, 0
        why = ""
        try:
            for packet in self._container.demux(self._stream):
                if not packet.size:
                    continue
                if packet.is_corrupt:
                    why = "the file ends within a frame"
                    break
                whole += 1
                smallest = min(smallest, packet.size)
                time, coded = packet.pts, packet.dts
                if packet.is_keyframe and time is not None:
                    keys.append((time, time if coded is None else coded))
                if packet.is_discard:  # Before the start of an edit list: decoded, never shown.
                    continue
                rising = rising and (not times or time is None or times[-1] is None or time > times[-1])
                times.append(time)
        except (self._av.error.FFmpegError, OSError) as error:
            why = _why(error)
        if not why and "mp4" in self._container.format.name and whole < declared:
            why = "its table lists more than the file holds"  # Elsewhere the number declared is a guess or wrong.
        if why:
            raise broken(self.path, done=whole, of=max(declared, whole + 1), why=why)
        known = [time for time in times if time is not None]
        codec = self._stream.codec_context.codec.canonical_name
        reorders = bool(self._stream.codec_context.has_b_frames)
        clear = (
            all(earlier[0] < later[0] for earlier, later in pairwise(keys))  # Else times start again somewhere.
            and len(known) == len(times) == len(set(known))
            and bool(keys)
            and codec in _ONE_A_PACKET
            and not (codec == "mpeg4" and smallest < _DROPPED)
            and not (reorders and (rising or _NO_TIMES & set(self._container.format.name.split(","))))
        )
        ordered = sorted(known) if clear else range(len(times))
        return _Packets(tuple(ordered), tuple(keys), clear)

    def _count(self, packets: int) -> int:
        self._open()
        count = 0
        try:
            for _ in self._frames():
                count += 1
        except DataError as error:
            raise broken(self.path, done=count, of=max(packets, count + 1), why=error.problem) from error
        return count

    def _frames(self) -> Iterator[Any]:
        """Decode from here to the end."""
        try:
            for packet in self._container.demux(self._stream):
                yield from packet.decode()
        except (self._av.error.FFmpegError, OSError) as error:
            raise DataError(_why(error), where=self.path, code="video-truncated") from error

    def _restart(self) -> None:
        self._open()
        self._begin(self._frames())

    def _begin(self, decoded: Iterator[Any]) -> None:
        self._running = self._from_start(decoded)
        self._next = 0
        self._certain = True

    def _from_start(self, decoded: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        """Count frames as they are decoded: what every other way has to agree with."""
        for number, frame in enumerate(decoded):
            if self._seeks and (number >= len(self._times) or frame.pts != self._times[number]):
                self._seeks = False
            yield number, frame

    def _from_keyframe(self, index: int) -> Iterator[tuple[int, Any]]:
        """Tell frames by their time, from the keyframe before frame `index`."""
        shown, coded = self._keys[self._place(index)]
        packets = self._land(shown, self._times[index])
        if packets is None:  # This container seeks by the time of decoding.
            packets = self._land(min(shown, coded), self._times[index])
        if packets is None:
            raise _AstrayError
        first = next(packets)
        number = bisect_left(self._times, first.pts)
        for packet in chain([first], packets):
            for frame in packet.decode():
                if frame.pts is not None and frame.pts < first.pts:
                    continue  # Shown before the keyframe and in want of what came before it (open groups of pictures).
                if number >= len(self._times) or frame.pts != self._times[number]:
                    raise _AstrayError
                yield number, frame
                number += 1

    def _land(self, time: int, latest: int) -> Iterator[Any] | None:
        """Seek, and give the packets from a keyframe on; None where that is shown after `latest`."""
        self._container.seek(time, stream=self._stream, backward=True, any_frame=False)
        packets = self._container.demux(self._stream)
        for packet in packets:
            # Some containers land between keyframes; frames without their references must not be decoded.
            if packet.is_keyframe and packet.pts is not None:
                return chain([packet], packets) if packet.pts <= latest else None
        return None

    def _place(self, index: int) -> int:
        """Find the last keyframe that is shown no later than frame `index`; -1 for none."""
        return bisect_right(self._keys, (self._times[index], math.inf)) - 1

    def _move(self, index: int) -> None:
        """Be where decoding on leads to frame `index`, at the least cost."""
        place = self._place(index) if self._seeks else -1
        if place >= 0:
            ahead = bisect_left(self._times, self._keys[place][0]) - self._next
            if index < self._next or ahead > _SEEK_COST:
                self._running, self._certain = self._from_keyframe(index), False
        elif index < self._next:
            self._restart()

    def _decode(self, wanted: list[int]) -> Iterator[np.ndarray]:
        for index in wanted:
            picture = self._convert(self._frame(index), format="rgb24").to_ndarray()
            yield np.rot90(picture, self._turns) if self._turns else picture

    def _frame(self, index: int) -> Any:
        while True:
            self._move(index)
            why = ""
            try:
                for number, frame in self._running:
                    self._next = number + 1
                    if number == index:
                        self._check_end()
                        return frame
            except (_AstrayError, DataError, self._av.error.FFmpegError, OSError) as error:
                why = error.problem if isinstance(error, DataError) else _why(error)
            if self._certain:
                raise broken(self.path, done=self._next, of=self.info.frames, why=why)
            self._seeks = False
            self._restart()

    def _check_end(self) -> None:
        """Look beyond the last frame, where all were decoded: the packets may have been fewer than the frames."""
        if self._certain and self._next == self.info.frames and next(self._running, None) is not None:
            raise DataError(
                f"more frames are decoded than the {self.info.frames} that its packets tell of.",
                remedy="Encode the video again (for example as mp4, h264).",
                where=self.path,
                code="video-count",
            )


class _AstrayError(Exception):
    """A frame that is not the one that its time promised."""


def _quarter_turns(frame: Any) -> int:
    """Read how often a frame is turned by 90 degrees, against the clock, before it is shown."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0
    # Nine numbers: a b u, c d v, x y w, of which a to d turn (row vectors, y down).
    across, down = np.frombuffer(bytes(matrix), dtype=np.int32)[:2]
    return round(math.degrees(math.atan2(-int(down), int(across))) / 90) % 4


def _why(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
