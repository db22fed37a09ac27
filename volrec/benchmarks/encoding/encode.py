"""From the trajectories of a video to one vector: vocabulary, encoding, and the vectors of a whole data set.

A vector of the usual Fisher settings has 2 x 256 x (15 + 48 + 54 + 48 + 48) = 109,056 numbers, without the trajectory's
own shape 101,376; a bag of 5 x 4000 words has 20,000. The training videos of UCF101 (9,537) in float32 are 4.2 GB, so
vectors go to a table on disk (`VectorTable`) one video after the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volrec.benchmarks.encoding.bow import RUNS, histogram, run_of_words
from volrec.benchmarks.encoding.descriptors import check_rows, descriptor, width
from volrec.benchmarks.encoding.fisher import Mixture, fisher_vector, fit_mixture
from volrec.benchmarks.encoding.pca import Projection, fit_projection
from volrec.benchmarks.encoding.sampling import RowSample
from volrec.benchmarks.encoding.stored import load_arrays, save_arrays
from volrec.benchmarks.encoding.table import VectorTable
from volrec.config import TrajectoryClassifier
from volrec.errors import DataError
from volrec.parallel import map_processes
from volrec.progress import track

__all__ = ["Encoded", "TrajectoryEncoder", "encode_videos"]


@dataclass(frozen=True, eq=False)
class _Part:
    """The vocabulary of one descriptor: a projection and a mixture, or words."""

    projection: Projection | None = None
    mixture: Mixture | None = None
    words: np.ndarray | None = None

    @property
    def dimension(self) -> int:
        if self.mixture is not None:
            return self.mixture.dimension
        return 0 if self.words is None else len(self.words)

    def arrays(self) -> dict[str, np.ndarray]:
        if self.projection is None or self.mixture is None:
            return {} if self.words is None else {"words": self.words}
        return {
            "mean": self.projection.mean,
            "components": self.projection.components,
            "weights": self.mixture.weights,
            "means": self.mixture.means,
            "variances": self.mixture.variances,
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> _Part:
        if "words" in arrays:
            return cls(words=arrays["words"])
        return cls(
            Projection(arrays["mean"], arrays["components"]),
            Mixture(arrays["weights"], arrays["means"], arrays["variances"]),
        )


@dataclass(frozen=True)
class _Task:
    """What a process needs to learn the vocabulary of one descriptor, or to do one run of k-means for it."""

    name: str
    rows: np.ndarray
    settings: TrajectoryClassifier
    seed: int
    whiten: bool
    run: int


@dataclass(frozen=True, eq=False)
class TrajectoryEncoder:
    """A vocabulary for each descriptor, and how a video is described by them.

    Attributes
    ----------
    settings : TrajectoryClassifier
        Encoding, words, descriptors.
    parts : mapping
        From descriptor, in the order of the vector, to its vocabulary.
    facts : mapping
        Seed, videos and trajectories that were seen and drawn, whether the projection whitens.
    """

    settings: TrajectoryClassifier
    parts: Mapping[str, _Part]
    facts: Mapping[str, Any]

    @classmethod
    def fit(
        cls,
        videos: Iterable[tuple[str, np.ndarray]],
        settings: TrajectoryClassifier | None = None,
        *,
        seed: int = 0,
        per_video: int | None = None,
        whiten: bool = False,
        jobs: int = 1,
    ) -> TrajectoryEncoder:
        """Learn the vocabularies from trajectories of training videos, read once, in any order.

        Parameters
        ----------
        videos : iterable of (str, ndarray)
            Name and trajectories (n, 436) of each.
        settings : TrajectoryClassifier, optional
            ``samples`` trajectories are drawn, the same for every descriptor.
        seed : int
            Of the draw and the vocabularies: same seed and videos, same vector.
        per_video : int, optional
            At most so many of a video (see `RowSample`); dtf_fisher, an implementation of others, draws 1000.
        whiten : bool
            Whether the projection before a mixture divides by standard deviations.
        jobs : int
            Processes; descriptors are learned side by side, with the same result.

        Raises
        ------
        DataError
            Too few trajectories, or some that cannot be used.
        """
        settings = settings or TrajectoryClassifier()
        sample = RowSample(settings.samples, seed=seed, per_video=per_video)
        for name, rows in videos:
            sample.add(name, check_rows(rows, where=name))
        rows = sample.rows()
        if not len(rows):
            raise DataError(
                f"no trajectories were found in {sample.videos} videos.",
                remedy="Look at the trajectories: still scenes have none.",
                code="few-descriptors",
            )
        tasks = [
            _Task(name, np.ascontiguousarray(descriptor(rows, name)), settings, seed, whiten, run)
            for name in settings.descriptors
            for run in range(RUNS if settings.encoding == "bow" else 1)
        ]
        best: dict[str, tuple[float, int]] = {}
        learned: dict[str, _Part] = {}
        for outcome in map_processes(_learn, tasks, jobs=jobs, description="vocabularies", name=lambda task: task.name):
            if outcome.error is not None or outcome.result is None:
                raise outcome.error or DataError("no vocabulary was learned.", where=outcome.item.name)
            # Results come in any order: of equal losses the earlier run counts.
            name, rank = outcome.item.name, (outcome.result[0], outcome.item.run)
            if name not in best or rank < best[name]:
                best[name], learned[name] = rank, outcome.result[1]
        facts = {
            "seed": seed,
            "videos": sample.videos,
            "trajectories": sample.seen,
            "drawn": len(rows),
            "per_video": per_video,
            "whiten": whiten,
        }
        return cls(settings, {str(name): learned[name] for name in settings.descriptors}, facts)

    @property
    def channels(self) -> dict[str, tuple[int, int]]:
        """First place of each descriptor in the vector, and the one after its last."""
        found, start = {}, 0
        for name, part in self.parts.items():
            found[name] = (start, start + part.dimension)
            start += part.dimension
        return found

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""
        return sum(part.dimension for part in self.parts.values())

    @property
    def digest(self) -> str:
        """16 hex digits: vectors of encoders that differ in it must not be mixed."""
        found = hashlib.sha256(json.dumps([self.settings.encoding, self._norm]).encode())
        for key, array in sorted(self._arrays().items()):
            found.update(key.encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:16]

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Return the vector (F,) float32 of a video's trajectories (n, 436); zeros where it has none.

        Fisher vectors and, before a linear SVM, bags of words have length one for each descriptor; before a chi-square
        kernel bags of words have sum one (no paper says how; either suits its kernel).
        """
        rows = check_rows(rows)
        found = np.zeros(self.dimension, dtype=np.float32)
        if not len(rows):
            return found
        for (name, part), (start, end) in zip(self.parts.items(), self.channels.values(), strict=True):
            columns = descriptor(rows, name)
            if part.words is not None:
                found[start:end] = histogram(columns, part.words, normalize=self._norm)
            elif part.projection is not None and part.mixture is not None:
                found[start:end] = fisher_vector(part.projection(columns), part.mixture)
        return found

    def save(self, path: Path | str) -> None:
        """Write it to ``….safetensors`` (see `stored`)."""
        facts = {"settings": self.settings.to_dict(), **self.facts}
        save_arrays(path, self._arrays(), kind="trajectory-encoder", facts=facts)

    @classmethod
    def load(cls, path: Path | str) -> TrajectoryEncoder:
        """Read what `save` wrote; its vectors are the same to the last digit."""
        arrays, _, facts = load_arrays(path, kinds=("trajectory-encoder",))
        settings = TrajectoryClassifier(**facts.pop("settings"))
        own: dict[str, dict[str, np.ndarray]] = {name: {} for name in settings.descriptors}
        for key, array in arrays.items():
            name, _, what = key.partition(".")
            own[name][what] = array
        return cls(settings, {name: _Part.of(found) for name, found in own.items()}, facts)

    @property
    def _norm(self) -> str:
        return "l1" if self.settings.kernel == "chi2" else "l2"

    def _arrays(self) -> dict[str, np.ndarray]:
        return {f"{name}.{key}": array for name, part in self.parts.items() for key, array in part.arrays().items()}


