"""What partial batch normalisation keeps and what it lets learn, by a training step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from volrec.errors import ConfigError
from volrec.networks import SequenceNetwork, create, freeze_stages
from volrec.networks.partial_bn import partial_bn

NETWORKS = ["c3d", "tsn", "t3d-121", "time-conv"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow(name: str, **options) -> SequenceNetwork:
    return create(name, **{"num_classes": 2, "width": 1 / 16, "dropout": 0.0, **options})


def norms(network: nn.Module) -> list[str]:
    """Names of the batch normalisations in the order of their use."""
    used: list[str] = []
    hooks = [
        layer.register_forward_hook(lambda *call, name=name: used.append(name))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d)
    ]
    network.eval()(torch.randn(1, 1, 2, 32, 32))
    network.train()
    for hook in hooks:
        hook.remove()
    return used


def moved_by_a_step(network: nn.Module) -> set[str]:
    """Names in the state that one step of training changes."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    network(torch.randn(4, 1, 4, 40, 40)).square().sum().backward()
    optimizer.step()
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["none", "statistics", "all"])
def test_exactly_what_the_mode_says_moves_in_a_step(name, mode):
    network = narrow(name)
    order = norms(network)
    # Weight decay moves every scale, and every shift that is not zero: also those of a unit that is dead.
    for each in order:
        nn.init.normal_(network.get_submodule(each).bias, std=0.1)
    kept = partial_bn(network, mode)
    network.eval()
    network.train()
    expected = set(network.state_dict())
    if mode != "none":
        assert sorted(kept) == sorted(order[1:]) and len(order) > 2
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        expected -= {f"{each}.{buffer}" for each in kept for buffer in buffers}
    if mode == "all":
        expected -= {f"{each}.{vector}" for each in kept for vector in ("weight", "bias")}
    assert moved_by_a_step(network) == expected


@pytest.mark.parametrize("mode", ["statistics", "all"])
def test_kept_layers_normalise_by_running_statistics_through_train_and_in_copies(mode):
    network = narrow("c3d")
    kept = partial_bn(network, mode)
    for twin in (network, copy.deepcopy(network)):
        holder = nn.ModuleList([twin]).eval().train()
        assert holder.training and twin.training
        layer = twin.get_submodule(kept[0])
        x = torch.randn(3, layer.num_features, 2, 4, 4)
        expected = x / (1 + layer.eps) ** 0.5  # fresh statistics: mean 0, variance 1
        torch.testing.assert_close(layer(x), expected)
        assert not torch.allclose(twin.norm1a(torch.randn(3, 4, 2, 4, 4) + 9).mean(), torch.tensor(9.0), atol=1)


def test_evaluation_stays_evaluation():
    network = narrow("c3d").eval()
    partial_bn(network, "statistics")
    assert not any(layer.training for layer in network.modules())


@pytest.mark.parametrize("first", ["freeze", "partial"])
def test_goes_with_frozen_stages_in_either_order(first):
    network = narrow("c3d")
    if first == "freeze":
        freeze_stages(network, 2)
    partial_bn(network, "statistics")
    if first == "partial":
        freeze_stages(network, 2)
    network.eval().train()
    moved = moved_by_a_step(network)
    assert not any(name.startswith(("conv1a", "norm1a", "conv2a", "norm2a")) for name in moved)
    assert "norm3a.weight" in moved and "norm3a.running_mean" not in moved and "conv3a.weight" in moved


def test_none_changes_nothing():
    network = narrow("c3d")
    assert partial_bn(network, "none") == []
    assert network.frozen == () and all(p.requires_grad for p in network.parameters())
    assert all(layer.training for layer in network.modules())


def test_what_cannot_be_kept_is_said():
    with pytest.raises(ConfigError, match=r"c3d as it is built has no batch normalisation.*norm to batch"):
        partial_bn(narrow("c3d", norm="group"), "all")
    with pytest.raises(ConfigError, match=r"no way 'half'.*none, statistics, all"):
        partial_bn(narrow("c3d"), "half")


def test_the_first_layer_is_the_one_that_is_read_first():
    network = narrow("c3d")
    network.stage_order = ("norm2a", "norm1a")
    kept = partial_bn(network, "all")
    assert "norm2a" not in kept and "norm1a" in kept


def test_each_of_two_towers_goes_on_estimating_in_its_first_layer():
    network = narrow("two-stream", in_channels=3)
    kept = partial_bn(network, "all")
    first = [next(name for name in norms_of(network) if name.startswith(tower)) for tower in ("spatial", "temporal")]
    assert [name for name in norms_of(network) if name not in kept] == first


def norms_of(network: nn.Module) -> list[str]:
    return [name for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)]
