from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from volrec.errors import ConfigError
from volrec.networks.backbones import BACKBONES, create_backbone
from volrec.networks.backbones.blocks import SameMaxPool2d
from volrec.networks.backbones.cnn_m import CNNM2048
from volrec.networks.backbones.contract import Backbone
from volrec.networks.layers import CrossChannelNorm, PointwiseConv2d

SIDES = dict.fromkeys(BACKBONES, 224) | {"hybrid": 227, "alexnet": 220}
NARROW = 1 / 16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def meta(name: str, **arguments) -> Backbone:
    with torch.device("meta"):
        return create_backbone(name, **{"in_channels": 3, "faithful": True, **arguments}).eval()


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def gmacs(network: Backbone, *size: int) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.empty(1, *size, device="meta"))
    return counter.get_total_flops() / 2e9


def shapes(name: str, **arguments) -> dict[str, tuple[int, ...]]:
    """Output (C, H, W) of every part of the trunk and the tail at the paper's slice size."""
    network, found = meta(name, **arguments), {}
    for part in (network.trunk, network.tail):
        for label, module in part.named_children():
            module.register_forward_hook(
                lambda module, inputs, output, label=label: found.update({label: tuple(output.shape[1:])})
            )
    network(torch.empty(1, 3, SIDES[name], SIDES[name], device="meta"))
    return found


