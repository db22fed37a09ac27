"""Warped flow: the motion that is left when the drift of the whole slice is taken out.

In a video the drift is the motion of the camera: H. Wang, C. Schmid, "Action Recognition with Improved Trajectories",
ICCV 2013, fit a homography to it, and TSN (ECCV 2016) reads the flow that is left as a stream of its own. In a volume
it is what moves or grows as a whole from slice to slice: a tilted body, a patient who moved.

Ours to choose, and so stated: the drift is fitted to the flow field itself, on pixels with structure, by random samples
(RANSAC) and least squares on those that agree within one pixel. Fewer than a quarter that agree are no drift: the
slices then are taken as still. The second slice is brought back by cubic interpolation, what comes in from outside is
filled with the first slice (nothing is seen to move there), and the flow is estimated again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from volrec.errors import ConfigError, DataError
from volrec.progress import track
from volrec.transforms.flow import estimate_flow

__all__ = ["DRIFTS", "fit_drift", "warped_flow", "warped_slice_flow"]

DRIFTS = ("translation", "affine", "homography")

_PAIRS = {"translation": 1, "affine": 3, "homography": 4}  # What determines each.
_POINTS = 2000  # Pixels that the drift is fitted to.
_SAMPLES = 256  # With half of the pixels astray, four good ones are missed in all of them once in 10 million times.
_AGREES = 1.0  # pixels
_SHARE = 0.25
_STRUCTURE = 0.01  # Grey levels a pixel (of 1): flow is guesswork where there is less.
_STILL = 0.01  # pixels at the corners: a drift below is none.
_REFINEMENTS = 3


def warped_flow(
    first: np.ndarray,
    second: np.ndarray,
    *,
    drift: str = "homography",
    method: str = "tvl1",
    spacing: Sequence[float] = (1.0, 1.0),
    seed: int = 0,
    flow: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the flow between two slices without their drift.

    Parameters
    ----------
    first, second, method, spacing
        As in `volrec.transforms.flow.estimate_flow`.
    drift : {"translation", "affine", "homography"}
        Translation or affine for volumes, homography for videos.
    seed : int
        Of the random samples.
    flow : numpy.ndarray, optional
        What `estimate_flow` gives for these slices, method and spacing, where it is at hand: it is half of the work.

    Returns
    -------
    flow : numpy.ndarray
        ``(2, H, W)`` float32 pixels: from `first` to `second` brought back.
    drift : numpy.ndarray
        ``(3, 3)`` float64: pixel ``(x, y, 1)`` of the first slice to where the drift takes it in the second.

    Raises
    ------
    ConfigError
        For an unknown drift or method.
    DataError
        As `estimate_flow`; for a flow of another shape than the slices.
    """
    _check_drift(drift)
    if flow is None:
        flow = estimate_flow(first, second, method=method, spacing=spacing)
    elif flow.shape != (2, *np.shape(first)):
        raise DataError(
            f"the flow of slices of shape {np.shape(first)} has shape {(2, *np.shape(first))}, got {flow.shape}.",
            remedy="Give what estimate_flow returned for these slices.",
            code="shape",
        )
    first, second = (_floats(image) for image in (first, second))
    matrix = fit_drift(flow, drift=drift, image=first, seed=seed)
    if np.array_equal(matrix, np.eye(3)):
        return flow, matrix
    return estimate_flow(first, _bring_back(first, second, matrix), method=method, spacing=spacing), matrix


