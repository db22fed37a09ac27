"""The deconvnet against a reverse of C3D that is built by hand, and what it does and refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.explain import METHODS
from volrec.explain.deconvnet import deconvnet, projection
from volrec.networks import create, list_networks

REFUSED = {"actionvlad", "hidden-two-stream", "lrcn", "stacked-lstm", "temporal-attention"}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow_c3d(norm: str) -> nn.Module:
    """A C3D whose batch normalisation has seen something, and whose clip fits its pools."""
    network = create("c3d", num_classes=2, in_channels=2, width=1 / 16, norm=norm)
    nn.init.normal_(network.fc8.weight)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def by_hand(network: nn.Module, x: Tensor, output: int) -> Tensor:
    """Go up C3D keeping every switch, then down it by unpooling, rectifying and transposed convolutions."""
    way = []
    with torch.no_grad():
        for conv, norm, pool in network.order:
            layer = network.get_submodule(conv)
            before = x.shape
            x = layer(x)
            scale = torch.ones(x.shape[1])
            if norm:
                normed = network.get_submodule(norm)
                x = normed(x)
                scale = normed.weight / (normed.running_var + normed.eps).sqrt()
            switches, shape = None, x.shape
            if pool:
                size = network.get_submodule(pool).kernel
                x, switches = F.max_pool3d(x, size, size, ceil_mode=True, return_indices=True)
            x = F.relu(x)
            way.append((layer, scale, switches, shape, before, size if pool else None))
        count = x[0, 0].numel()
        signal = network.fc8.weight[output].view(1, -1, 1, 1, 1).expand_as(x) / count
        for layer, scale, switches, shape, before, size in reversed(way):
            signal = signal.clamp(min=0)
            if switches is not None:
                signal = F.max_unpool3d(signal, switches, size, size, output_size=shape)
            signal = signal * scale.view(1, -1, 1, 1, 1)
            signal = F.conv_transpose3d(signal, layer.weight, padding=layer.padding)
            assert signal.shape == before
    return signal


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("output", [0, 1])
def test_it_is_the_reverse_of_c3d_built_by_hand(norm: str, output: int) -> None:
    network = narrow_c3d(norm)
    x = torch.randn(1, 2, 12, 40, 32)  # pools hang over the edge
    found, expected = projection(network, x, output), by_hand(network, x, output)
    assert expected.abs().max() > 0
    scale = float(expected.abs().max())
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(deconvnet(network, x, output), found.abs().sum(1))


class Line(nn.Module):
    """Two convolutions with a ReLU between them, as a module, a function, a method or in place."""

    num_classes = 1
    cam_layer = "first"

    def __init__(self, kind: str = "module") -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 1, 1)
        self.relu = nn.ReLU6(inplace=True) if kind == "six" else nn.ReLU(inplace=kind == "in place")

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "function":
            x = F.relu(x)
        elif self.kind == "method":
            x = x.relu()
        elif self.kind == "torch":
            x = torch.relu(x)
        elif self.kind == "method in place":
            x.relu_()
        else:
            x = self.relu(x)
        return self.second(x).sum((2, 3, 4))


@pytest.mark.parametrize("kind", ["module", "in place", "function", "method", "torch", "method in place", "six"])
def test_every_way_to_write_a_relu_is_reversed(kind: str) -> None:
    network, x = Line(kind), torch.randn(2, 1, 4, 5, 6)
    signal = network.second.weight.detach().clamp(min=0).view(1, 4, 1, 1, 1).expand(2, 4, 4, 5, 6)
    expected = F.conv_transpose3d(signal, network.first.weight.detach(), padding=1)
    torch.testing.assert_close(projection(network, x, 0), expected)


def test_what_was_not_active_lets_the_signal_through_unlike_in_a_gradient() -> None:
    network = Line()
    nn.init.constant_(network.first.bias, -100.0)
    nn.init.constant_(network.second.weight, 1.0)
    x = torch.randn(1, 1, 4, 5, 6)
    assert projection(network, x, 0).abs().max() > 0
    leaf = x.clone().requires_grad_(True)
    network(leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().max() == 0


def test_gradients_are_gradients_again_afterwards() -> None:
    network, x = narrow_c3d("batch"), torch.randn(1, 2, 4, 32, 32)

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(network(leaf)[:, 0].sum(), leaf)[0]

    before = gradient()
    deconvnet(network, x, 0)
    torch.testing.assert_close(gradient(), before)
    assert not torch.allclose(projection(network, x, 0), before, rtol=1e-2)


class TestFromTheStrongestActivation:
    @settings(max_examples=20, deadline=None)
    @given(t=st.integers(1, 4), h=st.integers(1, 5), w=st.integers(1, 6), feature=st.integers(0, 3))
    def test_it_reaches_no_further_than_the_layer_saw(self, t: int, h: int, w: int, feature: int) -> None:
        network, x = Line(), torch.zeros(1, 1, 6, 7, 8)
        place = (0, 0, t, h, w)
        with torch.no_grad():
            network.first.weight.abs_()
            network.first.bias.zero_()
            network.first.weight[:, :, 1, 1, 1] += 5
        x[place] = 2.0
        found = projection(network, x, 0, start="strongest", feature=feature)
        expected = torch.zeros_like(x)
        kernel = network.first.weight[feature, 0].detach()
        expected[0, 0, t - 1 : t + 2, h - 1 : h + 2, w - 1 : w + 2] = 2 * kernel[1, 1, 1] * kernel
        torch.testing.assert_close(found, expected)

    def test_it_takes_the_strongest_map_of_each_clip(self) -> None:
        network = Line()
        x = torch.randn(3, 1, 4, 5, 6)
        with torch.no_grad():
            strongest = network.first(x).amax((2, 3, 4)).argmax(1).tolist()
        found = projection(network, x, 0, start="strongest")
        for clip, feature, own in zip(x, strongest, found, strict=True):
            alone = projection(network, clip[None], 0, start="strongest", feature=feature)[0]
            torch.testing.assert_close(own, alone)

    def test_a_map_that_is_nowhere_active_projects_nothing(self) -> None:
        network = Line()
        nn.init.constant_(network.first.bias, -100.0)
        found = deconvnet(network, torch.randn(1, 1, 4, 5, 6), 0, start="strongest")
        assert found.abs().max() == 0


@pytest.mark.parametrize("name", list_networks())
def test_each_network_of_the_zoo_is_reversed_or_refused(name: str) -> None:
    network = create(name, num_classes=2, width=1 / 16)
    slices, height, width = network.smallest
    x = torch.randn(1, 1, slices + 3, height + 8, width + 8)
    if name in REFUSED:
        with pytest.raises(ConfigError, match="no deconvnet") as raised:
            deconvnet(network, x, 1)
        assert "integrated-gradients" in str(raised.value)
    else:
        found = deconvnet(network, x, 1)
        assert found.shape == (1, *x.shape[2:])
        assert found.isfinite().all()
        assert found.max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "top"}, "output, strongest"),
        ({"start": "strongest", "feature": 4}, "from 0 to 3"),
        ({"start": "strongest", "feature": "one"}, "whole number"),
        ({"feature": 1}, "start=strongest"),
        ({"output": 3}, "1 output"),
    ],
)
def test_faults_are_named(options: dict[str, object], message: str) -> None:
    given = {"output": 0, **options}
    with pytest.raises(ConfigError, match=message):
        deconvnet(Line(), torch.randn(1, 1, 4, 5, 6), **given)  # type: ignore[arg-type]


def test_products_of_features_are_refused() -> None:
    class Bilinear(Line):
        def forward(self, x: Tensor) -> Tensor:
            features = self.first(x).mean((2, 3, 4))
            return features[:, None] @ features[:, :, None]

    with pytest.raises(ConfigError, match="products of features"):
        deconvnet(Bilinear(), torch.randn(1, 1, 4, 5, 6), 0)


def test_weights_that_hang_on_no_clip_are_no_attention() -> None:
    network = create("tsn", num_classes=2, width=1 / 16, consensus="weighted", test_consensus="same")
    assert deconvnet(network, torch.randn(1, 1, 4, 32, 32), 1).max() > 0
    attending = create("tsn", num_classes=2, width=1 / 16, consensus="attention", test_consensus="same")
    with pytest.raises(ConfigError, match="attention"):
        deconvnet(attending, torch.randn(1, 1, 4, 32, 32), 1)


def test_it_is_in_the_table() -> None:
    assert METHODS["deconvnet"].function() is deconvnet
    assert METHODS["deconvnet"].options == {"start": "output", "feature": None}
