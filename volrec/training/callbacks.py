"""What happens around the steps: a guard after each one; validation, records and checkpoints after each epoch."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from volrec.errors import Problem, RunError
from volrec.progress import Bar
from volrec.runs import Member
from volrec.training.clock import PARTS, StepClock
from volrec.training.distributed import any_rank, gather, is_launched, is_main_process
from volrec.training.ema import AveragedNetwork
from volrec.training.interrupts import StopFlag, StopTraining
from volrec.training.logs import EpochLogs

if TYPE_CHECKING:
    from volrec.training.loop import NetworkModule

__all__ = ["EpochEnd", "MemberState", "StepGuard", "Validation"]

log = logging.getLogger(__name__)


@dataclass
class MemberState:
    """What has to survive a kill besides weights and optimiser; plain types only.

    Attributes
    ----------
    history : list of dict
        A row an epoch.
    best : float, optional
        Best validation metric so far, in the metric's own direction.
    best_loss : float, optional
        Validation loss of that epoch: among equal metrics the lower loss wins.
    best_epoch : int
        Epoch of the weights that are kept, from 0; -1 before the first.
    waited : int
        Epochs since the best one.
    problems : list of dict
        Studies that could not be read or scored, as `Problem.as_dict`.
    mlflow_run : str, optional
        Run in MLflow.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_loss: float | None = None
    best_epoch: int = -1
    waited: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    mlflow_run: str | None = None

    def add_problems(self, problems: list[dict[str, Any]]) -> None:
        """Add problems of studies that have none yet."""
        known = {problem["study"] for problem in self.problems}
        for problem in problems:
            if problem["study"] not in known:
                known.add(problem["study"])
                self.problems.append(problem)
                log.warning("%s is left out: %s", problem["study"], problem["reason"])


@dataclass(frozen=True)
class Validation:
    """Study-level result of one validation.

    Attributes
    ----------
    metric, loss : float
        The metric that chooses the weights; the log loss (or squared error) of the studies.
    problems : tuple of Problem
        Studies that could not be scored.
    """

    metric: float
    loss: float
    problems: tuple[Problem, ...] = ()


