from __future__ import annotations

import pytest
import torch
from torch import nn

from volrec.errors import ConfigError
from volrec.networks import create, describe
from volrec.networks.layers import AdaptivePool3d, CaffeMaxPool3d

TABLE = {
    "conv1a": (64, 16, 112, 112),
    "pool1": (64, 16, 56, 56),
    "conv2a": (128, 16, 56, 56),
    "pool2": (128, 8, 28, 28),
    "conv3a": (256, 8, 28, 28),
    "conv3b": (256, 8, 28, 28),
    "pool3": (256, 4, 14, 14),
    "conv4a": (512, 4, 14, 14),
    "conv4b": (512, 4, 14, 14),
    "pool4": (512, 2, 7, 7),
    "conv5a": (512, 2, 7, 7),
    "conv5b": (512, 2, 7, 7),
    "pool5": (512, 1, 4, 4),
    "fc6": (4096,),
    "fc7": (4096,),
    "fc8": (487,),
}


def layers(**options) -> dict[str, tuple[int, ...]]:
    return {layer["name"]: tuple(layer["output"]) for layer in describe("c3d", **options)["layers"]}


def meta(**options) -> nn.Module:
    with torch.device("meta"):
        return create("c3d", **{"num_classes": 487, "faithful": True, **options})


def caffe_pool(x: torch.Tensor, kernel: tuple[int, int, int], shift: int) -> torch.Tensor:
    """Max pooling by loops in float64: windows from index ``-shift`` on in the plane, the last may hang over."""
    x = x.double()
    channels, *size = x.shape
    starts = [
        list(range(-offset, extent, step)) for extent, step, offset in zip(size, kernel, (0, shift, shift), strict=True)
    ]
    out = torch.empty(channels, *(len(s) for s in starts), dtype=torch.float64)
    for a, t in enumerate(starts[0]):
        for b, h in enumerate(starts[1]):
            for c, w in enumerate(starts[2]):
                window = x[:, t : t + kernel[0], max(h, 0) : h + kernel[1], max(w, 0) : w + kernel[2]]
                out[:, a, b, c] = window.amax((1, 2, 3))
    return out


