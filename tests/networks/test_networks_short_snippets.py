from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from volrec.errors import ConfigError
from volrec.networks import create, describe
from volrec.networks.layers import SingleBiasLSTM
from volrec.networks.short_snippets import count_windows, hang_over, slice_windows
from volrec.networks.stacked_lstm import combine_steps, linear_gain

POOLED = ("conv-pooling", "late-pooling", "slow-pooling", "local-pooling")
DESIGNS = (*POOLED, "time-conv")
ALL = (*DESIGNS, "stacked-lstm")
GOOGLENET, ALEXNET = 5_973_552, 3_747_200
FRAMES = {"googlenet": 224, "alexnet": 220}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(name: str, **arguments) -> nn.Module:
    return create(name, **{"num_classes": 3, "width": 1 / 16, **arguments}).eval()


def told(name: str, backbone: str = "googlenet", **arguments) -> dict:
    side = FRAMES[backbone]
    return describe(name, **{"backbone": backbone, "clip": (30, side, side), **arguments})


def outputs(name: str, **arguments) -> dict[str, tuple[int, ...]]:
    return {layer["name"]: tuple(layer["output"]) for layer in told(name, **arguments)["layers"]}


def double_features(network: nn.Module, slices: int) -> torch.Tensor:
    """Features of random stacks, with maps of 3 x 2 where the network keeps maps."""
    features = network.double().forward_features(torch.randn(2, 1, slices, 65, 33, dtype=torch.float64))
    return torch.randn_like(features).relu()


def windows_by_hand(slices: int, window: int, stride: int) -> list[list[int]]:
    """Indices of the slices of every window; those past an end name the end slice."""
    starts = [0]
    while starts[-1] + window < slices:
        starts.append(starts[-1] + stride)
    before = (starts[-1] + window - slices) // 2
    return [[min(max(start - before + k, 0), slices - 1) for k in range(window)] for start in starts]


def pooled_by_hand(stack: list[torch.Tensor], kind: str) -> torch.Tensor:
    out = stack[0].clone()
    for other in stack[1:]:
        out = torch.maximum(out, other) if kind == "max" else out + other
    return out if kind == "max" else out / len(stack)


def connected_by_hand(network: nn.Module, x: torch.Tensor, numbers: range) -> torch.Tensor:
    for number in numbers:
        layer = network.fc[number]
        x = (layer.weight @ x + layer.bias).clamp(min=0)
    return x