class StepGuard(pl.Callback):
    """After each step: is the loss a number, was a stop asked for; the average follows and the bar moves on.

    Parameters
    ----------
    state : MemberState
        Takes the problems of studies that could not be read.
    clock : StepClock
        Is told when a step ends.
    flag : StopFlag
        Up when a signal came.
    average : AveragedNetwork, optional
        Average of the weights.
    bar : Bar
        Progress.
    """

    def __init__(
        self,
        state: MemberState,
        *,
        clock: StepClock,
        flag: StopFlag,
        average: AveragedNetwork | None,
        bar: Bar,
    ) -> None:
        self.state = state
        self.clock = clock
        self.flag = flag
        self.average = average
        self.bar = bar
        self.losses: list[torch.Tensor] = []
        self.rate = 0.0
        self._checked = 0
        self._updates = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure."""
        self.losses, self._checked, self._updates = [], 0, trainer.global_step
        self.clock.start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate (of the fastest stage): after the step it is the next one's."""
        self.rate = max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the step that has just ended."""
        # Lightning has divided it by the number of steps whose gradients are added.
        self.losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        # On a GPU the last loss is looked at one step later: asking for it now would make the device wait.
        self._check_losses(trainer, len(self.losses) - int(self.clock.cuda))
        if self.average is not None and trainer.global_step != self._updates:
            self.average.update(pl_module.network)  # type: ignore[arg-type]
        self._updates = trainer.global_step
        self.bar.advance()
        self.clock.stepped()
        if any_rank(self.flag.requested):
            raise StopTraining

    def mean_loss(self, trainer: pl.Trainer) -> float:
        """Return the mean training loss of this epoch over all ranks."""
        self._check_losses(trainer, len(self.losses))
        values = gather([float(value) for value in self.losses])
        return math.fsum(values) / max(1, len(values))

    def _check_losses(self, trainer: pl.Trainer, until: int) -> None:
        for step in range(self._checked, until):
            value = float(self.losses[step])
            if not math.isfinite(value):
                raise RunError(
                    f"the loss became {value} in epoch {trainer.current_epoch + 1}, step {step + 1}, at learning rate "
                    f"{self.rate:.3g}.",
                    remedy="Lower optim.lr or set optim.clip_norm to 1, use precision 32, and look for studies with "
                    "extreme intensities.",
                    code="loss-not-finite",
                )
        self._checked = max(self._checked, until)


class EpochEnd(pl.Callback):
    """After each epoch: validate on whole studies, keep the best weights, write the records and the checkpoint.

    Order matters when the process is killed in between: weights first, ``last.ckpt`` last. What was written before
    the checkpoint is written again, equal, when the training goes on.

    Parameters
    ----------
    member : Member
        Folder of the member.
    state : MemberState
        Is brought up to date and travels in the checkpoint.
    guard : StepGuard
        Knows the losses of the epoch.
    validate : callable, optional
        From network to `Validation`; None when there is nobody to validate on.
    save : callable
        From network, epoch and validation: writes the weights that are kept, with their card.
    metric, higher : str, bool
        Name of the metric, and whether more is better.
    keep : {"best", "last"}
        Which weights are kept.
    patience : int
        Epochs without a better metric before the training ends; 0 never ends early.
    logs : EpochLogs, optional
        Further writers (the main process has them).
    """

    def __init__(
        self,
        *,
        member: Member,
        state: MemberState,
        guard: StepGuard,
        validate: Callable[[torch.nn.Module], Validation] | None,
        save: Callable[[torch.nn.Module, int, Validation | None], None],
        metric: str,
        higher: bool,
        keep: str,
        patience: int,
        logs: EpochLogs | None,
    ) -> None:
        self.member = member
        self.state = state
        self.guard = guard
        self.validate = validate
        self.save = save
        self.metric = metric
        self.higher = higher
        self.keep = keep
        self.patience = patience
        self.logs = logs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the average to the device; end at once when the training had ended early before it was interrupted."""
        if self.guard.average is not None:
            self.guard.average.network.to(pl_module.device)
        if self._patience_is_over():
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: NetworkModule) -> None:  # type: ignore[override]
        """Do all of it."""
        guard, state = self.guard, self.state
        loss = guard.mean_loss(trainer)
        times = guard.clock.finish()
        network = pl_module.network if guard.average is None else guard.average.network
        self._same_everywhere(network)
        validation = None
        if self.validate is not None:
            training = network.training
            network.eval()
            validation = self.validate(network)
            network.train(training)
        guard.clock.validated()
        times["validation"] = guard.clock.seconds["validation"]
        better = self._note(trainer.current_epoch, validation)
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": guard.rate,
            "train_loss": loss,
        }
        if validation is not None:
            row |= {"val_loss": validation.loss, f"val_{self.metric}": validation.metric}
        row["kept"] = int(better)
        row |= {part: round(times[part], 6) for part in PARTS}
        state.history.append(row)
        state.add_problems(
            gather(pl_module.take_problems())
            + ([problem.as_dict() for problem in validation.problems] if validation is not None else [])
        )
        if is_main_process():
            if better:
                self.save(network, trainer.current_epoch, validation)
            self.member.write_history(state.history)
            if self.logs is not None:
                self.logs.write(row)
        self._say(trainer, row)
        self._checkpoint(trainer)
        if self._patience_is_over():
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps."""
        average = self.guard.average
        return {"state": asdict(self.state), "average": None if average is None else average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for name, value in state_dict["state"].items():
            setattr(self.state, name, value)
        if self.guard.average is not None and state_dict["average"] is not None:
            self.guard.average.load_state_dict(state_dict["average"])

    def _note(self, epoch: int, validation: Validation | None) -> bool:
        """Bring best and patience up to date and say whether these weights are kept."""
        state = self.state
        better = False
        state.waited += 1
        if validation is not None and math.isfinite(validation.metric):
            if self._improves(validation.metric):
                better, state.waited = True, 0
            elif validation.metric == state.best and state.best_loss is not None:
                # A small validation part soon has a perfect AUC: among such epochs the surer one is kept.
                better = validation.loss < state.best_loss
            if better:
                state.best, state.best_loss = validation.metric, validation.loss
        if better or self.keep == "last" or validation is None or state.best is None:
            state.best_epoch = epoch
            return True
        return False

    def _improves(self, value: float) -> bool:
        best = self.state.best
        return best is None or (value > best if self.higher else value < best)

    def _patience_is_over(self) -> bool:
        return self.validate is not None and 0 < self.patience <= self.state.waited

    def _same_everywhere(self, network: torch.nn.Module) -> None:
        """Give every rank the running statistics of the first: gradients are shared, statistics are not."""
        if is_launched():
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _checkpoint(self, trainer: pl.Trainer) -> None:
        """Write ``last.ckpt`` beside the old one and put it in its place."""
        partial = self.member.checkpoint.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if is_main_process():
            os.replace(partial, self.member.checkpoint)

    def _say(self, trainer: pl.Trainer, row: dict[str, Any]) -> None:
        text = f"{self.member.name} epoch {row['epoch'] + 1}/{trainer.max_epochs} loss {row['train_loss']:.3f}"
        if self.validate is not None:
            text += f" validation {self.metric} {row[f'val_{self.metric}']:.3f}"
        self.guard.bar.update(description=text)
        log.info("%s%s", text, " (kept)" if row["kept"] else "")
