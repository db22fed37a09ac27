"""The anatomy of a phantom study: which discs each slice shows, and the HU image that they make.

Nodule task: how two classes can differ in nothing but context
---------------------------------------------------------------
A lesion is a stack of discs at one place. Let ``R`` be a *rising half*: ``m`` consecutive discs whose radii grow as
those of a sphere from its pole to its equator, and ``F`` the same half upside down (*falling*). A start slice ``s`` and
a fair coin are drawn without looking at the class. Then

===============  ====================  ====================
coin             sphere (positive)     vessel (negative)
===============  ====================  ====================
0                ``R F`` from ``s``    ``R R`` from ``s``
1                ``R F`` from ``s+m``  ``F F`` from ``s+m``
===============  ====================  ====================

The vessel tapers twice; the sphere is round. Both show the same ``2m`` discs at the same place in as many slices, so
the slices of a study, shuffled, have the same distribution in both classes, and so has each slice by its number:
given ``s``, a rising half lies at ``s`` with probability 1/2 and at ``s+m`` with probability 1/2, a falling half at
``s+m`` and at ``s+2m``, in either class. Whoever looks at one slice at a time, or at any set of slices without their
order, can do no better than chance; the order tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

__all__ = ["Anatomy", "Stack", "draw_anatomy", "render", "scanned"]

AIR, FAT, TISSUE = -1000.0, -100.0, 40.0  # HU
FIELD_OF_VIEW = 320.0  # mm
MARGIN = 8.0  # mm of tissue left between structures, and between them and the skin
EQUATOR = 0.92  # the outermost disc of a sphere lies within this share of its radius, so that it can still be seen


@dataclass(frozen=True)
class Stack:
    """Discs in consecutive slices: a tube, a sphere, a tapering vessel or a bleed.

    Attributes
    ----------
    kind : str
        ``"tube"``, ``"sphere"``, ``"taper"`` or ``"blob"``.
    slices : numpy.ndarray
        Slice indices ``(K,)``, canonical order (0 is the lowest slice).
    h, w, radius : numpy.ndarray
        Centres and radii ``(K,)`` in mm from the image centre, in the plane of the slice.
    contrast : float
        HU above the surrounding tissue.
    """

    kind: Literal["tube", "sphere", "taper", "blob"]
    slices: np.ndarray
    h: np.ndarray
    w: np.ndarray
    radius: np.ndarray
    contrast: float


@dataclass(frozen=True)
class Anatomy:
    """What a phantom study truly shows.

    Attributes
    ----------
    positive : bool
        Label of the study.
    shape : tuple of int
        ``(T, H, W)``.
    spacing : tuple of float
        ``(t, h, w)`` mm; ``t`` is the distance of neighbouring slice planes.
    tilt : float
        Gantry tilt in degrees.
    semi_axes : tuple of float
        Half height and half width of the body, mm.
    organs : numpy.ndarray
        ``(N, 5)``: centre h, w and semi-axes h, w in mm, and HU above tissue; the same in every slice.
    stacks : tuple of Stack
        Vessels and lesions.
    """

    positive: bool
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    tilt: float
    semi_axes: tuple[float, float]
    organs: np.ndarray
    stacks: tuple[Stack, ...]

    @property
    def table_step(self) -> float:
        """Movement of the table between two slices, mm: more than their distance if the gantry is tilted."""
        return self.spacing[0] / float(np.cos(np.radians(self.tilt)))

    def discs(self, *kinds: str) -> np.ndarray:
        """Return the true discs ``(N, 5)``: slice, h and w of the centre and radius in pixels, contrast in HU."""
        pixel = self.spacing[1]
        middle = (self.shape[1] - 1) / 2, (self.shape[2] - 1) / 2
        rows = [
            np.column_stack(
                (
                    stack.slices,
                    stack.h / pixel + middle[0],
                    stack.w / pixel + middle[1],
                    stack.radius / pixel,
                    np.full(len(stack.slices), stack.contrast),
                )
            )
            for stack in self.stacks
            if not kinds or stack.kind in kinds
        ]
        return np.concatenate(rows) if rows else np.empty((0, 5))

    def slice_labels(self) -> np.ndarray:
        """Return ``(T,)`` int: 1 where the slice shows part of what makes the study positive."""
        labels = np.zeros(self.shape[0], dtype=np.int64)
        for stack in self.stacks:
            if stack.kind in ("sphere", "blob"):
                labels[stack.slices] = 1
        return labels


def draw_anatomy(
    rng: np.random.Generator,
    positive: bool,
    *,
    task: Literal["nodule", "bleed"],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    tilt: float = 0.0,
) -> Anatomy:
    """Draw one study.

    Parameters
    ----------
    rng : numpy.random.Generator
        Every number is drawn before the class is looked at: the same state gives two studies that differ only in what
        the class means.
    positive : bool
        Class of the study.
    task : {"nodule", "bleed"}
        Sphere against tapering vessel, or a bright blob against none.
    shape : tuple of int
        ``(T, H, W)``; at least 12 slices.
    spacing : tuple of float
        ``(t, h, w)`` mm.
    tilt : float
        Gantry tilt in degrees.
    """
    slices = shape[0]
    body = tuple(FIELD_OF_VIEW * share * rng.uniform(0.95, 1.05) for share in (0.33, 0.42))
    organs = _draw_organs(rng, body)
    vessel_contrast = rng.uniform(240.0, 300.0)

    if task == "nodule":
        lesion, path, clearance = _draw_nodule(rng, positive, slices, spacing[0], tilt, body, vessel_contrast)
        radii = (6.0, 12.0)
    else:
        lesion, path, clearance = _draw_bleed(rng, slices, spacing[0], body)
        radii = (5.0, 8.0)
    tubes = _draw_tubes(rng, slices, spacing[0], body, radii, vessel_contrast, (path, clearance))
    shown = (*tubes, *lesion) if positive or task == "nodule" else tubes
    return Anatomy(positive, shape, spacing, tilt, (body[0], body[1]), organs, tuple(shown))


def render(anatomy: Anatomy, rng: np.random.Generator, *, noise: float = 20.0, blur: float = 0.6) -> np.ndarray:
    """Make the image ``(T, H, W)`` float32 in HU.

    Parameters
    ----------
    anatomy : Anatomy
        What is shown.
    rng : numpy.random.Generator
        Draws the noise, independently for every voxel before it is blurred a little.
    noise : float
        Standard deviation of the final noise, HU.
    blur : float
        Standard deviation of the in-plane point spread, pixels.
    """
    slices, height, width = anatomy.shape
    pixel = anatomy.spacing[1]
    h = ((np.arange(height) - (height - 1) / 2) * pixel).astype(np.float32)[:, None]
    w = ((np.arange(width) - (width - 1) / 2) * pixel).astype(np.float32)[None, :]

    ground = np.full((height, width), AIR, dtype=np.float32)
    for inset, value in ((0.0, FAT), (MARGIN, TISSUE)):
        inside = _ellipse(h, w, 0.0, 0.0, anatomy.semi_axes[0] - inset, anatomy.semi_axes[1] - inset, pixel)
        ground += inside * (value - ground)
    for centre_h, centre_w, semi_h, semi_w, contrast in anatomy.organs:
        ground += _ellipse(h, w, centre_h, centre_w, semi_h, semi_w, pixel) * np.float32(contrast)

    bright = np.zeros((slices, height, width), dtype=np.float32)
    for stack in anatomy.stacks:
        for index, centre_h, centre_w, radius in zip(stack.slices, stack.h, stack.w, stack.radius, strict=True):
            rows, columns = (_reach(axis.ravel(), at, radius + pixel) for axis, at in ((h, centre_h), (w, centre_w)))
            distance = np.hypot(h[rows] - np.float32(centre_h), w[:, columns] - np.float32(centre_w))
            cover = np.clip((radius - distance) / pixel + 0.5, 0, 1)
            part = bright[index, rows, columns]
            np.maximum(part, cover * np.float32(stack.contrast), out=part)

    bright += ground
    return scanned(bright, rng, noise=noise, blur=blur)


def scanned(image: np.ndarray, rng: np.random.Generator, *, noise: float, blur: float) -> np.ndarray:
    """Return what a scanner makes of ``(T, H, W)`` float32 in HU: blurred in plane, with noise (as for `render`)."""
    image = gaussian_filter(image, (0, blur, blur))
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    grain = gaussian_filter(grain, (0, 0.5, 0.5))  # reconstruction correlates neighbouring pixels
    image += grain * np.float32(noise / _GRAIN)
    return image


# Standard deviation that white noise of variance 1 keeps under the blur of the grain (sum of squared weights).
_GRAIN = float(np.sqrt(np.square(gaussian_filter(np.pad([[1.0]], 8), 0.5)).sum()))


def _ellipse(
    h: np.ndarray, w: np.ndarray, centre_h: float, centre_w: float, semi_h: float, semi_w: float, pixel: float
) -> np.ndarray:
    """Share of each pixel inside an ellipse, its edge about one pixel wide."""
    reach = np.hypot((h - np.float32(centre_h)) / np.float32(semi_h), (w - np.float32(centre_w)) / np.float32(semi_w))
    return np.clip((1 - reach) * np.float32(min(semi_h, semi_w) / pixel) + 0.5, 0, 1)


def _reach(axis: np.ndarray, centre: float, radius: float) -> slice:
    """Return the part of a growing axis that lies within `radius` of `centre`."""
    return slice(*np.searchsorted(axis, (centre - radius, centre + radius)).tolist())


def _draw_organs(rng: np.random.Generator, body: tuple[float, ...]) -> np.ndarray:
    count = 4
    centres = np.column_stack(_within(rng, body, 0.55, count))
    sizes = rng.uniform(0.12, 0.32, (count, 2)) * min(body)
    return np.column_stack((centres, sizes, rng.uniform(-30, 30, count)))


def _draw_nodule(
    rng: np.random.Generator,
    positive: bool,
    slices: int,
    step: float,
    tilt: float,
    body: tuple[float, ...],
    contrast: float,
) -> tuple[tuple[Stack, ...], np.ndarray, float]:
    # 3 m slices are needed (s to s + 3 m): the radius is drawn so that they leave at least two starts.
    largest = min(50.0, 0.47 * min(body), (slices - 2) / 3 * step / EQUATOR)
    radius = rng.uniform(0.7 * largest, largest)
    half = max(2, int(EQUATOR * radius / step + 0.5))
    start = int(rng.integers(0, slices - 3 * half + 1))
    late = bool(rng.random() < 0.5)
    centre_h, centre_w = (float(value[0]) for value in _within(rng, body, 1.0, 1, inset=radius + 2 * MARGIN))

    rising = np.sqrt(radius**2 - ((np.arange(half)[::-1] + 0.5) * step) ** 2)
    falling = rising[::-1]
    if positive:
        profile = np.concatenate((rising, falling))
    else:
        profile = np.concatenate((falling, falling) if late else (rising, rising))
    index = np.arange(2 * half) + start + (half if late else 0)
    # In a tilted stack a line along the slice normal wanders through the image. Its path hangs on the start alone, not
    # on class or coin: the place of a disc must not tell the class either.
    lean = -step * np.tan(np.radians(tilt))
    path_h = centre_h + (index - (start + (3 * half - 1) / 2)) * lean
    path_w = np.full(2 * half, centre_w)
    stack = Stack("sphere" if positive else "taper", index, path_h, path_w, profile, contrast)
    return (stack,), np.array([[centre_h, centre_w]]), radius + 1.5 * half * abs(lean)


def _draw_bleed(
    rng: np.random.Generator, slices: int, step: float, body: tuple[float, ...]
) -> tuple[tuple[Stack, ...], np.ndarray, float]:
    size = min(rng.uniform(34.0, 44.0), 0.25 * slices * step)
    centre_h, centre_w = (float(value[0]) for value in _within(rng, body, 1.0, 1, inset=size + 2 * MARGIN))
    depth = 0.7 * size  # it reaches as far up and down as to the sides, about
    centre_t = rng.uniform(depth, (slices - 1) * step - depth)
    contrast = rng.uniform(380.0, 450.0)
    along = np.arange(slices) * step
    lobes = []
    for turn in rng.uniform(0, 2 * np.pi, 3):  # three overlapping spheres make an uneven outline
        away = rng.uniform(0.2, 0.4) * size
        radius = rng.uniform(0.5, 0.6) * size
        height = centre_t + rng.uniform(-0.1, 0.1) * size
        index = np.flatnonzero(np.abs(along - height) < EQUATOR * radius)
        flat = np.ones(len(index))
        profile = np.sqrt(radius**2 - (along[index] - height) ** 2)
        h, w = centre_h + away * np.sin(turn), centre_w + away * np.cos(turn)
        lobes.append(Stack("blob", index, h * flat, w * flat, profile, contrast))
    return tuple(lobes), np.array([[centre_h, centre_w]]), size


def _draw_tubes(
    rng: np.random.Generator,
    slices: int,
    step: float,
    body: tuple[float, ...],
    radii: tuple[float, float],
    contrast: float,
    taken: tuple[np.ndarray, float],
) -> tuple[Stack, ...]:
    """Vessels through the whole stack: constant calibre, slow drift, clear of the lesion's place and of each other."""
    index = np.arange(slices)
    along = (index - (slices - 1) / 2) * step
    room = [(np.broadcast_to(taken[0], (slices, 2)), taken[1])]
    tubes: list[Stack] = []
    for _ in range(int(rng.integers(3, 7))):
        radius = rng.uniform(*radii)
        for _attempt in range(60):
            centre_h, centre_w = _within(rng, body, 1.0, 1, inset=radius + 1.5 * MARGIN)
            drift = rng.uniform(-0.2, 0.2, 2)
            path = np.column_stack((centre_h + along * drift[0], centre_w + along * drift[1]))
            reach = np.hypot(path[:, 0] / (body[0] - radius - MARGIN), path[:, 1] / (body[1] - radius - MARGIN))
            free = all(
                np.hypot(*(path - other).T).min() >= radius + other_radius + MARGIN for other, other_radius in room
            )
            if free and reach.max() <= 1:
                room.append((path, radius))
                tubes.append(Stack("tube", index, path[:, 0], path[:, 1], np.full(slices, radius), contrast))
                break
    return tuple(tubes)


def _within(
    rng: np.random.Generator, body: tuple[float, ...], share: float, count: int, *, inset: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Points (h, w) in mm, uniform over an ellipse that is `share` of the body less a rim of `inset` mm."""
    turn = rng.uniform(0, 2 * np.pi, count)
    reach = np.sqrt(rng.uniform(0, 1, count)) * share
    return reach * np.sin(turn) * max(body[0] - inset, 1.0), reach * np.cos(turn) * max(body[1] - inset, 1.0)