class TestThePapersPoolingNetworks:
    @pytest.mark.parametrize("name", DESIGNS)
    def test_have_the_parameters_of_the_table(self, name):
        rest = 4096 * 4097 + 487 * 4097  # the second fc layer and the last one, with biases
        if name == "local-pooling":
            rest += 487 * 4 * 4096  # five windows side by side instead of one
        for backbone, trunk, maps, grid in (("googlenet", GOOGLENET, 1024, 7), ("alexnet", ALEXNET, 256, 6)):
            entering = maps * (36 if backbone == "alexnet" else 1)
            conv = 0
            if name == "time-conv":
                entering = 256 * grid**2
                conv = 256 * (maps * 9 * 10 + 1)
            assert told(name, backbone)["parameters"] == trunk + conv + 4096 * (entering + 1) + rest

    @pytest.mark.parametrize(
        ("name", "parameters", "gmacs"),
        [
            ("conv-pooling", (28_948_503, 60_276_583), (47.5, 31.2)),
            ("late-pooling", (28_948_503, 60_276_583), (48.1, 32.7)),
            ("slow-pooling", (28_948_503, 60_276_583), (47.5, 31.3)),
            ("local-pooling", (36_927_511, 68_255_591), (47.6, 31.4)),
            ("time-conv", (99_727_639, 66_175_079), (53.3, 32.2)),
            ("stacked-lstm", (17_767_959, 76_367_207), (47.8, 33.3)),
        ],
    )
    def test_cost_what_the_docstring_says(self, name, parameters, gmacs):
        for backbone, count, cost in zip(FRAMES, parameters, gmacs, strict=True):
            facts = told(name, backbone)
            assert facts["parameters"] == count
            assert facts["gmacs"] == pytest.approx(cost, abs=0.05)

    def test_have_the_layers_of_the_table(self):
        for name, expected in {
            "conv-pooling": ((4096,), (4096,)),
            "late-pooling": ((4096,), (4096,)),
            "slow-pooling": ((5, 4096), (4096,)),
            "local-pooling": ((5, 4096), (5, 4096)),
            "time-conv": ((4096,), (4096,)),
        }.items():
            found = outputs(name)
            assert (found["fc.0"], found["fc.1"]) == expected
            assert found["slice_maps"] == (1024, 30, 7, 7)
            assert found["classifier"] == (487,)
        assert outputs("time-conv")["time_conv.conv"] == (256, 5, 7, 7)
        assert outputs("conv-pooling", backbone="alexnet")["slice_maps"] == (256, 30, 6, 6)

    def test_kernels_of_the_time_convolution(self):
        with torch.device("meta"):
            conv = create("time-conv", num_classes=2, faithful=True).time_conv.conv
        assert (conv.kernel_size, conv.stride, conv.padding) == ((10, 3, 3), (5, 1, 1), (0, 1, 1))

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("backbone", FRAMES)
    def test_read_frames_of_the_papers_size_only(self, name, backbone):
        network = small(name, faithful=True, backbone=backbone)
        side = FRAMES[backbone]
        slices = 30 if name == "local-pooling" else "any"
        for clip in ((30, side + 1, side), (30, 32, 32)):
            with pytest.raises(ConfigError, match=f"exactly T x H x W = {slices} x {side} x {side}"):
                network(torch.zeros(1, 3, *clip))
        if name == "local-pooling":
            with pytest.raises(ConfigError, match="exactly"):
                network(torch.zeros(1, 3, 31, side, side))
        else:
            with torch.no_grad():
                assert network(torch.randn(1, 3, 2, side, side)).shape == (1, 3)

    def test_start_as_the_docstring_says(self):
        network = small("conv-pooling", faithful=True, width=0.25, num_classes=100)
        assert network.fc[1].weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.02)
        assert network.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not network.fc[0].bias.any()
        assert network.dropout.p == 0.5
        assert small("time-conv", faithful=True).time_conv.conv.weight.std().item() == pytest.approx(
            math.sqrt(2 / (16 * 90)), rel=0.05
        )

    def test_variants_of_the_plane_and_the_fc_layers(self):
        assert told("conv-pooling", hidden=())["parameters"] == GOOGLENET + 487 * 1025
        assert told("conv-pooling", plane="mean")["parameters"] == told("conv-pooling")["parameters"]
        more = told("conv-pooling", plane="keep")["parameters"] - told("conv-pooling")["parameters"]
        assert more == 4096 * 1024 * 48
        with pytest.raises(ConfigError, match=r"'hidden' parameter of slow-pooling must be .* when faithful=True"):
            create("slow-pooling", num_classes=2, faithful=True, hidden=())
        with pytest.raises(ConfigError, match="'backbone' parameter of time-conv must be 'googlenet' or 'alexnet'"):
            create("time-conv", num_classes=2, faithful=True, backbone="vgg-16")
        maps = torch.rand(1, 4, 64, 2, 2)
        after, before = (small("conv-pooling", plane=plane, hidden=()) for plane in ("mean", "mean-first"))
        before.load_state_dict(after.state_dict())
        features = before.embed_maps(maps.flatten(0, 1)).unflatten(0, (1, 4))
        torch.testing.assert_close(after.combine(maps), maps.amax(1).mean((2, 3)))
        torch.testing.assert_close(before.combine(features), maps.mean((3, 4)).amax(1))

    def test_local_pooling_of_other_windows_has_another_last_layer(self):
        assert outputs("local-pooling", window=6, window_stride=6)["fc.1"] == (5, 4096)
        assert outputs("local-pooling", window=3, window_stride=3)["fc.1"] == (10, 4096)

    def test_positions_are_kept_where_fc_layers_read_them(self):
        kept = small("conv-pooling", faithful=True, backbone="alexnet")
        assert kept.plane == "keep"
        maps = torch.rand(1, 2, 16, 6, 6)
        torch.testing.assert_close(kept.flatten(maps), maps.flatten(2))


