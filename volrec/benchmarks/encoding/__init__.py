"""From descriptors and features of videos to scores of classes: Fisher vectors, bags of words, SVMs."""

from volrec.benchmarks.encoding.beside import BesideClassifier, fit_beside
from volrec.benchmarks.encoding.classifiers import (
    ChiSquareClassifier,
    LinearClassifier,
    fit_classifier,
    load_classifier,
)
from volrec.benchmarks.encoding.encode import Encoded, TrajectoryEncoder, encode_videos
from volrec.benchmarks.encoding.features import FeatureMachine, layer_features, video_feature
from volrec.benchmarks.encoding.table import VectorTable

__all__ = [
    "BesideClassifier",
    "ChiSquareClassifier",
    "Encoded",
    "FeatureMachine",
    "LinearClassifier",
    "TrajectoryEncoder",
    "VectorTable",
    "encode_videos",
    "fit_beside",
    "fit_classifier",
    "layer_features",
    "load_classifier",
    "video_feature",
]
