from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks import create, describe
from volrec.networks.cnn3d_ji import HardwiredMaps, Subsampling, lucas_kanade

# Maps of the grey and gradient groups, then of the flow groups: (C, T, H, W).
TABLES = {
    "trecvid": {
        "conv2": ((6, 5, 54, 34), (4, 4, 54, 34)),
        "pool3": ((6, 5, 27, 17), (4, 4, 27, 17)),
        "conv4": ((18, 3, 21, 12), (12, 2, 21, 12)),
        "pool5": ((18, 3, 7, 4), (12, 2, 7, 4)),
    },
    "kth": {
        "conv2": ((6, 7, 72, 54), (4, 6, 72, 54)),
        "pool3": ((6, 7, 24, 18), (4, 6, 24, 18)),
        "conv4": ((18, 5, 18, 12), (12, 4, 18, 12)),
        "pool5": ((18, 5, 6, 4), (12, 4, 6, 4)),
    },
}
CLIPS = {"trecvid": (7, 60, 40), "kth": (9, 80, 60)}
NARROW = 1 / 16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def paper(**options) -> nn.Module:
    return create("cnn3d-ji", **{"num_classes": 3, "faithful": True, **options})


def adapted(**options) -> nn.Module:
    return create("cnn3d-ji", **{"num_classes": 2, "width": NARROW, **options})


def counts(network: nn.Module) -> dict[str, int]:
    """Parameters by the last part of the layer's name, over both towers."""
    found: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        layer = name.removeprefix("still.").removeprefix("motion.").split(".")[0]
        found[layer] = found.get(layer, 0) + parameter.numel()
    return found


def pattern(shift_x: float, shift_y: float, *, frames: int = 3, height: int = 40, width: int = 48) -> torch.Tensor:
    """Return a smooth pattern (1, 1, T, H, W) that moves by so many pixels a frame."""
    t = torch.arange(frames, dtype=torch.float64)[:, None, None]
    y = torch.arange(height, dtype=torch.float64)[:, None] - shift_y * t
    x = torch.arange(width, dtype=torch.float64) - shift_x * t
    waves = torch.sin(0.35 * x + 0.2 * y) + torch.cos(0.25 * x - 0.4 * y + 1) + 0.5 * torch.sin(0.5 * y + 0.1 * x)
    return waves.float()[None, None]


def flow_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gradient_y, gradient_x = torch.gradient(x, dim=(3, 4))
    return lucas_kanade(x, gradient_x, gradient_y)


