"""Vectors of trajectories beside the pooled features of a network: chances of classes for studies (volumes).

Few studies and long vectors: either kind is brought to length one, they lie side by side, and the penalty of a linear
model is chosen by cross-validation in which a patient stays on one side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volrec.benchmarks.encoding.choice import Choice, choose_c, group_folds
from volrec.benchmarks.encoding.classifiers import LinearClassifier, check_labels, fit_linear_machines
from volrec.benchmarks.encoding.features import unit
from volrec.benchmarks.encoding.kernels import Coordinates
from volrec.benchmarks.encoding.stored import load_arrays, save_arrays
from volrec.errors import ConfigError

__all__ = ["PENALTIES", "BesideClassifier", "fit_beside"]

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Values of C that are tried."""


@dataclass(frozen=True, eq=False)
class BesideClassifier:
    """A linear model of vectors and features side by side.

    Attributes
    ----------
    model : {"logistic", "svm"}
    linear : LinearClassifier
        Weights over the vector, then the feature, each of length one, and the choice of C.
    slopes, offsets : ndarray
        (K,) float64: the chance of a class is ``sigmoid(slope * margin + offset)``, over the sum of all classes
        (SVM, by Platt's method); ones and zeros for logistic regression, whose scores are exact.
    """

    model: str
    linear: LinearClassifier
    slopes: np.ndarray
    offsets: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        """K names."""
        return self.linear.classes

    @property
    def choice(self) -> Choice:
        """How C was chosen."""
        return self.linear.choice

    def probabilities(self, vectors: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return chances (N, K) float64 with a sum of one, for vectors (N, G) and features (N, F)."""
        scores = self.linear.scores([unit(vectors), unit(features)])
        if self.model == "logistic":
            return _softmax(scores)
        return _platt(scores, self.slopes, self.offsets)

    def save(self, path: Path | str) -> None:
        """Write it to ``….safetensors`` (see `stored`)."""
        arrays = {
            "weights": self.linear.weights,
            "intercepts": self.linear.intercepts,
            "slopes": self.slopes,
            "offsets": self.offsets,
        }
        facts = {"model": self.model, "classes": list(self.classes), "choice": self.choice.facts()}
        save_arrays(path, arrays, kind="beside", facts=facts)

    @classmethod
    def load(cls, path: Path | str) -> BesideClassifier:
        """Read what `save` wrote; its chances are the same to the last digit."""
        arrays, _, facts = load_arrays(path, kinds=("beside",))
        linear = LinearClassifier(
            tuple(facts["classes"]), arrays["weights"], arrays["intercepts"], Choice.of(facts["choice"])
        )
        return cls(facts["model"], linear, arrays["slopes"], arrays["offsets"])


def fit_beside(
    vectors: np.ndarray,
    features: np.ndarray,
    labels: Sequence[int],
    *,
    classes: Sequence[str],
    groups: Sequence[str],
    model: str = "logistic",
    c: Sequence[float] = PENALTIES,
) -> BesideClassifier:
    """Fit a classifier of studies.

    Parameters
    ----------
    vectors : ndarray
        (N, G) of a `TrajectoryEncoder`; zeros where a study has no trajectory.
    features : ndarray
        (N, F) pooled features of a network, of training studies that it was not fitted to where there are some:
        features of studies that a network knows by heart promise too much.
    labels : sequence of int
        (N,) places in `classes`, which exclude each other.
    classes : sequence of str
        K names.
    groups : sequence of str
        (N,) patients.
    model : {"logistic", "svm"}
        Logistic regression (C of least log loss), or linear machines (C of fewest errors, chances by Platt's method
        from margins of studies left out).
    c : sequence of float
        Values that are tried.

    Raises
    ------
    ConfigError
        Another model, or too few groups to choose among several C or, of an SVM, to learn chances from.
    LabelsError
        Labels or groups that do not fit, a class without a study.
    """
    found = check_labels(labels, classes, len(vectors))
    check_labels(labels, classes, len(features))
    check_labels(labels, classes, len(groups))
    if model not in ("logistic", "svm"):
        raise ConfigError(f"model must be logistic or svm, got {model!r}.", where="model", code="model")
    coordinates = Coordinates([unit(vectors), unit(features)])
    rows, count = coordinates.rows, len(classes)
    fit = _fit_logistic if model == "logistic" else fit_linear_machines

    def losses(train: np.ndarray, left: np.ndarray, c: float) -> np.ndarray:
        weights, intercepts = fit(rows[train], found[train], count, c)
        scores = rows[left] @ weights.T + intercepts
        if model == "svm":
            return np.asarray(scores.argmax(axis=1) != found[left])
        # A class that no training study of this fold has gets no chance: the loss of its studies stays finite.
        return -np.log(np.maximum(_softmax(scores)[np.arange(len(left)), found[left]], 1e-6))

    choice = choose_c(c, losses, groups=groups, loss="log loss" if model == "logistic" else "error")
    weights, intercepts = fit(rows, found, count, choice.c)
    slopes, offsets = np.ones(count), np.zeros(count)
    if model == "svm":
        margins = np.empty((len(rows), count))
        for train, left in group_folds(groups):
            own, own_intercepts = fit_linear_machines(rows[train], found[train], count, choice.c)
            margins[left] = rows[left] @ own.T + own_intercepts
        slopes, offsets = _fit_platt(margins, found)
    linear = LinearClassifier(tuple(classes), coordinates.weights(weights), intercepts, choice)
    return BesideClassifier(model, linear, slopes, offsets)


def _fit_logistic(rows: np.ndarray, labels: np.ndarray, count: int, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (K, R) and intercepts (K,) of logistic regression; minus infinity for classes not there."""
    from sklearn.linear_model import LogisticRegression

    present = np.unique(labels)
    weights, intercepts = np.zeros((count, rows.shape[1])), np.full(count, -np.inf)
    intercepts[present] = 0.0
    if len(present) == 1:
        return weights, intercepts
    model = LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(rows, labels)
    if len(present) == 2:  # one score: that of the second class
        weights[present[1]], intercepts[present[1]] = model.coef_[0], model.intercept_[0]
    else:
        weights[present], intercepts[present] = model.coef_, model.intercept_
    return weights, intercepts


def _fit_platt(margins: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes and offsets (K,) of a sigmoid for each class, from margins (N, K) of studies left out."""
    from sklearn.linear_model import LogisticRegression

    slopes, offsets = np.ones(margins.shape[1]), np.zeros(margins.shape[1])
    for place in range(margins.shape[1]):
        known = np.isfinite(margins[:, place])  # a class that a fold's training part had no study of has no margin
        own = labels[known] == place
        if own.any() and not own.all():
            model = LogisticRegression(C=1e3).fit(margins[known, place : place + 1], own)
            slopes[place], offsets[place] = float(model.coef_[0, 0]), float(model.intercept_[0])
            if slopes[place] < 0:  # margins of studies left out tell nothing: how common the class is remains
                slopes[place], offsets[place] = 0.0, float(np.log(own.mean() / (1 - own.mean())))
    return slopes, offsets


def _platt(scores: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    chances = np.maximum(expit(scores * slopes + offsets), np.finfo(np.float64).tiny)
    return np.asarray(chances / chances.sum(axis=1, keepdims=True))


def _softmax(scores: np.ndarray) -> np.ndarray:
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(chances / chances.sum(axis=1, keepdims=True))