class TestThePapersNetwork:
    @pytest.mark.parametrize(("classes", "count"), [(487, 79_991_015), (101, 78_409_573)])
    def test_has_the_published_number_of_parameters(self, classes, count):
        assert describe("c3d", num_classes=classes)["parameters"] == count

    def test_costs_the_published_multiply_adds(self):
        assert describe("c3d")["gmacs"] == pytest.approx(38.55, abs=0.01)

    def test_has_the_layers_of_the_table(self):
        found = layers()
        assert {name: found[name] for name in TABLE} == TABLE
        symmetric = layers(pool5="symmetric")
        assert symmetric["pool5"] == TABLE["pool5"]

    def test_has_exactly_the_original_layer_names(self):
        weights = {name.rsplit(".", 1)[0] for name in meta().state_dict()}
        assert weights == {name for name in TABLE if not name.startswith("pool")}

    @pytest.mark.parametrize(
        ("variant", "millions", "gmacs"),
        [
            ("depth-1", 14.34, None),
            ("depth-3", 17.44, 19.3),
            ("depth-5", 20.54, None),
            ("depth-7", 23.65, None),
        ],
    )
    def test_search_nets_have_the_counted_sizes(self, variant, millions, gmacs):
        told = describe("c3d", num_classes=101, variant=variant)
        assert told["parameters"] / 1e6 == pytest.approx(millions, abs=0.006)
        if gmacs:
            assert told["gmacs"] == pytest.approx(gmacs, abs=0.05)

    @pytest.mark.parametrize(
        ("variant", "depths"), [("depth-increasing", [3, 3, 5, 5, 7]), ("depth-decreasing", [7, 5, 5, 3, 3])]
    )
    def test_mixed_search_nets_have_their_kernel_depths(self, variant, depths):
        network = meta(variant=variant)
        assert [network.get_submodule(f"conv{n}a").kernel_size[0] for n in range(1, 6)] == depths

    def test_batch_variant_halves_time_in_pool1_and_normalises_hidden_layers(self):
        network = meta(norm="batch", num_classes=400)
        assert network.pool1.kernel == (2, 2, 2)
        assert isinstance(network.normfc6, nn.BatchNorm1d)
        assert isinstance(network.norm5b, nn.BatchNorm3d)
        assert not hasattr(network, "normfc8")
        assert layers(norm="batch")["pool5"] == TABLE["pool5"]
        assert describe("c3d", norm="batch", num_classes=400)["parameters"] / 1e6 == pytest.approx(79.65, abs=0.1)

    def test_starts_from_the_papers_weights(self):
        torch.manual_seed(0)
        network = create("c3d", num_classes=50, faithful=True, width=0.25)
        assert network.conv3b.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert network.fc6.weight.std().item() == pytest.approx(0.005, rel=0.02)
        assert network.fc7.weight.std().item() == pytest.approx(0.005, rel=0.02)
        assert network.fc8.weight.std().item() == pytest.approx(0.01, rel=0.02)
        biases = {name: set(layer.bias.tolist()) for name, layer in network.named_modules() if hasattr(layer, "bias")}
        assert biases.pop("conv1a") == biases.pop("fc8") == {0.0}
        assert all(values == {1.0} for values in biases.values())

    def test_drops_half_after_fc6_and_fc7(self):
        network = create("c3d", num_classes=2, faithful=True, width=0.05)
        assert (network.drop6.p, network.drop7.p) == (0.5, 0.5)
        dropped = (network.forward_head(torch.rand(8, 26, 1, 4, 4), pre_logits=True) == 0).float().mean()
        assert dropped < 0.5
        seen = {}
        network.fc7.register_forward_hook(lambda module, inputs, output: seen.update(fc7=inputs[0]))
        network.fc8.register_forward_hook(lambda module, inputs, output: seen.update(fc8=inputs[0]))
        network.forward_head(torch.rand(64, 26, 1, 4, 4))
        for name in ("fc7", "fc8"):
            assert 0.4 < (seen[name] == 0).float().mean() < 0.6, name

    def test_reads_its_own_clip_size_only(self):
        network = create("c3d", num_classes=2, faithful=True, width=0.02).eval()
        assert network(torch.zeros(1, 3, 16, 112, 112)).shape == (1, 2)
        with pytest.raises(ConfigError, match=r"exactly T x H x W = 16 x 112 x 112, got T x H x W = 16 x 112 x 110"):
            network(torch.zeros(1, 3, 16, 112, 110))

    @pytest.mark.parametrize(
        "options", [{"norm": "group"}, {"pool5": "none"}, {"head": "gap"}, {"dropout": 0.1}, {"hidden": 64}]
    )
    def test_refuses_what_the_paper_does_not_have(self, options):
        with pytest.raises(ConfigError, match="when faithful=True"):
            meta(**options)


class TestPool5:
    @pytest.mark.parametrize("size", [(2, 7, 7), (2, 8, 8), (1, 5, 6), (3, 1, 1), (4, 9, 4)])
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_equals_a_loop_in_float64(self, size, symmetric):
        x = torch.randn(3, *size)
        pool = CaffeMaxPool3d((2, 2, 2), symmetric=symmetric)
        expected = caffe_pool(x, (2, 2, 2), int(symmetric))
        assert torch.equal(pool(x[None])[0].double(), expected)

    def test_windows_of_the_original_start_at_zero_and_those_of_ports_do_not(self):
        rows = torch.arange(7.0).reshape(1, 1, 1, 7, 1).expand(1, 1, 2, 7, 7)
        assert CaffeMaxPool3d((2, 2, 2))(rows)[0, 0, 0, :, 0].tolist() == [1, 3, 5, 6]
        assert CaffeMaxPool3d((2, 2, 2), symmetric=True)(rows)[0, 0, 0, :, 0].tolist() == [0, 2, 4, 6]

    def test_about_a_fifth_of_the_values_coincide(self):
        torch.manual_seed(0)
        x = torch.randn(1, 512, 2, 7, 7)
        ceil, symmetric = CaffeMaxPool3d((2, 2, 2))(x), CaffeMaxPool3d((2, 2, 2), symmetric=True)(x)
        assert ceil.shape == symmetric.shape == (1, 512, 1, 4, 4)
        assert 0.15 < (ceil == symmetric).float().mean() < 0.30

    def test_the_option_reaches_the_network(self):
        torch.manual_seed(0)
        a = create("c3d", num_classes=2, faithful=True, width=0.02).eval()
        b = create("c3d", num_classes=2, faithful=True, width=0.02, pool5="symmetric").eval()
        b.load_state_dict(a.state_dict())
        x = torch.randn(1, 3, 16, 112, 112)
        assert not torch.allclose(a.forward_features(x), b.forward_features(x))


