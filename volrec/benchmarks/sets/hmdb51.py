"""HMDB51: 6,766 listed videos of 51 classes, three official splits.

Kuehne, Jhuang, Garrote, Poggio, Serre: HMDB: A Large Video Database for Human Motion Recognition, ICCV 2011.

Lists (``testTrainMulti_7030_splits``): 153 files ``CLASS_test_splitK.txt`` with lines "file.avi FLAG", a blank after
the flag; 1 learns, 2 is tested, 0 is in neither. Each class learns from 70 videos and tests on 30, in every split.

Classes are in the plain order of their directory names: climb before climb_stairs, kick before kick_ball, sword before
sword_exercise. Two other orders are in circulation: one by file names, where all three pairs are the other way round,
and one where kick and sword are and climb is not. Nothing fails where scores in one order are added to scores in
another, so scores travel with names here.

A file is called SOURCE_CLASS_VISIBLE_CAMERA_PEOPLE_VIEW_QUALITY_N.avi. There are no official groups: the group of a
video is SOURCE (the whole name where it is not built like this). It is for information, and for folds of training
videos; the official splits are not checked against it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from volrec.benchmarks.sets.common import VideoSet
from volrec.benchmarks.sets.disk import Catalogue, Lists, find_list_folder, read_lines, split_suffix
from volrec.benchmarks.sets.splits import (
    Choice,
    Listed,
    assemble,
    choose_split,
    draw,
    listed_by_folder,
    not_official,
    once,
    refuse_overlap,
    some,
    stem_keys,
)
from volrec.errors import LabelsError, Problem

__all__ = ["CLASSES", "PER_CLASS", "VIDEOS", "read_hmdb51"]

CLASSES = 51
"""Classes of the data set."""
PER_CLASS = (70, 30)
"""Training and test videos of each class, in every official split."""
VIDEOS = 6766
"""Videos that the lists name: 3,570 and 1,530, and 1,666 in neither."""
SOURCE = "test_train_splits.rar of the authors"

_USUAL = ("testTrainMulti_7030_splits", "testTrainMulti", "test_train_splits", "annotations", "splits", "lists")
_FILE = re.compile(r"(?P<name>[^.].*)_test_split(?P<split>\d+)\.txt")
_TAGS = re.compile(r"_[a-z]_[a-z]{2}_np\d+_[a-z]{2}_[a-z]{3}_\d+$")


def read_hmdb51(root: Path, *, split: str, lists: Lists = None) -> VideoSet:
    """Read HMDB51.

    Parameters
    ----------
    root : Path
        Folder of the videos: in class folders or all in one, files or folders of frames.
    split : str
        ``"1"``, ``"2"``, ``"3"``; ``"own-K"``: the files of split K whatever they hold; ``"random-SEED"``: drawn over
        all videos, those with flag 0 too.
    lists : path, optional
        Folder of the 153 files.

    Returns
    -------
    VideoSet
        `Video.name` is "class/file" without suffix.

    Raises
    ------
    LabelsError
        Lists that are missing, malformed, not the official ones where these were asked for, or that overlap.
    DataError
        No listed video is there.
    """
    choice = choose_split("hmdb51", split, official=("1", "2", "3"), own=r"\d{1,2}")
    problems: list[Problem] = []
    try:
        folder = find_list_folder(
            root, lists, usual=_USUAL, pattern=_FILE.pattern, what="the lists of HMDB51 (CLASS_test_split1.txt …)"
        )
    except LabelsError as error:
        if choice.kind != "random" or lists is not None or error.code != "no-lists":
            raise
        catalogue = Catalogue(root)
        classes, videos = listed_by_folder(catalogue, group=source_of, where=root)
        train, test, note = draw(choice, videos)
        problems.append(note)
    else:
        files = _files(folder)
        classes = tuple(sorted({name for name, _ in files}))
        numbers = sorted({number for _, number in files}) if choice.kind == "random" else [int(choice.key)]
        sides: dict[str, list[Listed]] = {"0": [], "1": [], "2": []}
        for number in numbers:
            for place, name in enumerate(classes):
                if (name, number) in files:
                    _read_flags(files[name, number], place, name, sides)
        everything = [*sides["1"], *sides["2"], *sides["0"]]
        if not everything:
            raise LabelsError(
                f"there are no lists of split {choice.key}.",
                remedy="Splits that are here: " + ", ".join(map(str, sorted({number for _, number in files}))) + ".",
                where=folder,
                code="no-lists",
            )
        if choice.kind == "random":
            train, test, note = draw(choice, everything)
            problems.append(note)
        else:
            (train, train_notes), (test, test_notes) = (once(sides[flag], folder) for flag in ("1", "2"))
            problems += [*train_notes, *test_notes]
            refuse_overlap(choice, train, test, key=str, where=folder)
            if choice.kind == "official":
                _check(choice, classes, {name for name, number in files if number == numbers[0]}, sides, folder)
        catalogue = Catalogue(root, wanted=stem_keys(everything, str))
    if len(catalogue) != VIDEOS:
        reason = f"{len(catalogue):,} videos are here, the lists of HMDB51 name {VIDEOS:,}."
        problems.append(
            Problem(str(root), "published-count", reason, "Compare with the authors' archive.", fatal=False)
        )
    official = choice.kind == "official"
    return assemble("hmdb51", choice, classes, train, test, catalogue=catalogue, official=official, problems=problems)


def source_of(folder: str, stem: str) -> str:
    """Return what a video was cut from, by its name without the class and the tags after it."""
    head = _TAGS.sub("", stem)
    return head.removesuffix(f"_{folder}") if head != stem else stem


def _check(
    choice: Choice, classes: tuple[str, ...], listed: set[str], sides: dict[str, list[Listed]], where: Path
) -> None:
    """Refuse lists that are not 51 files of 70 training and 30 test videos, and 1,666 others in all."""
    if len(classes) != CLASSES or len(listed) != CLASSES:
        seen = f"{len(listed)} class files for this split and {len(classes)} classes, not {CLASSES}"
        raise not_official(choice, seen, source=SOURCE, where=where)
    train, test = (Counter(video.folder for video in sides[flag]) for flag in ("1", "2"))
    odd = [f"{name} {train[name]}/{test[name]}" for name in classes if (train[name], test[name]) != PER_CLASS]
    if odd:
        seen = f"{len(odd)} classes do not have {PER_CLASS[0]} training and {PER_CLASS[1]} test videos ({some(odd)})"
        raise not_official(choice, seen, source=SOURCE, where=where)
    neither = VIDEOS - CLASSES * sum(PER_CLASS)
    if len(sides["0"]) != neither:
        seen = f"{len(sides['0']):,} videos are in neither side, not {neither:,}"
        raise not_official(choice, seen, source=SOURCE, where=where)


def _files(folder: Path) -> dict[tuple[str, int], Path]:
    """Return the files of the lists by class and number of the split."""
    found = {}
    for name in os.listdir(folder):
        match = _FILE.fullmatch(name)
        if match:
            found[match["name"], int(match["split"])] = folder / name
    return found


def _read_flags(path: Path, place: int, name: str, sides: dict[str, list[Listed]]) -> None:
    """Add the videos of one file to the sides that its flags name."""
    for number, line in read_lines(path):
        file, _, flag = line.replace("\t", " ").rpartition(" ")
        stem, _ = split_suffix(file.strip().replace("\\", "/").rpartition("/")[2])
        if not stem or flag not in sides:
            raise LabelsError(
                f"line {number} is no file and flag 0, 1 or 2: '{line}'.",
                remedy="Each line is like 'April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1'.",
                where=path,
                code="bad-list",
            )
        sides[flag].append(Listed(f"{name}/{stem}", (place,), source_of(name, stem), (stem,), name))
