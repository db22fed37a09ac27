"""Which split is asked for, what is wrong with it, and the set that comes of it: the same for every data set."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from volrec.benchmarks.sets.common import Split, Video, VideoSet, split_digest
from volrec.benchmarks.sets.disk import Catalogue, Places, class_key, name_on_disk
from volrec.errors import ConfigError, DataError, LabelsError, Problem

__all__ = [
    "TEST_SHARE",
    "Choice",
    "Listed",
    "assemble",
    "both_sides",
    "choose_split",
    "draw",
    "labels_differ",
    "listed_by_folder",
    "not_official",
    "once",
    "refuse_overlap",
    "some",
    "stem_keys",
]

TEST_SHARE = 0.3
"""Share of the videos of each class that a split drawn here tests on."""


class Listed(NamedTuple):
    """One video as a list names it.

    Attributes
    ----------
    name, labels, group
        As in `Video`.
    stems : tuple of str
        File names without suffix that it may have on disk, the best first.
    folder : str
        Name of its class's folder; empty where it is not known.
    """

    name: str
    labels: tuple[int, ...]
    group: str
    stems: tuple[str, ...]
    folder: str


@dataclass(frozen=True)
class Choice:
    """A split as it was asked for.

    Attributes
    ----------
    id : str
        ``"ucf101/1"``, ``"ucf101/own-1"``, ``"ucf101/random-0"``.
    kind : {"official", "own", "random"}
        What it is.
    key : str
        The official name of the lists (``"1"``, ``"val"``), or the seed.
    """

    id: str
    kind: str
    key: str


def choose_split(name: str, split: str, *, official: Sequence[str], own: str = "") -> Choice:
    """Read the name of a split.

    Parameters
    ----------
    name : str
        Data set.
    split : str
        One of `official`; ``"own-K"``: the lists K as they lie there; ``"random-SEED"``: drawn here.
    official : sequence of str
        Names of the official splits.
    own : str, optional
        Regular expression of further K.

    Raises
    ------
    ConfigError
        None of these.
    """
    kind, _, key = split.partition("-")
    if split in official:
        return Choice(f"{name}/{split}", "official", split)
    if kind == "own" and (key in official or re.fullmatch(own, key)) and key:
        return Choice(f"{name}/{split}", "own", key)
    if kind == "random" and re.fullmatch(r"0|[1-9]\d{0,8}", key):
        return Choice(f"{name}/{split}", "random", key)
    first = official[0] if official else "1"
    raise ConfigError(
        f"'{split}' is no split of {name}.",
        remedy=f"Splits are {', '.join([*official, f'own-{first}'])} (lists as they lie there) and random-0 "
        f"(drawn with that seed).",
        where="split",
        code="unknown-split",
    )


def not_official(
    choice: Choice, seen: str, *, source: str, where: Path | str, code: str = "not-official"
) -> LabelsError:
    """Return the error that refuses lists which are not the official ones."""
    return LabelsError(
        f"these are not the lists of {choice.id}: {seen}.",
        remedy=f"Take the lists from {source}, or ask for the split own-{choice.key} to use these as they are "
        "(its numbers cannot be compared with published ones).",
        where=where,
        code=code,
    )


def once(entries: Sequence[Listed], where: Path | str) -> tuple[list[Listed], list[Problem]]:
    """Leave out what is listed again on the same side, and say so.

    Raises
    ------
    LabelsError
        The same video with another label (code ``"two-labels"``).
    """
    kept: dict[str, Listed] = {}
    again: list[str] = []
    for entry in entries:
        first = kept.setdefault(entry.name, entry)
        if first.labels != entry.labels:
            raise LabelsError(
                f"{entry.name} is listed twice, with different labels.",
                remedy="Keep the line that is right.",
                where=where,
                code="two-labels",
            )
        if first is not entry:
            again.append(entry.name)
    problems = []
    if again:
        reason = f"{len(again):,} lines name a video again ({some(again)}); each counts once."
        problems.append(Problem(str(where), "listed-twice", reason, fatal=False))
    return list(kept.values()), problems


def labels_differ(where: Path | str, names: Sequence[str], count: int) -> list[Problem]:
    """Return the line that says how many labels of a list contradict the class folders; nothing where none does."""
    if not names:
        return []
    reason = (
        f"{len(names):,} of {count:,} labels are not the number that the class list gives the folder ({some(names)}); "
        "the folder was taken."
    )
    return [Problem(str(where), "labels-differ", reason, "Compare the class list with these lists.", fatal=False)]


def refuse_overlap(
    choice: Choice, train: Sequence[Listed], test: Sequence[Listed], *, key: Callable[[str], str], where: Path | str
) -> None:
    """Refuse a split that tests on what it learned from, whatever its name.

    Raises
    ------
    LabelsError
        Code ``"overlap"``.
    """
    learned = {key(entry.name) for entry in train}
    shared = [entry.name for entry in test if key(entry.name) in learned]
    if shared:
        raise LabelsError(
            f"{len(shared):,} videos are on both sides of {choice.id} ({some(shared)}).",
            remedy="Remove them from the training list: a split that tests on what it learned from is never used.",
            where=where,
            code="overlap",
        )


def both_sides(train: Sequence[Listed], test: Sequence[Listed]) -> tuple[list[str], int]:
    """Return the groups on both sides, sorted, and how many groups there are."""
    learned = {entry.group for entry in train} - {""}
    tested = {entry.group for entry in test} - {""}
    return sorted(learned & tested), len(learned | tested)


def draw(choice: Choice, entries: Sequence[Listed]) -> tuple[list[Listed], list[Listed], Problem]:
    """Draw a split over videos, `TEST_SHARE` of each class tested.

    The order is that of SHA-256 of seed and name: the same on every machine and with every version of any library.

    Returns
    -------
    train, test : list of Listed
        Sorted by name. A class of one video learns.
    problem : Problem
        What such a split is worth: videos of one group lie on both sides.
    """
    classes: dict[int, list[Listed]] = defaultdict(list)
    for entry in {entry.name: entry for entry in entries if entry.labels}.values():
        classes[entry.labels[0]].append(entry)
    train: list[Listed] = []
    test: list[Listed] = []
    for members in classes.values():
        members.sort(key=lambda entry: hashlib.sha256(f"{choice.key}/{entry.name}".encode()).digest())
        tested = max(round(TEST_SHARE * len(members)), 1) if len(members) > 1 else 0
        test.extend(members[:tested])
        train.extend(members[tested:])
    shared, groups = both_sides(train, test)
    known = (
        f"{len(shared):,} of {groups:,} groups are on both sides" if groups else "what they were cut from is unknown"
    )
    problem = Problem(
        choice.id,
        "random-split",
        f"The split was drawn over videos with seed {choice.key}; {known}: its numbers are too good and cannot be "
        "compared with published ones.",
        "Use an official split.",
        fatal=False,
    )
    return sorted(train), sorted(test), problem


def listed_by_folder(
    catalogue: Catalogue, *, group: Callable[[str, str], str], where: Path
) -> tuple[tuple[str, ...], list[Listed]]:
    """Return classes and videos of class folders, for a split that is drawn where there are no lists.

    Raises
    ------
    LabelsError
        No class folders (code ``"no-lists"``).
    DataError
        A name that is not UTF-8.
    """
    pairs = catalogue.by_folder()
    if not pairs:
        raise LabelsError(
            "there are neither lists nor videos in class folders.",
            remedy="Put the videos of each class into a folder of its name, or give the lists.",
            where=where,
            code="no-lists",
        )
    classes = tuple(sorted({folder for folder, _ in pairs}))
    places = {folder: place for place, folder in enumerate(classes)}
    return classes, [
        Listed(name_on_disk(f"{folder}/{stem}"), (places[folder],), group(folder, stem), (stem,), folder)
        for folder, stem in pairs
    ]


def assemble(
    name: str,
    choice: Choice,
    classes: Sequence[str],
    train: Sequence[Listed],
    test: Sequence[Listed],
    *,
    catalogue: Places,
    official: bool,
    multilabel: bool = False,
    problems: Sequence[Problem] = (),
) -> VideoSet:
    """Look the listed videos up on disk, count what is missing, and put the set together.

    Raises
    ------
    DataError
        None of the listed videos is there (code ``"no-videos"``).
    """
    others = {class_key(folder) for folder in classes}
    notes = list(problems)
    missing: list[list[str]] = []
    twice: list[str] = []
    sides: list[tuple[Video, ...]] = []
    for entries in (train, test):
        lost: list[str] = []
        videos: list[Video] = []
        for entry in entries:
            places = catalogue.find(entry.stems, entry.folder, others)
            if not places:
                lost.append(entry.name)
                continue
            videos.append(Video(entry.name, Path(places[0].path), entry.labels, entry.group))
            if len(places) > 1:
                twice.append(entry.name)
        missing.append(lost)
        sides.append(tuple(videos))
    if not any(sides):
        raise DataError(
            f"none of the {len(train) + len(test):,} listed videos is here (first {some([*missing[0], *missing[1]])}).",
            remedy="Give the folder that holds the videos, in class folders or all in one.",
            where=catalogue.root,
            code="no-videos",
        )
    if any(missing):
        counts = [f"{len(lost):,} of {len(side):,}" for lost, side in zip(missing, (train, test), strict=True)]
        reason = (
            f"{counts[0]} training and {counts[1]} test videos that are listed are not here "
            f"({some([*missing[0], *missing[1]])}); numbers are of the others."
        )
        notes.append(Problem(str(catalogue.root), "missing-videos", reason, "Complete the data set."))
    if twice:
        reason = f"{len(twice):,} videos are here more than once ({some(twice)}); files go before folders of frames."
        notes.append(Problem(str(catalogue.root), "found-twice", reason, "Give one of their folders.", fatal=False))
    digest = split_digest((entry.name for entry in train), (entry.name for entry in test))
    split = Split(choice.id, digest, sides[0], sides[1], official, (len(train), len(test)))
    return VideoSet(name, tuple(classes), split, multilabel, tuple(notes))


def stem_keys(entries: Collection[Listed], key: Callable[[str], str]) -> set[str]:
    """Return every stem that these videos may have, as a catalogue compares them."""
    return {key(stem) for entry in entries for stem in entry.stems}


def some(names: Sequence[str], count: int = 3) -> str:
    """Return the first few names, for a sentence."""
    return ", ".join(names[:count]) + (" …" if len(names) > count else "")
