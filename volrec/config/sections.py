"""The sections that configurations are made of: what each key means, and which values it takes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "InitConfig",
    "IntensityConfig",
    "NetworkConfig",
    "OptimConfig",
    "PreprocessConfig",
    "ProtocolConfig",
    "SamplingConfig",
    "Section",
    "SeriesConfig",
    "SplitConfig",
    "StoreConfig",
    "TrainerConfig",
    "WindowConfig",
]

Task = Literal["binary", "multiclass", "multilabel", "multihead", "regression"]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
OptionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Value = bool | int | float | str | list[int] | list[float] | list[str] | None


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values are checked on assignment."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python types only (safe inside a checkpoint or YAML)."""
        return self.model_dump(mode="json")


class SeriesConfig(Section):
    """Which series of a study is read, when it has several."""

    modality: str | None = None
    """Only series of this DICOM modality (CT, MR, PT …); null prefers the most frequent one of the folder."""
    orientation: Literal["axial", "coronal", "sagittal"] | None = None
    """Only series acquired in this orientation."""
    path: str | None = None
    """Only series whose path, relative to the folder, matches this glob pattern (``*/t2/*``)."""
    min_slices: Count = 3
    """Series with fewer slices are set aside."""


class DataConfig(Section):
    """Which studies, and what is to be learned of them."""

    folder: str | None = None
    """Folder of DICOM or NIfTI studies, any layout."""
    labels: str | None = None
    """CSV or TSV with a column ``study``, ``patient`` or ``path`` and one or more target columns."""
    target: list[str] = Field(default_factory=list)
    """Target columns; empty takes the one that looks like a label, and says which."""
    task: Task | None = None
    """What the targets are; null infers it from their values and says so. ``multihead`` is never inferred: each target
    has classes of its own and a study may lack all but one of them."""
    classes: list[str] = Field(default_factory=list)
    """Class names in the order of the network's outputs; empty takes them from the labels, sorted. Those of a multihead
    task are written ``column=class``."""
    slice_labels: str | None = None
    """CSV with ``study``, ``slice`` (index in the canonical order) or ``z`` (mm), ``label``: for slicewise networks."""
    slice_label_weight: NonNegative = 0.5
    """Weight of the slice loss beside the study loss."""
    series: SeriesConfig = Field(default_factory=SeriesConfig)
    missing_slices: Literal["quarantine", "interpolate"] = "quarantine"
    """What to do with a series that lacks a single slice."""
    balance: Literal["none", "loss", "sampler"] = "none"
    """Class imbalance: leave it, weight the loss, or draw rare classes more often."""


class SplitConfig(Section):
    """Who trains, who chooses the checkpoint, who is tested: always whole patients."""

    folds: Annotated[int, Field(ge=0)] = 0
    """Number of cross-validation folds; 0 makes one train/validation/test split."""
    fold: int | None = None
    """Train this fold only (from 0); null trains all."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the training patients that chooses the checkpoint; 0 keeps the last weights."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the patients that is tested once, at the end (without folds)."""
    seed: int = 0
    """Seed of the split alone."""


