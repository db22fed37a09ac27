from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks import create, describe, spec

TABLE = {
    "conv1": (64, 100, 71, 71),
    "pool1": (64, 100, 35, 35),
    "conv2": (128, 100, 35, 35),
    "pool2": (128, 50, 17, 17),
    "conv3": (256, 50, 17, 17),
    "pool3": (256, 25, 8, 8),
    "conv4": (256, 25, 8, 8),
    "pool4": (256, 12, 4, 4),
    "conv5": (256, 12, 4, 4),
    "pool5": (256, 6, 2, 2),
    "fc6": (2048,),
    "fc7": (2048,),
    "fc8": (101,),
}
VARIANTS = {  # clip, maps after pool5, millions of parameters and GMAC with two channels of flow and 101 classes
    "100x71": ((100, 71, 71), (256, 6, 2, 2), 21.64, 44.8),
    "60x71": ((60, 71, 71), (256, 3, 2, 2), 15.35, 26.9),
    "100x58": ((100, 58, 58), (256, 6, 1, 1), 12.20, 30.8),
    "60x58": ((60, 58, 58), (256, 3, 1, 1), 10.63, 18.5),
    "16x112": ((16, 112, 112), (256, 1, 3, 3), 13.77, 18.9),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def layers(**options) -> dict[str, tuple[int, ...]]:
    told = describe("ltc", **options)["layers"]
    return {layer["name"].removesuffix(".conv"): tuple(layer["output"]) for layer in told}


def paper(**options) -> nn.Module:
    return create("ltc", **{"num_classes": 2, "faithful": True, "width": 0.02, **options})


class TestThePapersNetwork:
    def test_has_the_published_number_of_parameters(self):
        assert describe("ltc", in_channels=3, variant="100x71", num_classes=101)["parameters"] == 21_639_269

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_clip_size_has_its_parameters_and_costs(self, variant):
        clip, maps, millions, gmacs = VARIANTS[variant]
        told = describe("ltc", in_channels=2, variant=variant, clip=clip)
        assert told["parameters"] / 1e6 == pytest.approx(millions, abs=0.006)
        assert told["gmacs"] == pytest.approx(gmacs, abs=0.06)
        outputs = {layer["name"]: tuple(layer["output"]) for layer in told["layers"]}
        # The pool before fc6 has nothing to do at the paper's size.
        assert outputs["pool5"] == outputs["pool.0"] == maps

    def test_has_the_layers_of_the_table(self):
        found = layers()
        assert {name: found[name] for name in TABLE} == TABLE

    def test_its_variants_are_all_published_sizes(self):
        option = spec("ltc").options["variant"]
        assert set(option.choices) == set(VARIANTS)
        assert spec("ltc").default_clip[1:] == VARIANTS[option.default][0]

    def test_reads_the_clip_of_its_variant_only(self):
        network = paper(variant="60x58", in_channels=2).eval()
        assert network(torch.zeros(1, 2, 60, 58, 58)).shape == (1, 2)
        with pytest.raises(ConfigError, match=r"exactly T x H x W = 60 x 58 x 58, got T x H x W = 100 x 58 x 58"):
            network(torch.zeros(1, 2, 100, 58, 58))

    def test_equals_its_layers_applied_one_by_one_in_float64(self):
        network = paper(variant="16x112").double().eval()
        x = torch.randn(1, 3, 16, 112, 112, dtype=torch.float64)
        weights = network.state_dict()
        y = x
        for number, stride in enumerate((1, 2, 2, 2, 2), 1):
            y = F.conv3d(y, weights[f"conv{number}.conv.weight"], weights[f"conv{number}.conv.bias"], padding=1)
            y = F.max_pool3d(F.relu(y), (stride, 2, 2))
        y = y.flatten(1)
        for name in ("fc6", "fc7"):
            y = F.relu(F.linear(y, weights[f"{name}.weight"], weights[f"{name}.bias"]))
        torch.testing.assert_close(network(x), F.linear(y, weights["fc8.weight"], weights["fc8.bias"]))

    def test_weights_start_uniform_within_the_root_of_the_inputs(self):
        network = paper(width=0.25, num_classes=50)
        for layer in (network.conv3.conv, network.fc6, network.fc8):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
            assert 0 < layer.bias.abs().max().item() <= bound
        network.reset_classifier(70)
        assert network.fc8.weight.abs().max().item() == pytest.approx(1 / math.sqrt(512), rel=0.01)

    @pytest.mark.parametrize("share", [0.5, 0.9])
    def test_drops_after_fc6_and_fc7(self, share):
        network = paper(variant="100x58", width=0.25, dropout=share)
        seen = {}
        network.fc7.register_forward_hook(lambda module, inputs, output: seen.update(fc7=inputs[0]))
        network.fc8.register_forward_hook(lambda module, inputs, output: seen.update(fc8=inputs[0]))
        with torch.no_grad():
            for layer in (network.fc6, network.fc7):  # no zeros but those of dropout
                layer.weight.zero_()
                layer.bias.fill_(1)
        network.forward_head(torch.rand(16, 64, 6, 1, 1))
        for name, values in seen.items():
            assert (values == 0).float().mean().item() == pytest.approx(share, abs=0.02), name
        assert paper().drop6.p == paper().drop7.p == 0.5

    @pytest.mark.parametrize(
        "options", [{"norm": "batch"}, {"head": "gap"}, {"pooling": "max"}, {"temporal_strides": [1, 1, 1, 1, 1]}]
    )
    def test_refuses_what_the_paper_does_not_have(self, options):
        with pytest.raises(ConfigError, match="when faithful=True"):
            paper(**options)

    def test_an_unknown_variant_is_answered_with_the_published_ones(self):
        with pytest.raises(ConfigError, match=r"'variant' parameter of ltc must be one of '100x71', '60x71'"):
            paper(variant="100x70")


class TestAdapted:
    def test_pooling_before_the_rectifier_gives_the_same_maps(self):
        network = create("ltc", num_classes=2, width=0.05)
        x = torch.randn(2, 1, 9, 33, 47)
        y = x
        for number in range(1, 6):
            y = network.get_submodule(f"pool{number}")(network.get_submodule(f"conv{number}")(y).relu())
        torch.testing.assert_close(network.forward_features(x), y)

    @pytest.mark.parametrize("slices", [1, 2, 3, 7, 17])
    def test_every_slice_counts(self, slices):
        network = create("ltc", num_classes=2, width=0.25).eval()
        x = torch.randn(1, 1, slices, 18, 19)
        same = network(x)
        for index in range(slices):
            changed = x.clone()
            changed[:, :, index] += 5
            assert not torch.equal(network(changed), same), index

    def test_temporal_strides_set_the_pools(self):
        x = torch.randn(1, 1, 12, 32, 32)
        for strides, left in (([1, 1, 1, 1, 1], 12), ([1, 1, 2, 1, 2], 3), ([2, 2, 2, 2, 4], 1), (None, 1)):
            network = create("ltc", num_classes=2, width=0.05, temporal_strides=strides)
            assert network.forward_features(x).shape[2] == left
        assert spec("ltc").strides == ((1, 2), (2, 2), (2, 2), (2, 2), (2, 2))

    def test_a_position_of_the_last_maps_sees_48_slices(self):
        network = create("ltc", num_classes=2, width=0.25, norm="none").eval()
        x = torch.rand(1, 1, 160, 32, 32, requires_grad=True)
        network.forward_features(x)[:, :, 5].sum().backward()
        seen = (x.grad.abs().amax((0, 1, 3, 4)) > 0).nonzero().flatten()
        # The maximum passes the gradient to one voxel of a window only, so that edges may stay empty.
        assert 36 <= seen[-1] - seen[0] + 1 <= 48

    def test_fc_head_takes_the_papers_weights(self):
        original = paper(variant="16x112").eval()
        free = create("ltc", num_classes=2, in_channels=3, width=0.02, head="fc", norm="none", variant="16x112").eval()
        free.load_state_dict(original.state_dict())
        x = torch.randn(1, 3, 16, 96, 96)  # 1 x 3 x 3 at the end, whether pools round up or down
        assert torch.equal(free(x), original.forward_head(original.forward_features(x)))
        assert free(torch.randn(1, 3, 5, 40, 50)).shape == (1, 2)

    def test_variant_sets_what_the_fc_head_keeps_apart(self):
        for variant, (_, maps, _, _) in VARIANTS.items():
            network = create("ltc", num_classes=2, width=0.125, head="fc", variant=variant)
            assert network.fc6.in_features == 32 * math.prod(maps[1:])
            assert network.num_features == 256

    def test_global_pooling_sets_the_features(self):
        for pooling, features in (("mean", 32), ("max", 32), ("mean-max", 64)):
            network = create("ltc", num_classes=2, width=0.125, pooling=pooling)
            assert network.fc8.in_features == network.num_features == features

    def test_one_clip_is_enough_to_train_on(self):
        for head in ("gap", "fc"):
            network = create("ltc", num_classes=2, width=0.05, head=head)
            network(torch.randn(1, 1, 1, 20, 33)).sum().backward()
            assert network.conv1.conv.weight.grad.isfinite().all()

    def test_instance_statistics_need_more_than_one_position(self):
        network = create("ltc", num_classes=2, width=0.05, norm="instance")
        assert network.smallest == (1, 32, 32)
        assert network(torch.randn(1, 1, 1, 32, 32)).isfinite().all()

    def test_the_layer_of_the_evidence_gives_maps(self):
        network = create("ltc", num_classes=2, width=0.125)
        maps = []
        network.get_submodule(network.cam_layer).register_forward_hook(
            lambda module, inputs, output: maps.append(output)
        )
        network(torch.randn(2, 1, 6, 40, 48))
        assert maps[0].shape == (2, 32, 1, 3, 3)
