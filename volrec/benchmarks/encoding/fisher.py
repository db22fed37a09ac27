"""Improved Fisher vectors: how the descriptors of a video pull at the means and variances of a mixture of Gaussians.

F. Perronnin, J. Sanchez, T. Mensink, "Improving the Fisher Kernel for Large-Scale Image Classification", ECCV 2010.

For T descriptors x, weights w, means mu, standard deviations s and posteriors q of K Gaussians in D' dimensions::

    means      sum_t q_tk (x_t - mu_k) / s_k / (T sqrt(w_k))
    variances  sum_t q_tk (((x_t - mu_k) / s_k)^2 - 1) / (T sqrt(2 w_k))

The gradient by the weights is left out, as usual with trajectories: the vector has 2 D' K numbers, all means before all
variances. Its square root with sign kept, then length one, make it "improved". (scikit-image gives the variances the
other sign, which changes no inner product.)
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import numpy as np

from volrec.errors import DataError

__all__ = ["Mixture", "fisher_vector", "fit_mixture", "improve"]

log = logging.getLogger(__name__)

_BLOCK = 4096
"""Descriptors at a time: 8 MB of posteriors of 256 Gaussians."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of K Gaussians with diagonal covariances.

    Attributes
    ----------
    weights : ndarray
        (K,) float64, sum one.
    means, variances : ndarray
        (K, D') float64.
    """

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    @property
    def dimension(self) -> int:
        """Numbers of a Fisher vector, 2 D' K."""
        return 2 * self.means.size


def fit_mixture(rows: np.ndarray, components: int, *, seed: int = 0, iterations: int = 100) -> Mixture:
    """Fit a mixture by expectation-maximisation from k-means (scikit-learn), on one thread so that it can be repeated.

    256,000 descriptors and 256 Gaussians take about 2 GB.

    Parameters
    ----------
    rows : ndarray
        (n, D').
    components : int
        Gaussians K.
    seed : int
        Of k-means.
    iterations : int
        At most.

    Raises
    ------
    DataError
        Fewer different descriptors than Gaussians.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows = np.asarray(rows, dtype=np.float64)
    distinct = len(np.unique(rows, axis=0))
    if distinct < components:
        raise DataError(
            f"{components} Gaussians need as many different descriptors, and there are {distinct} among {len(rows)}.",
            remedy="Give more videos, or fewer words.",
            code="few-descriptors",
        )
    model = GaussianMixture(components, covariance_type="diag", random_state=seed % 2**32, max_iter=iterations)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows)
    if not model.converged_:
        log.info("the mixture of %d Gaussians still changed after %d iterations", components, iterations)
    return Mixture(model.weights_, model.means_, model.covariances_)


def fisher_vector(rows: np.ndarray, mixture: Mixture, *, improved: bool = True) -> np.ndarray:
    """Return the Fisher vector (2 D' K,) float64 of descriptors (n, D'); zeros where there are none.

    Parameters
    ----------
    rows : ndarray
        (n, D'), projected as those that the mixture was fitted on.
    mixture : Mixture
    improved : bool
        Signed square root, then length one.
    """
    count, dimension = rows.shape
    precision = 1.0 / mixture.variances
    # One product with (x, x^2) gives the logarithm of every Gaussian, another one all sums that are needed.
    linear = np.concatenate([mixture.means * precision, -0.5 * precision], axis=1).T
    constant = (
        np.log(np.maximum(mixture.weights, np.finfo(np.float64).tiny))
        - 0.5 * np.log(2 * np.pi * mixture.variances).sum(axis=1)
        - 0.5 * (mixture.means**2 * precision).sum(axis=1)
    )
    mass = np.zeros(len(mixture.weights))
    sums = np.zeros((len(mixture.weights), 2 * dimension))
    for start in range(0, count, _BLOCK):
        block = rows[start : start + _BLOCK]
        powers = np.concatenate([block, block**2], axis=1, dtype=np.float64)
        chance = powers @ linear
        chance += constant
        chance -= chance.max(axis=1, keepdims=True)
        np.exp(chance, out=chance)
        chance /= chance.sum(axis=1, keepdims=True)
        mass += chance.sum(axis=0)
        sums += chance.T @ powers
    first, second = sums[:, :dimension], sums[:, dimension:]
    means, weight = mixture.means, mass[:, None]
    root = np.sqrt(np.maximum(mixture.weights, np.finfo(np.float64).tiny))[:, None] * max(count, 1)
    by_mean = (first - weight * means) * np.sqrt(precision) / root
    spread = second - 2 * means * first + weight * means**2
    by_variance = (spread * precision - weight) / (np.sqrt(2.0) * root)
    vector = np.concatenate([by_mean.ravel(), by_variance.ravel()])
    return improve(vector) if improved else vector


def improve(vector: np.ndarray) -> np.ndarray:
    """Return the signed square root, scaled to length one; a vector of zeros stays."""
    root = np.sign(vector) * np.sqrt(np.abs(vector))
    length = float(np.linalg.norm(root))
    return root / length if length > 0 else root
