"""Where a study differs from those that a run learned from, in words; silent about what does not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.config import PreprocessConfig
from volrec.errors import RunError
from volrec.io.geometry import spacing_of
from volrec.transforms.preprocess import preprocessed_shape

if TYPE_CHECKING:
    import pandas as pd

    from volrec.inference.members import Contract
    from volrec.io import Series
    from volrec.runs import RunFolder

__all__ = ["Learned", "differences", "learned_from"]

FARTHER = 1.5
"""A distance of voxels is told when it is so many times beyond those of the training."""
LONGER = 2.0
"""A number of slices, or the length that they cover, likewise."""
CUT = 0.2
"""A share of a study that is cropped away is told when it is so much more than of any training study."""
AXES = ("slices", "height", "width")
TRAINED_ON = "the run was trained on this study: its score looks better than it is"
CHOSE = "this study chose the weights and thresholds of the run: its score looks better than it is"

Interval = tuple[float, float]


@dataclass(frozen=True)
class Learned:
    """What the training studies of a run were like: smallest and largest values.

    Attributes
    ----------
    planes : tuple of str
        ``"axial"`` … of their slices as acquired.
    spacing : tuple of (float, float)
        mm between slices, and the larger of the two between pixels; (0, 0) where it was not known.
    slices : (float, float)
        Number of slices.
    length : (float, float)
        mm that they cover.
    cut : tuple of float
        Largest share that the canvas left out of any of them, along slices, height and width.
    known : frozenset of str
        Series that were learned from, in any member: UIDs of DICOM, resolved paths of NIfTI.
    chose : frozenset of str
        Likewise those of validation studies, by which weights and thresholds were chosen, that no member learned from.
    """

    planes: tuple[str, ...]
    spacing: tuple[Interval, Interval]
    slices: Interval
    length: Interval
    cut: tuple[float, float, float]
    known: frozenset[str] = frozenset()
    chose: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the series."""
        return {key: value for key, value in asdict(self).items() if key not in ("known", "chose")}


def learned_from(run: RunFolder, preprocess: PreprocessConfig) -> Learned | None:
    """Read what the training studies of a run were like from its ``index.csv`` and ``splits.csv``.

    Returns
    -------
    Learned or None
        None where a table is missing, or knows none of the studies.
    """
    try:
        table, splits = run.read_table("index"), run.read_table("splits")
        members = [member.name for member in run.finished_members()]
        splits = splits[splits["split"].isin(members)]
        table = table[table["chosen"].astype(bool)]
        parts = {part: set(splits.loc[splits["part"] == part, "study"]) for part in ("train", "validation")}
        train, held = (table[table["study"].isin(studies)] for studies in parts.values())
        if train.empty:
            return None
        folder = run.config.data.folder
        known = _identities(train, folder)
        return replace(_summary(train, preprocess), known=known, chose=_identities(held, folder) - known)
    except (RunError, KeyError, ValueError):  # a run of before these tables, or one that was moved without them
        return None


def _summary(table: pd.DataFrame, preprocess: PreprocessConfig) -> Learned:
    spacing = table[["spacing_t", "spacing_h", "spacing_w"]].to_numpy(dtype=np.float64)
    shape = table[["slices", "height", "width"]].to_numpy(dtype=np.int64)
    planes = table["orientation"].astype(str)
    # Sizes and distances in the table are those of the slices as acquired.
    same = np.ones(len(table), dtype=bool)
    if preprocess.slice_axis != "acquired":
        same = (planes == preprocess.slice_axis).to_numpy()
    grids = {
        (tuple(size), tuple(step)) for size, step in zip(shape[same].tolist(), spacing[same].tolist(), strict=True)
    }
    cuts = [_cut(size, step, preprocess) for size, step in grids] or [(0.0, 0.0, 0.0)]
    largest = np.max(cuts, axis=0)
    return Learned(
        planes=tuple(sorted(set(planes))),
        spacing=(_interval(spacing[:, 0]), _interval(spacing[:, 1:].max(axis=1))),
        slices=_interval(shape[:, 0]),
        length=_interval(shape[:, 0] * spacing[:, 0]),
        cut=(float(largest[0]), float(largest[1]), float(largest[2])),
    )


def _identities(table: pd.DataFrame, folder: str | None) -> frozenset[str]:
    """Return what series are recognised by, wherever a folder of them is looked at from."""
    found = set(table.loc[table["kind"] == "dicom", "series"].astype(str))
    if folder is not None:  # of a NIfTI file the name alone says nothing: every data set has its case_001
        root = Path(folder).expanduser()
        found |= {str((root / path).resolve()) for path in table.loc[table["kind"] == "nifti", "path"].astype(str)}
    return frozenset(found)


