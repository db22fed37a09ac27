"""Headers of every file of a tree, read once: in parallel where they are many, cached where nothing changed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from volrec.data.header_cache import CHUNK, HeaderCache, cache_folder, decode_scans, encode_scans
from volrec.data.walk import Tree, walk
from volrec.errors import DataError, Problem
from volrec.io import FileScan, scan_file
from volrec.parallel import available_cpus, map_processes
from volrec.progress import progress

__all__ = ["Scan", "scan_tree"]

log = logging.getLogger(__name__)

FEW = 500
"""So few unread files are read by this process: a pool of processes takes longer to start."""
SOON = 4.0
"""Seconds of reading that are left to this process alone, as measured on the first files."""


@dataclass(frozen=True)
class Scan:
    """The headers of a tree.

    Attributes
    ----------
    tree : Tree
        Its files.
    files : dict
        What each file holds, from path relative to the root, in the order of the paths.
    problems : list of Problem
        Files and folders that cannot be read.
    read, cached : int
        Files that were opened, and files known from an earlier scan.
    """

    tree: Tree
    files: dict[str, FileScan]
    problems: list[Problem] = field(default_factory=list)
    read: int = 0
    cached: int = 0


def scan_tree(folder: Path | str, *, cache: Path | str | None = None, jobs: int = 0, refresh: bool = False) -> Scan:
    """Read the header of every file below a folder.

    Parameters
    ----------
    folder : path or str
        Any tree of files.
    cache : path, optional
        Where headers are kept; see `cache_folder`.
    jobs : int
        Processes; 0 takes the processors at hand.
    refresh : bool
        Read every header again.

    Returns
    -------
    Scan
        Everything found. A file whose size and modification time are those of an earlier scan was not opened.

    Raises
    ------
    DataError
        There is no such folder, or it cannot be listed.
    """
    tree = walk(folder, skip=cache_folder(cache))
    kept = HeaderCache(tree.root, folder=cache)
    # Even a fresh scan looks the cache over: what it replaces has to go.
    known = kept.load({} if refresh else tree.files)
    new = [relative for relative in tree.files if relative not in known]
    problems = list(tree.problems)
    read: dict[str, FileScan] = {}
    with kept.writer() as out:
        for payload in _read(tree.root, new, jobs or available_cpus(), problems):
            out.add(payload)
            read.update(decode_scans(payload, tree.root))
    cached = len(known)
    known.update(read)
    files = {relative: known[relative] for relative in tree.files if relative in known}
    kept.tidy(files, added=len(read), replace=refresh)
    problems.extend(scan.problem for scan in files.values() if scan.problem is not None)
    return Scan(tree, files, problems, read=len(read), cached=cached)


def _read(root: Path, relatives: Sequence[str], jobs: int, problems: list[Problem]) -> Iterator[str]:
    """Yield encoded scans of all files; those that cost a worker its life end among the problems."""
    tasks = [_Task(str(root), tuple(relatives[start : start + CHUNK])) for start in range(0, len(relatives), CHUNK)]
    with progress("reading headers", len(relatives)) as bar:
        start = time.monotonic()
        done = 0
        for number, task in enumerate(tasks, start=1):
            yield scan_chunk(task)
            done += len(task.relatives)
            bar.advance(len(task.relatives))
            spent, left = time.monotonic() - start, len(relatives) - done
            # A fast disk is through before a pool is up; a slow one gains from it with far fewer files.
            if jobs > 1 and left > FEW and spent > 0.2 and spent / done * left > SOON:
                tasks = tasks[number:]
                break
        else:
            return
    dead: list[str] = []
    for outcome in map_processes(scan_chunk, tasks, jobs=jobs, description="reading headers", name=str):
        if outcome.result is not None:
            yield outcome.result
        elif len(outcome.item.relatives) > 1:
            dead.extend(outcome.item.relatives)
        elif isinstance(outcome.error, DataError):
            problems.append(Problem.of(outcome.error, where=outcome.item.relatives[0]))
    if not dead:
        return
    # Some file of these brought its process down: each is tried in a process of its own, and the culprit is named.
    for outcome in map_processes(
        scan_chunk,
        [_Task(str(root), (relative,)) for relative in dead],
        jobs=max(2, jobs),
        description="trying again",
        name=str,
    ):
        if outcome.result is not None:
            yield outcome.result
        elif isinstance(outcome.error, DataError):
            problems.append(Problem.of(outcome.error, where=outcome.item.relatives[0]))


@dataclass(frozen=True)
class _Task:
    root: str
    relatives: tuple[str, ...]

    def __str__(self) -> str:
        first = self.relatives[0]
        return first if len(self.relatives) == 1 else f"{first} and {len(self.relatives) - 1} files after it"


def scan_chunk(task: _Task) -> str:
    """Scan some files and return them as a line of the cache: small to send between processes, ready to be written."""
    return encode_scans([(relative, _scan(task.root, relative)) for relative in task.relatives])


def _scan(root: str, relative: str) -> FileScan:
    path = os.path.join(root, relative)
    try:
        found = scan_file(path)
    except Exception as error:  # one bad file never stops a folder
        log.debug("%s", path, exc_info=True)
        problem = Problem(
            relative,
            "unexpected",
            f"its header cannot be read ({type(error).__name__}: {error}).",
            "Open it in a viewer to see whether it is sound; if it is, please report this.",
        )
        return FileScan(path, 0, 0, "other", (), problem)
    if found.problem is not None and found.problem.where != relative:
        found = replace(found, problem=replace(found.problem, where=relative))
    return found
