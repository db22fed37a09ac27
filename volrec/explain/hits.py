"""How often a map is strongest where the finding truly is: on phantoms, whose lesions were planted.

The pointing game of J. Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016: a hit is a map
whose maximum lies on the finding. Beside it stand the slice (whether the strongest one holds the finding) and what
chance would hit. Only studies count that hold a lesion and that the networks call positive: of others a map cannot be
wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from volrec.data.phantom_geometry import Anatomy
from volrec.data.phantoms import Phantom
from volrec.errors import ConfigError, DataError
from volrec.explain.methods import METHODS
from volrec.explain.writing import Explanation

__all__ = ["HitRate", "Lesion", "hit_rates", "lesion_of", "strongest_voxel"]

LESIONS = ("sphere", "blob")
"""What makes a study positive."""
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Lesion:
    """Where the finding of a study is.

    Attributes
    ----------
    mask : ndarray
        (T, H, W) bool, in the study's own geometry.
    body : ndarray
        (T, H, W) bool: what is not air.
    spacing : tuple of float
        (t, h, w), mm.
    """

    mask: np.ndarray
    body: np.ndarray
    spacing: tuple[float, float, float]

    def reach(self, tolerance: float) -> np.ndarray:
        """Return what lies within `tolerance` mm of the finding (T, H, W); a tilt of the gantry is left out."""
        from scipy.ndimage import distance_transform_edt

        if tolerance == 0:
            return self.mask
        return np.asarray(distance_transform_edt(~self.mask, sampling=self.spacing) <= tolerance)


@dataclass(frozen=True)
class HitRate:
    """How often the maps of a method are strongest on the finding.

    Attributes
    ----------
    method : str
        Name.
    studies : int
        Positive studies that were called positive.
    missed : int
        Positive studies that were not, and do not count.
    voxels : mapping
        ``value``, ``low``, ``high``: share of the studies whose strongest voxel lies on the finding, with the interval
        of Wilson (1927); ``chance``, the mean share of the body that the finding takes; ``hits``. Values are None where
        the method has one value a slice.
    slices : mapping
        The same for the strongest slice and the slices of the study.
    tolerance : float
        Millimetres around the finding that count as it.
    """

    method: str
    studies: int
    missed: int
    voxels: Mapping[str, float | int | None]
    slices: Mapping[str, float | int | None]
    tolerance: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the facts in JSON types."""
        return asdict(self)


def lesion_of(phantom: Phantom) -> Lesion | None:
    """Return where the sphere or the bleed of a phantom is; None for one without.

    Voxels belong to it whose middle lies in one of its discs.

    Raises
    ------
    ConfigError
        A phantom of task "motion", which has no place that makes the class.
    """
    anatomy = phantom.anatomy
    if not isinstance(anatomy, Anatomy):
        raise ConfigError(
            "phantoms of task 'motion' have no lesion.",
            remedy="Use task 'nodule' or 'bleed'.",
            where="task",
            code="phantom-task",
        )
    if not anatomy.positive:
        return None
    _, height, width = anatomy.shape
    mask = np.zeros(anatomy.shape, dtype=bool)
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    for index, h, w, radius, _ in anatomy.discs(*LESIONS):
        mask[int(index)] |= np.hypot(rows - h, columns - w) <= radius
    semi_h, semi_w = (size / anatomy.spacing[1] for size in anatomy.semi_axes)
    inside = np.hypot((rows - (height - 1) / 2) / semi_h, (columns - (width - 1) / 2) / semi_w) <= 1
    return Lesion(mask, np.broadcast_to(inside, anatomy.shape), anatomy.spacing)


def hit_rates(
    explained: Iterable[Explanation],
    lesions: Mapping[str, Lesion],
    *,
    tolerance: float = 0.0,
    threshold: float = 0.5,
) -> list[HitRate]:
    """Count hits, a method a row.

    Parameters
    ----------
    explained : iterable of Explanation
        Maps for the class that the finding makes; read one at a time. Studies without a lesion do not count.
    lesions : mapping of str to Lesion
        By study.
    tolerance : float
        Millimetres around the finding that count as it.
    threshold : float
        Score from which on a study is called positive.

    Raises
    ------
    DataError
        A lesion of another grid than the study's.
    """
    from scipy.stats import binomtest

    if tolerance < 0:
        raise ConfigError(
            f"tolerance must be 0 mm or more, got {tolerance}.", remedy="Leave it out.", where="tolerance", code="range"
        )
    counted: dict[str, list[tuple[bool, bool, float, float]]] = {}
    missed: dict[str, int] = {}
    for one in explained:
        lesion, method = lesions.get(one.study), one.evidence.method
        if lesion is None:
            continue
        if lesion.mask.shape != one.array.shape:
            raise DataError(
                f"its lesion is on a grid of {lesion.mask.shape}, the study on one of {one.array.shape}.",
                remedy="Draw the phantoms with the arguments that the folder was made with.",
                where=one.study,
                code="phantom-grid",
            )
        own = counted.setdefault(method, [])
        if one.evidence.scores[one.evidence.output] < threshold:
            missed[method] = missed.get(method, 0) + 1
            continue
        own.append(_hits(one, lesion, tolerance))

    def share(hits: list[bool], chances: list[float]) -> dict[str, float | int | None]:
        if not hits:
            return {"value": None, "low": None, "high": None, "chance": None, "hits": 0}
        found = binomtest(sum(hits), len(hits)).proportion_ci(confidence_level=LEVEL, method="wilson")
        return {
            "value": sum(hits) / len(hits),
            "low": float(found.low),
            "high": float(found.high),
            "chance": float(np.mean(chances)),
            "hits": sum(hits),
        }

    rates = []
    for method, rows in counted.items():
        flat = METHODS[method].per_slice == "mean"
        voxels = share([], []) if flat else share([row[0] for row in rows], [row[2] for row in rows])
        if flat:
            voxels["hits"] = None
        slices = share([row[1] for row in rows], [row[3] for row in rows])
        rates.append(HitRate(method, len(rows), missed.get(method, 0), voxels, slices, tolerance))
    return rates


def strongest_voxel(array: np.ndarray) -> tuple[int, int, int] | None:
    """Return where a map (T, H, W) is strongest; None where nothing in it is above 0.

    Of several voxels with the same value (a block that was covered) the one nearest to their middle.
    """
    top = float(array.max())
    if top <= 0:
        return None
    places = np.argwhere(array >= top * (1 - 1e-6))
    nearest = np.square(places - places.mean(axis=0)).sum(axis=1).argmin()
    t, h, w = (int(place) for place in places[nearest])
    return t, h, w


def _hits(one: Explanation, lesion: Lesion, tolerance: float) -> tuple[bool, bool, float, float]:
    """Return whether voxel and slice hit, and how often chance would."""
    reach = lesion.reach(tolerance)
    voxel, held = strongest_voxel(one.array), np.asarray(reach.any(axis=(1, 2)))
    shown = np.isfinite(one.per_slice)
    return (
        voxel is not None and bool(reach[voxel]),
        one.strongest is not None and bool(held[one.strongest]),
        float((reach & lesion.body).sum() / lesion.body.sum()),
        float(held[shown].mean()) if shown.any() else 0.0,
    )
