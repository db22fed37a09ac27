"""One member: a network trained on one split, from scratch or from where it was stopped."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch

from volrec.config import TrainConfig
from volrec.data.datasets import StudyDataset
from volrec.data.entries import Entry
from volrec.data.store import Store
from volrec.errors import DataError, Problem, RunError, StoreError
from volrec.evaluation import default_metric, higher_is_better, study_metric
from volrec.inference.predictor import Predictor
from volrec.progress import progress
from volrec.runs import Member, member_card
from volrec.training.callbacks import EpochEnd, MemberState, StepGuard, Validation
from volrec.training.clock import StepClock, describe_times
from volrec.training.data import ClipData
from volrec.training.devices import Placement, deterministic, place, quiet_lightning, translate_failure
from volrec.training.distributed import is_launched, is_main_process, process_group, world_size
from volrec.training.ema import AveragedNetwork
from volrec.training.interrupts import Interrupted, StopFlag, StopTraining, catching_signals
from volrec.training.logs import EpochLogs, require_mlflow
from volrec.training.losses import class_weights
from volrec.training.module import StudyModule
from volrec.training.scoring import score_studies

if TYPE_CHECKING:
    from volrec.data.labels import Case

__all__ = ["MemberResult", "Subject", "fit_member"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """What is learned, the same for every member of a run.

    Attributes
    ----------
    task : str
        ``binary``, ``multiclass``, ``multilabel`` or ``regression``.
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


def fit_member(
    config: TrainConfig,
    subject: Subject,
    *,
    member: Member,
    train: Sequence[Case],
    validation: Sequence[Case],
    entries: Mapping[str, Entry],
    store: Store,
    resume: bool = False,
) -> MemberResult:
    """Train one network on one split and leave weights, card, history and checkpoint in the member's folder.

    Parameters
    ----------
    config : TrainConfig
        Network, optimiser, augmentation, protocol, trainer.
    subject : Subject
        Task, targets and classes.
    member : Member
        Folder of the member.
    train, validation : sequence of Case
        Studies that teach, and those that choose the weights (may be empty: the last weights are kept).
    entries : mapping of str to Entry
        By series uid.
    store : Store
        Reads the entries.
    resume : bool
        Go on from the member's ``last.ckpt`` where there is one; on a CPU the result is bit-equal to a training that
        was never interrupted.

    Raises
    ------
    Interrupted
        After Ctrl-C or SIGTERM: the last whole epoch is kept.
    RunError
        The loss is no number, memory is out, a loading process died, the checkpoint cannot be read.
    ConfigError, DataError
        Settings that do not fit the device, the network or the studies; no study to train on.
    """
    placement = place(config)
    if config.trainer.mlflow is not None:
        require_mlflow()
    data = ClipData(config, train, entries, store=store, task=subject.task, accelerator=placement.accelerator)
    module = _make_module(config, subject, data)
    check_clip_size(module, config, data)
    studies = StudyDataset(validation, entries, store=store)
    metric, higher = choose_metric(config.protocol.metric, subject, studies.cases)
    flag, state = StopFlag(), MemberState()
    clock = StepClock(cuda=placement.accelerator == "cuda")
    module.clock = clock
    average = AveragedNetwork(module.network, config.optim.ema_decay) if config.optim.ema_decay else None
    checkpoint = _checkpoint_of(member) if resume else None
    if checkpoint is not None:
        state.mlflow_run = _peek(checkpoint).get("mlflow_run")
    signature = data_signature(data.clips.cases)

    def card(epoch: int, found: Validation | None) -> dict[str, Any]:
        return _card(config, subject, member, module, epoch=epoch, metric=metric, found=found, signature=signature)

    def validate(network: torch.nn.Module) -> Validation:
        return _validate(network, config, subject, placement, studies, metric, module.scaling, flag)

    if is_main_process():
        member.make()
    logs = _open_logs(config, member, state) if is_main_process() else None
    total = config.trainer.epochs * data.steps_per_epoch
    finished = False
    try:
        with (
            process_group(placement.accelerator),
            deterministic(config.trainer.deterministic),
            quiet_lightning(),
            progress(member.name, total) as bar,
            _signals_within_fit(flag) as signals,
        ):
            guard = StepGuard(state, clock=clock, flag=flag, average=average, bar=bar)
            ending = EpochEnd(
                member=member,
                state=state,
                guard=guard,
                validate=validate if len(studies) else None,
                card=card,
                metric=metric,
                higher=higher,
                keep=config.trainer.checkpoint,
                patience=config.trainer.patience,
                logs=logs,
            )
            trainer = _make_trainer(config, placement, [signals, guard, ending], member)
            _run(trainer, module, data, checkpoint, config=config, member=member)
        finished = True
    finally:
        if logs is not None:
            logs.close(finished=finished)
    return _result(member, state, metric if len(studies) else "")


