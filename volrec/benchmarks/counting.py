"""What a test looked at: frames and rates of the videos, steps before the network, videos that all parts have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from volrec.benchmarks.footage import Footage
from volrec.benchmarks.reading import StreamReader
from volrec.benchmarks.scores import ScoreSet
from volrec.benchmarks.sets import Video
from volrec.config import StreamProtocol

__all__ = ["CountingReader", "flow_facts", "frame_facts", "of_all", "order_of_steps"]


class CountingReader(StreamReader):
    """A reader that notes how many frames of each video it looks at, and at which rate they were taken.

    Attributes
    ----------
    seen : dict
        From video to frames and frames a second (NaN: not known).
    """

    def __init__(self, stream: StreamProtocol) -> None:
        super().__init__(stream)
        self.seen: dict[str, tuple[int, float]] = {}

    def open(self, video: Video, *, decoder: str, extracted: str | None) -> Footage:
        """Open a video for this stream."""
        footage = super().open(video, decoder=decoder, extracted=extracted)
        self.seen[video.name] = footage.count, footage.rate
        return footage


def frame_facts(seen: Mapping[str, tuple[int, float]], names: Sequence[str], looked_at: float | None) -> dict[str, Any]:
    """Return frames of all videos, and the range of their rates in words."""
    rates = sorted({round(seen[name][1], 3) for name in names if math.isfinite(seen[name][1])})
    text = f"{rates[0]:g} to {rates[-1]:g}" if len(rates) > 1 else "".join(f"{rate:g}" for rate in rates)
    unknown = sum(not math.isfinite(seen[name][1]) for name in names)
    if unknown:
        text = f"{text}; not known of {unknown} videos" if text else "not known"
    if looked_at is not None:
        text += f", looked at with {looked_at:g}"
    return {"fps": text, "frames": sum(seen[name][0] for name in names)}


def of_all(parts: Sequence[ScoreSet]) -> list[ScoreSet]:
    """Return scores of the videos that every part has: one may have been unreadable for one stream alone."""
    common = set.intersection(*(set(part.videos) for part in parts))
    return [part if len(common) == len(part.videos) else _of(part, common) for part in parts]


def _of(scores: ScoreSet, names: set[str]) -> ScoreSet:
    rows = [row for row, name in enumerate(scores.videos) if name in names]
    return replace(
        scores,
        videos=tuple(scores.videos[row] for row in rows),
        labels=tuple(scores.labels[row] for row in rows),
        logits=scores.logits[rows],
        probabilities=scores.probabilities[rows],
        clips=scores.clips[rows],
        clip_hits=scores.clip_hits[rows],
        facts={**scores.facts, "evaluated": len(rows)},
    )


def order_of_steps(stream: StreamProtocol) -> str:
    """Say what becomes of a frame before the network reads it."""
    frames = stream.frames
    size = frames.resize
    shown = (
        "as decoded" if size is None else f"short side {size}" if isinstance(size, int) else f"{size[0]} x {size[1]}"
    )
    crop = "no crop" if frames.crop is None else f"crop {frames.crop}"
    return f"decode, resize ({shown}, {frames.interpolation}), {crop}"


def flow_facts(stream: StreamProtocol) -> dict[str, Any] | str:
    """Return estimator and bound of the flow that a stream reads, or ``"none"``."""
    if stream.motion is None or stream.reads[-1] == "difference":
        return "none"
    return {"method": stream.motion.estimator, "bound": stream.motion.bound}
