"""Points carried from frame to frame by the flow, and what is rejected of the finished tracks.

The flow is that of G. Farnebäck, "Two-Frame Motion Estimation Based on Polynomial Expansion", SCIA 2003, estimated once
for all scales from coarse to fine. Against the released program OpenCV smooths the frame once more at every scale but
the finest (by 1, 2, 1), since its own entry point is used; the rest is the same.
"""

from __future__ import annotations

import numpy as np

from volrec.benchmarks.opencv import load_opencv
from volrec.benchmarks.trajectories.settings import TrajectorySettings

__all__ = ["REJECTIONS", "Tracks", "flow_pyramid", "judge_tracks", "nearest_pixels"]

REJECTIONS = ("static", "random", "jump", "camera")
"""Why a track is left out, in the order in which the rules are asked."""


def flow_pyramid(first: list[np.ndarray], second: list[np.ndarray], settings: TrajectorySettings) -> list[np.ndarray]:
    """Estimate the flow at every scale, the coarser ones as the start of the finer.

    Parameters
    ----------
    first, second : list of numpy.ndarray
        ``(h, w)`` float32 from 0 to 255 each, the finest first (`smooth_pyramid`).
    settings : TrajectorySettings

    Returns
    -------
    list of numpy.ndarray
        ``(h, w, 2)`` float32: x, y in pixels of the scale, from `first` to `second`.
    """
    cv2 = load_opencv()
    flags = cv2.OPTFLOW_FARNEBACK_GAUSSIAN | cv2.OPTFLOW_USE_INITIAL_FLOW
    flows: list[np.ndarray] = []
    for before, after in zip(first[::-1], second[::-1], strict=True):
        height, width = before.shape
        if flows:
            start = cv2.resize(flows[-1], (width, height), interpolation=cv2.INTER_LINEAR)
            start *= np.float32(settings.scale_factor)
        else:
            start = np.zeros((height, width, 2), np.float32)
        flow = cv2.calcOpticalFlowFarneback(
            before,
            after,
            start,
            pyr_scale=0.5,  # Not used: without further levels the pyramid is ours.
            levels=0,
            winsize=settings.flow_window,
            iterations=settings.flow_iterations,
            poly_n=settings.poly_n,
            poly_sigma=settings.poly_sigma,
            flags=flags,
        )
        if settings.flow_median:
            flow = cv2.merge([cv2.medianBlur(part, settings.flow_median) for part in cv2.split(flow)])
        flows.append(flow)
    return flows[::-1]


def nearest_pixels(points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of the pixels nearest to points ``(N, 2)``; halves go to the even one."""
    nearest = np.rint(points).astype(np.intp)
    return np.clip(nearest[:, 1], 0, height - 1), np.clip(nearest[:, 0], 0, width - 1)


class Tracks:
    """The unfinished tracks of one scale, in the order in which they began.

    Memory is bound by the tracks that are under way: a place is used again once its track has ended.

    Parameters
    ----------
    settings : TrajectorySettings
    """

    def __init__(self, settings: TrajectorySettings) -> None:
        self._settings = settings
        self._frames_a_cell = settings.length // settings.time_cells
        self._places = np.empty(0, np.intp)  # Of the tracks under way, oldest first.
        self._free = np.empty(0, np.intp)
        values = settings.cells**2 * sum(settings.bins.values())
        self._points = np.empty((0, settings.length + 1, 2), np.float32)
        self._moves = np.empty((0, settings.length, 2), np.float32)
        self._sums = np.empty((0, settings.time_cells, values), np.float32)
        self._age = np.empty(0, np.intp)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def positions(self) -> np.ndarray:
        """``(N, 2)`` float32: x, y in pixels of the scale, where each track is now."""
        return self._points[self._places, self._age[self._places]]

    def begin(self, points: np.ndarray) -> None:
        """Begin a track at each of the points ``(N, 2)``."""
        missing = len(points) - len(self._free)
        if missing > 0:
            before, more = len(self._age), max(missing, len(self._age) // 2)
            self._free = np.concatenate([self._free, np.arange(before, before + more)])
            for name in ("_points", "_moves", "_sums", "_age"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros((more, *old.shape[1:]), old.dtype)]))
        taken, self._free = self._free[: len(points)], self._free[len(points) :]
        self._points[taken, 0] = points
        self._sums[taken] = 0
        self._age[taken] = 0
        self._places = np.concatenate([self._places, taken])

    def advance(
        self, points: np.ndarray, moves: np.ndarray, histograms: np.ndarray, inside: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Carry every track on by one frame; those that leave the frame end without a trace.

        Parameters
        ----------
        points, moves : numpy.ndarray
            ``(N, 2)``: where each is in the next frame, and its displacement without the camera's motion.
        histograms : numpy.ndarray
            ``(N, D)`` of this frame.
        inside : numpy.ndarray
            ``(N,)`` bool: the others have left the frame.

        Returns
        -------
        points, moves, means : numpy.ndarray
            ``(M, L + 1, 2)``, ``(M, L, 2)`` and ``(M, time cells, D)`` of the tracks that have reached full length.
        """
        left, self._places = self._places[~inside], self._places[inside]
        places, age = self._places, self._age[self._places]
        self._moves[places, age] = moves[inside]
        self._sums[places, age // self._frames_a_cell] += histograms[inside]
        self._points[places, age + 1] = points[inside]
        self._age[places] = age + 1
        over = age + 1 == self._settings.length
        done, self._places = places[over], places[~over]
        self._free = np.concatenate([self._free, left, done])
        return self._points[done], self._moves[done], self._sums[done] / np.float32(self._frames_a_cell)


def judge_tracks(points: np.ndarray, moves: np.ndarray, settings: TrajectorySettings) -> np.ndarray:
    """Say of every finished track by which rule it is left out.

    Parameters
    ----------
    points : numpy.ndarray
        ``(N, L + 1, 2)`` pixels of the full frame.
    moves : numpy.ndarray
        ``(N, L, 2)`` displacements in the same unit, without the camera's motion.
    settings : TrajectorySettings

    Returns
    -------
    numpy.ndarray
        ``(N,)`` int: place in `REJECTIONS` of the first rule that rejects it, -1 for none. The rule ``"camera"`` is
        asked only where the camera's motion was taken out.
    """
    spread = points.std(axis=1, dtype=np.float64)
    steps = np.hypot(*np.moveaxis(np.diff(points.astype(np.float64), axis=1), 2, 0))
    longest = steps.max(axis=1)
    rules = [
        (spread < settings.static_spread).all(axis=1),
        (spread > settings.random_spread).any(axis=1),
        (longest > settings.jump) & (longest > settings.jump_share * steps.sum(axis=1)),
    ]
    if settings.compensation != "none":
        rules.append(np.hypot(moves[..., 0], moves[..., 1]).max(axis=1) <= settings.camera_step)
    verdict = np.full(len(points), -1)
    for number in reversed(range(len(rules))):
        verdict[rules[number]] = number
    return verdict
