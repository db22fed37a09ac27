from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks import create, describe
from volrec.networks.backbones import BACKBONES, create_backbone
from volrec.networks.layers import ConvUnit, CrossChannelNorm
from volrec.networks.layers.inflation import inflate_module

NARROW = 1 / 16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def flat_network(name: str, **arguments) -> nn.Module:
    """A 2D network whose normalisation does something, in eval mode and float64."""
    network = create_backbone(name, **{"in_channels": 2, "width": NARROW, **arguments}).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
    return network.double()


def inflate_by_name(flat: nn.Module, network: nn.Module) -> nn.Module:
    """Load a 2D state: every kernel repeated along T and divided by its depth."""
    network = network.double().eval()
    state = network.state_dict()
    for name, value in flat.trunk.state_dict().items():
        target = state[f"backbone.trunk.{name}"]
        if value.ndim == 4:
            depth = target.shape[2]
            value = value[:, :, None].expand(-1, -1, depth, -1, -1) / depth
        assert value.shape == target.shape
        state[f"backbone.trunk.{name}"] = value.contiguous()
    network.load_state_dict(state)
    return network


def assert_boring(flat: nn.Module, network: nn.Module, x: Tensor, slices: int) -> None:
    """Every step of a volume of one repeated slice has the maps of the slice."""
    with torch.no_grad():
        expected = flat.forward_maps(x)
        found = network.forward_features(x[:, :, None].expand(-1, -1, slices, -1, -1))
    assert expected.std() > 1e-4
    torch.testing.assert_close(found, expected[:, :, None].expand_as(found), rtol=1e-9, atol=1e-11)


class TestBoringVolume:
    @pytest.mark.parametrize(
        ("name", "time_kernel"),
        [*((name, kernel) for name in BACKBONES for kernel in ("cube", "three")), ("monai:resnet18", "cube")],
    )
    def test_shows_in_every_slice_what_the_2d_network_gives(self, name, time_kernel):
        flat = flat_network(name)
        network = create("inflated", num_classes=3, in_channels=2, width=NARROW, backbone=name, time_kernel=time_kernel)
        network = inflate_by_name(flat, network)
        size = (2, 17, 24) if name == "monai:resnet18" else (4, 49, 38)
        assert_boring(flat, network, torch.randn(2, 2, *size[1:]).double(), size[0])

    @pytest.mark.parametrize("time_stride", ["i3d", "plane"])
    @pytest.mark.parametrize("name", BACKBONES)
    def test_holds_where_slices_become_fewer(self, name, time_stride):
        flat = flat_network(name)
        options = {"backbone": name, "time_stride": time_stride, "time_kernel": "cube"}
        network = create("inflated", num_classes=3, in_channels=2, width=NARROW, **options)
        network = inflate_by_name(flat, network)
        for slices in (1, 9):
            assert_boring(flat, network, torch.randn(1, 2, 40, 48).double(), slices)

    @pytest.mark.parametrize("norm", ["none", "instance", "group"])
    @pytest.mark.parametrize("name", ["googlenet", "resnet-50", "efficientnet-lite0"])
    def test_holds_with_every_normalisation(self, name, norm):
        flat = flat_network(name, norm=norm)
        network = create("inflated", num_classes=3, in_channels=2, width=NARROW, backbone=name, norm=norm)
        assert_boring(flat, inflate_by_name(flat, network), torch.randn(1, 2, 48, 64).double(), 3)

    def test_breaks_at_the_ends_with_zeros(self):
        flat = flat_network("resnet-18")
        network = create("inflated", num_classes=3, in_channels=2, width=NARROW, temporal_padding="zero")
        network = inflate_by_name(flat, network)
        x = torch.randn(1, 2, 48, 48).double()
        slices = 45  # eight blocks and a stem reach 17 slices to both sides
        with torch.no_grad():
            expected = flat.forward_maps(x)
            found = network.forward_features(x[:, :, None].expand(-1, -1, slices, -1, -1))
        torch.testing.assert_close(found[:, :, 17:-17], expected[:, :, None].expand(-1, -1, 11, -1, -1))
        for end in (0, -1):
            assert (found[:, :, end] - expected).abs().max() > 1e-3


