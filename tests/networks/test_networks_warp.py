from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from volrec.networks.layers.warp import warp


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def loop(image: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear reading pixel by pixel; a position outside is moved to the edge first."""
    count, _, height, width = image.shape
    warped, valid = np.zeros_like(image), np.zeros((count, 1, height, width), bool)
    for n in range(count):
        for h in range(height):
            for w in range(width):
                x, y = w + flow[n, 0, h, w], h + flow[n, 1, h, w]
                valid[n, 0, h, w] = 0 <= x <= width - 1 and 0 <= y <= height - 1
                x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
                for row in {math.floor(y), math.ceil(y)}:
                    for column in {math.floor(x), math.ceil(x)}:
                        share = (1 - abs(x - column)) * (1 - abs(y - row))
                        warped[n, :, h, w] += share * image[n, :, row, column]
    return warped, valid


def test_equals_a_loop_in_float64():
    image, flow = torch.randn(2, 3, 6, 9, dtype=torch.float64), 4 * torch.randn(2, 2, 6, 9, dtype=torch.float64)
    warped, valid = warp(image, flow)
    expected, inside = loop(image.numpy(), flow.numpy())
    np.testing.assert_allclose(warped.numpy(), expected, rtol=0, atol=1e-12)
    assert (valid.numpy() == inside).all()
    assert 0.1 < inside.mean() < 0.9


def test_equals_grid_sample_with_its_edge_continued():
    image, flow = torch.randn(2, 3, 8, 11), 3 * torch.randn(2, 2, 8, 11)
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(11.0), indexing="ij")
    grid = torch.stack([(columns + flow[:, 0]) / 10 * 2 - 1, (rows + flow[:, 1]) / 7 * 2 - 1], -1)
    expected = F.grid_sample(image, grid, padding_mode="border", align_corners=True)
    torch.testing.assert_close(warp(image, flow)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 0), (-2, 5), (0, -4), (1, 1)])
def test_restores_a_slice_that_moved_by_whole_pixels_bit_for_bit(kind, x, y):
    scene = (1000 * torch.randn(2, 3, 60, 333)).to(kind)
    first = scene[..., 20:40, 20:310]
    second = scene[..., 20 - y : 40 - y, 20 - x : 310 - x]  # what lies in it has moved by (x, y)
    flow = torch.tensor([x, y], dtype=kind)[:, None, None].expand(2, 2, 20, 290)
    warped, valid = warp(second, flow)
    assert warped.dtype == kind
    rows, columns = torch.arange(20) + y, torch.arange(290) + x
    inside = ((rows >= 0) & (rows < 20))[:, None] & ((columns >= 0) & (columns < 290))
    assert torch.equal(valid, inside.expand(2, 1, 20, 290))
    assert torch.equal(warped[..., inside], first[..., inside])


def test_continues_the_edge_outside_of_the_picture():
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    warped, valid = warp(image, torch.full((1, 2, 3, 4), -9.5))
    assert (warped == 0).all()
    assert not valid.any()
    assert (warp(image, torch.full((1, 2, 3, 4), 1e30))[0] == 11).all()


def test_a_displacement_that_is_no_number_is_invalid_and_touches_no_other_pixel():
    image, flow = torch.randn(1, 2, 4, 5), torch.zeros(1, 2, 4, 5)
    flow[0, 0, 1, 2] = flow[0, 1, 2, 0] = float("nan")
    flow[0, 1, 3, 3] = float("inf")
    warped, valid = warp(image, flow)
    assert (~valid).nonzero()[:, 2:].tolist() == [[1, 2], [2, 0], [3, 3]]
    assert warped[:, :, 1, 2].isnan().all() and warped[:, :, 2, 0].isnan().all()
    assert torch.equal(warped[valid.expand_as(warped)], image[valid.expand_as(image)])


def test_mirrors_negate_one_component():
    image, flow = torch.randn(1, 2, 7, 8, dtype=torch.float64), 2 * torch.randn(1, 2, 7, 8, dtype=torch.float64)
    expected = warp(image, flow)[0]
    for axis, sign in ((-1, (-1.0, 1.0)), (-2, (1.0, -1.0))):
        mirrored = flow.flip(axis) * torch.tensor(sign, dtype=torch.float64)[:, None, None]
        torch.testing.assert_close(warp(image.flip(axis), mirrored)[0].flip(axis), expected)


def test_has_the_gradients_of_finite_differences():
    image = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    flow = (torch.rand(1, 2, 4, 5, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: warp(*given)[0], (image, flow))


class Warper(nn.Module):
    def forward(self, image: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return warp(image, flow)


def test_exports_and_runs_under_autocast_in_its_own_precision():
    given = (torch.randn(2, 1, 5, 300), 2 * torch.randn(2, 2, 5, 300))
    expected = warp(*given)
    for found in (torch.export.export(Warper(), given).module()(*given), Warper()(*given)):
        torch.testing.assert_close(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp(*given)[0], expected[0])
