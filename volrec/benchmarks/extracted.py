"""A video that was extracted before: frames and flow as pictures in a folder, and what made them.

==========================  =======================================================================================
file                        holds
==========================  =======================================================================================
``img_00001.jpg`` ..        frames, numbered from 1
``flow_x_00001.jpg``,       displacement from that frame to the next, one fewer than frames: 8 bits, 128 is none
``flow_y_00001.jpg`` ..
``warp_x_00001.jpg`` ..     the same without the motion of the camera
``extraction.json``         decoder, sizes, quality, estimator with its settings, bound, source; written last
==========================  =======================================================================================

It is the layout of TSN (L. Wang et al., ECCV 2016) and the tools around it. What other tools left is read too, without
``extraction.json``, in the layouts of `volrec.benchmarks.extracted_of_others`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volrec.benchmarks.extracted_of_others import ForeignVideo, find_extracted, scan_video
from volrec.benchmarks.sets.common import Video
from volrec.errors import DataError
from volrec.io.frame_folders import load_picture
from volrec.transforms.flow_fields import from_pictures

__all__ = [
    "FACTS",
    "FORMAT",
    "PARTS",
    "ExtractedVideo",
    "extracted_parts",
    "find_extracted",
    "read_facts",
    "to_pictures",
]

FACTS = "extraction.json"
FORMAT = 1
PARTS: dict[str, tuple[str, ...]] = {"rgb": ("img",), "flow": ("flow_x", "flow_y"), "warped": ("warp_x", "warp_y")}
"""What can be extracted, and how its files begin."""


class ExtractedVideo:
    """An extracted video, read frame by frame.

    Parameters
    ----------
    folder : path or str
        Of one video, as `find_extracted` finds it.
    bound : float, optional
        Pixels that the flow was clipped to, where the folder does not say; 20 is taken where it is not given, and said
        in the facts.

    Attributes
    ----------
    folder : Path
    facts : dict
        Of ``extraction.json``; what can be told without one: ``origin`` "other tools", ``frames``, ``size``, the parts
        that are there, and ``notes``, a list of sentences.

    Raises
    ------
    DataError
        Where the folder is none, its extraction did not end, or its pictures do not go together.
    """

    def __init__(self, folder: Path | str, *, bound: float | None = None) -> None:
        self.folder = Path(folder)
        self._foreign: ForeignVideo | None = None
        facts = read_facts(self.folder)
        if facts is None and self.folder.is_dir() and not (self.folder / FACTS).exists():
            self._foreign = scan_video(self.folder)
            facts = self._foreign.describe(bound=bound) if self._foreign else None
        if facts is None:
            raise DataError(
                f"the folder has no {FACTS} that can be read, nor pictures of another tool.",
                remedy="Extract the video again; what is complete is skipped.",
                where=self.folder,
                code="extraction",
            )
        self.facts = facts

    @property
    def length(self) -> int:
        """Number of frames; there is one field of flow fewer."""
        return int(self.facts["frames"])

    def size_of(self, part: str) -> tuple[int, int]:
        """Height and width of the pictures of a part; those of other tools may differ from part to part."""
        height, width = self.facts.get(part, {}).get("size", self.facts["size"])
        return int(height), int(width)

    def frames(self, indices: Iterable[int]) -> np.ndarray:
        """Read frames: uint8 ``(N, H, W, 3)`` RGB, counted from 0, in the order asked for.

        Raises
        ------
        DataError
            Where they were not extracted, a number is out of range, or a picture cannot be read.
        """
        numbers = self._check(indices, "rgb", self.length)
        pictures = np.empty((len(numbers), *self.size_of("rgb"), 3), dtype=np.uint8)
        self._fill(numbers, "rgb", [pictures], "RGB")
        return pictures

    def flow(self, indices: Iterable[int], *, stream: str = "flow") -> np.ndarray:
        """Read fields of flow.

        Parameters
        ----------
        indices : iterable of int
            Of the frame that the field starts from, 0 to ``length - 2``.
        stream : {"flow", "warped"}
            With or without the motion of the camera.

        Returns
        -------
        numpy.ndarray
            float32 ``(N, 2, H, W)``, (x, y) in pixels of the extracted size.

        Raises
        ------
        DataError
            As `frames`.
        """
        numbers = self._check(indices, stream, self.length - 1)
        fields = np.empty((len(numbers), 2, *self.size_of(stream)), dtype=np.uint8)
        self._fill(numbers, stream, [fields[:, 0], fields[:, 1]], "L")
        return from_pictures(fields, bound=self.facts[stream]["bound"])

    def _check(self, indices: Iterable[int], part: str, count: int) -> list[int]:
        if part not in PARTS or part not in self.facts:
            there = ", ".join(name for name in PARTS if name in self.facts)
            raise DataError(
                f"{part!r} was not extracted, only {there}.",
                remedy="Extract it too: what is there stays."
                if self._foreign is None
                else "Extract it with volrec to another folder; what another tool left is not added to.",
                where=self.folder,
                code="extraction-part",
            )
        numbers = [int(index) for index in indices]
        for number in numbers:
            if not 0 <= number < count:
                raise DataError(
                    f"number {number} of {part!r} is asked for, of {count}.",
                    remedy="They are numbered from 0; there is one field of flow fewer than frames.",
                    where=self.folder,
                    code="video-index",
                )
        return numbers

    def _fill(self, numbers: list[int], part: str, targets: list[np.ndarray], mode: str) -> None:
        height, width = self.size_of(part)
        for place, number in enumerate(numbers):
            for target, path in zip(targets, self._files(part, number), strict=True):
                picture = load_picture(path, mode=mode)
                if picture.shape[:2] != (height, width):
                    raise DataError(
                        f"the picture is {picture.shape[1]} x {picture.shape[0]} pixels, not {width} x {height}.",
                        remedy="Extract the video again.",
                        where=path,
                        code="video-size",
                    )
                target[place] = picture

    def _files(self, part: str, number: int) -> Sequence[Path]:
        """Return the pictures of a frame, or of x and y of a field, counted from 0."""
        if self._foreign is None:
            return [self.folder / f"{prefix}_{number + 1:05d}.jpg" for prefix in PARTS[part]]
        return [self._foreign.frames[number]] if part == "rgb" else self._foreign.fields[part][number]


def extracted_parts(root: Path | str, video: Video) -> set[str]:
    """Tell which of `PARTS` are there, whole, of a video below `root`."""
    folder = find_extracted(root, video)
    if folder is None:
        return set()
    try:
        return set(PARTS) & set(ExtractedVideo(folder).facts)
    except DataError:
        return set()


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Return what ``extraction.json`` says, or None where it is missing, broken or of another format."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("format") == FORMAT else None


def to_pictures(flow: np.ndarray, *, bound: float) -> np.ndarray:
    """Store displacements in 8 bits, as `volrec.transforms.from_pictures` reads them.

    Parameters
    ----------
    flow : numpy.ndarray
        Pixels, any shape.
    bound : float
        Displacements beyond are clipped to it.

    Returns
    -------
    numpy.ndarray
        uint8: ``round(clip(d, -bound, bound) * 127.5 / bound + 128)``, at most 255. An error of half a step,
        ``bound / 255``, and of up to a whole step at ``bound`` itself.
    """
    scaled = np.clip(np.asarray(flow, dtype=np.float64), -bound, bound) * (127.5 / bound) + 128
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
