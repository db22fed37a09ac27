"""Which frames and which part of them a protocol looks at, and how a protocol that is run differs from the paper's."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from volrec.benchmarks.protocol import stream_channels
from volrec.config.benchmark import StreamProtocol, TestViews, TrainViews, VideoProtocol
from volrec.config.sections import Section
from volrec.errors import ConfigError, DataError
from volrec.transforms.clips import evenly_spaced

__all__ = [
    "Deviation",
    "clip_indices",
    "crop_boxes",
    "differences",
    "frames_at_rate",
    "reach",
    "scaled",
    "train_indices",
]

# Places of a crop, in quarters of what is left over along H and W.
_CORNERS = ((0, 0), (0, 4), (4, 0), (4, 4))
_CENTRE = (2, 2)
_NINE = tuple((down, along) for down in (0, 2, 4) for along in (0, 2, 4))
# Prose about a protocol, which is not compared.
_PROSE = ("name", "system", "paper", "summary", "published", "open", "source")


@dataclass(frozen=True)
class Deviation:
    """One field in which a protocol differs from the paper's.

    Attributes
    ----------
    field : str
        Dotted, streams by their name: ``"streams.flow.frames.crop"``.
    paper, here : object
        Both values.
    why : str
        Why it differs, where that is known.
    """

    field: str
    paper: Any
    here: Any
    why: str = ""

    def __str__(self) -> str:
        reason = f" ({self.why})" if self.why else ""
        return f"{self.field}: {_said(self.here)}, the paper's is {_said(self.paper)}{reason}"


def reach(stream: StreamProtocol) -> tuple[int, int]:
    """Return how many frames the motion of a frame needs before it and after it.

    L fields from frame t on end in frame t + L, so the last places of a video have none.
    """
    if stream.motion is None:
        return 0, 0
    stack = stream.motion.stack
    if stream.motion.order in ("centred", "bidirectional"):
        return stack // 2, stack - stack // 2
    return 0, stack


def frames_at_rate(count: int, frame_rate: float, wanted: float | None) -> np.ndarray:
    """Return which frames of a video are looked at, where a protocol looks at so many a second.

    Parameters
    ----------
    count : int
        Frames of the video.
    frame_rate : float
        Frames a second of the video; NaN where it is not known, and then every frame is taken.
    wanted : float or None
        Frames a second of the protocol; None: all.

    Returns
    -------
    numpy.ndarray
        int64, at least one: the frame that is on the screen at 0, 1 / wanted, 2 / wanted … seconds. A slower video
        repeats frames.
    """
    _check_count(count)
    if wanted is None or math.isnan(frame_rate):
        return np.arange(count, dtype=np.int64)
    number = max(1, math.ceil(count * wanted / frame_rate - 1e-9))
    return np.minimum((np.arange(number) * frame_rate / wanted + 1e-9).astype(np.int64), count - 1)


def clip_indices(
    count: int,
    views: TestViews,
    *,
    before: int = 0,
    extra: int = 0,
    least: int = 1,
    name: str = "",
    seed: int = 0,
) -> np.ndarray:
    """Lay the clips of a test over a video.

    Parameters
    ----------
    count : int
        Frames of the video (at the frame rate of the protocol).
    views : TestViews
        The rule.
    before, extra : int
        Frames that are needed before the first and after the last frame of a clip (`reach`): of a stack of L fields of
        flow, L after. Papers count fields where they place such stacks, which is the same.
    least : int
        Frames that a clip of ``whole`` has at least, where the network reads no shorter one; filled as `short` says.
    name : str
        Of the video: with `seed` it is what clips of ``random`` are drawn from, so that the order of videos and how
        many there are do not matter.
    seed : int
        See `name`.

    Returns
    -------
    numpy.ndarray
        int64 (clips, length), each in [0, `count`): one row an input of the network. With `views.joint` one row holds
        all clips side by side. With ``short: none`` a short video has one shorter row, or `count` of them.

    Raises
    ------
    DataError
        For a video without frames.
    """
    _check_count(count)
    first = min(before, count - 1)
    usable = max(1, count - before - extra)
    if views.clips == "whole":
        number = min(views.length, -(-usable // views.stride))
        if views.short != "none":
            number = max(number, min(least, views.length))
        clips = _cut(np.zeros(1, dtype=np.int64), number, views.stride, usable, views.short)
    else:
        starts = _starts(usable, views, name=name, seed=seed)
        clips = _cut(starts, views.length, views.stride, usable, views.short)
    clips = first + clips
    return clips.reshape(1, -1) if views.joint else clips


def train_indices(
    count: int, views: TrainViews, generator: np.random.Generator, *, before: int = 0, extra: int = 0
) -> np.ndarray:
    """Draw what a training step sees of a video.

    Parameters
    ----------
    count : int
        Frames of the video.
    views : TrainViews
        One clip from anywhere, or one snippet from each of K equal parts. Parts begin ``places // K`` apart, where
        `places` is how many beginnings there are, and a snippet begins at a place drawn in its part; with fewer places
        than parts, places are drawn and sorted; a video shorter than a snippet, or of no more frames than parts, begins
        every snippet at the first frame. (The rule of TSN's released training code.)
    generator : numpy.random.Generator
        Source of the draw.
    before, extra : int
        As in `clip_indices`.

    Returns
    -------
    numpy.ndarray
        int64 (1 or K, length), each in [0, `count`). A video shorter than the clip begins anew.

    References
    ----------
    .. [1] L. Wang et al., "Temporal Segment Networks: Towards Good Practices for Deep Action Recognition", ECCV 2016.
    """
    _check_count(count)
    first = min(before, count - 1)
    usable = max(1, count - before - extra)
    places = usable - _span(views.length, views.stride) + 1
    segments = views.segments or 1
    part = places // segments
    if part > 0 and views.segments:
        starts = np.arange(segments) * part + generator.integers(part, size=segments)
    elif places > 0 and (usable > segments or not views.segments):
        starts = np.sort(generator.integers(places, size=segments))
    else:
        starts = np.zeros(segments, dtype=np.int64)
    return first + _cut(starts.astype(np.int64), views.length, views.stride, usable, "loop")


def crop_boxes(crops: str, frame: tuple[int, int], size: int | tuple[int, int] | None) -> list[tuple[int, int, bool]]:
    """Return where the crops of a test lie.

    Parameters
    ----------
    crops : str
        As `TestViews.crops`. ``five``: top left, top right, bottom left, bottom right, centre; ``ten``: then their
        mirrors in the same order (as `volrec.transforms.crops.ten_crop`); ``three``: the two ends of the longer side
        with the centre between them; ``four``: top left and bottom right, then their mirrors (no paper says which
        four); ``eighteen``: corners, centres of the sides and the centre, row by row, then their mirrors.
    frame : (int, int)
        Height and width of the frame.
    size : int, (int, int) or None
        Of the crop; None: the whole frame.

    Returns
    -------
    list of (int, int, bool)
        Top, left, and whether what is cut there is then mirrored along W.

    Raises
    ------
    ConfigError
        For an unknown name.
    DataError
        Where the frame is smaller than the crop.
    """
    height, width = frame
    h, w = (height, width) if size is None else (size, size) if isinstance(size, int) else size
    if h > height or w > width:
        raise DataError(
            f"a crop of {h} x {w} does not fit into frames of {height} x {width}.",
            remedy="Resize frames to more (frames.resize), or take a smaller crop.",
            code="crop",
        )
    along = ((2, 0), _CENTRE, (2, 4)) if width >= height else ((0, 2), _CENTRE, (4, 2))
    places = {
        "center": (_CENTRE,),
        "mirror": (_CENTRE,),
        "three": along,
        "four": (_CORNERS[0], _CORNERS[3]),
        "five": (*_CORNERS, _CENTRE),
        "ten": (*_CORNERS, _CENTRE),
        "eighteen": _NINE,
    }
    if crops not in places:
        raise ConfigError(
            f"there are no crops {crops!r}.",
            remedy=f"Take one of {', '.join(places)}.",
            where="test.crops",
            code="crop",
        )
    boxes = [(down * (height - h) // 4, across * (width - w) // 4) for down, across in places[crops]]
    mirrors = (False, True) if crops in ("mirror", "four", "ten", "eighteen") else (False,)
    return [(top, left, mirrored) for mirrored in mirrors for top, left in boxes]


def scaled(protocol: VideoProtocol, *, scale: float = 1.0, width: float = 1.0) -> VideoProtocol:
    """Return a protocol for smaller frames and narrower networks, in the form adapted to any size.

    Parameters
    ----------
    protocol : VideoProtocol
        The paper's.
    scale : float
        What the sizes of frames and crops are multiplied by; they are even, and a crop no smaller than the network
        reads (frames then grow with it). Clips stay as long as they are.
    width : float
        Scale of all channel counts of the networks.

    Returns
    -------
    VideoProtocol
        A copy; the networks are no longer faithful. Both numbers 1 give the protocol as it is.
    """
    for field, value in (("scale", scale), ("width", width)):
        if not 0 < value <= 1:
            raise ConfigError(
                f"it must lie in (0, 1], got {value}.", remedy="1 is the paper's.", where=field, code="scale"
            )
    if scale == width == 1:
        return protocol.model_copy(deep=True)
    values = protocol.model_dump()
    for stream, plain in zip(protocol.streams, values["streams"], strict=True):
        plain["network"] |= {"width": stream.network.width * width, "faithful": False}
        crop = stream.frames.crop or stream.frames.resize
        least = _smallest(stream, width=stream.network.width * width)
        short = min(_pair(crop)) if crop is not None else 0
        factor = max(scale, least / short) if short else scale
        for key in ("resize", "crop"):
            size = plain["frames"][key]
            if size is not None:
                sides = tuple(_even(side * factor) for side in _pair(size))
                plain["frames"][key] = sides if isinstance(size, tuple) else sides[0]
    return VideoProtocol.model_validate(values)


def differences(paper: VideoProtocol, here: VideoProtocol) -> list[Deviation]:
    """Name every field in which a protocol differs from the paper's, in the order of the schema.

    Texts about a protocol (its name, summary, source …) are not compared. A stream or a section that only one of them
    has is one difference.
    """
    return [
        found for field in type(paper).model_fields if field not in _PROSE for found in _compare(paper, here, field)
    ]


def _compare(paper: Section, here: Section, field: str, above: str = "") -> list[Deviation]:
    old, new = getattr(paper, field), getattr(here, field)
    dotted = f"{above}{field}"
    if field == "streams":
        return _compare_streams(old, new)
    if isinstance(old, Section) and isinstance(new, Section):
        return [found for key in type(old).model_fields for found in _compare(old, new, key, f"{dotted}.")]
    if field == "options" and isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            Deviation(f"{dotted}.{key}", old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)
        ]
    if old == new:
        return []
    return [Deviation(dotted, _plain(old), _plain(new))]


def _compare_streams(paper: list[StreamProtocol], here: list[StreamProtocol]) -> list[Deviation]:
    old, new = ({stream.name: stream for stream in streams} for streams in (paper, here))
    found = []
    for name in dict.fromkeys([*old, *new]):
        if name not in old or name not in new:
            found.append(Deviation(f"streams.{name}", name in old, name in new))
            continue
        for field in StreamProtocol.model_fields:
            found += _compare(old[name], new[name], field, f"streams.{name}.")
    return found


def _starts(usable: int, views: TestViews, *, name: str, seed: int) -> np.ndarray:
    span = _span(views.length, views.stride)
    slack = max(0, usable - span)
    if views.clips == "even":
        return evenly_spaced(usable, span, snippets=views.count, to_the_end=views.rule == "spread")
    if views.clips == "random":
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return np.sort(generator.integers(slack + 1, size=views.count))
    starts = np.arange(0, slack + 1, views.step or views.length * views.stride, dtype=np.int64)
    return np.append(starts, slack) if views.last and starts[-1] != slack else starts


def _cut(starts: np.ndarray, length: int, stride: int, usable: int, short: str) -> np.ndarray:
    """Return the frames (clips, length) of clips that begin at `starts`, those past the end as `short` says."""
    clips = starts[:, None] + stride * np.arange(length, dtype=np.int64)
    beyond = clips >= usable
    if short == "none":
        # Only a video shorter than a clip goes past its end, and all its clips begin at 0.
        return clips[:, ~beyond.any(0)]
    if short == "first":
        return np.where(beyond, 0, clips)
    return clips % usable if short == "loop" else np.minimum(clips, usable - 1)


def _span(length: int, stride: int) -> int:
    return (length - 1) * stride + 1


def _smallest(stream: StreamProtocol, *, width: float) -> int:
    """Return the smallest side that the adapted network of a stream reads."""
    import torch

    from volrec.networks import create

    options: dict[str, Any] = dict(stream.network.options)
    channels = stream_channels(stream)
    with torch.device("meta"):
        built = create(stream.network.name, num_classes=2, in_channels=channels, width=width, **options)
    return max(built.smallest[1:])


def _even(side: float) -> int:
    return max(2, 2 * round(side / 2 + 1e-9))  # halves go up, so that the smallest side a network reads stays so


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Section) else value


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return " x ".join(map(str, value)) if isinstance(value, tuple) else ", ".join(map(str, value)) or "none"
    return str(value)


def _check_count(count: int) -> None:
    if count < 1:
        raise DataError(
            f"a video of {count} frames holds nothing to look at.",
            remedy="Decode it again, or take it out of the list.",
            code="video-empty",
        )
