"""Every constant of improved dense trajectories, with where it comes from, and the columns of a row.

H. Wang, C. Schmid, "Action Recognition with Improved Trajectories", ICCV 2013 [1]_, on top of H. Wang, A. Kläser,
C. Schmid, C.-L. Liu, "Action Recognition by Dense Trajectories", CVPR 2011 [2]_. Where the papers are silent the
authors' released program decides (version 1.2), and the text says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from volrec.errors import ConfigError

__all__ = ["COMPENSATIONS", "HEADER", "MATCHERS", "TrajectorySettings"]

HEADER = ("frame", "mean_x", "mean_y", "var_x", "var_y", "length", "scale", "x", "y", "t")
"""The ten fields before the descriptors.

Last frame of the track (from 0); mean place in pixels of the full frame; its spread (called variance by the released
program, yet a standard deviation); length of the path in pixels; scale factor; and the mean place over width, height
and number of frames, for spatio-temporal pyramids, in [0, 0.999].
"""

COMPENSATIONS = ("homography", "none")
MATCHERS = ("auto", "surf", "akaze", "sift")


@dataclass(frozen=True)
class TrajectorySettings:
    """What determines trajectories and their descriptors; the defaults are those of the released program.

    Attributes
    ----------
    step : int
        A point every so many pixels, in cells that no track is in [2]_.
    scales, scale_factor : int, float
        At most so many scales, each smaller by the factor, while the shorter side holds `patch` pixels [2]_.
    quality : float
        A point needs a smaller eigenvalue of the auto-correlation (3 x 3) above this share of the frame's largest [2]_.
    length, refresh : int
        Steps of a track; frames between two samplings [2]_.
    patch, cells, time_cells : int
        Pixels along each side of the tube around a track, its cells along each side and along time [2]_.
    hog_bins, hof_bins, mbh_bins : int
        Bins of orientation; the last one of HOF takes what hardly moves [2]_.
    least_flow : float
        Pixels a frame: what moves no further counts one in that last bin (program; the paper has no number).
    epsilon : float
        Added to every bin before it is normalised (program).
    poly_n, poly_sigma, flow_window, flow_iterations : int, float, int, int
        Farnebäck's flow, weighted by a Gaussian window (program).
    flow_median : {0, 3, 5}
        Median filter of the flow at each scale, in pixels; 0 is none. The paper [2]_ filters where a point is tracked;
        the program does it over 5 pixels in the flow itself, before the next finer scale.
    compensation : {"homography", "none"}
        Whether the motion of the camera is taken out [1]_; without, the rows are dense trajectories [2]_ in the same
        columns.
    matcher : {"auto", "surf", "akaze", "sift"}
        Features for the homography: SURF in the paper. ``"auto"`` takes SURF where this build of OpenCV has it, else
        AKAZE, else SIFT (see `volrec.benchmarks.trajectories.camera`).
    match_window : int
        Pixels along x and y within which a feature is looked for in the next frame (program).
    corners, corner_quality, corner_distance : int, float, int
        Corners whose flow gives further matches: at most so many, their quality, their distance (program).
    homography_threshold : float
        Pixels within which RANSAC counts a match as agreeing (program).
    more_matches, more_inliers : int
        A homography is accepted with more matches and more that agree than these (program).
    margin : int
        Pixels at the border of the second frame that are not brought back: the first frame is taken there (program).
    static_spread, random_spread : float
        Tracks are left out whose spread is below the first along both axes, or above the second along one (program).
    jump, jump_share : float
        Tracks are left out with a step above so many pixels and above this share of their path (program).
    camera_step : float
        Tracks are left out that move no step beyond this once the camera's motion is out [1]_ (number: program).

    References
    ----------
    .. [1] H. Wang, C. Schmid, "Action Recognition with Improved Trajectories", ICCV 2013.
    .. [2] H. Wang et al., "Action Recognition by Dense Trajectories", CVPR 2011.
    """

    step: int = 5
    scales: int = 8
    scale_factor: float = math.sqrt(2)
    quality: float = 0.001
    length: int = 15
    refresh: int = 1
    patch: int = 32
    cells: int = 2
    time_cells: int = 3
    hog_bins: int = 8
    hof_bins: int = 9
    mbh_bins: int = 8
    least_flow: float = 0.4
    epsilon: float = 0.05
    poly_n: int = 7
    poly_sigma: float = 1.5
    flow_window: int = 10
    flow_iterations: int = 2
    flow_median: int = 5
    compensation: str = "homography"
    matcher: str = "auto"
    match_window: int = 25
    corners: int = 1000
    corner_quality: float = 0.001
    corner_distance: int = 3
    homography_threshold: float = 1.0
    more_matches: int = 50
    more_inliers: int = 25
    margin: int = 5
    static_spread: float = math.sqrt(3)
    random_spread: float = 50.0
    jump: float = 20.0
    jump_share: float = 0.7
    camera_step: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "str":
                continue
            whole = field.type == "int"
            # NaN is not >= 0 either.
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not value >= 0:
                self._refuse(field.name, value, f"{'an integer' if whole else 'a number'} from 0 on")
        for name in ("step", "scales", "length", "refresh", "patch", "cells", "time_cells", "flow_iterations"):
            if getattr(self, name) < 1:
                self._refuse(name, getattr(self, name), "at least 1")
        for name, least in (("hog_bins", 2), ("hof_bins", 3), ("mbh_bins", 2)):
            if getattr(self, name) < least:
                self._refuse(name, getattr(self, name), f"at least {least}")
        if self.scale_factor <= 1:
            self._refuse("scale_factor", self.scale_factor, "above 1")
        if self.length % self.time_cells:
            self._refuse("length", self.length, f"a multiple of time_cells, {self.time_cells}")
        if self.patch % self.cells:
            self._refuse("patch", self.patch, f"a multiple of cells, {self.cells}")
        if self.flow_median not in (0, 3, 5):
            self._refuse("flow_median", self.flow_median, "0, 3 or 5")
        if self.compensation not in COMPENSATIONS:
            self._refuse("compensation", self.compensation, f"one of {', '.join(COMPENSATIONS)}")
        if self.matcher not in MATCHERS:
            self._refuse("matcher", self.matcher, f"one of {', '.join(MATCHERS)}")

    def _refuse(self, name: str, value: Any, wanted: str) -> None:
        raise ConfigError(
            f"{name} of trajectories must be {wanted}; got {value!r}.",
            remedy="Change it, or leave it out for the value of the released program.",
            where=name,
            code="trajectory-settings",
        )

    @property
    def bins(self) -> dict[str, int]:
        """Bins of each histogram, in the order of the row."""
        return {"hog": self.hog_bins, "hof": self.hof_bins, "mbhx": self.mbh_bins, "mbhy": self.mbh_bins}

    @property
    def columns(self) -> dict[str, slice]:
        """Columns of a row by name: those of `HEADER`, ``"trajectory"``, ``"hog"``, ``"hof"``, ``"mbhx"``, ``"mbhy"``.

        Within a descriptor the order is time cell, cell along x, cell along y, bin; the trajectory is x, y of each
        step, divided by the length of the path without the camera's motion.
        """
        widths = {
            **dict.fromkeys(HEADER, 1),
            "trajectory": 2 * self.length,
            **{name: self.time_cells * self.cells**2 * bins for name, bins in self.bins.items()},
        }
        columns, start = {}, 0
        for name, width in widths.items():
            columns[name] = slice(start, start + width)
            start += width
        return columns

    @property
    def width(self) -> int:
        """Columns of a row: 436 as published."""
        return self.columns["mbhy"].stop
