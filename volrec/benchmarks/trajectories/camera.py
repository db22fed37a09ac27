"""The motion of the camera between two frames: matches, a homography, the second frame brought back.

H. Wang, C. Schmid, "Action Recognition with Improved Trajectories", ICCV 2013, section 3.1. The paper matches SURF
features (Hessian threshold 200, extended, upright) and the flow of corners. The builds of OpenCV on PyPI have no SURF:
AKAZE (upright, MLDB, threshold 0.0003) takes its place. On three real clips it found agreeing matches at two times or
more as many places a millisecond as SIFT, and at more than ORB on two of them (`python
tests/performance/bench_trajectories.py matchers`). Where a build has neither SURF nor AKAZE, SIFT is used.
What was used is told in the facts of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from volrec.benchmarks.opencv import load_opencv
from volrec.benchmarks.trajectories.settings import TrajectorySettings
from volrec.benchmarks.trajectories.tracking import nearest_pixels
from volrec.errors import ConfigError, DataError

__all__ = ["CameraMotion", "FeatureFinder", "Features", "bring_back", "find_camera_motion", "mask_of_boxes"]

SURF_THRESHOLD = 200  # Of the released program.
AKAZE_THRESHOLD = 0.0003  # A third of OpenCV's default: about as many points as SURF finds.


@dataclass(frozen=True, eq=False)
class Features:
    """Points ``(N, 2)`` float32 and their descriptors ``(N, D)``, or None where nothing was found."""

    points: np.ndarray
    descriptors: np.ndarray | None


@dataclass(frozen=True, eq=False)
class CameraMotion:
    """What the camera did between two frames.

    Attributes
    ----------
    matrix : numpy.ndarray
        ``(3, 3)`` float64: pixel ``(x, y, 1)`` of the first frame to the second; the identity where none was accepted.
    matches, inliers : int
        Matches, and those that agree with the homography.
    accepted : bool
    """

    matrix: np.ndarray = field(default_factory=lambda: np.eye(3))
    matches: int = 0
    inliers: int = 0
    accepted: bool = False


class FeatureFinder:
    """Finds features in a frame and matches those of two.

    Parameters
    ----------
    matcher : {"auto", "surf", "akaze", "sift"}

    Attributes
    ----------
    name : str
        What is used, for example ``"akaze"``.

    Raises
    ------
    ConfigError
        When this build of OpenCV does not have the one that is asked for.
    """

    def __init__(self, matcher: str = "auto") -> None:
        cv2 = load_opencv()
        makers = {"surf": _make_surf, "akaze": _make_akaze, "sift": _make_sift}
        for name in makers if matcher == "auto" else (matcher,):
            detector = makers[name](cv2)
            if detector is not None:
                break
        else:
            raise ConfigError(
                f"this build of OpenCV ({cv2.__version__}) does not have features by {matcher!r}.",
                remedy="Choose matcher 'auto', or 'none' as compensation.",
                where="matcher",
                code="trajectory-matcher",
            )
        self.name = name
        self._detector = detector
        self._norm = cv2.NORM_HAMMING if name == "akaze" else cv2.NORM_L2

    def find(self, grey: np.ndarray, mask: np.ndarray | None) -> Features:
        """Find the features of a frame ``(H, W)`` uint8 where the mask, if any, is not 0."""
        keypoints, descriptors = self._detector.detectAndCompute(grey, mask)
        points = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
        return Features(points, descriptors)

    def match(self, first: Features, second: Features, window: float) -> tuple[np.ndarray, np.ndarray]:
        """Match each feature of the second frame to the most alike within `window` pixels along x and y in the first.

        Returns
        -------
        first, second : numpy.ndarray
            ``(N, 2)`` float32 each.
        """
        if first.descriptors is None or second.descriptors is None:
            return np.empty((0, 2), np.float32), np.empty((0, 2), np.float32)
        near = (np.abs(second.points[:, None] - first.points[None]) < window).all(axis=2).astype(np.uint8)
        matches = load_opencv().BFMatcher(self._norm).match(second.descriptors, first.descriptors, near)
        return (
            first.points[[match.trainIdx for match in matches]].reshape(-1, 2),
            second.points[[match.queryIdx for match in matches]].reshape(-1, 2),
        )


def mask_of_boxes(boxes: np.ndarray | Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Leave people out of the matches.

    Parameters
    ----------
    boxes : array
        ``(N, 4)`` or ``(N, 5)``: x and y of the upper left and the lower right corner, in pixels; a score is not read.
    height, width : int

    Returns
    -------
    numpy.ndarray
        ``(H, W)`` uint8: 0 within a box, 255 elsewhere.
    """
    mask = np.full((height, width), 255, np.uint8)
    boxes = np.asarray(boxes, dtype=np.float64)
    if not boxes.size:
        return mask
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 5) or not np.isfinite(boxes).all():
        raise DataError(
            f"the boxes of a frame have shape (N, 4) or (N, 5) and finite values, got {boxes.shape}.",
            remedy="Give x and y of the upper left and of the lower right corner, and a score or none.",
            code="trajectory-boxes",
        )
    for left, top, right, bottom in np.clip(boxes[:, :4], 0, max(height, width)):
        mask[int(np.ceil(top)) : int(bottom) + 1, int(np.ceil(left)) : int(right) + 1] = 0
    return mask


