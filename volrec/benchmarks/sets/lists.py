"""Any videos, by lists of paths and labels: "path label" or "path frames label", a line each.

The parts are separated by blanks, commas or tabs, the same in a whole list; frames, a number, is not looked at. Labels
are numbers or names. Numbers count from 0, or from 1 where the lowest of both lists is 1; classes are called by them.
Names are in alphabetical order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from volrec.benchmarks.sets.common import VideoSet
from volrec.benchmarks.sets.disk import Found, Lists, list_paths, read_lines, split_suffix
from volrec.benchmarks.sets.splits import Listed, assemble, choose_split, draw, once, refuse_overlap
from volrec.errors import LabelsError, Problem

__all__ = ["read_list", "read_lists"]

_USUAL = ("lists", "annotations", "splits")
_FILE = r"(?!\.).*(train|val|test).*\.(txt|csv|tsv)"
_NUMBER = re.compile(r"[0-9]{1,5}")  # what is longer is a name: a network has as many outputs as the highest number


class _Folders:
    """What lies in the folders that a list names: each is listed once, when its first video is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, dict[str, list[Found]]] = {}

    def find(self, stems: Iterable[str], folder: str, others: Collection[str]) -> list[Found]:
        """Return the places of a video, the best first: of the name as listed, else of another suffix or a folder."""
        known = self._known.get(folder)
        if known is None:
            known = self._known[folder] = _contents(folder)
        return next((known[stem] for stem in stems if stem in known), [])


def read_lists(root: Path, *, split: str, lists: Lists = None) -> VideoSet:
    """Read videos that lists name.

    Parameters
    ----------
    root : Path
        Paths are relative to it. They are files or folders of frames, with or without suffix.
    split : str
        ``"own-1"``: one list learns, the other is tested; ``"random-SEED"``: drawn over the videos of all lists.
    lists : path or paths, optional
        The training list and the test list, in this order; one alone is tested. Or a folder that has one list with
        "train" in its name and one with "test" (or "val").

    Returns
    -------
    VideoSet
        `Video.name` is the path without suffix, relative to `root` where it lies there; groups are not known.

    Raises
    ------
    LabelsError
        Lists that are missing, malformed or overlap.
    DataError
        No listed video is there.
    """
    choice = choose_split("list", split, official=(), own="1")
    paths = list_paths(root, lists, usual=_USUAL, pattern=_FILE, what="a training and a test list")
    if lists is None or isinstance(lists, (str, Path)):
        paths = _sides(paths)
    if not 1 <= len(paths) <= 2:
        raise LabelsError(
            f"{len(paths)} lists were given.", remedy="Give the training list and the test list.", code="no-lists"
        )
    rows = [read_list(path) for path in paths]
    classes, places = _classes({label for side in rows for _, label in side})
    sides: list[list[Listed]] = []
    problems: list[Problem] = []
    for path, side in zip(paths, rows, strict=True):
        kept, notes = once([_video(root, listed, places[label]) for listed, label in side], path)
        sides.append(kept)
        problems += notes
    where = paths[0].parent
    if choice.kind == "random":
        train, test, note = draw(choice, [video for side in sides for video in side])
        problems.append(note)
    else:
        train, test = sides if len(sides) == 2 else ([], sides[0])
        refuse_overlap(choice, train, test, key=str, where=where)
        if len(sides) == 1:
            reason = f"{paths[0].name} is the one list: it is tested, and nothing can be trained."
            remedy = "Give the training list before it, or ask for random-0."
            problems.append(Problem(str(where), "no-training-list", reason, remedy, fatal=False))
    return assemble("list", choice, classes, train, test, catalogue=_Folders(root), official=False, problems=problems)


def read_list(path: Path) -> list[tuple[str, str]]:
    """Return path and label of every line.

    Raises
    ------
    LabelsError
        No lines, or lines that no one separator divides.
    """
    lines = read_lines(path)
    for separator in ("\t", ",", " "):
        rows = [_divide(line, separator) for _, line in lines]
        if rows and all(listed and _is_label(label) for listed, label in rows):
            # "path frames label": only where every line has the number, for names may end in one.
            counted = [re.fullmatch(rf"(.+?){separator}+ *[0-9]+", listed) for listed, _ in rows]
            if all(counted):
                rows = [(match[1], label) for match, (_, label) in zip(counted, rows, strict=True) if match]
            return [(listed.strip().strip('"'), label) for listed, label in rows]
    number, line = next(
        ((number, line) for number, line in lines if not re.search(r"[\t, ]", line)), lines[0] if lines else (0, "")
    )
    raise LabelsError(
        f"line {number} is no path and label: '{line}'." if lines else "the list is empty.",
        remedy="Each line is like 'walking/clip_01.avi 3' or 'walking/clip_01 120 3', with one separator throughout.",
        where=path,
        code="bad-list",
    )


def _divide(line: str, separator: str) -> tuple[str, str]:
    listed, _, label = line.rpartition(separator)
    return listed.strip(), label.strip().strip('"')


def _is_label(text: str) -> bool:
    """Tell whether a part may be a label: a path or the name of a video is none."""
    return bool(text) and not re.search(r"[/\\]", text) and not any(split_suffix(part)[1] for part in text.split())


def _classes(labels: set[str]) -> tuple[list[str], dict[str, int]]:
    """Return the names of the classes in their order, and the place of each label among them."""
    if not all(_NUMBER.fullmatch(label) for label in labels):
        names = sorted(labels)
        return names, {label: place for place, label in enumerate(names)}
    numbers = {label: int(label) for label in labels}
    first = 1 if min(numbers.values()) == 1 else 0
    names = [str(number) for number in range(first, max(numbers.values()) + 1)]
    return names, {label: number - first for label, number in numbers.items()}


def _sides(paths: list[Path]) -> list[Path]:
    """Return the training and the test list among the files of a folder."""
    if len(paths) == 1:
        return paths
    named = {part: [path for path in paths if part in path.name.casefold()] for part in ("train", "test", "val")}
    train, test = named["train"], named["test"] or named["val"]
    if len(train) > 1 or len(test) != 1 or train == test:
        raise LabelsError(
            f"it is not clear which list is which: {', '.join(path.name for path in paths)}.",
            remedy="Give the training list and the test list themselves.",
            where=paths[0].parent,
            code="no-lists",
        )
    return [*train, *test]


def _video(root: Path, listed: str, place: int) -> Listed:
    """Return a video as it is looked for."""
    path = os.path.normpath(os.path.join(root, listed.replace("\\", "/")))
    folder, file = os.path.split(path)
    inside = os.path.relpath(folder, root)
    if inside == os.pardir or inside.startswith(os.pardir + os.sep):
        inside = os.path.splitdrive(os.path.abspath(folder))[1].lstrip(os.sep)
    stem, _ = split_suffix(file)
    name = Path(inside, stem).as_posix()
    return Listed(name, (place,), "", (file, stem), folder)


def _contents(folder: str) -> dict[str, list[Found]]:
    """Return what lies in a folder, by name and by name without suffix; nothing where there is no such folder."""
    named: dict[str, list[Found]] = {}
    stems: dict[str, list[Found]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found = Found(folder, entry.path, entry.is_dir())
                named[entry.name] = [found]
                stem, suffix = split_suffix(entry.name)
                if suffix:
                    stems.setdefault(stem, []).append(found)
    except OSError:  # its videos are missing, and counted
        return {}
    return {**{stem: sorted(places, key=lambda place: place.path) for stem, places in stems.items()}, **named}