def warped_slice_flow(
    volume: np.ndarray,
    *,
    drift: str = "translation",
    method: str = "tvl1",
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    seed: int = 0,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the flow from every slice of ``(T, H, W)`` to the next, without drift.

    Parameters are those of `warped_flow` and `volrec.transforms.flow.slice_flow`.

    Returns
    -------
    fields : numpy.ndarray
        ``(T - 1, 2, H, W)`` float32 voxels.
    drifts : numpy.ndarray
        ``(T - 1, 3, 3)`` float64.
    """
    _check_drift(drift)
    volume = np.asarray(volume)
    if volume.ndim != 3 or not volume.size or len(spacing) != 3:
        raise DataError(
            f"a volume has shape (T, H, W) and a spacing of three values, got {volume.shape} and {tuple(spacing)}.",
            remedy="Give one channel, and mm along T, H, W.",
            code="shape",
        )
    fields = np.zeros((len(volume) - 1, 2, *volume.shape[1:]), dtype=np.float32)
    drifts = np.tile(np.eye(3), (len(volume) - 1, 1, 1))
    pairs = range(len(volume) - 1)
    for t in track(pairs, "estimating warped flow") if progress else pairs:
        fields[t], drifts[t] = warped_flow(
            volume[t], volume[t + 1], drift=drift, method=method, spacing=spacing[1:], seed=seed
        )
    return fields, drifts


def fit_drift(flow: np.ndarray, *, drift: str, image: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Fit the motion that most pixels of a field share.

    Parameters
    ----------
    flow : numpy.ndarray
        ``(2, H, W)`` pixels.
    drift : {"translation", "affine", "homography"}
    image : numpy.ndarray, optional
        ``(H, W)`` in [0, 1], the slice that the field starts from: pixels without structure in it do not count.
    seed : int
        The same seed gives the same drift.

    Returns
    -------
    numpy.ndarray
        ``(3, 3)`` float64, ``(x, y, 1)`` to ``(x', y', 1)``; the identity where fewer than a quarter of the pixels
        agree, where fewer than 16 have structure, or where the corners move less than 0.01 pixels.
    """
    _check_drift(drift)
    height, width = flow.shape[1:]
    counted = np.ones((height, width), dtype=bool)
    if image is not None:
        gradient = np.hypot(ndimage.sobel(image, 0, np.float64) / 8, ndimage.sobel(image, 1, np.float64) / 8)
        counted = gradient > _STRUCTURE
    rng = np.random.default_rng(seed)
    chosen = np.flatnonzero(counted)
    if len(chosen) < 16:
        return np.eye(3)
    chosen = np.sort(rng.choice(chosen, min(_POINTS, len(chosen)), replace=False))
    y, x = np.divmod(chosen, width)
    start = np.stack([x, y], axis=1).astype(np.float64)
    end = start + flow.reshape(2, -1)[:, chosen].T
    # Around the middle and of order one: the equations of a homography need it.
    size = max(height, width) / 2
    shrink = np.array([[1 / size, 0, -(width - 1) / 2 / size], [0, 1 / size, -(height - 1) / 2 / size], [0, 0, 1.0]])
    start, end = (points @ shrink[:2, :2].T + shrink[:2, 2] for points in (start, end))

    samples = rng.integers(len(start), size=(_SAMPLES, _PAIRS[drift]))
    guesses = _solve(start[samples], end[samples], drift)
    agreeing = _distance(guesses, start, end) < _AGREES / size
    agrees = agreeing[agreeing.sum(axis=1).argmax()]
    matrix = np.eye(3)
    for _ in range(_REFINEMENTS):
        if agrees.sum() < max(16, _SHARE * len(start)):
            return np.eye(3)
        matrix = _solve(start[None, agrees], end[None, agrees], drift)[0]
        agrees = _distance(matrix[None], start, end)[0] < _AGREES / size
    matrix = np.linalg.inv(shrink) @ matrix @ shrink
    matrix /= matrix[2, 2]

    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1.0]])
    moved = corners @ matrix.T
    sane = np.isfinite(moved).all() and (moved[:, 2] > 0.1).all()
    if not sane or np.abs(moved[:, :2] / moved[:, 2:] - corners[:, :2]).max() < _STILL:
        return np.eye(3)
    return matrix


def _solve(start: np.ndarray, end: np.ndarray, drift: str) -> np.ndarray:
    """Fit a map to each set of point pairs ``(N, P, 2)`` by least squares; ``(N, 3, 3)``."""
    sets, points = start.shape[:2]
    found = np.tile(np.eye(3), (sets, 1, 1))
    if drift == "translation":
        found[:, :2, 2] = (end - start).mean(axis=1)
        return found
    ones = np.ones((sets, points, 1))
    if drift == "affine":
        left = np.concatenate([start, ones], axis=2)
        # The pseudo-inverse gives an answer for three points in a line too; it fits few others and is voted down.
        found[:, :2] = (np.linalg.pinv(left) @ end).swapaxes(1, 2)
        return found
    # x' (g x + h y + 1) = a x + b y + c, and the same for y': linear in a .. h.
    zeros = np.zeros((sets, points, 3))
    rows = np.concatenate([start, ones], axis=2)
    along = np.concatenate([rows, zeros, -end[..., :1] * start], axis=2)
    down = np.concatenate([zeros, rows, -end[..., 1:] * start], axis=2)
    left = np.concatenate([along, down], axis=1)
    right = np.concatenate([end[..., 0], end[..., 1]], axis=1)[..., None]
    solved = (np.linalg.pinv(left) @ right)[..., 0]
    return np.concatenate([solved, np.ones((sets, 1))], axis=1).reshape(sets, 3, 3)


def _distance(matrices: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Measure how far each map ``(N, 3, 3)`` brings the starts from the ends: ``(N, P)``."""
    moved = np.concatenate([start, np.ones((len(start), 1))], axis=1) @ matrices.swapaxes(1, 2)
    below = np.where(np.abs(moved[..., 2]) < 1e-6, np.nan, moved[..., 2])  # A point at infinity agrees with nothing.
    return np.hypot(moved[..., 0] / below - end[:, 0], moved[..., 1] / below - end[:, 1])


def _bring_back(first: np.ndarray, second: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    height, width = first.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    moved = np.tensordot(matrix, np.stack([x, y, np.ones_like(x)]), axes=1)
    x, y = moved[0] / moved[2], moved[1] / moved[2]
    back = ndimage.map_coordinates(second, [y, x], order=3, mode="nearest")
    outside = (x < 0) | (x > width - 1) | (y < 0) | (y > height - 1)
    return np.where(outside, first, np.clip(back, 0, 1)).astype(np.float32)


def _floats(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    return image.astype(np.float32) / np.float32(255 if image.dtype == np.uint8 else 1)


def _check_drift(drift: str) -> None:
    if drift not in DRIFTS:
        raise ConfigError(
            f"drift must be one of {', '.join(DRIFTS)}; got {drift!r}.",
            remedy="Choose one of these.",
            where="flow.drift",
            code="flow-drift",
        )