class TestThePapersNetwork:
    def test_has_the_counted_number_of_weights_in_every_layer(self):
        found = counts(paper())
        assert found == {"conv2": 1480, "pool3": 20, "conv4": 3810, "pool5": 60, "conv6": 279_680, "classifier": 387}
        assert describe("cnn3d-ji")["parameters"] == sum(found.values()) == 285_437
        assert describe("cnn3d-ji", subsampling="mean")["parameters"] == 285_357

    def test_kth_variant_has_its_weights(self):
        found = counts(paper(variant="kth", num_classes=6, subsampling="mean"))
        assert found == {"conv2": 1900, "conv4": 4440, "conv6": 138 * 24 * 128 + 128, "classifier": 774}
        assert describe("cnn3d-ji", variant="kth", clip=CLIPS["kth"], num_classes=6)["parameters"] == 431_258

    @pytest.mark.parametrize("variant", TABLES)
    def test_has_the_maps_of_the_table(self, variant):
        told = describe("cnn3d-ji", variant=variant, clip=CLIPS[variant])["layers"]
        found = {layer["name"].removesuffix(".conv"): tuple(layer["output"]) for layer in told}
        for name, (still, motion) in TABLES[variant].items():
            assert (found[f"still.{name}"], found[f"motion.{name}"]) == (still, motion)
        assert found["conv6"] == (128, 1, 1)

    def test_has_23_maps_a_set_13_a_filter_and_78_in_all(self):
        table = TABLES["trecvid"]
        maps = {name: sum(shape[0] * shape[1] for shape in shapes) for name, shapes in table.items()}
        assert maps == {"conv2": 2 * 23, "pool3": 2 * 23, "conv4": 6 * 13, "pool5": 78}
        assert paper().conv6.conv.in_channels == 78

    def test_costs_15_million_multiply_adds(self):
        by_hand = 46 * 54 * 34 * 147 + 78 * 21 * 12 * 126 + 78 * 28 * 128 + 128 * 3
        assert describe("cnn3d-ji")["gmacs"] * 1e9 == pytest.approx(by_hand)
        assert by_hand / 1e6 == pytest.approx(15.2, abs=0.05)

    @pytest.mark.parametrize(("subsampling", "variant"), [("lenet", "trecvid"), ("linear", "trecvid"), ("mean", "kth")])
    def test_equals_the_paper_group_by_group_in_float64(self, subsampling, variant):
        network = paper(subsampling=subsampling, variant=variant).double().eval()
        for name, parameter in network.named_parameters():
            if name.endswith(("gain", "bias")):
                nn.init.uniform_(parameter, -0.5, 1)
        side3 = 2 if variant == "trecvid" else 3
        x = torch.randn(2, 1, *CLIPS[variant], dtype=torch.float64)
        maps = []
        for tower, hardwired in zip((network.still, network.motion), network.hardwired(x), strict=True):
            for group in range(hardwired.shape[1]):
                for filters in range(2):
                    index = 2 * group + filters
                    c2 = self.conv(hardwired[:, group : group + 1], tower.conv2.conv, index)
                    s3 = self.subsample(c2, side3, tower.pool3, index, subsampling)
                    for third in range(3):
                        c4 = self.conv(s3, tower.conv4.conv, 3 * index + third)
                        s5 = self.subsample(c4, 3, tower.pool5, 3 * index + third, subsampling)
                        maps += list(s5[:, 0].unbind(1))
        every = torch.stack(maps, 1)
        c6 = torch.tanh((every[:, None] * network.conv6.conv.weight).sum((2, 3, 4)) + network.conv6.conv.bias)
        expected = c6 @ network.classifier.weight.T + network.classifier.bias
        torch.testing.assert_close(network(x), expected)

    @staticmethod
    def conv(maps: torch.Tensor, layer: nn.Conv3d, index: int) -> torch.Tensor:
        return torch.tanh(F.conv3d(maps, layer.weight[index : index + 1], layer.bias[index : index + 1]))

    @staticmethod
    def subsample(maps: torch.Tensor, side: int, layer: Subsampling, index: int, kind: str) -> torch.Tensor:
        means = maps.unfold(3, side, side).unfold(4, side, side).mean((5, 6))
        if kind == "mean":
            return means
        means = means * layer.gain[index].item() + layer.bias[index].item()
        return torch.tanh(means) if kind == "lenet" else means

    def test_the_zeros_that_fill_the_flow_are_not_read(self):
        network = paper().eval()
        maps = network.forward_features(torch.randn(1, 1, 7, 60, 40))
        assert maps.shape == (1, 30, 3, 7, 4)
        filled = maps.clone()
        filled[:, 18:, 2] += 5
        assert torch.equal(network.forward_head(filled), network.forward_head(maps))
        for part in ((slice(0, 18), 2), (slice(18, 30), 1)):
            changed = maps.clone()
            changed[:, part[0], part[1]] += 5
            assert not torch.equal(network.forward_head(changed), network.forward_head(maps))

    def test_reads_the_clip_of_its_variant_only(self):
        with pytest.raises(ConfigError, match=r"exactly T x H x W = 7 x 60 x 40, got T x H x W = 7 x 40 x 60"):
            paper()(torch.zeros(1, 1, 7, 40, 60))
        with pytest.raises(ConfigError, match=r"exactly T x H x W = 9 x 80 x 60"):
            paper(variant="kth")(torch.zeros(1, 1, 7, 60, 40))

    def test_weights_start_with_a_variance_of_one_over_the_inputs(self):
        network = paper(width=4.0, num_classes=40)
        for layer in (network.still.conv2.conv, network.still.conv4.conv, network.conv6.conv, network.classifier):
            assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(layer.weight[0].numel()), rel=0.06)
            assert not layer.bias.any()
        network.reset_classifier(50)
        assert network.classifier.weight.std().item() == pytest.approx(1 / math.sqrt(512), rel=0.06)
        assert (network.still.pool3.gain == 1).all()
        assert not network.still.pool3.bias.any()

    @pytest.mark.parametrize("options", [{"activation": "relu"}, {"norm": "batch"}, {"sets": 8}, {"dropout": 0.5}])
    def test_refuses_what_the_paper_does_not_have(self, options):
        with pytest.raises(ConfigError, match="when faithful=True"):
            paper(**options)

    def test_gradients_reach_every_parameter(self):
        for variant, clip in CLIPS.items():
            network = paper(variant=variant, width=NARROW)
            network(torch.randn(2, 1, *clip)).square().sum().backward()
            for name, parameter in network.named_parameters():
                assert parameter.grad.abs().sum() > 0, name


