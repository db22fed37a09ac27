"""What a member is made of: its question, its network with the loss, the metric that chooses its weights, its card."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from volrec.config import StageConfig, TrainConfig
from volrec.data.datasets import StudyDataset
from volrec.data.streams import field_source
from volrec.data.targets import head_sizes
from volrec.errors import DataError, Problem, StoreError
from volrec.evaluation import default_metric, higher_is_better, study_metric
from volrec.inference.predictor import Predictor
from volrec.runs import Member, member_card
from volrec.training.callbacks import Validation
from volrec.training.data import ClipData
from volrec.training.devices import Placement
from volrec.training.losses import class_weights
from volrec.training.module import StudyModule
from volrec.training.scoring import score_studies

if TYPE_CHECKING:
    from volrec.data.labels import Case

__all__ = [
    "MemberResult",
    "Subject",
    "check_clip_size",
    "choose_metric",
    "data_signature",
    "make_card",
    "make_module",
    "validate_on",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """What is learned, the same for every member of a run.

    Attributes
    ----------
    task : str
        ``binary``, ``multiclass``, ``multilabel``, ``multihead`` or ``regression``.
    targets, classes : tuple of str
        Target columns; class names.
    num_outputs : int
        Outputs of the network.
    modality : str
        Of the studies, where they share one.
    """

    task: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    num_outputs: int
    modality: str = ""

    @property
    def heads(self) -> tuple[int, ...]:
        """Outputs of each head of a multihead task; none for every other task."""
        return head_sizes(self.task, self.classes, self.targets)


@dataclass(frozen=True)
class MemberResult:
    """How the training of a member went.

    Attributes
    ----------
    name : str
        Name of the split.
    metric : str
        Metric that chose the weights; empty without a validation part.
    value : float, optional
        Its value, with the weights that were kept.
    epoch : int
        Epoch of these weights, from 0.
    epochs : int
        Epochs that were trained.
    times : dict
        Seconds and shares of data wait, transfer, compute and validation.
    problems : tuple of Problem
        Studies that could not be read or scored.
    """

    name: str
    metric: str
    value: float | None
    epoch: int
    epochs: int
    times: dict[str, float]
    problems: tuple[Problem, ...] = ()


def make_module(config: TrainConfig, subject: Subject, data: ClipData, stage: StageConfig | None = None) -> StudyModule:
    """Build network, loss and schedule for the training studies, or for one stage of their training.

    Raises
    ------
    ConfigError
        For a network, option or window that does not exist.
    DataError
        When there is no study to train on.
    """
    values = config.to_dict()
    cases = data.clips.cases
    if not cases:
        raise DataError("there is no study to train on.", remedy="See the quarantine for why.", code="no-studies")
    targets = torch.as_tensor(np.stack([np.asarray(case.target, dtype=np.float32).reshape(-1) for case in cases]))
    weights = None
    if config.data.balance == "loss":
        found = class_weights(targets, subject.task, subject.num_outputs, heads=subject.heads)  # type: ignore[arg-type]
        weights = None if found is None else found.tolist()
    labelled = any(case.slice_targets is not None for case in cases)
    return StudyModule(
        network=values["network"],
        task=subject.task,
        num_outputs=subject.num_outputs,
        intensity=values["intensity"],
        augment=values["augment"],
        streams=values["streams"],
        optim=values["optim"],
        spacing=_usual_spacing(data),
        class_weights=weights,
        scaling=_scaling(targets) if subject.task == "regression" else None,
        slice_label_weight=config.data.slice_label_weight if labelled else 0.0,
        seed=config.trainer.seed,
        steps_per_epoch=data.steps_per_epoch,
        epochs=config.trainer.epochs,
        objective="labels" if stage is None else stage.objective,
        freeze=[] if stage is None else list(stage.freeze),
        motion_weight=1.0 if stage is None else stage.motion_weight,
        heads=list(subject.heads),
    )


def _usual_spacing(data: ClipData) -> list[float] | None:
    """Return the median spacing (T, H, W) in mm of the stored studies, from some of them."""
    found = []
    for entry in data.clips.entries[:: max(1, len(data.clips.entries) // 16)]:
        try:
            affine = data.clips.store.open(entry).affine
        except StoreError:  # reported when the study's turn comes
            continue
        found.append(np.linalg.norm(affine[:3, :3], axis=0))
    return np.median(found, axis=0).tolist() if found else None


def _scaling(targets: torch.Tensor) -> dict[str, list[float]]:
    """Return mean and standard deviation of the training targets; a constant one is only shifted."""
    values = targets.double().numpy()
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    return {"mean": mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}


def choose_metric(wanted: str, subject: Subject, cases: Sequence[Case]) -> tuple[str, bool]:
    """Return the metric that chooses the weights and whether more is better.

    Where the validation part cannot carry it (one class only, constant values), the loss takes its place, and the log
    says so.

    Raises
    ------
    ConfigError
        For a metric that the task does not have.
    """
    name = default_metric(subject.task) if wanted == "auto" else wanted
    width = subject.num_outputs
    if cases:
        truth = np.stack([np.asarray(case.target, dtype=np.float64).reshape(-1) for case in cases])
        guess = np.full((len(cases), width), 1.0 / max(2, width))
        value = study_metric(name, subject.task, truth, guess, heads=subject.heads)
        if not np.isfinite(value):
            log.warning(
                "%s is not defined on the %d validation studies (one class or one value only): the loss chooses the "
                "weights instead; a larger split.validation would help.",
                name,
                len(cases),
            )
            name = "loss"
    return name, higher_is_better(name)


def check_clip_size(module: StudyModule, config: TrainConfig, data: ClipData) -> None:
    """Check before the first step that the network can read the clips of training and of testing.

    Raises
    ------
    ConfigError
        With the sizes that it can read.
    """
    height, width = data.clips.entries[0].shape[1:]
    lengths = [config.sampling.clip_length]
    if config.protocol.snippets:
        lengths.append(config.protocol.snippets * config.sampling.snippet_length)
    for length in lengths:
        clip = torch.empty((1, module.transform.channels, length, height, width), device="meta")
        module.network.check_input(clip)


def data_signature(cases: Sequence[Case]) -> str:
    """Return a hash of the training studies: their series, source files and targets."""
    digest = hashlib.sha256()
    for case in sorted(cases, key=lambda case: case.study):
        digest.update(f"{case.study}|{case.series.uid}|{case.series.signature}|".encode())
        digest.update(np.asarray(case.target, dtype="<f4").tobytes())
    return digest.hexdigest()


def make_card(
    config: TrainConfig,
    subject: Subject,
    member: Member,
    module: StudyModule,
    *,
    epoch: int,
    metric: str,
    found: Validation | None,
    signature: str,
    init: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the card of weights that are kept: contract, epoch and metric, and what the training began with."""
    value = None if found is None or not np.isfinite(found.metric) else float(found.metric)
    return member_card(
        config,
        split=member.split,
        task=subject.task,
        targets=subject.targets,
        classes=subject.classes,
        num_classes=subject.num_outputs,
        in_channels=module.transform.channels,
        modality=subject.modality,
        regression=module.scaling,
        data_signature=signature,
        epoch=epoch,
        validation={} if found is None else {"metric": metric, "value": value},
        averaged=bool(config.optim.ema_decay),
        field_source=field_source(config.streams),
        **({"init": dict(init)} if init else {}),
    )


def validate_on(
    studies: StudyDataset,
    network: torch.nn.Module,
    *,
    config: TrainConfig,
    subject: Subject,
    placement: Placement,
    metric: str,
    scaling: Mapping[str, Sequence[float]] | None,
    stop: Callable[[], bool],
) -> Validation:
    """Score whole studies by the protocol, as testing and prediction do.

    Raises
    ------
    StopTraining
        When `stop` said so.
    """
    predictor = Predictor(
        network,
        intensity=config.intensity,
        sampling=config.sampling,
        protocol=config.protocol,
        task=subject.task,
        precision=placement.precision,
        regression_scaling=scaling,
        streams=config.streams,
        heads=subject.heads,
    )
    scored = score_studies(predictor, studies, stop=stop)
    if not scored.cases:
        return Validation(float("nan"), float("nan"), scored.problems)
    value, loss = (
        study_metric(name, subject.task, scored.targets, scored.scores, heads=subject.heads)
        for name in (metric, "loss")
    )
    return Validation(value, loss, scored.problems)
