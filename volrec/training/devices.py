"""Where a training runs: device kind, arithmetic, and what is refused because it would be slower or wrong."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from volrec.config import AnyConfig
from volrec.errors import ConfigError, RunError

__all__ = ["Placement", "deterministic", "own_device", "place", "quiet_lightning", "translate_failure"]


@dataclass(frozen=True)
class Placement:
    """Device and arithmetic of a training.

    Attributes
    ----------
    accelerator : {"cpu", "cuda", "mps"}
        Kind of device.
    precision : {"32", "16", "bf16"}
        Arithmetic.
    """

    accelerator: Literal["cpu", "cuda", "mps"]
    precision: Literal["32", "16", "bf16"]

    @property
    def lightning_precision(self) -> Literal["32-true", "16-mixed", "bf16-mixed"]:
        """The same in Lightning's words."""
        return {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}[self.precision]  # type: ignore[return-value]


def place(config: AnyConfig) -> Placement:
    """Choose device and arithmetic.

    Raises
    ------
    ConfigError
        The device is not there, or the arithmetic makes no sense on it.
    """
    from volrec.inference.predictor import best_device

    kind = best_device(config.trainer.accelerator).type
    wanted = config.trainer.precision
    if kind == "cuda":
        count = torch.cuda.device_count()
        if config.trainer.devices > count:
            raise ConfigError(
                f"trainer.devices is {config.trainer.devices}, but there are {count} GPUs here.",
                remedy=f"Set it to at most {count}.",
                where="trainer.devices",
                code="no-device",
            )
        if wanted == "auto":
            # Emulated bf16 (before Ampere) is slower than float16, which tensor cores of that age have.
            return Placement("cuda", "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "16")
        return Placement("cuda", wanted)
    if kind == "mps":
        if config.trainer.devices > 1:
            raise ConfigError(
                f"trainer.devices is {config.trainer.devices}, but a Mac has one GPU.",
                remedy="Set it to 1, or trainer.accelerator to cpu.",
                where="trainer.devices",
                code="no-device",
            )
        return Placement("mps", "32" if wanted == "auto" else wanted)
    if wanted == "16" or (wanted == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        raise ConfigError(
            f"trainer.precision is {wanted}, and this processor has no such arithmetic: it would be many times slower.",
            remedy="Set trainer.precision to auto or 32.",
            where="trainer.precision",
            code="precision",
        )
    return Placement("cpu", "32" if wanted == "auto" else wanted)


def own_device(accelerator: str) -> torch.device:
    """Return the device of this process: of several processes on one machine each has a GPU of its own."""
    number = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device(accelerator, number) if accelerator == "cuda" else torch.device(accelerator)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Use deterministic algorithms where torch has them while the block runs, and put everything back."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )
    try:
        if wanted:
            # Only a warning where there is none: some backward passes on a GPU have no deterministic form.
            torch.use_deterministic_algorithms(True, warn_only=True)
            # Nothing here reads memory that it did not write; filling it first costs time.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.backends.cudnn.deterministic = True
        # Clips of one training have one size: trying the kernels pays, but the choice may differ from run to run.
        torch.backends.cudnn.benchmark = not wanted
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[3:]


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advice and announcements from the user, who can act on none of them here."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for module in (r"pytorch_lightning\.", r"lightning_fabric\.", r"lightning_utilities\."):
            warnings.filterwarnings("ignore", module=module)
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        # Lightning steps the schedule itself, in the right order; under float16 the first step may be skipped.
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def translate_failure(error: Exception, *, config: AnyConfig, in_hand: list[str]) -> RunError | None:
    """Return an error that a user can act on for a failure of torch, or None when it is none of these.

    Parameters
    ----------
    error : Exception
        What the training raised.
    config : TrainConfig, PretrainConfig or TransferConfig
        The settings to name.
    in_hand : list of str
        Studies that loading processes had begun.
    """
    text = str(error)
    no_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    if no_memory or "not enough memory" in text or "can't allocate memory" in text:
        step_batch = getattr(config, "step_batch", None)
        if step_batch is not None:
            size = config.optim.batch_size
            return RunError(
                f"the device ran out of memory with {size} videos at a time.",
                remedy=f"Begin again with fewer of them, e.g. --step-batch {max(1, size // 2)}: their gradients are "
                "added up, and the training stays the same.",
                where="--step-batch",
                code="out-of-memory",
            )
        sampling = getattr(config, "sampling", None)
        clips = f" and sampling.clip_length {sampling.clip_length}" if sampling is not None else ""
        return RunError(
            f"the device ran out of memory with optim.batch_size {config.optim.batch_size}{clips}.",
            remedy="Halve optim.batch_size and double optim.accumulate (the same training), or lower "
            "sampling.clip_length, preprocess.canvas or network.width.",
            where="optim.batch_size",
            code="out-of-memory",
        )
    if "DataLoader worker" in text:
        studies = f" It was reading {', '.join(in_hand)}." if in_hand else ""
        return RunError(
            f"a data-loading process died (killed, or out of memory).{studies}",
            remedy="The last epoch is kept: go on with `volrec train --resume`; with trainer.workers 0 there is no "
            "such process.",
            where=in_hand[0] if len(in_hand) == 1 else "trainer.workers",
            code="worker-died",
        )
    return None
