"""Features of networks for a classifier of its own: C3D's fc6, a vector a video."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volrec.benchmarks.encoding.features import FeatureMachine, layer_features, video_feature
from volrec.benchmarks.encoding.table import VectorTable
from volrec.benchmarks.footage import Footage
from volrec.benchmarks.handcrafted import margins_of
from volrec.benchmarks.scores import ScoreSet
from volrec.benchmarks.sets import Video, VideoSet
from volrec.benchmarks.streams import each_video
from volrec.benchmarks.testing import StreamScorer
from volrec.config import FeatureClassifier, StreamProtocol
from volrec.errors import Problem, RunError
from volrec.networks.base import SequenceNetwork

__all__ = ["FeatureTaker", "score_features", "take_features"]


class FeatureTaker(StreamScorer):
    """Take the features of a layer instead of scores; the other parameters as `StreamScorer`.

    Parameters
    ----------
    layer : str
        Layer whose output after its ReLU is the feature.
    normalize : {"l2", "none"}
        Of a video's mean.
    """

    encodes_frames = False

    def __init__(
        self,
        network: SequenceNetwork,
        stream: StreamProtocol,
        *,
        layer: str,
        normalize: str,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(network, stream, device=device, seed=seed)
        self.layer, self.normalize = layer, normalize
        self._alone = threading.Lock()

    def feature(self, footage: Footage) -> np.ndarray:
        """Return the feature (F,) float32 of a video: the mean over its clips and crops, then its length one."""
        outputs = self.outputs(footage)
        return video_feature(outputs.reshape(-1, outputs.shape[-1]), normalize=self.normalize)

    def run(self, images: Tensor) -> Tensor:
        """Return features (B, F) of clips (B, C, T, H, W)."""
        # The layer is listened to from outside: videos that are in hand side by side would hear one another.
        with self._alone:
            return layer_features(self.network, images, self.layer)


def take_features(
    taker: FeatureTaker,
    videos: Sequence[Video],
    folder: Path,
    *,
    source: str,
    decoder: str,
    extracted: str | None,
    jobs: int,
    description: str,
) -> tuple[np.ndarray, list[Problem]]:
    """Return features (N, F) of videos, kept in `folder` as they come; rows of videos that cannot be read are zero.

    Parameters
    ----------
    taker : FeatureTaker
        Network and views.
    videos : sequence of Video
        One side of a split.
    folder : path
        Of the table.
    source : str
        What the features depend on: a table of other ones is refused.
    decoder, extracted, jobs, description
        As `volrec.benchmarks.streams.score_videos`.
    """
    problems: list[Problem] = []
    table: VectorTable | None = None

    def take(video: Video) -> np.ndarray:
        with taker.reader.open(video, decoder=decoder, extracted=extracted) as footage:
            return taker.feature(footage)

    names = [video.name for video in videos]
    columns = _kept_columns(folder)
    if columns is not None:
        table = VectorTable(folder, names=names, columns=columns, source=source)
    missing = set(names if table is None else table.missing)
    todo = [video for video in videos if video.name in missing]
    for video, found in each_video(take, todo, jobs=jobs, description=description):
        if isinstance(found, Problem):
            problems.append(found)
            continue
        if table is None:
            table = VectorTable(folder, names=names, columns=len(found), source=source)
        table.put(video.name, found)
    if table is None:
        raise RunError(
            f"none of {len(videos)} videos could be read; the first: {problems[0].reason if problems else 'no video'}",
            where=folder,
            code="no-videos",
        )
    table.flush()
    return np.asarray(table.vectors), problems


def score_features(
    settings: FeatureClassifier,
    videos: VideoSet,
    train: Sequence[Video],
    test: Sequence[Video],
    *,
    features: Sequence[tuple[np.ndarray, np.ndarray]],
    trajectories: tuple[np.ndarray, np.ndarray] | None,
    keep: Path,
    facts: Mapping[str, Any],
) -> ScoreSet:
    """Fit the SVM to the features of training videos and return its margins for test videos.

    Parameters
    ----------
    settings : FeatureClassifier
        How features are joined, and C.
    train, test : sequence of Video
        The videos of the rows.
    features : sequence of (ndarray, ndarray)
        Of each network, for training (N, F) and test videos (M, F).
    trajectories : (ndarray, ndarray), optional
        Vectors of trajectories beside them.
    keep : path
        File of the fitted machine.
    """
    present = sorted({video.labels[0] for video in train})
    machine = FeatureMachine.fit(
        settings,
        [one[0] for one in features],
        [present.index(video.labels[0]) for video in train],
        classes=[videos.classes[label] for label in present],
        groups=[video.group or video.name for video in train],
        trajectories=None if trajectories is None else trajectories[0],
    )
    machine.save(keep)
    margins = machine.scores(
        [one[1] for one in features], trajectories=None if trajectories is None else trajectories[1]
    )
    chosen = [choice.c for choice in machine.choices]
    return margins_of(margins, test, videos, machine.classes, facts={**facts, "c": chosen})


def _kept_columns(folder: Path) -> int | None:
    card = folder / "table.json"
    return int(json.loads(card.read_text())["columns"]) if card.is_file() else None
