"""Support vector machines on the vectors of videos: each class against all others, linear or of chi-square distances.

Two choices that the papers leave open are made here. The linear machine is scikit-learn's LinearSVC (squared hinge,
solved in the primal, which draws nothing) on `Coordinates`: the same machine as on the vectors, and the only form of it
that fits into memory for Fisher vectors. The chi-square machine is one SVC a class (hinge) on a precomputed kernel.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volrec.benchmarks.encoding.choice import Choice, choose_c
from volrec.benchmarks.encoding.kernels import (
    Coordinates,
    Vectors,
    channel_distances,
    chi_square_kernel,
    side_by_side,
)
from volrec.benchmarks.encoding.stored import load_arrays, save_arrays
from volrec.config import TrajectoryClassifier
from volrec.errors import DataError, LabelsError
from volrec.progress import track

__all__ = [
    "ChiSquareClassifier",
    "LinearClassifier",
    "check_labels",
    "fit_classifier",
    "fit_kernel_machines",
    "fit_linear_machines",
    "load_classifier",
]

log = logging.getLogger(__name__)

_ROWS = 256


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """One linear machine a class.

    Attributes
    ----------
    classes : tuple of str
        K names.
    weights : ndarray
        (K, F) float32.
    intercepts : ndarray
        (K,) float64.
    choice : Choice
        Its C.
    """

    classes: tuple[str, ...]
    weights: np.ndarray
    intercepts: np.ndarray
    choice: Choice

    @classmethod
    def fit(
        cls,
        vectors: Vectors,
        labels: Sequence[int],
        *,
        classes: Sequence[str],
        c: float | Sequence[float] = 100.0,
        groups: Sequence[str] | None = None,
    ) -> LinearClassifier:
        """Fit it to the vectors of training videos.

        Parameters
        ----------
        vectors : ndarray or sequence of ndarray
            (N, F), or parts side by side; read in blocks, so that they may be on disk.
        labels : sequence of int
            (N,) places in `classes`.
        classes : sequence of str
            K names.
        c : float or sequence of float
            Of several the best by cross-validation over `groups`.
        groups : sequence of str, optional
            (N,); every video its own by default.

        Raises
        ------
        LabelsError
            A class without a video, fewer than two classes, labels out of range or of another number.
        """
        found = check_labels(labels, classes, len(side_by_side(vectors)[0]))
        coordinates = Coordinates(vectors)
        rows = coordinates.rows

        def errors(train: np.ndarray, left: np.ndarray, c: float) -> np.ndarray:
            weights, intercepts = fit_linear_machines(rows[train], found[train], len(classes), c)
            return np.asarray((rows[left] @ weights.T + intercepts).argmax(axis=1) != found[left])

        choice = choose_c(_several(c), errors, groups=_own_groups(groups, found))
        weights, intercepts = fit_linear_machines(rows, found, len(classes), choice.c)
        return cls(tuple(classes), coordinates.weights(weights), intercepts, choice)

    def scores(self, vectors: Vectors) -> np.ndarray:
        """Return margins (N, K) float64, in the order of `classes`.

        Raises
        ------
        DataError
            Vectors of another length than those it was fitted to.
        """
        parts = side_by_side(vectors)
        width = sum(part.shape[1] for part in parts)
        if width != self.weights.shape[1]:
            raise DataError(
                f"vectors have {width} numbers, those it was fitted to {self.weights.shape[1]}.",
                remedy="Encode the videos with the vocabulary that it was fitted with.",
                code="vectors",
            )
        found = np.tile(self.intercepts, (len(parts[0]), 1))
        for start in range(0, len(found), _ROWS):
            block = np.concatenate([np.asarray(part[start : start + _ROWS], np.float64) for part in parts], axis=1)
            found[start : start + _ROWS] += block @ self.weights.T.astype(np.float64)
        return found

    def save(self, path: Path | str) -> None:
        """Write it to ``….safetensors`` (see `stored`)."""
        arrays = {"weights": self.weights, "intercepts": self.intercepts}
        save_arrays(
            path, arrays, kind="linear-svm", facts={"classes": list(self.classes), "choice": self.choice.facts()}
        )

    @classmethod
    def load(cls, path: Path | str) -> LinearClassifier:
        """Read what `save` wrote; its scores are the same to the last digit."""
        arrays, _, facts = load_arrays(path, kinds=("linear-svm",))
        return cls(tuple(facts["classes"]), arrays["weights"], arrays["intercepts"], Choice.of(facts["choice"]))


@dataclass(frozen=True, eq=False)
class ChiSquareClassifier:
    """One machine a class on ``exp(- mean over channels of D / A)``, D chi-square distances and A their training mean.

    J. Zhang, M. Marszalek, S. Lazebnik, C. Schmid, "Local Features and Kernels for Classification of Texture and Object
    Categories", IJCV 2007.

    Attributes
    ----------
    classes : tuple of str
        K names.
    support : ndarray
        (S, F) float32: training vectors that any class rests on.
    duals : ndarray
        (K, S) float64.
    intercepts : ndarray
        (K,) float64.
    channels : mapping
        From descriptor to first column and the one after its last.
    scales : mapping
        From descriptor to A.
    choice : Choice
        Its C.
    """

    classes: tuple[str, ...]
    support: np.ndarray
    duals: np.ndarray
    intercepts: np.ndarray
    channels: Mapping[str, tuple[int, int]]
    scales: Mapping[str, float]
    choice: Choice

    @classmethod
    def fit(
        cls,
        vectors: np.ndarray,
        labels: Sequence[int],
        *,
        classes: Sequence[str],
        channels: Mapping[str, tuple[int, int]],
        c: float | Sequence[float] = 100.0,
        groups: Sequence[str] | None = None,
        jobs: int = 1,
    ) -> ChiSquareClassifier:
        """Fit it to bags of words (N, F), none of them negative; the rest as `LinearClassifier.fit`.

        Distances of 9,537 videos hold about 1.5 GB.

        Raises
        ------
        DataError
            Vectors that are no bags of words.
        LabelsError
            As `LinearClassifier.fit`.
        """
        found = check_labels(labels, classes, len(vectors))
        if not (np.min(vectors) >= 0):  # not a number is no better
            raise DataError(
                f"chi-square distances are between histograms, and the vectors go down to {np.min(vectors):g}.",
                remedy="Encode as a bag of words (encoding bow), or take the linear kernel.",
                code="vectors",
            )
        distances, scales = channel_distances(vectors, channels=channels, jobs=jobs)
        kernel = chi_square_kernel(distances)

        def errors(train: np.ndarray, left: np.ndarray, c: float) -> np.ndarray:
            duals, intercepts = fit_kernel_machines(kernel[np.ix_(train, train)], found[train], len(classes), c)
            scores = kernel[np.ix_(left, train)] @ duals.T + intercepts
            return np.asarray(scores.argmax(axis=1) != found[left])

        choice = choose_c(_several(c), errors, groups=_own_groups(groups, found))
        duals, intercepts = fit_kernel_machines(kernel, found, len(classes), choice.c, bar=True)
        used = np.flatnonzero(duals.any(axis=0))
        return cls(
            tuple(classes),
            np.asarray(vectors[used], dtype=np.float32),
            np.ascontiguousarray(duals[:, used]),
            intercepts,
            dict(channels),
            scales,
            choice,
        )

    def scores(self, vectors: np.ndarray, *, jobs: int = 1) -> np.ndarray:
        """Return margins (N, K) float64 of bags of words (N, F), in the order of `classes`."""
        if vectors.ndim != 2 or vectors.shape[1] != self.support.shape[1]:
            raise DataError(
                f"vectors are of shape {vectors.shape}, those it was fitted to have {self.support.shape[1]} numbers.",
                remedy="Encode the videos with the vocabulary that it was fitted with.",
                code="vectors",
            )
        vectors = np.asarray(vectors, dtype=np.float32)
        distances, _ = channel_distances(vectors, self.support, channels=self.channels, scales=self.scales, jobs=jobs)
        return np.asarray(chi_square_kernel(distances) @ self.duals.T + self.intercepts)

    def save(self, path: Path | str) -> None:
        """Write it to ``….safetensors`` (see `stored`)."""
        facts = {
            "classes": list(self.classes),
            "channels": {name: list(place) for name, place in self.channels.items()},
            "scales": dict(self.scales),
            "choice": self.choice.facts(),
        }
        arrays = {"support": self.support, "duals": self.duals, "intercepts": self.intercepts}
        save_arrays(path, arrays, kind="chi-square-svm", facts=facts)

    @classmethod
    def load(cls, path: Path | str) -> ChiSquareClassifier:
        """Read what `save` wrote; its scores are the same to the last digit."""
        arrays, _, facts = load_arrays(path, kinds=("chi-square-svm",))
        channels = {name: (int(start), int(end)) for name, (start, end) in facts["channels"].items()}
        return cls(
            tuple(facts["classes"]),
            arrays["support"],
            arrays["duals"],
            arrays["intercepts"],
            channels,
            facts["scales"],
            Choice.of(facts["choice"]),
        )


def fit_classifier(
    settings: TrajectoryClassifier,
    vectors: np.ndarray,
    labels: Sequence[int],
    *,
    classes: Sequence[str],
    channels: Mapping[str, tuple[int, int]],
    jobs: int = 1,
) -> LinearClassifier | ChiSquareClassifier:
    """Fit the machine that settings name to the vectors (N, F) of a `TrajectoryEncoder` with such channels."""
    if settings.kernel == "linear":
        return LinearClassifier.fit(vectors, labels, classes=classes, c=settings.c)
    return ChiSquareClassifier.fit(vectors, labels, classes=classes, channels=channels, c=settings.c, jobs=jobs)


def load_classifier(path: Path | str) -> LinearClassifier | ChiSquareClassifier:
    """Read a classifier of either kind."""
    _, kind, _ = load_arrays(path, kinds=("linear-svm", "chi-square-svm"))
    return LinearClassifier.load(path) if kind == "linear-svm" else ChiSquareClassifier.load(path)


def fit_linear_machines(rows: np.ndarray, labels: np.ndarray, count: int, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (K, R) and intercepts (K,) of one linear machine a class; minus infinity for classes not there."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    present = np.unique(labels)
    weights, intercepts = np.zeros((count, rows.shape[1])), np.full(count, -np.inf)
    if len(present) == 1:
        intercepts[present] = 0.0
        return weights, intercepts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine = LinearSVC(C=c, dual=False, tol=1e-6, max_iter=10_000).fit(rows, labels)
    if int(np.max(machine.n_iter_)) >= machine.max_iter:
        log.warning("the linear machine with C = %g was still changing after %d steps", c, machine.max_iter)
    signs = np.array([[-1.0], [1.0]]) if len(present) == 2 else 1.0
    weights[present] = signs * machine.coef_
    intercepts[present] = (signs * machine.intercept_[:, None]).ravel() if len(present) == 2 else machine.intercept_
    return weights, intercepts


def fit_kernel_machines(
    kernel: np.ndarray, labels: np.ndarray, count: int, c: float, *, bar: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return duals (K, N) and intercepts (K,) of one machine a class on a kernel (N, N), as `fit_linear_machines`."""
    from sklearn.svm import SVC

    present = np.unique(labels)
    duals, intercepts = np.zeros((count, len(labels))), np.full(count, -np.inf)
    if len(present) == 1:
        intercepts[present] = 0.0
        return duals, intercepts
    for place in track(present, "support vector machines") if bar else present:
        machine = SVC(C=c, kernel="precomputed", tol=1e-4, cache_size=1000).fit(kernel, labels == place)
        duals[place, machine.support_] = machine.dual_coef_[0]
        intercepts[place] = machine.intercept_[0]
    return duals, intercepts


