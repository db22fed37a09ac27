"""Videos of one side of a split: those that count, labels in the order of the weights, and their rows in tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from volrec.benchmarks.sets import Video

__all__ = ["beside", "labelled", "relabelled"]


def labelled(videos: Sequence[Video], lacking: set[str]) -> Iterator[Video]:
    """Yield the labelled videos that are not among the names of those that lack something."""
    return (video for video in videos if video.labels and video.name not in lacking)


def relabelled(videos: Sequence[Video], ours: Sequence[str], theirs: Sequence[str]) -> list[Video]:
    """Return labelled videos with labels as places in the classes of the weights, whose order may be another."""
    places = {name: place for place, name in enumerate(theirs)}
    return [
        Video(video.name, video.path, tuple(places[ours[label]] for label in video.labels), video.group)
        for video in videos
        if video.labels
    ]


def beside(vectors: Any, sides: Mapping[str, Sequence[Video]], rows: Mapping[str, Sequence[int]]) -> Any:
    """Return vectors of trajectories for the rows of features: encoded are videos that have some, in their order."""
    found = []
    for side, whole in (("train", vectors.train), ("test", vectors.test)):
        names = {sides[side][number].name for number in rows[side]}
        kept = [place for place, name in enumerate(vectors.names[side]) if name in names]
        found.append(whole[kept])
    return tuple(found)