class TestThePapersNetworks:
    @pytest.mark.parametrize(
        ("name", "tail", "channels", "classes", "parameters", "products"),
        [
            ("hybrid", "fc6", 3, None, 60.94e6, 1.19),
            ("cnn-m-2048", "fc7", 3, 101, 90.63e6, 1.66),
            ("cnn-m-2048", "fc7", 20, 101, 90.71e6, 2.61),
            ("vgg-16", "fc7", 3, 101, 134.67e6, 15.5),
            ("vgg-16", "fc7", 20, 101, 134.68e6, 16.0),
            ("vgg-16", "pool", 3, None, 14.71e6, 15.3),
            ("bn-inception", "pool", 3, 101, 10_373_765, 2.03),
            ("bn-inception", "pool", 10, 101, 10_395_717, 2.31),
            ("googlenet", "pool", 3, None, 5_973_552, 1.58),
            ("densenet-121", "pool", 3, None, 6_953_856, 2.60),
            ("alexnet", "fc7", 3, None, 58_281_344, 1.09),
            ("resnet-18", "pool", 3, 1000, 11_689_512, 1.81),
            ("resnet-34", "pool", 3, 1000, 21_797_672, 3.66),
            ("resnet-50", "pool", 3, 1000, 25_557_032, 4.09),
            ("efficientnet-lite0", "pool", 3, 1000, 4_652_008, 0.38),
            ("inception-v1", "pool", 3, None, 5_599_904, 1.50),
        ],
    )
    def test_have_the_published_sizes(self, name, tail, channels, classes, parameters, products):
        network = meta(name, tail=tail, in_channels=channels)
        last = 0 if classes is None else classes * (network.num_features + 1)
        found = count(network) + last
        assert found == parameters if isinstance(parameters, int) else abs(found - parameters) < 0.006e6
        assert gmacs(network, channels, SIDES[name], SIDES[name]) == pytest.approx(
            products, abs=0.05 if products > 3 else 0.006
        )

    @pytest.mark.parametrize(
        ("name", "tail", "table"),
        [
            (
                "hybrid",
                "fc7",
                {
                    "conv1": (96, 111, 111),
                    "pool1": (96, 55, 55),
                    "conv2": (384, 26, 26),
                    "pool2": (384, 13, 13),
                    "conv3": (512, 13, 13),
                    "conv4": (512, 13, 13),
                    "conv5": (384, 13, 13),
                    "pool5": (384, 6, 6),
                    "fc6": (4096,),
                    "fc7": (4096,),
                },
            ),
            (
                "alexnet",
                "fc7",
                {
                    "conv1": (96, 53, 53),
                    "pool1": (96, 26, 26),
                    "conv2": (256, 26, 26),
                    "pool2": (256, 13, 13),
                    "conv3": (384, 13, 13),
                    "conv4": (384, 13, 13),
                    "conv5": (256, 13, 13),
                    "pool5": (256, 6, 6),
                    "fc6": (4096,),
                    "fc7": (4096,),
                },
            ),
            (
                "cnn-m-2048",
                "fc7",
                {
                    "conv1": (96, 109, 109),
                    "pool1": (96, 54, 54),
                    "conv2": (256, 26, 26),
                    "pool2": (256, 13, 13),
                    "conv3": (512, 13, 13),
                    "conv5": (512, 13, 13),
                    "pool5": (512, 6, 6),
                    "fc6": (4096,),
                    "fc7": (2048,),
                },
            ),
            (
                "vgg-16",
                "fc7",
                {
                    "pool1": (64, 112, 112),
                    "pool2": (128, 56, 56),
                    "pool3": (256, 28, 28),
                    "pool4": (512, 14, 14),
                    "conv5_3": (512, 14, 14),
                    "pool5": (512, 7, 7),
                    "fc7": (4096,),
                },
            ),
            (
                "googlenet",
                "pool",
                {
                    "conv1_7x7_s2": (64, 112, 112),
                    "pool1_3x3_s2": (64, 56, 56),
                    "conv2_3x3": (192, 56, 56),
                    "pool2_3x3_s2": (192, 28, 28),
                    "inception_3a": (256, 28, 28),
                    "inception_3b": (480, 28, 28),
                    "inception_4a": (512, 14, 14),
                    "inception_4d": (528, 14, 14),
                    "inception_4e": (832, 14, 14),
                    "inception_5a": (832, 7, 7),
                    "inception_5b": (1024, 7, 7),
                },
            ),
            (
                "bn-inception",
                "pool",
                {
                    "conv1_7x7_s2": (64, 112, 112),
                    "pool1_3x3_s2": (64, 56, 56),
                    "pool2_3x3_s2": (192, 28, 28),
                    "inception_3a": (256, 28, 28),
                    "inception_3b": (320, 28, 28),
                    "inception_3c": (576, 14, 14),
                    "inception_4a": (576, 14, 14),
                    "inception_4b": (576, 14, 14),
                    "inception_4c": (608, 14, 14),
                    "inception_4d": (608, 14, 14),
                    "inception_4e": (1056, 7, 7),
                    "inception_5a": (1024, 7, 7),
                    "inception_5b": (1024, 7, 7),
                },
            ),
            (
                "densenet-121",
                "pool",
                {
                    "conv0": (64, 112, 112),
                    "pool0": (64, 56, 56),
                    "block1": (256, 56, 56),
                    "transition1": (128, 28, 28),
                    "block2": (512, 28, 28),
                    "transition2": (256, 14, 14),
                    "block3": (1024, 14, 14),
                    "transition3": (512, 7, 7),
                    "block4": (1024, 7, 7),
                },
            ),
            *(
                (
                    name,
                    "pool",
                    {
                        "conv1": (64, 112, 112),
                        "maxpool": (64, 56, 56),
                        "layer1": (64 * more, 56, 56),
                        "layer2": (128 * more, 28, 28),
                        "layer3": (256 * more, 14, 14),
                        "layer4": (512 * more, 7, 7),
                    },
                )
                for name, more in (("resnet-18", 1), ("resnet-34", 1), ("resnet-50", 4))
            ),
            (
                "efficientnet-lite0",
                "pool",
                {"conv_stem": (32, 112, 112), "blocks": (320, 7, 7), "conv_head": (1280, 7, 7)},
            ),
            (
                "inception-v1",
                "pool",
                {
                    "Conv2d_1a_7x7": (64, 112, 112),
                    "MaxPool2d_2a_3x3": (64, 56, 56),
                    "Conv2d_2c_3x3": (192, 56, 56),
                    "MaxPool2d_3a_3x3": (192, 28, 28),
                    "Mixed_3b": (256, 28, 28),
                    "Mixed_3c": (480, 28, 28),
                    "MaxPool2d_4a_3x3": (480, 14, 14),
                    "Mixed_4e": (528, 14, 14),
                    "Mixed_4f": (832, 14, 14),
                    "MaxPool2d_5a_2x2": (832, 7, 7),
                    "Mixed_5c": (1024, 7, 7),
                },
            ),
        ],
    )
    def test_have_the_layers_of_their_tables(self, name, tail, table):
        found = shapes(name, tail=tail)
        assert {layer: found.get(layer) for layer in table} == table

    @pytest.mark.parametrize(
        ("name", "order"),
        [
            ("hybrid", ["conv1", "pool1", "norm1", "conv2", "pool2", "norm2", "conv3", "conv4", "conv5", "pool5"]),
            ("alexnet", ["conv1", "pool1", "norm1", "conv2", "pool2", "norm2", "conv3", "conv4", "conv5", "pool5"]),
            ("cnn-m-2048", ["conv1", "norm1", "pool1", "conv2", "norm2", "pool2", "conv3", "conv4", "conv5", "pool5"]),
        ],
    )
    def test_response_normalisation_is_where_the_paper_has_it(self, name, order):
        trunk = meta(name, tail="pool").trunk
        assert [label for label, _ in trunk.named_children()] == order
        assert isinstance(trunk.norm1, CrossChannelNorm)

    def test_response_normalisation_of_googlenet_comes_after_pool1_and_before_pool2(self):
        order = [label for label, _ in meta("googlenet").trunk.named_children()][:7]
        assert order == [
            "conv1_7x7_s2",
            "pool1_3x3_s2",
            "conv1_norm",
            "conv2_3x3_reduce",
            "conv2_3x3",
            "conv2_norm",
            "pool2_3x3_s2",
        ]

    def test_response_normalisation_is_caffes(self):
        x = torch.randn(2, 9, 3, 4).double() * 50
        squares = torch.stack([(x[:, max(0, c - 2) : c + 3] ** 2).sum(1) for c in range(9)], 1)
        torch.testing.assert_close(meta("hybrid").trunk.norm1(x), x / (1 + 1e-4 / 5 * squares) ** 0.75)
        torch.testing.assert_close(meta("cnn-m-2048").trunk.norm1(x), x / (2 + 1e-4 * squares) ** 0.75)

    def test_temporal_tower_has_no_second_response_normalisation(self):
        with torch.device("meta"):
            tower = CNNM2048(
                in_channels=20, faithful=True, width=1.0, norm="none", tail="fc7", dropout=0.0, norm2=False
            )
        assert hasattr(tower.trunk, "norm1")
        assert not hasattr(tower.trunk, "norm2")

    def test_groups_are_the_papers(self):
        trunk = meta("hybrid").trunk
        assert [trunk.get_submodule(f"conv{n}").conv.groups for n in range(1, 6)] == [1, 2, 1, 2, 2]
        assert meta("hybrid", width=1 / 128).trunk.conv2.conv.groups == 1  # 1 channel into 3

    def test_pools_of_stride_two_round_up(self):
        rows = torch.arange(8.0).reshape(1, 1, 8, 1).expand(1, 1, 8, 8)
        assert SameMaxPool2d()(rows)[0, 0, :, 0].tolist() == [2, 4, 6, 7]
        assert create_backbone("hybrid", in_channels=1, faithful=True, width=NARROW).trunk.pool1(rows).shape[2] == 4

    def test_inner_means_of_bn_inception_count_the_padding(self):
        trunk = meta("bn-inception").trunk
        pool = trunk.inception_3a.branches[-1].pool
        assert pool(torch.ones(1, 1, 5, 5))[0, 0, 0, 0] == pytest.approx(4 / 9)
        assert isinstance(trunk.inception_5b.branches[-1].pool, nn.MaxPool2d)

    def test_bn_inception_has_biases_beside_batch_normalisation(self):
        network = create_backbone("bn-inception", in_channels=3, faithful=True, width=NARROW)
        convs = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert len(convs) == len(norms) == 69
        assert all((conv.bias == 0.2).all() for conv in convs)
        assert {norm.eps for norm in norms} == {1e-5}

    @pytest.mark.parametrize(("name", "bias"), [("hybrid", 0.1), ("alexnet", 0.1), ("cnn-m-2048", 0.0)])
    def test_plain_networks_start_from_gaussians(self, name, bias):
        network = create_backbone(name, in_channels=3, faithful=True, width=0.25, tail="fc6")
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
                assert (layer.bias == bias).all()

    @pytest.mark.parametrize("name", BACKBONES)
    def test_smallest_is_the_smallest(self, name):
        network = meta(name, width=NARROW)
        side = network.smallest[0]
        assert network(torch.empty(2, 3, side, side, device="meta")).shape == (2, network.num_features)
        if name in ("hybrid", "alexnet", "cnn-m-2048"):
            with pytest.raises(RuntimeError):
                network(torch.empty(2, 3, side - 1, side - 1, device="meta"))

    @pytest.mark.parametrize("name", BACKBONES)
    def test_grid_is_the_size_of_the_maps_of_the_papers_slices(self, name):
        network = meta(name, width=NARROW)
        assert network.frame_size == (SIDES[name], SIDES[name])
        assert network.forward_maps(torch.empty(1, 3, *network.frame_size, device="meta")).shape[2:] == network.grid

    @pytest.mark.parametrize("name", BACKBONES)
    def test_last_tail_is_the_papers_own_end(self, name):
        ends = {"hybrid": 4096, "alexnet": 4096, "cnn-m-2048": 2048, "vgg-16": 4096}
        network = meta(name, tail="last")
        assert network.num_features == ends.get(name, network.num_maps)
        assert hasattr(network.tail, "fc7") == (name in ends)

    def test_only_fully_connected_tails_fix_the_size(self):
        assert meta("hybrid").exact is None
        assert meta("hybrid", tail="fc6").exact == (227, 227)
        assert meta("alexnet", tail="fc6").exact == (220, 220)
        assert meta("cnn-m-2048", tail="fc7").exact == meta("vgg-16", tail="fc7").exact == (224, 224)
        assert create_backbone("hybrid", in_channels=1, width=NARROW, tail="fc6").exact is None

    def test_dropout_follows_each_fully_connected_layer(self):
        tail = create_backbone("vgg-16", in_channels=1, width=NARROW, tail="fc7", dropout=0.7).tail
        assert [label for label, _ in tail.named_children()][-6:] == ["fc6", "relu6", "drop6", "fc7", "relu7", "drop7"]
        assert tail.drop6.p == tail.drop7.p == 0.7