def check_labels(labels: Sequence[int], classes: Sequence[str], count: int) -> np.ndarray:
    """Return labels as (N,) int64.

    Raises
    ------
    LabelsError
        Fewer than two classes, a class without a video, labels out of range or of another number.
    """
    found = np.asarray(labels, dtype=np.int64)
    problem = ""
    if found.shape != (count,):
        problem = f"there are {count} vectors and {found.size} labels."
    elif len(classes) < 2:
        problem = f"a classifier needs two classes, got {len(classes)}."
    elif count and (found.min() < 0 or found.max() >= len(classes)):
        problem = f"labels are places among {len(classes)} classes, got {found.min()} to {found.max()}."
    if problem:
        raise LabelsError(problem, remedy="Give one label a video, and the classes in their order.", code="labels")
    lacking = [name for place, name in enumerate(classes) if place not in set(found.tolist())]
    if lacking:
        raise LabelsError(
            f"{len(lacking)} of {len(classes)} classes have no training video: {', '.join(lacking[:3])}"
            f"{' …' if len(lacking) > 3 else '.'}",
            remedy="Add videos of them, or leave these classes out.",
            code="empty-class",
        )
    return found


def _several(c: float | Sequence[float]) -> Sequence[float]:
    return (float(c),) if isinstance(c, (int, float)) else c


def _own_groups(groups: Sequence[str] | None, labels: np.ndarray) -> Sequence[str]:
    if groups is None:
        return [str(place) for place in range(len(labels))]
    if len(groups) != len(labels):
        raise LabelsError(
            f"there are {len(labels)} labels and {len(groups)} groups.", remedy="Give one a video.", code="labels"
        )
    return groups