class TestHardwiredMaps:
    def test_are_33_without_a_weight(self):
        layer = HardwiredMaps("lucas-kanade", keep_slices=False)
        still, motion = layer(torch.randn(2, 1, 7, 60, 40))
        assert (still.shape, motion.shape) == ((2, 3, 7, 60, 40), (2, 2, 6, 60, 40))
        assert sum(maps.shape[1] * maps.shape[2] for maps in (still, motion)) == 33
        assert not list(layer.parameters())
        assert not layer.state_dict()

    def test_are_grey_then_gradients_along_x_and_y(self):
        x = torch.randn(1, 2, 3, 9, 7)
        still, _ = HardwiredMaps("lucas-kanade", keep_slices=False)(x)
        assert torch.equal(still[:, :2], x)
        for first, axis in ((2, 4), (4, 3)):
            expected = np.gradient(x.numpy(), axis=axis)
            np.testing.assert_allclose(still[:, first : first + 2].numpy(), expected, atol=1e-6)

    @pytest.mark.parametrize("shift", [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.5, -0.5), (-0.75, 1.25), (1.5, 1.5)])
    def test_flow_of_a_moving_pattern_is_its_displacement(self, shift):
        for field, moved in zip(flow_of(pattern(*shift)), shift, strict=True):
            assert field.shape == (1, 1, 2, 40, 48)
            inside = field[..., 4:-4, 4:-4]
            assert inside.median().item() == pytest.approx(moved, abs=0.12)
            assert (inside - moved).abs().mean() < 0.2

    def test_flow_of_a_still_or_empty_clip_is_zero(self):
        for x in (
            pattern(0, 0),
            torch.randn(1, 1, 1, 20, 20).expand(1, 1, 4, 20, 20),
            torch.full((1, 1, 3, 9, 9), 7.0),
        ):
            for field in flow_of(x):
                assert not field.any()

    def test_flow_does_not_depend_on_the_units_of_the_intensities(self):
        x = pattern(1, -0.5)
        for field, scaled in zip(flow_of(x), flow_of(1000 * x - 200), strict=True):
            torch.testing.assert_close(scaled, field, rtol=1e-3, atol=1e-3)

    def test_flow_solves_the_least_squares_of_each_window(self):
        x = pattern(0.8, -0.4).double() + 0.05 * torch.randn(1, 1, 3, 40, 48, dtype=torch.float64)
        flow_x, flow_y = flow_of(x)
        dy, dx = (g[0, 0].numpy() for g in torch.gradient(x, dim=(3, 4)))
        frames = x[0, 0].numpy()
        at = 1
        mean_x, mean_y = (dx[at] + dx[at + 1]) / 2, (dy[at] + dy[at + 1]) / 2
        for row, column in ((0, 0), (3, 20), (17, 30), (39, 47)):
            window = (slice(max(row - 3, 0), row + 4), slice(max(column - 3, 0), column + 4))
            design = np.stack([mean_x[window].ravel(), mean_y[window].ravel()], 1)
            change = (frames[at + 1] - frames[at])[window].ravel()
            # The ridge is a share of the mean over all windows of the plane; those at the edge hold fewer pixels.
            means = [
                (mean_x**2 + mean_y**2)[max(r - 3, 0) : r + 4, max(c - 3, 0) : c + 4].mean()
                for r in range(40)
                for c in range(48)
            ]
            ridge = 0.005 * np.mean(means) + 1e-8
            normal = design.T @ design / len(design) + ridge * np.eye(2)
            expected = np.clip(np.linalg.solve(normal, -design.T @ change / len(design)), -3, 3)
            found = [flow_x[0, 0, at, row, column].item(), flow_y[0, 0, at, row, column].item()]
            np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_flow_stays_within_half_a_window_when_the_light_changes(self):
        x = pattern(0, 0)
        x[:, :, 1] += 50
        for field in flow_of(x):
            assert (field.min(), field.max()) == (-3, 3)

    def test_differences_are_the_change_of_the_gradients(self):
        x = torch.randn(1, 2, 4, 9, 8)
        _, motion = HardwiredMaps("difference", keep_slices=False)(x)
        expected = np.concatenate([np.diff(np.gradient(x.numpy(), axis=axis), axis=2) for axis in (4, 3)], 1)
        np.testing.assert_allclose(motion.numpy(), expected, atol=1e-6)

    @pytest.mark.parametrize("flow", ["lucas-kanade", "difference"])
    def test_keep_as_many_motion_maps_as_slices(self, flow):
        x = torch.randn(2, 1, 4, 12, 12)
        layer = HardwiredMaps(flow, keep_slices=True)
        _, motion = layer(x)
        _, bare = HardwiredMaps(flow, keep_slices=False)(x)
        assert torch.equal(motion, torch.cat([bare, bare[:, :, -1:]], 2))
        _, alone = layer(x[:, :, :1])
        assert alone.shape == (2, 2, 1, 12, 12)
        assert not alone.any()

    def test_are_computed_in_full_precision_and_given_in_the_clips_own(self):
        x = pattern(1, 0)
        layer = HardwiredMaps("lucas-kanade", keep_slices=True)
        still, motion = layer(x.bfloat16())
        assert still.dtype == motion.dtype == torch.bfloat16
        exact = layer(x.bfloat16().float())[1]
        torch.testing.assert_close(motion.float(), exact, rtol=0.01, atol=0.01)


