from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import DenseNet121, DenseNet169
from torch import nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks import create, describe
from volrec.networks.layers.dense import DenseBlock, MeanPool3d, TemporalTransition, Transition

NAMES = ("densenet3d-121", "densenet3d-169", "t3d-121", "t3d-169")

TABLE = {
    "densenet3d-121": {
        "features.conv0": (64, 16, 112, 112),
        "features.pool0": (64, 16, 56, 56),
        "features.transition1.norm": (256, 16, 56, 56),
        "features.transition1.pool": (128, 8, 28, 28),
        "features.transition2.norm": (512, 8, 28, 28),
        "features.transition2.pool": (256, 4, 14, 14),
        "features.transition3.norm": (1024, 4, 14, 14),
        "features.transition3.pool": (512, 2, 7, 7),
        "features.relu5": (1024, 2, 7, 7),
        "classifier": (400,),
    },
    "t3d-121": {
        "features.conv0": (64, 16, 112, 112),
        "features.pool0": (64, 16, 56, 56),
        "features.temporal1.branch1.norm": (256, 16, 56, 56),
        "features.temporal1.branch3.conv": (128, 16, 56, 56),
        "features.denseblock2.denselayer1.norm1": (384, 8, 28, 28),
        "features.temporal2.branch1.norm": (768, 8, 28, 28),
        "features.denseblock3.denselayer1.norm1": (384, 4, 14, 14),
        "features.temporal3.branch1.norm": (1152, 4, 14, 14),
        "features.denseblock4.denselayer1.norm1": (384, 2, 7, 7),
        "features.relu5": (896, 2, 7, 7),
        "classifier": (400,),
    },
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return create(name, **{"num_classes": 400, "faithful": True, **options})


def small(name: str, **options) -> nn.Module:
    return create(name, **{"num_classes": 2, "width": 1 / 16, **options})


def ordinary(network: nn.Module) -> nn.Module:
    """Give normalisations numbers as after some training: none is the identity."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm3d):
            for values, low, high in (
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.5, 0.5),
                (layer.running_mean, -0.5, 0.5),
                (layer.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(values, low, high)
    return network


class TestThePapersNetworks:
    @pytest.mark.parametrize(
        ("name", "options", "millions", "gmacs"),
        [
            ("densenet3d-121", {}, 11.658896, 62.5),
            ("densenet3d-121", {"stem": "released"}, 11.658896, 34.1),
            ("densenet3d-169", {}, 19.214992, 64.9),
            ("densenet3d-169", {"stem": "released"}, 19.214992, 35.3),
            ("t3d-121", {}, 29.88, 244),
            ("t3d-121", {"transition": "full"}, 30.32, 253),
            ("t3d-121", {"transition": "half"}, 25.58, 235),
            ("t3d-121", {"stem": "released"}, 29.88, 125),
            ("t3d-169", {}, 38.52, 248),
            ("t3d-169", {"transition": "full"}, 38.96, 256),
            ("t3d-169", {"transition": "half"}, 33.62, 238),
            ("t3d-169", {"stem": "released"}, 38.52, 127),
        ],
    )
    def test_have_the_counted_sizes_and_multiply_adds(self, name, options, millions, gmacs):
        told = describe(name, **options)
        assert told["parameters"] / 1e6 == pytest.approx(millions, abs=1e-7 if name.startswith("dense") else 0.005)
        assert told["gmacs"] == pytest.approx(gmacs, abs=0.06 if name.startswith("dense") else 0.5)

    @pytest.mark.parametrize("name", TABLE)
    def test_have_the_layers_of_the_table(self, name):
        found = {layer["name"]: tuple(layer["output"]) for layer in describe(name)["layers"]}
        assert {layer: found[layer] for layer in TABLE[name]} == TABLE[name]

    def test_end_in_the_counted_channels(self):
        assert [meta(name).num_features for name in NAMES] == [1024, 1664, 896, 1408]

    def test_have_the_names_of_dense_net_checkpoints_and_no_bias_in_convolutions(self):
        names = set(meta("densenet3d-121").state_dict())
        norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        layer = "features.denseblock1.denselayer1"
        expected = {f"{layer}.{part}.weight" for part in ("conv1", "conv2")}
        expected |= {f"{layer}.{part}.{entry}" for part in ("norm1", "norm2") for entry in norm}
        assert {name for name in names if name.startswith(f"{layer}.")} == expected
        assert {name.split(".")[1] for name in names if name.startswith("features.")} == {
            "conv0",
            "norm0",
            *(f"denseblock{number}" for number in range(1, 5)),
            *(f"transition{number}" for number in range(1, 4)),
            "norm5",
        }
        assert {name for name in names if not name.startswith("features.")} == {"classifier.weight", "classifier.bias"}

    def test_the_stem_of_hara_keeps_the_slices_until_its_pool(self):
        network = meta("densenet3d-121", stem="hara")
        sizes = {}
        for name in ("conv0", "pool0", "transition1.pool", "transition2.pool", "transition3.pool", "relu5"):
            network.features.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: sizes.update({name: tuple(output.shape[2:])})
            )
        assert network(torch.empty(1, 3, 16, 112, 112, device="meta")).shape == (1, 400)
        assert sizes == {
            "conv0": (16, 56, 56),
            "pool0": (8, 28, 28),
            "transition1.pool": (4, 14, 14),
            "transition2.pool": (2, 7, 7),
            "transition3.pool": (1, 3, 3),
            "relu5": (1, 3, 3),
        }
        conv, pool = network.features.conv0, network.features.pool0
        assert (conv.kernel_size, conv.stride, conv.padding) == ((7, 7, 7), (1, 2, 2), (3, 3, 3))
        assert (pool.kernel_size, pool.stride, pool.padding) == ((3, 3, 3), (2, 2, 2), (1, 1, 1))
        # Seven slices of kernel in conv0 where the stem of the authors has three.
        assert sum(p.numel() for p in network.parameters()) == 11_658_896 + 64 * 3 * 4 * 49

    @pytest.mark.parametrize(("stem", "fewest"), [("paper", 15), ("released", 29)])
    def test_refuse_clips_of_which_no_slice_would_be_left(self, stem, fewest):
        # Counted in the layers themselves: as many slices as leave one behind the third pool.
        network = small("densenet3d-121", faithful=True, stem=stem, in_channels=1).eval()
        assert network.smallest == (fewest, 224, 224)
        thin = nn.Sequential(*(layer for name, layer in network.features.named_children() if name[:4] != "norm"))
        assert thin(torch.zeros(1, 1, fewest, 32, 32)).shape[2] == 1
        with pytest.raises(RuntimeError, match=r"too small|smaller than"):
            thin(torch.zeros(1, 1, fewest - 1, 32, 32))
        if stem == "released":
            with pytest.raises(ConfigError, match=r"from T x H x W = 29 x 224 x 224 up, got T x H x W = 16 x 224"):
                network(torch.zeros(1, 1, 16, 224, 224))
        with pytest.raises(ConfigError, match=r"exactly T x H x W = any x 224 x 224"):
            network(torch.zeros(1, 1, 32, 112, 112))

    def test_depths_are_those_of_the_option(self):
        def depths(network):
            return [
                [network.get_submodule(f"features.temporal{n}.branch{b}.conv").kernel_size for b in (1, 2, 3)]
                for n in (1, 2, 3)
            ]

        first, second = [(1, 1, 1), (3, 3, 3), (6, 3, 3)], [(1, 1, 1), (3, 3, 3), (4, 3, 3)]
        assert depths(meta("t3d-121")) == [first, second, second]
        assert depths(meta("t3d-121", temporal_depths="author")) == [second] * 3

    def test_transitions_keep_or_halve_the_channels_of_the_branches(self):
        found = {}
        for transition in ("pool", "full", "half"):
            network = meta("t3d-121", transition=transition)
            found[transition] = network.get_submodule("features.denseblock2.denselayer1.conv1").in_channels
            assert hasattr(network.features, "transition1") == (transition != "pool")
        assert found == {"pool": 384, "full": 384, "half": 192}
        assert meta("t3d-121", branch_width=64).features.temporal1.out_channels == 192

    def test_have_no_dropout_unless_asked_for(self):
        def shares(network):
            return {layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)}

        assert shares(meta("t3d-121")) == {0.0}
        assert shares(meta("t3d-121", dropout=0.2)) == {0.2}
        block = DenseBlock(4, layers=1, bottleneck=8, growth=8, norm="batch", dropout=0.5)
        dropped = (block(torch.randn(2, 4, 4, 9, 9))[:, 4:] == 0).float().mean()
        assert 0.4 < dropped < 0.6

    def test_start_from_the_weights_of_torch(self):
        network = create("densenet3d-121", num_classes=3, faithful=True, width=0.25)
        layer = network.features.denseblock3.denselayer5
        for weight, fan in ((layer.conv1.weight, layer.conv1.in_channels), (layer.conv2.weight, 27 * 32)):
            assert weight.abs().max().item() == pytest.approx(fan**-0.5, rel=0.02)
        adapted = create("densenet3d-121", num_classes=3, width=0.25).features.denseblock3.denselayer5.conv2.weight
        assert adapted.std().item() == pytest.approx((2 / (27 * 8)) ** 0.5, rel=0.05)

    @pytest.mark.parametrize("options", [{"norm": "group"}, {"stem_stride": 1}, {"temporal_strides": [1, 1, 1, 1, 1]}])
    def test_refuse_what_the_paper_does_not_have(self, options):
        with pytest.raises(ConfigError, match="when faithful=True"):
            meta("t3d-121", **options)


class TestAgainstMonai:
    @pytest.mark.parametrize(("name", "reference"), [("densenet3d-121", DenseNet121), ("densenet3d-169", DenseNet169)])
    def test_gives_the_numbers_of_monai_with_its_weights(self, name, reference):
        channels = {"init_features": 8, "growth_rate": 4}
        theirs = ordinary(reference(spatial_dims=3, in_channels=2, out_channels=3, **channels)).eval()
        ours = create(name, num_classes=3, in_channels=2, width=0.125, temporal_strides=[2, 2, 2, 2, 2]).eval()
        # Their stem is 7 slices deep; everything else has the same shape.
        theirs.features.conv0 = nn.Conv3d(2, 8, (3, 7, 7), stride=2, padding=(1, 3, 3), bias=False)
        state = {
            key.replace(".layers.", ".").replace("class_layers.out", "classifier"): value
            for key, value in theirs.state_dict().items()
        }
        ours.load_state_dict(state)
        x = torch.randn(2, 2, 32, 64, 64)
        with torch.no_grad():
            maps = F.relu(theirs.features(x))
            torch.testing.assert_close(ours.forward_features(x), maps, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)

    def test_gives_the_gradients_of_monai_with_its_weights(self):
        theirs = DenseNet121(spatial_dims=3, in_channels=1, out_channels=3, init_features=8, growth_rate=4)
        ours = create("densenet3d-121", num_classes=3, width=0.125)
        block = ours.features.denseblock2
        block.load_state_dict(
            {key.replace("layers.", ""): value for key, value in theirs.features.denseblock2.state_dict().items()}
        )
        x = torch.randn(2, 16, 3, 6, 6, requires_grad=True)
        out, expected = block(x), theirs.features.denseblock2(x)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        weights = torch.randn_like(out)
        mine, reference = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (out, expected))
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


class TestDenseBlock:
    @pytest.mark.parametrize("slices", [1, 2, 3, 7, 8])
    def test_a_single_clip_gets_the_numbers_it_gets_in_a_batch(self, slices):
        block = DenseBlock(4, layers=2, bottleneck=8, growth=3, norm="batch", dropout=0.0).eval()
        x = torch.randn(1, 4, slices, 5, 6, requires_grad=True)
        pair = x.detach().repeat(2, 1, 1, 1, 1).requires_grad_()
        single, double = block(x), block(pair)
        torch.testing.assert_close(single, double[:1], rtol=1e-5, atol=1e-6)
        weights = torch.randn_like(single)
        (single * weights).sum().backward()
        (double[:1] * weights).sum().backward()
        torch.testing.assert_close(x.grad, pair.grad[:1], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("batch", [1, 2])
    def test_checkpointing_changes_no_number(self, batch):
        kept = small("t3d-121", dropout=0.2)
        again = small("t3d-121", dropout=0.2, checkpoint=True)
        again.load_state_dict(kept.state_dict())
        x = torch.randn(batch, 1, 5, 48, 48)
        gradients = []
        for network in (kept, again):
            torch.manual_seed(1)
            network(x).square().sum().backward()
            gradients.append({name: value.grad for name, value in network.named_parameters()})
        torch.testing.assert_close(*gradients)
        torch.testing.assert_close(kept.state_dict(), again.state_dict())
        assert again.features.norm0.num_batches_tracked == 1
        assert again.features.denseblock1.denselayer1.norm1.num_batches_tracked == 1
        assert torch.equal(kept.eval()(x), again.eval()(x))

    def test_checkpointing_keeps_less_for_the_backward_pass(self):
        kept = DenseBlock(16, layers=6, bottleneck=16, growth=4, norm="batch", dropout=0.0)
        again = copy.deepcopy(kept)
        again.recompute = True
        x = torch.randn(2, 16, 4, 8, 8, requires_grad=True)
        stored = []
        for block in (kept, again):
            sizes: dict[int, int] = {}

            def pack(tensor, sizes=sizes):
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                y = block(x)
            stored.append(sum(sizes.values()))
            y.sum().backward()
        assert stored[1] < stored[0] / 3

    def test_does_not_overwrite_what_it_reads_without_normalisation(self):
        block = DenseBlock(4, layers=2, bottleneck=8, growth=4, norm="none", dropout=0.0)
        x = torch.randn(2, 4, 3, 5, 5)
        before = x.clone()
        out = block(x)
        assert torch.equal(x, before)
        assert torch.equal(out[:, :4], before)


class TestTransitions:
    def test_the_odd_slice_of_padding_lies_at_the_end(self):
        layer = TemporalTransition(1, 1, depths=(1, 3, 4, 6), norm="none")
        for branch in range(1, 5):
            conv = layer.get_submodule(f"branch{branch}.conv")
            nn.init.ones_(conv.weight)
            nn.init.zeros_(conv.bias)
        x = torch.zeros(1, 1, 12, 3, 3)
        x[0, 0, 6, 1, 1] = 1
        seen = layer(x)[0, :, :, 1, 1]
        # A slice is seen by the outputs before it as far as the kernel reaches after its centre.
        assert [row.nonzero().flatten().tolist() for row in seen] == [
            [6],
            [5, 6, 7],
            [4, 5, 6, 7],
            [3, 4, 5, 6, 7, 8],
        ]

    def test_branches_equal_a_loop_in_float64(self):
        layer = TemporalTransition(3, 2, depths=(1, 3, 6), norm="batch", pool=MeanPool3d((2, 2, 2), exact=True)).eval()
        ordinary(layer)
        x = torch.randn(1, 3, 4, 6, 6)
        expected = []
        for branch, depth in zip((layer.branch1, layer.branch2, layer.branch3), (1, 3, 6), strict=True):
            norm, weight = branch.norm, branch.conv.weight.double()
            scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).double()
            y = x.double() - norm.running_mean.double().view(1, 3, 1, 1, 1)
            y = (y * scale.view(1, 3, 1, 1, 1) + norm.bias.double().view(1, 3, 1, 1, 1)).clamp(min=0)
            before, side = (depth - 1) // 2, weight.shape[-1] // 2
            padded = torch.zeros(3, 4 + depth - 1, 6 + 2 * side, 6 + 2 * side, dtype=torch.float64)
            padded[:, before : before + 4, side : side + 6, side : side + 6] = y[0]
            out = torch.zeros(2, 4, 6, 6, dtype=torch.float64)
            for t in range(depth):
                for h in range(weight.shape[-2]):
                    for w in range(weight.shape[-1]):
                        window = padded[:, t : t + 4, h : h + 6, w : w + 6]
                        out += torch.einsum("oc,cthw->othw", weight[:, :, t, h, w], window)
            expected.append(out.reshape(2, 2, 2, 3, 2, 3, 2).mean((2, 4, 6)))
        torch.testing.assert_close(layer(x)[0].double(), torch.cat(expected), rtol=1e-5, atol=1e-5)

    def test_pooling_before_the_convolution_gives_the_same_numbers(self):
        paper = Transition(6, 3, stride=(2, 2, 2), norm="batch", exact=True)
        ours = Transition(6, 3, stride=(2, 2, 2), norm="batch", exact=False)
        ours.load_state_dict(paper.state_dict())
        assert [name for name, _ in paper.named_children()] == ["norm", "relu", "conv", "pool"]
        x = torch.randn(2, 6, 4, 8, 6)
        torch.testing.assert_close(ours(x), paper(x))

    @pytest.mark.parametrize(
        ("size", "kernel"), [((1, 3, 5), (2, 2, 2)), ((5, 4, 3), (4, 2, 2)), ((7, 1, 1), (3, 2, 2))]
    )
    def test_the_last_window_is_the_mean_of_what_is_left(self, size, kernel):
        x = torch.randn(1, 1, *size)
        out = MeanPool3d(kernel, exact=False)(x)[0, 0]
        for t in range(out.shape[0]):
            for h in range(out.shape[1]):
                for w in range(out.shape[2]):
                    spans = [slice(i * k, (i + 1) * k) for i, k in zip((t, h, w), kernel, strict=True)]
                    torch.testing.assert_close(out[t, h, w], x[0, 0][tuple(spans)].mean())
        assert out.shape == tuple(-(-n // k) for n, k in zip(size, kernel, strict=True))


class TestAdapted:
    @pytest.mark.parametrize("strides", [None, [1, 1, 1, 1, 1], [3, 4, 3, 1, 1], [4, 3, 2, 1, 1]])
    def test_every_slice_counts_however_far_apart_the_strides(self, strides):
        network = small("t3d-121", temporal_strides=strides, stem_stride=1).eval()
        for slices in (1, 2, 7, 12):
            x = torch.randn(1, 1, slices, 16, 16).repeat(slices + 1, 1, 1, 1, 1)
            for index in range(slices):
                x[index, :, index] += 3
            with torch.no_grad():
                pools = nn.Sequential(network.features.conv0, network.features.norm0, network.features.pool0)(x)
                logits = network(x)
            assert all(not torch.equal(pools[index], pools[-1]) for index in range(slices)), slices
            assert all(not torch.equal(logits[index], logits[-1]) for index in range(slices)), slices

    def test_strides_set_the_size_of_the_maps(self):
        x = torch.randn(1, 1, 16, 32, 32)
        for options, size in (
            ({}, (1, 1, 1)),
            ({"temporal_strides": [1, 1, 1, 1, 1]}, (16, 1, 1)),
            ({"temporal_strides": [1, 1, 2, 1, 2], "stem_stride": 1}, (4, 2, 2)),
            ({"stem": "released"}, (1, 1, 1)),
        ):
            assert small("densenet3d-121", **options).eval().forward_features(x).shape[2:] == size

    def test_smallest_size_follows_the_stem_and_the_normalisation(self):
        assert small("t3d-121", stem_stride=1).smallest == (1, 16, 16)
        network = small("t3d-121", norm="instance")
        assert network.smallest == (1, 33, 33)
        assert network(torch.randn(1, 1, 1, 33, 33)).isfinite().all()

    def test_reads_the_papers_weights(self):
        paper = ordinary(small("t3d-121", faithful=True, transition="full")).eval()
        ours = small("t3d-121", in_channels=3, transition="full").eval()
        ours.load_state_dict(paper.state_dict())
        x = torch.randn(1, 3, 16, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), paper.forward_head(paper.forward_features(x)), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["densenet3d-121", "t3d-121"])
    def test_kernels_keep_the_ordinary_layout(self, name):
        assert all(parameter.is_contiguous() for parameter in small(name).parameters())
        assert small(name).features.denseblock1.denselayer1.conv2.weight.stride(-1) == 1
