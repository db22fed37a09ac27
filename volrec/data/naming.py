"""Paths and file names: what they say about studies and masks."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

__all__ = [
    "BIDS",
    "common_folder",
    "file_stem",
    "folder_of",
    "is_mask",
    "name_of",
    "natural",
    "nifti_names",
    "relative_path",
    "upwards",
    "without_mask_word",
]

MASK_FOLDERS = frozenset(
    (
        *("mask", "masks", "label", "labels", "labelstr", "labelsts", "labelsval", "seg", "segs", "segmentation"),
        *("segmentations", "annotation", "annotations", "gt", "groundtruth", "ground_truth"),
    )
)
MASK_WORDS = frozenset(("mask", "masks", "label", "labels", "seg", "dseg", "segmentation", "aseg", "gt", "groundtruth"))
BIDS = re.compile(r"(sub-[A-Za-z0-9]+)(?:_(ses-[A-Za-z0-9]+))?(?=_|$)")


def relative_path(path: str, root: Path) -> str:
    """Return `path` relative to the root with ``/``, or as it is where it lies elsewhere."""
    base = str(root).rstrip(os.sep) + os.sep
    inside = path[len(base) :] if path.startswith(base) else path
    return inside.replace(os.sep, "/")


def file_stem(name: str) -> str:
    """Return a file's name without ``.nii``, ``.nii.gz``, ``.nii.zip`` and the like."""
    stem = re.sub(r"\.(gz|zip|bz2|zst|xz)$", "", name, flags=re.IGNORECASE)
    return re.sub(r"\.(nii|hdr|img|dcm)$", "", stem, flags=re.IGNORECASE)


def natural(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts study 2 before study 10."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", text) if part)


def is_mask(path: str) -> bool:
    """Tell whether a file, by the names of its folders or its own, is a segmentation and no image."""
    *folders, name = path.split("/")
    if any(folder.lower() in MASK_FOLDERS for folder in folders):
        return True
    words = re.split(r"[^a-z0-9]+", file_stem(name).lower())
    return len(words) > 1 and bool({words[0], words[-1]} & MASK_WORDS)


def without_mask_word(name: str) -> str:
    """Return the name of the image that a mask of this name belongs to (``case-1_seg`` to ``case-1``)."""
    words = re.split(r"([^A-Za-z0-9]+)", name)
    if words[-1].lower() in MASK_WORDS:
        return "".join(words[:-2])
    return "".join(words[2:]) if words[0].lower() in MASK_WORDS else name


def nifti_names(paths: set[str]) -> tuple[Callable[[str], str], Literal["bids", "folder", "stem"]]:
    """Decide how NIfTI files become studies.

    Parameters
    ----------
    paths : set of str
        All image files, relative to the root.

    Returns
    -------
    callable
        Gives a path's study.
    str
        The rule: ``"bids"`` (``sub-…_ses-…`` in every name), ``"folder"`` (a folder is a study), ``"stem"`` (the file
        name is).
    """
    stems = Counter(file_stem(name_of(path)) for path in paths)
    if paths and all(BIDS.match(stem) for stem in stems):
        return _bids_name, "bids"
    folders = Counter(folder_of(path) for path in paths)
    repeated = len(stems) < len(paths)
    # sub-1/sub-1_t1, sub-1/sub-1_t2, sub-2/…: several files that all carry their folder's name.
    prefixed = (
        1 < len(folders) < len(paths)
        and "" not in folders
        and all(file_stem(name_of(path)).lower().startswith(name_of(folder_of(path)).lower()) for path in paths)
    )
    # sub-1/t1, sub-1/t2, sub-2/t1: folders are studies; t1/sub-1, t1/sub-2, t2/sub-1: file names are.
    if prefixed or (repeated and len(folders) >= len(stems)):
        alike = Counter(name_of(folder) for folder in folders)

        def by_folder(path: str) -> str:
            folder = folder_of(path)
            if not folder:
                return file_stem(name_of(path))
            return name_of(folder) if alike[name_of(folder)] == 1 else folder

        return by_folder, "folder"
    return (lambda path: file_stem(name_of(path))), "stem"


def common_folder(folders: Iterable[str]) -> str:
    """Return the deepest folder that holds all of these; ``""`` is the root."""
    parts = [folder.split("/") if folder else [] for folder in folders]
    common: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return "/".join(common)


def upwards(folder: str) -> Iterator[str]:
    """Yield a folder and all above it, the root (``""``) last."""
    yield folder
    while folder:
        folder = folder_of(folder)
        yield folder


def folder_of(path: str) -> str:
    """Return the folder part of a relative path, ``""`` at the root."""
    return path.rpartition("/")[0]


def name_of(path: str) -> str:
    """Return the last part of a relative path."""
    return path.rpartition("/")[2]


def _bids_name(path: str) -> str:
    match = BIDS.match(file_stem(name_of(path)))
    if match is None:  # a mask beside BIDS images
        return file_stem(name_of(path))
    return "_".join(part for part in match.groups() if part)
