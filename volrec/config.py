"""The one schema: recipes, plans, command-line overrides, ``--help`` and the JSON schema all come from it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from volrec.errors import ConfigError

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "IntensityConfig",
    "NetworkConfig",
    "OptimConfig",
    "PreprocessConfig",
    "ProtocolConfig",
    "SamplingConfig",
    "SeriesConfig",
    "SplitConfig",
    "StoreConfig",
    "TrainConfig",
    "TrainerConfig",
    "WindowConfig",
    "apply_overrides",
    "dump_yaml",
    "json_schema",
    "load_config",
    "parse_config",
]

Task = Literal["binary", "multiclass", "multilabel", "regression"]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values are checked on assignment."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)


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
    """What the targets are; null infers it from their values and says so."""
    classes: list[str] = Field(default_factory=list)
    """Class names in the order of the network's outputs; empty takes them from the labels, sorted."""
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


class NetworkConfig(Section):
    """The network by its registry name (see ``volrec models``)."""

    name: str = "c3d"
    """Registry name."""
    width: Positive = 1.0
    """Scale of all channel counts; 1 is the paper's."""
    options: dict[str, bool | int | float | str | list[int] | list[float] | list[str] | None] = Field(
        default_factory=dict
    )
    """Named options of the network (``volrec models NAME`` lists them)."""


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
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Exponential average of the weights per step, used for validation and kept; 0 is off."""


class ProtocolConfig(Section):
    """The test-time rule: how clips become one score a study. Validation uses it too."""

    clips: Annotated[int, Field(ge=0)] = 0
    """Clips a study, spread evenly; 0 takes as many as cover it at `overlap`."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Overlap of neighbouring clips."""
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
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python types only (safe inside a checkpoint or YAML)."""
        return self.model_dump(mode="json")


def parse_config(values: Mapping[str, Any], *, where: str = "") -> TrainConfig:
    """Check a mapping against the schema.

    Parameters
    ----------
    values : mapping
        Nested keys as in a recipe.
    where : str
        File or origin, for the message.

    Raises
    ------
    ConfigError
        With one line a fault: the field, the value seen, what is allowed, and the nearest key to a typo.
    """
    try:
        return TrainConfig.model_validate(dict(values))
    except ValidationError as error:
        lines = [_describe(fault) for fault in error.errors()]
        raise ConfigError(
            "; ".join(lines) + ".",
            remedy="`volrec plan --keys` prints every key with its meaning.",
            where=where or "configuration",
            code="config",
        ) from None


def load_config(path: Path | str) -> TrainConfig:
    """Read a YAML recipe or plan; nothing in it can name code to run."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            "there is no such file.",
            remedy="Check the path, or write one with `volrec plan`.",
            where=path,
            code="config",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"it cannot be read ({error}).", remedy="Give a YAML text file.", where=path, code="config"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"it is no valid YAML{place}.",
            remedy="Mend that line; indentation is two spaces.",
            where=path,
            code="config",
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"it holds {type(values).__name__}, not keys and values.",
            remedy="See configs/ for examples.",
            where=path,
            code="config",
        )
    return parse_config(values, where=str(path))


def apply_overrides(config: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """Return a copy with dotted keys replaced (``{"optim.lr": 0.01}``), checked as a whole."""
    values = config.model_dump(mode="json")
    for dotted, value in overrides.items():
        target = values
        *parents, last = dotted.split(".")
        for key in parents:
            child = target.get(key) if isinstance(target, dict) else None
            if not isinstance(child, dict):
                break
            target = child
        else:
            target[last] = value
            continue
        raise ConfigError(
            f"there is no section '{'.'.join(parents)}'{_suggest(parents[0], list(values))}.",
            remedy="`volrec plan --keys` prints every key with its meaning.",
            where=dotted,
            code="config",
        )
    return parse_config(values, where="override")


def dump_yaml(config: TrainConfig, reasons: Mapping[str, str] | None = None) -> str:
    """Write the configuration as YAML that a person can read, one comment a reason.

    Parameters
    ----------
    config : TrainConfig
        What is written; every key is.
    reasons : mapping, optional
        From dotted key (``"sampling.clip_length"``) to one line of why.
    """
    reasons = reasons or {}
    lines: list[str] = []

    def write(values: Mapping[str, Any], indent: int, prefix: str) -> None:
        for key, value in values.items():
            dotted = f"{prefix}{key}"
            reason = f"  # {reasons[dotted]}" if dotted in reasons else ""
            pad = "  " * indent
            if isinstance(value, dict) and value and (indent == 0 or dotted == "data.series"):
                lines.append(f"{pad}{key}:{reason}")
                write(value, indent + 1, f"{dotted}.")
            else:
                flow = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).strip()
                lines.append(f"{pad}{key}: {flow.removesuffix('...').strip()}{reason}")

    write(config.to_dict(), 0, "")
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe (for editors and for ``volrec plan --schema``)."""
    return TrainConfig.model_json_schema()


def _describe(fault: Mapping[str, Any]) -> str:
    place = tuple(str(part) for part in fault["loc"])
    dotted = ".".join(place)
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'{_suggest(place[-1], _keys_at(place[:-1]))}"
    seen = fault.get("input")
    shown = "" if fault["type"] in {"missing", "value_error"} else f", got {json.dumps(seen, default=str)[:80]}"
    return f"'{dotted}': {fault['msg'].removeprefix('Value error, ')}{shown}"


def _keys_at(place: tuple[str, ...]) -> list[str]:
    model: type[BaseModel] = TrainConfig
    for part in place:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else f" (known: {', '.join(known)})" if known else ""