class PreprocessConfig(Section):
    """What is done once, before the store; a change here decodes anew."""

    slice_axis: Literal["acquired", "axial", "coronal", "sagittal"] = "acquired"
    """The axis that becomes time; ``acquired`` is the one of the largest spacing."""
    spacing: tuple[Positive | None, Positive | None, Positive | None] | None = None
    """Target spacing in mm along (T, H, W); null keeps the study's own (whole, or per axis)."""
    canvas: tuple[Count | None, Count | None, Count | None] | None = None
    """Crop or pad around the centre to (T, H, W) voxels; null keeps the axis as it is."""
    interpolation: Literal["nearest", "linear"] = "linear"
    """Interpolation when the spacing changes; ``linear`` is anti-aliased where it shrinks."""
    padding: Literal["minimum", "edge", "zero"] = "minimum"
    """What fills the canvas around a smaller study."""

    @field_validator("spacing", "canvas", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class WindowConfig(Section):
    """One CT window in HU."""

    level: float
    """Centre, HU."""
    width: Positive
    """Full width, HU."""


class IntensityConfig(Section):
    """How voxel values become network input; done after the store, on the batch."""

    kind: Literal["window", "percentile", "zscore", "none"] = "percentile"
    """``window``: HU windows as channels in [0, 1]; ``percentile``: clipped to percentiles of the study, to [0, 1];
    ``zscore``: clipped likewise, then zero mean and unit variance."""
    windows: list[str | WindowConfig] = Field(default_factory=list)
    """Presets by name (brain, subdural, bone, lung, mediastinum, liver …) or level and width; one channel each."""
    percentiles: tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]] = (0.5, 99.5)
    """Lower and upper percentile of the study's own voxels (padding is not counted)."""

    @field_validator("percentiles", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> IntensityConfig:
        if self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(
                f"percentiles[0] ({self.percentiles[0]}) must be below percentiles[1] ({self.percentiles[1]})"
            )
        if self.kind == "window" and not self.windows:
            raise ValueError("kind 'window' needs at least one entry in windows")
        return self


class SamplingConfig(Section):
    """How clips are cut from a sequence in training."""

    clip_length: Count = 32
    """Slices a clip holds (T')."""
    stride: Count = 1
    """Step between the slices of a clip."""
    train: Literal["random", "center", "uniform", "segments"] = "random"
    """Training clips: start anywhere (random), in the middle (center), spread evenly over the study (uniform), or one
    slice drawn in each of T' equal parts (segments, as TSN does)."""
    snippet_length: Count = 1
    """Slices that stay together, `stride` apart, where uniform and segments spread them; divides `clip_length`."""

    @model_validator(mode="after")
    def _whole(self) -> SamplingConfig:
        if self.clip_length % self.snippet_length:
            raise ValueError(
                f"clip_length ({self.clip_length}) must be a multiple of snippet_length ({self.snippet_length})"
            )
        return self


class AugmentConfig(Section):
    """Random changes of training clips, drawn per study; 0 turns one off."""

    flip: dict[Literal["T", "H", "W"], Probability] = Field(default_factory=dict)
    """Probability of a mirror along each axis; W swaps the patient's sides: leave it out where side matters."""
    rotate: NonNegative = 0.0
    """Largest in-plane rotation, degrees."""
    tilt: NonNegative = 0.0
    """Largest rotation out of the plane, degrees."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of size in plane; leave at 0 where size is the question."""
    shift: NonNegative = 0.0
    """Largest displacement in plane, voxels."""
    shift_slices: NonNegative = 0.0
    """Largest displacement along the slice axis, slices."""
    elastic: NonNegative = 0.0
    """Standard deviation of a smooth elastic displacement in plane, voxels."""
    spatial_probability: Probability = 1.0
    """Share of the clips that are changed spatially."""
    noise: NonNegative = 0.0
    """Largest standard deviation of added Gaussian noise, in units of the normalised input."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of contrast."""
    brightness: NonNegative = 0.0
    """Largest shift of intensity, in units of the normalised input."""
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest change of log2 gamma."""
    blur: NonNegative = 0.0
    """Largest standard deviation of a Gaussian blur in plane, voxels."""
    slice_dropout: Probability = 0.0
    """Probability that a slice is replaced by its neighbour."""
    slice_jitter: NonNegative = 0.0
    """Largest in-plane displacement of single slices against each other, voxels."""
    mixup: NonNegative = 0.0
    """Alpha of mixup between studies of a batch."""
    border: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Largest share of the plane that is cut away on each side: hides where a study ends."""


class NetworkConfig(Section):
    """The network by its registry name (see ``volrec models``)."""

    name: str = "c3d"
    """Registry name."""
    width: Positive = 1.0
    """Scale of all channel counts; 1 is the paper's."""
    options: dict[str, Value | dict[OptionName, Value]] = Field(default_factory=dict)
    """Named options of the network (``volrec models NAME`` lists them)."""


class InitConfig(Section):
    """Where the first weights come from; a string alone is the source (``init: runs/transfer``)."""

    source: str | None = None
    """null draws them; else a run of `volrec transfer` or `volrec train`, a weights file, or ``inflate:`` with a run of
    `volrec pretrain` or a weights file of a 2D network."""
    first_layer: Literal["sum", "mean"] = "sum"
    """First layer when the input has other channels: ``sum`` shares the summed kernels among them, so that equal
    channels give what they gave before; ``mean`` gives each the mean kernel, as TSN does."""
    inflate: Literal["average", "center"] = "average"
    """2D kernels along time: repeated and divided by their number (I3D), or in the middle among zeros."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if value is None or value == "none":
            return {}
        return {"source": value} if isinstance(value, str) else value


class OptimConfig(Section):
    """Optimiser and schedule."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum 0.9."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 1e-2
    """Weight decay; biases and normalisation are left out."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup_epochs: NonNegative = 1.0
    """Epochs of linear warm-up."""
    batch_size: Count = 8
    """Studies a step and device."""
    accumulate: Count = 1
    """Steps whose gradients are added before an update."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing of classification losses."""
    clip_norm: NonNegative = 1.0
    """Largest gradient norm; 0 does not clip."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of each stage over that of the next: below 1 the layers nearest the input move least."""
    freeze: Annotated[int, Field(ge=0)] | list[str] = 0
    """Stages, counted from the input, that keep their weights and statistics; or patterns of parameter names."""
    partial_bn: Literal["none", "statistics", "all"] = "none"
    """All batch normalisations but the first keep their mean and variance (statistics: as TSN's code in Caffe), or
    their scale and shift as well (all: as its code in PyTorch)."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Exponential average of the weights per step, used for validation and kept; 0 is off."""


class ProtocolConfig(Section):
    """The test-time rule: how clips become one score a study. Validation uses it too."""

    method: Literal["clips", "dense"] = "clips"
    """clips: one after another, overlapping. dense: the whole study at once; a network that is convolutional along
    slices gives a score at every place where a clip fits. Only the ends of the study are padded, not those of clips:
    its numbers are others."""
    clips: Annotated[int, Field(ge=0)] = 0
    """Clips a study, spread evenly; 0 takes as many as cover it at `overlap`."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Overlap of neighbouring clips."""
    snippets: Annotated[int, Field(ge=0)] = 0
    """After sampling uniform or segments: one clip of so many snippets, evenly spaced from the first to the last slice
    (25 in TSN's paper); 0 is off."""
    consensus: Literal["mean", "max", "sci"] = "mean"
    """How clip scores become the study's; sci (FSTCN): views weighted by how clearly one class leads, then the maximum
    over clips; for classes that exclude each other, at the stage probabilities."""
    stage: Literal["logits", "probabilities"] = "probabilities"
    """What is pooled: before or after softmax or sigmoid."""
    flips: list[Literal["T", "H", "W"]] = Field(default_factory=list)
    """Axes mirrored for test-time augmentation; every combination is averaged."""
    metric: Literal[
        "auto", "auc", "average_precision", "accuracy", "balanced_accuracy", "f1", "r2", "mae", "rmse", "loss"
    ] = "auto"
    """Study-level metric that chooses the checkpoint; auto: AUC for classes, R2 for regression."""

    @model_validator(mode="after")
    def _poolable(self) -> ProtocolConfig:
        if self.consensus == "sci" and self.stage != "probabilities":
            raise ValueError(
                "protocol.consensus 'sci' weighs probabilities, but protocol.stage is "
                f"'{self.stage}': set it to probabilities, or the consensus to mean or max"
            )
        return self


class TrainerConfig(Section):
    """Length, hardware and seed of a training."""

    epochs: Count = 50
    """Longest training."""
    patience: Annotated[int, Field(ge=0)] = 15
    """Epochs without a better validation metric before it stops; 0 never stops early."""
    checkpoint: Literal["best", "last"] = "best"
    """Weights kept: those of the best validation metric, or the last."""
    batches_per_epoch: Annotated[int, Field(ge=0)] = 0
    """Steps an epoch; 0 is one pass over the training studies."""
    precision: Literal["auto", "32", "16", "bf16"] = "auto"
    """Arithmetic; auto takes mixed precision where the device is faster with it."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device kind."""
    devices: Count = 1
    """Processes on this machine, one device each."""
    num_nodes: Count = 1
    """Machines (under torchrun or SLURM)."""
    workers: Annotated[int, Field(ge=-1)] = -1
    """Data-loading processes; -1 chooses, 0 loads in the training process."""
    deterministic: bool = True
    """Deterministic algorithms where torch has them."""
    seed: int = 0
    """Seed of weights, sampling and augmentation."""
    mlflow: str | None = None
    """MLflow tracking folder or address (extra ``mlflow``)."""


class StoreConfig(Section):
    """Where decoded volumes are kept."""

    folder: str | None = None
    """Folder; null: ``$VOLREC_CACHE`` or ``~/.cache/volrec``."""
    format: Literal["npy", "blosc2"] = "npy"
    """``npy`` is fastest (memory-mapped); ``blosc2`` takes about half the disk (extra ``blosc2``)."""
    verify: Literal["full", "size"] = "full"
    """Check of entries already there: checksum of every byte, or length and header only."""
    jobs: Annotated[int, Field(ge=0)] = 0
    """Decoding processes; 0 takes the processors at hand."""
