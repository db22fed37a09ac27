"""The frozen 2D network of a transfer: from a pretraining here, from a weights file, or from outside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from volrec.config import IntensityConfig, TeacherConfig
from volrec.errors import ConfigError, RunError
from volrec.networks.backbones import create_backbone
from volrec.transforms.intensity import BatchIntensity
from volrec.weights import load_backbone
from volrec.weights.files import read_card
from volrec.weights.initial import still_training

__all__ = ["Teacher", "card_of", "load_teacher"]

BUNDLED = ("efficientnet-lite0",)
"""Networks whose weights come in a package of their own."""
LIBRARIES = ("monai:", "timm:")
_FAMILY = {1: (1,), 3: (1, 3)}


class Teacher(nn.Module):
    """A frozen 2D network with the normalisation that its weights expect.

    Parameters
    ----------
    backbone : Backbone
        Slices (N, C, H, W) to features (N, F).
    intensity : IntensityConfig
        From stored voxels to the values that `contract` starts from.
    contract : mapping, optional
        ``range``, ``mean`` and ``std`` of a network from outside (a card's ``input``): a value v in [0, 1] becomes
        (lo + v (hi - lo) - mean) / std. None: values are taken as `intensity` gives them.
    size : int, optional
        Slices are resized to so many pixels on the longer side.
    facts : mapping
        Where it comes from, for cards: plain JSON types, with ``sha256`` of its tensors.

    Attributes
    ----------
    num_features : int
        Length F of a feature.
    channels : int
        Channels of a slice as `intensity` gives it.

    Raises
    ------
    ConfigError
        When the channels of intensity and network do not go together.
    """

    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        intensity: IntensityConfig,
        contract: Mapping[str, Any] | None,
        size: int | None,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.intensity_config = intensity
        self.intensity = BatchIntensity(intensity.kind, windows=intensity.windows, percentiles=intensity.percentiles)
        self.size = size
        self.facts = dict(facts)
        self.num_features = int(backbone.num_features)  # type: ignore[arg-type]
        self.channels = self.intensity.channels
        wanted = int(backbone.architecture["in_channels"])  # type: ignore[index]
        if self.channels not in _FAMILY.get(wanted, (wanted,)):
            raise ConfigError(
                f"the teacher reads {wanted} channel(s), but teacher.intensity gives {self.channels}.",
                remedy=f"Choose {wanted} windows" + (", or a single one." if wanted == 3 else "."),
                where="teacher.intensity",
                code="teacher-channels",
            )
        self.repeat = wanted // self.channels
        offset, scale = [0.0], [1.0]
        if contract is not None:
            low, high = contract["range"]
            mean, std = _as_list(contract["mean"], wanted), _as_list(contract["std"], wanted)
            offset = [(low - m) / s for m, s in zip(mean, std, strict=True)]
            scale = [(high - low) / s for s in std]
        self.register_buffer("offset", torch.tensor(offset).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(scale).view(1, -1, 1, 1), persistent=False)

    @property
    def signature(self) -> str:
        """Hash of all that determines its features: weights, normalisation, size."""
        facts = [
            self.facts["sha256"],
            self.intensity_config.to_dict(),
            self.size,
            self.offset.flatten().tolist(),
            self.scale.flatten().tolist(),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode: a teacher does not learn, and its statistics do not move."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, F) of slices (N, C, H, W) as `intensity` gives them."""
        longer = max(images.shape[-2:])
        if self.size is not None and self.size != longer:
            sizes = [max(1, round(side * self.size / longer)) for side in images.shape[-2:]]
            images = functional.interpolate(
                images, sizes, mode="bilinear", align_corners=False, antialias=self.size < longer
            )
        if self.repeat > 1:
            images = images.repeat(1, self.repeat, 1, 1)
        return self.backbone(images * self.scale + self.offset).float()


def load_teacher(config: TeacherConfig, *, intensity: IntensityConfig, canvas: Sequence[int | None] | None) -> Teacher:
    """Load the teacher that a configuration names.

    Parameters
    ----------
    config : TeacherConfig
        Source, and what is to be otherwise than its card says.
    intensity : IntensityConfig
        The student's: CT windows are taken over for a teacher from outside.
    canvas : sequence, optional
        (T, H, W) of the stored studies, for the size that slices are brought to.

    Raises
    ------
    ConfigError
        No teacher is named, or there is no such thing.
    RunError
        Its weights cannot be used.
    """
    if config.source is None:
        raise ConfigError(
            "no teacher is named.",
            remedy="Give a run of `volrec pretrain`, a 2D weights file, or efficientnet-lite0.",
            where="teacher.source",
            code="teacher",
        )
    backbone, card, name = _open(config)
    outside = card.get("kind") != "teacher"
    contract = card.get("input") if outside else None
    chosen = config.intensity
    if chosen is None and not outside:
        chosen = IntensityConfig(**card["intensity"])
    if chosen is None:
        fits = intensity.kind == "window" and len(intensity.windows) in (1, 3)
        chosen = intensity if fits or intensity.kind == "percentile" else IntensityConfig(kind="percentile")
    if outside and contract is None:
        contract = {"range": [0.0, 1.0], "mean": [0.0], "std": [1.0], "size": None}
    facts = {
        "source": name,
        "sha256": card["tensors"]["sha256"],
        "architecture": card["architecture"],
        "data_signature": card.get("data_signature"),
        "outside": outside,
    }
    size = config.size if config.size is not None else _usual_size(contract, canvas)
    return Teacher(backbone, intensity=chosen, contract=contract, size=size, facts=facts)


def card_of(config: TeacherConfig) -> dict[str, Any] | None:
    """Return the card of a teacher in a file of volrec; None for one of a package or library, which has none."""
    source = str(config.source)
    return None if source in BUNDLED or source.startswith(LIBRARIES) else read_card(_file(source))


def _open(config: TeacherConfig) -> tuple[nn.Module, dict[str, Any], str]:
    """Return backbone, card and a name without the folders of this machine."""
    source = str(config.source)
    if source in BUNDLED:
        from volrec.weights.foreign import import_weights

        found = import_weights(source)
        facts = {"architecture": found.network.architecture, "tensors": {"sha256": found.card["source"]["sha256"]}}
        return found.network, {**found.card, **facts}, source
    if source.startswith(LIBRARIES):
        if config.weights is None:
            raise ConfigError(
                f"the teacher {source} has no weights.",
                remedy="Name their file with teacher.weights: nothing is fetched from the network.",
                where="teacher.weights",
                code="teacher",
            )
        return (*_of_library(source, config.weights), source)
    path = _file(source)
    backbone, card = load_backbone(path)
    return backbone, card, path.parent.parent.name if path.name == "weights.safetensors" else path.name


def _file(source: str) -> Path:
    """Return the weights file that a path means."""
    path = Path(source).expanduser().resolve()
    if path.is_dir():
        weights = path / "teacher" / "weights.safetensors"
        if not weights.is_file() or still_training(weights):
            begun = (path / "config.yaml").is_file() and (path / "teacher").is_dir()
            raise RunError(
                "it holds no finished teacher.",
                remedy="Give a run of `volrec pretrain`"
                + (f"; finish this one with `volrec pretrain --resume {path}`." if begun else "."),
                where=path,
                code="teacher",
            )
        path = weights
    elif not path.is_file():
        raise ConfigError(
            f"there is no teacher '{source}'.",
            remedy="Give a run of `volrec pretrain`, a 2D weights file, monai:NAME, timm:NAME, or "
            f"{', '.join(BUNDLED)}.",
            where="teacher.source",
            code="teacher",
        )
    return path


def _of_library(name: str, weights: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network of MONAI or timm with the weights of a file under that library's own names."""
    from volrec.weights.foreign.containers import read_source

    source = read_source(weights)
    tensors = {key.removeprefix("module."): tensor for key, tensor in source.tensors.items()}
    first = next((tensor for tensor in tensors.values() if tensor.ndim == 4), None)
    backbone = create_backbone(name, in_channels=3 if first is None else int(first.shape[1]))
    state: dict[str, Tensor] = {}
    faults = []
    for key, own in backbone.state_dict().items():
        theirs = tensors.get(key.removeprefix("trunk.network."))
        if theirs is None and key.endswith("num_batches_tracked"):
            state[key] = own
        elif theirs is None:
            faults.append(f"{key.removeprefix('trunk.network.')} is missing")
        elif theirs.shape != own.shape:
            faults.append(f"{key} has shape {tuple(theirs.shape)} where {tuple(own.shape)} is needed")
        else:
            state[key] = theirs
    if faults:
        more = f" … and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise RunError(
            f"the weights do not fit {name}: {'; '.join(faults[:5])}{more}.",
            remedy="Give the state dict of that very network, under the names that its library gives.",
            where=weights,
            code="weights-mismatch",
        )
    backbone.load_state_dict(state)
    return backbone, {"architecture": backbone.architecture, "tensors": {"sha256": source.sha256()}}


def _usual_size(contract: Mapping[str, Any] | None, canvas: Sequence[int | None] | None) -> int | None:
    """Return the longer side of slices: a network from outside sees small ones enlarged, never beyond its own size."""
    if contract is None or canvas is None or None in canvas[1:]:
        return None
    longer = max(int(side or 0) for side in canvas[1:])
    trained = contract.get("size")
    return min(2 * longer, max(trained[-2:])) if trained else None


def _as_list(values: Any, count: int) -> list[float]:
    found = [float(value) for value in (values if isinstance(values, (list, tuple)) else [values])]
    return found * count if len(found) == 1 else found
