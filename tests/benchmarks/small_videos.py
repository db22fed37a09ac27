"""Small videos with fields, as pictures and as files, and streams that read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from videos import encode, moving

from volrec.benchmarks.sets import Split, Video, VideoSet
from volrec.config import StreamProtocol


def video_file(
    folder: Path, name: str = "clip", *, frames: int = 20, labels: tuple[int, ...] = (0,), **more: Any
) -> Video:
    """Encode frames that all differ, and name them."""
    path = folder / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(path, moving(frames, **more))
    return Video(name, path, labels, group=name)


def write_extracted(
    folder: Path,
    *,
    frames: int,
    size: tuple[int, int] = (24, 32),
    bound: float = 20.0,
    frame_rate: float = 25.0,
    seed: int = 0,
    kinds: tuple[str, ...] = ("rgb", "flow"),
) -> Path:
    """Write pictures of noise that is smooth enough for JPEG, in the layout of `volrec benchmark extract`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)

    def noise(channels: int) -> np.ndarray:
        small = rng.integers(0, 256, (6, 8, channels), dtype=np.uint8)
        return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC).reshape(*size, channels)

    starts = {"rgb": ("img", 3), "flow": ("flow", 2), "warped": ("warp", 2)}
    for kind in kinds:
        start, channels = starts[kind]
        for number in range(1, frames + (kind == "rgb")):
            picture = noise(channels)
            if kind == "rgb":
                cv2.imwrite(str(folder / f"{start}_{number:05d}.jpg"), picture)
                continue
            for place, axis in enumerate("xy"):
                cv2.imwrite(str(folder / f"{start}_{axis}_{number:05d}.jpg"), picture[..., place])
    facts: dict[str, Any] = {"format": 1, "frames": frames, "size": list(size), "frame_rate": frame_rate}
    facts |= {kind: {} if kind == "rgb" else {"bound": bound} for kind in kinds}
    (folder / "extraction.json").write_text(json.dumps(facts))
    return folder


def a_stream(**keys: Any) -> StreamProtocol:
    """Return a stream with what it must have filled in; nested keys replace one another."""
    plain: dict[str, Any] = {
        "name": "rgb",
        "network": {"name": "tsn", "width": 0.0625, "faithful": False},
        "test": {"clips": "even", "count": 3, "length": 2},
    }
    for key, value in keys.items():
        plain[key] = {**plain[key], **value} if isinstance(value, Mapping) and key == "network" else value
    return StreamProtocol.model_validate(plain)


def a_set(train: list[Video], test: list[Video], classes: tuple[str, ...] = ("left", "right")) -> VideoSet:
    """Return a set of videos with one split."""
    split = Split("motion/1", "0123456789abcdef", tuple(train), tuple(test), True, (len(train), len(test)))
    return VideoSet("motion", classes, split)
