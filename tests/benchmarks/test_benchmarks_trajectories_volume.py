"""Trajectories across the slices of a volume: what they follow, and what spacing, window and drift change."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from volrec.benchmarks.trajectories import TrajectorySettings, extract_trajectories, volume_trajectories
from volrec.errors import ConfigError, DataError

pytest.importorskip("cv2")


def oblique_tube(spacing=(2.0, 1.0, 1.0), slices=20, size_mm=(64, 96), slope=(0.75, 0.25), radius=14.0):
    """Make a tube with walls and strands that runs by `slope` mm (x, y) a mm of slices through still tissue."""
    height, width = (round(size / step) for size, step in zip(size_mm, spacing[1:], strict=True))
    y = (np.arange(height) + 0.5)[:, None] * spacing[1]
    x = (np.arange(width) + 0.5) * spacing[2]
    tissue = 40 + 10 * np.sin(x / 2.5) * np.sin(y / 3.1)
    volume = np.empty((slices, height, width), np.float32)
    for t in range(slices):
        u, v = (x - 24 - slope[0] * spacing[0] * t), (y - 24 - slope[1] * spacing[0] * t)
        wall = 1 / (1 + np.exp(np.hypot(u, v) - radius))
        volume[t] = tissue * (1 - wall) + wall * (250 + 120 * np.sin(u / 2.1) * np.sin(v / 1.7))
    return volume


def planted(found, spacing, slope):
    """Return the path's direction and length in mm of tracks of the full scale that went the whole way."""
    steps = found.part("trajectory").reshape(-1, 15, 2).sum(axis=1)
    full = found.part("scale")[:, 0] == 1
    return steps[full], found.part("length")[full, 0] * found.facts["grid_mm"]


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (1.0, 1.0, 1.0), (2.0, 0.5, 1.0)], ids=["slices", "cube", "rows"])
def test_tracks_follow_an_oblique_tube_in_mm(spacing):
    slope = (0.75, 0.25)
    found = volume_trajectories(oblique_tube(spacing, slope=slope), spacing, window=(150, 400), patch_mm=24)
    assert found.rows.shape[1] == 436 and len(found) > 30
    assert found.facts["grid_mm"] == min(spacing[1:])
    assert found.facts["length_mm"] == 15 * spacing[0]
    steps, length = planted(found, spacing, slope)
    np.testing.assert_allclose(np.median(steps, axis=0), np.array(slope) / np.hypot(*slope), atol=0.05)
    np.testing.assert_allclose(np.median(length), 15 * spacing[0] * np.hypot(*slope), rtol=0.05)


def test_what_is_still_between_slices_has_no_track_unless_it_is_asked_for():
    volume = oblique_tube(slope=(0, 0))
    assert len(volume_trajectories(volume, (2, 1, 1))) == 0
    kept = volume_trajectories(volume, (2, 1, 1), settings=TrajectorySettings(static_spread=0))
    assert len(kept) > 100
    assert np.isfinite(kept.rows).all()
    assert np.median(kept.part("length")) < 0.5


@pytest.mark.parametrize(("grid", "step", "patch"), [(1.0, 5, 24), (0.5, 10, 48), (2.0, 2, 12)])
def test_sizes_in_mm_become_pixels_of_the_grid(grid, step, patch):
    volume = oblique_tube()
    found = volume_trajectories(volume, (2, 1, 1), grid_mm=grid, step_mm=5, patch_mm=24)
    assert (found.facts["settings"]["step"], found.facts["settings"]["patch"]) == (step, patch)
    assert (found.facts["height"], found.facts["width"]) == (64 / grid, 96 / grid)
    assert found.facts["step_mm"] == step * grid


def test_the_spacing_decides_how_many_points_a_distance_in_mm_gives():
    volume = oblique_tube()
    # The same voxels, called half the size: 5 mm are ten of them, and a quarter of the cells.
    coarse, fine = (
        volume_trajectories(volume, spacing, step_mm=5, patch_mm=32 * spacing[1], settings=TrajectorySettings(scales=1))
        for spacing in ((2, 1, 1), (1, 0.5, 0.5))
    )
    assert (coarse.facts["settings"]["step"], fine.facts["settings"]["step"]) == (5, 10)
    assert 2.5 < len(coarse) / len(fine) < 6


def test_rows_and_columns_of_unequal_size_are_brought_onto_square_pixels():
    found = volume_trajectories(oblique_tube((2.0, 0.5, 1.0)), (2.0, 0.5, 1.0))
    assert (found.facts["height"], found.facts["width"]) == (128, 192)
    coarser = volume_trajectories(oblique_tube((2.0, 0.5, 1.0)), (2.0, 0.5, 1.0), grid_mm=1.0)
    assert (coarser.facts["height"], coarser.facts["width"]) == (64, 96)