class TestSubsampling:
    def test_is_gain_times_mean_plus_bias_and_counts_what_is_there_at_the_edge(self):
        x = torch.randn(2, 3, 4, 7, 8)
        layer = Subsampling(3, 3, weights=True)
        nn.init.uniform_(layer.gain)
        nn.init.uniform_(layer.bias)
        out = layer(x)
        assert out.shape == (2, 3, 4, 3, 3)
        for row, column in ((0, 0), (1, 2), (2, 2)):
            mean = x[:, :, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3].mean((3, 4))
            expected = mean * layer.gain.view(3, 1) + layer.bias.view(3, 1)
            torch.testing.assert_close(out[:, :, :, row, column], expected)
        torch.testing.assert_close(Subsampling(3, 3, weights=False)(x)[..., 0, 0], x[..., :3, :3].mean((3, 4)))


class TestAdapted:
    @pytest.mark.parametrize("slices", [1, 2, 3, 7])
    def test_every_slice_counts_and_none_is_lost(self, slices):
        network = adapted().eval()
        x = torch.randn(1, 1, slices, 14, 15)
        same = network(x)
        assert network.forward_features(x).shape[2] == slices
        for index in range(slices):
            changed = x.clone()
            changed[:, :, index] += torch.randn(14, 15)
            assert not torch.equal(network(changed), same), index

    @pytest.mark.parametrize(
        "options",
        [
            {"activation": "tanh"},
            {"subsampling": "lenet"},
            {"subsampling": "mean"},
            {"flow": "difference"},
            {"variant": "kth"},
            {"pooling": "max"},
        ],
    )
    def test_each_option_changes_the_answer(self, options):
        plain, twin, other = adapted().eval(), adapted().eval(), adapted(**options).eval()
        for parameter in (*plain.parameters(), *twin.parameters(), *other.parameters()):
            torch.manual_seed(parameter.numel())  # the same values wherever shapes are the same
            nn.init.normal_(parameter, std=0.3)
        x = torch.randn(2, 1, 5, 26, 28)
        assert torch.equal(twin(x), plain(x))
        assert not torch.allclose(other(x), plain(x))

    @pytest.mark.parametrize("norm", ["none", "batch", "instance", "group"])
    @pytest.mark.parametrize("activation", ["relu", "tanh"])
    @pytest.mark.parametrize("subsampling", ["lenet", "linear"])
    def test_gradients_reach_every_parameter_of_a_narrow_net(self, norm, activation, subsampling):
        network = adapted(norm=norm, activation=activation, subsampling=subsampling)
        network(torch.randn(2, 1, 5, 20, 21)).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_every_channel_has_groups_of_its_own(self):
        one, two = adapted(width=1.0), adapted(width=1.0, in_channels=2)
        for tower, groups in (("still", 3), ("motion", 2)):
            assert one.get_submodule(tower).conv2.conv.groups == groups
            assert two.get_submodule(tower).conv2.conv.groups == 2 * groups
            assert two.get_submodule(tower).conv4.conv.out_channels == 2 * groups * 8 * 3
        assert two.conv6.conv.in_channels == 2 * one.conv6.conv.in_channels == 240

    def test_groups_meet_in_the_last_convolution_only(self):
        network = adapted(in_channels=2, norm="none").eval()
        x = torch.randn(1, 2, 4, 16, 16)
        changed = x.clone()
        changed[:, 1] += torch.randn(4, 16, 16)
        differs = (network.forward_features(changed) != network.forward_features(x)).flatten(2).any(2)[0]
        # grey, gradient-x, gradient-y, flow-x, flow-y: each of the first channel, then of the second
        assert differs.tolist() == ([False] * 3 + [True] * 3) * 5

    def test_sets_and_width_scale_the_filters(self):
        assert adapted(width=1.0).still.conv2.conv.out_channels == 3 * 8
        assert adapted(width=1.0, sets=2).still.conv4.conv.out_channels == 3 * 2 * 3
        half = adapted(width=0.5)
        assert (half.still.conv2.conv.out_channels, half.conv6.conv.out_channels) == (3 * 4, 64)

    def test_kernels_and_means_are_the_papers(self):
        for variant, sides in (("trecvid", (2, 3)), ("kth", (3, 3))):
            network = adapted(variant=variant)
            original = paper(variant=variant)
            for tower in ("still", "motion"):
                mine, theirs = network.get_submodule(tower), original.get_submodule(tower)
                assert mine.conv2.conv.kernel_size == theirs.conv2.conv.kernel_size
                assert mine.conv4.conv.kernel_size == theirs.conv4.conv.kernel_size
                assert (mine.pool3.side, mine.pool5.side) == sides
            assert network.conv6.conv.kernel_size == (3, *original.conv6.conv.kernel_size)

    def test_one_small_clip_is_enough_to_train_on(self):
        for norm in ("batch", "instance", "group", "none"):
            for variant in CLIPS:
                network = adapted(norm=norm, variant=variant)
                logits = network(torch.randn(1, 1, 1, *network.smallest[1:]))
                logits.sum().backward()
                assert logits.isfinite().all()

    def test_a_blank_clip_gives_finite_scores_and_gradients(self):
        network = adapted()
        x = torch.zeros(2, 1, 4, 20, 20, requires_grad=True)
        network(x).sum().backward()
        assert x.grad.isfinite().all()

    def test_global_pooling_sets_the_features(self):
        for pooling, features in (("mean", 16), ("max", 16), ("mean-max", 32)):
            network = adapted(width=0.125, pooling=pooling)
            assert network.classifier.in_features == network.num_features == features

    def test_the_layer_of_the_evidence_gives_maps_of_all_groups(self):
        network = adapted()
        maps = []
        network.get_submodule(network.cam_layer).register_forward_hook(
            lambda module, inputs, output: maps.append(output)
        )
        network(torch.randn(2, 1, 6, 40, 48))
        assert maps[0].shape == (2, 5 * 3, 6, 7, 8)

    def test_bfloat16_autocast_stays_near(self):
        network = adapted().eval()
        x = torch.randn(2, 1, 4, 16, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network(x)
        torch.testing.assert_close(rough.float(), network(x), rtol=0.1, atol=0.01)

    def test_exports_with_any_batch_size(self):
        network = adapted().eval()
        batch = torch.export.Dim("batch", min=2, max=8)
        x = torch.randn(3, 1, 4, 12, 12)
        exported = torch.export.export(network, (x,), dynamic_shapes=({0: batch},)).module()
        y = torch.randn(5, 1, 4, 12, 12)
        torch.testing.assert_close(exported(y), network(y))
