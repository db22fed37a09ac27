"""What the context audit shows a network of a study: which of its slices, in which order, and nothing else changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from volrec.data.entries import StoredVolume

__all__ = [
    "AS_IS",
    "FIXED",
    "KINDS",
    "MIDDLE",
    "SIZES",
    "Outside",
    "Window",
    "own_slices",
    "rearranged",
    "show",
    "show_window",
    "spacing_along",
    "window_places",
    "window_sizes",
]

Outside = Literal["cut", "edge", "blank"]
"""What stands in the place of slices outside a window (`show_window`)."""

AS_IS = "as it is"
MIDDLE = "middle slice"
SIZES = (1, 3, 5, 9, 17, 33, 65, 129, 257, 513)
"""Slices of the growing windows: each reaches about twice as far around its middle as the one before."""

KINDS = {
    AS_IS: "whole",
    "shuffled": "order",
    "reversed": "order",
    "every second slice": "thinned",
    "first half": "part",
    "second half": "part",
    MIDDLE: "slice",
}
"""Conditions that are laid down by the number of slices alone, and what each of them changes."""

FIXED = tuple(KINDS)


@dataclass(frozen=True)
class Window:
    """Neighbouring slices ``first`` … ``first + slices - 1`` of a stored study, from 0."""

    first: int
    slices: int


def own_slices(volume: StoredVolume) -> tuple[int, int]:
    """Return first and one past the last slice that are the study's own: the rest is padding of the canvas."""
    count = volume.shape[0]
    shape, affine = volume.meta.get("source_shape"), volume.meta.get("source_affine")
    if shape is None or affine is None:
        return 0, count
    back = np.linalg.inv(np.asarray(affine, dtype=np.float64)) @ volume.affine
    places = np.tile([0.0, *((np.asarray(volume.shape[1:]) - 1) / 2), 1.0], (count, 1))
    places[:, 0] = np.arange(count)
    along = places @ back[0]
    own = np.flatnonzero((along > -0.5 - 1e-6) & (along < shape[0] - 0.5 + 1e-6))
    return (int(own[0]), int(own[-1]) + 1) if own.size else (0, count)


def spacing_along(volume: StoredVolume) -> float:
    """Return mm from one slice of a stored study to the next."""
    return float(np.linalg.norm(volume.affine[:3, 0]))


def rearranged(
    name: str, count: int, own: tuple[int, int], *, study: str = "", seed: int = 0, draw: int = 0
) -> np.ndarray:
    """Return which slice stands at each place of a study whose length is kept.

    Padding of the canvas stays where it is; only the study's own slices change places.

    Parameters
    ----------
    name : str
        ``"as it is"``, ``"shuffled"``, ``"reversed"`` or ``"every second slice"`` (each one that remains takes the
        place of the next one too).
    count : int
        Slices of the stored study (T).
    own : tuple of int
        As of `own_slices`.
    study : str
        Its name: with `seed` and `draw` it decides the permutation, whatever other studies are audited.
    seed, draw : int
        Of the permutation.

    Returns
    -------
    ndarray
        int64 (T,).
    """
    places = np.arange(count, dtype=np.int64)
    low, high = own
    inside = places[low:high].copy()
    if name == "shuffled":
        digest = hashlib.sha256(study.encode()).digest()[:8]
        rng = np.random.default_rng([seed, draw, int.from_bytes(digest, "little")])
        inside = rng.permutation(inside)
    elif name == "reversed":
        inside = inside[::-1]
    elif name == "every second slice":
        inside = low + 2 * ((inside - low) // 2)
    places[low:high] = inside
    return places


def window_sizes(own: int) -> list[int]:
    """Return the window lengths for a study of `own` slices: one slice, and those of `SIZES` shorter than the study."""
    return [size for size in SIZES if size == 1 or size < own]


def window_places(own: int, size: int, *, most: int) -> list[int]:
    """Return where windows of `size` slices begin in a study of `own` slices.

    Neighbours are a quarter of their length apart, so that whatever is three quarters as long as a window lies wholly
    in one; where that makes more than `most` windows, `most` of them, evenly spread. The first and the last place are
    among them, and of single slices the middle one.

    Returns
    -------
    list of int
        From 0, increasing.
    """
    slack = max(0, own - size)
    count = min(max(1, most), -(-slack // max(1, size // 4)) + 1)
    found = set(np.rint(np.linspace(0, slack, count)).astype(int).tolist()) if count > 1 else {slack // 2}
    if size == 1:
        found.add(own // 2)
    return sorted(found)


def show(volume: StoredVolume, array: np.ndarray, places: Sequence[int] | np.ndarray) -> StoredVolume:
    """Return a study with other slices in its places.

    Parameters
    ----------
    volume : StoredVolume
        The study.
    array : ndarray
        (T, H, W), its slices.
    places : sequence of int
        (T',) slice that stands at each place; -1: a slice of the smallest value of the study, as padding of the canvas.

    Returns
    -------
    StoredVolume
        The quantiles stay those of the study, so that intensities are read as before. Displacement fields are left
        out: they are another thing between other slices, and the predictor computes them anew.
    """
    wanted = np.asarray(places, dtype=np.int64)
    shown = array[wanted]
    if (wanted < 0).any():
        shown[wanted < 0] = np.asarray(volume.quantiles[0]).astype(array.dtype)
    return replace(volume, array=shown, fields=None)


def show_window(volume: StoredVolume, array: np.ndarray, window: Window, *, outside: Outside) -> StoredVolume:
    """Return what is left of a study when all slices outside a window are taken away.

    ``cut``
        A study of these slices and no others, read by the rule for short studies: a clip holds them in its middle and
        repeats the first and the last one to its ends (clips spread over a study repeat each slice). Every clip has
        its usual length, and none is without a slice of the window, which would dilute what the window says.
    ``edge``
        A study as long as before, the first and the last slice of the window repeated to its ends.
    ``blank``
        A study as long as before, and nothing (its smallest value) outside the window.
    """
    last = window.first + window.slices - 1
    if outside == "cut":
        return show(volume, array, np.arange(window.first, last + 1))
    places = np.arange(volume.shape[0])
    if outside == "edge":
        return show(volume, array, np.clip(places, window.first, last))
    return show(volume, array, np.where((places >= window.first) & (places <= last), places, -1))