class TestTheRuleOfI3D:
    @pytest.mark.parametrize("slices", [9, 16])
    def test_makes_i3d_of_inception_v1(self, slices):
        ours = create("inflated", num_classes=5, width=NARROW, faithful=True).eval().double()
        theirs = create("i3d", num_classes=5, width=NARROW, faithful=True).eval().double()
        state = {
            name.removeprefix("backbone.trunk.").replace("Conv2d_", "Conv3d_"): value
            for name, value in ours.state_dict().items()
        }
        theirs.load_state_dict(state)
        x = torch.randn(1, 3, slices, 224, 224).double()
        with torch.no_grad():
            torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x), rtol=1e-9, atol=1e-12)

    def test_has_its_parameters_and_products(self):
        told = describe("inflated")
        assert told["parameters"] == 12_697_264
        assert told["gmacs"] == pytest.approx(111.2, abs=0.05)

    def test_gives_cubes_or_three_slices_and_leaves_1x1_alone(self):
        depths = {}
        for kind in ("cube", "three"):
            with torch.device("meta"):
                trunk = create("inflated", num_classes=2, backbone="googlenet", time_kernel=kind).backbone["trunk"]
            depths[kind] = {layer.kernel_size for layer in trunk.modules() if isinstance(layer, nn.Conv3d)}
        assert depths["cube"] == {(1, 1, 1), (3, 3, 3), (5, 5, 5), (7, 7, 7)}
        assert depths["three"] == {(1, 1, 1), (3, 3, 3), (3, 5, 5), (3, 7, 7)}

    @pytest.mark.parametrize(
        ("name", "left"),
        [("resnet-18", (32, 2, 1)), ("vgg-16", (32, 4, 1)), ("inception-v1", (32, 4, 1)), ("densenet-121", (32, 2, 1))],
    )
    def test_strides_along_time_as_asked(self, name, left):
        strides = ("keep", "i3d", "plane")
        x = torch.empty(1, 1, 32, 32, 32, device="meta")
        for stride, slices in zip(strides, left, strict=True):
            with torch.device("meta"):
                network = create("inflated", num_classes=2, width=NARROW, backbone=name, time_stride=stride).eval()
            assert network.forward_features(x).shape[2] == slices, stride


class TestWeights:
    def test_that_nobody_inflates_start_with_unlike_planes_of_the_same_effect(self):
        flat = create_backbone("resnet-18", in_channels=1, width=0.5)
        network = create("inflated", num_classes=2, width=0.5)
        for name, layer in flat.trunk.named_modules():
            if not isinstance(layer, nn.Conv2d):
                continue
            weight = network.backbone["trunk"].get_submodule(name).weight
            # Sum of the squares: the size of what a kernel gives of unlike slices.
            assert weight.square().sum().item() == pytest.approx(layer.weight.square().sum().item(), rel=0.15), name
            if weight.shape[2] > 1:
                assert not torch.allclose(weight[:, :, 0], weight[:, :, 1])

    def test_of_a_twin_are_those_of_the_2d_network_repeated_and_divided(self):
        flat = nn.Sequential(nn.Conv2d(2, 3, 5, padding=2), nn.BatchNorm2d(3)).eval()
        twin = inflate_module(flat)
        assert list(twin.state_dict()) == list(flat.state_dict())
        torch.testing.assert_close(twin[0].weight, flat[0].weight[:, :, None].repeat(1, 1, 5, 1, 1) / 5)
        with torch.no_grad():
            twin[1].running_mean += 1
        assert flat[1].running_mean.eq(0).all()  # the 2D network stays as it is

    def test_that_are_frozen_stay_so(self):
        flat = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).requires_grad_(False)
        assert not any(parameter.requires_grad for parameter in inflate_module(flat).parameters())


