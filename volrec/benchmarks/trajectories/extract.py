"""A video in, one row a trajectory out: improved dense trajectories as a stream.

H. Wang, C. Schmid, "Action Recognition with Improved Trajectories", ICCV 2013. Only the last frame and the tracks under
way are held, so memory does not grow with the length of the video (the rows do: 1.7 kB each).

Where no homography is accepted the flow is taken as it is. The released program replaces a margin of 5 pixels then too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from volrec.benchmarks.opencv import one_thread
from volrec.benchmarks.trajectories.camera import (
    CameraMotion,
    FeatureFinder,
    Features,
    bring_back,
    find_camera_motion,
    mask_of_boxes,
)
from volrec.benchmarks.trajectories.descriptors import describe_points
from volrec.benchmarks.trajectories.sampling import build_pyramid, pyramid_scales, sample_points, smooth_pyramid
from volrec.benchmarks.trajectories.settings import TrajectorySettings
from volrec.benchmarks.trajectories.tracking import REJECTIONS, Tracks, flow_pyramid, judge_tracks, nearest_pixels
from volrec.errors import DataError
from volrec.progress import track

__all__ = ["Trajectories", "TrajectoryStream", "extract_trajectories"]

_END = 0.999  # The released program's last place within a pyramid.


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Trajectories of one video.

    Attributes
    ----------
    rows : numpy.ndarray
        ``(N, 436)`` float32, by last frame, scale and beginning.
    columns : mapping of str to slice
        As `TrajectorySettings.columns`.
    facts : mapping
        What made them, fit for JSON: ``frames``, ``height``, ``width``, ``scales``, ``estimator`` of the flow,
        ``features`` that were matched, ``versions``, ``homographies`` (numbers of the frames, from 1, to which one was
        accepted), ``rejected`` (tracks by rule), ``left`` (tracks that left the frame) and ``settings``.
    """

    rows: np.ndarray
    columns: Mapping[str, slice]
    facts: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, name: str) -> np.ndarray:
        """Return the columns of one field or descriptor, ``(N, D)``."""
        return self.rows[:, self.columns[name]]


def extract_trajectories(
    frames: np.ndarray | Iterable[np.ndarray],
    *,
    settings: TrajectorySettings | None = None,
    boxes: Iterable[Any] | None = None,
    progress: bool = False,
) -> Trajectories:
    """Track points through a video and describe the tubes around them.

    Parameters
    ----------
    frames : numpy.ndarray or iterable of numpy.ndarray
        ``(T, H, W)`` or ``(T, H, W, 3)`` uint8, grey or RGB; or such frames one by one.
    settings : TrajectorySettings, optional
        Without it those of the released program.
    boxes : iterable of array, optional
        People in each frame, ``(N, 4)`` or ``(N, 5)`` a frame (see `mask_of_boxes`): no matches are taken there.
    progress : bool
        Show a bar.

    Returns
    -------
    Trajectories
        Without a row when the video has no more than ``settings.length`` frames, or nothing moves.

    Raises
    ------
    DataError
        For frames of another type, shape or size, frames smaller than the tube, and boxes that do not fit the frames.
    ConfigError
        Where OpenCV is not installed, or lacks the features asked for.
    """
    stream = TrajectoryStream(settings)
    found = []
    people = None if boxes is None else iter(boxes)
    for frame in track(frames, "tracking points") if progress else frames:
        if people is None:
            found.append(stream.push(frame))
            continue
        try:
            found.append(stream.push(frame, boxes=next(people)))
        except StopIteration:
            raise _unequal_boxes(f"boxes for {stream.frames} frames, and there are more frames") from None
    if people is not None and next(people, None) is not None:
        raise _unequal_boxes(f"boxes for more than the {stream.frames} frames")
    return stream.finish(found)


def _unequal_boxes(seen: str) -> DataError:
    return DataError(
        f"there are {seen}.", remedy="Give an array for every frame, an empty one without people.", code="boxes"
    )


