from __future__ import annotations

from itertools import product

import pytest
import torch
from monai.visualize import GradCAM
from torch import nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks import create, describe, spec
from volrec.networks.layers import CrossChannelNorm

FIVE = ("single-frame", "early-fusion", "late-fusion", "slow-fusion", "multires")
HEAD = {"fc6": (4096,), "fc7": (4096,), "fc8": (487,)}
SINGLE = {
    "conv1": (96, 54, 54),
    "lrn1": (96, 54, 54),
    "pool1": (96, 27, 27),
    "conv2": (256, 27, 27),
    "lrn2": (256, 27, 27),
    "pool2": (256, 14, 14),
    "conv3": (384, 14, 14),
    "conv4": (384, 14, 14),
    "conv5": (256, 14, 14),
    "pool5": (256, 7, 7),
    **HEAD,
}
TOWER = {
    "conv1": (96, 27, 27),
    "lrn1": (96, 27, 27),
    "pool1": (96, 14, 14),
    "conv2": (256, 14, 14),
    "lrn2": (256, 14, 14),
    "pool2": (256, 7, 7),
    "conv3": (384, 7, 7),
    "conv4": (384, 7, 7),
    "conv5": (256, 7, 7),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def layers(name: str, **options) -> dict[str, tuple[int, ...]]:
    return {layer["name"]: tuple(layer["output"]) for layer in describe(name, **options)["layers"]}


def short(found: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Layers with numbers, without the container they sit in, except ReLU and dropout."""
    named = {name.rpartition(".")[2]: size for name, size in found.items() if name[-1].isdigit()}
    return {name: size for name, size in named.items() if not name.startswith(("relu", "drop"))}


def small(name: str, **arguments) -> nn.Module:
    """A narrow network in eval mode whose layers all pass something on (the paper's weights fade without width)."""
    network = create(name, **{"num_classes": 3, "width": 1 / 16, **arguments}).eval()
    if arguments.get("faithful"):
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.normal_(layer.bias, std=0.1)
    return network


def response_norm(x: torch.Tensor, *, mean: bool) -> torch.Tensor:
    """Local response normalisation by loops in float64, of maps (C, ...)."""
    x = x.double()
    out = torch.empty_like(x)
    for channel in range(len(x)):
        near = [x[other] ** 2 for other in range(channel - 2, channel + 3) if 0 <= other < len(x)]
        total = sum(near) / (5 if mean else 1)
        out[channel] = x[channel] / (2 + 1e-4 * total) ** 0.5
    return out


def ceil_pool(x: torch.Tensor) -> torch.Tensor:
    """2x2 maxima by loops in float64, of maps (C, H, W); the last window may hang over the edge."""
    x = x.double()
    rows, columns = range(0, x.shape[1], 2), range(0, x.shape[2], 2)
    out = torch.empty(len(x), len(rows), len(columns), dtype=torch.float64)
    for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
        out[:, i, j] = x[:, row : row + 2, column : column + 2].amax((1, 2))
    return out


def by_hand(trunk: nn.Module, x: torch.Tensor, *, last_pool: bool) -> torch.Tensor:
    """The paper's convolutions in float64 on one image (C, H, W)."""
    x = x.double()
    for number, (stride, padding) in enumerate([(3, 0), (1, 2), (1, 1), (1, 1), (1, 1)], 1):
        conv = trunk.get_submodule(f"conv{number}")
        x = F.conv2d(x[None], conv.weight.double(), conv.bias.double(), stride, padding)[0].relu()
        if number <= 2:
            x = ceil_pool(response_norm(x, mean=False))
    return (ceil_pool(x) if last_pool else x).flatten()


def head_by_hand(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    fc6, fc7, fc8 = network.hidden.fc6, network.hidden.fc7, network.fc8
    x = F.linear(x, fc6.weight.double(), fc6.bias.double()).relu()
    x = F.linear(x, fc7.weight.double(), fc7.bias.double()).relu()
    return F.linear(x, fc8.weight.double(), fc8.bias.double())


class TestThePapersNetworks:
    @pytest.mark.parametrize(
        ("name", "count", "millions", "gmacs"),
        [
            ("single-frame", 73_908_071, 73.9, 1.23),
            ("early-fusion", 74_221_703, 74.2, 2.14),
            ("late-fusion", 125_288_295, 125.3, 2.43),
            ("slow-fusion", 75_511_751, 75.5, 4.27),
            ("multires", 129_035_495, 129.0, 0.72),
        ],
    )
    def test_have_the_counted_sizes(self, name, count, millions, gmacs):
        told = describe(name)
        assert told["parameters"] == count
        assert told["parameters"] / 1e6 == pytest.approx(millions, abs=0.05)
        assert told["gmacs"] == pytest.approx(gmacs, abs=0.005)

    def test_two_towers_cost_two_trunks_and_one_head(self):
        head = (12544 * 4096 + 4096 * 4096 + 4096 * 487) / 1e9
        doubled = head + 12544 * 4096 / 1e9
        trunk = describe("single-frame")["gmacs"] - head
        assert describe("late-fusion")["gmacs"] == pytest.approx(2 * trunk + doubled)
        tower = (describe("multires")["gmacs"] - doubled) / 2
        assert tower + head == pytest.approx(0.37, abs=0.005)

    def test_have_the_layers_of_the_table(self):
        assert short(layers("single-frame")) == SINGLE
        assert short(layers("late-fusion")) == SINGLE
        towers = layers("multires")
        for tower in ("context", "fovea"):
            assert short({name: size for name, size in towers.items() if name.startswith(tower)}) == TOWER
        assert {name: towers.get(name, towers.get(f"hidden.{name}")) for name in HEAD} == HEAD
        assert not any("pool5" in name for name in towers)

    def test_take_time_in_where_the_table_says(self):
        early = {name: (size[0], 1, *size[1:]) if name not in HEAD else size for name, size in SINGLE.items()}
        assert short(layers("early-fusion")) == early
        times = {"conv1": 4, "lrn1": 4, "pool1": 4, "conv2": 2, "lrn2": 2, "pool2": 2}
        slow = {
            name: (size[0], times.get(name, 1), *size[2:]) if name not in HEAD else size for name, size in early.items()
        }
        assert short(layers("slow-fusion")) == slow
        with torch.device("meta"):
            merged = {name: create(name, num_classes=487, faithful=True).hidden.fc6.in_features for name in FIVE}
        assert merged == {
            "single-frame": 12544,
            "early-fusion": 12544,
            "late-fusion": 2 * 12544,
            "slow-fusion": 12544,
            "multires": 2 * 12544,
        }

    def test_rounding_down_gives_six_positions_at_both_sizes(self):
        single, towers = layers("single-frame", pool_rounding="floor"), layers("multires", pool_rounding="floor")
        assert single["vector.pool5"] == towers["context.conv5"] == towers["fovea.conv5"] == (256, 6, 6)

    def test_start_from_gaussians_of_a_hundredth(self):
        for name in ("single-frame", "slow-fusion"):
            network = create(name, num_classes=50, faithful=True, width=0.25)
            for layer in (
                network.trunk.conv2,
                network.trunk.conv4,
                network.hidden.fc6,
                network.hidden.fc7,
                network.fc8,
            ):
                assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
                assert layer.bias.abs().max() == 0

    def test_drop_half_after_fc6_and_fc7(self):
        network = create("single-frame", num_classes=2, faithful=True, width=1 / 16)
        assert (network.hidden.drop6.p, network.drop7.p) == (0.5, 0.5)
        seen = {}
        network.hidden.fc7.register_forward_hook(lambda module, inputs, output: seen.update(fc7=inputs[0]))
        network.fc8.register_forward_hook(lambda module, inputs, output: seen.update(fc8=inputs[0]))
        nn.init.constant_(network.hidden.fc6.bias, 1.0)
        nn.init.constant_(network.hidden.fc7.bias, 1.0)
        network.aggregate(network.embed_maps(torch.rand(16, 16, 14, 14))[:, None])
        for name in ("fc7", "fc8"):
            assert 0.4 < (seen[name] == 0).float().mean() < 0.6, name

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("single-frame", {"norm": "batch"}),
            ("single-frame", {"head": "gap"}),
            ("single-frame", {"stem_stride": 2}),
            ("single-frame", {"slice_pooling": "max"}),
            ("late-fusion", {"hidden": 256}),
            ("late-fusion", {"towers": 3}),
            ("early-fusion", {"extent": 5}),
            ("slow-fusion", {"temporal_strides": [1, 1, 1]}),
            ("multires", {"norm": "none"}),
        ],
    )
    def test_refuse_what_the_paper_does_not_have(self, name, options):
        with pytest.raises(ConfigError, match="when faithful=True"), torch.device("meta"):
            create(name, num_classes=2, faithful=True, **options)

    @pytest.mark.parametrize("name", FIVE)
    def test_read_their_own_clip_size_only(self, name):
        with torch.device("meta"):
            network = create(name, num_classes=2, faithful=True)
        channels, frames, height, width = spec(name).default_clip
        for size in ((frames + 1, height, width), (frames, height - 1, width)):
            with pytest.raises(ConfigError, match=f"exactly T x H x W = {frames} x {height} x {width}"):
                network(torch.empty(1, channels, *size, device="meta"))


class TestArithmetic:
    @pytest.mark.parametrize("mean", [False, True])
    @pytest.mark.parametrize("shape", [(7, 4, 5), (7, 3, 4, 5), (2, 3, 3)])
    def test_response_normalisation_equals_loops_in_float64(self, mean, shape):
        x = 30 * torch.randn(shape)
        layer = CrossChannelNorm(5, alpha=1e-4, beta=0.5, k=2, mean=mean)
        torch.testing.assert_close(layer(x[None])[0].double(), response_norm(x, mean=mean), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(response_norm(x, mean=True), response_norm(x, mean=False), rtol=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_response_normalisation_holds_large_activations_in_half_precision(self, dtype):
        x = torch.linspace(0, 2000, 7 * 4 * 5, dtype=dtype).view(1, 7, 4, 5)
        layer = CrossChannelNorm(5, alpha=1e-4, beta=0.5, k=2, mean=True)
        found = layer(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), layer(x.float()), rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("size", [(27, 27), (14, 14), (1, 5), (6, 9)])
    def test_pools_equal_loops_in_float64(self, size):
        x = torch.randn(3, *size)
        for name, maps in (("single-frame", x), ("slow-fusion", x[:, None])):
            pool = create(name, num_classes=2, width=1 / 16).trunk.pool1
            assert torch.equal(pool(maps[None])[0].reshape(3, -1).double(), ceil_pool(x).reshape(3, -1))

    def test_single_frame_equals_its_layers_by_hand(self):
        network = small("single-frame", faithful=True)
        x = torch.randn(1, 3, 1, 170, 170)
        expected = head_by_hand(network, by_hand(network.trunk, x[0, :, 0], last_pool=True))
        torch.testing.assert_close(network(x)[0].double(), expected, rtol=1e-4, atol=1e-5)

    def test_late_fusion_equals_its_layers_by_hand_and_reads_the_first_and_the_last_frame(self):
        network = small("late-fusion", faithful=True)
        x = torch.randn(1, 3, 16, 170, 170)
        ends = [by_hand(network.trunk, x[0, :, frame], last_pool=True) for frame in (0, 15)]
        torch.testing.assert_close(network(x)[0].double(), head_by_hand(network, torch.cat(ends)), rtol=1e-4, atol=1e-5)
        between = x.clone()
        between[:, :, 1:15] = torch.randn(1, 3, 14, 170, 170)
        assert torch.equal(network(between), network(x))
        for frame in (0, 15):
            changed = x.clone()
            changed[:, :, frame] += torch.randn(170, 170)
            assert not torch.allclose(network(changed), network(x))

    def test_multires_equals_its_layers_by_hand(self):
        network = small("multires", faithful=True)
        x = torch.randn(1, 3, 1, 178, 178)
        context = x[0, :, 0].unflatten(2, (89, 2)).unflatten(1, (89, 2)).mean((2, 4))
        fovea = x[0, :, 0, 44:133, 44:133]
        towers = [
            by_hand(network.context, context, last_pool=False),
            by_hand(network.fovea, fovea, last_pool=False),
        ]
        assert len(towers[0]) == len(towers[1]) == 16 * 7 * 7
        # fc6 reads the towers side by side: first all maps of the context.
        torch.testing.assert_close(
            network(x)[0].double(), head_by_hand(network, torch.cat(towers)), rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize("name", ["early-fusion", "slow-fusion"])
    def test_a_still_clip_is_scored_as_a_frame_by_kernels_summed_over_time(self, name):
        clip, frame = small(name, faithful=True), small("single-frame", faithful=True)
        frame.load_state_dict(
            {key: value.sum(2) if value.ndim == 5 else value for key, value in clip.state_dict().items()}
        )
        x = torch.randn(1, 3, 1, 170, 170)
        torch.testing.assert_close(clip(x.expand(-1, -1, 10, -1, -1)), frame(x), rtol=1e-4, atol=1e-5)

    def test_slow_fusion_reaches_over_all_ten_frames(self):
        network = small("slow-fusion", faithful=True)
        x = torch.randn(1, 3, 10, 170, 170, requires_grad=True)
        network(x).sum().backward()
        assert (x.grad.abs().sum((0, 1, 3, 4)) > 0).all()


class TestSlices:
    @pytest.mark.parametrize("name", ["single-frame", "multires"])
    @pytest.mark.parametrize("slice_pooling", ["mean", "max"])
    def test_their_order_does_not_matter_to_networks_without_time(self, name, slice_pooling):
        network = small(name, slice_pooling=slice_pooling)
        x = torch.randn(2, 1, 6, 33, 38)
        torch.testing.assert_close(network(x[:, :, torch.randperm(6)]), network(x), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", ["early-fusion", "late-fusion", "slow-fusion"])
    @pytest.mark.parametrize("faithful", [False, True])
    def test_their_order_matters_to_fusion(self, name, faithful):
        network = small(name, faithful=faithful)
        x = torch.randn(2, network.in_channels, *(network.exact or (6, 33, 38)))
        assert (network(x.flip(2)) - network(x)).abs().max() > 1e-3

    @pytest.mark.parametrize("name", ["single-frame", "multires"])
    def test_the_score_is_the_mean_of_their_scores(self, name):
        network = small(name)
        x = torch.randn(2, 1, 5, 33, 38)
        alone = torch.stack([network(x[:, :, [index]]) for index in range(5)])
        torch.testing.assert_close(network(x), alone.mean(0), rtol=1e-5, atol=1e-6)
        features = network.forward_features(x)
        torch.testing.assert_close(network.slice_logits(features).mean(1), network(x), rtol=1e-5, atol=1e-6)
        most = small(name, slice_pooling="max")
        assert torch.equal(most.aggregate(features, pre_logits=True), features.amax(1))

    @pytest.mark.parametrize("name", FIVE)
    def test_each_of_them_counts_in_stacks_of_any_size(self, name):
        network = small(name, width=1 / 8)
        for slices in (1, 2, 3, 7, 13):
            x = torch.randn(1, 1, slices, 32, 32)
            changed = x.repeat(slices, 1, 1, 1, 1)
            changed[range(slices), :, range(slices)] += 5 * torch.randn(32, 32)
            before, after = network(x), network(changed)
            assert ((after - before).abs().amax(1) > 1e-5).all(), slices


class TestAdapted:
    def test_late_fusion_takes_the_maximum_over_each_part(self):
        network = small("late-fusion", hidden=0, towers=3)
        parts = torch.rand(2, 3, network.num_features // 3)
        expected = parts.flatten(1)
        twice = torch.cat([parts, parts - 1], dim=2).reshape(2, 6, -1)  # every part's slice, then a lower one
        assert torch.equal(network.aggregate(twice, pre_logits=True), expected)
        assert torch.equal(network.aggregate(parts, pre_logits=True), expected)
        one = network.aggregate(parts[:, :1], pre_logits=True)
        assert torch.equal(one, parts[:, 0].repeat(1, 3))

    def test_late_fusion_compares_the_parts_in_a_hidden_layer(self):
        network = small("late-fusion")
        assert network.hidden.fc7.in_features == 2 * 16
        assert network.fc8.in_features == network.num_features == 256

    def test_early_fusion_brings_stacks_to_its_extent(self):
        network = small("early-fusion", extent=4)
        x = torch.randn(1, 1, 8, 20, 23)
        slabs = x.unflatten(2, (4, 2))
        torch.testing.assert_close(network(x), network(slabs.mean(3)))
        torch.testing.assert_close(network(x[:, :, :2]), network(x[:, :, [0, 0, 1, 1]]))
        assert network.forward_features(x).shape[2] == 1
        most = small("early-fusion", extent=4, slab_pooling="max")
        torch.testing.assert_close(most(x), most(slabs.amax(3)))

    @pytest.mark.parametrize(
        ("strides", "slices", "left"),
        [(None, 10, 2), (None, 1, 1), (None, 17, 3), ([1, 1, 1], 9, 9), ([1, 2, 1], 9, 5)],
    )
    def test_temporal_strides_set_the_steps_of_slow_fusion(self, strides, slices, left):
        network = small("slow-fusion", temporal_strides=strides)
        assert network.forward_features(torch.randn(1, 1, slices, 16, 16)).shape[2] == left

    def test_slow_fusion_refuses_steps_that_would_lose_slices(self):
        with pytest.raises(ConfigError, match=r"'temporal_strides'.*\[1, 2\]"):
            small("slow-fusion", temporal_strides=[2, 3, 1])

    def test_a_finer_stem_keeps_detail(self):
        sides = {}
        for stride in (1, 2, 3):
            network = small("single-frame", stem_stride=stride)
            sides[stride] = network.encode_maps(torch.randn(1, 1, 48, 48)).shape[2]
        assert sides == {1: 12, 2: 6, 3: 4}

    @pytest.mark.parametrize("name", ["single-frame", "slow-fusion", "multires"])
    def test_no_map_vanishes_at_the_smallest_size(self, name):
        found = set()
        for norm, rounding, stem in product(("batch", "instance"), ("ceil", "floor"), (1, 3)):
            network = small(name, norm=norm, pool_rounding=rounding, stem_stride=stem).train()
            assert network(torch.randn(2, 1, 2, *network.smallest[1:])).isfinite().all()
            found.add(network.smallest[1])
        assert found == ({32, 44} if name == "multires" else {16, 22})

    @pytest.mark.parametrize("name", FIVE)
    @pytest.mark.parametrize("head", ["gap", "fc"])
    def test_one_clip_is_enough_to_train_on(self, name, head):
        network = small(name, head=head).train()
        assert network(torch.randn(1, 1, 3, 40, 44)).isfinite().all()

    def test_pooling_before_the_rectifier_gives_the_same_maps(self):
        network = small("single-frame").train()
        x = y = torch.randn(3, 1, 41, 38)
        for number in range(1, 6):
            y = network.trunk.get_submodule(f"norm{number}")(network.trunk.get_submodule(f"conv{number}")(y)).relu()
            y = network.trunk.get_submodule(f"pool{number}")(y) if number < 3 else y
        torch.testing.assert_close(network.encode_maps(x), y)

    def test_response_normalisation_can_be_kept(self):
        kinds = [type(layer) for layer in small("single-frame", norm="lrn").trunk]
        assert kinds.count(CrossChannelNorm) == 2
        assert nn.BatchNorm2d not in kinds
        assert kinds[:4] == [nn.Conv2d, nn.ReLU, CrossChannelNorm, nn.MaxPool2d]

    def test_head_options_set_the_layers(self):
        gap, fc = small("multires", hidden=24, dropout=0.4), small("early-fusion", head="fc", hidden=24)
        assert (gap.hidden.fc7.in_features, gap.fc8.in_features, gap.drop7.p) == (2 * 16, 24, 0.4)
        assert (fc.hidden.fc6.in_features, fc.hidden.fc7.out_features) == (16 * 49, 24)
        assert small("single-frame", head="fc", pool_rounding="floor").hidden.fc6.in_features == 16 * 36


class TestTwoResolutions:
    def test_context_is_the_mean_of_four_and_the_fovea_the_centre(self):
        views = small("multires").views
        planted = {
            (0, 0): None,
            (43, 90): None,
            (44, 44): (0, 0),
            (132, 132): (88, 88),
            (100, 60): (56, 16),
            (133, 90): None,
        }
        for (row, column), seen in planted.items():
            x = torch.zeros(1, 1, 178, 178)
            x[..., row, column] = 4
            context, fovea = views(x)
            assert context.shape == fovea.shape == (1, 1, 89, 89)
            assert context.nonzero().tolist() == [[0, 0, row // 2, column // 2]]
            assert context.sum() == 1
            assert fovea.nonzero().tolist() == ([] if seen is None else [[0, 0, *seen]])

    @pytest.mark.parametrize("size", [(33, 40), (35, 37), (32, 32)])
    def test_odd_sizes_lose_no_row(self, size):
        x = torch.ones(1, 1, *size)
        context, fovea = small("multires").views(x)
        assert context.shape == fovea.shape == (1, 1, (size[0] + 1) // 2, (size[1] + 1) // 2)
        assert torch.equal(context, torch.ones_like(context))

    def test_towers_have_weights_of_their_own(self):
        network = small("multires")
        assert not torch.equal(network.context.conv1.weight, network.fovea.conv1.weight)

    def test_maps_lie_where_the_evidence_is(self):
        network = small("multires", norm="none", stem_stride=1)
        x = torch.zeros(1, 1, 64, 64)
        still = network.encode_maps(x)
        assert still.shape[2:] == (16, 16)

        def changed(row: int, column: int) -> tuple[torch.Tensor, torch.Tensor]:
            y = x.clone()
            y[..., row : row + 2, column : column + 2] = 50
            heat = (network.encode_maps(y) - still).abs().square()[0].double()
            return heat[:16].sum(0), heat[16:].sum(0)

        for row, column in ((24, 40), (38, 22)):
            for heat in changed(row, column):
                for axis, place in ((1, row), (0, column)):
                    centre = (heat.sum(axis) * torch.arange(16)).sum() / heat.sum()
                    assert abs(4 * (centre + 0.5) - place) < 6
        context, fovea = changed(2, 60)
        assert context.sum() > 0
        assert fovea.sum() == 0

    def test_features_are_those_of_both_towers(self):
        network = small("multires")
        x = torch.randn(2, 1, 50, 67)
        context, fovea = network.views(x)
        expected = torch.cat([network.context(context).mean((2, 3)), network.fovea(fovea).mean((2, 3))], dim=1)
        torch.testing.assert_close(network.encode_slices(x), expected)


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("head", ["gap", "fc"])
def test_grad_cam_finds_the_maps(name, head):
    network = small(name, head=head)
    heat = GradCAM(network, network.cam_layer)(torch.randn(2, 1, 4, 40, 44))
    assert heat.shape == (2, 1, 4, 40, 44)
    assert heat.isfinite().all()
