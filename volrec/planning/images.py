"""Plans of pretraining and transfer: the same facts of the data, without labels, turned into their settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from volrec.config import MatchingConfig, PretrainConfig, SamplingConfig, TransferConfig, parse_config
from volrec.data.images import ImageSet
from volrec.data.labels import Cohort
from volrec.planning.facts import Fingerprint, fingerprint
from volrec.planning.grid import plan_grid, plan_slice_axis
from volrec.planning.keys import with_keys
from volrec.planning.network import build_network, plan_network
from volrec.planning.plan import plan_intensity

__all__ = ["ImagePlan", "plan_pretrain", "plan_transfer"]

# Twice what examples/label_efficiency.py gives narrow networks on a few hundred small studies.
PRETRAIN_STEPS = 3_000
TRANSFER_STEPS = 1_500
STEPS_AN_EPOCH = 50


@dataclass(frozen=True)
class ImagePlan:
    """A complete configuration, why it is so, and what it rests on.

    Attributes
    ----------
    config : PretrainConfig or TransferConfig
        What the run obeys.
    reasons : dict
        Dotted key -> one line of why.
    facts : Fingerprint
        Of the studies.
    """

    config: Any
    reasons: dict[str, str]
    facts: Fingerprint


class _Plan:
    """Sections as they are settled, one after the other: the user's own, else planned, then the user's keys."""

    def __init__(self, given: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
        self.values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        self.fixed = dict(fixed)
        self.reasons: dict[str, str] = {}

    def settle(self, section: str, plan: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if section not in self.values:
            self.values[section] = plan()
        self.values[section] = with_keys(self.values[section], section, self.fixed)
        return dict(self.values[section])

    def default(self, section: str, key: str, value: dict[str, Any]) -> bool:
        """Fill a mapping that the user did not write, so that a key of theirs changes one entry and keeps the rest."""
        values = dict(self.values.get(section, {}))
        if key in values or f"{section}.{key}" in self.fixed:
            return False
        self.values[section] = {**values, key: value}
        return True

    def complete(self, schema: type) -> Any:
        """Return the configuration, once what no rule plans has the user's keys as well."""
        rest = {key: value for key, value in self.fixed.items() if key.split(".")[0] not in self.values}
        self.values |= with_keys({}, "", rest)
        self.values = {**self.values, "data": with_keys(self.values.get("data", {}), "data", self.fixed)}
        self.reasons |= dict.fromkeys(self.fixed, "set by you")
        return parse_config(self.values, where="plan", schema=schema)


def plan_pretrain(
    images: ImageSet | Cohort, given: Mapping[str, Any], *, overrides: Mapping[str, Any] | None = None
) -> ImagePlan:
    """Derive the configuration of a slice pretraining.

    Parameters
    ----------
    images : ImageSet or Cohort
        The studies.
    given : mapping
        Sections that the user wrote: obeyed as they stand.
    overrides : mapping, optional
        Dotted keys that are set in any case.
    """
    plan = _Plan(given, overrides or {})
    facts = _grid(plan, images, smallest=(1, 16, 16))
    reasons = plan.reasons
    plan.settle("intensity", lambda: plan_intensity(facts, reasons))
    height, width = _plane(plan, facts)
    labelled = isinstance(images, Cohort)

    def backbone() -> dict[str, Any]:
        small = min(height, width) < 96
        reasons["backbone.name"] = "a small residual network; wider or deeper ones pay with more studies"
        share = 0.5 if facts.studies < 1_000 or facts.device == "cpu" else 1.0
        reasons["backbone.width"] = f"{facts.studies} studies on a {facts.device}"
        if small:
            reasons["backbone.stem_stride"] = "slices under 96 pixels keep their detail"
        return {"name": "resnet-18", "width": share, "stem_stride": 1 if small else None}

    def method() -> dict[str, Any]:
        if labelled:
            reasons["method.name"] = "there are labels"
            return {"name": "supervised"}
        reasons["method.name"] = "needs no labels; `volrec pretrain --keys` names the others"
        return {}

    def views() -> dict[str, Any]:
        spacing = (plan.values["preprocess"].get("spacing") or (None,))[0] or facts.spacing[0].median
        reasons["views.neighbours"] = f"the next slice on either side ({spacing:.3g} mm)"
        return {"neighbours": round(spacing * 1.001, 3)}

    plan.settle("backbone", backbone)
    plan.settle("method", method)
    plan.settle("views", views)
    plan.settle("augment", lambda: _view_augment(height, reasons))
    plan.settle("optim", lambda: _optim(facts, reasons, batch=64))
    plan.settle("trainer", lambda: _length(PRETRAIN_STEPS, reasons))
    return ImagePlan(plan.complete(PretrainConfig), reasons, facts)


