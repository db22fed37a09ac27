"""Readers of video data sets in the layouts people have on disk."""

from __future__ import annotations

from pathlib import Path

from volrec.benchmarks.sets.common import Split, Video, VideoSet, split_digest
from volrec.benchmarks.sets.disk import Lists
from volrec.benchmarks.sets.hmdb51 import read_hmdb51
from volrec.benchmarks.sets.kinetics import read_kinetics
from volrec.benchmarks.sets.lists import read_lists
from volrec.benchmarks.sets.sports1m import read_sports1m
from volrec.benchmarks.sets.ucf101 import read_ucf101
from volrec.errors import ConfigError, DataError

__all__ = ["SETS", "Split", "Video", "VideoSet", "open_set", "split_digest"]

SETS = {"ucf101": "1", "hmdb51": "1", "kinetics": "val", "sports1m": "test", "motion": "1", "list": "own-1"}
"""Names of the data sets, each with the split that is taken where none is asked for."""


def open_set(name: str, root: Path | str, *, split: str | None = None, lists: Lists = None) -> VideoSet:
    """Open a video data set with one of its splits, as it lies on disk.

    Videos are files or folders of frames, in class folders or all in one folder, under any folders in between. Each
    folder is listed once; no file is opened. What is missing, or differs from the published counts, is in
    `VideoSet.problems`.

    Parameters
    ----------
    name : str
        One of `SETS`.
    root : path
        Folder of the videos.
    split : str, optional
        An official split (``"1"``, ``"2"``, ``"3"`` of UCF101 and HMDB51; ``"val"``, ``"test"`` of Kinetics;
        ``"test"`` of Sports-1M): refused where the lists are not the official ones. ``"own-1"``, ``"own-val"`` …: those
        lists whatever they hold. ``"random-SEED"``: 30 % of the videos of each class are tested, and it is said what
        such numbers are worth.
    lists : path or paths, optional
        Folder of the lists, or the files (a training list before a test list). None: under `root` or beside it,
        where the folder has a usual name.

    Returns
    -------
    VideoSet
        Problems that are fatal name videos that are not used: ``"missing-videos"``, one line for all of them.

    Raises
    ------
    ConfigError
        No such data set or split.
    DataError
        No such folder, or none of the listed videos in it.
    LabelsError
        Lists that are missing, malformed or not those of the split; a video on both sides, whatever the split.

    Examples
    --------
    >>> from volrec.benchmarks.sets import open_set
    >>> ucf = open_set("ucf101", "UCF-101", split="1", lists="ucfTrainTestlist")  # doctest: +SKIP
    >>> ucf.split.id, ucf.split.listed  # doctest: +SKIP
    ('ucf101/1', (9537, 3783))
    """
    if name not in SETS:
        raise ConfigError(f"'{name}' is no data set.", remedy=f"Data sets are {', '.join(SETS)}.", code="unknown-set")
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            "there is no such folder.", remedy="Give the folder of the videos.", where=root, code="no-folder"
        )
    split = SETS[name] if split is None else split
    if lists is not None and not isinstance(lists, (str, Path)) and len(lists) < 2:
        lists = lists[0] if lists else None
    if name in ("ucf101", "motion"):
        return read_ucf101(root, split=split, lists=lists, name=name)
    reader = {"hmdb51": read_hmdb51, "kinetics": read_kinetics, "sports1m": read_sports1m, "list": read_lists}[name]
    return reader(root, split=split, lists=lists)
