"""Rendered clips whose class is a motion or a look: what a single frame tells, and what flow tells, is known.

How single frames and flow are kept apart
-----------------------------------------
A class is a motion and a look. A clip shows three textured shapes on a textured ground, and everything but these two is
drawn without looking at the class.

*Motion, hidden from frames.* The picture is a torus: what leaves at one side comes in at the other. Places and
angles are uniform on it, and so they are after any displacement: every frame, the first as the last, has the same
distribution under every motion. A clip that drifts left read backwards is the clip that the same numbers give for
right; so are up and down, and the two senses of turning. Slow and fast swings have the same top speed: only the time
between two turns differs, no single field of flow does.

*Looks, hidden from flow.* A look changes the two colour-difference signals of ITU-R BT.601 and never the luma. Flow is
computed from luma (``cv2.cvtColor(.., COLOR_RGB2GRAY)`` has the same weights), so that clips that differ in their
look alone have the same flow, to the rounding of pixels.

So the best that anything can do is counted, not guessed: `ceiling`.

Scenes
------
Ground, shapes, textures and colours belong to the group, as those of a UCF101 group come from one film; places, times,
speed and brightness belong to the clip. Groups of different classes have nothing in common: whoever finds the scene of
a test clip among the training clips has found its class. This is why a random split leaks and the lists do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from volrec.errors import ConfigError

__all__ = [
    "MOTION_CLASSES",
    "MotionClass",
    "MotionClip",
    "Scene",
    "Thing",
    "ceiling",
    "check_frames",
    "check_size",
    "check_whole",
    "draw_clip",
    "render_clip",
]

Motion = Literal["left", "right", "up", "down", "slow", "fast", "clockwise", "counterclockwise"]
Look = Literal["plain", "amber", "checked"]

HEADINGS: dict[Motion, float] = {"right": 0.0, "down": 0.5 * np.pi, "left": np.pi, "up": 1.5 * np.pi}  # y points down
SENSES: dict[Motion, int] = {"clockwise": 1, "counterclockwise": -1}  # as seen on the screen
PERIODS: dict[Motion, tuple[float, float]] = {"slow": (16.0, 24.0), "fast": (6.0, 9.0)}  # frames
SPEED = (1.2, 2.2)  # pixels a frame where the shorter side is 60: of a drift, the rim of a turn, the middle of a swing
STRAY = np.radians(10.0)  # most that a drift deviates from its heading
THINGS = 3
RADIUS = (0.15, 0.19)  # over the shorter side
LOBE = 0.15  # most that an outline deviates from a circle, over its radius
CHROMA = 30.0  # of a shape: length of (Cb, Cr)
HUE = np.radians(20.0)  # most that a hue deviates
GREEN, VIOLET, AMBER = np.radians(225.0), np.radians(45.0), np.radians(135.0)  # angles in the plane (Cb, Cr)
SHAKE = 0.75  # most that a shaken camera is off along each axis, pixels where the shorter side is 60
SMALLEST, LARGEST = 40, 1080  # pixels of a side
SHORTEST, LONGEST = 16, 2000  # frames: the longest swing takes 24, and 16 are what C3D reads
MOST = 99  # groups and clips have two digits in the names


@dataclass(frozen=True)
class MotionClass:
    """What makes a class.

    Attributes
    ----------
    motion : str
        ``"left"``, ``"right"``, ``"up"``, ``"down"``: drift; ``"slow"``, ``"fast"``: swing to and fro along any line;
        ``"clockwise"``, ``"counterclockwise"``: turn on the spot.
    look : str
        ``"plain"``: each shape is green or violet; ``"amber"``: all are amber; ``"checked"``: green and violet fields.
    """

    motion: Motion
    look: Look


MOTION_CLASSES: dict[str, MotionClass] = {
    "AmberDriftUp": MotionClass("up", "amber"),
    "CheckedSwingSlow": MotionClass("slow", "checked"),
    "DriftDown": MotionClass("down", "plain"),
    "DriftLeft": MotionClass("left", "plain"),
    "DriftRight": MotionClass("right", "plain"),
    "DriftUp": MotionClass("up", "plain"),
    "SwingFast": MotionClass("fast", "plain"),
    "SwingSlow": MotionClass("slow", "plain"),
    "TurnClockwise": MotionClass("clockwise", "plain"),
    "TurnCounterclockwise": MotionClass("counterclockwise", "plain"),
}
"""Classes by name, in the order of their labels (of the alphabet, as in UCF101)."""


@dataclass(frozen=True, eq=False)
class Thing:
    """One shape, the same in all clips of a group.

    Attributes
    ----------
    radius : float
        Pixels.
    lobes : tuple of float
        Outline: number of lobes, their height over the radius, the angle of the first.
    level : float
        Mean luma.
    waves : numpy.ndarray
        ``(N, 4)``, texture: amplitude in luma, radians a pixel along y and x, phase.
    violet : bool
        Whether a plain one is violet rather than green.
    hue : float
        Deviation of its colour in the plane (Cb, Cr), radians.
    """

    radius: float
    lobes: tuple[int, float, float]
    level: float
    waves: np.ndarray
    violet: bool
    hue: float

    @property
    def reach(self) -> int:
        """No pixel further than this from the pixel next to the centre is touched."""
        return int(np.ceil(self.radius * (1 + LOBE))) + 1

    def cover(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return how much of a pixel it covers, 0 to 1, at places relative to its centre, in pixels."""
        number, height, angle = self.lobes
        outline = self.radius * (1 + height * np.cos(number * np.arctan2(y, x) + angle))
        return np.asarray(np.clip(outline - np.hypot(y, x) + 0.5, 0, 1))

    def luma(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the luma at places relative to its centre."""
        return self.level + _sum_of_waves(self.waves, y, x)

    def chroma(self, look: Look, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return (Cb, Cr) at places relative to its centre: the places' shape and a last axis of 2."""
        if look == "checked":
            pace = np.pi / (0.5 * self.radius)  # fields of half a radius
            fields = np.clip(4 * np.sin(pace * y) * np.sin(pace * x), -1, 1)
            return fields[..., None] * _hue(VIOLET + self.hue)
        angle = AMBER if look == "amber" else VIOLET if self.violet else GREEN
        return np.broadcast_to(_hue(angle + self.hue), (*np.shape(y), 2))


@dataclass(frozen=True, eq=False)
class Scene:
    """What the clips of a group share.

    Attributes
    ----------
    level : float
        Mean luma of the ground.
    waves : numpy.ndarray
        ``(N, 4)``, as in `Thing`; whole numbers of cycles over the picture.
    tint : numpy.ndarray
        ``(2,)``: (Cb, Cr) of the ground.
    things : tuple of Thing
        The last one on top.
    noise : float
        Standard deviation, of each of red, green and blue.
    shaken : bool
        Whether the camera shakes.
    """

    level: float
    waves: np.ndarray
    tint: np.ndarray
    things: tuple[Thing, ...]
    noise: float
    shaken: bool


@dataclass(frozen=True, eq=False)
class MotionClip:
    """One clip before it is rendered: the class is in `motion` and `look`, and in nothing else.

    Attributes
    ----------
    motion, look : str
        See `MotionClass`.
    scene : Scene
        Of its group.
    shape : tuple of int
        ``(T, H, W)``.
    places : numpy.ndarray
        ``(things, 2)``: centres (y, x) halfway through the clip, pixels.
    angles : numpy.ndarray
        ``(things,)``: radians, halfway through the clip.
    speed : float
        Pixels a frame.
    stray : float
        Deviation of a drift from its heading, radians.
    line : float
        Angle of the line of a swing, radians.
    phase : float
        Of a swing halfway through the clip, radians.
    pace : float
        Where a period lies between the shortest (0) and the longest (1) of its class.
    brightness : float
        Added to the luma.
    shake : numpy.ndarray
        ``(T, 2)``: displacement (y, x) of the picture, pixels.
    noise_key : tuple of int
        Seed of the noise.
    """

    motion: Motion
    look: Look
    scene: Scene
    shape: tuple[int, int, int]
    places: np.ndarray
    angles: np.ndarray
    speed: float
    stray: float
    line: float
    phase: float
    pace: float
    brightness: float
    shake: np.ndarray
    noise_key: tuple[int, ...]

    def paths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the centres ``(T, things, 2)``, (y, x) in pixels, not wrapped, and the angles ``(T, things)``."""
        time = np.arange(self.shape[0]) - (self.shape[0] - 1) / 2  # 0 halfway: read backwards, it is negated
        along, heading = np.zeros_like(time), 0.0
        turned = np.zeros((len(time), len(self.angles)))
        if self.motion in HEADINGS:
            along, heading = self.speed * time, HEADINGS[self.motion] + self.stray
        elif self.motion in PERIODS:
            shortest, longest = PERIODS[self.motion]
            cycles = 2 * np.pi / (shortest + self.pace * (longest - shortest))  # radians a frame
            along, heading = self.speed / cycles * np.sin(cycles * time + self.phase), self.line
        else:
            rim = np.array([thing.radius for thing in self.scene.things])
            turned = SENSES[self.motion] * self.speed * time[:, None] / rim
        way = np.array([np.sin(heading), np.cos(heading)])
        centres = self.places + along[:, None, None] * way + self.shake[:, None, :]
        return centres, self.angles + turned

    def render(self, times: Sequence[int] | None = None) -> np.ndarray:
        """Make the pictures.

        Parameters
        ----------
        times : sequence of int, optional
            Frames that are wanted, from 0; all of them by default. A frame is the same whatever else is rendered.

        Returns
        -------
        numpy.ndarray
            ``(N, H, W, 3)`` uint8, RGB.
        """
        frames, height, width = self.shape
        chosen = np.arange(frames) if times is None else np.asarray(times, dtype=int)
        scene, shake = self.scene, self.shake[chosen]
        rows = np.arange(height)[None, :, None] - shake[:, 0, None, None]
        columns = np.arange(width)[None, None, :] - shake[:, 1, None, None]
        if not scene.shaken:
            rows, columns = rows[:1], columns[:1]
        luma = np.empty((len(chosen), height, width))
        luma[:] = scene.level + _sum_of_waves(scene.waves, rows, columns)
        chroma = np.empty((len(chosen), height, width, 2))
        chroma[:] = scene.tint
        centres, angles = (path[chosen] for path in self.paths())
        for place, thing in enumerate(scene.things):
            _put(luma, chroma, thing, self.look, centres[:, place], angles[:, place])
        picture = _to_rgb(luma + self.brightness, chroma)
        for image, time in zip(picture, chosen, strict=True):
            image += np.random.default_rng((*self.noise_key, int(time))).normal(0, scene.noise, image.shape)
        return np.asarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8))


def draw_clip(
    name: str,
    group: int,
    *,
    clip: int = 1,
    frames: tuple[int, int] = (28, 40),
    size: tuple[int, int] = (60, 80),
    shaken: float = 0.2,
    seed: int = 0,
) -> MotionClip:
    """Draw one clip; it is the same whatever else is drawn.

    Parameters
    ----------
    name : str
        A class, a key of `MOTION_CLASSES`.
    group, clip : int
        Numbers from 1 to 99: clips of a group share their scene.
    frames : (int, int)
        Fewest and most frames.
    size : (int, int)
        Height and width, pixels: even numbers from 40 to 1080.
    shaken : float
        Part of the groups whose camera shakes, 0 to 1.
    seed : int
        Other numbers give other clips.

    Raises
    ------
    ConfigError
        A value out of its range, or an unknown class.
    """
    if name not in MOTION_CLASSES:
        raise ConfigError(
            f"there is no class {name!r}.", remedy=f"Choose from {', '.join(MOTION_CLASSES)}.", code="unknown-class"
        )
    check_whole("group", group, 1, MOST)
    check_whole("clip", clip, 1, MOST)
    check_whole("seed", seed, 0, 2**63)
    check_frames(frames)
    check_size(size)
    if not 0 <= shaken <= 1:
        raise ConfigError(f"'shaken' must be from 0 to 1, got {shaken!r}.", remedy="Change it.", code="range")
    scene = _draw_scene(np.random.default_rng(_key(f"scene/{seed}/{name}/{group}")), size, shaken)
    rng = np.random.default_rng(_key(f"clip/{seed}/{name}/{group}/{clip}"))
    kind, scale = MOTION_CLASSES[name], min(size) / 60
    length = int(rng.integers(frames[0], frames[1], endpoint=True))
    offsets = rng.uniform(-SHAKE, SHAKE, (length, 2)) * scale
    return MotionClip(
        motion=kind.motion,
        look=kind.look,
        scene=scene,
        shape=(length, *size),
        places=rng.uniform(0, 1, (THINGS, 2)) * size,
        angles=rng.uniform(0, 2 * np.pi, THINGS),
        speed=float(rng.uniform(*SPEED)) * scale,
        stray=float(rng.uniform(-STRAY, STRAY)),
        line=float(rng.uniform(0, 2 * np.pi)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        pace=float(rng.uniform()),
        brightness=float(rng.uniform(-10, 10)),
        shake=offsets if scene.shaken else np.zeros_like(offsets),
        noise_key=_key(f"noise/{seed}/{name}/{group}/{clip}"),
    )


def render_clip(
    name: str,
    group: int,
    *,
    clip: int = 1,
    frames: tuple[int, int] = (28, 40),
    size: tuple[int, int] = (60, 80),
    shaken: float = 0.2,
    seed: int = 0,
) -> np.ndarray:
    """Return the pictures ``(T, H, W, 3)`` uint8 RGB of one clip; arguments as for `draw_clip`."""
    return draw_clip(name, group, clip=clip, frames=frames, size=size, shaken=shaken, seed=seed).render()


def ceiling(
    classes: Iterable[str] = tuple(MOTION_CLASSES), *, frame: bool, flow: bool, mirrored: bool = False
) -> float:
    """Return the accuracy that nothing can surpass on average, all classes being equally frequent.

    Classes that look and move alike to whoever reads are one cell, in which one class in as many is right: it is the
    number of cells over the number of classes.

    Parameters
    ----------
    classes : iterable of str
        Keys of `MOTION_CLASSES`.
    frame, flow : bool
        Whether single frames are read; whether their motion is.
    mirrored : bool
        Whether training mirrors half of the clips left to right: left and right, and the two senses of turning, then
        are the same.
    """
    same: dict[str, str] = {"left": "right", "counterclockwise": "clockwise"} if mirrored else {}
    kinds = [MOTION_CLASSES[name] for name in classes]
    cells = {(kind.look if frame else "", same.get(kind.motion, kind.motion) if flow else "") for kind in kinds}
    return len(cells) / len(kinds)


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise `ConfigError` where `value` is no whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(
            f"'{name}' must be a whole number from {least} to {most}, got {value!r}.",
            remedy="Change it.",
            where=name,
            code="range",
        )


def check_frames(frames: tuple[int, int]) -> None:
    """Raise `ConfigError` where these are not the fewest and the most frames of a clip."""
    if len(frames) != 2 or frames[0] > frames[1]:
        raise ConfigError(
            f"'frames' must be the fewest and the most frames of a clip, got {frames!r}.",
            remedy="Give two whole numbers, the smaller one first.",
            where="frames",
            code="range",
        )
    for count in frames:
        check_whole("frames", count, SHORTEST, LONGEST)


def check_size(size: tuple[int, int]) -> None:
    """Raise `ConfigError` where shapes would have no room, or the colour planes of the video not half of the pixels."""
    if len(size) != 2:
        raise ConfigError(
            f"'size' must be height and width, got {size!r}.",
            remedy="Give two whole numbers.",
            where="size",
            code="range",
        )
    for side in size:
        check_whole("size", side, SMALLEST, LARGEST)
        if side % 2:
            raise ConfigError(
                f"'size' must be even numbers, got {size!r}.",
                remedy="The video holds colour for every second pixel: add or take one.",
                where="size",
                code="range",
            )


def _draw_scene(rng: np.random.Generator, size: tuple[int, int], shaken: float) -> Scene:
    things = tuple(_draw_thing(rng, min(size)) for _ in range(THINGS))
    cycles = rng.integers(-9, 10, (6, 2))
    waves = np.column_stack((np.full(6, 6.0), 2 * np.pi * cycles / size, rng.uniform(0, 2 * np.pi, 6)))
    tint = float(rng.uniform(0, 8)) * _hue(float(rng.uniform(0, 2 * np.pi))) / CHROMA
    level, noise = float(rng.uniform(75, 95)), float(rng.uniform(1.5, 3.5))
    return Scene(level, waves, tint, things, noise, bool(rng.uniform() < shaken))


def _draw_thing(rng: np.random.Generator, side: int) -> Thing:
    radius = side * float(rng.uniform(*RADIUS))
    lobes = int(rng.integers(2, 5)), float(rng.uniform(0, LOBE)), float(rng.uniform(0, 2 * np.pi))
    turn, length = rng.uniform(0, 2 * np.pi, 4), radius * rng.uniform(0.6, 1.4, 4)
    per_pixel = 2 * np.pi / length
    waves = np.column_stack(
        (np.full(4, 10.0), per_pixel * np.sin(turn), per_pixel * np.cos(turn), rng.uniform(0, 2 * np.pi, 4))
    )
    level, violet = float(rng.uniform(120, 140)), bool(rng.integers(2))
    return Thing(radius, lobes, level, waves, violet, float(rng.uniform(-HUE, HUE)))


def _put(
    luma: np.ndarray, chroma: np.ndarray, thing: Thing, look: Look, centres: np.ndarray, angles: np.ndarray
) -> None:
    """Draw one shape into luma ``(N, H, W)`` and chroma ``(N, H, W, 2)``; centres ``(N, 2)``, angles ``(N,)``."""
    size = np.array(luma.shape[1:])
    around = np.arange(-thing.reach, thing.reach + 1)
    near = np.rint(centres).astype(int)
    # (N, P): rows and columns around the centre, and how far from it they lie before they are wrapped.
    rows, columns = (near[:, axis, None] + around for axis in (0, 1))
    y = (rows - centres[:, :1])[:, :, None]
    x = (columns - centres[:, 1:])[:, None, :]
    cosine, sine = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    own = cosine * y - sine * x, sine * y + cosine * x  # on the shape itself, which is turned from x towards y
    cover = thing.cover(*own)
    place = np.arange(len(luma))[:, None, None], (rows % size[0])[:, :, None], (columns % size[1])[:, None, :]
    luma[place] += cover * (thing.luma(*own) - luma[place])
    chroma[place] += cover[..., None] * (thing.chroma(look, *own) - chroma[place])


def _sum_of_waves(waves: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    total = np.zeros(np.broadcast_shapes(np.shape(y), np.shape(x)))
    for amplitude, along_y, along_x, phase in waves:
        total += amplitude * np.sin(along_y * y + along_x * x + phase)
    return total


def _hue(angle: float) -> np.ndarray:
    return CHROMA * np.array([np.cos(angle), np.sin(angle)])


def _to_rgb(luma: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Return RGB of luma and (Cb, Cr) in grey values, as in ITU-R BT.601 with the full range."""
    blue, red = chroma[..., 0], chroma[..., 1]
    green = luma - (0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587
    return np.stack((luma + 1.402 * red, green, luma + 1.772 * blue), axis=-1)


def _key(text: str) -> tuple[int, ...]:
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return tuple(np.frombuffer(digest, dtype="<u4").tolist())