class TestWindows:
    @pytest.mark.parametrize(("window", "stride"), [(10, 5), (4, 2), (4, 4), (5, 3), (1, 1)])
    def test_are_those_of_a_loop_and_reach_every_slice(self, window, stride):
        for slices in (1, 2, 3, 7, 9, 10, 11, 14, 15, 16, 30):
            x = torch.arange(float(slices))[None, :, None]
            expected = windows_by_hand(slices, window, stride)
            assert slice_windows(x, window, stride)[0, :, 0].tolist() == expected
            assert count_windows(slices, window, stride) == len(expected)
            assert {index for run in expected for index in run} == set(range(slices))

    @pytest.mark.parametrize(("slices", "count"), [(30, 5), (120, 23), (10, 1)])
    def test_of_the_paper_fit_its_clips_without_hanging_over(self, slices, count):
        x = torch.rand(1, slices, 2)
        assert hang_over(x, 10, 5) is x
        assert count_windows(slices, 10, 5) == count

    def test_hang_over_both_ends_alike(self):
        x = torch.arange(3.0)[None]
        assert hang_over(x, 8, 4).tolist() == [[0, 0, 0, 1, 2, 2, 2, 2]]


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("slices", [1, 3, 7, 12])
class TestAgainstLoopsInDoublePrecision:
    def test_conv_pooling(self, pooling, slices):
        network = small("conv-pooling", slice_pooling=pooling, hidden=[64, 32])
        features = double_features(network, slices)
        for clip, found in zip(features, network.aggregate(features, pre_logits=True), strict=True):
            x = pooled_by_hand(list(clip), pooling).mean((1, 2))
            torch.testing.assert_close(found, connected_by_hand(network, x, range(2)))

    def test_late_pooling(self, pooling, slices):
        network = small("late-pooling", slice_pooling=pooling, hidden=[64, 32], plane="keep")
        network.grid = (2, 2)
        network.fc[0] = nn.Linear(64 * 4, 4)
        maps = torch.rand(slices, 64, 4, 2, dtype=torch.float64)
        network.double()
        scored = []
        for one in maps:
            x = torch.stack([one[:, 0:2].mean(1), one[:, 2:4].mean(1)], 1)
            scored.append(connected_by_hand(network, x.flatten(), range(2)))
        found = network.aggregate(network.embed_maps(maps)[None], pre_logits=True)[0]
        torch.testing.assert_close(found, pooled_by_hand(scored, pooling))

    def test_slow_pooling(self, pooling, slices):
        network = small("slow-pooling", slice_pooling=pooling, hidden=[64, 32], window=4, window_stride=3)
        features = double_features(network, slices)
        for clip, found in zip(features, network.aggregate(features, pre_logits=True), strict=True):
            runs = [
                connected_by_hand(network, pooled_by_hand([clip[k] for k in run], pooling).mean((1, 2)), range(1))
                for run in windows_by_hand(slices, 4, 3)
            ]
            torch.testing.assert_close(found, connected_by_hand(network, pooled_by_hand(runs, pooling), range(1, 2)))

    def test_local_pooling(self, pooling, slices):
        network = small("local-pooling", slice_pooling=pooling, hidden=[64, 32], window=3, window_stride=2, towers=4)
        features = double_features(network, slices)
        for clip, found in zip(features, network.aggregate(features, pre_logits=True), strict=True):
            runs = [
                connected_by_hand(network, pooled_by_hand([clip[k] for k in run], pooling).mean((1, 2)), range(2))
                for run in windows_by_hand(slices, 3, 2)
            ]
            towers = []
            for tower in range(4):
                first, last = tower * len(runs) // 4, math.ceil((tower + 1) * len(runs) / 4)
                towers.append(pooled_by_hand(runs[first:last], pooling))
            torch.testing.assert_close(found, torch.cat(towers))

    def test_time_conv(self, pooling, slices):
        network = small("time-conv", slice_pooling=pooling, hidden=[32], window=4, window_stride=3)
        features = double_features(network, slices)
        conv = network.time_conv.conv
        for clip, found in zip(features, network.aggregate(features, pre_logits=True), strict=True):
            runs = []
            for run in windows_by_hand(slices, 4, 3):
                x = conv.bias[:, None, None].expand(-1, *clip.shape[2:])
                for step, index in enumerate(run):
                    x = x + nn.functional.conv2d(clip[index], conv.weight[:, :, step], padding=1)
                runs.append(x.clamp(min=0))
            x = pooled_by_hand(runs, pooling).mean((1, 2))
            torch.testing.assert_close(found, connected_by_hand(network, x, range(1)))