class _signals_within_fit(pl.Callback):
    """Install the signal handlers after Lightning's own, and take them away when the block ends."""

    def __init__(self, flag: StopFlag) -> None:
        self._catching = catching_signals(flag)
        self._installed = False

    def __enter__(self) -> _signals_within_fit:
        return self

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._catching.__enter__()
        self._installed = True

    def __exit__(self, *failure: object) -> None:
        if self._installed:
            self._catching.__exit__(None, None, None)


def _run(
    trainer: pl.Trainer,
    module: StudyModule,
    data: ClipData,
    checkpoint: Any,
    *,
    config: TrainConfig,
    member: Member,
) -> None:
    """Fit, and turn what Lightning and torch raise into what a user can act on."""
    stopped = Interrupted(
        f"Stopped. The last whole epoch is kept; go on with: volrec train --resume {member.path.parent}"
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except StopTraining:
        raise stopped from None
    except (KeyboardInterrupt, SystemExit):  # Lightning turns a Ctrl-C of its own into an exit
        raise stopped from None
    except (RuntimeError, MemoryError) as error:
        better = translate_failure(error, config=config, in_hand=data.clips.studies_in_hand())
        if better is None:
            raise
        raise better from error


def _make_trainer(
    config: TrainConfig, placement: Placement, callbacks: list[pl.Callback], member: Member
) -> pl.Trainer:
    several = is_launched()
    plugins: list[Any] = []
    strategy: Any = "auto"
    if several:
        from lightning_fabric.plugins.environments import TorchElasticEnvironment
        from pytorch_lightning.strategies import DDPStrategy

        plugins.append(TorchElasticEnvironment())
        # Every parameter takes part in every step, except where a slice loss has no labels.
        strategy = DDPStrategy(find_unused_parameters=False)
    return pl.Trainer(
        accelerator="gpu" if placement.accelerator == "cuda" else placement.accelerator,
        devices=_local_size() if several else 1,
        num_nodes=world_size() // _local_size() if several else 1,
        strategy=strategy,
        plugins=plugins or None,
        precision=placement.lightning_precision,
        max_epochs=config.trainer.epochs,
        accumulate_grad_batches=config.optim.accumulate,
        gradient_clip_val=config.optim.clip_norm or None,
        callbacks=callbacks,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(member.path),
    )


def _local_size() -> int:
    import os

    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", str(world_size()))))


def _make_module(config: TrainConfig, subject: Subject, data: ClipData) -> StudyModule:
    values = config.to_dict()
    cases = data.clips.cases
    if not cases:
        raise DataError("there is no study to train on.", remedy="See the quarantine for why.", code="no-studies")
    targets = torch.as_tensor(np.stack([np.asarray(case.target, dtype=np.float32).reshape(-1) for case in cases]))
    weights = None
    if config.data.balance == "loss":
        found = class_weights(targets, subject.task, subject.num_outputs)  # type: ignore[arg-type]
        weights = None if found is None else found.tolist()
    labelled = any(case.slice_targets is not None for case in cases)
    return StudyModule(
        network=values["network"],
        task=subject.task,
        num_outputs=subject.num_outputs,
        intensity=values["intensity"],
        augment=values["augment"],
        optim=values["optim"],
        spacing=_usual_spacing(data),
        class_weights=weights,
        scaling=_scaling(targets) if subject.task == "regression" else None,
        slice_label_weight=config.data.slice_label_weight if labelled else 0.0,
        seed=config.trainer.seed,
        steps_per_epoch=data.steps_per_epoch,
        epochs=config.trainer.epochs,
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
        value = study_metric(name, subject.task, truth, np.full((len(cases), width), 1.0 / max(2, width)))
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
    """Check before the first step that the network can read the clips.

    Raises
    ------
    ConfigError
        With the sizes that it can read.
    """
    height, width = data.clips.entries[0].shape[1:]
    clip = torch.empty((1, module.transform.channels, config.sampling.clip_length, height, width), device="meta")
    module.network.check_input(clip)


def data_signature(cases: Sequence[Case]) -> str:
    """Return a hash of the training studies: their series, source files and targets."""
    digest = hashlib.sha256()
    for case in sorted(cases, key=lambda case: case.study):
        digest.update(f"{case.study}|{case.series.uid}|{case.series.signature}|".encode())
        digest.update(np.asarray(case.target, dtype="<f4").tobytes())
    return digest.hexdigest()


def _card(
    config: TrainConfig,
    subject: Subject,
    member: Member,
    module: StudyModule,
    *,
    epoch: int,
    metric: str,
    found: Validation | None,
    signature: str,
) -> dict[str, Any]:
    value = None if found is None or not np.isfinite(found.metric) else float(found.metric)
    return member_card(
        config,
        split=member.name,
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
    )


def _validate(
    network: torch.nn.Module,
    config: TrainConfig,
    subject: Subject,
    placement: Placement,
    studies: StudyDataset,
    metric: str,
    scaling: Mapping[str, Sequence[float]] | None,
    flag: StopFlag,
) -> Validation:
    predictor = Predictor(
        network,
        intensity=config.intensity,
        sampling=config.sampling,
        protocol=config.protocol,
        task=subject.task,
        precision=placement.precision,
        regression_scaling=scaling,
    )
    scored = score_studies(predictor, studies, stop=lambda: flag.requested)
    if not scored.cases:
        return Validation(float("nan"), float("nan"), scored.problems)
    value = study_metric(metric, subject.task, scored.targets, scored.scores)
    return Validation(value, study_metric("loss", subject.task, scored.targets, scored.scores), scored.problems)


def _open_logs(config: TrainConfig, member: Member, state: MemberState) -> EpochLogs:
    logs = EpochLogs(
        member.path,
        mlflow=config.trainer.mlflow,
        run_name=f"{member.path.parent.name}/{member.name}",
        parameters=_flat(config.to_dict()),
        run_id=state.mlflow_run,
    )
    state.mlflow_run = logs.run_id
    return logs


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _checkpoint_of(member: Member) -> Any:
    return str(member.checkpoint) if member.checkpoint.is_file() else None


def _peek(checkpoint: str) -> dict[str, Any]:
    """Return the state of an interrupted training, without its weights being loaded anywhere.

    Raises
    ------
    RunError
        When the checkpoint is damaged.
    """
    import pickle

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return dict(content["callbacks"]["EpochEnd"]["state"])
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise RunError(
            f"the checkpoint cannot be read ({error}).",
            remedy="Delete it to train this member anew, then resume.",
            where=checkpoint,
            code="checkpoint-damaged",
        ) from error


def _result(member: Member, state: MemberState, metric: str) -> MemberResult:
    times = describe_times(state.history)
    kept = next((row for row in reversed(state.history) if row["kept"]), None)
    return MemberResult(
        name=member.name,
        metric=metric,
        value=None if kept is None or not metric else float(kept[f"val_{metric}"]),
        epoch=state.best_epoch,
        epochs=len(state.history),
        times=times,
        problems=tuple(Problem(**problem) for problem in state.problems),
    )
