"""The rules: from facts to a complete configuration, each choice with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from volrec.config import OptimConfig, SamplingConfig, TrainConfig, parse_config
from volrec.planning.facts import Fingerprint, fingerprint
from volrec.planning.grid import plan_grid, plan_slice_axis
from volrec.planning.keys import with_keys
from volrec.planning.network import build_network, is_slicewise, organ_crop, plan_network
from volrec.planning.streams import (
    plan_segments,
    plan_stages,
    plan_streams,
    rescale_stages,
    segment_options,
    settle_stages,
    stream_channels,
)

if TYPE_CHECKING:
    from volrec.data.labels import Cohort
    from volrec.networks import SequenceNetwork

__all__ = ["PlanResult", "make_plan", "plan_intensity"]

# A whole stack is one clip up to this many slices; longer ones are read clip by clip.
WHOLE_STACK = 128
HEAD_FIELD_OF_VIEW_MM = 280.0
RARE = 0.25


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
    notes: tuple[str, ...] = ()


def make_plan(
    cohort: Cohort,
    given: Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    accelerator: str = "auto",
    facts: Fingerprint | None = None,
) -> PlanResult:
    """Derive a complete configuration.

    Parameters
    ----------
    cohort : Cohort
        Studies joined with their labels.
    given : mapping
        Sections that the user wrote, as nested plain values: a section that is there is obeyed as it stands, one that
        is missing is planned.
    overrides : mapping, optional
        Dotted keys that are set in any case; what depends on them is planned accordingly.
    accelerator : str
        Device kind that the plan is for; ``auto`` takes the one at hand.
    facts : Fingerprint, optional
        Collected already.

    Returns
    -------
    PlanResult
        Configuration, reasons, facts and notes.
    """
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    fixed = dict(overrides or {})
    reasons: dict[str, str] = {}
    notes: list[str] = []

    def settle(section: str, plan: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Take the user's section, or plan it; then set the user's keys, so that later sections rest on them."""
        if section not in values:
            values[section] = plan()
        values[section] = with_keys(values[section], section, fixed)
        return dict(values[section])

    axis = fixed.get("preprocess.slice_axis", values.get("preprocess", {}).get("slice_axis"))
    if axis is None:
        axis = "acquired" if "preprocess" in values else plan_slice_axis(cohort, reasons)
    if facts is None:
        facts = fingerprint(cohort, slice_axis=axis, accelerator=accelerator)

    data = dict(values.get("data", {}))
    data |= {"task": cohort.task, "target": list(cohort.targets), "classes": list(cohort.classes)}
    told = (note for note in cohort.notes if "task" in note.lower())
    reasons["data.task"] = next(told, "from the values of the target")
    if "balance" not in data:
        data["balance"] = "loss" if facts.smallest_share < RARE else "none"
        reasons["data.balance"] = f"the rarest class holds {facts.smallest_share:.0%} of the studies"
    values["data"] = with_keys(data, "data", fixed)

    wanted = with_keys(values.get("network", {}), "network", fixed)
    asked = build_network(wanted)
    preprocess = settle("preprocess", lambda: {"slice_axis": axis, **plan_grid(facts, fixed, asked.smallest, reasons)})
    canvas = preprocess.get("canvas") or (None, None, None)
    settle("intensity", lambda: plan_intensity(facts, reasons))
    name = str(wanted.get("name", "c3d"))
    streams = settle("streams", lambda: plan_streams(facts, canvas, name, fixed, reasons))
    sampling = settle("sampling", lambda: _sampling(facts, canvas, wanted, asked, reasons))
    spacing = preprocess.get("spacing") or (None, None, None)
    # What the network sees of a study: the canvas, cut to a clip.
    longest = int(sampling.get("clip_length", SamplingConfig().clip_length))
    clip = (min(int(canvas[0] or facts.size[0].median), longest), *canvas[1:])

    follows = segment_options(name, sampling, wanted.get("options", {}))

    def planned_network() -> dict[str, Any]:
        snippet = follows.get("snippet_length")
        found = plan_network(facts, canvas, clip, spacing, fixed, reasons, snippet=snippet)
        return {**found, "options": follows | found["options"]}

    if "network" in values:  # what follows from the snippets goes with it, unless it is written there
        written = dict(values["network"])
        values["network"] = {**written, "options": follows | dict(written.get("options") or {})}
    network = settle("network", planned_network)
    settle("augment", lambda: _augment(facts, canvas, reasons))
    channels = stream_channels(streams, len(values["intensity"].get("windows") or ()) or 1)
    optim = settle("optim", lambda: _optim(facts, clip, channels, network, reasons))
    settle("protocol", lambda: _protocol(reasons))
    settle("split", lambda: _split(facts, reasons))
    trainer = dict(values.get("trainer", {}))
    if "epochs" not in trainer:
        trainer |= _length(facts, optim, reasons, trainer)
    trainer = values["trainer"] = with_keys(trainer, "trainer", fixed)
    whole = {"epochs": trainer["epochs"], "lr": optim.get("lr", OptimConfig().lr)}
    if "stages" in values:
        before = {"epochs": given.get("trainer", {}).get("epochs"), "lr": given.get("optim", {}).get("lr")}
        values["stages"] = rescale_stages(values["stages"], before, whole, fixed, reasons)
    elif "stages" not in fixed:
        begun = bool(fixed.get("init.source") or dict(values.get("init") or {}).get("source"))
        values["stages"] = plan_stages(network, whole, reasons, begun=begun)
    for section in ("name", "stages", "store", "decision", "report"):
        if any(key.split(".")[0] == section for key in fixed):
            values |= with_keys(
                values, "", {key: value for key, value in fixed.items() if key.split(".")[0] == section}
            )
    for key in fixed:
        reasons[key] = "set by you"
        if key.startswith("stages."):  # told with the others of its stage
            stage, _, last = key.rpartition(".")
            reasons[stage] = "; ".join(filter(None, [reasons.get(stage), f"{last} set by you"]))
    labelled = any(getattr(case, "slice_targets", None) is not None for case in cohort.cases)
    if labelled and not is_slicewise(build_network(network)):
        notes.append(
            f"slice labels are of no use to {network.get('name', 'c3d')}: only slicewise networks learn from them"
        )
    config: TrainConfig = parse_config(values, where="plan")
    config = config.model_copy(update={"stages": settle_stages(config, reasons)})
    return PlanResult(config, reasons, facts, tuple(notes))


