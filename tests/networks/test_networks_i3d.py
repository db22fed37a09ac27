from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks import create, describe
from volrec.networks.layers import Conv3d, SameMaxPool3d

TABLE = {
    "Conv3d_1a_7x7": (64, 32, 112, 112),
    "MaxPool3d_2a_3x3": (64, 32, 56, 56),
    "Conv3d_2b_1x1": (64, 32, 56, 56),
    "Conv3d_2c_3x3": (192, 32, 56, 56),
    "MaxPool3d_3a_3x3": (192, 32, 28, 28),
    "Mixed_3b": (256, 32, 28, 28),
    "Mixed_3c": (480, 32, 28, 28),
    "MaxPool3d_4a_3x3": (480, 16, 14, 14),
    "Mixed_4b": (512, 16, 14, 14),
    "Mixed_4c": (512, 16, 14, 14),
    "Mixed_4d": (512, 16, 14, 14),
    "Mixed_4e": (528, 16, 14, 14),
    "Mixed_4f": (832, 16, 14, 14),
    "MaxPool3d_5a_2x2": (832, 8, 7, 7),
    "Mixed_5b": (832, 8, 7, 7),
    "Mixed_5c": (1024, 8, 7, 7),
    "average": (1024, 7, 1, 1),
}
# Kernel along T, its stride, and the padding before the first slice of an even number of slices.
ALONG_T = {
    "Conv3d_1a_7x7": (7, 2, 2),
    "MaxPool3d_4a_3x3": (3, 2, 0),
    "MaxPool3d_5a_2x2": (2, 2, 0),
    **dict.fromkeys(("MaxPool3d_2a_3x3", "Conv3d_2b_1x1", "MaxPool3d_3a_3x3"), (1, 1, 0)),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def meta(**options) -> nn.Module:
    with torch.device("meta"):
        return create("i3d", **{"num_classes": 400, "faithful": True, **options}).eval()


def outputs(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What the layers of the table give."""
    seen: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, out, name=name: seen.update({name: out})
        )
        for name in TABLE
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return seen


def same_2d(x: Tensor, kernel: int, stride: int, value: float) -> Tensor:
    """Pad an even or odd plane as TensorFlow does: the odd pixel to the right and below."""
    pads: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max(kernel - (size % stride or stride), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


class Unit2d(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, bias=False)
        self.norm = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(same_2d(x, self.conv.kernel_size[0], self.conv.stride[0], 0.0))).relu()


class Block2d(nn.Module):
    def __init__(self, channels: int, outs: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit2d(channels, outs[0], 1)
        self.b1a, self.b1b = Unit2d(channels, outs[1], 1), Unit2d(outs[1], outs[2], 3)
        self.b2a, self.b2b = Unit2d(channels, outs[3], 1), Unit2d(outs[3], outs[4], 3)
        self.b3b = Unit2d(channels, outs[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(same_2d(x, 3, 1, -torch.inf), 3, 1)
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class Inception2d(nn.Module):
    """Inception-v1 with batch normalisation at an eighth of its channels, written for this test alone."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit2d(channels, 8, 7, 2)
        self.Conv3d_2b_1x1 = Unit2d(8, 8, 1)
        self.Conv3d_2c_3x3 = Unit2d(8, 24, 3)
        self.Mixed_3b = Block2d(24, (8, 12, 16, 2, 4, 4))
        self.Mixed_3c = Block2d(32, (16, 16, 24, 4, 12, 8))
        self.Mixed_4b = Block2d(60, (24, 12, 26, 2, 6, 8))
        self.Mixed_4c = Block2d(64, (20, 14, 28, 3, 8, 8))
        self.Mixed_4d = Block2d(64, (16, 16, 32, 3, 8, 8))
        self.Mixed_4e = Block2d(64, (14, 18, 36, 4, 8, 8))
        self.Mixed_4f = Block2d(66, (32, 20, 40, 4, 16, 16))
        self.Mixed_5b = Block2d(104, (32, 20, 40, 4, 16, 16))
        self.Mixed_5c = Block2d(104, (48, 24, 48, 6, 16, 16))
        self.classifier = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps by endpoint, and the logits."""
        seen = {}
        for name in TABLE:
            if name.startswith("MaxPool3d"):
                kernel = int(name[-1])
                x = F.max_pool2d(same_2d(x, kernel, 2, -torch.inf), kernel, 2)
            elif name != "average":
                x = self.get_submodule(name)(x)
            seen[name] = x
        seen["logits"] = self.classifier(x.mean((2, 3)))
        return seen


def inflated(plane: Inception2d, **options) -> nn.Module:
    """The 3D network of a 2D one: each kernel repeated N times along T and divided by N."""
    network = create("i3d", num_classes=5, in_channels=2, width=0.125, **options).eval()
    state = network.state_dict()
    for name, value in plane.state_dict().items():
        if value.ndim == 4:
            depth = state[name].shape[2]
            value = value.unsqueeze(2).repeat(1, 1, depth, 1, 1) / depth
        state[name] = value
    network.load_state_dict(state)
    return network


@pytest.fixture(scope="module")
def plane() -> Inception2d:
    torch.manual_seed(3)
    network = Inception2d(2, 5).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.8, 1.6)
            nn.init.uniform_(layer.bias, -0.1, 0.3)
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.05, 0.3)
    return network


class TestBoringVideo:
    """A video of one repeated frame through an inflated network is that frame through the 2D network."""

    SIZE = (37, 46)

    @pytest.mark.parametrize("slices", [1, 2, 5, 12])
    def test_repeating_the_ends_gives_the_2d_network_at_every_step(self, plane, slices):
        network = inflated(plane, temporal_padding="replicate")
        frame = torch.randn(1, 2, *self.SIZE)
        with torch.no_grad():
            expected = plane(frame)
            video = frame.unsqueeze(2).repeat(1, 1, slices, 1, 1)
            found = outputs(network, video)
            for name in TABLE:
                if name != "average":
                    assert expected[name].std() > 0.01, "the 2D network has died"
                    both = found[name].transpose(1, 2)[0], expected[name].expand(found[name].shape[2], -1, -1, -1)
                    torch.testing.assert_close(
                        *both, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
                    )
            torch.testing.assert_close(network(video), expected["logits"], rtol=1e-3, atol=1e-4)

    def test_padding_with_zeros_gives_it_at_interior_steps_only(self, plane):
        slices = 128
        network = inflated(plane)
        frame = torch.randn(1, 2, *self.SIZE)
        with torch.no_grad():
            expected = plane(frame)
        found = outputs(network, frame.unsqueeze(2).repeat(1, 1, slices, 1, 1))
        # First slice that step 0 reads, slices a step reads, slices from one step to the next.
        first, reach, jump = 0, 1, 1
        for name in TABLE:
            if name == "average":
                continue
            kernel, stride, before = ALONG_T.get(name, (3, 1, 1))
            first, reach, jump = first - before * jump, reach + (kernel - 1) * jump, jump * stride
            maps = found[name][0].transpose(0, 1)
            assert len(maps) == slices // jump
            inside = [i for i in range(len(maps)) if first + i * jump >= 0 and first + i * jump + reach <= slices]
            assert inside, name
            torch.testing.assert_close(
                maps[inside], expected[name].expand(len(inside), -1, -1, -1), rtol=1e-3, atol=1e-4
            )
            assert not torch.allclose(maps[0], expected[name][0], rtol=1e-2, atol=1e-2), name
        assert (reach, jump) == (99, 8)


class TestThePapersNetwork:
    @pytest.mark.parametrize(
        ("options", "count"),
        [
            ({}, 12_697_264),
            ({"in_channels": 2}, 12_675_312),
            ({"bn_scale": False}, 12_689_984),
            ({"bn_scale": False, "in_channels": 2}, 12_668_032),
        ],
    )
    def test_has_the_counted_number_of_parameters(self, options, count):
        network = meta(**options)
        assert sum(parameter.numel() for parameter in network.parameters()) == count
        channels = sum(layer.num_features for layer in network.modules() if isinstance(layer, nn.BatchNorm3d))
        assert channels == 7280

    @pytest.mark.parametrize(("frames", "gmacs"), [(16, 27.79), (32, 55.58), (64, 111.15), (250, 434.93)])
    def test_costs_the_counted_multiply_adds(self, frames, gmacs):
        assert describe("i3d", clip=(frames, 224, 224))["gmacs"] == pytest.approx(gmacs, abs=0.01)

    def test_has_the_layers_of_the_table(self):
        found = outputs(meta(), torch.empty(1, 3, 64, 224, 224, device="meta"))
        assert {name: tuple(out.shape[1:]) for name, out in found.items()} == TABLE

    def test_has_the_kernels_of_the_table(self):
        network = meta()
        found = {}
        for name in TABLE:
            layer = network.get_submodule(name)
            layer = getattr(layer, "conv", layer)
            if hasattr(layer, "kernel_size") and name != "average":
                found[name] = (layer.kernel_size, layer.stride)
        assert found == {
            "Conv3d_1a_7x7": ((7, 7, 7), (2, 2, 2)),
            "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": ((1, 1, 1), (1, 1, 1)),
            "Conv3d_2c_3x3": ((3, 3, 3), (1, 1, 1)),
            "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
            "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
            "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
        }
        for name in TABLE:
            if name.startswith("Mixed"):
                block = network.get_submodule(name)
                assert (block.b3a.kernel_size, block.b3a.stride) == ((3, 3, 3), (1, 1, 1))
                branches = (block.b0, block.b1a, block.b1b, block.b2a, block.b2b, block.b3b)
                assert [branch.conv.kernel_size[0] for branch in branches] == [1, 1, 3, 1, 3, 1]

    @pytest.mark.parametrize(("frames", "steps"), [(9, 1), (16, 1), (17, 2), (64, 7), (248, 30), (250, 31)])
    def test_gives_logits_of_every_step(self, frames, steps):
        logits = meta().time_logits(torch.empty(1, 3, frames, 224, 224, device="meta"))
        assert logits.shape == (1, steps, 400)

    def test_the_logits_are_the_mean_of_those_of_the_steps(self):
        network = create("i3d", num_classes=6, faithful=True, width=1 / 16).eval()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm3d):  # keep so narrow a network alive
                nn.init.constant_(layer.bias, 0.2)
        x = torch.randn(1, 3, 25, 224, 224)
        with torch.no_grad():
            features = network.forward_features(x)
            steps = network.time_logits(x)
            torch.testing.assert_close(steps.mean(1), network(x))
            windows = [features[:, :, t : t + 2].mean((2, 3, 4)) for t in range(3)]
            torch.testing.assert_close(steps, torch.stack([network.classifier(window) for window in windows], 1))
        assert not torch.allclose(steps[:, 0], steps[:, 2], rtol=0.01)

    def test_names_the_smallest_number_of_frames(self):
        network = meta()
        network(torch.empty(1, 3, 9, 224, 224, device="meta"))
        for run in (network, network.time_logits):
            with pytest.raises(ConfigError, match="from T x H x W = 9 x 224 x 224 up, got T x H x W = 8 x 224 x 224"):
                run(torch.empty(1, 3, 8, 224, 224, device="meta"))
            with pytest.raises(
                ConfigError, match="exactly T x H x W = any x 224 x 224, got T x H x W = 16 x 224 x 256"
            ):
                run(torch.empty(1, 3, 16, 224, 256, device="meta"))

    def test_every_convolution_but_the_last_is_normalised_and_has_no_bias(self):
        network = meta()
        convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv3d)]
        norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm3d)]
        assert len(convolutions) == len(norms) == 57
        assert all(layer.bias is None for layer in convolutions)
        assert {layer.eps for layer in norms} == {0.001}
        assert network.classifier.bias.shape == (400,)

    def test_names_differ_from_those_of_ports_by_a_plain_renaming(self):
        convolutions = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
        convolutions += [
            f"{block}.{branch}"
            for block in TABLE
            if block.startswith("Mixed")
            for branch in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
        ]
        ports = {f"{name}.conv3d.weight" for name in convolutions}
        ports |= {
            f"{name}.bn.{kind}" for name in convolutions for kind in ("weight", "bias", "running_mean", "running_var")
        }
        ports |= {"logits.conv3d.weight", "logits.conv3d.bias"}
        renamed = {
            name.replace("conv3d.", "conv.").replace(".bn.", ".norm.").replace("logits.conv.", "classifier.")
            for name in ports
        }
        for bn_scale in (True, False):
            own = {name for name in meta(bn_scale=bn_scale).state_dict() if not name.endswith("num_batches_tracked")}
            assert own == renamed

    def test_drops_half_of_the_features_of_every_step(self):
        network = create("i3d", num_classes=2, faithful=True, width=0.25)
        assert network.dropout.p == 0.5
        pooled = network.forward_head(torch.ones(64, 256, 4, 7, 7), pre_logits=True)
        shares = (pooled * 3 / 2).round(decimals=3)
        assert set(shares.unique().tolist()) == {0.0, 1.0, 2.0, 3.0}
        assert pooled.mean().item() == pytest.approx(1, abs=0.02)

    def test_starts_from_cut_gaussians(self):
        network = create("i3d", num_classes=50, faithful=True, width=0.5)
        # The deviation of a Gaussian cut at two deviations is 0.880 of the uncut one.
        for layer in (network.Conv3d_2c_3x3.conv, network.Mixed_5c.b1b.conv, network.classifier):
            limit = 1 / layer.weight[0].numel() ** 0.5
            assert layer.weight.std().item() == pytest.approx(0.880 * limit, rel=0.03)
            assert layer.weight.abs().max() <= 2 * limit
        assert not network.classifier.bias.any()
        network.reset_classifier(80)
        assert network.classifier.weight.std().item() == pytest.approx(0.880 / 512**0.5, rel=0.03)

    @pytest.mark.parametrize(
        "options",
        [
            {"norm": "group"},
            {"temporal_strides": [1, 1, 1, 1, 1]},
            {"stem_stride": 2},
            {"temporal_padding": "replicate"},
            {"pooling": "max"},
            {"dropout": 0.1},
        ],
    )
    def test_refuses_what_the_paper_does_not_have(self, options):
        with pytest.raises(ConfigError, match="when faithful=True"):
            meta(**options)


class TestScale:
    def test_weights_of_either_form_load_into_the_other(self):
        x = torch.randn(1, 1, 3, 40, 40)
        with_scale = create("i3d", num_classes=2, width=0.1).eval()
        nn.init.uniform_(with_scale.Mixed_3b.b0.norm.weight, 0.5, 2)
        without = create("i3d", num_classes=2, width=0.1, bn_scale=False).eval()
        without.load_state_dict(with_scale.state_dict())
        torch.testing.assert_close(without(x), with_scale(x))
        torch.testing.assert_close(copy.deepcopy(without)(x), with_scale(x))

    @pytest.mark.parametrize("norm", ["batch", "instance", "group"])
    def test_without_it_only_the_offset_learns(self, norm):
        network = create("i3d", num_classes=2, width=0.1, norm=norm, bn_scale=False)
        network(torch.randn(2, 1, 2, 36, 36)).sum().backward()
        learned = {name.rsplit(".", 1)[1] for name, _ in network.named_parameters() if ".norm." in name}
        assert learned == {"bias"}
        assert all(parameter.grad is not None for parameter in network.parameters())

    def test_needs_a_normalisation(self):
        with pytest.raises(ConfigError, match="bn_scale=False leaves out the scale of a normalisation"):
            create("i3d", num_classes=2, norm="none", bn_scale=False)


class TestAdapted:
    def test_every_slice_counts_whatever_the_strides(self):
        for strides in (None, [1, 1, 1, 1, 1], [4, 4, 4, 4, 4]):
            network = create("i3d", num_classes=2, width=0.125, temporal_strides=strides, pooling="mean").eval()
            for slices in (1, 2, 7):
                x = torch.randn(1, 1, slices, 32, 32)
                before = network(x)
                for index in range(slices):
                    changed = x.clone()
                    changed[:, :, index] += 5
                    assert not torch.equal(network(changed), before), (strides, slices, index)

    def test_windows_of_pools_cover_their_strides(self):
        network = create("i3d", num_classes=2, width=0.05, temporal_strides=[1, 2, 1, 4, 3])
        pools = [network.get_submodule(name) for name in TABLE if name.startswith("MaxPool")]
        assert [pool.stride for pool in pools] == [(2, 2, 2), (1, 2, 2), (4, 2, 2), (3, 2, 2)]
        assert [pool.kernel_size for pool in pools] == [(2, 3, 3), (1, 3, 3), (4, 3, 3), (3, 2, 2)]
        assert network.forward_features(torch.randn(1, 1, 25, 32, 32)).shape[2] == 2

    def test_all_ones_keep_every_slice(self):
        network = create("i3d", num_classes=2, width=0.05, temporal_strides=[1, 1, 1, 1, 1]).eval()
        x = torch.randn(2, 1, 5, 32, 32)
        assert network.forward_features(x).shape[2] == 5
        steps = network.time_logits(x)
        assert steps.shape == (2, 5, 2)
        torch.testing.assert_close(steps.mean(1), network(x))

    @pytest.mark.parametrize(("stride", "parts"), [(4, (2, 2)), (2, (2, 1)), (1, (1, 1))])
    def test_stem_stride_keeps_detail_and_shrinks_the_smallest_canvas(self, stride, parts):
        network = create("i3d", num_classes=2, width=0.05, stem_stride=stride).eval()
        assert (network.Conv3d_1a_7x7.conv.stride[1:], network.MaxPool3d_2a_3x3.stride[1:]) == tuple(
            (part, part) for part in parts
        )
        assert network.smallest == (1, 8 * stride, 8 * stride)
        assert network(torch.randn(1, 1, *network.smallest)).isfinite().all()
        assert network.forward_features(torch.randn(1, 1, 1, 48, 49)).shape[3:] == (
            -(-48 // (8 * stride)),
            -(-49 // (8 * stride)),
        )

    def test_refuses_a_stem_stride_between(self):
        with pytest.raises(ConfigError, match=r"'stem_stride' parameter of i3d must be 1, 2 or 4\. Got 3 instead"):
            create("i3d", num_classes=2, stem_stride=3)

    def test_a_single_clip_above_the_smallest_size_trains(self):
        network = create("i3d", num_classes=2, width=0.05)
        assert network(torch.randn(1, 1, 1, 33, 32)).isfinite().all()

    def test_instance_statistics_need_more_than_one_position(self):
        network = create("i3d", num_classes=2, width=0.05, norm="instance")
        assert network.smallest == (1, 33, 33)
        assert network(torch.randn(1, 1, 1, 33, 33)).isfinite().all()

    def test_head_options_set_the_layers(self):
        network = create("i3d", num_classes=2, width=0.125, pooling="mean-max", dropout=0.4).eval()
        assert network.num_features == network.classifier.in_features == 256
        assert network.dropout.p == 0.4
        x = torch.randn(2, 1, 9, 40, 40)
        features = network.forward_features(x)
        pooled = network.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, torch.cat([features.mean((2, 3, 4)), features.amax((2, 3, 4))], 1))
        assert network.time_logits(x).shape == (2, 2, 2)

    def test_padding_along_time_is_what_the_option_says(self):
        x = torch.ones(1, 1, 6, 9, 9)
        zero, repeated = (
            create("i3d", num_classes=2, width=0.05, temporal_padding=kind).Conv3d_1a_7x7.conv
            for kind in ("zero", "replicate")
        )
        repeated.load_state_dict(zero.state_dict())
        full = zero.weight.sum((1, 2, 3, 4))
        assert not torch.allclose(zero(x)[0, :, 0, 2, 2], full, atol=1e-4)
        for step in range(3):
            torch.testing.assert_close(repeated(x)[0, :, step, 2, 2], full, rtol=1e-4, atol=1e-5)
        # In the plane both pad with zeros.
        assert not torch.allclose(repeated(x)[0, :, 1, 0, 0], full, atol=1e-4)

    def test_pools_give_the_same_in_either_layout(self):
        pool = create("i3d", num_classes=2, width=0.05).Mixed_3b.b3a
        x = torch.randn(2, 5, 4, 7, 6)
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            mine, plain = (x.clone(memory_format=layout).requires_grad_() for _ in range(2))
            out, expected = pool(mine), SameMaxPool3d(3, 1)(plain)
            assert torch.equal(out, expected)
            out.square().sum().backward()
            expected.square().sum().backward()
            torch.testing.assert_close(mine.grad, plain.grad)


@pytest.mark.parametrize("slices", [3, 5, 7])
def test_few_slices_give_the_numbers_and_gradients_of_padded_ones(slices):
    # torch's own convolution of 5 slices by a kernel of 7 writes past its memory (tests/performance/crash_onednn.py).
    layer = Conv3d(1, 4, 7, stride=2, padding=3).double()
    x = torch.randn(2, 1, slices, 9, 8, dtype=torch.float64, requires_grad=True)
    again = x.detach().clone().requires_grad_()
    found = layer(x)
    padded = nn.functional.pad(again, (3,) * 6)
    expected = nn.functional.conv3d(padded, layer.weight, layer.bias, 2)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad)
    network = create("i3d", num_classes=2, width=1 / 16)
    network(torch.randn(2, 1, slices, 32, 32)).sum().backward()
