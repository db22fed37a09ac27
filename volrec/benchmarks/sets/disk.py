"""What lies on disk: the videos under a folder, the lists beside them, their lines."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from volrec.errors import DataError, LabelsError

__all__ = [
    "VIDEO_SUFFIXES",
    "Catalogue",
    "Found",
    "Lists",
    "Places",
    "class_key",
    "find_list_folder",
    "list_paths",
    "name_on_disk",
    "read_lines",
    "split_suffix",
]

VIDEO_SUFFIXES = frozenset({".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v"})
"""What a file must end in to be a video."""
Lists = Path | str | Sequence[Path | str] | None
"""Where the lists of a split are: a folder, a file, several files, or None: they are looked for."""

_DEPTH = 6  # folders below the root: <set>/videos/train/<class>/<group>/ is as deep as people go
_FRAME = re.compile(r"(img|image|frame|flow_[xy]|warp_[xy])_?\d+\.(jpe?g|png)", re.IGNORECASE)


class Found(NamedTuple):
    """One video on disk: `folder` is the `class_key` of the folder it lies in (empty: the root)."""

    folder: str
    path: str
    frames: bool


class Places(Protocol):
    """What tells where videos are."""

    root: Path

    def find(self, stems: Iterable[str], folder: str, others: Collection[str]) -> list[Found]:
        """Return the places of a video, the best first; empty where it is not there."""


class Catalogue:
    """The videos under a folder, by stem: one listing of every folder, and no question about single files.

    A video is a file with one of `VIDEO_SUFFIXES`, or a folder of frames: one that has the name of a wanted video, or
    that holds pictures named as frames are. Folders of frames are not read through.

    Parameters
    ----------
    root : Path
        Where to look, six folders deep; hidden ones are left out.
    wanted : collection of str
        Stems (as `key` gives them) that are videos where they are folders.
    key : callable
        What stems are compared by: `str.casefold` where spelling differs between copies, else the stem itself.

    Raises
    ------
    DataError
        A folder that cannot be listed.
    """

    def __init__(self, root: Path, *, wanted: Collection[str] = (), key: Callable[[str], str] = str) -> None:
        self.root = root
        self._key = key
        self._found: dict[str, list[Found]] = {}
        self.folders: dict[str, str] = {}
        """Names of folders that hold videos, by `class_key`."""
        pending = [(str(root), "", "", 0)]
        while pending:
            folder, name, above, depth = pending.pop()
            here = class_key(name) if depth else ""
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        stem, suffix = split_suffix(entry.name)
                        if suffix:
                            self._add(stem, Found(here, entry.path, False), name)
                        elif depth and _FRAME.fullmatch(entry.name):
                            self._add(name, Found(class_key(above) if depth > 1 else "", folder, True), above)
                            break
                        elif entry.is_dir():
                            if key(entry.name) in wanted:
                                self._add(entry.name, Found(here, entry.path, True), name)
                            elif depth < _DEPTH:
                                pending.append((entry.path, entry.name, name, depth + 1))
            except OSError as error:
                raise DataError(
                    f"the folder cannot be listed ({error.strerror}).",
                    remedy="Check that it exists and may be read.",
                    where=folder,
                    code="unreadable-folder",
                ) from error

    def __len__(self) -> int:
        """Videos of different names."""
        return len(self._found)

    def _add(self, stem: str, found: Found, folder: str) -> None:
        self._found.setdefault(self._key(stem), []).append(found)
        if found.folder:
            self.folders.setdefault(found.folder, folder)

    def find(self, stems: Iterable[str], folder: str, others: Collection[str]) -> list[Found]:
        """Return the places of a video, the best first; empty where it is not there.

        Parameters
        ----------
        stems : iterable of str
            Names it may have; the first that is there counts.
        folder : str
            Class it is listed under.
        others : collection of str
            `class_key` of every class: a video of this name in the folder of another class is not this one.
        """
        own = class_key(folder)
        for stem in stems:
            places = self._found.get(self._key(stem), [])
            fitting = [place for place in places if place.folder == own]
            fitting = fitting or [place for place in places if place.folder not in others]
            if fitting:
                return sorted(fitting, key=lambda place: (place.frames, place.path))
        return []

    def by_folder(self) -> list[tuple[str, str]]:
        """Return (folder, stem) of every video that lies in a folder below the root, sorted."""
        return sorted(
            {
                (self.folders[place.folder], split_suffix(os.path.basename(place.path))[0])
                for places in self._found.values()
                for place in places
                if place.folder
            }
        )


def split_suffix(name: str) -> tuple[str, str]:
    """Return a file name without its suffix, and the suffix in lower case; empty where it is none of a video."""
    dot = name.rfind(".")
    suffix = name[dot:].lower() if dot > 0 else ""
    return (name[:dot], suffix) if suffix in VIDEO_SUFFIXES else (name, "")


@lru_cache(maxsize=8192)
def class_key(name: str) -> str:
    """Return what names of classes are compared by: letters and digits alone, whatever stands between them."""
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a list with their numbers from 1: no blank ones, no ends of lines, no space around.

    Raises
    ------
    LabelsError
        A file that cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelsError(
            f"the list is not UTF-8 (byte {error.start}).",
            remedy="Save it as UTF-8.",
            where=path,
            code="bad-list",
        ) from error
    except OSError as error:
        raise LabelsError(
            f"the list cannot be read ({error.strerror}).",
            remedy="Check that it exists and may be read.",
            where=path,
            code="no-lists",
        ) from error
    # Not str.splitlines: it also ends lines at characters that names may hold (U+0085, U+2028).
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in lines if line]


def find_list_folder(root: Path, lists: Lists, *, usual: Sequence[str], pattern: str, what: str) -> Path:
    """Return the folder of the lists of a split.

    Parameters
    ----------
    root : Path
        Folder of the videos.
    lists : Lists
        A folder that holds them, itself or under a usual name, or a file in that folder; None: under `root` or beside
        it, where the folder has a usual name, or in `root` itself.
    usual : sequence of str
        Names such a folder has.
    pattern : str
        Regular expression that the name of one file in it must match.
    what : str
        What is looked for, in a person's words.

    Raises
    ------
    LabelsError
        None is there (code ``"no-lists"``).
    """
    if lists is None:
        places = [*(root / name for name in usual), root, *(root.resolve().parent / name for name in usual)]
    elif isinstance(lists, (str, Path)):
        given = Path(lists)
        given = given.parent if given.is_file() else given
        places = [given, *(given / name for name in usual)]
    else:
        raise LabelsError(
            f"{len(lists)} lists were given where one folder is asked for.",
            remedy=f"Give the folder that holds {what}.",
            code="no-lists",
        )
    wanted = re.compile(pattern)
    for place in places:
        if place.is_dir() and any(wanted.fullmatch(name) for name in os.listdir(place)):
            return place
    raise LabelsError(
        f"{what} were not found"
        + (f"; looked in {usual[0]} and the like, under it and beside it." if not lists else "."),
        remedy="Give the folder that holds them as lists.",
        where=root if lists is None else places[0],
        code="no-lists",
    )


def list_paths(root: Path, lists: Lists, *, usual: Sequence[str], pattern: str, what: str) -> list[Path]:
    """Return the files of the lists: those given, or those of a folder (see `find_list_folder`) that match.

    Raises
    ------
    LabelsError
        None is there, or one that was given is not.
    """
    if lists is not None:
        given = [Path(lists)] if isinstance(lists, (str, Path)) else [Path(path) for path in lists]
        if not (len(given) == 1 and given[0].is_dir()):
            for path in given:
                if not path.is_file():
                    raise LabelsError(
                        "there is no such list.",
                        remedy=f"Give the file, or the folder that holds {what}.",
                        where=path,
                        code="no-lists",
                    )
            return given
        lists = given[0]
    folder = find_list_folder(root, lists, usual=usual, pattern=pattern, what=what)
    return sorted(folder / name for name in os.listdir(folder) if re.fullmatch(pattern, name))


def name_on_disk(name: str) -> str:
    """Return a name that goes into a split; bytes that are no UTF-8 have no digest.

    Raises
    ------
    DataError
        The name of a file is not UTF-8.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the name of the video {name!r} is not UTF-8.",
            remedy="Rename it.",
            code="bad-name",
        ) from error
    return name
