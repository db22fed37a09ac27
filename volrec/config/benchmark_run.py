"""Everything that determines one run of a video benchmark."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from volrec.config.benchmark import StreamProtocol, VideoProtocol
from volrec.config.sections import Count, InitConfig, OptimConfig, Positive, Section, TrainerConfig

__all__ = ["BenchmarkConfig"]


def _last_weights() -> TrainerConfig:
    return TrainerConfig(epochs=1, patience=0, checkpoint="last")


def _plain_steps() -> OptimConfig:
    return OptimConfig(optimizer="sgd", schedule="constant", warmup_epochs=0, clip_norm=0)


class BenchmarkConfig(Section):
    """Everything that determines a run of `volrec benchmark`."""

    kind: Literal["benchmark"] = "benchmark"
    """What this file is for."""
    name: str | None = None
    """Name of the run."""
    dataset: str = "ucf101"
    """Data set: ucf101, hmdb51, kinetics, sports1m, list, motion."""
    root: str = ""
    """Folder of the videos."""
    lists: list[str] | None = None
    """Folder or files of the lists that say which videos learn and which are tested; null finds it."""
    splits: list[str] = Field(default_factory=lambda: ["1"])
    """Splits, one after another."""
    paper: str = ""
    """Name of the protocol that this one was made of."""
    protocol: VideoProtocol
    """The protocol as it is run."""
    scale: Positive = 1.0
    """Factor of the sizes of frames and crops; 1 is the paper's."""
    width: Positive = 1.0
    """Factor of the channels of the networks; 1 is the paper's."""
    decoder: Literal["pyav", "opencv", "torchcodec"] = "pyav"
    """What decodes videos."""
    extracted: str | None = None
    """Folder of extracted frames and flow."""
    weights: dict[str, str] = Field(default_factory=dict)
    """Weights to test, a file a stream; ``{split}`` in a name stands for the split."""
    init: dict[str, InitConfig] = Field(default_factory=dict)
    """Weights to begin with, by stream."""
    parts: list[Literal["train", "test"]] = Field(default_factory=lambda: ["train", "test"])  # type: ignore[arg-type]
    """What is done."""
    epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the training videos; 0: as many as the paper's updates are."""
    batch: Count | None = None
    """Videos an update; null: the paper's."""
    step_batch: Count = 16
    """Most videos that are in memory at a time; an update adds up the gradients of as many steps as it takes."""
    trajectories: str | None = None
    """Folder of improved dense trajectories, computed there where they are not there yet."""
    optim: OptimConfig = Field(default_factory=_plain_steps)
    """Filled in for each stream from its training."""
    trainer: TrainerConfig = Field(default_factory=_last_weights)
    """Hardware and seed."""

    def for_stream(self, stream: StreamProtocol, *, epochs: int) -> BenchmarkConfig:
        """Return the configuration with the optimiser and the length of one stream filled in."""
        training, begun = stream.training, self.init.get(stream.name)
        batch = self.batch or training.batch
        # Steps of one size: an update is of as many videos as the batch says, where that can be divided.
        steps = -(-batch // self.step_batch)
        steps = next((number for number in range(steps, 2 * steps + 1) if batch % number == 0), steps)
        step = -(-batch // steps)
        optim = self.optim.model_copy(
            update={
                "lr": training.lr,
                "weight_decay": training.weight_decay,
                "batch_size": step,
                "accumulate": steps,
                "clip_norm": training.clip_norm,
                # Statistics that are kept are those of first weights; without these there are none worth keeping.
                "partial_bn": training.partial_bn if begun is not None and begun.source else "none",
            }
        )
        return self.model_copy(
            update={"optim": optim, "trainer": self.trainer.model_copy(update={"epochs": max(1, epochs)})}
        )
