"""Places of a study: elsewhere is elsewhere, and the teacher's features are those of the slices that were drawn."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_studies import Small, make_small, small_teacher, spoil, transfer_config

from volrec.config import AugmentConfig, SamplingConfig
from volrec.data.datasets import Draw, own_slices
from volrec.transfer.features import TeacherFeatures, TeacherView
from volrec.transfer.places import PlaceData, Places, clip_at, elsewhere


@given(
    first=st.integers(0, 6),
    own=st.integers(1, 60),
    length=st.integers(1, 20),
    stride=st.integers(1, 3),
    data=st.data(),
)
@settings(max_examples=400)
def test_another_place_shares_no_slice_or_at_most_half_of_them(
    first: int, own: int, length: int, stride: int, data: st.DataObject
) -> None:
    last = first + own
    sampling = SamplingConfig(clip_length=length, stride=stride)
    span = (length - 1) * stride + 1
    slack = own - span
    start = first + (slack // 2 if slack <= 0 else data.draw(st.integers(0, slack)))
    here = clip_at(start, first, last, sampling)
    assert len(here) == length and here.min() >= first and here.max() < last
    possible = range(first, max(first, last - span) + 1)
    apart = [other for other in possible if abs(other - start) >= span]
    found = elsewhere(start, first, last, sampling).tolist()
    if slack < 0:  # one clip covers the whole stack: there is no elsewhere
        assert all(np.array_equal(clip_at(other, first, last, sampling), here) for other in found)
        return
    shared = {other: len(set(here) & set(clip_at(other, first, last, sampling))) for other in possible}
    if apart:
        assert found == apart
        assert all(shared[other] == 0 for other in found)
    else:
        assert all(2 * shared[other] <= length for other in found)
        assert set(found) >= {other for other in possible if 2 * abs(other - start) > span}


@pytest.mark.parametrize(
    ("own", "length", "expected"),
    [
        (12, 4, [4, 5, 6, 7, 8]),  # from slice 0: beyond the clip
        (7, 4, [2, 3]),  # too short for that: half of it at most
        (5, 4, []),
        (3, 4, []),
    ],
)
def test_elsewhere_by_hand(own: int, length: int, expected: list[int]) -> None:
    assert elsewhere(0, 0, own, SamplingConfig(clip_length=length)).tolist() == expected


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Small, TeacherFeatures]:
    """Four studies of ten slices on a canvas of fifteen, encoded in three views each."""
    small = make_small(tmp_path_factory.mktemp("store"), count=4, shape=(10, 16, 16), pad=(2, 3))
    view = TeacherView(small_teacher(), AugmentConfig(shift=2.0, noise=0.1), seed=5)
    features = TeacherFeatures(view, store=small.store, views=3)
    assert features.fill(small.cases, small.entries, device=torch.device("cpu")) == []  # type: ignore[arg-type]
    return small, features


def places_of(small: Small, features: TeacherFeatures | None, *, seed: int = 0, **sampling: object) -> Places:
    chosen = SamplingConfig(**{"clip_length": 3, **sampling})
    return Places(small.cases, small.entries, store=small.store, sampling=chosen, seed=seed, features=features)  # type: ignore[arg-type]


def views_that_fit(features: np.ndarray, slices: np.ndarray, given: np.ndarray) -> list[int]:
    means = [np.mean([view[t].astype(np.float64) for t in slices], axis=0) for view in features]
    return [number for number, mean in enumerate(means) if np.allclose(mean, given, atol=1e-4)]


def test_features_are_the_mean_over_the_slices_of_one_kept_view(kept: tuple[Small, TeacherFeatures]) -> None:
    small, features = kept
    places = places_of(small, features)
    seen: dict[str, set[int]] = {"teacher": set(), "other": set()}
    independent = False
    for epoch in range(8):
        for study in range(4):
            sample = places[Draw(epoch, study)]
            place = places.draw(study, 15, epoch=epoch)
            path = features.path(places.entries[study], places.cases[study].study)
            stored = np.load(path)
            assert stored.shape == (3, 15, 32)
            found = {}
            for name, slices in (("teacher", place.here), ("other", place.other)):
                assert slices.min() >= 2 and slices.max() < 12
                (found[name],) = views_that_fit(stored, slices, sample[name].numpy())
                seen[name].add(found[name])
            independent |= found["teacher"] != found["other"]
            volume = small.store.open(places.entries[study])
            assert torch.equal(sample["image"][0], torch.from_numpy(volume.read(place.here)))
            assert sample["has_other"] is True
            assert sample["patient"] == zlib.crc32(places.cases[study].patient.encode())
            assert not set(place.here) & set(place.other)
    assert seen == {"teacher": {0, 1, 2}, "other": {0, 1, 2}}
    assert independent


def test_a_place_depends_on_seed_epoch_study_and_repeat_alone(kept: tuple[Small, TeacherFeatures]) -> None:
    small, features = kept
    first, again = places_of(small, features), places_of(small, features)
    alone = places_of(Small(small.cases[3:], small.entries, small.store), features)
    draws = [Draw(epoch, 3, repeat) for epoch in range(4) for repeat in range(2)]
    samples = [first[draw] for draw in draws]
    for draw, sample in reversed(list(zip(draws, samples, strict=True))):
        for other in (again[draw], alone[draw._replace(study=0)]):
            assert all(torch.equal(sample[name], other[name]) for name in ("image", "teacher", "other"))
    assert len({sample["teacher"].sum().item() for sample in samples}) > 4
    other = places_of(small, features, seed=1)
    assert any(
        not torch.equal(other[draw]["image"], sample["image"]) for draw, sample in zip(draws, samples, strict=True)
    )


def test_the_middle_can_be_asked_for(kept: tuple[Small, TeacherFeatures]) -> None:
    places = places_of(kept[0], None, train="center", clip_length=4)
    assert all(places.draw(0, 15, epoch=epoch).here.tolist() == [5, 6, 7, 8] for epoch in range(5))
    others = {tuple(places.draw(0, 15, epoch=epoch).other) for epoch in range(20)}
    assert others == {(2, 3, 4, 5), (3, 4, 5, 6), (7, 8, 9, 10), (8, 9, 10, 11)}


def test_without_kept_features_the_other_slices_come_along(kept: tuple[Small, TeacherFeatures]) -> None:
    small, _ = kept
    places = places_of(small, None)
    sample, place = places[Draw(2, 1)], places.draw(1, 15, epoch=2)
    volume = small.store.open(places.entries[1])
    assert torch.equal(sample["other_image"][0], torch.from_numpy(volume.read(place.other)))
    assert "teacher" not in sample


def test_short_stacks_have_no_other_place(tmp_path: Path) -> None:
    small = make_small(tmp_path, count=1, shape=(4, 16, 16), pad=(1, 1))
    sample = places_of(small, None, clip_length=4)[Draw(0, 0)]
    assert sample["has_other"] is False
    sample = places_of(small, None, clip_length=8)[Draw(0, 0)]  # its border slices are repeated
    assert sample["has_other"] is False
    assert own_slices(small.store.open(small.entries["1.2.0"])) == (1, 5)
    assert sample["image"].shape == (1, 8, 16, 16)


@pytest.mark.parametrize("with_features", [True, False])
def test_a_batch_keeps_its_shape_around_a_study_that_cannot_be_read(tmp_path: Path, with_features: bool) -> None:
    small = make_small(tmp_path, count=4)
    view = TeacherView(small_teacher(), AugmentConfig(), seed=0)
    features = TeacherFeatures(view, store=small.store, views=1) if with_features else None
    if features is not None:
        features.fill(small.cases, small.entries, device=torch.device("cpu"))  # type: ignore[arg-type]
    spoil(small, 2)
    config = transfer_config(optim={"batch_size": 4})
    data = PlaceData(
        config, small.cases, small.entries, store=small.store, features=features, accelerator="cpu"  # type: ignore[arg-type]
    )  # fmt: skip
    (batch,) = list(data.train_dataloader())
    assert [problem["study"] for problem in batch["problems"]] == ["study-02"]
    bad = batch["study"].tolist().index(2)
    assert batch["valid"].tolist() == [number != bad for number in range(4)]
    assert not batch["has_other"][bad]
    assert batch["image"].shape == (4, 1, 4, 16, 16)
    names = ("teacher", "other") if with_features else ("other_image",)
    assert all(len(batch[name]) == 4 for name in names)


def test_damaged_features_cost_their_study_alone(tmp_path: Path) -> None:
    small = make_small(tmp_path, count=2)
    features = TeacherFeatures(TeacherView(small_teacher(), AugmentConfig(), seed=0), store=small.store, views=1)
    features.fill(small.cases, small.entries, device=torch.device("cpu"))  # type: ignore[arg-type]
    path = features.path(small.entries["1.2.1"], "study-01")
    path.write_bytes(path.read_bytes()[:200])
    places = places_of(small, features)
    assert places[Draw(0, 0)]["valid"]
    sample = places[Draw(0, 1)]
    assert not sample["valid"]
    assert (sample["problem"]["code"], sample["problem"]["where"]) == ("features", str(path))
    assert sample["teacher"].shape == sample["other"].shape == (32,)


def test_an_epoch_is_made_of_whole_batches(kept: tuple[Small, TeacherFeatures]) -> None:
    small, features = kept

    def steps(batch: int, number: int = 0) -> int:
        config = transfer_config(optim={"batch_size": batch}, trainer={"batches_per_epoch": number})
        data = PlaceData(
            config, small.cases, small.entries, store=small.store, features=features, accelerator="cpu"  # type: ignore[arg-type]
        )  # fmt: skip
        sizes = [len(batch["study"]) for batch in data.train_dataloader()]
        assert len(set(sizes)) == 1 and sizes[0] == max(2, batch)
        assert len(sizes) == data.steps_per_epoch
        return len(sizes)

    assert (steps(2), steps(3), steps(1), steps(9), steps(4, 6)) == (2, 1, 2, 1, 6)
