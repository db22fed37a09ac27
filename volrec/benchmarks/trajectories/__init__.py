"""Improved dense trajectories: the hand-crafted features that the networks are compared with, of videos and volumes."""

from volrec.benchmarks.trajectories.extract import Trajectories, TrajectoryStream, extract_trajectories
from volrec.benchmarks.trajectories.files import (
    read_boxes,
    read_trajectories,
    read_trajectory_text,
    write_trajectories,
    write_trajectory_text,
)
from volrec.benchmarks.trajectories.settings import HEADER, TrajectorySettings
from volrec.benchmarks.trajectories.volume import volume_trajectories

__all__ = [
    "HEADER",
    "Trajectories",
    "TrajectorySettings",
    "TrajectoryStream",
    "extract_trajectories",
    "read_boxes",
    "read_trajectories",
    "read_trajectory_text",
    "volume_trajectories",
    "write_trajectories",
    "write_trajectory_text",
]
