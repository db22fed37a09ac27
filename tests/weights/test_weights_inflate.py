"""2D kernels along time, and first layers for other channels: oracles in float64, and volumes of equal slices."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks import create
from volrec.networks.backbones import create_backbone
from volrec.networks.backbones.contract import Backbone
from volrec.networks.i3d import _ENDPOINTS
from volrec.networks.layers import same_padding, scale_channels
from volrec.weights.adapt import adapt_channels
from volrec.weights.inflate import inflate_kernel, inflate_state

WIDTH = 1 / 16
MODES = ("average", "center")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def stir(network: nn.Module) -> nn.Module:
    """Give normalisation statistics and scales of their own: a mix-up of names would show."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_(std=0.2)
                layer.running_var.uniform_(0.5, 1.5)
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(std=0.2)
    return network.eval()


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    largest = float(expected.abs().max())
    assert expected.std() > 0.01 * largest  # maps that say nothing would be equal anyway
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_first_layer_for_other_channels_is_the_shared_sum_or_the_mean(channels: int, mode: str) -> None:
    weight = torch.randn(4, 3, 2, 3, 3)
    got = adapt_channels(weight, channels, mode)
    exact = weight.double().numpy()
    one = exact.sum(1) / channels if mode == "sum" else exact.mean(1)
    assert got.dtype == weight.dtype
    assert np.allclose(got.numpy(), np.repeat(one[:, None], channels, axis=1), atol=1e-7)


def test_equal_channels_give_what_they_gave() -> None:
    weight, gray = torch.randn(4, 3, 3, 3).double(), torch.randn(2, 1, 8, 8).double()
    before = F.conv2d(gray.expand(-1, 3, -1, -1), weight)
    for channels in (1, 2, 5):
        x = gray.expand(-1, channels, -1, -1)
        assert torch.allclose(F.conv2d(x, adapt_channels(weight, channels, "sum")), before)
        assert torch.allclose(F.conv2d(x, adapt_channels(weight, channels, "mean")), before * channels / 3)


