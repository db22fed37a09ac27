"""Principal components of descriptors: to half their length before a Fisher vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from volrec.errors import DataError

__all__ = ["Projection", "fit_projection"]


@dataclass(frozen=True, eq=False)
class Projection:
    """An affine map of descriptors.

    Attributes
    ----------
    mean : ndarray
        (D,) float64.
    components : ndarray
        (D', D) float64, rows of length one, or of one over the standard deviation where it whitens.
    """

    mean: np.ndarray
    components: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return descriptors (n, D) along the components, (n, D') float64."""
        return np.asarray((rows - self.mean) @ self.components.T)


def fit_projection(rows: np.ndarray, *, keep: int | None = None, whiten: bool = False) -> Projection:
    """Find the directions of most variance (scikit-learn's PCA by a full decomposition: nothing is drawn).

    Parameters
    ----------
    rows : ndarray
        (n, D) descriptors.
    keep : int, optional
        Directions D'; half of D, rounded down, by default (48 of HOG's 96).
    whiten : bool
        Divide by the standard deviation along each direction. The papers do not; a diagonal mixture learns these
        scales itself.

    Raises
    ------
    DataError
        Fewer rows than directions.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows = np.asarray(rows, dtype=np.float64)
    keep = rows.shape[1] // 2 if keep is None else keep
    if len(rows) < keep:
        raise DataError(
            f"{keep} directions need as many descriptors, and there are {len(rows)}.",
            remedy="Give more videos, or look whether trajectories were found in them.",
            code="few-descriptors",
        )
    with threadpool_limits(1):  # over several threads the last digits depend on who is first
        found = PCA(keep, svd_solver="full").fit(rows)
    components = found.components_
    if whiten:
        components = components / np.sqrt(np.maximum(found.explained_variance_, np.finfo(np.float64).tiny))[:, None]
    return Projection(found.mean_, np.ascontiguousarray(components))
