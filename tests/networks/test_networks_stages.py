"""Stages from the input to the classifier, and what stays as it is when some are frozen: over the whole registry."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from volrec.errors import ConfigError
from volrec.networks import create, freeze_stages, list_networks, network_stages

NAMES = list_networks()
NARROW = 1 / 16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow(name: str, **options):
    return create(name, num_classes=2, width=NARROW, **options)


def clip(network) -> torch.Tensor:
    return torch.randn(2, network.in_channels, *network.smallest)


def first_uses(network) -> dict[str, int]:
    """Return when each module that has parameters of its own is used first in a forward pass."""
    used: dict[str, int] = {}

    def note(name: str) -> None:
        used.setdefault(name, len(used))

    hooks = [
        layer.register_forward_pre_hook(lambda *call, name=name: note(name))
        for name, layer in network.named_modules()
        if list(layer.parameters(recurse=False))
    ]
    network.eval()(clip(network))
    for hook in hooks:
        hook.remove()
    return used


@pytest.mark.parametrize("name", NAMES)
class TestEveryNetwork:
    def test_every_parameter_is_in_one_stage_and_the_classifier_is_last(self, name):
        network = narrow(name)
        stages = network_stages(network)
        names = [each for stage in stages for each in stage]
        assert sorted(names) == sorted(dict(network.named_parameters()))
        assert set(stages[-1]) == {each for each in names if each.startswith(f"{network.classifier_name}.")}
        assert len(stages) >= 3
        assert all(any(network.get_parameter(each).ndim > 1 for each in stage) for stage in stages)

    def test_stages_stand_in_the_order_of_use(self, name):
        network = narrow(name)
        used = first_uses(network)
        begins = [
            min(used[each.rpartition(".")[0]] for each in stage if each.rpartition(".")[0] in used)
            for stage in network_stages(network)
        ]
        assert begins == sorted(begins)

    def test_frozen_stages_keep_weights_and_statistics(self, name):
        network = narrow(name)
        stages = network_stages(network)
        frozen = freeze_stages(network, len(stages) - 1)
        network.train().eval()
        network.train()
        moved = {each: tensor.clone() for each, tensor in network.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0, weight_decay=0.1)
        network(clip(network)).square().sum().backward()
        optimizer.step()
        state = network.state_dict()
        assert sorted(frozen) == sorted(each for stage in stages[:-1] for each in stage)
        assert {each for each in moved if not torch.equal(moved[each], state[each])} == set(stages[-1])


def test_containers_are_opened_and_blocks_are_not():
    stages = network_stages(narrow("t3d-121"))
    heads = ["conv0", "denseblock1", "temporal1", "denseblock2", "temporal2", "denseblock3", "temporal3", "denseblock4"]
    assert [stage[0].split(".")[1] for stage in stages[:-1]] == heads
    assert stages[0] == ("features.conv0.weight", "features.norm0.weight", "features.norm0.bias")
    assert stages[-2][-2:] == ("features.norm5.weight", "features.norm5.bias")
    trunk = network_stages(narrow("lrcn"))
    assert trunk[0][0] == "backbone.trunk.conv1.conv.weight"
    assert trunk[-2][0].startswith("lstm1.")


def test_normalisation_alone_belongs_to_the_stage_before():
    assert network_stages(narrow("c3d"))[1] == ("conv2a.weight", "norm2a.weight", "norm2a.bias")


def test_a_part_is_frozen_through_train_copies_and_only_there():
    network = narrow("c3d", dropout=0.5)
    freeze_stages(network, 2)
    for twin in (network, copy.deepcopy(network)):
        holder = nn.ModuleList([twin]).eval().train()
        assert holder.training and twin.training and twin.drop7.training
        assert [layer.training for layer in (twin.conv1a, twin.norm1a, twin.norm2a, twin.norm3a)] == [False] * 3 + [
            True
        ]


def test_dropout_within_a_frozen_part_is_off():
    network = narrow("densenet3d-121", dropout=0.5)
    freeze_stages(network, 2)
    network.train()
    assert not network.features.denseblock1.denselayer1.dropout.training
    assert network.features.denseblock2.denselayer1.dropout.training


def test_patterns_freeze_what_they_match():
    network = narrow("densenet3d-121")
    frozen = freeze_stages(network, ["features.denseblock1.*", "*.norm5.*"])
    assert {name.split(".")[1] for name in frozen} == {"denseblock1", "norm5"}
    assert network.frozen == ("features.denseblock1", "features.norm5")
    assert not network.get_parameter(frozen[0]).requires_grad
    assert network.features.conv0.weight.requires_grad


def test_nothing_is_frozen_where_nothing_is_asked():
    network = narrow("c3d")
    assert freeze_stages(network, 0) == []
    assert network.frozen == () and all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (9, "has 9 stages.*Freeze at most 8"),
        (["*"], "nothing is left to train"),
        (["conv1a*", "fc9.*"], r"matches 'fc9\.\*'.*Near names: fc8"),
        (["conv2a"], r"Did you mean 'conv2a\.\*'"),
        (["zzz"], r"Parameters are called conv1a\.weight"),
    ],
)
def test_what_cannot_be_frozen_is_said(what, message):
    network = narrow("c3d")
    with pytest.raises(ConfigError, match=message):
        freeze_stages(network, what)
    assert all(p.requires_grad for p in network.parameters())
