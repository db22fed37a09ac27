"""Under which conditions frames and flow were extracted: what the folders of a run's videos say, for its report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volrec.benchmarks.extracted import PARTS, ExtractedVideo, find_extracted
from volrec.benchmarks.results import Deviation
from volrec.benchmarks.sets.common import Video
from volrec.config import StreamProtocol
from volrec.errors import DataError

__all__ = ["TOOLS_QUALITY", "condition_deviations", "condition_notes", "conditions"]

TOOLS_QUALITY = 95
"""Of the JPEG pictures of dense_flow and denseflow, which leave it to OpenCV; papers do not tell theirs."""

_SHOWN = 3
_UNSAID = "not said"
_AS_DECODED = ", as decoded"


def conditions(extracted: Path | str, videos: Sequence[Video]) -> dict[str, Any]:
    """Summarise how frames and flow of videos were extracted.

    Parameters
    ----------
    extracted : path or str
        Of a run: what `volrec.benchmarks.extraction.extract` wrote, or another tool left.
    videos : sequence of Video
        Those that the run reads.

    Returns
    -------
    dict
        Plain JSON. ``folders``, ``missing``, ``unreadable``, ``other_tools``: numbers of videos. Each of the others
        maps what is said to the number of videos that say it, the most frequent first: ``decoder`` (with version),
        ``order``, ``resize``, ``notes`` (of the pictures of other tools), and for each part, ``rgb``, ``flow``,
        ``warped``, a mapping of ``size`` (and whether it is that of the video), ``quality``, ``jpeg``, and of flow
        ``method``, ``estimator``, ``settings``, ``bound``, ``grey``, ``drift``. What another tool did not say counts
        as ``"not said"``.
    """
    root = Path(extracted)
    counts = Counter({"folders": 0, "missing": 0, "unreadable": 0, "other_tools": 0})
    said: dict[str, Counter[str]] = {name: Counter() for name in ("decoder", "order", "resize", "notes")}
    parts: dict[str, dict[str, Counter[str]]] = {}
    for video in videos:
        folder = find_extracted(root, video)
        if folder is None:
            counts["missing"] += 1
            continue
        try:
            facts = ExtractedVideo(folder).facts
        except DataError:
            counts["unreadable"] += 1
            continue
        counts["folders"] += 1
        foreign = "origin" in facts
        counts["other_tools"] += foreign
        if foreign:
            said["notes"].update(facts["notes"])
        for name in ("order", "resize"):
            said[name][_UNSAID if foreign else str(facts[name] or "none")] += 1
        said["decoder"][_UNSAID if foreign else f"{facts['decoder']} {facts['decoder_version']}"] += 1
        for part in PARTS:
            if part in facts:
                own = parts.setdefault(part, {})
                for name, value in _part(facts, part).items():
                    own.setdefault(name, Counter())[value] += 1
    return {
        **counts,
        **{name: _sorted(values) for name, values in said.items() if values},
        **{part: {name: _sorted(values) for name, values in own.items()} for part, own in parts.items()},
    }


def _part(facts: Mapping[str, Any], part: str) -> dict[str, str]:
    about = facts[part]
    names = ["quality", "jpeg"]
    if part != "rgb":
        names += ["method", "estimator", "settings", "bound", "grey"]
    if part == "warped":
        names.append("drift")
    said = {name: _text(about[name]) if name in about else _UNSAID for name in names}
    if part != "rgb" and "origin" in facts:
        said["bound"] += f", {_UNSAID}"
    height, width = about.get("size", facts["size"])
    kept = "origin" not in facts and facts["resize"] is None
    return {"size": f"{height} x {width}{_AS_DECODED if kept else ''}", **said}


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _sorted(values: Counter[str]) -> dict[str, int]:
    return dict(sorted(values.items(), key=lambda item: (-item[1], item[0])))


def condition_deviations(found: Mapping[str, Any], streams: Sequence[StreamProtocol]) -> list[Deviation]:
    """Tell where extracted pictures are not what streams ask for.

    Parameters
    ----------
    found : mapping
        Of `conditions`.
    streams : sequence of StreamProtocol
        Of the protocol as it is run.

    Returns
    -------
    list of Deviation
        Size (of pictures that were resized to another one than the stream's), estimator, bound, quality below what the
        tools of TSN write, and what is not known of the pictures of other tools. ``here`` says of how many videos.
    """
    deviations = []
    for stream in streams:
        for kind in stream.reads:
            part = "rgb" if kind == "difference" else kind
            about = found.get(part)
            if about is None:
                continue
            name = f"streams.{stream.name}"
            asked: list[tuple[str, Any, dict[str, int]]] = [
                (f"{name}.frames.resize", stream.frames.resize, _other_sizes(about, stream, part)),
                (f"{name}.pictures.quality", TOOLS_QUALITY, _poor(about["quality"])),
            ]
            if part != "rgb" and stream.motion is not None:
                motion = stream.motion
                asked += [
                    (f"{name}.motion.estimator", motion.estimator, _other(about["method"], motion.estimator)),
                    (f"{name}.motion.bound", motion.bound, _other(about["bound"], f"{motion.bound:g}")),
                ]
            for field, paper, here in asked:
                if here:
                    own = list(paper) if isinstance(paper, tuple) else paper
                    deviations.append(Deviation(field=field, paper=own, here=_counted(here)))
    return list({deviation.field: deviation for deviation in deviations}.values())


def _other(values: Mapping[str, int], wanted: str) -> dict[str, int]:
    return {value: count for value, count in values.items() if value != wanted}


def _poor(values: Mapping[str, int]) -> dict[str, int]:
    return {value: count for value, count in values.items() if value == _UNSAID or int(value) < TOOLS_QUALITY}


def _other_sizes(about: Mapping[str, Mapping[str, int]], stream: StreamProtocol, part: str) -> dict[str, int]:
    """Return sizes that the stream does not ask for.

    Frames as large as the video are none: they are resized as decoded ones are. Flow has to be estimated at the size.
    """
    wanted = stream.frames.resize
    found = {}
    for value, count in about["size"].items():
        kept = value.endswith(_AS_DECODED)
        height, width = (int(side) for side in value.removesuffix(_AS_DECODED).split(" x "))
        if wanted is None or (part == "rgb" and kept):
            fits = kept
        else:
            fits = min(height, width) == wanted if isinstance(wanted, int) else (height, width) == tuple(wanted)
        if not fits:
            found[value] = count
    return found


def _counted(values: Mapping[str, int]) -> str:
    """Write values with the number of videos of each, the most frequent first."""
    shown = [f"{value} ({_videos(count)})" for value, count in list(values.items())[:_SHOWN]]
    rest = list(values.values())[_SHOWN:]
    return "; ".join([*shown, f"{len(rest)} others ({_videos(sum(rest))})"] if rest else shown)


def _videos(count: int) -> str:
    return f"{count} video{'s' * (count != 1)}"


def condition_notes(found: Mapping[str, Any]) -> list[str]:
    """Write the conditions as sentences for a report; none where nothing was extracted."""
    if not found["folders"]:
        return []
    lines = [f"Extracted pictures of {_videos(found['folders'])}: {found['other_tools']} left by other tools."]
    for name in ("decoder", "resize", "order", "notes"):
        if name in found:
            lines.append(f"Extracted, {name}: {_counted(found[name])}.")
    for part in PARTS:
        if part in found:
            told = [
                f"{name} {_counted(found[part][name])}"
                for name in ("size", "quality", "estimator", "settings", "bound", "drift")
                if name in found[part]
            ]
            lines.append(f"Extracted {part}: {'; '.join(told)}.")
    for name in ("missing", "unreadable"):
        if found[name]:
            lines.append(f"Extracted pictures {name}: {_videos(found[name])}.")
    return lines
