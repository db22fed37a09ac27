"""The same trajectories across the slices of a volume: features beside a network's.

A track follows a structure from slice to slice, so a vessel that runs obliquely moves and a camera does not exist.
Three things are asked that a video does not ask: what the grey values are (a window), how large a pixel is (the slices
are brought onto square pixels), and in which unit the points and tubes are set (mm or pixels).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from volrec.benchmarks.opencv import one_thread
from volrec.benchmarks.trajectories.extract import Trajectories, extract_trajectories
from volrec.benchmarks.trajectories.settings import COMPENSATIONS, TrajectorySettings
from volrec.errors import ConfigError, DataError

__all__ = ["volume_trajectories"]


def volume_trajectories(
    volume: np.ndarray,
    spacing: Sequence[float],
    *,
    window: tuple[float, float] | None = None,
    quantiles: tuple[float, float] = (0.005, 0.995),
    grid_mm: float | None = None,
    slice_mm: float | None = None,
    step_mm: float | None = None,
    patch_mm: float | None = None,
    drift: str = "none",
    settings: TrajectorySettings | None = None,
    progress: bool = False,
) -> Trajectories:
    """Track points across the slices of a volume and describe the tubes around them.

    Parameters
    ----------
    volume : numpy.ndarray
        ``(T, H, W)``, slices first: HU of CT, any unit of MR.
    spacing : sequence of float
        mm between slices, rows and columns.
    window : tuple of float, optional
        Level and width, in the volume's unit, that are spread over 8 bits.
    quantiles : tuple of float
        Without `window`: the shares of voxels that become black and white.
    grid_mm : float, optional
        Side of the square pixels that every slice is brought to; the finer of the two spacings where it is left out.
        Places and lengths of the rows are in these pixels.
    slice_mm : float, optional
        Distance of the frames that tracks go through; the slices themselves where it is left out. Below the distance of
        the slices, frames between them are mixed from their two neighbours; above it, a frame is a mean over slices.
    step_mm, patch_mm : float, optional
        Distance of the points, and side of the tubes, in mm: rounded to pixels of the grid (the side to a multiple of
        the cells along it). Left out, ``settings.step`` and ``settings.patch`` are pixels of the grid.
    drift : {"none", "homography"}
        Whether what moves as a whole from slice to slice is taken out, as the motion of a camera is.
    settings : TrajectorySettings, optional
        ``settings.length`` is in frames: mm along the slice axis are the facts' ``length_mm``. With
        ``static_spread=0`` structures that run straight through the slices are kept too.
    progress : bool
        Show a bar.

    Returns
    -------
    Trajectories
        436 columns as of a video. The facts also hold ``spacing``, ``grid_mm``, ``slice_mm``, ``length_mm``,
        ``step_mm``, ``patch_mm`` and ``window`` (level, width).

    Raises
    ------
    DataError
        For another shape, values that are not finite, or slices smaller than a tube.
    ConfigError
        For a spacing, window, quantiles or size that cannot be used.
    """
    volume = np.asarray(volume)
    if volume.ndim != 3 or not volume.size or not np.isfinite(volume).all():
        raise DataError(
            f"a volume has shape (T, H, W) and finite values, got {volume.shape} with "
            f"{np.count_nonzero(~np.isfinite(volume))} values that are not.",
            remedy="Give one channel, slices first, and fill what is missing.",
            code="shape",
        )
    steps = [float(value) for value in spacing]
    if len(steps) != 3 or not all(0 < value < np.inf for value in steps):
        raise _refused("spacing", spacing, "three sizes in mm, along T, H and W")
    if drift not in COMPENSATIONS:
        raise _refused("drift", drift, f"one of {', '.join(COMPENSATIONS)}")
    grid = min(steps[1:]) if grid_mm is None else grid_mm
    between = steps[0] if slice_mm is None else slice_mm
    for name, value in (("grid_mm", grid), ("slice_mm", between), ("step_mm", step_mm), ("patch_mm", patch_mm)):
        if value is not None and not 0 < value < np.inf:
            raise _refused(name, value, "a size in mm above 0")
    settings = TrajectorySettings() if settings is None else settings
    settings = replace(settings, compensation=drift)
    if step_mm is not None:
        settings = replace(settings, step=max(1, round(step_mm / grid)))
    if patch_mm is not None:
        side = round(patch_mm / grid / settings.cells)
        settings = replace(settings, patch=settings.cells * max(1, side))
    level, width = _window(volume, window, quantiles)
    frames = _slices(_frames(volume, steps[0], between), steps, grid, level, width)
    found = extract_trajectories(frames, settings=settings, progress=progress)
    return replace(
        found,
        facts={
            **found.facts,
            "spacing": steps,
            "grid_mm": grid,
            "slice_mm": between,
            "length_mm": settings.length * between,
            "step_mm": settings.step * grid,
            "patch_mm": settings.patch * grid,
            "window": [level, width],
        },
    )


def _window(
    volume: np.ndarray, window: tuple[float, float] | None, quantiles: tuple[float, float]
) -> tuple[float, float]:
    if window is not None:
        level, width = (float(value) for value in window)
        if not np.isfinite(level) or not 0 < width < np.inf:
            raise _refused("window", window, "a level and a width above 0")
        return level, width
    if not 0 <= quantiles[0] < quantiles[1] <= 1:
        raise _refused("quantiles", quantiles, "two shares from 0 to 1, the lower first")
    low, high = (float(value) for value in np.quantile(volume, quantiles))
    # A volume of one value is grey, and no point is found in it.
    return (low + high) / 2, high - low or 1.0


def _frames(volume: np.ndarray, spacing: float, between: float) -> np.ndarray:
    """Return the volume with its slices `between` mm apart, the first where it was."""
    if np.isclose(between, spacing, rtol=1e-3):
        return volume
    count = len(volume)
    if between > spacing:
        # Slices that a frame stands for: none is left out, so that thin slices lose noise and no structure.
        places = np.floor(np.arange(count) * (spacing / between) + 1e-6).astype(np.intp)
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        sums = np.add.reduceat(volume, starts, axis=0, dtype=np.float32)
        return np.asarray(sums / np.diff(starts, append=count).astype(np.float32)[:, None, None])
    # A frame that misses the last slice by rounding is there.
    places = np.arange(int((count - 1) * spacing / between + 1e-3) + 1) * (between / spacing)
    places = np.minimum(places, count - 1)
    below = np.minimum(places.astype(np.intp), max(count - 2, 0))
    above = np.minimum(below + 1, count - 1)
    share = (places - below).astype(np.float32)[:, None, None]
    return np.asarray(volume[below] * (1 - share) + volume[above] * share, dtype=np.float32)


def _slices(
    volume: np.ndarray, spacing: Sequence[float], grid: float, level: float, width: float
) -> Iterator[np.ndarray]:
    """Give the slices one by one: square pixels first, then the window, so that no edge of it is blurred."""
    shape = [max(1, round(size * step / grid)) for size, step in zip(volume.shape[1:], spacing[1:], strict=True)]
    for image in volume:
        image = np.ascontiguousarray(image, np.float32)
        if list(image.shape) != shape:
            with one_thread() as cv2:
                smaller = shape[0] < image.shape[0] or shape[1] < image.shape[1]
                how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
                image = cv2.resize(image, (shape[1], shape[0]), interpolation=how)
        share = (image - np.float32(level - width / 2)) / np.float32(width)
        yield np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _refused(name: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(
        f"{name} must be {wanted}; got {value!r}.", remedy="Change it.", where=name, code="trajectory-settings"
    )
