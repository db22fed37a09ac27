"""One member: a network trained on one split, from scratch or from where it was stopped."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from volrec.config import TrainConfig
from volrec.data.datasets import StudyDataset
from volrec.data.entries import Entry
from volrec.data.store import Store
from volrec.errors import Problem, RunError
from volrec.progress import progress
from volrec.runs import Member
from volrec.training.callbacks import EpochEnd, MemberState, StepGuard, Validation
from volrec.training.clock import StepClock, describe_times
from volrec.training.data import ClipData
from volrec.training.devices import Placement, deterministic, place, quiet_lightning, translate_failure
from volrec.training.distributed import is_launched, is_main_process, local_size, process_group, world_size
from volrec.training.ema import AveragedNetwork
from volrec.training.initial import load_initial
from volrec.training.interrupts import Interrupted, Signals, StopFlag, StopTraining
from volrec.training.logs import EpochLogs, require_mlflow
from volrec.training.member import (
    MemberResult,
    Subject,
    check_clip_size,
    choose_metric,
    data_signature,
    make_card,
    make_module,
    validate_on,
)
from volrec.training.module import StudyModule

if TYPE_CHECKING:
    from volrec.data.labels import Case

__all__ = ["MemberResult", "Subject", "fit_member"]

log = logging.getLogger(__name__)


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
        The source of the first weights is missing or does not fit (at a fresh start only).
    ConfigError, DataError
        Settings that do not fit the device, the network or the studies; no study to train on.
    """
    placement = place(config)
    if config.trainer.mlflow is not None:
        require_mlflow()
    data = ClipData(config, train, entries, store=store, task=subject.task, accelerator=placement.accelerator)
    module = make_module(config, subject, data)
    check_clip_size(module, config, data)
    studies = StudyDataset(validation, entries, store=store)
    metric, higher = choose_metric(config.protocol.metric, subject, studies.cases)
    flag, state = StopFlag(), MemberState()
    clock = StepClock(cuda=placement.accelerator == "cuda")
    module.clock = clock
    checkpoint = _checkpoint_of(member) if resume else None
    if checkpoint is not None:
        # The source need not be there any more: weights come from the checkpoint, facts from the first start.
        state.mlflow_run = _peek(checkpoint).get("mlflow_run")
        init = member.init()
    else:
        init = load_initial(module.network, config.init, subject=subject, member=member)
    average = AveragedNetwork(module.network, config.optim.ema_decay) if config.optim.ema_decay else None
    signature = data_signature(data.clips.cases)

    def card(epoch: int, found: Validation | None) -> dict[str, Any]:
        return make_card(
            config, subject, member, module, epoch=epoch, metric=metric, found=found, signature=signature, init=init
        )

    def validate(network: torch.nn.Module) -> Validation:
        return validate_on(
            studies,
            network,
            config=config,
            subject=subject,
            placement=placement,
            metric=metric,
            scaling=module.scaling,
            stop=lambda: flag.requested,
        )

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
            torch.random.fork_rng(devices=[]),  # the steps seed the generator that the caller uses too
            Signals(flag) as signals,
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
            trainer = _make_trainer(config, placement, [_TakeSignals(signals), guard, ending], member)
            _run(trainer, module, data, checkpoint, config=config, member=member)
        finished = True
    finally:
        if logs is not None:
            logs.close(finished=finished)
    return _result(member, state, metric if len(studies) else "")


class _TakeSignals(pl.Callback):
    """Take the signals over once Lightning has installed its own handlers."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._signals.install()


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
        # Every parameter takes part in every step, so nothing has to be looked for.
        strategy = DDPStrategy(find_unused_parameters=False)
    return pl.Trainer(
        accelerator="gpu" if placement.accelerator == "cuda" else placement.accelerator,
        devices=local_size(),
        num_nodes=world_size() // local_size(),
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