class TestAdapted:
    @pytest.mark.parametrize("name", BACKBONES)
    def test_reads_every_size_from_the_smallest_up(self, name):
        network = create_backbone(name, in_channels=2, width=NARROW).eval()
        for size in ((16, 17), (19, 23), (31, 32), (33, 37)):
            with torch.no_grad():
                maps = network.forward_maps(torch.randn(1, 2, *size))
                assert maps.shape[:2] == (1, network.num_maps)
                assert network.forward_tail(maps).shape == (1, network.num_features)

    @pytest.mark.parametrize("name", BACKBONES)
    @pytest.mark.parametrize("norm", ["none", "batch", "instance", "group"])
    def test_takes_every_normalisation_at_its_smallest_size(self, name, norm):
        network = create_backbone(name, in_channels=1, width=NARROW, norm=norm)
        features = network(torch.randn(2, 1, *network.smallest))
        assert features.isfinite().all()
        features.square().sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        plain = sum(isinstance(layer, CrossChannelNorm) for layer in network.modules())
        assert plain == (2 if norm == "none" and name in ("hybrid", "alexnet", "cnn-m-2048", "googlenet") else 0)

    @pytest.mark.parametrize(
        "name",
        ["googlenet", "bn-inception", "vgg-16", "densenet-121", "resnet-18", "resnet-50", "efficientnet-lite0"]
        + ["inception-v1"],
    )
    def test_gives_the_papers_numbers_at_the_papers_size(self, name):
        paper = create_backbone(name, in_channels=3, faithful=True, width=NARROW).eval()
        free = create_backbone(
            name, in_channels=3, width=NARROW, norm="none" if name in ("vgg-16", "googlenet") else "batch"
        ).eval()
        weights = copy.deepcopy(paper.state_dict())
        for label in [label for label in weights if label.endswith("conv.bias") and name == "bn-inception"]:
            # The adapted form has no bias beside a normalisation: it goes into the mean.
            weights[label.replace("conv.bias", "norm.running_mean")] -= weights.pop(label)
        free.load_state_dict(weights)
        x = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            torch.testing.assert_close(free(x), paper(x))

    @pytest.mark.parametrize("name", ["hybrid", "alexnet", "cnn-m-2048", "vgg-16"])
    def test_fully_connected_tails_read_any_size(self, name):
        network = create_backbone(name, in_channels=1, width=NARROW, tail="fc7", dropout=0.5)
        assert network(torch.randn(2, 1, 40, 57)).shape == (2, network.num_features)
        assert network.num_features == {"cnn-m-2048": 128}.get(name, 256)

    @pytest.mark.parametrize("side", [1, 2, 3, 7, 8, 13])
    def test_pool_gives_half_of_any_size_rounding_up(self, side):
        x = torch.randn(2, 3, side, side + 1)
        found = SameMaxPool2d()(x)
        assert found.shape[2:] == (math.ceil(side / 2), math.ceil((side + 1) / 2))
        if side % 2 == 0:
            even = x[..., :side]
            assert torch.equal(SameMaxPool2d()(even), F.max_pool2d(even, 3, 2, ceil_mode=True))
        # No position is lost.
        x[..., -1, -1] = 99
        assert SameMaxPool2d()(x)[..., -1, -1].eq(99).all()


