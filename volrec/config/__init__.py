"""The one schema: recipes, plans, command-line overrides, ``--help`` and the JSON schema all come from it.

`TrainConfig` is what `volrec train` obeys, `PretrainConfig` and `TransferConfig` what `volrec pretrain` and `volrec
transfer` do; they share their sections.
"""

from __future__ import annotations

from typing import TypeAlias

from volrec.config.benchmark import (
    FeatureClassifier,
    FrameInput,
    FusionConfig,
    MotionInput,
    StreamProtocol,
    StreamTraining,
    TestViews,
    TrainViews,
    TrajectoryClassifier,
    VideoNetwork,
    VideoProtocol,
)
from volrec.config.benchmark_run import BenchmarkConfig
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
    SeriesConfig,
    SplitConfig,
    StoreConfig,
    TrainerConfig,
    WindowConfig,
)
from volrec.config.streams import FlowConfig, StageConfig, StreamsConfig
from volrec.config.text import NESTED, apply_overrides, dump_yaml, json_schema, load_config, named_item, parse_config
from volrec.config.train import TrainConfig
from volrec.config.transfer import (
    BackboneConfig,
    HoldoutConfig,
    ImagesConfig,
    MatchingConfig,
    MethodConfig,
    PretrainConfig,
    TeacherConfig,
    TransferConfig,
    ViewsConfig,
    kind_of,
)

AnyConfig: TypeAlias = TrainConfig | PretrainConfig | TransferConfig | BenchmarkConfig

__all__ = [
    "NESTED",
    "AnyConfig",
    "AugmentConfig",
    "BackboneConfig",
    "BenchmarkConfig",
    "DataConfig",
    "DecisionConfig",
    "FeatureClassifier",
    "FlowConfig",
    "FrameInput",
    "FusionConfig",
    "HoldoutConfig",
    "ImagesConfig",
    "InitConfig",
    "IntensityConfig",
    "MatchingConfig",
    "MethodConfig",
    "MotionInput",
    "NetworkConfig",
    "OptimConfig",
    "PreprocessConfig",
    "PretrainConfig",
    "ProtocolConfig",
    "ReportConfig",
    "SamplingConfig",
    "Section",
    "SeriesConfig",
    "SplitConfig",
    "StageConfig",
    "StoreConfig",
    "StreamProtocol",
    "StreamTraining",
    "StreamsConfig",
    "TeacherConfig",
    "TestViews",
    "TrainConfig",
    "TrainViews",
    "TrainerConfig",
    "TrajectoryClassifier",
    "TransferConfig",
    "VideoNetwork",
    "VideoProtocol",
    "ViewsConfig",
    "WindowConfig",
    "apply_overrides",
    "dump_yaml",
    "json_schema",
    "kind_of",
    "load_config",
    "named_item",
    "parse_config",
]