def plan_transfer(
    images: ImageSet | Cohort,
    given: Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    teacher_card: Mapping[str, Any] | None = None,
) -> ImagePlan:
    """Derive the configuration of a transfer.

    Parameters
    ----------
    images : ImageSet or Cohort
        The studies.
    given : mapping
        Sections that the user wrote: obeyed as they stand.
    overrides : mapping, optional
        Dotted keys that are set in any case.
    teacher_card : mapping, optional
        Card of a teacher that was pretrained here: studies are then read as it read them.
    """
    plan = _Plan(given, overrides or {})
    reasons = plan.reasons
    if teacher_card is not None and "preprocess" in teacher_card:
        for section in ("preprocess", "intensity"):
            if section not in plan.values:
                plan.values[section] = dict(teacher_card[section])
                reasons[f"{section}.{'spacing' if section == 'preprocess' else 'kind'}"] = "as the teacher was trained"
    facts = _grid(plan, images, smallest=_smallest(plan))
    plan.settle("intensity", lambda: plan_intensity(facts, reasons))
    height, _ = _plane(plan, facts)
    canvas = plan.values["preprocess"].get("canvas") or (None, None, None)

    def sampling() -> dict[str, Any]:
        slices = int(canvas[0] or facts.size[0].median)
        length = max(_smallest(plan)[0], 4, min(32, slices // 2))
        reasons["sampling.clip_length"] = f"half of a stack of {slices} slices, so that there is an elsewhere"
        return {"clip_length": length, "stride": 1, "train": "random"}

    clip_length = int(plan.settle("sampling", sampling).get("clip_length", SamplingConfig().clip_length))
    clip = (clip_length, *canvas[1:])
    spacing = plan.values["preprocess"].get("spacing") or (None, None, None)
    plan.settle("network", lambda: plan_network(facts, canvas, clip, spacing, plan.fixed, reasons, crops=False))
    plan.settle("augment", lambda: _clip_augment(facts, height, reasons))
    if plan.default("teacher", "augment", _clip_augment(facts, height, {})):
        reasons["teacher.augment"] = "as the student's, drawn by itself: intensities alone must not tell"
    plan.settle("teacher", dict)
    plan.default("matching", "negatives", {str(kind): share for kind, share in MatchingConfig().negatives.items()})
    plan.settle("matching", dict)
    plan.settle("optim", lambda: _optim(facts, reasons, batch=16))
    plan.settle("trainer", lambda: _length(TRANSFER_STEPS, reasons))
    return ImagePlan(plan.complete(TransferConfig), reasons, facts)


def _grid(plan: _Plan, images: ImageSet | Cohort, *, smallest: tuple[int, int, int]) -> Fingerprint:
    """Settle the grid on which studies are read, and return their fingerprint on it."""
    written = plan.values.get("preprocess", {})
    axis = plan.fixed.get("preprocess.slice_axis", written.get("slice_axis"))
    if axis is None:
        axis = "acquired" if written else plan_slice_axis(images, plan.reasons)
    accelerator = plan.fixed.get("trainer.accelerator", plan.values.get("trainer", {}).get("accelerator", "auto"))
    facts = fingerprint(images, slice_axis=axis, accelerator=accelerator)
    plan.settle("preprocess", lambda: {"slice_axis": axis, **plan_grid(facts, plan.fixed, smallest, plan.reasons)})
    return facts


def _plane(plan: _Plan, facts: Fingerprint) -> tuple[int, int]:
    canvas = plan.values["preprocess"].get("canvas") or (None, None, None)
    height, width = (int(canvas[axis] or facts.size[axis].median) for axis in (1, 2))
    return height, width


def _smallest(plan: _Plan) -> tuple[int, int, int]:
    return build_network(with_keys(plan.values.get("network", {}), "network", plan.fixed)).smallest


def _view_augment(height: int, reasons: dict[str, str]) -> dict[str, Any]:
    reasons["augment.scale"] = "0: features blind to size are no use where size is the question"
    reasons["augment.shift"] = "an eighth of the field of view"
    return {"rotate": 15.0, "shift": round(height / 8, 1), "noise": 0.1, "gamma": 0.3, "blur": 0.7}


def _clip_augment(facts: Fingerprint, height: int, reasons: dict[str, str]) -> dict[str, Any]:
    reasons["augment.scale"] = "0: features blind to size are no use where size is the question"
    reasons["augment.rotate"] = "the two sides of a pair are never turned, moved or toned alike"
    tone = {"contrast": 0.2, "brightness": 0.1, "gamma": 0.2 if facts.modality == "CT" else 0.3}
    reasons["augment.border"] = "where a study ends must not tell whose it is"
    return {"rotate": 10.0, "shift": round(height / 16, 1), "border": 0.1, "noise": 0.1, **tone}


def _optim(facts: Fingerprint, reasons: dict[str, str], *, batch: int) -> dict[str, Any]:
    batch = max(2, min(batch, facts.studies))
    reasons["optim.batch_size"] = "what does not belong together is found within a batch"
    return {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "batch_size": batch}


def _length(steps: int, reasons: dict[str, str]) -> dict[str, Any]:
    reasons["trainer.epochs"] = f"{steps:,} steps"
    reasons["trainer.batches_per_epoch"] = (
        "held-out patients are looked at so often, however few or many studies there are"
    )
    return {"epochs": steps // STEPS_AN_EPOCH, "patience": 0, "batches_per_epoch": STEPS_AN_EPOCH}