@dataclass(frozen=True, eq=False)
class Encoded:
    """The vectors of videos.

    Attributes
    ----------
    table : VectorTable
        Complete; ``table.vectors`` is (N, F), on disk.
    empty : tuple of str
        Videos without a trajectory: their vector is zero, and a classifier can only say what it says of nothing.
    """

    table: VectorTable
    empty: tuple[str, ...]


def encode_videos(
    encoder: TrajectoryEncoder, videos: Iterable[tuple[str, np.ndarray]], table: VectorTable, *, description: str = ""
) -> Encoded:
    """Encode one video after the other into a table on disk; those that it has already are not encoded again.

    Parameters
    ----------
    encoder : TrajectoryEncoder
    videos : iterable of (str, ndarray)
        Name and trajectories (n, 436). Give only ``table.missing`` where reading them takes long.
    table : VectorTable
        Opened with ``columns=encoder.dimension`` and ``source=encoder.digest``.
    description : str
        Text of the progress bar.

    Raises
    ------
    DataError
        A video of the table was not among those given.
    """
    wanted = set(table.missing)
    for name, rows in track(videos, description or "encoding trajectories", len(wanted)):
        if name in wanted:
            table.put(name, encoder.encode(check_rows(rows, where=name)))
            wanted.remove(name)
    if wanted:
        some = ", ".join(sorted(wanted)[:3])
        raise DataError(
            f"{len(wanted)} of {len(table.names)} videos have no trajectories computed yet: {some}.",
            remedy="Compute them first; a video in which none are found counts as computed.",
            code="missing",
        )
    zero = [name for name, row in zip(table.names, table.vectors, strict=True) if not row.any()]
    return Encoded(table, tuple(zero))


def _learn(task: _Task) -> tuple[float, _Part]:
    """Return a loss, to be compared between runs, and a vocabulary."""
    if task.settings.encoding == "bow":
        found = run_of_words(task.rows, task.settings.words, seed=task.seed, run=task.run)
        return found.loss, _Part(words=found.centres)
    projection = fit_projection(task.rows, keep=width(task.name) // 2, whiten=task.whiten)
    return 0.0, _Part(projection, fit_mixture(projection(task.rows), task.settings.words, seed=task.seed))