def test_half_precision_is_added_up_without_loss() -> None:
    weight = torch.full((1, 4096, 1, 1), 1.0, dtype=torch.bfloat16)
    assert adapt_channels(weight, 1).item() == 4096


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_kernels_get_their_time_axis(depth: int) -> None:
    weight = torch.randn(4, 3, 5, 5)
    average, center = (inflate_kernel(weight, depth, mode) for mode in MODES)
    exact = np.repeat(weight.double().numpy()[:, :, None] / depth, depth, axis=2)
    assert average.dtype == weight.dtype
    assert np.allclose(average.numpy(), exact, atol=1e-8)
    expected = torch.zeros(4, 3, depth, 5, 5)
    expected[:, :, depth // 2] = weight
    assert torch.equal(center, expected)


def test_what_cannot_be_done_is_said() -> None:
    kernel = torch.ones(1, 1, 3, 3)
    for wrong in (
        partial(inflate_kernel, kernel, 3, "median"),
        partial(inflate_kernel, kernel[0], 3),
        partial(inflate_kernel, kernel, 0),
        partial(adapt_channels, kernel, 2, "median"),
        partial(adapt_channels, kernel, 0),
    ):
        with pytest.raises(ConfigError):
            wrong()


class FlatInception(Backbone):
    """I3D's endpoints without time, made of torch's own layers: what an inflated I3D must give for every slice."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential()
        channels = in_channels
        for name, numbers in _ENDPOINTS.items():
            out = [scale_channels(number, WIDTH) for number in numbers]
            flat = name.replace("3d_", "2d_")
            if name.startswith("MaxPool"):
                self.trunk.add_module(flat, FlatPool(numbers[1], 2))
            elif name.startswith("Conv3d"):
                self.trunk.add_module(flat, FlatUnit(channels, out[0], numbers[1], 2 if "1a" in name else 1))
                channels = out[0]
            else:
                self.trunk.add_module(flat, FlatMixed(channels, out))
                channels = out[0] + out[2] + out[4] + out[5]


class FlatPool(nn.Module):
    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sides = [side for n in reversed(x.shape[2:]) for side in same_padding(n, self.size, self.stride)]
        return F.max_pool2d(F.pad(x, sides, value=-torch.inf), self.size, self.stride)


class FlatUnit(nn.Module):
    def __init__(self, channels: int, out: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, size, stride, bias=False)
        self.norm = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, stride = self.conv.kernel_size[0], self.conv.stride[0]
        sides = [side for n in reversed(x.shape[2:]) for side in same_padding(n, size, stride)]
        return F.relu(self.norm(self.conv(F.pad(x, sides))))


class FlatMixed(nn.Module):
    def __init__(self, channels: int, out: list[int]) -> None:
        super().__init__()
        self.b0, self.b1a, self.b1b = (
            FlatUnit(channels, out[0], 1),
            FlatUnit(channels, out[1], 1),
            FlatUnit(*out[1:3], 3),
        )
        self.b2a, self.b2b = FlatUnit(channels, out[3], 1), FlatUnit(*out[3:5], 3)
        self.b3a, self.b3b = FlatPool(3, 1), FlatUnit(channels, out[5], 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


@pytest.mark.parametrize("mode", MODES)
def test_an_inflated_i3d_gives_for_equal_slices_what_2d_gives_for_the_slice(mode: str) -> None:
    flat = stir(FlatInception(3))
    network = create("i3d", num_classes=2, in_channels=3, width=WIDTH, temporal_padding="replicate").eval()
    state, table = inflate_state(flat.state_dict(), network, mode=mode)
    network.load_state_dict(state, strict=False)
    kernels = sum(tensor.ndim == 4 for tensor in flat.state_dict().values())
    assert table.counts == {"loaded": len(flat.state_dict()) - kernels, "adapted": kernels, "dropped": 0, "missing": 2}
    slices = torch.randn(2, 3, 40, 33)
    with torch.no_grad():
        got = network.forward_features(slices.unsqueeze(2).expand(-1, -1, 9, -1, -1))
        expected = flat.forward_maps(slices)
    assert got.shape[2] == 2
    for step in range(got.shape[2]):
        same(got[:, :, step], expected)


@pytest.mark.parametrize("mode", MODES)
def test_an_inflated_densenet_gives_for_equal_slices_what_2d_gives_for_the_slice(mode: str) -> None:
    flat = stir(create_backbone("densenet-121", in_channels=1, width=WIDTH))
    network = create("densenet3d-121", num_classes=2, width=WIDTH, temporal_strides=(1, 1, 1, 1, 1)).eval()
    state, table = inflate_state(flat.state_dict(), network, mode=mode)
    network.load_state_dict(state, strict=False)
    assert not table.of_action("dropped")
    assert [row.target for row in table.of_action("missing")] == ["classifier.weight", "classifier.bias"]
    # 60 convolutions and the pool of the stem reach one slice further each: the step in the middle of 121 reads no
    # zeros of padding. Kernels in the middle read none anywhere.
    slices = 121 if mode == "average" else 3
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        got = network.forward_features(x.unsqueeze(2).expand(-1, -1, slices, -1, -1))
        expected = flat.forward_maps(x)
    for step in [slices // 2] if mode == "average" else range(slices):
        same(got[:, :, step], expected)


def test_t3d_takes_what_it_can_and_says_what_has_no_counterpart() -> None:
    flat = create_backbone("densenet-121", in_channels=1, width=WIDTH)
    network = create("t3d-121", num_classes=2, width=WIDTH)
    state, table = inflate_state(flat.state_dict(), network)
    rows = {row.target: row for row in table.rows}
    assert rows["features.temporal1.branch2.conv.weight"].action == "missing"
    assert rows["features.temporal1.branch2.conv.weight"].reason == "no counterpart in the 2D network"
    assert rows["features.denseblock1.denselayer3.conv2.weight"].action == "adapted"
    # Its blocks read more channels from a temporal transition layer than from an ordinary one.
    assert rows["features.denseblock2.denselayer1.conv1.weight"].action == "dropped"
    assert "(8, 8, 1, 1)" in rows["features.denseblock2.denselayer1.conv1.weight"].reason
    left = {row.source for row in table.rows if not row.target}
    assert left == {name for name in flat.state_dict() if "transition" in name}
    assert set(state) == {row.target for row in table.rows if row.action in ("loaded", "adapted")}


@pytest.mark.parametrize("name", ["lrcn", "conv-pooling", "time-conv"])
def test_slicewise_networks_take_2d_weights_as_they_are(name: str) -> None:
    flat = stir(create_backbone("densenet-121", in_channels=3, width=WIDTH))
    network = create(name, num_classes=2, in_channels=3, width=WIDTH, backbone="densenet-121").eval()
    state, table = inflate_state(flat.state_dict(), network)
    network.load_state_dict(state, strict=False)
    assert table.counts["loaded"] == len(flat.state_dict())
    assert not table.of_action("adapted") and not table.of_action("dropped")
    assert all(not row.target.startswith("backbone.") for row in table.of_action("missing"))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        same(network.encode_maps(x), flat.forward_maps(x))


def test_the_first_layer_is_adapted_and_inflated_at_once() -> None:
    flat = create_backbone("densenet-121", in_channels=3, width=WIDTH)
    network = create("densenet3d-121", num_classes=2, in_channels=1, width=WIDTH)
    state, table = inflate_state(flat.state_dict(), network, first_layer="sum")
    kernel = flat.trunk.conv0.weight.detach().double()
    expected = inflate_kernel(kernel.sum(1, keepdim=True), 3)
    assert torch.allclose(state["features.conv0.weight"].double(), expected, atol=1e-7)
    row = next(row for row in table.rows if row.target == "features.conv0.weight")
    assert row.action == "adapted" and "3 to 1" in row.reason and "inflated to 3" in row.reason
