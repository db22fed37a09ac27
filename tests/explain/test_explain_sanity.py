"""The test with random weights: what is randomised, how maps are compared, and that every map of a network changes."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics.regression import compute_ssim_and_cs
from scipy.stats import spearmanr
from test_explain_study import member
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from volrec.config import IntensityConfig, SamplingConfig
from volrec.data.entries import StoredVolume, study_quantiles
from volrec.explain import METHODS, EvidenceMap, explain_study, sanity_check
from volrec.explain.sanity import (
    HARDLY,
    Sanity,
    Similarity,
    _compared,
    randomised,
    rank_correlation,
    structural_similarity,
)
from volrec.inference import LoadedMember
from volrec.networks import create

SHAPE = (10, 32, 32)


def volume(number: int, *, positive: bool) -> StoredVolume:
    """Return a body with vessels, and in a positive study a bright cube in three slices."""
    rng = np.random.default_rng(number)
    array = rng.normal(0, 20, SHAPE)
    h, w = np.mgrid[:32, :32]
    array[:, np.hypot(h - 15.5, w - 15.5) > 14] -= 200
    for _ in range(3):
        array[:, np.hypot(h - rng.integers(8, 24), w - rng.integers(8, 24)) < 2] += 60
    if positive:
        t, y, x = rng.integers(1, 8), *rng.integers(7, 18, 2)
        array[t : t + 3, y : y + 7, x : x + 7] += 250
    array = array.astype(np.int16)
    return StoredVolume(array, np.diag([3.0, 1, 1, 1])[[2, 1, 0, 3]], study_quantiles(array))


INTENSITY = IntensityConfig(kind="window", windows=[{"level": 40, "width": 400}])


def trained(name: str, **options: object) -> LoadedMember:
    """Return a network that has learned to tell studies with a cube from those without."""
    torch.manual_seed(0)
    network = create(name, num_classes=1, width=1 / 16, dropout=0.0, **options)
    one = member(network, task="binary", intensity=INTENSITY, sampling=SamplingConfig(clip_length=SHAPE[0]))
    x = torch.cat([one.predictor._input(volume(n, positive=n % 2 == 1), [np.arange(SHAPE[0])]) for n in range(16)])
    y = (torch.arange(16) % 2).float()[:, None]
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.5  # few steps
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    network.train()
    for _ in range(20):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(network(x), y).backward()
        optimiser.step()
    network.eval()
    with torch.no_grad():
        assert ((network(x) > 0).float() == y).float().mean() > 0.85
    return one


@pytest.fixture(scope="module")
def members() -> dict[str, LoadedMember]:
    return {
        "c3d": trained("c3d"),
        "actionvlad": trained("actionvlad", words=4),
        "temporal-attention": trained("temporal-attention", steps=1),
    }


NETWORK_OF = {"slice-scores": "temporal-attention", "attention": "temporal-attention", "vlad": "actionvlad"}
QUICK = {"steps": 6, "samples": 2, "block": [3, 8, 8], "slab": 3}


@pytest.mark.parametrize("method", METHODS)
def test_the_map_of_every_method_changes_with_the_weights(method: str, members: dict[str, LoadedMember]) -> None:
    one = members[NETWORK_OF.get(method, "c3d")]
    options = {name: value for name, value in QUICK.items() if name in METHODS[method].options}
    shown = volume(101, positive=True)
    before = copy.deepcopy(one.network.state_dict())
    evidence = explain_study(one, shown, method=method, options=options)
    found = sanity_check(one, shown, evidence)
    assert found.changes, found
    assert found.warning == ""
    assert [part.copies for part in found.similarities] == [1, 1, 5]
    # The network that was asked is as it was.
    assert all(torch.equal(value, before[name]) for name, value in one.network.state_dict().items())


class Edges(nn.Module):
    """Has weights, but what it says of a voxel is the voxel: a method that multiplies by it shows the image."""

    num_classes = 1
    cam_layer = "first"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Identity(), nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).relu().sum((1, 2, 3, 4))[:, None] * self.scale.sum()


def test_a_map_that_shows_the_image_is_warned_of() -> None:
    one, shown = member(Edges(), task="binary", intensity=INTENSITY), volume(3, positive=True)
    evidence = explain_study(one, shown, method="integrated-gradients")
    found = sanity_check(one, shown, evidence)
    assert found.rank_correlation == pytest.approx(1.0)
    assert found.changes is False
    assert "hardly changes" in found.warning
    assert "1.00" in found.warning
    assert found.to_json()["threshold"] == HARDLY


def test_a_flat_map_has_nothing_that_could_change() -> None:
    class Nothing(Edges):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0

    one, shown = member(Nothing(), task="binary", intensity=INTENSITY), volume(3, positive=True)
    found = sanity_check(one, shown, explain_study(one, shown, method="gradcam"))
    assert found.changes is None
    assert "same everywhere" in found.warning


class TestRandomised:
    def test_the_last_layers_keep_their_values_and_lose_their_order(self) -> None:
        network = create("c3d", num_classes=2, width=1 / 16)
        x = torch.randn(1, 1, 4, 32, 32)
        last = randomised(network, x, share=0.0, seed=1)
        changed = [
            name
            for (name, old), new in zip(network.named_parameters(), last.parameters(), strict=True)
            if not torch.equal(old, new)
        ]
        assert changed == ["fc8.weight"]  # its biases are all 0
        everything = randomised(network, x, seed=1)
        for (name, old), new in zip(network.named_parameters(), everything.parameters(), strict=True):
            torch.testing.assert_close(old.flatten().sort().values, new.flatten().sort().values)
            if old.unique().numel() > 1:
                assert not torch.equal(old, new), name
        half = randomised(network, x, share=0.5, seed=1)
        assert torch.equal(half.conv1a.weight, network.conv1a.weight)
        assert not torch.equal(half.conv5b.weight, network.conv5b.weight)

    def test_layers_stand_in_the_order_in_which_they_read(self) -> None:
        class Backwards(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.last, self.first = nn.Linear(4, 1), nn.Linear(6, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.last(self.first(x.flatten(1)))

        network = Backwards()
        other = randomised(network, torch.randn(1, 1, 1, 2, 3), share=0.0)
        assert torch.equal(other.first.weight, network.first.weight)
        assert not torch.equal(other.last.weight, network.last.weight)

    def test_the_same_seed_gives_the_same_network(self) -> None:
        network, x = create("c3d", num_classes=2, width=1 / 16), torch.randn(1, 1, 4, 32, 32)
        first, second, third = (randomised(network, x, seed=seed).state_dict() for seed in (3, 3, 4))
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        assert any(not torch.equal(value, third[name]) for name, value in first.items())

    def test_normalisation_takes_its_statistics_from_the_clip(self) -> None:
        network, x = create("c3d", num_classes=2, width=1 / 16), 50 + 7 * torch.randn(1, 1, 8, 32, 32)
        other = randomised(network, x).eval()
        seen: list[Tensor] = []
        other.norm1a.register_forward_hook(lambda module, given, found: seen.append(found))
        with torch.no_grad():
            other(x)
        channels = seen[0].transpose(0, 1).flatten(1)
        torch.testing.assert_close(channels.mean(1), other.norm1a.bias, atol=1e-3, rtol=0)
        torch.testing.assert_close(channels.std(1), other.norm1a.weight.abs(), atol=1e-2, rtol=0)


class TestComparison:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10_000), levels=st.integers(2, 50))
    def test_ranks_are_spearmans_over_what_either_marks(self, seed: int, levels: int) -> None:
        rng = np.random.default_rng(seed)
        first, second = rng.integers(0, levels, (2, 4, 5, 6)).astype(np.float32)
        marked = (first != 0) | (second != 0)
        expected = spearmanr(first[marked], second[marked]).statistic
        if np.isfinite(expected):
            assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-9)
        if np.ptp(first[first != 0]) > 0:
            assert rank_correlation(first, np.exp(first) - 1) == pytest.approx(1.0)

    def test_flat_maps(self) -> None:
        rng = np.random.default_rng(0)
        some, flat = rng.random((3, 4, 5)), np.zeros((3, 4, 5))
        assert rank_correlation(flat, some) is None
        assert structural_similarity(flat, some) is None
        assert rank_correlation(some, flat) == 0.0
        assert rank_correlation(np.full(4, 2.0), np.arange(4.0)) is None

    def test_structure_is_monais_with_a_uniform_window(self) -> None:
        rng = np.random.default_rng(0)
        first = rng.random((9, 12, 13))
        second = first + 0.3 * rng.random(first.shape)
        # That one leaves the edges out: mirror them first.
        scaled = (np.pad(one / one.max(), 3, mode="symmetric") for one in (first, second))
        tensors = [torch.from_numpy(one)[None, None] for one in scaled]
        expected, _ = compute_ssim_and_cs(
            *tensors,
            spatial_dims=3,
            kernel_size=(7,) * 3,
            kernel_sigma=(1.5,) * 3,
            data_range=1.0,
            kernel_type="uniform",
        )
        assert structural_similarity(first, second) == pytest.approx(float(expected.mean()), abs=1e-6)
        assert structural_similarity(first, 3 * first) == pytest.approx(1.0)
        assert structural_similarity(np.arange(3.0), np.arange(3.0)[::-1].copy()) < 0.5

    def test_a_method_of_one_value_a_slice_is_compared_over_slices(self) -> None:
        values = np.array([1.0, 3.0, 2.0, np.nan], dtype=np.float32)
        array = np.nan_to_num(values)[:, None, None] * np.ones((1, 2, 2), dtype=np.float32)
        evidence = EvidenceMap(array, np.eye(4), values, "occlusion", "yes", True)
        other = replace(evidence, array=-array, per_slice=np.array([2.0, 3.0, 1.0, np.nan], dtype=np.float32))
        assert _compared(evidence, other)[0] == pytest.approx(0.5)


def test_what_is_said_follows_the_threshold() -> None:
    def said(value: float | None) -> bool | None:
        return Sanity("gradcam", (Similarity("all layers", value, None, value, 5),)).changes

    assert [said(value) for value in (-1.0, 0.0, HARDLY - 0.01, HARDLY, 1.0, None)] == [
        True,
        True,
        True,
        False,
        False,
        None,
    ]
