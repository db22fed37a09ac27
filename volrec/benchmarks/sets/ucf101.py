"""UCF101: 13,320 videos of 101 classes, three official splits; and sets that are written in its layout.

Soomro, Zamir, Shah: UCF101: A Dataset of 101 Human Actions Classes from Videos in The Wild, CRCV-TR-12-01, 2012.

Lists (``ucfTrainTestlist``): ``classInd.txt`` with lines "1 ApplyEyeMakeup"; ``trainlist01.txt`` with lines
"ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"; ``testlist01.txt`` the same without labels. Lines end in CR LF. The
class of a video is its directory: of class HandstandPushups the files are called v_HandStandPushups, and copies are
about that spell either of them differently.

The number after g is the source: 25 a class, numbered from 1. Split k tests on the groups 7(k - 1) + 1 to 7k of every
class and learns from the others. Lists of other counts are in circulation, a test list of 1,794 lines among them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from volrec.benchmarks.sets.common import VideoSet
from volrec.benchmarks.sets.disk import Catalogue, Lists, class_key, find_list_folder, read_lines, split_suffix
from volrec.benchmarks.sets.splits import (
    Choice,
    Listed,
    assemble,
    both_sides,
    choose_split,
    draw,
    labels_differ,
    listed_by_folder,
    not_official,
    once,
    refuse_overlap,
    some,
    stem_keys,
)
from volrec.errors import LabelsError, Problem

__all__ = ["CLASSES", "PUBLISHED", "VIDEOS", "read_ucf101"]

PUBLISHED = {"1": (9537, 3783), "2": (9586, 3734), "3": (9624, 3696)}
"""Training and test videos of the official splits, counted from the lists."""
VIDEOS = 13320
"""Videos of the data set."""
CLASSES = 101
"""Classes of the data set."""
SOURCE = "UCF101TrainTestSplits-RecognitionTask.zip of the authors"

_USUAL = (
    "ucfTrainTestlist",
    "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist",
    "annotations",
    "splits_classification",
    "splits",
    "lists",
)
_LIST = re.compile(r"(train|test)list(\d+)\.txt")
_GROUP = re.compile(r"_g(\d+)_c\d+$", re.IGNORECASE)
_PER_SPLIT = 7  # groups of a class that one split tests on


class _Side(NamedTuple):
    """One list, read: videos, what was noticed."""

    videos: list[Listed]
    problems: list[Problem]


def read_ucf101(root: Path, *, split: str, lists: Lists = None, name: str = "ucf101") -> VideoSet:
    """Read UCF101, or a set in its layout.

    Parameters
    ----------
    root : Path
        Folder of the videos: in class folders or all in one, files or folders of frames.
    split : str
        ``"1"``, ``"2"``, ``"3"``; ``"own-K"``: trainlist0K and testlist0K whatever they hold; ``"random-SEED"``.
    lists : path, optional
        Folder of the lists.
    name : {"ucf101", "motion"}
        ``"motion"``: the published counts and numbers of groups are not asked for.

    Returns
    -------
    VideoSet
        `Video.name` is "Class/v_Class_gGG_cCC" as the lists spell it, `Video.group` "Class/gGG".

    Raises
    ------
    LabelsError
        Lists that are missing, malformed, not the official ones where these were asked for, or that overlap.
    DataError
        No listed video is there.
    """
    choice = choose_split(name, split, official=tuple(PUBLISHED), own=r"\d{1,2}")
    problems: list[Problem] = []
    try:
        folder = find_list_folder(
            root,
            lists,
            usual=_USUAL,
            pattern=r"classInd\.txt|(train|test)list\d+\.txt",
            what="lists in the layout of UCF101",
        )
    except LabelsError as error:
        if choice.kind != "random" or lists is not None or error.code != "no-lists":
            raise
        catalogue = Catalogue(root, key=str.casefold)
        classes, videos = listed_by_folder(catalogue, group=_group, where=root)
        train, test, note = draw(choice, videos)
        problems.append(note)
    else:
        classes = _read_classes(folder / "classInd.txt")
        if choice.kind == "random":
            numbers = sorted(name for name in os.listdir(folder) if _LIST.fullmatch(name))
            everything = [video for number in numbers for video in _read_list(folder / number, classes).videos]
            train, test, note = draw(choice, everything)
            problems.append(note)
        else:
            number = int(choice.key)
            sides = [_read_list(folder / f"{side}list{number:02d}.txt", classes) for side in ("train", "test")]
            (train, train_notes), (test, test_notes) = sides
            refuse_overlap(choice, train, test, key=str.casefold, where=folder)
            problems += [*train_notes, *test_notes, *_check(choice, name, classes, train, test, folder)]
        catalogue = Catalogue(root, wanted=stem_keys([*train, *test], str.casefold), key=str.casefold)
    if name == "ucf101" and len(catalogue) != VIDEOS:
        reason = f"{len(catalogue):,} videos are here, UCF101 has {VIDEOS:,}."
        problems.append(
            Problem(str(root), "published-count", reason, "Compare with the authors' archive.", fatal=False)
        )
    official = choice.kind == "official" and name == "ucf101"
    return assemble(name, choice, classes, train, test, catalogue=catalogue, official=official, problems=problems)


def _check(
    choice: Choice, name: str, classes: tuple[str, ...], train: list[Listed], test: list[Listed], where: Path
) -> list[Problem]:
    """Compare a split with what it says it is; return what is only to be said."""
    shared, groups = both_sides(train, test)
    leak = f"{len(shared):,} of {groups:,} groups have videos on both sides ({some(shared)})"
    if choice.kind == "own":
        if not shared:
            return []
        return [Problem(str(where), "group-leak", f"{leak}: numbers are too good.", "Split by groups.", fatal=False)]
    if shared:
        source = SOURCE if name == "ucf101" else "what wrote the videos"
        raise not_official(choice, leak, source=source, where=where, code="group-leak")
    if name != "ucf101":
        return []
    if len(classes) != CLASSES:
        seen = f"classInd.txt has {len(classes)} classes, not {CLASSES}"
        raise not_official(choice, seen, source=SOURCE, where=where)
    if (len(train), len(test)) != PUBLISHED[choice.key]:
        counts = "{:,} training and {:,} test videos"
        seen = f"{counts.format(len(train), len(test))}, not {counts.format(*PUBLISHED[choice.key])}"
        raise not_official(choice, seen, source=SOURCE, where=where)
    last = _PER_SPLIT * int(choice.key)
    tested = {f"g{number:02d}" for number in range(last - _PER_SPLIT + 1, last + 1)}
    for videos, inside in ((train, False), (test, True)):
        strange = [video.name for video in videos if (video.group.rpartition("/")[2] in tested) is not inside]
        if strange:
            side = "tests on" if inside else "learns from"
            seen = f"it {side} {some(strange)}, and the test groups are {min(tested)} to {max(tested)}"
            raise not_official(choice, seen, source=SOURCE, where=where)
    return []


def _read_classes(path: Path) -> tuple[str, ...]:
    """Return the classes in the order of their numbers, which run from 1."""
    named: dict[int, str] = {}
    for number, line in read_lines(path):
        place, _, name = line.partition(" ")
        if not place.isdecimal() or not name.strip() or int(place) in named:
            raise LabelsError(
                f"line {number} is no number and name of a class: '{line}'.",
                remedy="Each line is like '1 ApplyEyeMakeup', every number once.",
                where=path,
                code="bad-list",
            )
        named[int(place)] = name.strip()
    if sorted(named) != list(range(1, len(named) + 1)) or len(set(map(class_key, named.values()))) != len(named):
        raise LabelsError(
            f"its {len(named)} classes are not numbered from 1 on, or two have one name.",
            remedy="Each line is like '1 ApplyEyeMakeup', without gaps.",
            where=path,
            code="bad-list",
        )
    return tuple(named[place] for place in sorted(named))


def _read_list(path: Path, classes: tuple[str, ...]) -> _Side:
    """Return the videos of a training or test list."""
    places = {class_key(name): place for place, name in enumerate(classes)}
    videos: list[Listed] = []
    differing: list[str] = []
    for number, line in read_lines(path):
        listed, _, label = line.replace("\\", "/").partition(" ")
        folder, _, file = listed.rpartition("/")
        folder = folder.rpartition("/")[2]
        place = places.get(class_key(folder))
        if not folder or not file or (label and not label.strip().isdecimal()):
            raise _bad_line(path, number, f"has no class, video and label: '{line}'")
        if place is None:
            raise _bad_line(path, number, f"has the folder '{folder}', which is no class of classInd.txt")
        stem, _ = split_suffix(file)
        if label and int(label) != place + 1:
            differing.append(line)
        videos.append(Listed(f"{folder}/{stem}", (place,), _group(classes[place], stem), (stem,), folder))
    if not videos:
        raise LabelsError("the list is empty.", remedy="Take the authors' lists.", where=path, code="bad-list")
    kept, problems = once(videos, path)
    return _Side(kept, [*problems, *labels_differ(path, differing, len(videos))])


def _bad_line(path: Path, number: int, seen: str) -> LabelsError:
    return LabelsError(
        f"line {number} {seen}.",
        remedy="Each line is like 'Archery/v_Archery_g01_c01.avi 3'; test lists have no label.",
        where=path,
        code="bad-list",
    )


def _group(folder: str, stem: str) -> str:
    """Return "Class/gGG", or nothing where the name has no group."""
    found = _GROUP.search(stem)
    return f"{folder}/g{int(found[1]):02d}" if found else ""