class TestOrderAndLength:
    @pytest.mark.parametrize("name", ["conv-pooling", "late-pooling"])
    def test_the_order_of_slices_does_not_matter_to(self, name):
        network = small(name)
        x = torch.randn(2, 1, 9, 32, 32)
        torch.testing.assert_close(network(x[:, :, torch.randperm(9)]), network(x), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", ["slow-pooling", "local-pooling", "time-conv", "stacked-lstm"])
    def test_the_order_of_slices_matters_to(self, name):
        network = small(name)
        x = torch.randn(2, 1, 9, 32, 32)
        order = torch.tensor([0, 6, 2, 7, 4, 5, 1, 3, 8])
        assert not torch.allclose(network(x[:, :, order]), network(x), rtol=1e-3, atol=1e-6)

    def test_within_a_window_the_order_does_not_matter_to_slow_pooling(self):
        network = small("slow-pooling", window=3, window_stride=3)
        x = torch.randn(2, 1, 9, 32, 32)
        order = torch.tensor([2, 0, 1, 3, 5, 4, 8, 7, 6])
        torch.testing.assert_close(network(x[:, :, order]), network(x), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("pooling", ["max", "mean"])
    @pytest.mark.parametrize("name", DESIGNS)
    def test_a_stack_of_one_repeated_slice_is_scored_as_the_slice(self, name, pooling):
        network = small(name, slice_pooling=pooling).double()
        x = torch.randn(2, 1, 1, 32, 32, dtype=torch.float64)
        for slices in (2, 5, 13):
            torch.testing.assert_close(network(x.expand(-1, -1, slices, -1, -1)), network(x))

    @pytest.mark.parametrize("name", ALL)
    def test_every_slice_is_read(self, name):
        network = small(name, **({} if name == "stacked-lstm" else {"slice_pooling": "mean"}))
        for slices in (1, 2, 6, 11):
            features = network.forward_features(torch.randn(1, 1, slices, 32, 32)).detach().requires_grad_()
            network.aggregate(features).square().sum().backward()
            assert (features.grad.flatten(2).abs().sum(2) > 0).all(), slices

    @pytest.mark.parametrize("name", [name for name in ALL if name != "local-pooling"])
    def test_the_papers_weights_expand_from_single_frames_to_120(self, name):
        single = small(name, faithful=True)
        frames = torch.randn(1, 120, *single.encode_slices(torch.randn(1, 3, 224, 224)).shape[1:])
        expanded = small(name, faithful=True)
        expanded.load_state_dict(single.state_dict())
        logits = [expanded.aggregate(frames[:, :count]) for count in (1, 30, 120)]
        torch.testing.assert_close(logits[0], single.slice_logits(frames)[:, 0])
        assert not torch.allclose(logits[1], logits[2])

    def test_designs_with_the_same_weights_agree_on_a_single_frame(self):
        networks = [small(name, hidden=[64, 64]) for name in ("conv-pooling", "late-pooling", "slow-pooling")]
        x = torch.randn(2, 1, 1, 40, 36)
        for network in networks[1:]:
            network.load_state_dict(networks[0].state_dict())
            torch.testing.assert_close(network(x), networks[0](x))

    def test_towers_of_short_stacks_read_windows_again(self):
        network = small("local-pooling", towers=None)
        assert network.towers == count_windows(30, 4, 2) == 14
        assert small("local-pooling").num_features == 4 * 16
        assert network(torch.randn(1, 1, 2, 32, 32)).shape == (1, 3)


class TestPoolingOptions:
    def test_windows_that_would_lose_slices_are_refused(self):
        for name in ("slow-pooling", "local-pooling", "time-conv"):
            with pytest.raises(ConfigError, match="window_stride=5 is larger than window=4") as caught:
                create(name, num_classes=2, window_stride=5)
            assert "from 1 to 4" in caught.value.remedy

    @pytest.mark.parametrize("name", ["late-pooling", "slow-pooling", "local-pooling"])
    def test_designs_without_their_fc_layer_are_refused(self, name):
        with pytest.raises(ConfigError, match=rf"hidden=\[\] leaves {name} without the layer"):
            create(name, num_classes=2, hidden=[])

    @pytest.mark.parametrize("norm", ["batch", "instance"])
    def test_time_convolution_trains_on_one_clip_whose_last_maps_are_one_position(self, norm):
        network = create("time-conv", num_classes=2, width=1 / 16, norm=norm, backbone="vgg-16")
        assert network.train()(torch.randn(1, 1, 2, 32, 32)).isfinite().all()

    @pytest.mark.parametrize("name", ["conv-pooling", "late-pooling", "slow-pooling", "local-pooling", "time-conv"])
    def test_positions_that_are_kept_export(self, name):
        network = small(name, plane="keep", backbone="vgg-16", width=1 / 32)
        x = torch.randn(1, 1, 5, 33, 40)
        exported = torch.export.export(network, (x,))
        torch.testing.assert_close(exported.module()(x), network(x))


def lstm_by_hand(lstm: nn.LSTM, x: torch.Tensor) -> torch.Tensor:
    """States (T, F) of the last layer for one stack (T, F), step by step; one direction."""
    for layer in range(lstm.num_layers):
        weights = [getattr(lstm, f"{kind}_l{layer}") for kind in ("weight_ih", "weight_hh", "bias_ih")]
        hidden = cell = torch.zeros(lstm.hidden_size, dtype=x.dtype)
        states = []
        for step in x:
            entry, forget, candidate, output = (weights[0] @ step + weights[1] @ hidden + weights[2]).chunk(4)
            cell = forget.sigmoid() * cell + entry.sigmoid() * candidate.tanh()
            hidden = output.sigmoid() * cell.tanh()
            states.append(hidden)
        x = torch.stack(states)
    return x


class TestStackedLSTM:
    @pytest.mark.parametrize(("backbone", "count"), [("googlenet", 11_544_576), ("alexnet", 17_836_032)])
    def test_has_the_published_size(self, backbone, count):
        layers = {layer["name"]: layer for layer in told("stacked-lstm", backbone)["layers"]}
        assert layers["lstm"]["parameters"] == count
        assert tuple(layers["lstm"]["output"]) == (30, 512)
        features = 1024 if backbone == "googlenet" else 4096
        assert count == 4 * 512 * (features + 512 + 1) + 4 * (4 * 512 * (512 + 512 + 1))

    def test_is_that_of_a_loop_in_double_precision(self):
        network = small("stacked-lstm", layers=3, bidirectional=False).double()
        features = torch.randn(2, 7, network.backbone.num_features, dtype=torch.float64)
        for clip, found in zip(features, network.step_logits(features), strict=True):
            torch.testing.assert_close(found, network.classifier(lstm_by_hand(network.lstm, clip)))

    def test_takes_the_weights_of_the_ordinary_lstm(self):
        theirs = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        ours = SingleBiasLSTM(6, 5, num_layers=2, bidirectional=True)
        x = torch.randn(2, 4, 6)
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x)[0], theirs(x)[0])
        twin = copy.deepcopy(ours).double()
        torch.testing.assert_close(twin(x.double())[0].float(), theirs(x)[0])
        assert not any(name.startswith("bias_hh") for name, _ in ours.named_parameters())
        with torch.no_grad():
            twin.weight_ih_l0.zero_()
        assert not torch.allclose(twin(x.double())[0].float(), ours(x)[0])

    def test_its_gain_rises_to_one(self):
        assert linear_gain(4).tolist() == [0.25, 0.5, 0.75, 1.0]
        assert linear_gain(1).tolist() == [1.0]

    def test_logits_are_the_weighted_mean_of_the_logits_of_slices(self):
        network = small("stacked-lstm", readout="linear")
        features = network.forward_features(torch.randn(2, 1, 5, 32, 32))
        steps = network.step_logits(features)
        assert steps.shape == (2, 5, 3)
        weights = torch.tensor([1, 2, 3, 4, 5]) / 15
        torch.testing.assert_close(network.aggregate(features), (steps * weights[None, :, None]).sum(1))

    def test_readouts(self):
        networks = {
            name: small("stacked-lstm", readout=name, bidirectional=False) for name in ("linear", "last", "max", "mean")
        }
        features = torch.randn(2, 5, networks["last"].backbone.num_features)
        state = networks["last"].state_dict()
        for network in networks.values():
            network.load_state_dict(state)
        steps = networks["last"].step_logits(features)
        states = networks["last"].lstm(features)[0]
        torch.testing.assert_close(networks["last"].aggregate(features), steps[:, -1])
        torch.testing.assert_close(networks["mean"].aggregate(features), steps.mean(1))
        torch.testing.assert_close(networks["max"].aggregate(features, pre_logits=True), states.amax(1))
        single = features[:, :1]
        for network in networks.values():
            torch.testing.assert_close(network.aggregate(single), steps[:, 0])

    def test_slices_count_alike_in_the_adapted_form(self):
        assert small("stacked-lstm", faithful=True).readout == "linear"
        network = small("stacked-lstm", width=0.25)
        features = torch.rand(1, 40, network.backbone.num_features, requires_grad=True)
        network.aggregate(features).sum().backward()
        told = features.grad.norm(dim=2)[0]
        assert told[:5].mean() > 0.5 * told[15:25].mean()

    def test_last_state_of_the_second_direction_is_at_the_first_slice(self):
        network = small("stacked-lstm", readout="last")
        features = torch.randn(2, 5, network.backbone.num_features)
        states, cells = network.lstm(features)[0], network.lstm.hidden_size
        expected = torch.cat([states[:, -1, :cells], states[:, 0, cells:]], 1)
        assert torch.equal(network.aggregate(features, pre_logits=True), expected)

    def test_outputs_of_slices_are_combined_as_the_paper_tests(self):
        steps = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)]]])
        torch.testing.assert_close(combine_steps(steps), torch.tensor([[1 / 3, 2 / 3]]))
        torch.testing.assert_close(combine_steps(steps, "mean"), torch.tensor([[0.375, 0.625]]))
        torch.testing.assert_close(combine_steps(steps, "last"), torch.tensor([[0.25, 0.75]]))
        torch.testing.assert_close(combine_steps(steps, "max"), torch.tensor([[0.5, 0.75]]))
        torch.testing.assert_close(combine_steps(steps[..., 1:]), torch.tensor([[2 / 3]]))

    def test_a_slice_knows_those_before_it_only(self):
        features = torch.randn(1, 6, small("stacked-lstm").backbone.num_features)
        changed = features.clone()
        changed[:, 3] += 1
        one, both = small("stacked-lstm", bidirectional=False), small("stacked-lstm")
        same = (one.step_logits(changed) == one.step_logits(features)).all(2)[0]
        assert same.tolist() == [True] * 3 + [False] * 3
        assert not (both.step_logits(changed) == both.step_logits(features)).all(2).any()

    def test_the_papers_form_has_its_layers(self):
        network = small("stacked-lstm", faithful=True, backbone="alexnet")
        assert (network.lstm.num_layers, network.lstm.hidden_size, network.readout) == (5, 32, "linear")
        assert network.backbone.num_features == 256
        assert network.lstm.weight_hh_l4.abs().max() <= 1 / math.sqrt(32)
        assert network.lstm.weight_hh_l4.std().item() == pytest.approx(1 / math.sqrt(3 * 32), rel=0.05)
        adapted = small("stacked-lstm", num_classes=200)
        assert adapted.classifier.weight.std().item() == pytest.approx(1 / math.sqrt(32), rel=0.1)
        assert not network.classifier.bias.any()
        with pytest.raises(ConfigError, match="'layers' parameter of stacked-lstm must be 5 when faithful=True"):
            create("stacked-lstm", num_classes=2, faithful=True, layers=2)

    def test_fc_takes_the_fully_connected_layers_where_the_backbone_has_some(self):
        assert small("stacked-lstm", backbone="cnn-m-2048", features="fc").backbone.num_features == 128
        assert small("stacked-lstm", backbone="cnn-m-2048").backbone.num_features == 32
        assert small("stacked-lstm", features=None).backbone.num_features == 64

    @pytest.mark.parametrize("backbone", ["googlenet", "densenet-121", "monai:resnet10"])
    def test_fc_of_a_backbone_without_any_is_refused(self, backbone):
        with pytest.raises(ConfigError, match=f"{backbone} has no fully connected layer, got features='fc'") as caught:
            small("stacked-lstm", backbone=backbone, features="fc")
        assert "vgg-16" in caught.value.remedy

    def test_forget_gates_are_open_at_first_in_the_adapted_form_only(self):
        for faithful, forget in ((False, 1.0), (True, 0.0)):
            lstm = small("stacked-lstm", faithful=faithful).lstm
            assert lstm.bidirectional is not faithful
            biases = [bias.reshape(4, -1) for name, bias in lstm.named_parameters() if name.startswith("bias")]
            assert len(biases) == (5 if faithful else 4)
            for bias in biases:
                assert bias.unique(dim=1).T.tolist() == [[0.0, forget, 0.0, 0.0]]

    def test_the_loss_of_every_slice_trains_it(self):
        network = small("stacked-lstm", dropout=0.0).train()
        features, labels = torch.randn(4, 6, network.backbone.num_features), torch.tensor([0, 1, 2, 0])
        gain = linear_gain(6)
        losses = []
        optimizer = torch.optim.Adam([*network.lstm.parameters(), *network.classifier.parameters()], lr=0.02)
        for _ in range(20):
            each = nn.functional.cross_entropy(
                network.step_logits(features).transpose(1, 2), labels[:, None].expand(-1, 6), reduction="none"
            )
            loss = (each * gain).sum(1).mean() / gain.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ALL)
def test_runs_in_half_precision(name):
    network = small(name)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert network(torch.randn(1, 1, 5, 33, 32)).isfinite().all()