def plan_intensity(facts: Fingerprint, reasons: dict[str, str]) -> dict[str, Any]:
    """Choose how voxel values become network input."""
    if facts.modality != "CT":
        low, _, high = facts.intensity
        reasons["intensity.kind"] = (
            f"{facts.modality}: values share no unit (typically {low:.4g} to {high:.4g}); each study by its own"
        )
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


def _sampling(
    facts: Fingerprint,
    canvas: Sequence[int | None],
    network: Mapping[str, Any],
    built: SequenceNetwork,
    reasons: dict[str, str],
) -> dict[str, Any]:
    slices = int(canvas[0] or facts.size[0].high)
    spread = plan_segments(slices, network, built, reasons)
    if spread is not None:
        return spread
    if slices <= WHOLE_STACK:
        reasons["sampling.clip_length"] = f"one clip is the whole stack ({slices} slices)"
        return {"clip_length": slices, "stride": 1, "train": "center"}
    length = WHOLE_STACK // 2
    reasons["sampling.clip_length"] = f"stacks of {slices} slices are read in clips"
    reasons["sampling.train"] = "clips start anywhere in training and cover the study in testing"
    return {"clip_length": length, "stride": 1, "train": "random"}


def _augment(facts: Fingerprint, canvas: Sequence[int | None], reasons: dict[str, str]) -> dict[str, Any]:
    reasons["augment.scale"] = "0: size may be the question"
    reasons["augment.flip"] = "left and right may matter: add W: 0.5 where they do not"
    if organ_crop(facts):
        reasons["augment.rotate"] = "crops around one organ lie alike: small changes only"
        return {"rotate": 4.0, "tilt": 4.0, "shift": 0.5, "shift_slices": 0.5}
    height = float(canvas[1] or facts.size[1].median)
    reasons["augment.rotate"] = "heads and bodies lie a few degrees off"
    reasons["augment.shift"] = "a twentieth of the field of view"
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
        reasons["augment.gamma"] = "contrast changes from scanner to scanner"
    return chosen


def _optim(
    facts: Fingerprint,
    clip: Sequence[int | None],
    channels: int,
    network: Mapping[str, Any],
    reasons: dict[str, str],
) -> dict[str, Any]:
    from volrec.networks import training_bytes

    batch = 8 if facts.studies < 2_000 else 16
    if organ_crop(facts) and network.get("options", {}).get("stages") == 1:
        reasons["optim.optimizer"] = "SGD leads to a smoother head than AdamW (measured on the hippocampus crops)"
        batch = max(2, min(16, facts.studies // 8))
        lr = 0.004 if facts.task == "regression" else 0.01
        return {"optimizer": "sgd", "lr": lr, "weight_decay": 0.1, "warmup_epochs": 3, "batch_size": batch}
    batch = max(2, min(batch, facts.studies // 8))
    reasons["optim.batch_size"] = f"{facts.studies} studies: enough steps an epoch, enough studies a step"
    sizes = [int(size or spread.median) for size, spread in zip(clip, facts.size, strict=True)]
    fixed, each = training_bytes(
        str(network.get("name", "c3d")),
        clip=(sizes[0], sizes[1], sizes[2]),
        in_channels=channels,
        width=float(network.get("width", 1.0)),
        **network.get("options", {}),
    )
    # The other half is for workspaces, the data and whatever else is there.
    available = facts.memory_gib * 2**30 / 2
    while batch > 2 and fixed + batch * each > available:
        batch //= 2
        reasons["optim.batch_size"] = f"as many studies as fit into {facts.memory_gib:.0f} GiB ({facts.device})"
    reasons["optim.ema_decay"] = "averaged weights validate more steadily on few studies"
    return {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": batch, "ema_decay": 0.98}


def _protocol(reasons: dict[str, str]) -> dict[str, Any]:
    reasons["protocol.clips"] = "0: as many clips as cover the whole study"
    reasons["protocol.stage"] = "probabilities are averaged, as in Two-Stream and C3D"
    return {"flips": []}


def _length(
    facts: Fingerprint, optim: Mapping[str, Any], reasons: dict[str, str], trainer: Mapping[str, Any]
) -> dict[str, Any]:
    batch = int(optim.get("batch_size", 8))
    steps_an_epoch = max(1, facts.studies * 0.64 / batch)
    epochs = 40 if organ_crop(facts) else round(min(100, max(20, 1_500 / steps_an_epoch)))
    reasons["trainer.epochs"] = f"about {round(epochs * steps_an_epoch, -2):.0f} steps of {batch} studies"
    patience = int(trainer.get("patience", max(10, epochs // 3)))
    reasons["trainer.patience"] = "a third of the epochs without a better validation metric ends it"
    return {"epochs": epochs, "patience": patience}


def _split(facts: Fingerprint, reasons: dict[str, str]) -> dict[str, Any]:
    reasons["split.test"] = f"{facts.patients} patients, a fifth of them seen once, at the end"
    reasons["split.validation"] = "a fifth of the rest chooses the checkpoint"
    return {}
