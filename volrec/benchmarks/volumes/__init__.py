"""The hand-crafted side for CT and MR volumes: trajectories across slices, beside the features of a run's networks."""

from volrec.benchmarks.volumes.beside import ARMS, Beside, measure_beside
from volrec.benchmarks.volumes.features import Features, network_features
from volrec.benchmarks.volumes.tracks import StudyTrajectories, VolumeSettings, choose_settings, study_trajectories
from volrec.inference.studies import Studies, open_run, open_studies

__all__ = [
    "ARMS",
    "Beside",
    "Features",
    "Studies",
    "StudyTrajectories",
    "VolumeSettings",
    "choose_settings",
    "measure_beside",
    "network_features",
    "open_run",
    "open_studies",
    "study_trajectories",
]
