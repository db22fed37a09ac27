"""Textured shapes that drift from slice to slice: which way they go is the class, and no slice shows it.

How the classes can differ in nothing but the order of the slices
-----------------------------------------------------------------
Number, kinds, sizes, contrasts, speeds and the place of every shape in the middle of the stack are drawn without
looking at the class; the class only says which way the shapes go. Each shape lives on a torus that is larger than the
image by its own extent: what has left the image wholly comes back at the other side, never before. The place is uniform
on the torus, and so it is after any displacement: every slice has the same distribution in every class. Further, a
study of "left" read backwards is the study of "right" that the same numbers give, and so are "front" and "back": of two
opposite classes, not even the slices of a study without their order tell anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from volrec.data.phantom_geometry import TISSUE, scanned

__all__ = ["DIRECTIONS", "Mover", "Scene", "draw_scene", "render_scene"]

Kind = Literal["disc", "square", "blob"]

# Steps (x, y) of one pixel in the canonical axial order: W grows to the patient's left, H to the back.
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (1, 0), "right": (-1, 0), "front": (0, -1), "back": (0, 1)}

SLOWEST, FASTEST = 0.5, 2.0  # pixels a slice
EXTENT = 1.35  # no part of a shape is further from its centre than this many radii
EDGE = 3.0  # pixels that the soft edge and the blur reach beyond the outline
SQUARE = 0.9  # half a side over the radius: about the area of the disc
RIPPLE = 0.45  # texture of a shape, over its contrast
LOBES = (0.2, 0.12)  # uneven outline of a blob, two and three lobes around


@dataclass(frozen=True)
class Mover:
    """One shape.

    Attributes
    ----------
    kind : str
        ``"disc"``, ``"square"`` or ``"blob"``.
    h, w : float
        Centre in the middle of the stack, pixels from the centre of the image.
    radius : float
        Pixels.
    speed : float
        Pixels a slice.
    contrast : float
        HU over (or under) the background.
    turn : tuple of float
        Angles: of the sides of a square, of the stripes, and of the two lobes of a blob, radians.
    stripes : tuple of float
        Texture: wavelength in pixels and phase in radians.
    """

    kind: Kind
    h: float
    w: float
    radius: float
    speed: float
    contrast: float
    turn: tuple[float, float, float, float]
    stripes: tuple[float, float]

    @property
    def reach(self) -> float:
        """No pixel further than this from the centre is touched."""
        return EXTENT * self.radius + EDGE

    def look(self, h: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return cover in [0, 1] and contrast in HU at places ``h``, ``w`` in pixels from the centre of the shape."""
        side, along, two, three = self.turn
        distance = np.hypot(h, w)
        if self.kind == "square":
            across = np.abs(w * np.cos(side) + h * np.sin(side)), np.abs(h * np.cos(side) - w * np.sin(side))
            inside = SQUARE * self.radius - np.maximum(*across)
        elif self.kind == "blob":
            angle = np.arctan2(h, w)
            outline = 1 + LOBES[0] * np.cos(2 * angle + two) + LOBES[1] * np.cos(3 * angle + three)
            inside = self.radius * outline - distance
        else:
            inside = self.radius - distance
        wavelength, phase = self.stripes
        wave = np.sin((w * np.cos(along) + h * np.sin(along)) * (2 * np.pi / wavelength) + phase)
        return np.clip(inside + 0.5, 0, 1), self.contrast * (1 + RIPPLE * wave)


@dataclass(frozen=True)
class Scene:
    """What a motion phantom truly shows.

    Attributes
    ----------
    direction : str
        Label of the study: ``"left"``, ``"right"``, ``"front"`` or ``"back"`` of the patient, towards the head.
    shape : tuple of int
        ``(T, H, W)``.
    spacing : tuple of float
        ``(t, h, w)`` mm.
    tilt : float
        Gantry tilt in degrees: the stack is sheared as acquired, and upright once the tilt is corrected.
    drift : tuple of float
        What shapes and background share, ``(x, y)`` in pixels a slice.
    movers : tuple of Mover
        Shapes, the last one on top.
    waves : numpy.ndarray
        ``(N, 4)``, the background: amplitude in HU, cycles a pixel along h and w, phase in radians.
    """

    direction: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    tilt: float
    drift: tuple[float, float]
    movers: tuple[Mover, ...]
    waves: np.ndarray

    @property
    def table_step(self) -> float:
        """Movement of the table between two slices, mm: more than their distance if the gantry is tilted."""
        return self.spacing[0] / float(np.cos(np.radians(self.tilt)))

    def step(self, mover: Mover) -> tuple[float, float]:
        """Return the displacement ``(x, y)`` of a shape from one slice to the next, pixels."""
        x, y = DIRECTIONS[self.direction]
        return x * mover.speed + self.drift[0], y * mover.speed + self.drift[1]

    def path(self, mover: Mover) -> np.ndarray:
        """Return the centres ``(T, 2)`` of a shape (h, w), pixels from the centre of the image, the tilt corrected."""
        x, y = self.step(mover)
        centre = np.array([mover.h, mover.w]) + np.outer(self._from_the_middle(), (y, x))
        period = np.array(self.shape[1:]) + 2 * mover.reach
        return np.asarray((centre + period / 2) % period - period / 2)

    def shear(self) -> np.ndarray:
        """Return how far down each slice lies as acquired, ``(T,)`` pixels: zeros without a tilt."""
        # As for the lesions of the other phantoms: a line along the slice normal wanders through a tilted stack.
        lean = -self.spacing[0] * np.tan(np.radians(self.tilt)) / self.spacing[1]
        return self._from_the_middle() * lean

    def flow(self) -> np.ndarray:
        """Return where everything moves, the tilt corrected: ``(T-1, 2, H, W)`` float32, components (x, y) in pixels.

        Field ``t`` lies on slice ``t`` and says where what is seen there lies in slice ``t + 1``. A pixel belongs to
        the topmost shape that covers half of it, else to the background.
        """
        slices, height, width = self.shape
        fields = np.empty((slices - 1, 2, height, width), dtype=np.float32)
        fields[:] = np.reshape(self.drift, (1, 2, 1, 1))
        for mover in self.movers:
            step = np.reshape(self.step(mover), (2, 1)).astype(np.float32)
            for field, (h, w) in zip(fields, self.path(mover)[:-1], strict=True):
                rows, columns, away = self._around(h, w, mover.reach)
                field[:, rows, columns][:, mover.look(*away)[0] >= 0.5] = step
        return fields

    def _from_the_middle(self) -> np.ndarray:
        return np.arange(self.shape[0]) - (self.shape[0] - 1) / 2

    def _around(self, h: float, w: float, reach: float) -> tuple[slice, slice, tuple[np.ndarray, np.ndarray]]:
        """Return the rows and columns within `reach` of a centre, and their places relative to it."""
        parts, away = [], []
        for centre, count in zip((h, w), self.shape[1:], strict=True):
            middle = centre + (count - 1) / 2
            part = slice(max(0, int(np.ceil(middle - reach))), min(count, max(0, int(np.floor(middle + reach)) + 1)))
            parts.append(part)
            away.append(np.arange(part.start, part.stop) - middle)
        return parts[0], parts[1], (away[0][:, None], away[1][None, :])


