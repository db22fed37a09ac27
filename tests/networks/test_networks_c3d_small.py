"""C3D cut short for small volumes: fewer stages, and a head that knows where things lie."""

from __future__ import annotations

import pytest
import torch

from volrec.errors import ConfigError
from volrec.networks import create


def small(**options):
    given = {"stages": 2, "temporal_strides": [2, 2, 1, 1, 1], "pool5": "none", "width": 0.125, **options}
    torch.manual_seed(0)
    return create("c3d", num_classes=1, **given).eval()


def test_fewer_stages_are_the_first_ones_and_read_smaller_volumes():
    network = small(pool5="ceil")
    assert [name for name, _ in network.named_children() if name.startswith(("conv", "pool"))] == [
        "conv1a", "pool1", "conv2a", "pool2", "pool",
    ]  # fmt: skip
    assert network.smallest == (1, 2, 2)
    assert network.forward_features(torch.randn(1, 1, 12, 16, 12)).shape == (1, 16, 3, 4, 3)
    assert network(torch.randn(1, 1, 1, 2, 2)).shape == (1, 1)


def test_pool5_none_leaves_out_the_pool_of_the_last_stage_kept():
    assert small().forward_features(torch.randn(1, 1, 12, 16, 12)).shape == (1, 16, 6, 8, 6)


def test_grid_tells_positions_apart_and_global_pooling_does_not():
    maps = torch.randn(1, 16, 6, 8, 6)
    moved = maps.roll((3, 4, 3), dims=(2, 3, 4))
    assert torch.allclose(small().forward_head(maps), small().forward_head(moved), atol=1e-5)
    placed = small(grid=[6, 8, 6])
    assert placed.num_features == 16 * 6 * 8 * 6
    assert not torch.allclose(placed.forward_head(maps), placed.forward_head(moved), atol=1e-3)
    torch.testing.assert_close(placed.forward_head(maps, pre_logits=True), maps.flatten(1))
    assert placed(torch.randn(2, 1, 20, 30, 20)).shape == (2, 1)


@pytest.mark.parametrize("options", [{"head": "fc"}, {"pooling": "max"}])
def test_grid_without_mean_pooling_is_refused(options):
    with pytest.raises(ConfigError, match="grid"):
        small(grid=[1, 2, 2], **options)


def test_shrink_averages_the_input_first():
    x = torch.randn(1, 1, 12, 16, 12)
    fine = torch.nn.functional.interpolate(x, scale_factor=4, mode="nearest")
    torch.testing.assert_close(small(shrink=4)(fine), small()(x))
    assert small(shrink=4).smallest == (4, 8, 8)


@pytest.mark.parametrize("slices", [4, 5, 7, 11])
def test_shrink_loses_no_slice_row_or_column(slices):
    x = torch.randn(1, 1, slices, 33, 34, requires_grad=True)
    small(shrink=4, width=0.25)(x).sum().backward()
    for axis in (2, 3, 4):
        seen = x.grad.abs().sum([other for other in range(5) if other != axis])
        assert (seen > 0).all()


def test_grid_head_learns_the_mean_study_and_reads_what_differs_from_it():
    network = small(grid=[6, 8, 6]).train()
    batches = [torch.randn(4, 16, 6, 8, 6) + 5 for _ in range(3)]
    for maps in batches:
        network.forward_head(maps, pre_logits=True)
    network.eval()
    read = network.forward_head(torch.cat(batches), pre_logits=True)
    torch.testing.assert_close(read.mean(0), torch.zeros(16 * 6 * 8 * 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(read[0] - read[1], (batches[0][0] - batches[0][1]).flatten())
    assert "pool.2.mean" in network.state_dict()


def test_grid_head_starts_near_equal_scores():
    network = small(grid=[6, 8, 6])
    assert network(torch.randn(8, 1, 12, 16, 12)).abs().max() < 0.2
