"""Small studies in a store, as the index, labels and the store would leave them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from volrec.config import TrainConfig, parse_config
from volrec.data.entries import Entry, StoredVolume, study_quantiles, write_entry
from volrec.data.store import Store
from volrec.training.member import Subject

SHAPE = (8, 16, 16)


@dataclass(frozen=True)
class TinyCase:
    """What training reads of a case."""

    study: str
    patient: str
    series: Any
    target: np.ndarray
    split: str | None = None
    slice_targets: np.ndarray | None = None


@dataclass
class Tiny:
    """A store with studies whose class is their brightness."""

    cases: list[TinyCase]
    entries: dict[str, Entry]
    store: Store
    subject: Subject


def make_tiny(folder: Path, *, count: int = 12, task: str = "binary", slice_labels: bool = False) -> Tiny:
    rng = np.random.default_rng(7)
    store = Store(folder)
    cases, entries = [], {}
    for number in range(count):
        label = number % 2
        array = rng.integers(0, 100, SHAPE).astype(np.int16)
        array[3:5, 4:10, 4:10] += 150 * label
        uid = f"1.2.{number}"
        volume = StoredVolume(
            array,
            np.diag([3.0, 1.0, 1.0, 1.0]),
            study_quantiles(array),
            {"source_affine": np.diag([3.0, 1, 1, 1]).tolist()},
        )
        key = f"{number:040x}"
        entries[uid] = write_entry(folder, key, volume, uid=uid, format="npy")
        if task == "regression":
            target = np.array([1000.0 + 500 * label + number], dtype=np.float32)
        elif task == "multilabel":
            target = np.array([label, number // 2 % 2], dtype=np.float32)
        else:
            target = np.array([label], dtype=np.float32)
        marks = None
        if slice_labels:
            marks = np.full(SHAPE[0], np.nan, dtype=np.float32)
            marks[3:5] = label
        series = SimpleNamespace(uid=uid, signature=f"sig{number}", path=uid, spacing=(3.0, 1.0, 1.0))
        cases.append(TinyCase(f"study-{number:02d}", f"patient-{number:02d}", series, target, None, marks))
    outputs = {"multiclass": 2, "multilabel": 2}.get(task, 1)
    targets = ("a", "b") if task == "multilabel" else ("label",)
    return Tiny(cases, entries, store, Subject(task, targets, ("no", "yes"), outputs))


def tiny_config(**sections: dict[str, Any]) -> TrainConfig:
    values: dict[str, Any] = {
        "network": {"name": "slice-mean", "width": 0.125},
        "sampling": {"clip_length": 6},
        "augment": {"flip": {"T": 0.5}, "noise": 0.1, "rotate": 5.0},
        "optim": {"batch_size": 4, "lr": 3e-3},
        "trainer": {"epochs": 4, "patience": 0, "accelerator": "cpu", "workers": 0},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return parse_config(values)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return make_tiny(tmp_path / "store")