def _identity(series: Series) -> str:
    """Return what a series is recognised by, as `_identities`."""
    return str(Path(series.files[0]).resolve()) if series.kind == "nifti" and series.files else series.uid


def differences(
    series: Series,
    contract: Contract,
    *,
    learned: Learned | None = None,
    source: tuple[Sequence[int], np.ndarray] | None = None,
) -> list[str]:
    """Say where a study differs from those of the training by more than scanners of one hospital do.

    What preprocessing takes away is not told: where slices are brought to one distance, neither a finer one nor their
    number is.

    Parameters
    ----------
    series : Series
        That was chosen.
    contract : Contract
        What the run expects.
    learned : Learned, optional
        What it learned from; None: only the modality is compared.
    source : (shape, affine), optional
        Of the decoded volume before it was resampled: to tell what the canvas cuts away.

    Returns
    -------
    list of str
        One a difference, without a full stop.
    """
    found = []
    if contract.modality and series.modality and series.modality != contract.modality:
        found.append(f"modality {series.modality} (the run was trained on {contract.modality})")
    if learned is None:
        return found
    identity = _identity(series)
    if identity in learned.known:
        found.insert(0, TRAINED_ON)
    elif identity in learned.chose:
        found.insert(0, CHOSE)
    if contract.preprocess.slice_axis == "acquired" and series.orientation not in learned.planes:
        found.append(f"{series.orientation} slices (training had {' and '.join(learned.planes)} ones)")
    else:
        found += _grid(series, contract.preprocess, learned)
    if source is not None:
        cuts = _cut(source[0], spacing_of(source[1]), contract.preprocess)
        for axis, cut, known in zip(AXES, cuts, learned.cut, strict=True):
            if cut > known + CUT:
                before = f"at most {known:.0%}" if known else "nothing"
                found.append(f"the crop leaves out {cut:.0%} of its {axis} (of a training study {before})")
    return found


def _grid(series: Series, preprocess: PreprocessConfig, learned: Learned) -> list[str]:
    """Compare distances and numbers of voxels."""
    from volrec.data.choose import grid_of

    shape, spacing = grid_of(series)
    target = preprocess.spacing or (None, None, None)
    found = []
    apart, pixel = spacing[0], max(spacing[1:])
    if not apart and learned.spacing[0][0]:
        found.append(f"the distance of its slices is not known (training had {_range(learned.spacing[0])} mm)")
    elif _beyond(apart, learned.spacing[0], FARTHER, resampled=target[0] is not None):
        found.append(f"slices {_number(apart)} mm apart (training had {_range(learned.spacing[0])})")
    if _beyond(pixel, learned.spacing[1], FARTHER, resampled=target[1] is not None and target[2] is not None):
        found.append(f"pixels of {_number(pixel)} mm (training had {_range(learned.spacing[1])})")
    if target[0] is None and _beyond(shape[0], learned.slices, LONGER):
        found.append(f"{shape[0]} slices (training had {_range(learned.slices)})")
    if target[0] is not None and _beyond(shape[0] * apart, learned.length, LONGER):
        found.append(f"slices cover {_number(shape[0] * apart)} mm (training had {_range(learned.length)})")
    return found


def _beyond(value: float, known: Interval, factor: float, *, resampled: bool = False) -> bool:
    """Tell whether a value lies far outside an interval; after resampling only a coarser one counts."""
    if not value or not known[0]:
        return False
    return value > known[1] * factor or (not resampled and value < known[0] / factor)


def _cut(shape: Sequence[int], spacing: Sequence[float], preprocess: PreprocessConfig) -> tuple[float, float, float]:
    """Return the share along (T, H, W) that the canvas leaves out of a study."""
    if preprocess.canvas is None or not all(spacing) or not all(shape):
        return 0.0, 0.0, 0.0
    whole = preprocessed_shape(shape, np.diag([*spacing, 1.0]), spacing=preprocess.spacing)
    kept = [1.0 if want is None else min(1.0, want / size) for want, size in zip(preprocess.canvas, whole, strict=True)]
    return 1 - kept[0], 1 - kept[1], 1 - kept[2]


def _interval(values: Any) -> Interval:
    return float(np.min(values)), float(np.max(values))


def _range(known: Interval) -> str:
    low, high = map(_number, known)
    return low if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