def sample(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """What a layer gives for a slice, and its twin for a volume of it."""
    layer = layer.double().eval()
    x = torch.randn(2, 4, 9, 10).double()
    with torch.no_grad():
        return layer(x), inflate_module(nn.Sequential(layer)).eval()(x[:, :, None].expand(-1, -1, 5, -1, -1))


class TestLayers:
    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv2d(4, 6, 3, 2, 1),
            nn.Conv2d(4, 6, (1, 7), padding="same"),
            nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
            nn.Conv2d(4, 6, 2, padding="valid"),
            nn.MaxPool2d(3, 2, 1),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.MaxPool2d(3, 1, 1, dilation=2),
            nn.AvgPool2d(3, 1, 1),
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.BatchNorm2d(4, eps=0.1, affine=False),
            nn.InstanceNorm2d(4, affine=True),
            nn.GroupNorm(2, 4),
            nn.ZeroPad2d((1, 2, 0, 3)),
            nn.ConstantPad2d((1, 0, 0, 1), 2.5),
            nn.ReplicationPad2d((1, 0, 0, 1)),
            nn.ReflectionPad2d((1, 0, 0, 1)),
            nn.AdaptiveAvgPool2d((3, 4)),
            nn.AdaptiveMaxPool2d((3, 4)),
            nn.Dropout2d(0.5),
            nn.PReLU(4),
            nn.ReLU6(),
            nn.SiLU(),
            CrossChannelNorm(5, alpha=0.3, beta=0.75, k=1, mean=True),
            ConvUnit(4, 6, kernel_size=3, padding=1, dims=2, norm="batch"),
        ],
        ids=lambda layer: repr(layer).split("\n")[0],
    )
    def test_give_in_every_slice_what_they_give_in_2d(self, layer):
        flat, solid = sample(layer)
        torch.testing.assert_close(solid, flat[:, :, None].expand_as(solid), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("layer", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d((1, 1))])
    def test_that_leave_one_position_leave_one_slice(self, layer):
        flat, solid = sample(layer)
        assert solid.shape == (2, 4, 1, 1, 1)
        torch.testing.assert_close(solid[:, :, 0], flat)

    def test_drop_whole_maps_of_a_volume(self):
        twin = inflate_module(nn.Sequential(nn.Dropout2d(0.5))).train()
        dropped = twin(torch.ones(4, 16, 3, 2, 2)).flatten(2)
        assert (dropped == dropped[:, :, :1]).all()
        assert 0 < (dropped[:, :, 0] == 0).float().mean() < 1

    @pytest.mark.parametrize("slices", [1, 2, 5, 6])
    @pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (2, 2)])
    def test_pools_take_the_windows_of_slices_that_exist(self, kernel, stride, slices):
        x = torch.randn(1, 2, slices, 6, 6)
        for kind, reduce in ((nn.MaxPool2d, torch.amax), (nn.AvgPool2d, torch.mean)):
            plane = kind(kernel, stride, kernel // 2)
            found = inflate_module(nn.Sequential(plane), time_stride="plane")(x)
            pooled = torch.stack([plane(x[:, :, index]) for index in range(slices)], 2)
            steps = range(0, slices, stride)
            assert found.shape[2] == len(steps)
            for step, centre in enumerate(steps):
                reach = range(centre - (kernel - 1) // 2, centre + kernel // 2 + 1)
                window = pooled[:, :, [min(max(index, 0), slices - 1) for index in reach]]
                torch.testing.assert_close(found[:, :, step], reduce(window, 2))

    @pytest.mark.parametrize(("stride", "slices"), [("keep", 6), ("plane", 6), ("plane", 5)])
    def test_convolutions_read_the_end_slices_again(self, stride, slices):
        flat = nn.Conv2d(2, 3, 3, 2, 1)
        x = torch.randn(1, 2, slices, 6, 7)
        for padding, mode in (("replicate", "replicate"), ("zero", "constant")):
            twin = inflate_module(nn.Sequential(flat), time_stride=stride, temporal_padding=padding)[0]
            nn.init.normal_(twin.weight)
            step = 1 if stride == "keep" else 2
            padded = F.pad(F.pad(x, (0, 0, 0, 0, 1, 1), mode=mode), (1, 1, 1, 1))
            torch.testing.assert_close(twin(x), F.conv3d(padded, twin.weight, twin.bias, (step, 2, 2)))

    def test_shared_ones_stay_shared(self):
        shared = nn.Conv2d(2, 2, 3, padding=1)
        twin = inflate_module(nn.Sequential(shared, nn.ReLU(), shared))
        assert twin[0] is twin[2]
        assert len(list(twin.parameters())) == 2


class _MeansOverThePlane(nn.Module):
    """Gating as some libraries write it: with axes counted for a slice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True)).sigmoid()


class _Tokens(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        weights = (self.query(tokens) @ tokens.transpose(1, 2)).softmax(-1)
        return (weights @ tokens).transpose(1, 2).reshape(x.shape)


class _OwnPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)


class _Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Own(nn.Conv2d):
    pass


class TestRefuses:
    @pytest.mark.parametrize(
        ("layer", "name", "reason"),
        [
            (nn.Upsample(scale_factor=2), "1", "a rule of its own"),
            (nn.ConvTranspose2d(4, 4, 2), "1", "a rule of its own"),
            (_Own(4, 4, 3), "1", "a rule of its own"),
            (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "1", "padding_mode='reflect'"),
            (nn.Conv2d(4, 4, 2, padding="same"), "1", "one side of the plane more"),
            (nn.MaxPool2d(2, return_indices=True), "1", "positions of its maxima"),
            (nn.MultiheadAttention(4, 1), "1", "weights of its own"),
            (_Scale(4), "1", "weights of its own"),
            (_OwnPool(), "1", "no 3D twin"),
            (_MeansOverThePlane(4), "1.fc", r"\(2, 4, 1, 1\).* in 2D and of .*\(2, 4, 1, 1, 20\)"),
            (_Tokens(4), "1.query", "in 2D and of"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
    )
    def test_what_has_no_twin_with_the_name_of_the_layer(self, layer, name, reason):
        flat = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer)
        with pytest.raises(ConfigError, match=reason) as caught:
            inflate_module(flat, size=(3, 12, 20))
        assert caught.value.problem.startswith(f"layer '{name}' (")
        assert "resnet-18" in caught.value.remedy
        assert caught.value.where == "network.options.backbone"

    @pytest.mark.parametrize(
        ("name", "layer"),
        [("monai:SegResNet", "upsample_non_trainable"), ("monai:HighResNet", "network.blocks.4")],
    )
    def test_networks_of_monai_that_have_no_twin(self, name, layer):
        with pytest.raises(ConfigError, match=layer):
            create("inflated", num_classes=2, backbone=name)

    @pytest.mark.parametrize("option", ["time_kernel", "time_stride", "temporal_padding"])
    def test_unknown_rules(self, option):
        with pytest.raises(ConfigError, match=f"'{option}' parameter of inflation must be one of .* Got 'other'"):
            inflate_module(nn.Conv2d(1, 1, 3), **{option: "other"})


class _Timm(nn.Module):
    """What volrec asks of a network of timm, with a head of its own."""

    def __init__(self, in_chans: int, kind: str) -> None:
        super().__init__()
        self.kind, self.num_features = kind, 6
        self.conv = nn.Conv2d(in_chans, 6, 3, 2, 1)
        self.conv_head = nn.Linear(6, 10)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return {"maps": x, "last": x.movedim(1, -1), "tokens": x.flatten(2).transpose(1, 2)}[self.kind]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        axes = {"maps": (2, 3), "last": (1, 2), "tokens": 1}[self.kind]
        return self.conv_head(x.mean(axes))


class TestNetworksOfTimm:
    @pytest.fixture(autouse=True)
    def _fake(self, monkeypatch) -> None:
        module = types.ModuleType("timm")
        module.create_model = lambda name, *, pretrained, in_chans, num_classes: _Timm(in_chans, name)
        module.list_models = lambda: ["maps", "last", "tokens"]
        monkeypatch.setitem(sys.modules, "timm", module)

    def test_leave_layers_behind_their_maps_out(self):
        network = create("inflated", num_classes=2, backbone="timm:maps")
        assert network.num_features == 6
        trunk = {name for name, _ in network.named_parameters() if name.startswith("backbone.")}
        assert trunk == {"backbone.trunk.network.conv.weight", "backbone.trunk.network.conv.bias"}
        network(torch.randn(2, 1, 3, 16, 16)).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    @pytest.mark.parametrize("kind", ["last", "tokens"])
    def test_with_other_layouts_are_refused(self, kind):
        with pytest.raises(ConfigError, match="of the 2D network has no 3D twin"):
            create("inflated", num_classes=2, backbone=f"timm:{kind}")


def test_copies_and_states_go_round_with_a_network_of_monai():
    network = create("inflated", num_classes=2, backbone="monai:resnet10").eval()
    other = create("inflated", num_classes=2, backbone="monai:resnet10").eval()
    other.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 3, 20, 33)
    assert torch.equal(copy.deepcopy(other)(x), network(x))
    assert network.forward_features(x).shape[:3] == (1, 512, 3)