class TestStemStride:
    @pytest.mark.parametrize("name", BACKBONES)
    def test_one_keeps_the_detail_of_small_slices(self, name):
        coarse, fine = (meta(name, faithful=False, width=NARROW, stem_stride=stride) for stride in (None, 1))
        x = torch.empty(1, 3, 64, 96, device="meta")
        factor = 4 if name == "alexnet" else 2
        assert coarse.forward_maps(x).shape[2:] == (2, 3)
        assert [int(n) for n in fine.forward_maps(x).shape[2:]] == [
            int(n) * factor for n in coarse.forward_maps(x).shape[2:]
        ]
        assert [value.shape for value in fine.state_dict().values()] == [
            value.shape for value in coarse.state_dict().values()
        ]

    def test_the_papers_own_changes_nothing(self):
        torch.manual_seed(1)
        plain = create_backbone("alexnet", in_channels=1, width=NARROW).eval()
        torch.manual_seed(1)
        said = create_backbone("alexnet", in_channels=1, width=NARROW, stem_stride=4).eval()
        x = torch.randn(1, 1, 40, 44)
        assert torch.equal(plain(x), said(x))
        assert create_backbone("alexnet", in_channels=1, width=NARROW, stem_stride=2).forward_maps(x).shape[2:] == (
            3,
            3,
        )

    @pytest.mark.parametrize("name", BACKBONES)
    def test_smallest_holds_with_every_normalisation(self, name):
        for norm in ("none", "batch", "instance", "group"):
            for stride in range(1, 5 if name == "alexnet" else 3):
                network = create_backbone(name, in_channels=1, width=NARROW, norm=norm, stem_stride=stride)
                assert network.smallest[0] <= (17 if stride == 1 else 33)
                assert network(torch.randn(1 if norm == "instance" else 2, 1, *network.smallest)).isfinite().all()

    def test_one_above_the_papers_or_of_another_library_is_refused(self):
        with pytest.raises(ConfigError, match="the stem of vgg-16 has stride 2, got stem_stride=3") as caught:
            create_backbone("vgg-16", in_channels=1, stem_stride=3)
        assert "from 1 to 2" in caught.value.remedy
        for name in ("monai:resnet10", "timm:resnet18"):
            with pytest.raises(ConfigError, match=f"{name} has a stem of its own, got stem_stride=1"):
                create_backbone(name, in_channels=1, stem_stride=1)
        with pytest.raises(ConfigError, match="the paper's hybrid has no stem_stride=1"):
            create_backbone("hybrid", in_channels=3, faithful=True, stem_stride=1)


