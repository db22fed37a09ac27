"""Every file of a tree with its size and time, without opening one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from volrec.errors import DataError, Problem
from volrec.progress import progress

__all__ = ["Tree", "walk"]


@dataclass(frozen=True)
class Tree:
    """What a walk over a folder found.

    Attributes
    ----------
    root : Path
        Folder, resolved.
    files : dict
        From path relative to the root, with ``/``, to (bytes, modification time in ns); sorted by path.
    problems : list of Problem
        Folders and links that could not be followed.
    hidden : int
        Number of hidden files and folders that were passed over (name begins with a dot, ``__MACOSX``).
    """

    root: Path
    files: dict[str, tuple[int, int]]
    problems: list[Problem] = field(default_factory=list)
    hidden: int = 0


def walk(folder: Path | str, *, skip: Path | None = None) -> Tree:
    """List every regular file below a folder; symbolic links are followed, each real file and folder once.

    Parameters
    ----------
    folder : path or str
        A folder, or a single file (the tree then holds that file alone).
    skip : path, optional
        A folder that is left out (volrec's own cache, where it lies inside).

    Returns
    -------
    Tree
        Files and what could not be followed.

    Raises
    ------
    DataError
        There is no such folder or file, or it cannot be listed.
    """
    given = Path(folder).expanduser()
    try:
        root = given.resolve(strict=True)
        about = root.stat()
    except FileNotFoundError:
        raise _missing(given) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise DataError(
            f"it cannot be opened ({_why(error)}).",
            remedy="Check the path and its permissions.",
            where=given,
            code="unreadable-folder",
        ) from None
    if stat.S_ISREG(about.st_mode):
        return Tree(root.parent, {root.name: (about.st_size, about.st_mtime_ns)})
    if not stat.S_ISDIR(about.st_mode):
        raise DataError(
            "it is neither a folder nor a file.",
            remedy="Give the folder of your studies.",
            where=given,
            code="no-folder",
        )
    walker = _Walker(str(root), None if skip is None else os.path.realpath(skip))
    with progress("listing files") as bar:
        for _ in walker.run():
            bar.update(completed=len(walker.files))
    return Tree(root, dict(sorted(walker.files.items())), walker.problems, walker.hidden)


class _Walker:
    """The state of one walk: real folders first, then links, so that a file is known by its real place."""

    def __init__(self, root: str, skip: str | None) -> None:
        self.root = root
        self.skip = skip
        self.files: dict[str, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self.hidden = 0
        self.folders: list[tuple[str, str]] = [(root, "")]
        self.links: list[tuple[str, str]] = []
        self.seen: set[tuple[int, int]] = set()

    def run(self) -> Iterator[None]:
        """Walk; yield after every folder."""
        yield from self._descend()
        targets: set[str] = set()
        while self.links:
            links, self.links = sorted(self.links), []
            for path, relative in links:
                self._follow(path, relative, targets)
                yield from self._descend()

    def _descend(self) -> Iterator[None]:
        while self.folders:
            self._list(*self.folders.pop())
            yield

    def _list(self, path: str, relative: str) -> None:
        try:
            about = os.stat(path)
            identity = (about.st_dev, about.st_ino)
            if identity in self.seen and about.st_ino:
                return
            self.seen.add(identity)
            with os.scandir(path) as entries:
                for entry in entries:
                    self._take(entry, f"{relative}/{entry.name}" if relative else entry.name)
        except OSError as error:
            if not relative:
                raise DataError(
                    f"it cannot be listed ({_why(error)}).",
                    remedy="Check its permissions.",
                    where=path,
                    code="unreadable-folder",
                ) from None
            self.problems.append(
                Problem(
                    relative,
                    "unreadable-folder",
                    f"it cannot be listed ({_why(error)}).",
                    "Check its permissions.",
                )
            )

    def _take(self, entry: os.DirEntry[str], relative: str) -> None:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            self.hidden += 1
            return
        try:
            if entry.is_symlink():
                self.links.append((entry.path, relative))
            elif entry.is_dir(follow_symlinks=False):
                if entry.path != self.skip:
                    self.folders.append((entry.path, relative))
            else:
                self._file(entry.stat(follow_symlinks=False), relative)
        except OSError as error:  # it went away between listing and looking
            self.problems.append(_unreadable(relative, error))

    def _file(self, about: os.stat_result, relative: str) -> None:
        if stat.S_ISREG(about.st_mode):
            self.files[relative] = (about.st_size, about.st_mtime_ns)
        else:  # a pipe would block whoever opens it
            self.problems.append(
                Problem(
                    relative,
                    "special-file",
                    "it is a pipe, socket or device, not a file.",
                    "Move it elsewhere.",
                    fatal=False,
                )
            )

    def _follow(self, path: str, relative: str, targets: set[str]) -> None:
        try:
            about = os.stat(path)
            target = os.path.realpath(path)
        except OSError as error:
            self.problems.append(
                Problem(
                    relative,
                    "broken-link",
                    f"it is a symbolic link that leads to nothing ({_why(error)}).",
                    "Fetch or restore its target, or delete the link.",
                )
            )
            return
        if stat.S_ISDIR(about.st_mode):
            if (about.st_dev, about.st_ino) in self.seen or _is_below(self.root, target):
                self.problems.append(
                    Problem(
                        relative,
                        "repeated-link",
                        "it is a symbolic link to a folder that is read already, or that holds the one scanned.",
                        "Nothing is lost; delete the link to be rid of this line.",
                        fatal=False,
                    )
                )
            elif target != self.skip:
                self.folders.append((path, relative))
            return
        inside = os.path.relpath(target, self.root).replace(os.sep, "/") if _is_below(target, self.root) else None
        if inside in self.files or target in targets:  # the same bytes twice would read as duplicate slices
            return
        targets.add(target)
        self._file(about, relative)


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _unreadable(relative: str, error: OSError) -> Problem:
    return Problem(relative, "unreadable", f"it cannot be read ({_why(error)}).", "Check its permissions.")


def _why(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _missing(folder: Path) -> DataError:
    parent = next((parent for parent in folder.absolute().parents if parent.is_dir()), None)
    seen = "" if parent is None else f" (the last folder on its way that exists is {parent})"
    return DataError(
        f"there is no such folder or file{seen}.", remedy="Check the path.", where=folder, code="missing-folder"
    )
