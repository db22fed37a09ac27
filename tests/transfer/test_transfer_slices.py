"""Pairs of neighbouring slices: where they lie, what they depend on, and what a network is shown of them."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_studies import Small, make_small, pretrain_config, spoil

from volrec.config import AugmentConfig, IntensityConfig, ViewsConfig
from volrec.data.datasets import Draw
from volrec.errors import ConfigError
from volrec.transfer.slices import SlicePairs, SliceViews, ViewData, even_slices, make_augment, step_mm
from volrec.transforms.intensity import BatchIntensity


@pytest.fixture
def small(tmp_path: Path) -> Small:
    """Ten slices of 3 mm that hold their own number, on a canvas of fifteen."""
    return make_small(tmp_path, count=4, shape=(10, 8, 8), pad=(2, 3), numbered=True)


def pairs_of(small: Small, *, neighbours: float, seed: int = 0) -> SlicePairs:
    views = ViewsConfig(neighbours=neighbours)
    return SlicePairs(small.cases, small.entries, store=small.store, views=views, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(("neighbours", "reach"), [(0.0, 0), (2.9, 0), (3.0, 1), (7.0, 2), (500.0, 9)])
def test_pairs_lie_within_reach_among_the_studys_own_slices(small: Small, neighbours: float, reach: int) -> None:
    pairs = pairs_of(small, neighbours=neighbours)
    drawn = np.array([pairs.draw(study, 15, epoch=epoch) for study in range(4) for epoch in range(150)])
    assert drawn.min() == 2 and drawn.max() == 11  # of the canvas, 2 to 11 are the study's own
    distance = np.abs(drawn[:, 0] - drawn[:, 1])
    assert distance.max() == reach
    assert set(distance) == set(range(reach + 1))
    assert set(drawn[:, 0]) == set(range(2, 12))


def test_a_pair_depends_on_seed_epoch_study_and_repeat_alone(small: Small, tmp_path: Path) -> None:
    pairs = pairs_of(small, neighbours=9.0)
    keys = [(epoch, study, repeat) for epoch in range(3) for study in range(4) for repeat in range(2)]

    def all_of(each: SlicePairs, order: list[tuple[int, int, int]]) -> dict[tuple[int, int, int], tuple[int, ...]]:
        return {(e, s, r): tuple(each.draw(s, 15, epoch=e, repeat=r)) for e, s, r in order}

    first = all_of(pairs, keys)
    assert all_of(pairs, keys[::-1]) == first
    assert len(set(first.values())) > 12
    assert all_of(pairs_of(small, neighbours=9.0, seed=1), keys) != first
    alone = Small(small.cases[2:3], small.entries, small.store)
    assert all(
        tuple(pairs_of(alone, neighbours=9.0).draw(0, 15, epoch=epoch)) == first[epoch, 2, 0] for epoch in range(3)
    )


def test_a_sample_holds_both_slices_their_place_in_mm_and_the_patient(small: Small) -> None:
    pairs = pairs_of(small, neighbours=3.0)
    sample = pairs[Draw(5, 1, 1)]
    slices = pairs.draw(1, 15, epoch=5, repeat=1)
    assert sample["image"].shape == (1, 2, 8, 8)
    assert sample["image"][0, :, 0, 0].tolist() == (slices - 2).tolist()
    assert sample["place"] == slices[0] * 3.0
    assert sample["patient"] == zlib.crc32(b"patient-01")
    assert sample["valid"]


def test_a_study_that_cannot_be_read_lies_nowhere(small: Small) -> None:
    spoil(small, 1)
    sample = pairs_of(small, neighbours=3.0)[Draw(0, 1)]
    assert not sample["valid"] and np.isnan(sample["place"])
    assert sample["problem"]["study"] == "study-01"
    assert sample["image"].shape == (1, 2, 8, 8)


class TestViewData:
    def test_batches_are_whole_and_hold_half_as_many_places_as_views(self, small: Small) -> None:
        config = pretrain_config(optim={"batch_size": 6}, views={"slices": 4})
        data = ViewData(config, small.cases, small.entries, store=small.store, accelerator="cpu")  # type: ignore[arg-type]
        batches = list(data.train_dataloader())
        assert len(batches) == data.steps_per_epoch == 4 * 4 // 3
        for batch in batches:
            assert batch["image"].shape == (3, 1, 2, 8, 8)
            assert {"place", "patient", "study", "valid", "quantiles"} <= set(batch)
            assert batch["place"].shape == batch["patient"].shape == (3,)

    def test_the_number_of_steps_can_be_set_and_a_short_epoch_has_one(self, small: Small) -> None:
        config = pretrain_config(optim={"batch_size": 4}, trainer={"batches_per_epoch": 7})
        data = ViewData(config, small.cases, small.entries, store=small.store, accelerator="cpu")  # type: ignore[arg-type]
        assert data.steps_per_epoch == 7
        config = pretrain_config(optim={"batch_size": 64}, views={"slices": 1})
        data = ViewData(config, small.cases, small.entries, store=small.store, accelerator="cpu")  # type: ignore[arg-type]
        assert data.steps_per_epoch == 1
        assert len(next(iter(data.train_dataloader()))["study"]) == 32

    def test_studies_of_different_size_are_refused(self, tmp_path: Path) -> None:
        one, other = make_small(tmp_path / "a", count=1), make_small(tmp_path / "b", count=2, shape=(12, 20, 16))
        entries = {**other.entries, **one.entries}
        data = ViewData(pretrain_config(), other.cases, entries, store=one.store, accelerator="cpu")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="different size in plane"):
            data.train_dataloader()


class TestSliceViews:
    def stored(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(-100, 900, (6, 1, 1, 12, 12), generator=generator).to(torch.int16)
        return images, torch.quantile(images.flatten(1).double(), torch.linspace(0, 1, 1001).double(), dim=1).T.float()

    def test_without_a_generator_slices_are_shown_as_they_are(self) -> None:
        images, quantiles = self.stored()
        views = SliceViews(IntensityConfig(), ViewsConfig(), AugmentConfig(rotate=20, noise=0.3))
        assert torch.equal(views(images, quantiles), BatchIntensity()(images, quantiles)[:, :, 0])

    def test_every_slice_is_changed_by_itself_and_the_same_again(self) -> None:
        image, quantiles = (part[:1] for part in self.stored())
        images, quantiles = image.repeat(6, 1, 1, 1, 1), quantiles.repeat(6, 1)
        for augment in (AugmentConfig(), AugmentConfig(shift=2.0)):
            views = SliceViews(IntensityConfig(), ViewsConfig(window_level=0.2), augment)
            out, again = (views(images, quantiles, torch.Generator().manual_seed(3)) for _ in range(2))
            assert torch.equal(out, again)
            assert out.shape == (6, 1, 12, 12)
            assert len(torch.unique(out.flatten(1), dim=0)) == 6
            assert not torch.equal(out, views(images, quantiles, torch.Generator().manual_seed(4)))

    def test_windows_give_a_channel_each(self) -> None:
        config = IntensityConfig(kind="window", windows=["brain", "bone", "lung"])
        views = SliceViews(config, ViewsConfig(), AugmentConfig())
        images, quantiles = self.stored()
        assert views.channels == 3
        assert views(images, quantiles, torch.Generator().manual_seed(0)).shape == (6, 3, 12, 12)


def test_an_augmentation_that_changes_nothing_is_left_out() -> None:
    assert make_augment(AugmentConfig(spatial_probability=0.5, flip={"W": 0.0})) is None
    assert make_augment(AugmentConfig(flip={"W": 0.5})) is not None
    assert make_augment(AugmentConfig(noise=0.1)) is not None


@given(first=st.integers(0, 50), length=st.integers(1, 80), count=st.integers(1, 100))
@settings(max_examples=200)
def test_even_slices_are_spread_over_the_study(first: int, length: int, count: int) -> None:
    found = even_slices(first, first + length, count)
    assert len(found) == min(count, length)
    assert found.min() >= first and found.max() < first + length
    assert len(set(found)) == len(found)
    if len(found) > 1:
        assert np.diff(found).max() - np.diff(found).min() <= 1
        assert abs((found[0] - first) - (first + length - 1 - found[-1])) <= 1


def test_the_step_is_measured_along_the_slice_axis_whatever_its_direction(small: Small) -> None:
    volume = small.store.open(next(iter(small.entries.values())))
    assert step_mm(volume) == pytest.approx(3.0)
    volume.affine[:3, 0] = [0.0, -3.0, 4.0]
    assert step_mm(volume) == pytest.approx(5.0)
