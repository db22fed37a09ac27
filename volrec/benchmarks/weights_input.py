"""Given weights read what they were trained to read, whatever the protocol says: their card knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from volrec.benchmarks.results import Deviation
from volrec.config import FrameInput, StreamProtocol

__all__ = ["read_as_trained"]

CLOSE = 0.01
"""Grey values, of 256, by which means may differ and still be the same."""


def read_as_trained(stream: StreamProtocol, card: Mapping[str, Any]) -> tuple[StreamProtocol, list[Deviation]]:
    """Return a stream that shows weights the values they were trained on, and what differs from the protocol in that.

    Ports of a network were often trained on other values than the paper's (RGB for BGR, other means): fed with the
    paper's they lose accuracy, and nothing says why.

    Parameters
    ----------
    stream : StreamProtocol
        Of the protocol.
    card : mapping
        Of the weights; ``card["input"]`` as `volrec import-weights` writes it. Without it, or for weights of another
        kind of channels, the stream stays as it is.

    Returns
    -------
    StreamProtocol
        With order of channels, mean, scale and frame rate of the weights.
    list of Deviation
        One a field that changed.
    """
    own = card.get("input") or {}
    if "rgb" not in stream.reads or own.get("channels") not in ("RGB", "BGR"):
        return stream, []
    frames = _frames(stream.frames, own)
    found = []
    for field in ("order", "mean", "scale", "frame_rate"):
        paper, here = getattr(stream.frames, field), getattr(frames, field)
        if not _alike(paper, here, relative=field == "scale"):
            name = f"streams.{stream.name}.frames.{field}"
            found.append(Deviation(field=name, paper=paper, here=here))
    return (stream.model_copy(update={"frames": frames}) if found else stream), found


def _frames(frames: FrameInput, own: Mapping[str, Any]) -> FrameInput:
    """Return how values in 0 to 255 become what the card says: ``(lo + v (hi - lo) - mean) / std`` of v in 0 to 1."""
    low, high = own["range"]
    span = (high - low) / 255
    mean = [(value - low) / span for value in own["mean"]]
    scale = [span / value for value in own["std"]]
    values = {
        "order": own["channels"].lower(),
        "mean": [round(value, 6) for value in mean],
        "scale": [float(f"{value:.8g}") for value in scale],
    }
    if own.get("frame_rate"):
        values["frame_rate"] = float(own["frame_rate"])
    return frames.model_copy(update=values)


def _alike(paper: Any, here: Any, *, relative: bool) -> bool:
    if not isinstance(paper, Sequence) or isinstance(paper, str):
        return bool(paper == here)
    first, second = (np.broadcast_to(np.asarray(values, dtype=np.float64), (3,)) for values in (paper, here))
    return bool(np.allclose(first, second, rtol=1e-4 if relative else 0, atol=0 if relative else CLOSE))
