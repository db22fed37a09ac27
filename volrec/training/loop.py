"""The loop around the steps of any training: signals, guard, validation, checkpoints, logs, going on after a stop."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pytorch_lightning as pl
import torch

from volrec.config import AnyConfig, kind_of
from volrec.errors import RunError
from volrec.progress import progress
from volrec.runs import Member
from volrec.training.callbacks import EpochEnd, MemberState, StepGuard, Validation
from volrec.training.clock import StepClock
from volrec.training.devices import Placement, deterministic, quiet_lightning, translate_failure
from volrec.training.distributed import is_launched, is_main_process, local_size, process_group, world_size
from volrec.training.ema import AveragedNetwork
from volrec.training.interrupts import Interrupted, Signals, StopFlag, StopTraining
from volrec.training.logs import EpochLogs
from volrec.training.optim import lr_factor, make_optimizer

__all__ = ["NetworkModule", "TrainingData", "checkpoint_of", "run_loop"]


class NetworkModule(pl.LightningModule):
    """A Lightning module around `network`, whose weights are trained, averaged, validated and kept.

    Its hyper-parameters (`save_hyperparameters`) hold ``optim``, ``steps_per_epoch`` and ``epochs``.

    Attributes
    ----------
    network : Module
        Everything that learns.
    clock : StepClock
        Is told when a batch was fetched and moved.
    partial : bool
        Whether a step may leave parameters without a gradient that are not frozen.
    """

    network: torch.nn.Module
    partial = False

    def __init__(self) -> None:
        super().__init__()
        self.clock = StepClock()
        self._problems: list[dict[str, Any]] = []

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Note that the batch is here, and keep what could not be read out of it."""
        self.clock.fetched()
        problems = batch.pop("problems", [])
        if problems:
            self._problems += problems
            valid = batch["valid"]
            # A batch without a single study still takes its step (other ranks wait for it), with a loss of zero.
            chosen = valid.nonzero().flatten() if valid.any() else torch.zeros(1, dtype=torch.int64)
            batch = {key: value[chosen] for key, value in batch.items()}
        return batch

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Note that the batch is on the device."""
        self.clock.moved()
        return batch

    def take_problems(self) -> list[dict[str, Any]]:
        """Return, and forget, the problems of studies that could not be read since the last call."""
        problems, self._problems = self._problems, []
        return problems

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, one value an update."""
        optim, epochs = self.hparams["optim"], self.hparams["epochs"]
        optimizer = make_optimizer(self.network, optim)
        per_epoch = -(-self.hparams["steps_per_epoch"] // optim["accumulate"])
        warmup = round(per_epoch * optim["warmup_epochs"])

        def factor(step: int) -> float:
            return lr_factor(step, steps=per_epoch * epochs, warmup=warmup, schedule=optim["schedule"])

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TrainingData(Protocol):
    """A Lightning data module that knows its steps, and which studies its workers had begun."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch and rank."""

    def studies_in_hand(self) -> list[str]:
        """Return the studies that workers had begun and not finished."""


def run_loop(
    config: AnyConfig,
    *,
    placement: Placement,
    module: NetworkModule,
    data: TrainingData,
    member: Member,
    save: Callable[[torch.nn.Module, int, Validation | None], None],
    validate: Callable[[torch.nn.Module, StopFlag], Validation] | None,
    metric: str,
    higher: bool,
    checkpoint: str | None,
) -> MemberState:
    """Train to the end, or to the first signal; on a CPU a training that goes on is bit-equal to one never stopped.

    Parameters
    ----------
    config : TrainConfig, PretrainConfig or TransferConfig
        ``optim`` and ``trainer`` are obeyed.
    placement : Placement
        Device and arithmetic.
    module : NetworkModule
        Steps, losses and optimiser.
    data : LightningDataModule
        Its batches.
    member : Member
        Folder for history and checkpoint.
    save : callable
        From network, epoch and validation: writes the weights that are kept.
    validate : callable, optional
        From network and the flag that asks for a stop to `Validation`; None when there is nobody to validate on.
    metric, higher : str, bool
        What chooses the weights, and whether more is better.
    checkpoint : str, optional
        Goes on from here.

    Returns
    -------
    MemberState
        History, and the epoch whose weights were kept.

    Raises
    ------
    Interrupted
        After Ctrl-C or SIGTERM: the last whole epoch is kept.
    RunError
        The loss is no number, memory is out, a loading process died, the checkpoint cannot be read.
    """
    flag, state = StopFlag(), MemberState()
    clock = StepClock(cuda=placement.accelerator == "cuda")
    module.clock = clock
    average = AveragedNetwork(module.network, config.optim.ema_decay) if config.optim.ema_decay else None
    if checkpoint is not None:
        state.mlflow_run = _peek(checkpoint).get("mlflow_run")
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
                validate=None if validate is None else lambda network: validate(network, flag),
                save=save,
                metric=metric,
                higher=higher,
                keep=config.trainer.checkpoint,
                patience=config.trainer.patience,
                logs=logs,
            )
            callbacks = [_TakeSignals(signals), guard, ending]
            trainer = _make_trainer(config, placement, callbacks, member, partial=module.partial)
            _run(trainer, module, data, checkpoint, config=config, member=member)
        finished = True
    finally:
        if logs is not None:
            logs.close(finished=finished)
    return state


def checkpoint_of(member: Member) -> str | None:
    """Return the member's checkpoint, where there is one."""
    return str(member.checkpoint) if member.checkpoint.is_file() else None


class _TakeSignals(pl.Callback):
    """Take the signals over once Lightning has installed its own handlers."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._signals.install()


def _run(
    trainer: pl.Trainer,
    module: NetworkModule,
    data: TrainingData,
    checkpoint: Any,
    *,
    config: AnyConfig,
    member: Member,
) -> None:
    """Fit, and turn what Lightning and torch raise into what a user can act on."""
    command = f"volrec {kind_of(type(config))} --resume {shlex.quote(str(member.run))}"
    stopped = Interrupted(f"Stopped. The last whole epoch is kept; go on with: {command}")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)  # type: ignore[arg-type]
    except StopTraining:
        raise stopped from None
    except (KeyboardInterrupt, SystemExit):  # Lightning turns a Ctrl-C of its own into an exit
        raise stopped from None
    except (RuntimeError, MemoryError) as error:
        better = translate_failure(error, config=config, in_hand=data.studies_in_hand())
        if better is None:
            raise
        raise better from error


def _make_trainer(
    config: AnyConfig, placement: Placement, callbacks: list[pl.Callback], member: Member, *, partial: bool
) -> pl.Trainer:
    several = is_launched()
    plugins: list[Any] = []
    strategy: Any = "auto"
    if several:
        from lightning_fabric.plugins.environments import TorchElasticEnvironment
        from pytorch_lightning.strategies import DDPStrategy

        plugins.append(TorchElasticEnvironment())
        # Where every parameter takes part in every step, nothing has to be looked for.
        strategy = DDPStrategy(find_unused_parameters=partial)
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


def _open_logs(config: AnyConfig, member: Member, state: MemberState) -> EpochLogs:
    logs = EpochLogs(
        member.path,
        mlflow=config.trainer.mlflow,
        run_name=f"{member.run.name}/{member.name}",
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
