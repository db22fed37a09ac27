"""Everything that determines a training."""

from __future__ import annotations

from pydantic import Field, model_validator

from volrec.config.sections import (
    AugmentConfig,
    DataConfig,
    InitConfig,
    IntensityConfig,
    NetworkConfig,
    OptimConfig,
    PreprocessConfig,
    ProtocolConfig,
    SamplingConfig,
    Section,
    SplitConfig,
    StoreConfig,
    TrainerConfig,
)

__all__ = ["TrainConfig"]


class TrainConfig(Section):
    """Everything that determines a training: a recipe under ``configs/``, a plan, or a run's record."""

    name: str | None = None
    """Name of the run; null is made from network and target."""
    data: DataConfig = Field(default_factory=DataConfig)
    split: SplitConfig = Field(default_factory=SplitConfig)
    preprocess: PreprocessConfig = Field(default_factory=PreprocessConfig)
    intensity: IntensityConfig = Field(default_factory=IntensityConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    init: InitConfig = Field(default_factory=InitConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    protocol: ProtocolConfig = Field(default_factory=ProtocolConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    store: StoreConfig = Field(default_factory=StoreConfig)

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.data.slice_labels is not None and self.preprocess.slice_axis != "acquired":
            raise ValueError(
                "data.slice_labels counts slices as acquired, but preprocess.slice_axis is "
                f"'{self.preprocess.slice_axis}': set it to acquired, or leave slice_labels out"
            )
        if self.protocol.snippets and self.sampling.train not in ("uniform", "segments"):
            raise ValueError(
                f"protocol.snippets ({self.protocol.snippets}) are spread over the study, but sampling.train is "
                f"'{self.sampling.train}': set it to segments or uniform, or snippets to 0"
            )
        return self
