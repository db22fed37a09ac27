"""Everything that determines a training."""

from __future__ import annotations

from pydantic import Field, model_validator

from volrec.config.outcome import DecisionConfig, ReportConfig
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
from volrec.config.streams import StageConfig, StreamsConfig

__all__ = ["TrainConfig"]


class TrainConfig(Section):
    """Everything that determines a training: a recipe under ``configs/``, a plan, or a run's record."""

    name: str | None = None
    """Name of the run; null is made from network and target."""
    data: DataConfig = Field(default_factory=DataConfig)
    split: SplitConfig = Field(default_factory=SplitConfig)
    preprocess: PreprocessConfig = Field(default_factory=PreprocessConfig)
    intensity: IntensityConfig = Field(default_factory=IntensityConfig)
    streams: StreamsConfig = Field(default_factory=StreamsConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    init: InitConfig = Field(default_factory=InitConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    protocol: ProtocolConfig = Field(default_factory=ProtocolConfig)
    decision: DecisionConfig = Field(default_factory=DecisionConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    stages: list[StageConfig] = Field(default_factory=list)
    """Trainings that are done in turn; empty is one. Each is called by its name: ``stages.motion.epochs``."""
    store: StoreConfig = Field(default_factory=StoreConfig)

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.data.slice_labels is not None and self.preprocess.slice_axis != "acquired":
            raise ValueError(
                "data.slice_labels counts slices as acquired, but preprocess.slice_axis is "
                f"'{self.preprocess.slice_axis}': set it to acquired, or leave slice_labels out"
            )
        if self.streams.motion:
            self._check_motion()
        if self.protocol.snippets and self.sampling.train not in ("uniform", "segments"):
            raise ValueError(
                f"protocol.snippets ({self.protocol.snippets}) are spread over the study, but sampling.train is "
                f"'{self.sampling.train}': set it to segments or uniform, or snippets to 0"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages need names of their own, got {', '.join(names)}")
        if self.stages and self.stages[-1].objective == "motion":
            raise ValueError(
                f"the last of the stages ('{names[-1]}') has objective 'motion' and learns no label: add one that does"
            )
        return self

    def _check_motion(self) -> None:
        """Refuse changes that slices undergo and the motion between them would not follow."""
        streams = ", ".join(self.streams.motion)
        if self.augment.flip.get("T", 0) or "T" in self.protocol.flips:
            raise ValueError(
                f"a mirror along T turns the motion between slices ({streams}) around, and the other way was not "
                "computed: leave T out of augment.flip and protocol.flips"
            )
        if self.augment.slice_jitter:
            raise ValueError(
                f"augment.slice_jitter moves slices against each other, which {streams} would not show: set it to 0"
            )
