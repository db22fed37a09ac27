"""Kept features: what they hold, when they are encoded anew, and what an interruption or a fault costs."""

from __future__ import annotations

import errno
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_studies import Small, make_small, small_teacher, spoil

from volrec.config import AugmentConfig
from volrec.errors import StoreError
from volrec.training.seeds import step_seed
from volrec.transfer import features as module
from volrec.transfer.features import TeacherFeatures, TeacherView
from volrec.transfer.slices import make_augment
from volrec.transfer.teacher import Teacher

CPU = torch.device("cpu")
AUGMENT = AugmentConfig(shift=2.0, rotate=10.0, noise=0.1)


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return make_small(tmp_path, count=4)


def features_of(
    small: Small, *, teacher: Teacher | None = None, augment: AugmentConfig = AUGMENT, views: int = 2, seed: int = 5
) -> TeacherFeatures:
    view = TeacherView(teacher or small_teacher(), augment, seed=seed)
    return TeacherFeatures(view, store=small.store, views=views)


def fill(features: TeacherFeatures, small: Small, **options: Any) -> list[Any]:
    return features.fill(small.cases, small.entries, device=CPU, **options)  # type: ignore[arg-type]


def encoded(monkeypatch: pytest.MonkeyPatch, *, stop_at: int | None = None) -> list[str]:
    """Return what will list the studies that are encoded, a line a view; at `stop_at` the process dies."""
    calls: list[str] = []
    original = TeacherView.images

    def images(self: TeacherView, volume: Any, study: str, view: int, device: torch.device) -> torch.Tensor:
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(study)
        return original(self, volume, study, view, device)

    monkeypatch.setattr(TeacherView, "images", images)
    return calls


@pytest.mark.parametrize("augment", [AugmentConfig(), AUGMENT], ids=["plain", "augmented"])
def test_kept_features_are_those_of_every_slice_encoded_by_itself(small: Small, augment: AugmentConfig) -> None:
    teacher = small_teacher()
    features = features_of(small, teacher=teacher, augment=augment)
    fill(features, small)
    for case in small.cases:
        volume = small.store.open(small.entries[case.series.uid])
        kept = features.open(small.entries[case.series.uid], case.study)
        assert kept.shape == (2, 12, 32) and kept.dtype == np.float16
        low, high = (float(volume.quantiles[place]) for place in (5, 995))
        plain = (torch.from_numpy(volume.read()).float().clip(low, high) - low) / (high - low)
        for view in range(2):
            images = plain[None, None]
            if (drawn := make_augment(augment)) is not None:
                generator = torch.Generator().manual_seed(step_seed(5, zlib.crc32(case.study.encode()), view))
                images = drawn.apply(images, drawn.draw(1, (12, 16, 16), generator))
            with torch.no_grad():
                expected = [teacher.backbone(images[:, :, t])[0].numpy() for t in range(12)]
            np.testing.assert_allclose(kept[view], expected, atol=2e-3, rtol=2e-3)
        assert np.array_equal(kept[0], kept[1]) == (make_augment(augment) is None)


def test_blocks_of_slices_change_nothing(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    view = features_of(small).view
    images = view.images(small.store.open(small.entries["1.2.0"]), "study-00", 0, CPU)
    whole = view.encode(images)
    monkeypatch.setattr(module, "BLOCK", 5)
    torch.testing.assert_close(view.encode(images), whole)


def test_what_is_there_is_not_encoded_again(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = encoded(monkeypatch)
    fill(features_of(small), small)
    assert calls == [case.study for case in small.cases for _ in range(2)]
    written = {path: path.stat().st_mtime_ns for path in small.store.folder.rglob("features/*/*.npy")}
    assert len(written) == 4
    assert fill(features_of(small), small) == []
    assert len(calls) == 8
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_the_file_follows_from_all_that_determines_it(small: Small) -> None:
    entry = small.entries["1.2.0"]
    usual = features_of(small).path(entry, "study-00")
    assert features_of(small).path(entry, "study-00") == usual
    others = [
        features_of(small, teacher=small_teacher(seed=4)).path(entry, "study-00"),
        features_of(small, teacher=small_teacher(size=20)).path(entry, "study-00"),
        features_of(
            small, teacher=small_teacher(contract={"range": [0, 1], "mean": [0.4], "std": [0.2]})
        ).path(entry, "study-00"),
        features_of(small, augment=AugmentConfig(shift=2.0, rotate=10.0)).path(entry, "study-00"),
        features_of(small, views=3).path(entry, "study-00"),
        features_of(small, seed=6).path(entry, "study-00"),
        features_of(small).path(replace(entry, key="f" * 40), "study-00"),  # other preprocessing, or another source
        features_of(small).path(entry, "study-01"),
    ]  # fmt: skip
    assert len({usual, *others}) == 9
    assert "study" not in str(usual.relative_to(small.store.folder))


def test_an_interruption_costs_the_study_in_hand_alone(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        encoded(patch, stop_at=5)
        with pytest.raises(KeyboardInterrupt):
            fill(features_of(small), small)
    files = [path for path in (small.store.folder / "features").rglob("*") if path.is_file()]
    assert len(files) == 2 and all(path.suffix == ".npy" for path in files)
    calls = encoded(monkeypatch)
    fill(features_of(small), small)
    assert set(calls) == {"study-02", "study-03"}


def test_every_process_takes_its_share_whenever_it_starts(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = encoded(monkeypatch)
    fill(features_of(small), small, part=(0, 2))  # the first is done before the second looks
    assert set(calls) == {"study-00", "study-02"}
    fill(features_of(small), small, part=(1, 2))
    features = features_of(small)
    assert sorted(set(calls)) == [case.study for case in small.cases]
    assert all(features.path(small.entries[case.series.uid], case.study).is_file() for case in small.cases)


def test_a_study_that_cannot_be_read_is_told_and_the_others_are_encoded(small: Small) -> None:
    spoil(small, 1)
    (problem,) = fill(features_of(small), small)
    assert (problem.study, problem.code, problem.fatal) == ("study-01", "store-damaged", True)
    assert len(list((small.store.folder / "features").rglob("*.npy"))) == 3


@pytest.mark.parametrize("content", [None, b"", b"nothing", b"\x93NUMPY\x01\x00", 100, -7])
def test_missing_or_damaged_features_are_said(small: Small, content: Any) -> None:
    features, entry = features_of(small), small.entries["1.2.0"]
    fill(features, small)
    path = features.path(entry, "study-00")
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else whole[:content])
    with pytest.raises(StoreError, match="features cannot be read") as caught:
        features.open(entry, "study-00")
    assert caught.value.code == "features"
    assert str(caught.value.where) == str(path)


def test_a_full_disk_says_what_to_do(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.np, "save", full)
    with pytest.raises(StoreError, match="the disk is full") as caught:
        fill(features_of(small), small)
    assert caught.value.code == "disk-full"
    assert "teacher.views to 0" in caught.value.remedy
    assert not list((small.store.folder / "features").rglob("*.*"))


def test_the_views_of_a_study_do_not_depend_on_the_others(small: Small, tmp_path: Path) -> None:
    fill(features_of(small), small)
    before = np.array(features_of(small).open(small.entries["1.2.3"], "study-03"))
    for path in (small.store.folder / "features").rglob("*.npy"):
        path.unlink()
    fill(features_of(small), Small(small.cases[3:], small.entries, small.store))
    np.testing.assert_array_equal(features_of(small).open(small.entries["1.2.3"], "study-03"), before)
