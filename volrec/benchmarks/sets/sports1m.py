"""Sports-1M: 1,133,158 videos of 487 classes; a video may have several.

Karpathy, Toderici, Shetty, Leung, Sukthankar, Fei-Fei: Large-scale Video Classification with Convolutional Neural
Networks, CVPR 2014. Lists, their format and the two numbers: README of the authors' repository sports-1m-dataset.

Lists: ``original/train_partition.txt`` and ``original/test_partition.txt`` with lines
"https://www.youtube.com/watch?v=UDqivjS-lpI 168,169": labels count from 0. ``labels.txt`` names them, one a line.
Videos are called by their YouTube ID. The authors' partitions for cross-validation list a video once a label and may
have it on both sides: these are refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from volrec.benchmarks.sets.common import VideoSet
from volrec.benchmarks.sets.disk import Catalogue, Lists, list_paths, read_lines
from volrec.benchmarks.sets.splits import (
    Listed,
    assemble,
    choose_split,
    draw,
    not_official,
    refuse_overlap,
    some,
    stem_keys,
)
from volrec.errors import LabelsError, Problem

__all__ = ["CLASSES", "URLS", "read_sports1m"]

CLASSES = 487
"""Classes of the data set."""
URLS = 1133158
"""Addresses of the data set, both partitions together."""
SOURCE = "the folder original of the authors' repository sports-1m-dataset"

_USUAL = ("original", "sports-1m-dataset/original", "annotations", "lists")
_FILE = r"(?!\.).*(train|test).*\.txt"
_ADDRESS = re.compile(r"(?:[?&]v=|youtu\.be/|/(?:v|embed|shorts)/)([\w-]+)|^([\w-]+)$")


def read_sports1m(root: Path, *, split: str, lists: Lists = None) -> VideoSet:
    """Read Sports-1M.

    Parameters
    ----------
    root : Path
        Folder of the videos, called by their IDs; files or folders of frames.
    split : str
        ``"test"``: the authors' partitions; ``"own-test"``: whatever the lists hold; ``"random-SEED"``: drawn over all
        listed videos.
    lists : path or paths, optional
        The training list and the test list, in this order, or their folder. Names of labels are in ``labels.txt`` there
        or in the folder above; without it they are called by their numbers, and it is said.

    Returns
    -------
    VideoSet
        With several labels a video: hit@k counts any of them.

    Raises
    ------
    LabelsError
        Lists that are missing, malformed, not the official ones where these were asked for, or that overlap.
    DataError
        No listed video is there.
    """
    choice = choose_split("sports1m", split, official=("test",))
    paths = list_paths(root, lists, usual=_USUAL, pattern=_FILE, what="the lists of Sports-1M")
    sides: dict[str, dict[str, set[int]]] = {"train": {}, "test": {}}
    lines = 0
    in_order = lists is not None and not isinstance(lists, (str, Path))
    for place, path in enumerate(paths):
        first = place < len(paths) - 1 if in_order else "train" in path.name.casefold()
        lines += _read_list(path, sides["train" if first else "test"])
    where = paths[0].parent
    if not sides["test"]:
        raise LabelsError(
            f"no list has test videos ({some([path.name for path in paths])}).",
            remedy="Give train_partition.txt and test_partition.txt, or the folder that holds both.",
            where=where,
            code="no-lists",
        )
    highest = max(max(labels) for side in sides.values() for labels in side.values())
    classes, problems = _read_names(where, highest, official=choice.kind == "official")
    train, test = ([_video(name, labels) for name, labels in side.items()] for side in sides.values())
    if choice.kind == "random":
        train, test, note = draw(choice, [*train, *test])
        problems.append(note)
    else:
        refuse_overlap(choice, train, test, key=str, where=where)
    if choice.kind == "official":
        if len(classes) != CLASSES or highest >= CLASSES:
            seen = f"{len(classes)} classes and labels up to {highest}, not {CLASSES} from 0 on"
            raise not_official(choice, seen, source=SOURCE, where=where)
        if lines != URLS:
            raise not_official(choice, f"{lines:,} lines, not {URLS:,}", source=SOURCE, where=where)
    if not train:
        reason = "No training list is here: nothing can be trained."
        problems.append(Problem(str(where), "no-training-list", reason, "Add train_partition.txt.", fatal=False))
    catalogue = Catalogue(root, wanted=stem_keys([*train, *test], str))
    official = choice.kind == "official"
    return assemble(
        "sports1m",
        choice,
        classes,
        train,
        test,
        catalogue=catalogue,
        official=official,
        multilabel=True,
        problems=problems,
    )


def _video(name: str, labels: set[int]) -> Listed:
    return Listed(name, tuple(sorted(labels)), name, (name,), "")


def _read_list(path: Path, videos: dict[str, set[int]]) -> int:
    """Add the videos of one list, the labels of a video that is listed again to those it has; return the lines."""
    count = 0
    for number, line in read_lines(path):
        address, _, labels = line.replace("\t", " ").rpartition(" ")
        found = _ADDRESS.search(address.strip())
        numbers = labels.split(",")
        if found is None or not all(re.fullmatch(r"[0-9]{1,6}", label) for label in numbers):
            raise LabelsError(
                f"line {number} is no address and numbers of labels: '{line}'.",
                remedy="Each line is like 'https://www.youtube.com/watch?v=UDqivjS-lpI 168,169'.",
                where=path,
                code="bad-list",
            )
        videos.setdefault(found[1] or found[2], set()).update(map(int, numbers))
        count += 1
    return count


def _read_names(folder: Path, highest: int, *, official: bool) -> tuple[tuple[str, ...], list[Problem]]:
    """Return the names of the labels, by number."""
    for place in (folder / "labels.txt", folder.parent / "labels.txt"):
        if os.path.isfile(place):
            names = tuple(name for _, name in read_lines(place))
            if len(set(names)) == len(names) > highest:
                return names, []
            raise LabelsError(
                f"{len(names)} names of classes, some of them alike or too few for the label {highest}.",
                remedy="It has one name a line, the first that of label 0.",
                where=place,
                code="bad-list",
            )
    reason = "There is no labels.txt beside the lists: classes are called by their numbers."
    count = CLASSES if official else highest + 1
    return tuple(map(str, range(count))), [
        Problem(str(folder), "no-names", reason, "Put the authors' labels.txt there.", fatal=False)
    ]
