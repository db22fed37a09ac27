"""Channels of several streams, and displacements that follow every change of the slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from volrec.errors import ConfigError
from volrec.transforms.batch import BatchAugment, BatchTransform
from volrec.transforms.flow_fields import STORED_BOUND
from volrec.transforms.intensity import BatchIntensity
from volrec.transforms.stream_input import StreamInput

DEPTH, SIDE = 7, 48


def drifting(velocity: tuple[float, float], *, seed: int = 0) -> np.ndarray:
    """Return a smooth texture (T, H, W) that moves by (x, y) voxels a slice."""
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(96, 96)), 3)
    texture /= texture.std()
    rows, columns = np.meshgrid(np.arange(SIDE) + 24.0, np.arange(SIDE) + 24.0, indexing="ij")
    moved = [
        ndimage.map_coordinates(texture, [rows - velocity[1] * t, columns - velocity[0] * t], order=3, mode="wrap")
        for t in range(DEPTH)
    ]
    return np.stack(moved).astype(np.float32)


def batch_of(velocity: tuple[float, float], count: int = 2) -> dict[str, torch.Tensor]:
    image = torch.from_numpy(drifting(velocity))[None, None].repeat(count, 1, 1, 1, 1)
    fields = torch.tensor(velocity).view(1, 2, 1, 1, 1).expand(count, 2, DEPTH, SIDE, SIDE)
    stored = (fields * 32767 / STORED_BOUND).round().to(torch.int16)
    return {"image": image, "fields": stored, "pixel": torch.tensor([[2.0, 0.5]] * count)}


def left_over(images: torch.Tensor, *, bound: float, still: bool = False) -> float:
    """Return how far slices are from the next ones, read where the displacements say (or where they are)."""
    worst = 0.0
    rows, columns = np.meshgrid(np.arange(SIDE, dtype=float), np.arange(SIDE, dtype=float), indexing="ij")
    middle = (slice(14, -14), slice(14, -14))
    for image, x, y in images.double().numpy():
        for t in range(2, DEPTH - 3):
            places = [rows, columns] if still else [rows + bound * y[t], columns + bound * x[t]]
            seen = ndimage.map_coordinates(image[t + 1], places, order=1, mode="nearest")
            worst = max(worst, float(np.abs(seen - image[t])[middle].mean()))
    return worst


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"flip": {"W": 1.0}},
        {"flip": {"H": 1.0}},
        {"flip": {"H": 1.0, "W": 1.0}},
        {"rotate": 40.0},
        {"scale": 0.6},
        {"shift": 3.0},
        {"rotate": 30.0, "scale": 0.2, "shift": 2.0, "shift_slices": 1.0},
        {"tilt": 20.0},
        {"tilt": 15.0, "rotate": 30.0, "spacing": (2.0, 1.0, 1.0)},
        {"flip": {"W": 1.0}, "rotate": 30.0, "border": 0.1},
    ],
    ids=str,
)
def test_displacements_still_lead_to_the_next_slice_after_every_change_of_the_slices(change):
    bound = 8.0
    streams = StreamInput(BatchIntensity("none"), ["intensity", "flow"], bound=bound)
    augment = BatchAugment(**change) if change else None
    transform = BatchTransform(streams, augment)
    batch = batch_of((1.5, -0.75))
    before = {key: value.clone() for key, value in batch.items()}
    found = transform(batch, generator=torch.Generator().manual_seed(3))["image"]
    assert found.shape == (2, 3, DEPTH, SIDE, SIDE)
    assert left_over(found, bound=bound) < 0.08
    assert left_over(found, bound=bound) < 0.3 * left_over(found, bound=bound, still=True)
    for key, value in before.items():
        assert torch.equal(batch[key], value), key


def test_brightness_and_noise_come_to_intensity_alone():
    streams = StreamInput(BatchIntensity("none"), ["intensity", "flow"], bound=4.0)
    plain = BatchTransform(streams)(batch_of((1.0, 2.0)))["image"]
    augment = BatchAugment(noise=0.5, contrast=0.5, brightness=0.5, blur=1.0)
    changed = BatchTransform(streams, augment)(batch_of((1.0, 2.0)), generator=torch.Generator().manual_seed(0))[
        "image"
    ]
    assert torch.equal(changed[:, 1:], plain[:, 1:])
    assert (changed[:, 0] - plain[:, 0]).abs().mean() > 0.05


def test_where_a_border_is_cut_away_nothing_moves():
    streams = StreamInput(BatchIntensity("none"), ["intensity", "flow"], bound=4.0)
    found = BatchTransform(streams, BatchAugment(border=0.3))(
        batch_of((1.0, 2.0)), generator=torch.Generator().manual_seed(1)
    )["image"]
    cut = found[:, 0] == found[:, 0].amin((1, 2, 3), keepdim=True)
    assert 0.2 < cut.float().mean() < 0.8
    assert (found[:, 1:].movedim(1, -1)[cut] == 0).all()
    assert (found[:, 1:].movedim(1, -1)[~cut] != 0).float().mean() > 0.99


def test_displacements_are_clipped_and_divided_by_the_bound_in_voxels_or_mm():
    batch = batch_of((1.5, -3.0))
    voxels = StreamInput(BatchIntensity("none"), ["flow"], bound=2.0)
    found = voxels.finish(voxels(batch), batch)
    assert found.shape[1] == voxels.channels == 2
    torch.testing.assert_close(found[:, 0], torch.full_like(found[:, 0], 0.75), atol=2e-3, rtol=0)
    assert (found[:, 1] == -1).all()
    millimetres = StreamInput(BatchIntensity("none"), ["flow"], bound=6.0, units="mm")
    found = millimetres.finish(millimetres(batch), batch)  # pixels of 2 mm along W and 0.5 mm along H
    torch.testing.assert_close(found[:, 0], torch.full_like(found[:, 0], 1.5 * 2 / 6), atol=2e-3, rtol=0)
    torch.testing.assert_close(found[:, 1], torch.full_like(found[:, 1], -3 * 0.5 / 6), atol=2e-3, rtol=0)


def test_differences_are_those_of_the_normalised_slices_window_by_window():
    generator = torch.Generator().manual_seed(0)
    following = torch.randint(-200, 400, (2, 3, 5, 6, 4), generator=generator).to(torch.int16)
    intensity = BatchIntensity("window", windows=["brain", (100, 300)])
    streams = StreamInput(intensity, ["intensity", "difference"], differences=2)
    images = streams({"image": following[:, :1], "following": following})
    assert images.shape == (2, 2 + 4, 5, 6, 4)
    assert streams.channels == 6
    assert streams.appearance == 2
    assert len(streams.vectors) == 0
    for step in range(2):
        now, then = (intensity(following[:, place : place + 1]) for place in (step, step + 1))
        torch.testing.assert_close(images[:, 2 + 2 * step : 4 + 2 * step], then - now)


def test_a_mirror_for_testing_turns_the_displacements_with_the_slices():
    streams = StreamInput(BatchIntensity("none"), ["intensity", "flow"], stack=2)
    images = torch.randn(1, 5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    both = streams.mirror(images, [-1, -2])
    signs = torch.tensor([1.0, -1, -1, -1, -1]).view(1, 5, 1, 1, 1)
    assert torch.equal(both, images.flip(-1, -2) * signs)
    across = streams.mirror(images, [-1])
    assert torch.equal(across[:, 1], -images[:, 1].flip(-1))
    assert torch.equal(across[:, 2], images[:, 2].flip(-1))
    assert streams.mirror(images, []) is images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": []}, "each once"),
        ({"inputs": ["flow", "flow"]}, "each once"),
        ({"inputs": ["speed"]}, "speed"),
        ({"bound": 0.0}, "above 0"),
        ({"units": "inches"}, "inches"),
    ],
)
def test_unknown_streams_and_bounds_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        StreamInput(BatchIntensity("none"), **{"inputs": ["flow"], **arguments})
