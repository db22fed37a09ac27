"""The fingerprint: what a plan rests on, collected from the studies, their labels and the machine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from volrec.data.targets import head_sizes
from volrec.errors import DataError

if TYPE_CHECKING:
    from volrec.data.images import ImageSet
    from volrec.data.labels import Case, Cohort

__all__ = ["Fingerprint", "Spread", "fingerprint"]

SAMPLED_STUDIES = 8


@dataclass(frozen=True)
class Spread:
    """Low (5 %), middle and high (95 %) of one quantity over the studies, with its extremes."""

    minimum: float
    low: float
    median: float
    high: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        """Summarise `values`."""
        array = np.asarray(values, dtype=float)
        low, median, high = np.percentile(array, [5, 50, 95])
        return cls(float(array.min()), float(low), float(median), float(high), float(array.max()))


@dataclass(frozen=True)
class Fingerprint:
    """What the plan rests on.

    Attributes
    ----------
    studies, patients : int
        Counts after labels were joined.
    task : str
        ``binary``, ``multiclass``, ``multilabel``, ``multihead``, ``regression``, or ``none`` without labels.
    smallest_share : float
        Share of the rarest class (of its target's studies; 1 for regression and without labels).
    modality : str
        ``CT``, ``MR`` or another DICOM modality; ``unknown`` for NIfTI that does not look like CT; ``mixed``.
    orientations : dict
        Acquired orientation -> number of studies.
    size, spacing, extent : tuple of Spread
        Voxels, mm between them, and mm in all along (T, H, W) in the planned slice axis.
    intensity : tuple of float
        Median over sampled studies of the 0.5, 50 and 99.5 percentile.
    device : str
        ``cpu``, ``cuda`` or ``mps``.
    memory_gib, cpus : float, int
        Memory of the machine (of the device where it is a GPU) and processors.
    """

    studies: int
    patients: int
    task: str
    smallest_share: float
    modality: str
    orientations: dict[str, int]
    size: tuple[Spread, Spread, Spread]
    spacing: tuple[Spread, Spread, Spread]
    extent: tuple[Spread, Spread, Spread]
    intensity: tuple[float, float, float]
    device: str
    memory_gib: float
    cpus: int


def fingerprint(cohort: Cohort | ImageSet, *, slice_axis: str = "acquired", accelerator: str = "auto") -> Fingerprint:
    """Collect the facts that a plan needs; a few studies are decoded to see their intensities.

    Parameters
    ----------
    cohort : Cohort or ImageSet
        Studies joined with their labels, or without any.
    slice_axis : str
        Axis that becomes time.
    accelerator : str
        ``auto`` takes the device at hand.
    """
    cases = cohort.cases
    geometry = [_geometry(case, slice_axis) for case in cases]
    sizes = np.array([size for size, _ in geometry], dtype=float)
    spacings = np.array([spacing for _, spacing in geometry], dtype=float)
    extents = sizes * spacings
    intensity, looks_ct = _sample_intensity(cases, slice_axis)
    modalities = Counter(case.series.modality for case in cases if case.series.modality)
    modality = next(iter(modalities)) if modalities else ("CT" if looks_ct else "unknown")
    if len(modalities) > 1:
        modality = "mixed"
    device, memory, cpus = _machine(accelerator)
    return Fingerprint(
        studies=len(cases),
        patients=len({case.patient for case in cases}),
        task=cohort.task,
        smallest_share=_smallest_share(cohort),
        modality=modality,
        orientations=dict(Counter(case.series.orientation for case in cases)),
        size=(Spread.of(sizes[:, 0]), Spread.of(sizes[:, 1]), Spread.of(sizes[:, 2])),
        spacing=(Spread.of(spacings[:, 0]), Spread.of(spacings[:, 1]), Spread.of(spacings[:, 2])),
        extent=tuple(Spread.of(extents[:, axis]) for axis in range(3)),  # type: ignore[arg-type]
        intensity=intensity,
        device=device,
        memory_gib=memory,
        cpus=cpus,
    )


def _geometry(case: Case, slice_axis: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    from volrec.io.geometry import canonical_shape

    return canonical_shape(case.series, slice_axis)


def _sample_intensity(cases: Sequence[Case], slice_axis: str) -> tuple[tuple[float, float, float], bool]:
    from volrec.io import read_series

    # Evenly spread over the sorted studies: the same studies are looked at each time.
    ordered = sorted(cases, key=lambda case: case.study)
    step = max(1, len(ordered) // SAMPLED_STUDIES)
    rows, ct_like = [], []
    for case in ordered[::step][:SAMPLED_STUDIES]:
        try:
            volume = read_series(case.series, slice_axis=slice_axis)
        except DataError:
            continue  # filling the store will quarantine it with its reason
        rows.append(np.percentile(volume.array, [0.5, 50, 99.5]))
        ct_like.append(volume.meta.get("modality") == "CT")
    if not rows:
        return (0.0, 0.0, 0.0), False
    low, middle, high = np.median(np.array(rows), axis=0)
    return (float(low), float(middle), float(high)), sum(ct_like) > len(ct_like) / 2


def _smallest_share(cohort: Cohort | ImageSet) -> float:
    if cohort.task in ("regression", "none"):
        return 1.0
    targets = np.stack([case.target for case in cohort.cases])
    if cohort.task == "multiclass":
        counts = np.bincount(targets[:, 0].astype(int), minlength=len(cohort.classes))  # type: ignore[union-attr]
        return float(counts.min() / counts.sum())
    if cohort.task == "multihead":
        shares = []
        for column, size in zip(targets.T, head_sizes(cohort.task, cohort.classes, cohort.targets), strict=True):  # type: ignore[union-attr]
            counts = np.bincount(column[np.isfinite(column)].astype(int), minlength=size)
            shares.append(counts.min() / max(1, counts.sum()))
        return float(min(shares))
    share = targets.mean(axis=0)
    return float(np.minimum(share, 1 - share).min())


def _machine(accelerator: str) -> tuple[str, float, int]:
    import torch

    from volrec.parallel import available_cpus

    cpus = available_cpus()
    if accelerator in {"auto", "cuda"} and torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_properties(0).total_memory / 2**30, cpus
    if accelerator in {"auto", "mps"} and torch.backends.mps.is_available():
        return "mps", _memory_gib(), cpus
    return "cpu", _memory_gib(), cpus


def _memory_gib() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, OSError, ValueError):  # Windows
        return 8.0
