"""Fingerprint and plan: the configuration that the data themselves suggest, with one line of reason per choice.

As nnU-Net does for segmentation (Isensee et al., Nature Methods 2021): facts of the data set and the machine are
collected first, fixed rules turn them into settings, and the result is a file that a person can read and edit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.config import TrainConfig, parse_config
from volrec.errors import DataError

if TYPE_CHECKING:
    from volrec.data.labels import Case, Cohort

__all__ = ["Fingerprint", "PlanResult", "Spread", "fingerprint", "make_plan"]

# Voxels of one network input that keep a training step near a second: a narrow C3D on two CPU cores, and a GPU.
VOXEL_BUDGET = {"cpu": 400_000, "mps": 1_500_000, "cuda": 4_000_000}
# A whole stack is one clip up to this many slices; longer ones are read clip by clip.
WHOLE_STACK = 128
# Spacings that differ by less are one spacing: resampling would blur for nothing.
SAME_SPACING = 1.05
SAMPLED_STUDIES = 8
HEAD_FIELD_OF_VIEW_MM = 280.0


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
        ``binary``, ``multiclass``, ``multilabel`` or ``regression``.
    smallest_share : float
        Share of the rarest class (1 for regression).
    modality : str
        ``CT``, ``MR`` or another DICOM modality; ``unknown`` for NIfTI that does not look like CT.
    orientations : dict
        Acquired orientation -> number of studies.
    size, spacing : tuple of Spread
        Voxels and mm along (T, H, W) in the planned slice axis.
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
    intensity: tuple[float, float, float]
    device: str
    memory_gib: float
    cpus: int


@dataclass(frozen=True)
class PlanResult:
    """A configuration and the reasons for it.

    Attributes
    ----------
    config : TrainConfig
        Complete: every key has its value.
    reasons : dict
        Dotted key -> one line.
    facts : Fingerprint
        What the reasons refer to.
    """

    config: TrainConfig
    reasons: dict[str, str]
    facts: Fingerprint
    notes: tuple[str, ...] = field(default=())


def fingerprint(cohort: Cohort, *, slice_axis: str = "acquired", accelerator: str = "auto") -> Fingerprint:
    """Collect the facts that a plan needs; a few studies are decoded to see their intensities.

    Parameters
    ----------
    cohort : Cohort
        Studies joined with their labels.
    slice_axis : str
        Axis that becomes time.
    accelerator : str
        ``auto`` takes the device at hand.
    """
    cases = cohort.cases
    geometry = [_geometry(case, slice_axis) for case in cases]
    sizes = np.array([size for size, _ in geometry], dtype=float)
    spacings = np.array([spacing for _, spacing in geometry], dtype=float)
    intensity, looks_ct = _sample_intensity(cases, slice_axis)
    modalities = Counter(case.series.modality for case in cases if case.series.modality)
    modality = modalities.most_common(1)[0][0] if modalities else ("CT" if looks_ct else "unknown")
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
        intensity=intensity,
        device=device,
        memory_gib=memory,
        cpus=cpus,
    )


def make_plan(
    cohort: Cohort, given: Mapping[str, Any], *, accelerator: str = "auto", facts: Fingerprint | None = None
) -> PlanResult:
    """Derive a complete configuration.

    Parameters
    ----------
    cohort : Cohort
        Studies joined with their labels.
    given : mapping
        Sections that the user wrote, as nested plain values: a section that is there is obeyed as it stands, one that
        is missing is planned.
    accelerator : str
        Device kind that the plan is for; ``auto`` takes the one at hand.
    facts : Fingerprint, optional
        Collected already.

    Returns
    -------
    PlanResult
        Configuration, reasons and facts.
    """
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    reasons: dict[str, str] = {}
    trainer = dict(values.get("trainer", {}))
    if "preprocess" in values:
        axis = values["preprocess"].get("slice_axis", "acquired")
    else:
        axis = _slice_axis(cohort, reasons)
    if facts is None:
        facts = fingerprint(cohort, slice_axis=axis, accelerator=trainer.get("accelerator", accelerator))

    data = dict(values.get("data", {}))
    data["task"] = cohort.task
    data["target"] = list(cohort.targets)
    data["classes"] = list(cohort.classes)
    reasons["data.task"] = next(
        (note for note in cohort.notes if "task" in note.lower()), "from the values of the target"
    )
    if "balance" not in data:
        data["balance"] = "loss" if facts.smallest_share < 0.25 else "none"
        reasons["data.balance"] = f"the rarest class holds {facts.smallest_share:.0%} of the studies"
    values["data"] = data

    if "preprocess" not in values:
        values["preprocess"] = {"slice_axis": axis, **_grid(facts, reasons)}
    canvas = values["preprocess"].get("canvas") or (None, None, None)
    if "intensity" not in values:
        values["intensity"] = _intensity(facts, reasons)
    if "sampling" not in values:
        values["sampling"] = _sampling(facts, canvas, reasons)
    if "network" not in values:
        values["network"] = _network(facts, reasons)
    if "augment" not in values:
        values["augment"] = _augment(facts, canvas, reasons)
    if "optim" not in values:
        values["optim"] = _optim(facts, reasons)
    if "protocol" not in values:
        values["protocol"] = {"flips": []}
        reasons["protocol.clips"] = "0: as many clips as cover the whole study"
        reasons["protocol.stage"] = "probabilities are averaged, as in Two-Stream and C3D"
    if "epochs" not in trainer:
        trainer.update(_length(facts, values["optim"], reasons, trainer))
        values["trainer"] = trainer
    if "split" not in values:
        values["split"] = _split(facts, reasons)
    return PlanResult(parse_config(values, where="plan"), reasons, facts)


def _slice_axis(cohort: Cohort, reasons: dict[str, str]) -> str:
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


def _grid(facts: Fingerprint, reasons: dict[str, str]) -> dict[str, Any]:
    """Choose spacing and canvas so that the whole study fits the voxel budget of the device."""
    own = [spread.median for spread in facts.spacing]
    uniform = [spread.high / max(spread.low, 1e-6) < SAME_SPACING for spread in facts.spacing]
    # Where spacings differ a voxel means something else from study to study; the extent in mm is what must fit.
    extent = []
    for size, spacing in zip(facts.size, facts.spacing, strict=True):
        largest = size.maximum if size.maximum <= 1.5 * size.median else size.high
        extent.append(largest * spacing.median)
    target = list(own)
    budget = VOXEL_BUDGET.get(facts.device, VOXEL_BUDGET["cpu"])

    def voxels() -> list[float]:
        return [max(1.0, length / step) for length, step in zip(extent, target, strict=True)]

    while math.prod(voxels()) > budget:
        # The finest direction gives way first: in-plane detail is traded down to the slice spacing, then all alike.
        in_plane = min(target[1], target[2])
        if target[0] < in_plane:
            target[0] *= 1.05
        else:
            target[1] *= 1.05
            target[2] *= 1.05
    target = [float(f"{step:.3g}") if step > size * 1.01 else step for step, size in zip(target, own, strict=True)]
    canvas = [
        _round_up(length / step, 4 if axis == 0 else 8)
        for axis, (length, step) in enumerate(zip(extent, target, strict=True))
    ]
    canvas[0] = max(canvas[0], 8)
    canvas[1:] = [max(size, 16) for size in canvas[1:]]
    coarser = any(step > size * 1.01 for step, size in zip(target, own, strict=True))
    resampled = [round(step, 4) for step in target] if coarser or not all(uniform) else None
    shown = " x ".join(f"{step:.3g}" for step in own)
    if resampled is None:
        reasons["preprocess.spacing"] = f"all studies share {shown} mm: nothing is resampled"
    elif coarser:
        reasons["preprocess.spacing"] = (
            f"median {shown} mm, coarsened so that a whole study is at most {budget:,} voxels ({facts.device})"
        )
    else:
        reasons["preprocess.spacing"] = (
            f"the median; spacings vary between studies "
            f"(slices {facts.spacing[0].minimum:.3g} to {facts.spacing[0].maximum:.3g} mm)"
        )
    whole = all(size.maximum <= 1.5 * size.median for size in facts.size)
    reasons["preprocess.canvas"] = (
        "holds every study whole" if whole else "holds 95 % of the studies whole; larger ones lose their rim"
    )
    reasons["preprocess.padding"] = "the study's own minimum is its background"
    return {"spacing": resampled, "canvas": canvas}


def _intensity(facts: Fingerprint, reasons: dict[str, str]) -> dict[str, Any]:
    if facts.modality != "CT":
        reasons["intensity.kind"] = f"{facts.modality}: values have no unit, so each study is normalised by its own"
        return {"kind": "zscore", "percentiles": [0.5, 99.5]}
    field_of_view = facts.size[2].median * facts.spacing[2].median
    if field_of_view < HEAD_FIELD_OF_VIEW_MM:
        reasons["intensity.windows"] = (
            f"CT with a field of view of {field_of_view:.0f} mm: a head, so brain, blood and bone"
        )
        windows = ["brain", "subdural", "bone"]
    else:
        reasons["intensity.windows"] = (
            f"CT with a field of view of {field_of_view:.0f} mm: a body, so soft tissue, lung and bone"
        )
        windows = ["mediastinum", "lung", "bone"]
    reasons["intensity.kind"] = "CT numbers are calibrated (HU): windows as a radiologist sets them, one channel each"
    return {"kind": "window", "windows": windows}


def _sampling(facts: Fingerprint, canvas: Sequence[int | None], reasons: dict[str, str]) -> dict[str, Any]:
    slices = int(canvas[0] or facts.size[0].high)
    if slices <= WHOLE_STACK:
        reasons["sampling.clip_length"] = f"one clip is the whole stack ({slices} slices)"
        return {"clip_length": slices, "stride": 1, "train": "center"}
    length = WHOLE_STACK // 2
    reasons["sampling.clip_length"] = f"stacks of {slices} slices are read in clips"
    reasons["sampling.train"] = "clips start anywhere in training and cover the study in testing"
    return {"clip_length": length, "stride": 1, "train": "random"}


def _network(facts: Fingerprint, reasons: dict[str, str]) -> dict[str, Any]:
    width = 0.125 if facts.studies < 1_000 else 0.25 if facts.studies < 10_000 else 0.5
    if facts.device == "cpu":
        width = min(width, 0.25)
    reasons["network.name"] = "the plainest 3D network of the zoo; `volrec models` lists the others"
    reasons["network.width"] = (
        f"{facts.studies} studies on a {facts.device}: a narrow network overfits less and trains sooner"
    )
    return {"name": "c3d", "width": width, "options": {"dropout": 0.3}}


def _augment(facts: Fingerprint, canvas: Sequence[int | None], reasons: dict[str, str]) -> dict[str, Any]:
    height = float(canvas[1] or facts.size[1].median)
    reasons["augment.flip"] = "left and right may matter: add W: 0.5 where they do not"
    reasons["augment.rotate"] = "heads and bodies lie a few degrees off"
    reasons["augment.shift"] = "a twentieth of the field of view"
    reasons["augment.scale"] = "0: size may be the question"
    chosen = {
        "rotate": 10.0,
        "shift": round(height / 20, 1),
        "shift_slices": 1.0,
        "noise": 0.05,
        "contrast": 0.1,
        "brightness": 0.05,
    }
    if facts.modality != "CT":
        chosen.update({"gamma": 0.2, "contrast": 0.2, "brightness": 0.1})
        reasons["augment.gamma"] = "MR contrast changes from scanner to scanner"
    return chosen


def _optim(facts: Fingerprint, reasons: dict[str, str]) -> dict[str, Any]:
    batch = 8 if facts.studies < 2_000 else 16
    batch = max(2, min(batch, facts.studies // 8))
    reasons["optim.batch_size"] = f"{facts.studies} studies: enough steps an epoch, enough studies a step"
    reasons["optim.ema_decay"] = "averaged weights validate more steadily on few studies"
    return {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": batch, "ema_decay": 0.98}


def _length(
    facts: Fingerprint, optim: Mapping[str, Any], reasons: dict[str, str], trainer: Mapping[str, Any]
) -> dict[str, Any]:
    batch = int(optim.get("batch_size", 8))
    steps_an_epoch = max(1, facts.studies * 0.64 / batch)
    epochs = round(min(100, max(20, 1_500 / steps_an_epoch)))
    reasons["trainer.epochs"] = f"about {round(epochs * steps_an_epoch, -2):.0f} steps of {batch} studies"
    patience = int(trainer.get("patience", max(10, epochs // 3)))
    reasons["trainer.patience"] = "a third of the epochs without a better validation metric ends it"
    return {"epochs": epochs, "patience": patience}


def _split(facts: Fingerprint, reasons: dict[str, str]) -> dict[str, Any]:
    reasons["split.test"] = f"{facts.patients} patients, a fifth of them seen once, at the end"
    reasons["split.validation"] = "a fifth of the rest chooses the checkpoint"
    return {}


def _round_up(value: float, step: int) -> int:
    # Sizes come from mm divided by mm: a hair above a whole number is that number.
    return int(math.ceil((value - 1e-3) / step) * step)


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


def _smallest_share(cohort: Cohort) -> float:
    if cohort.task == "regression":
        return 1.0
    targets = np.stack([case.target for case in cohort.cases])
    if cohort.task == "multiclass":
        counts = np.bincount(targets[:, 0].astype(int), minlength=len(cohort.classes))
        return float(counts.min() / counts.sum())
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
    import os

    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, OSError, ValueError):  # Windows
        return 8.0