class TestAdapted:
    def test_pooling_before_the_rectifier_gives_the_same_maps(self):
        torch.manual_seed(0)
        network = create("c3d", num_classes=2, width=0.05)
        x = torch.randn(2, 1, 9, 33, 47)
        y = x
        for number, names in enumerate((("1a",), ("2a",), ("3a", "3b"), ("4a", "4b"), ("5a", "5b")), 1):
            for name in names:
                y = network.get_submodule(f"norm{name}")(network.get_submodule(f"conv{name}")(y)).relu()
            y = network.get_submodule(f"pool{number}")(y)
        torch.testing.assert_close(network.forward_features(x), y)

    def test_every_slice_counts_however_thin_the_stack(self):
        torch.manual_seed(0)
        network = create("c3d", num_classes=2, width=0.25, temporal_strides=[1, 1, 1, 1, 1]).eval()
        plain = create("c3d", num_classes=2, width=0.25).eval()
        for slices in (1, 2, 3, 5, 7):
            x = torch.randn(1, 1, slices, 32, 32)
            assert network.forward_features(x).shape[2] == slices
            for index in range(slices):
                changed = x.clone()
                changed[:, :, index] += 5
                assert not torch.equal(plain(changed), plain(x)), (slices, index)

    def test_temporal_strides_set_the_pools(self):
        network = create("c3d", num_classes=2, width=0.05, temporal_strides=[1, 1, 2, 1, 2])
        assert network.forward_features(torch.randn(1, 1, 12, 32, 32)).shape[2] == 3

    def test_fc_head_takes_the_papers_weights(self):
        torch.manual_seed(0)
        paper = create("c3d", num_classes=2, faithful=True, width=0.02).eval()
        free = create("c3d", num_classes=2, in_channels=3, head="fc", norm="none", width=0.02).eval()
        free.load_state_dict(paper.state_dict())
        x = torch.randn(1, 3, 16, 112, 112)
        assert torch.equal(paper(x), free(x))
        assert free(torch.randn(1, 3, 20, 50, 70)).shape == (1, 2)

    def test_head_options_set_the_layers(self):
        network = create("c3d", num_classes=2, width=0.125, head="gap", hidden=24, pooling="mean-max", dropout=0.4)
        assert network.fc7.in_features == 128
        assert network.fc8.in_features == network.num_features == 24
        assert network.drop7.p == 0.4
        assert create("c3d", num_classes=2, width=0.125, head="fc", hidden=24).fc7.in_features == 24

    def test_instance_statistics_need_more_than_one_position(self):
        network = create("c3d", num_classes=2, width=0.05, norm="instance")
        assert network.smallest == (1, 32, 32)
        assert network(torch.randn(1, 1, 1, 32, 32)).isfinite().all()

    def test_global_pools_are_mean_and_maximum(self):
        x = torch.randn(2, 3, 4, 5, 6)
        mean, most = x.flatten(2).mean(2), x.flatten(2).max(2).values
        torch.testing.assert_close(AdaptivePool3d("mean")(x), mean)
        torch.testing.assert_close(AdaptivePool3d("max")(x), most)
        torch.testing.assert_close(AdaptivePool3d("mean-max")(x), torch.cat([mean, most], 1))