def test_densenet_gives_the_numbers_of_monai():
    from monai.networks.nets import DenseNet121

    theirs = DenseNet121(spatial_dims=2, in_channels=2, out_channels=3, init_features=8, growth_rate=4).eval()
    ours = create_backbone("densenet-121", in_channels=2, width=1 / 8).eval()
    source = [value for key, value in theirs.state_dict().items() if not key.startswith("class_layers")]
    target = ours.state_dict()
    assert [value.shape for value in source] == [value.shape for value in target.values()]
    # Kernels of both signs, so that every ReLU matters; normalisation that changes something.
    filled = [
        torch.randn_like(value) / 4 if value.ndim == 4 else torch.rand_like(value.float()) + 0.5 for value in source
    ]
    ours.load_state_dict(dict(zip(target, filled, strict=True)))
    others = {key: value for key, value in theirs.state_dict().items() if key.startswith("class_layers")}
    theirs.load_state_dict(dict(zip(theirs.state_dict(), [*filled, *others.values()], strict=True)))
    theirs.class_layers.out = nn.Identity()
    x = torch.randn(2, 2, 64, 96)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnets_give_the_numbers_of_monai(name):
    from monai.networks import nets

    make = getattr(nets, name)
    theirs = make(spatial_dims=2, n_input_channels=2, conv1_t_stride=2, bias_downsample=False, feed_forward=False)
    ours = create_backbone(f"resnet-{name[6:]}", in_channels=2)
    filled = {
        label: torch.rand_like(value) + 0.5 if value.ndim == 1 else value for label, value in ours.state_dict().items()
    }
    ours.load_state_dict(filled)
    # The same names, those of the common checkpoints.
    theirs.load_state_dict({label.removeprefix("trunk."): value for label, value in filled.items()})
    x = torch.randn(2, 2, 65, 96).double()
    with torch.no_grad():
        torch.testing.assert_close(ours.double().eval()(x), theirs.double().eval()(x))


