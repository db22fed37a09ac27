"""Histograms of gradients (HOG), of flow (HOF) and of the flow's gradients (MBH) around points of one frame.

H. Wang et al., "Action Recognition by Dense Trajectories", CVPR 2011, section 3; what the paper leaves open as in the
released program. The sums over cells come from running sums over the whole frame, as with integral histograms.
"""

from __future__ import annotations

import numpy as np

from volrec.benchmarks.opencv import load_opencv
from volrec.benchmarks.trajectories.settings import TrajectorySettings
from volrec.benchmarks.trajectories.tracking import nearest_pixels

__all__ = ["describe_points", "orientation_histogram"]


def describe_points(points: np.ndarray, grey: np.ndarray, flow: np.ndarray, settings: TrajectorySettings) -> np.ndarray:
    """Describe the patch around each point in one frame.

    Parameters
    ----------
    points : numpy.ndarray
        ``(N, 2)`` x, y; a patch that would leave the frame is moved inside.
    grey : numpy.ndarray
        ``(h, w)`` uint8, the frame in which the points are.
    flow : numpy.ndarray
        ``(h, w, 2)`` float32, from it to the next, without the camera's motion.
    settings : TrajectorySettings

    Returns
    -------
    numpy.ndarray
        ``(N, 132)`` float32: HOG 32, HOF 36, MBH of x 32, MBH of y 32; each by cell along x, cell along y, bin, divided
        by its sum, then the square root.
    """
    flow_x, flow_y = np.ascontiguousarray(flow[..., 0]), np.ascontiguousarray(flow[..., 1])
    sources = {
        "hog": _gradient(grey),
        "hof": (flow_x, flow_y),
        "mbhx": _gradient(flow_x),
        "mbhy": _gradient(flow_y),
    }
    corners = _cell_corners(points, grey.shape, settings)
    parts = []
    for name, bins in settings.bins.items():
        least = settings.least_flow if name == "hof" else None
        parts.append(_normalised(orientation_histogram(*sources[name], bins, least=least), corners, settings))
    return np.concatenate(parts, axis=1)


def orientation_histogram(x: np.ndarray, y: np.ndarray, bins: int, *, least: float | None = None) -> np.ndarray:
    """Give the length of every vector to the two bins next to its angle.

    Parameters
    ----------
    x, y : numpy.ndarray
        ``(h, w)`` float32.
    bins : int
        Bin b is at the angle ``b * 360 / bins`` degrees, from x towards y.
    least : float, optional
        With it the last bin is no angle: vectors no longer than `least` count one there, and nothing elsewhere.

    Returns
    -------
    numpy.ndarray
        ``(h, w, bins)`` float32. OpenCV's angles are true to 0.01 degrees.
    """
    length, angle = load_opencv().cartToPolar(x, y, angleInDegrees=True)
    length, angle = length.ravel(), angle.ravel()
    around = bins if least is None else bins - 1
    place = angle * np.float32(around / 360)
    lower = place.astype(np.intp)  # Angles are from 0 on: this is the floor.
    upper_share = (place - lower) * length
    lower_share = length - upper_share
    lower %= around
    upper = (lower + 1) % around
    if least is not None:
        still = length <= least
        lower[still] = around
        lower_share[still] = 1
        upper_share[still] = 0
    histogram = np.zeros(length.size * bins, np.float32)
    start = np.arange(0, histogram.size, bins)
    histogram[start + lower] = lower_share
    histogram[start + upper] += upper_share
    return histogram.reshape(*x.shape, bins)


def _gradient(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return right minus left and below minus above, float32; 0 at the border, which is mirrored."""
    cv2 = load_opencv()
    return cv2.Sobel(image, cv2.CV_32F, 1, 0, ksize=1), cv2.Sobel(image, cv2.CV_32F, 0, 1, ksize=1)


def _cell_corners(points: np.ndarray, shape: tuple[int, ...], settings: TrajectorySettings) -> np.ndarray:
    """Return the flat place ``(N, cells * cells)`` of the upper left pixel of every cell, along x first."""
    height, width = shape
    rows, columns = nearest_pixels(points, height, width)
    top = np.clip(rows - settings.patch // 2, 0, height - settings.patch)
    left = np.clip(columns - settings.patch // 2, 0, width - settings.patch)
    offsets = np.arange(settings.cells) * (settings.patch // settings.cells)
    return (top * width + left)[:, None] + np.add.outer(offsets, offsets * width).ravel()


def _normalised(histogram: np.ndarray, corners: np.ndarray, settings: TrajectorySettings) -> np.ndarray:
    side = settings.patch // settings.cells
    # Each pixel holds the sum over the cell that begins there.
    sums = load_opencv().boxFilter(histogram, -1, (side, side), anchor=(0, 0), normalize=False)
    values = (
        sums.reshape(-1, sums.shape[2]).take(corners, axis=0).reshape(len(corners), corners.shape[1] * sums.shape[2])
    )
    np.maximum(values, 0, out=values)  # Running sums leave a trace below 0 where there is nothing.
    values += np.float32(settings.epsilon)
    total = values.sum(axis=1, keepdims=True)
    # Without epsilon a patch can hold nothing at all.
    values /= np.where(total > 0, total, 1)
    return np.sqrt(values, out=values)