def draw_scene(
    rng: np.random.Generator,
    direction: str,
    *,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    tilt: float = 0.0,
    drift: float = 0.0,
) -> Scene:
    """Draw one study.

    Parameters
    ----------
    rng : numpy.random.Generator
        Every number is drawn without looking at the class: the same state gives studies that differ in the way only.
    direction : {"left", "right", "front", "back"}
        Class of the study.
    shape : tuple of int
        ``(T, H, W)``.
    spacing : tuple of float
        ``(t, h, w)`` mm.
    tilt : float
        Gantry tilt in degrees.
    drift : float
        Largest displacement that the whole stack shares, pixels a slice along each axis.
    """
    size = min(shape[1:])
    movers = tuple(_draw_mover(rng, shape, size) for _ in range(int(rng.integers(5, 10))))
    count = 6
    turn = rng.uniform(0, 2 * np.pi, count)
    cycles = 1 / (size * rng.uniform(0.2, 0.7, count))
    amplitude = rng.uniform(12.0, 24.0, count)
    waves = np.column_stack((amplitude, cycles * np.sin(turn), cycles * np.cos(turn), rng.uniform(0, 2 * np.pi, count)))
    x, y = (float(value) for value in rng.uniform(-1, 1, 2) * drift)
    return Scene(direction, shape, spacing, tilt, (x, y), movers, waves)


def render_scene(scene: Scene, rng: np.random.Generator, *, noise: float = 20.0, blur: float = 0.6) -> np.ndarray:
    """Make the image ``(T, H, W)`` float32 in HU, as acquired; see `volrec.data.phantom_geometry.render`."""
    slices, height, width = scene.shape
    along, shear = scene._from_the_middle(), scene.shear()
    h = np.arange(height) - (height - 1) / 2
    w = np.arange(width) - (width - 1) / 2
    image = np.empty(scene.shape, dtype=np.float32)
    for index in range(slices):
        # The background moves as a whole: it is looked up where it came from.
        rows = h[:, None] - along[index] * scene.drift[1] - shear[index]
        columns = w[None, :] - along[index] * scene.drift[0]
        ground = np.full((height, width), TISSUE)
        for amplitude, per_h, per_w, phase in scene.waves:
            ground += amplitude * np.sin(2 * np.pi * (rows * per_h + columns * per_w) + phase)
        image[index] = ground
    bare = image.copy()
    for mover in scene.movers:
        for index, (centre_h, centre_w) in enumerate(scene.path(mover)):
            part_h, part_w, away = scene._around(centre_h + shear[index], centre_w, mover.reach)
            cover, contrast = mover.look(*away)
            under = image[index, part_h, part_w]
            under += cover * (bare[index, part_h, part_w] + contrast - under)  # opaque: it hides the shapes below
    return scanned(image, rng, noise=noise, blur=blur)


def _draw_mover(rng: np.random.Generator, shape: tuple[int, int, int], size: int) -> Mover:
    kinds: tuple[Kind, ...] = ("disc", "square", "blob")
    kind = kinds[int(rng.integers(3))]
    radius = max(2.0, size * rng.uniform(0.06, 0.12))
    room = np.array(shape[1:]) + 2 * (EXTENT * radius + EDGE)
    h, w = (float(value) for value in rng.uniform(-0.5, 0.5, 2) * room)
    contrast = float(rng.uniform(90.0, 180.0) * rng.choice((-1, 1)))
    side, along, two, three = (float(value) for value in rng.uniform(0, 2 * np.pi, 4))
    stripes = float(radius * rng.uniform(0.9, 1.6)), float(rng.uniform(0, 2 * np.pi))
    speed = float(rng.uniform(SLOWEST, FASTEST))
    return Mover(kind, h, w, float(radius), speed, contrast, (side, along, two, three), stripes)
