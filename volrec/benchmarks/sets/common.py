"""What every reader of a video data set gives: videos with labels, a split, and what was noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from volrec.errors import Problem

__all__ = ["Split", "Video", "VideoSet", "split_digest"]


@dataclass(frozen=True)
class Video:
    """One labelled video.

    Attributes
    ----------
    name : str
        Unique in its set, without suffix: ``"HandstandPushups/v_HandStandPushups_g01_c01"``.
    path : Path
        The file, or a folder of frames.
    labels : tuple of int
        Places in the classes of the set; several where the set has several labels a video, none where unknown.
    group : str
        What it was cut from: videos of one group never are on both sides of a split.
    """

    name: str
    path: Path
    labels: tuple[int, ...]
    group: str = ""


@dataclass(frozen=True)
class Split:
    """Which videos learn and which are tested.

    Attributes
    ----------
    id : str
        ``"ucf101/1"``: the official one of that number; ``"ucf101/own-1"``: lists that are not the official ones;
        ``"ucf101/random-0"``: drawn here with that seed. It goes into every checkpoint and score file.
    digest : str
        Of the names on both sides, as listed (not as found on disk).
    train, test : tuple of Video
        As found on disk.
    official : bool
        Whether papers report on it.
    listed : (int, int)
        Videos listed on either side, found or not.
    """

    id: str
    digest: str
    train: tuple[Video, ...]
    test: tuple[Video, ...]
    official: bool
    listed: tuple[int, int]


@dataclass(frozen=True)
class VideoSet:
    """A data set with one of its splits.

    Attributes
    ----------
    name : str
        ``"ucf101"``, ``"hmdb51"``, ``"kinetics"``, ``"sports1m"``, ``"motion"``, ``"list"``.
    classes : tuple of str
        In the order of the labels.
    split : Split
        The one asked for.
    multilabel : bool
        Whether a video may have several labels.
    problems : tuple of Problem
        Missing files (fatal: not used), counts that differ from the published ones (not fatal).
    """

    name: str
    classes: tuple[str, ...]
    split: Split
    multilabel: bool = False
    problems: tuple[Problem, ...] = ()


def split_digest(train: Iterable[str], test: Iterable[str]) -> str:
    """Return 16 hex digits that tell two splits apart, whatever the order of their lists."""
    text = "\n".join(["train", *sorted(train), "test", *sorted(test)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
