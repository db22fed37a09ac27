"""Improved dense trajectories: the hand-crafted features that the networks are compared with, of videos and volumes."""

from volrec.benchmarks.trajectories.extract import Trajectories, TrajectoryStream, extract_trajectories
from volrec.benchmarks.trajectories.settings import HEADER, TrajectorySettings

__all__ = ["HEADER", "Trajectories", "TrajectorySettings", "TrajectoryStream", "extract_trajectories"]