class TrajectoryStream:
    """Takes frames one by one and gives the trajectories that end with each.

    Parameters
    ----------
    settings : TrajectorySettings, optional

    Attributes
    ----------
    settings : TrajectorySettings
    columns : dict of str to slice
    frames : int
        Taken so far.
    """

    def __init__(self, settings: TrajectorySettings | None = None) -> None:
        self.settings = TrajectorySettings() if settings is None else settings
        self.columns = self.settings.columns
        self.frames = 0
        self._scales: list[tuple[float, tuple[int, int]]] = []
        self._tracks: list[Tracks] = []
        self._finder: FeatureFinder | None = None
        self._since_sampling = 0
        self._accepted: list[int] = []
        self._rejected = np.zeros(len(REJECTIONS), np.int64)
        self._left = 0
        # Of the last frame:
        self._pyramid: list[np.ndarray] = []
        self._smooth: list[np.ndarray] = []
        self._mask: np.ndarray | None = None
        self._features = Features(np.empty((0, 2), np.float32), None)

    def push(self, frame: np.ndarray, *, boxes: Any = None) -> np.ndarray:
        """Take the next frame.

        Parameters
        ----------
        frame : numpy.ndarray
            ``(H, W)`` or ``(H, W, 3)`` uint8.
        boxes : array, optional
            People in it.

        Returns
        -------
        numpy.ndarray
            ``(N, 436)`` float32: the tracks that reach their full length in this frame. The place in time (column
            ``"t"``) is in frames until `finish` knows how many there are.
        """
        settings = self.settings
        with one_thread() as cv2:
            grey = self._check(frame)
            if grey.ndim == 3:
                grey = cv2.cvtColor(grey, cv2.COLOR_RGB2GRAY)
            if not self.frames:
                self._start(*grey.shape)
            pyramid = build_pyramid(grey, [size for _, size in self._scales])
            smooth = smooth_pyramid(grey, self._scales)
            mask = None if boxes is None else mask_of_boxes(boxes, *grey.shape)
            features = self._features if self._finder is None else self._finder.find(grey, mask)
            rows = [np.empty((0, settings.width), np.float32)]
            if self.frames:
                flows = flow_pyramid(self._smooth, smooth, settings)
                motion = self._camera(flows[0], features)
                still = flows
                if motion.accepted:
                    self._accepted.append(self.frames)
                    back = bring_back(self._pyramid[0], grey, motion.matrix, margin=settings.margin)
                    still = flow_pyramid(self._smooth, smooth_pyramid(back, self._scales), settings)
                self._since_sampling += 1
                for level in range(len(self._scales)):
                    rows.append(self._advance(level, flows[level], still[level]))
            if not self.frames or self._since_sampling == settings.refresh:
                self._since_sampling = 0
                for image, tracks in zip(pyramid, self._tracks, strict=True):
                    tracks.begin(sample_points(image, tracks.positions, settings))
        self._pyramid, self._smooth, self._mask, self._features = pyramid, smooth, mask, features
        self.frames += 1
        return np.concatenate(rows)

    def finish(self, found: Iterable[np.ndarray]) -> Trajectories:
        """Put together what `push` gave, now that the number of frames is known.

        Parameters
        ----------
        found : iterable of numpy.ndarray
            ``(N, 436)`` each.
        """
        rows = np.concatenate([np.empty((0, self.settings.width), np.float32), *found])
        place = rows[:, self.columns["t"]]
        rows[:, self.columns["t"]] = np.clip(place / max(self.frames, 1), 0, _END)
        return Trajectories(rows, self.columns, self.facts())

    def facts(self) -> dict[str, Any]:
        """Say what made the trajectories so far (`Trajectories.facts`)."""
        with one_thread() as cv2:
            version = cv2.__version__
        height, width = self._scales[0][1] if self._scales else (0, 0)
        return {
            "frames": self.frames,
            "height": height,
            "width": width,
            "scales": len(self._scales),
            "estimator": f"farneback (opencv {version})",
            "features": "none" if self._finder is None else f"{self._finder.name} (opencv {version})",
            "versions": {"opencv": version, "numpy": np.__version__},
            "homographies": list(self._accepted),
            "rejected": dict(zip(REJECTIONS, self._rejected.tolist(), strict=True)),
            "left": self._left,
            "settings": asdict(self.settings),
        }

    def _check(self, frame: np.ndarray) -> np.ndarray:
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] != 3):
            raise DataError(
                f"frame {self.frames} must be uint8 of shape (H, W) or (H, W, 3), got {frame.dtype} {frame.shape}.",
                remedy="Give grey or RGB frames of 8 bits; a volume goes through volume_trajectories.",
                code="shape",
            )
        if self.frames and frame.shape[:2] != self._scales[0][1]:
            raise DataError(
                f"frame {self.frames} has size {frame.shape[:2]}, the frames before it {self._scales[0][1]}.",
                remedy="Bring all frames of a video to one size.",
                code="shape",
            )
        if min(frame.shape[:2]) < self.settings.patch:
            raise DataError(
                f"frames of {frame.shape[0]} x {frame.shape[1]} pixels hold no tube of {self.settings.patch}.",
                remedy="Enlarge the frames, or give settings with a smaller patch.",
                code="small",
            )
        return np.ascontiguousarray(frame)

    def _start(self, height: int, width: int) -> None:
        self._scales = pyramid_scales(height, width, self.settings)
        self._tracks = [Tracks(self.settings) for _ in self._scales]
        if self.settings.compensation != "none":
            self._finder = FeatureFinder(self.settings.matcher)

    def _camera(self, flow: np.ndarray, features: Features) -> CameraMotion:
        if self._finder is None:
            return CameraMotion()
        matches = self._finder.match(self._features, features, self.settings.match_window)
        return find_camera_motion(self._pyramid[0], flow, matches, self.settings, mask=self._mask)

    def _advance(self, level: int, flow: np.ndarray, still: np.ndarray) -> np.ndarray:
        """Carry the tracks of one scale on; return the rows of those that are finished and kept."""
        tracks, (factor, (height, width)) = self._tracks[level], self._scales[level]
        positions = tracks.positions
        rows, columns = nearest_pixels(positions, height, width)
        points = positions + flow[rows, columns]
        inside = ((points > 0) & (points < (width, height))).all(axis=1)
        self._left += int(np.count_nonzero(~inside))
        histograms = describe_points(positions, self._pyramid[level], still, self.settings)
        paths, moves, means = tracks.advance(points, still[rows, columns], histograms, inside)
        paths, moves = paths * np.float32(factor), moves * np.float32(factor)
        verdict = judge_tracks(paths, moves, self.settings)
        self._rejected += np.bincount(verdict + 1, minlength=len(REJECTIONS) + 1)[1:]
        kept = verdict < 0
        return self._rows(paths[kept], moves[kept], means[kept], factor)

    def _rows(self, paths: np.ndarray, moves: np.ndarray, means: np.ndarray, factor: float) -> np.ndarray:
        settings = self.settings
        height, width = self._scales[0][1]
        rows = np.empty((len(paths), settings.width), np.float32)
        mean = paths.mean(axis=1)
        steps = np.linalg.norm(np.diff(paths, axis=1), axis=2)
        rows[:, 0] = self.frames
        rows[:, 1:3] = mean
        rows[:, 3:5] = paths.std(axis=1)
        rows[:, 5] = steps.sum(axis=1)
        rows[:, 6] = factor
        rows[:, 7:9] = np.clip(mean / np.array([width, height]), 0, _END)
        rows[:, 9] = self.frames - settings.length / 2
        path = np.linalg.norm(moves, axis=2).sum(axis=1)[:, None, None]
        rows[:, self.columns["trajectory"]] = (moves / np.where(path > 0, path, 1)).reshape(
            len(rows), 2 * settings.length
        )
        start = 0
        for name, bins in settings.bins.items():
            values = settings.cells**2 * bins
            part = means[:, :, start : start + values]
            rows[:, self.columns[name]] = part.reshape(len(rows), settings.time_cells * values)
            start += values
        return rows