def test_a_strided_pointwise_convolution_gives_the_numbers_of_torch():
    layer = PointwiseConv2d(3, 5, stride=2, bias=True).double()
    plain = torch.nn.Conv2d(3, 5, 1, 2).double()
    plain.load_state_dict(layer.state_dict())
    for size in ((7, 8), (8, 7), (1, 1)):
        x = torch.randn(3, 3, *size, dtype=torch.float64, requires_grad=True)
        again = x.detach().clone().requires_grad_()
        torch.testing.assert_close(layer(x), plain(again))
        layer(x).square().sum().backward()
        plain(again).square().sum().backward()
        torch.testing.assert_close(x.grad, again.grad)
    network = create_backbone("resnet-18", in_channels=1)
    strided = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d) and layer.stride == (2, 2)]
    assert all(isinstance(layer, PointwiseConv2d) for layer in strided if layer.kernel_size == (1, 1))


def test_bottlenecks_stride_in_their_3x3_convolution():
    trunk = meta("resnet-50").trunk
    for layer in (trunk.layer2, trunk.layer3, trunk.layer4):
        assert [getattr(layer[0], f"conv{n}").stride for n in (1, 2, 3)] == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("name", ["resnet-18", "resnet-34", "resnet-50", "efficientnet-lite0"])
def test_sums_without_normalisation_keep_their_size(name):
    network = create_backbone(name, in_channels=1, width=0.25, norm="none")
    maps = network.forward_maps(torch.randn(2, 1, 64, 64))
    assert 0.02 < maps.square().mean().sqrt() < 20


class TestArchitecture:
    @pytest.mark.parametrize("name", [*BACKBONES, "monai:resnet10"])
    def test_rebuilds_the_backbone(self, name):
        given = {} if name.startswith("monai:") else {"width": NARROW, "norm": "group", "stem_stride": 1}
        with torch.device("meta"):
            network = create_backbone(name, in_channels=2, **given)
        assert json.loads(json.dumps(network.architecture)) == network.architecture
        arguments = dict(network.architecture)
        with torch.device("meta"):
            again = create_backbone(arguments.pop("backbone"), **arguments)
        assert again.architecture == network.architecture
        assert {key: value.shape for key, value in again.state_dict().items()} == {
            key: value.shape for key, value in network.state_dict().items()
        }

    def test_holds_every_argument(self):
        network = meta("vgg-16", tail="fc6", dropout=0.5)
        assert network.architecture == {
            "backbone": "vgg-16",
            "in_channels": 3,
            "faithful": True,
            "width": 1.0,
            "norm": "batch",
            "tail": "fc6",
            "dropout": 0.5,
            "stem_stride": None,
        }

    def test_says_that_other_libraries_have_one_form(self):
        with torch.device("meta"):
            network = create_backbone("monai:resnet10", in_channels=1, faithful=True, width=0.25, dropout=0.3)
        told = network.architecture
        assert (told["faithful"], told["width"], told["dropout"], told["norm"]) == (False, 1.0, 0.0, "batch")


def test_unknown_names_and_tails_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="Did you mean 'googlenet'"):
        create_backbone("googelnet", in_channels=1)
    for name in ("googlenet", "bn-inception", "densenet-121", "resnet-50", "efficientnet-lite0", "inception-v1"):
        with pytest.raises(ConfigError, match=rf"{name} has no fc6\. Choose pool, or another backbone\."):
            create_backbone(name, in_channels=1, width=NARROW, tail="fc6")


def test_no_library_is_imported_for_the_papers_networks():
    code = (
        "import sys; from volrec.networks.backbones import create_backbone as c; c('hybrid', in_channels=1, width=.1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit('monai' in sys.modules or 'timm' in sys.modules)"], check=False
    )
    assert done.returncode == 0
