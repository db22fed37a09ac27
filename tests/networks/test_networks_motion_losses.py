from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from volrec.errors import ConfigError
from volrec.networks.layers.warp import warp
from volrec.networks.motion_losses import (
    LEVEL_WEIGHTS,
    motion_loss,
    normalise_locally,
    pixel_loss,
    smoothness_loss,
    ssim_loss,
)

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def border(height: int, width: int) -> int:
    return math.floor(0.1 * min(height, width) + 0.5)


def pixel_loop(first: np.ndarray, restored: np.ndarray) -> float:
    count, channels, height, width = first.shape
    edge, found = border(height, width), []
    for n, c, h, w in np.ndindex(count, channels, height, width):
        if edge <= h < height - edge and edge <= w < width - edge:
            difference = 255 * (first[n, c, h, w] - restored[n, c, h, w])
            found.append((difference**2 + 1e-6) ** 0.4)
    return float(np.mean(found))


def smooth_loop(flow: np.ndarray) -> float:
    count, _, height, width = flow.shape
    edge, total = border(height, width), 0.0
    for component in (0, 1):
        for down, right in ((0, 1), (1, 0)):
            found = []
            for n, h, w in np.ndindex(count, height - down, width - right):
                if edge <= h < height - edge and edge <= w < width - edge:
                    change = flow[n, component, h + down, w + right] - flow[n, component, h, w]
                    found.append((change**2 + 1e-6) ** 0.3)
            total += float(np.mean(found)) if found else 0.0
    return total


def ssim_loop(first: np.ndarray, restored: np.ndarray) -> float:
    count, channels, height, width = first.shape
    found = []
    for n, c in np.ndindex(count, channels):
        for top in range(0, height, 8):
            for left in range(0, width, 8):
                places = [(h, w) for h in range(top, min(top + 8, height)) for w in range(left, min(left + 8, width))]
                weight = np.array(
                    [math.exp(-((h - top - 4) ** 2 + (w - left - 4) ** 2) / (2 * (16 / 12) ** 2)) for h, w in places]
                )
                weight /= weight.sum()
                x, y = (np.array([maps[n, c, h, w] for h, w in places]) for maps in (first, restored))
                mean_x, mean_y = weight @ x, weight @ y
                spread_x, spread_y = weight @ (x - mean_x) ** 2, weight @ (y - mean_y) ** 2
                shared = weight @ ((x - mean_x) * (y - mean_y))
                found.append(
                    (2 * mean_x * mean_y + 1e-4)
                    * (2 * shared + 1e-3)
                    / ((mean_x**2 + mean_y**2 + 1e-4) * (spread_x + spread_y + 1e-3))
                )
    return 1 - float(np.mean(found))


