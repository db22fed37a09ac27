"""Improved dense trajectories of a data set: computed once and kept, encoded, and told apart by an SVM."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from volrec.benchmarks.encoding.classifiers import fit_classifier
from volrec.benchmarks.encoding.encode import TrajectoryEncoder, encode_videos
from volrec.benchmarks.encoding.table import VectorTable
from volrec.benchmarks.scores import ScoreSet, class_order
from volrec.benchmarks.sets import Video, VideoSet
from volrec.benchmarks.trajectories.extract import extract_trajectories
from volrec.benchmarks.trajectories.files import read_trajectories, read_trajectory_text, write_trajectories
from volrec.config import TrajectoryClassifier
from volrec.errors import DataError, Problem, RunError
from volrec.io.video import open_video
from volrec.parallel import map_processes
from volrec.progress import track

__all__ = ["Vectors", "compute_trajectories", "margins_of", "score_trajectories", "trajectory_vectors"]

SUFFIX = ".safetensors"
OTHERS = (".txt", ".txt.gz", ".gz", ".features", ".features.gz")
"""Endings of files in the text form of the authors' program."""
CHUNK = 32
"""Frames decoded at a time."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """Encoded training and test videos of a split.

    Attributes
    ----------
    train, test : ndarray
        (N, F) each, on disk.
    encoder : TrajectoryEncoder
        What made them; learned on the training videos alone.
    names : mapping
        ``train`` and ``test``: the videos of the rows.
    empty : tuple of str
        Videos without a trajectory.
    """

    encoder: TrajectoryEncoder
    train: np.ndarray
    test: np.ndarray
    names: Mapping[str, Sequence[str]]
    empty: tuple[str, ...]


def compute_trajectories(
    videos: Sequence[Video], folder: Path, *, decoder: str = "pyav", jobs: int = 1
) -> list[Problem]:
    """Compute the trajectories of videos that have none yet, a file each: ``FOLDER/<video.name>.safetensors``.

    Files that others made with the authors' program (``<video.name>.txt``, ``.features``, either with ``.gz``) are
    taken instead of the video: read once, checked, and kept beside them in the form that is quick to read.

    Returns
    -------
    list of Problem
        Videos that could not be read.
    """
    todo = [video for video in videos if not _file_of(video, folder).is_file()]
    problems = []
    work = partial(_compute, folder=folder, decoder=decoder)
    for outcome in map_processes(work, todo, jobs=jobs, description="trajectories", name=_name):
        if outcome.error is not None:
            error = outcome.error if isinstance(outcome.error, DataError) else DataError(str(outcome.error))
            if error.code == "video-package":
                raise error
            problems.append(Problem.of(error, where=str(outcome.item.path), study=outcome.item.name))
    return sorted(problems, key=lambda problem: problem.study)


def trajectory_vectors(
    settings: TrajectoryClassifier,
    train: Sequence[Video],
    test: Sequence[Video],
    *,
    folder: Path,
    work: Path,
    seed: int,
) -> Vectors:
    """Learn vocabularies on training videos and encode both sides; what is there is not computed again.

    Parameters
    ----------
    settings : TrajectoryClassifier
        Encoding.
    train, test : sequence of Video
        With trajectories in `folder`.
    folder : path
        Of `compute_trajectories`.
    work : path
        Folder for vocabularies and vectors.
    seed : int
        Of the descriptors that are drawn and of the vocabularies.
    """
    # Each list of training videos has a vocabulary of its own: one that was read at last may not be left out of it.
    own = work / _key(train, seed)
    own.mkdir(parents=True, exist_ok=True)
    vocabulary = own / "vocabulary.safetensors"
    if vocabulary.is_file():
        encoder = TrajectoryEncoder.load(vocabulary)
        _check_encoding(encoder.settings, settings, where=vocabulary)
    else:
        encoder = TrajectoryEncoder.fit(_rows(train, folder, "reading trajectories"), settings, seed=seed)
        encoder.save(vocabulary)
    empty: list[str] = []
    found = []
    for side, videos in (("train", train), ("test", test)):
        table = VectorTable(
            own / (side if side == "train" else f"test-{_key(test, seed)}"),
            names=[video.name for video in videos],
            columns=encoder.dimension,
            source=encoder.digest,
        )
        missing = set(table.missing)
        rows = _rows([video for video in videos if video.name in missing], folder, "")
        encoded = encode_videos(encoder, rows, table, description=f"encoding {side}ing videos")
        table.flush()
        empty += encoded.empty
        found.append(table.vectors)
    names = {"train": [video.name for video in train], "test": [video.name for video in test]}
    return Vectors(encoder, found[0], found[1], names, tuple(empty))


def score_trajectories(
    settings: TrajectoryClassifier,
    videos: VideoSet,
    vectors: Vectors,
    train: Sequence[Video],
    test: Sequence[Video],
    *,
    facts: Mapping[str, Any],
    jobs: int = 1,
) -> ScoreSet:
    """Fit the SVM to training videos and return its margins for test videos."""
    classes = _classes_of(train)
    machine = fit_classifier(
        settings,
        vectors.train,
        [classes.index(video.labels[0]) for video in train],
        classes=[videos.classes[label] for label in classes],
        channels=vectors.encoder.channels,
        jobs=jobs,
    )
    own = machine.scores(vectors.test)
    return margins_of(own, test, videos, machine.classes, facts={**facts, "c": machine.choice.c})


def margins_of(
    margins: np.ndarray, test: Sequence[Video], videos: VideoSet, classes: Sequence[str], *, facts: Mapping[str, Any]
) -> ScoreSet:
    """Return margins (N, K) of an SVM as scores of all classes of the set; one never seen is the least likely.

    Raises
    ------
    DataError
        There is no test video.
    """
    if not len(test):
        raise DataError(
            "there is no test video that can be scored.",
            remedy="See in the quarantine what became of them.",
            code="no-videos",
        )
    places = [videos.classes.index(name) for name in classes]
    whole = np.full((len(test), len(videos.classes)), float(np.min(margins)) - 1.0)
    whole[:, places] = margins
    return ScoreSet.from_arrays(
        [video.name for video in test],
        videos.classes,
        labels=[video.labels for video in test],
        logits=whole,
        stage="logits",
        facts={**facts, "class_order": class_order(videos.classes)},
    )


def _check_encoding(kept: TrajectoryClassifier, wanted: TrajectoryClassifier, *, where: Path) -> None:
    for name in ("encoding", "words", "samples", "descriptors"):
        if getattr(kept, name) != getattr(wanted, name):
            raise RunError(
                f"it was learned with {name} {getattr(kept, name)}, and {getattr(wanted, name)} is asked for.",
                remedy="Choose another folder for the run, or delete the file and what lies beside it.",
                where=where,
                code="other-settings",
            )


def _classes_of(train: Sequence[Video]) -> list[int]:
    """Return the classes that there are training videos of."""
    return sorted({video.labels[0] for video in train})


def _key(videos: Sequence[Video], seed: int) -> str:
    """Return 12 hex digits that tell lists of videos apart."""
    text = "\n".join([str(seed), *(video.name for video in videos)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _name(video: Video) -> str:
    return video.name


def _file_of(video: Video, folder: Path) -> Path:
    return folder / f"{video.name}{SUFFIX}"


def _compute(video: Video, *, folder: Path, decoder: str) -> None:
    others = next((path for path in (folder / f"{video.name}{end}" for end in OTHERS) if path.is_file()), None)
    if others is not None:
        write_trajectories(_file_of(video, folder), read_trajectory_text(others))
        return
    with open_video(video.path, decoder=decoder) as reader:
        total = reader.info.frames
        frames = (
            frame for start in range(0, total, CHUNK) for frame in reader.read(range(start, min(total, start + CHUNK)))
        )
        found = extract_trajectories(frames)
    path = _file_of(video, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_trajectories(path, found)


def _rows(videos: Sequence[Video], folder: Path, description: str) -> Iterator[tuple[str, np.ndarray]]:
    for video in track(videos, description) if description else videos:
        path = _file_of(video, folder)
        if path.is_file():
            yield video.name, read_trajectories(path).rows
