"""Slice axis, spacing and canvas: the grid on which every study is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.planning.facts import Fingerprint, Spread

if TYPE_CHECKING:
    from volrec.data.images import ImageSet
    from volrec.data.labels import Cohort

__all__ = ["SAME_SPACING", "VOXEL_BUDGET", "plan_grid", "plan_slice_axis"]

# Voxels of one network input that keep a training step near a second: a narrow C3D on two CPU cores, and a GPU.
VOXEL_BUDGET = {"cpu": 400_000, "mps": 1_500_000, "cuda": 4_000_000}
# Spacings that differ by less are one spacing: resampling would blur for nothing.
SAME_SPACING = 1.05


def plan_slice_axis(cohort: Cohort | ImageSet, reasons: dict[str, str]) -> str:
    """Choose the axis that becomes time: as acquired, unless studies of several orientations are near isotropic."""
    orientations = Counter(case.series.orientation for case in cohort.cases)
    if len(orientations) == 1:
        reasons["preprocess.slice_axis"] = f"all studies were acquired {next(iter(orientations))}"
        return "acquired"
    shown = ", ".join(f"{name} {count}" for name, count in orientations.most_common())
    if any(getattr(case, "slice_targets", None) is not None for case in cohort.cases):
        reasons["preprocess.slice_axis"] = f"mixed ({shown}): slice labels count slices as acquired"
        return "acquired"
    anisotropy = float(np.median([max(case.series.spacing) / min(case.series.spacing) for case in cohort.cases]))
    if anisotropy < 2:
        axis = orientations.most_common(1)[0][0]
        reasons["preprocess.slice_axis"] = f"mixed ({shown}) and near isotropic: all are read as the most frequent"
        return axis
    reasons["preprocess.slice_axis"] = (
        f"mixed ({shown}) with thick slices: each as acquired, so that no slice is resampled away"
    )
    return "acquired"


def plan_grid(
    facts: Fingerprint, fixed: Mapping[str, Any], smallest: Sequence[int], reasons: dict[str, str]
) -> dict[str, Any]:
    """Choose spacing and canvas so that the whole study fits the voxel budget of the device.

    The canvas holds at least what the network can read, `smallest` voxels (T, H, W).
    """
    own = [spread.median for spread in facts.spacing]
    uniform = all(spread.high / max(spread.low, 1e-6) < SAME_SPACING for spread in facts.spacing)
    # What must fit is mm: where spacings differ, a voxel means something else from study to study.
    extent = [spread.maximum if _alike(spread) else spread.high for spread in facts.extent]
    target = list(own)
    budget = VOXEL_BUDGET.get(facts.device, VOXEL_BUDGET["cpu"])
    wanted = fixed.get("preprocess.spacing")
    if wanted is not None:
        target = [step or mine for step, mine in zip(wanted, own, strict=True)]
    else:
        target = _coarsen(own, extent, budget)
    coarser = any(step > size * 1.01 for step, size in zip(target, own, strict=True))
    resampled = [round(step, 4) for step in target] if wanted is not None or coarser or not uniform else None
    if resampled is None:
        # Nothing is resampled: voxels are counted, so that a rounding of the spacing in a header cannot crop a study.
        sides = [
            size.maximum if _alike(length) else size.high for size, length in zip(facts.size, facts.extent, strict=True)
        ]
    else:
        sides = [length / step for length, step in zip(extent, resampled, strict=True)]
    canvas = [_round_up(side, 4 if axis == 0 else 8) for axis, side in enumerate(sides)]
    canvas = [max(sizes) for sizes in zip(canvas, (8, 16, 16), smallest, strict=True)]
    shown = " x ".join(f"{step:.3g}" for step in own)
    if resampled is None:
        reasons["preprocess.spacing"] = f"all studies share {shown} mm: nothing is resampled"
    elif coarser:
        reasons["preprocess.spacing"] = (
            f"median {shown} mm, coarsened so that a whole study is at most {budget:,} voxels ({facts.device})"
        )
    else:
        reasons["preprocess.spacing"] = (
            "the median; spacings vary between studies "
            f"(slices {facts.spacing[0].minimum:.3g} to {facts.spacing[0].maximum:.3g} mm)"
        )
    millimetres = " x ".join(f"{length:.0f}" for length in extent)
    whole = all(_alike(spread) for spread in facts.extent)
    reasons["preprocess.canvas"] = (
        f"holds every study whole ({millimetres} mm)"
        if whole
        else f"holds 95 % of the studies whole ({millimetres} mm); larger ones lose their rim"
    )
    reasons["preprocess.padding"] = "the study's own minimum is its background"
    return {"spacing": resampled, "canvas": canvas}


def _alike(extent: Spread) -> bool:
    """Tell whether the largest study is no outlier: then the canvas holds it too."""
    return extent.maximum <= 1.5 * extent.median


def _coarsen(own: Sequence[float], extent: Sequence[float], budget: int) -> list[float]:
    """Return the spacing at which a study of `extent` mm has at most `budget` voxels."""
    target = list(own)
    while math.prod(max(1.0, length / step) for length, step in zip(extent, target, strict=True)) > budget:
        # The finest direction gives way first: in-plane detail is traded down to the slice spacing, then all alike.
        if target[0] < min(target[1], target[2]):
            target[0] *= 1.05
        else:
            target[1] *= 1.05
            target[2] *= 1.05
    return [float(f"{step:.3g}") if step > size * 1.01 else step for step, size in zip(target, own, strict=True)]


def _round_up(value: float, step: int) -> int:
    # Sizes come from mm divided by mm: a hair above a whole number is that number.
    return int(math.ceil((value - 1e-3) / step) * step)