def halved(picture: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 positions; at odd ends of what there is."""
    height, width = picture.shape[-2:]
    return np.stack(
        [
            np.stack(
                [picture[..., h : h + 2, w : w + 2].mean((-2, -1)) for w in range(0, width, 2)],
                -1,
            )
            for h in range(0, height, 2)
        ],
        -2,
    )


SIZES = [(16, 16), (17, 30), (7, 7), (3, 5), (12, 9)]


@pytest.mark.parametrize("size", SIZES)
class TestTerms:
    def test_pixel_equals_a_loop(self, size):
        first, restored = torch.randn(2, 2, 3, *size, dtype=DOUBLE)
        assert pixel_loss(first, restored).item() == pytest.approx(pixel_loop(first.numpy(), restored.numpy()))

    def test_smoothness_equals_a_loop(self, size):
        flow = torch.randn(2, 2, *size, dtype=DOUBLE)
        assert smoothness_loss(flow).item() == pytest.approx(smooth_loop(flow.numpy()))

    def test_ssim_equals_a_loop(self, size):
        first = torch.randn(2, 3, *size, dtype=DOUBLE)
        restored = first + 0.3 * torch.randn_like(first)
        found = ssim_loss(first, restored).item()
        assert found == pytest.approx(ssim_loop(first.numpy(), restored.numpy()), rel=1e-9)
        assert 0.01 < found < 1

    def test_a_perfect_match_leaves_the_floors(self, size):
        picture, still = torch.randn(2, 3, *size), torch.zeros(2, 2, *size)
        assert ssim_loss(picture, picture).item() == pytest.approx(0, abs=1e-6)
        assert pixel_loss(picture, picture).item() == pytest.approx(1e-6**0.4, rel=1e-4)
        assert smoothness_loss(still + 3).item() == pytest.approx(4 * 1e-6**0.3, rel=1e-4)


def test_what_happens_at_the_edge_does_not_count():
    first = torch.zeros(1, 1, 20, 20)
    other, flow = first.clone(), torch.zeros(1, 2, 20, 20)
    other[..., :2, :] = other[..., -2:, :] = other[..., :2] = other[..., -2:] = 9
    flow[..., :1, :] = flow[..., :1] = 9  # differences from the second position on are 0
    assert pixel_loss(first, other) == pixel_loss(first, first)
    assert smoothness_loss(flow) == smoothness_loss(torch.zeros_like(flow))
    other[..., 2, 2] = flow[..., 2, 2] = 9
    assert pixel_loss(first, other) > 1.1 * pixel_loss(first, first)
    assert smoothness_loss(flow) > 1.1 * smoothness_loss(torch.zeros_like(flow))


def test_local_normalisation_is_that_of_the_released_layer():
    picture = torch.randn(2, 12, 3, 4, dtype=DOUBLE)
    expected = np.zeros(picture.shape)
    for channel in range(12):
        near = picture.numpy()[:, max(0, channel - 4) : channel + 5]
        expected[:, channel] = picture.numpy()[:, channel] / (1 + (near**2).sum(1) / 9) ** 0.7
    np.testing.assert_allclose(normalise_locally(picture).numpy(), expected)


class TestLevels:
    def terms(self, slices, flows):
        """The three terms of every level, by loops on shrunk pictures."""
        pictures = normalise_locally(slices.flatten(0, 1)).unflatten(0, slices.shape[:2]).numpy()
        found = {}
        for level, flow in enumerate(flows, 2):
            pictures = halved(pictures)
            first, second = (torch.from_numpy(part).flatten(0, 1) for part in (pictures[:, :-1], pictures[:, 1:]))
            field = flow.flatten(0, 1)
            restored = warp(second, field)[0]
            windows = math.prod(math.ceil(side / 8) for side in first.shape[-2:])
            found[level] = (
                pixel_loop(first.numpy(), restored.numpy()),
                smooth_loop(field.numpy()),
                ssim_loop(first.numpy(), restored.numpy()),
                windows * slices.shape[2] * (slices.shape[1] - 1),
            )
        return found

    def test_are_weighted_as_the_option_says(self):
        slices = 0.25 * torch.randn(2, 3, 2, 37, 22, dtype=DOUBLE)
        sizes = [(19, 11), (10, 6), (5, 3), (3, 2), (2, 1)]
        flows = [torch.randn(2, 2, 2, *size, dtype=DOUBLE) for size in sizes]
        terms = self.terms(slices, flows)
        ways = {
            "ssim": lambda weight, pixel, smooth, ssim, count: pixel + smooth + weight * ssim * count,
            "whole": lambda weight, pixel, smooth, ssim, count: weight * (pixel + smooth + ssim),
            "smooth": lambda weight, pixel, smooth, ssim, count: pixel + weight * smooth + ssim,
        }
        losses = set()
        for name, way in ways.items():
            expected = sum(way(LEVEL_WEIGHTS[level], *values) for level, values in terms.items())
            found = motion_loss(slices, flows, scale_weights=name).item()
            assert found == pytest.approx(expected, rel=1e-9), name
            losses.add(round(found, 6))
        assert len(losses) == 3
        assert LEVEL_WEIGHTS == {6: 0.16, 5: 0.08, 4: 0.04, 3: 0.02, 2: 0.01}

    @pytest.mark.parametrize("scale_weights", ["ssim", "whole", "smooth"])
    def test_true_motion_costs_less_than_none_and_than_its_opposite(self, scale_weights):
        scene = torch.nn.functional.avg_pool2d(torch.randn(1, 1, 90, 90), 9, 1)
        second = scene[..., 8:72, 8:72]
        first = scene[..., 12:76, 4:68]  # by (-4, 4) back: what lies in it moved by (-4, 4)
        slices = torch.stack([first, second], 1) / scene.std() / 4
        true = torch.tensor([-4.0, 4.0])[:, None, None]
        costs = [
            motion_loss(
                slices,
                [sign * true.expand(1, 1, 2, 64 >> k, 64 >> k) / 2**k for k in (1, 2, 3)],
                scale_weights=scale_weights,
            ).item()
            for sign in (1, 0, -1)
        ]
        assert costs[0] < 0.5 * costs[1]
        assert costs[0] < 0.5 * costs[2]

    def test_a_still_stack_costs_the_floors_alone(self):
        slices = torch.randn(1, 1, 1, 32, 32).expand(1, 3, 1, 32, 32)
        flows = [torch.zeros(1, 2, 2, side, side) for side in (16, 8, 4)]
        loss = motion_loss(slices, flows, scale_weights="ssim").item()
        assert loss == pytest.approx(3 * (1e-6**0.4 + 4 * 1e-6**0.3), rel=1e-3)

    def test_does_not_depend_on_the_size_of_the_batch(self):
        slices, flow = torch.randn(1, 2, 1, 16, 16), torch.randn(1, 1, 2, 8, 8)
        alone = motion_loss(slices, [flow])
        twice = motion_loss(slices.repeat(3, 1, 1, 1, 1), [flow.repeat(3, 1, 1, 1, 1)])
        torch.testing.assert_close(alone, twice)

    def test_is_computed_in_float32_of_narrower_types(self):
        slices, flow = torch.randn(1, 2, 1, 16, 16), torch.randn(1, 1, 2, 8, 8)
        loss = motion_loss(slices.bfloat16(), [flow.bfloat16()])
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, motion_loss(slices, [flow]), rtol=0.05, atol=0)

    def test_refuses_an_unknown_weighting(self):
        with pytest.raises(ConfigError, match=r"no scale_weights 'smoth'. Did you mean 'smooth'\? Known: ssim, whole"):
            motion_loss(torch.zeros(1, 2, 1, 8, 8), [torch.zeros(1, 1, 2, 4, 4)], scale_weights="smoth")