def find_camera_motion(
    grey: np.ndarray,
    flow: np.ndarray,
    matches: tuple[np.ndarray, np.ndarray],
    settings: TrajectorySettings,
    *,
    mask: np.ndarray | None = None,
) -> CameraMotion:
    """Fit a homography to the matches of features and to the flow at corners.

    Parameters
    ----------
    grey : numpy.ndarray
        ``(H, W)`` uint8, the first frame.
    flow : numpy.ndarray
        ``(H, W, 2)`` float32, from it to the second.
    matches : tuple of numpy.ndarray
        ``(N, 2)`` each: from `FeatureFinder.match`.
    settings : TrajectorySettings
    mask : numpy.ndarray, optional
        ``(H, W)`` uint8: no corner is taken where it is 0.

    Returns
    -------
    CameraMotion
    """
    cv2 = load_opencv()
    corners = cv2.goodFeaturesToTrack(
        grey, settings.corners, settings.corner_quality, settings.corner_distance, mask=mask
    )
    corners = np.empty((0, 2), np.float32) if corners is None else corners.reshape(-1, 2)
    # From the corner's pixel, on which the flow is known.
    rows, columns = nearest_pixels(corners, *grey.shape)
    corners = np.stack([columns, rows], axis=1).astype(np.float32)
    first = np.concatenate([corners, matches[0]])
    second = np.concatenate([corners + flow[rows, columns], matches[1]])
    if len(first) <= max(settings.more_matches, 4):
        return CameraMotion(matches=len(first))
    matrix, agrees = cv2.findHomography(first, second, cv2.RANSAC, settings.homography_threshold)
    inliers = 0 if matrix is None else int(np.count_nonzero(agrees))
    if inliers <= settings.more_inliers or abs(np.linalg.det(matrix)) < 1e-6:
        return CameraMotion(matches=len(first), inliers=inliers)
    return CameraMotion(matrix, len(first), inliers, True)


def bring_back(first: np.ndarray, second: np.ndarray, matrix: np.ndarray, *, margin: int) -> np.ndarray:
    """Bring the second frame back by the camera's motion.

    Parameters
    ----------
    first, second : numpy.ndarray
        ``(H, W)`` uint8.
    matrix : numpy.ndarray
        ``(3, 3)``, pixels of the first frame to the second.
    margin : int
        What comes from within so many pixels of the border, or from outside, is filled with the first frame, in which
        nothing is seen to move.

    Returns
    -------
    numpy.ndarray
        ``(H, W)`` uint8.
    """
    cv2 = load_opencv()
    height, width = first.shape
    x, y = np.arange(width), np.arange(height)[:, None]
    below: Any = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2]
    below = np.where(below == 0, np.inf, below)
    from_x = (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]) / below
    from_y = (matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]) / below
    known = (from_x > margin) & (from_x < width - 1 - margin) & (from_y > margin) & (from_y < height - 1 - margin)
    back = cv2.warpPerspective(second, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.where(known, back, first)


def _make_surf(cv2: Any) -> Any:
    try:
        return cv2.xfeatures2d.SURF_create(SURF_THRESHOLD, extended=True, upright=True)
    except (AttributeError, cv2.error):  # Not built in, or built without the algorithms that were patented.
        return None


def _make_akaze(cv2: Any) -> Any:
    # OpenCV 5 moved it to the contributed modules.
    for module in (cv2, getattr(cv2, "xfeatures2d", None)):
        if module is not None and hasattr(module, "AKAZE_create"):
            kind = module.AKAZE_DESCRIPTOR_MLDB_UPRIGHT
            return module.AKAZE_create(descriptor_type=kind, threshold=AKAZE_THRESHOLD)
    return None


def _make_sift(cv2: Any) -> Any:
    return cv2.SIFT_create() if hasattr(cv2, "SIFT_create") else None