def test_frames_between_slices_are_mixed_and_thin_slices_are_averaged():
    volume = oblique_tube(slices=12)
    places = np.linspace(0, 11, 34)
    finer = np.apply_along_axis(lambda line: np.interp(places, range(12), line), 0, volume)
    found = volume_trajectories(volume, (3, 1, 1), slice_mm=1, window=(150, 400))
    by_hand = volume_trajectories(finer, (1, 1, 1), window=(150, 400))
    assert found.facts["frames"] == 34 and found.facts["length_mm"] == 15 and len(found) > 30
    assert len(found) == pytest.approx(len(by_hand), abs=2)
    np.testing.assert_allclose(np.sort(found.part("length"), 0)[:20], np.sort(by_hand.part("length"), 0)[:20], atol=0.1)
    thin = oblique_tube(slices=40)
    coarser = volume_trajectories(thin, (1, 1, 1), slice_mm=2, window=(150, 400))
    pairs = volume_trajectories(thin.reshape(20, 2, *thin.shape[1:]).mean(axis=1), (2, 1, 1), window=(150, 400))
    np.testing.assert_array_equal(coarser.rows, pairs.rows)
    assert coarser.facts["frames"] == 20 and coarser.facts["length_mm"] == 30


def test_the_window_is_level_and_width_over_eight_bits():
    volume = oblique_tube()
    found = volume_trajectories(volume, (2, 1, 1), window=(100, 200))
    bytes_ = np.rint(np.clip(volume / np.float32(200), 0, 1) * 255).astype(np.uint8)
    by_hand = extract_trajectories(bytes_, settings=TrajectorySettings(compensation="none"))
    np.testing.assert_array_equal(found.rows, by_hand.rows)
    assert found.facts["window"] == [100, 200]


def test_without_a_window_quantiles_are_black_and_white():
    volume = oblique_tube()
    low, high = np.quantile(volume, (0.1, 0.9))
    by_quantiles = volume_trajectories(volume, (2, 1, 1), quantiles=(0.1, 0.9))
    by_window = volume_trajectories(volume, (2, 1, 1), window=((low + high) / 2, high - low))
    np.testing.assert_array_equal(by_quantiles.rows, by_window.rows)
    shifted = volume_trajectories(volume * 2 - 1000, (2, 1, 1), quantiles=(0.1, 0.9))
    assert len(shifted) == pytest.approx(len(by_quantiles), rel=0.1)


def test_a_shift_of_whole_slices_goes_only_when_drift_is_taken_out():
    rng = np.random.default_rng(0)
    scene = ndimage.gaussian_filter(rng.standard_normal((96, 160)), 2)
    volume = np.stack([scene[:, 2 * t : 2 * t + 112] for t in range(18)])
    plain, taken = (volume_trajectories(volume, (1, 1, 1), drift=drift) for drift in ("none", "homography"))
    assert len(plain) > 100 and plain.facts["features"] == "none" and plain.facts["homographies"] == []
    assert len(taken) == 0 and taken.facts["homographies"] == list(range(1, 18))


def test_a_volume_of_one_value_and_one_of_few_slices_have_no_trajectory():
    assert len(volume_trajectories(np.full((18, 40, 40), -1000), (1, 1, 1))) == 0
    assert len(volume_trajectories(oblique_tube(slices=15), (2, 1, 1))) == 0


@pytest.mark.parametrize(
    "volume", [np.zeros((40, 40)), np.zeros((0, 40, 40)), np.full((3, 40, 40), np.nan), np.zeros((3, 20, 40))]
)
def test_volumes_that_do_not_fit_are_refused(volume):
    with pytest.raises(DataError) as caught:
        volume_trajectories(volume, (1, 1, 1))
    assert caught.value.remedy


@pytest.mark.parametrize(
    "wrong",
    [
        {"spacing": (1, 1)}, {"spacing": (1, 0, 1)}, {"window": (0, 0)}, {"window": (0, np.nan)}, {"drift": "affine"},
        {"quantiles": (0.9, 0.1)}, {"grid_mm": 0}, {"slice_mm": 0}, {"step_mm": -1}, {"patch_mm": np.inf},
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused(wrong):
    arguments = {"spacing": (1, 1, 1), **wrong}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        volume_trajectories(np.zeros((3, 40, 40)), **arguments)
