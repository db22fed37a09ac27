from __future__ import annotations

import pytest
import torch
from torch import nn

from volrec.networks import create
from volrec.networks.backbones import create_backbone


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def solid_name(name: str) -> str:
    """The name in I3D of a parameter of Inception-v1."""
    return name.removeprefix("trunk.").replace("Conv2d_", "Conv3d_")


@pytest.mark.parametrize("norm", ["none", "batch", "instance"])
def test_is_the_2d_twin_of_i3d_parameter_by_parameter(norm):
    with torch.device("meta"):
        flat = create_backbone("inception-v1", in_channels=3, norm=norm)
        solid = create("i3d", num_classes=5, in_channels=3, norm=norm)
    theirs = {name: value for name, value in solid.state_dict().items() if not name.startswith("classifier.")}
    ours = {solid_name(name): value for name, value in flat.state_dict().items()}
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].shape == (value.shape[:2] + value.shape[3:] if value.ndim == 5 else value.shape), name
    assert flat.num_features == solid.num_features


@pytest.mark.parametrize("size", [(64, 64), (49, 70)])
def test_i3d_made_of_it_sees_it_in_every_slice_of_a_boring_volume(size):
    flat = create_backbone("inception-v1", in_channels=2, width=1 / 8).eval().double()
    for layer in flat.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
    solid = create("i3d", num_classes=5, in_channels=2, width=1 / 8, temporal_padding="replicate").eval().double()
    state = solid.state_dict()
    for name, value in flat.state_dict().items():
        target = state[solid_name(name)]
        if value.ndim == 4:
            value = value[:, :, None].expand(target.shape) / target.shape[2]
        state[solid_name(name)] = value.contiguous()
    solid.load_state_dict(state)
    x = torch.randn(2, 2, *size).double()
    maps: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for network, seen in ((flat.trunk, maps), (solid, others)):
        for name, layer in network.named_children():
            if name.startswith(("Conv", "MaxPool", "Mixed")):
                layer.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
    with torch.no_grad():
        flat(x)
        solid(x[:, :, None].expand(-1, -1, 18, -1, -1))
    assert len(maps) == len(others) == 16
    assert others[-1].shape[2] == 3
    for expected, found in zip(maps, others, strict=True):
        torch.testing.assert_close(found, expected[:, :, None].expand_as(found), rtol=1e-9, atol=1e-9)
    assert maps[-1].std() > 1e-3


def test_normalises_with_an_epsilon_of_a_thousandth():
    with torch.device("meta"):
        network = create_backbone("inception-v1", in_channels=3, faithful=True)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {layer.eps for layer in norms} == {0.001}
    assert sum(layer.num_features for layer in norms) == 7280
    assert all(layer.bias is None for layer in network.modules() if isinstance(layer, nn.Conv2d))
