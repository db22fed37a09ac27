"""Small studies in a store, as the index and the store would leave them, for tests of pretraining and transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from volrec.config import IntensityConfig, PretrainConfig, TransferConfig, parse_config
from volrec.data.entries import Entry, StoredVolume, study_quantiles, write_entry
from volrec.data.store import Store
from volrec.networks.backbones import create_backbone
from volrec.transfer.prepare import Prepared
from volrec.transfer.teacher import Teacher

SPACING = (3.0, 1.0, 1.0)


@dataclass(frozen=True)
class SmallCase:
    """What trainings without labels read of a case."""

    study: str
    patient: str
    series: Any
    target: np.ndarray
    split: str | None = None
    slice_targets: np.ndarray | None = None


@dataclass
class Small:
    """A store with studies."""

    cases: list[SmallCase]
    entries: dict[str, Entry]
    store: Store


def smooth(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Return an int16 volume whose neighbouring slices are alike, and whose studies are not."""
    coarse = torch.from_numpy(rng.normal(0, 300, (1, 1, max(2, shape[0] // 3), 4, 4)))
    fine = torch.nn.functional.interpolate(coarse, shape, mode="trilinear", align_corners=True)[0, 0].numpy()
    return (fine + rng.normal(0, 10, shape)).astype(np.int16)


def make_small(
    folder: Path,
    *,
    count: int = 6,
    shape: tuple[int, int, int] = (12, 16, 16),
    pad: tuple[int, int] = (0, 0),
    patients: Sequence[str] | None = None,
    numbered: bool = False,
) -> Small:
    """Store studies; `pad` slices of a canvas lie before and after their own. `numbered`: slice t holds t alone."""
    rng = np.random.default_rng(11)
    small = Small([], {}, Store(folder))
    for number in range(count):
        own = smooth(rng, shape)
        if numbered:
            own = np.broadcast_to(np.arange(shape[0], dtype=np.int16)[:, None, None], shape)
        array = np.pad(own, (pad, (0, 0), (0, 0)), constant_values=own.min())
        source = np.diag([*SPACING, 1.0])
        affine = source.copy()
        affine[0, 3] = -pad[0] * SPACING[0]
        meta = {"source_affine": source.tolist(), "source_shape": list(shape)}
        uid = f"1.2.{number}"
        volume = StoredVolume(array, affine, study_quantiles(np.ascontiguousarray(own)), meta)
        small.entries[uid] = write_entry(folder, f"{number:040x}", volume, uid=uid, format="npy")
        series = SimpleNamespace(uid=uid, signature=f"sig{number}", path=uid, spacing=SPACING, modality="CT")
        patient = patients[number] if patients else f"patient-{number:02d}"
        small.cases.append(SmallCase(f"study-{number:02d}", patient, series, np.empty(0, np.float32)))
    return small


def spoil(small: Small, number: int) -> None:
    """Make a study unreadable."""
    Path(small.entries[small.cases[number].series.uid].path).write_bytes(b"nothing")


def small_teacher(
    *,
    width: float = 0.0625,
    seed: int = 3,
    contract: Any = None,
    size: int | None = None,
    intensity: IntensityConfig | None = None,
) -> Teacher:
    """Return a narrow teacher with drawn weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = create_backbone("resnet-18", in_channels=1, width=width, stem_stride=1)
    facts = {"sha256": f"{seed}-{width}", "source": "drawn"}
    return Teacher(backbone, intensity=intensity or IntensityConfig(), contract=contract, size=size, facts=facts)


def prepared(small: Small, config: Any, *, held: int = 0) -> Prepared:
    """Return what `prepare` would, the last `held` studies held out; there is no run folder."""
    part = len(small.cases) - held
    values: Any = (None, config, tuple(small.cases[:part]), tuple(small.cases[part:]), small.entries, small.store)
    return Prepared(*values, cohort=None, problems=())  # type: ignore[arg-type]


TRAINER = {"epochs": 2, "patience": 0, "accelerator": "cpu", "workers": 0}


def pretrain_config(**sections: Any) -> PretrainConfig:
    """Return a small configuration; sections are merged over it."""
    values: dict[str, Any] = {
        "backbone": {"name": "resnet-18", "width": 0.0625, "stem_stride": 1},
        "method": {"name": "vicreg", "projection": [16, 8], "weights": [25.0, 25.0, 1.0]},
        "views": {"neighbours": 3.01, "slices": 2},
        "augment": {"shift": 1.0, "noise": 0.05},
        "optim": {"batch_size": 8, "lr": 3e-3},
        "trainer": TRAINER,
    }
    return parse_config(_merged(values, sections), schema=PretrainConfig)


def transfer_config(**sections: Any) -> TransferConfig:
    """Return a small configuration; sections are merged over it."""
    values: dict[str, Any] = {
        "network": {"name": "slice-mean", "width": 0.0625},
        "sampling": {"clip_length": 4},
        "augment": {"shift": 1.0, "noise": 0.05},
        "teacher": {"source": "none", "views": 2, "augment": {"shift": 1.0, "noise": 0.05}},
        "matching": {"hidden": [16, 8], "negatives": {"patient": 0.5, "place": 0.25, "order": 0.25}},
        "optim": {"batch_size": 4, "lr": 3e-3},
        "trainer": TRAINER,
    }
    return parse_config(_merged(values, sections), schema=TransferConfig)


def _merged(values: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    return values | {name: {**values.get(name, {}), **section} for name, section in sections.items()}
