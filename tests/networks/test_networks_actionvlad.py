from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks import SlicewiseNetwork, create, describe, freeze_stages, list_networks, spec
from volrec.networks.actionvlad import PAPERS_TRAINING, ActionVLAD, ClipVLAD
from volrec.networks.backbones import create_backbone

NO_MAPS = "hidden-two-stream"
PLAIN = [name for name in list_networks() if "network" not in spec(name).options and name != NO_MAPS]
"""Networks that have no other within, and maps."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow(**options):
    return create("actionvlad", **{"num_classes": 3, "width": 1 / 16, "words": 6, "alpha": 10.0, **options})


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class TestThePapersNetwork:
    def test_has_the_published_sizes(self):
        told = describe("actionvlad")
        parts = {layer["name"]: layer["parameters"] for layer in told["layers"]}
        assert parts["vlad"] == 32_832 + 32_768
        assert parts["classifier"] == 32_768 * 101 + 101 == 3_309_669
        backbone = sum(number for name, number in parts.items() if name.startswith("backbone."))
        assert backbone == 14_714_688
        assert told["parameters"] == backbone + 65_600 + 3_309_669 == 18_089_957
        # Shares and sums are one product of descriptors and words each.
        words = 25 * 2 * 196 * 64 * 512 + 32_768 * 101
        assert told["gmacs"] - words / 1e9 == pytest.approx(25 * 15.3466, abs=0.01)
        fewer = describe("actionvlad", num_classes=51)
        assert fewer["layers"][-1]["parameters"] / 1e6 == pytest.approx(1.67, abs=0.005)

    def test_has_the_layers_of_the_table(self):
        found = {layer["name"]: tuple(layer["output"]) for layer in describe("actionvlad")["layers"]}
        assert found["slice_maps"] == (512, 25, 14, 14)
        assert found["vlad"] == (64, 512)
        assert found["dropout"] == (32768,)
        assert found["classifier"] == (101,)
        assert "backbone.trunk.pool5" not in found

    def test_reads_flow_and_the_variant_on_conv4_3(self):
        assert describe("actionvlad", in_channels=20)["clip"] == [20, 25, 224, 224]
        early = describe("actionvlad", tap="conv4_3")
        found = {layer["name"]: tuple(layer["output"]) for layer in early["layers"]}
        assert found["slice_maps"] == (512, 25, 28, 28)
        assert not any("conv5" in name or "pool4" in name for name in found)

    def test_has_sharp_shares_and_drops_a_half(self):
        with torch.device("meta"):
            network = create("actionvlad", num_classes=2, faithful=True)
        assert network.vlad.alpha == 1000
        assert network.dropout.p == 0.5
        assert network.exact == (None, 224, 224)

    @pytest.mark.parametrize(
        "options",
        [
            {"backbone": "resnet-18"},
            {"tap": "conv3_3"},
            {"network": "i3d"},
            {"network_options": {"norm": "none"}},
            {"norm": "batch"},
            {"dropout": 0.1},
        ],
    )
    def test_refuses_what_the_paper_does_not_have(self, options):
        with pytest.raises(ConfigError, match="when faithful=True"):
            create("actionvlad", num_classes=2, faithful=True, **options)


class TestDescriptors:
    def test_are_conv5_3_before_its_relu(self):
        network = narrow().eval()
        whole = create_backbone("vgg-16", in_channels=1, width=1 / 16).eval()
        whole.load_state_dict(network.backbone.state_dict())
        x = torch.randn(2, 1, 3, 32, 32)
        maps = network.block_maps(x)
        assert (maps < 0).any()
        flat = x.transpose(1, 2).flatten(0, 1)
        pooled = whole.trunk.pool5(F.relu(maps.transpose(1, 2).flatten(0, 1)))
        torch.testing.assert_close(pooled, whole.forward_maps(flat))

    def test_are_all_positions_clip_after_clip_with_length_one(self):
        network = narrow().eval()
        x = torch.randn(2, 1, 3, 48, 32)
        found = network.descriptors(x)
        assert found.shape == (2 * 3 * 3 * 2, 32)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
        torch.testing.assert_close(network.descriptors(x[1:]), found[18:])
        assert torch.equal(found[7], F.normalize(network.block_maps(x)[0, :, 1, 0, 1], dim=0))

    @pytest.mark.parametrize(("backbone", "tap"), [("vgg-16", "conv3_2"), ("alexnet", "conv5"), ("hybrid", "conv4")])
    def test_are_read_at_any_convolution_of_a_plain_backbone(self, backbone, tap):
        network = narrow(backbone=backbone, tap=tap)
        assert list(dict(network.backbone.trunk.named_children()))[-1] == tap
        network(torch.randn(2, 1, 2, 64, 64)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"tap": "conv5_4"}, "vgg-16 has no convolution 'conv5_4' to end at. Did you mean 'conv5_"),
            ({"tap": "pool4"}, "no convolution 'pool4'.*Known: conv1_1, conv1_2"),
            ({"backbone": "resnet-18", "tap": "layer4"}, "no convolution 'layer4' to end at. Leave it out"),
            ({"network": "i3d", "tap": "conv5_3"}, "tap='conv5_3' has nothing to act on"),
            ({"network": "i3d", "stem_stride": 1}, "stem_stride=1 has nothing to act on"),
            ({"network_options": {"norm": "none"}}, "network_options=.* has nothing to act on"),
            ({"network": "actionvlad"}, "actionvlad cannot stand within itself"),
            ({"network": "i4d"}, "there is no network 'i4d'. Did you mean 'i3d'"),
            ({"network": "i3d", "network_options": {"stem": 1}}, "i3d has no option 'stem'"),
        ],
    )
    def test_of_layers_that_are_not_there_are_refused(self, options, told):
        with pytest.raises(ConfigError, match=told):
            narrow(**options)


class TestPooling:
    def test_of_slices_in_any_order_is_the_same(self):
        network = narrow().eval()
        x = torch.randn(2, 1, 6, 32, 32)
        vector = network.forward_head(network.forward_features(x), pre_logits=True)
        mixed = network.forward_head(network.forward_features(x[:, :, torch.randperm(6)]), pre_logits=True)
        torch.testing.assert_close(mixed, vector)
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(2))

    def test_of_slices_one_by_one_is_that_of_all_descriptors_at_once(self):
        network = narrow().eval()
        x = torch.randn(1, 1, 4, 32, 48)
        sums = network.forward_features(x)
        assert sums.shape == (1, 4, 6, 32)
        torch.testing.assert_close(sums.sum(1), network.vlad(network.descriptors(x)[None]), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("options", [{}, {"network": "i3d"}])
    def test_by_average_and_maximum_is_that_of_the_same_descriptors(self, options):
        x = torch.randn(1, 1, 9, 48, 64)
        for pooling, reduce in (("average", lambda x: x.mean(0)), ("max", lambda x: x.amax(0))):
            network = narrow(pooling=pooling, **options).eval()
            found = network.forward_head(network.forward_features(x), pre_logits=True)
            expected = F.normalize(reduce(network.descriptors(x)), dim=0)
            torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)
            assert network.num_features == network.classifier.in_features == network.descriptors(x).shape[1]
            assert network.num_words == 0
            with pytest.raises(ConfigError, match=f"no words with pooling='{pooling}'"):
                network.set_words(torch.zeros(6, 32))
            with pytest.raises(ConfigError, match="no words"):
                network.word_shares(x)

    @pytest.mark.parametrize("pooling", ["average", "max"])
    def test_by_average_and_maximum_trains_every_parameter(self, pooling):
        network = narrow(pooling=pooling)
        network(torch.randn(2, 1, 3, 32, 32)).square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


class TestWords:
    @pytest.mark.parametrize(("options", "slices"), [({}, 4), ({"network": "i3d"}, 1), ({"network": "slice-mean"}, 4)])
    def test_shares_say_what_each_slice_is_made_of(self, options, slices):
        network = narrow(**options).eval()
        x = torch.randn(2, 1, 4, 48, 32)
        shares = network.assignments(x)
        positions = network.block_maps(x).shape[3:]
        assert shares.shape == (2, slices, 6, *positions)
        torch.testing.assert_close(shares.sum(2), torch.ones(2, slices, *positions))
        each = network.descriptors(x).unflatten(0, (2, slices, *positions))
        distances = (each[:, :, :, :, None] - network.vlad.centres).square().sum(-1)
        torch.testing.assert_close(shares, (-10 * distances).softmax(-1).movedim(-1, 2), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(network.word_shares(x), shares.mean((3, 4)))

    def test_that_are_set_are_those_of_the_shares(self):
        network = narrow(alpha=1000.0).eval()
        x = torch.randn(1, 1, 2, 48, 48)
        words = network.descriptors(x)[[0, 3, 5, 9, 12, 17]]
        network.set_words(words)
        shares = network.assignments(x).permute(0, 1, 3, 4, 2).reshape(-1, 6)
        assert shares[[0, 3, 5, 9, 12, 17]].argmax(1).tolist() == [0, 1, 2, 3, 4, 5]
        assert torch.equal(network.vlad.centres, words)


class TestWithin:
    """On the maps of another network of the zoo."""

    @pytest.mark.parametrize("name", PLAIN)
    def test_every_network_of_the_zoo_gives_descriptors(self, name):
        network = narrow(network=name)
        assert isinstance(network, SlicewiseNetwork) == spec(name).slicewise
        assert isinstance(network, ActionVLAD if spec(name).slicewise else ClipVLAD)
        inner = create(name, num_classes=1, width=1 / 16)
        assert network.smallest == inner.smallest
        slices, height, width = network.smallest
        # (torch 2.13 can crash in the backward pass of kernels of 7x7x7 with stride 2 on exactly 5 slices.)
        x = torch.randn(2, 1, slices + 5, height + 1, width + 3)
        network(x).square().sum().backward()
        idle = [label for label, parameter in network.named_parameters() if parameter.grad is None]
        assert not idle
        names = {label for label, _ in network.backbone.named_parameters()}
        assert names < {label for label, _ in inner.named_parameters()}
        assert network.get_submodule(network.cam_layer) is not None

    def test_reads_the_same_maps_as_that_network(self):
        x = torch.randn(1, 1, 9, 40, 40)
        for name, maps in (
            ("i3d", lambda inner: inner.forward_features(x)),
            ("slice-mean", lambda inner: inner.encode_maps(x[0].transpose(0, 1)).transpose(0, 1)[None]),
        ):
            network = narrow(network=name).eval()
            inner = create(name, num_classes=1, width=1 / 16).eval()
            inner.load_state_dict(network.backbone.state_dict(), strict=False)
            torch.testing.assert_close(network.block_maps(x), maps(inner))

    def test_building_it_leaves_statistics_and_mode_as_they_were(self):
        network = narrow(network="c3d")
        assert all(module.training for module in network.modules())
        assert all(int(value) == 0 for name, value in network.named_buffers() if name.endswith("num_batches_tracked"))

    def test_takes_options_of_its_own(self):
        network = narrow(network="i3d", norm="group", network_options={"temporal_strides": [1, 1, 1, 1, 1]})
        assert network.block_maps(torch.randn(1, 1, 5, 64, 64)).shape[2] == 5
        assert not any(isinstance(module, nn.BatchNorm3d) for module in network.modules())
        again = create("actionvlad", num_classes=3, width=1 / 16, **network.architecture["options"])
        again.load_state_dict(network.state_dict())

    def test_refuses_a_network_without_maps(self, monkeypatch):
        inner = create("c3d", num_classes=1, width=1 / 16)
        monkeypatch.setattr(type(inner), "forward_features", lambda self, x: self.conv1a(x).mean((2, 3, 4)))
        with pytest.raises(ConfigError, match=f"{NO_MAPS} gives no maps"):
            narrow(network=NO_MAPS)
        with pytest.raises(ConfigError, match="c3d gives no maps"):
            narrow(network="c3d")

    def test_exports(self):
        network = narrow(network="c3d").eval()
        x = torch.randn(1, 1, 4, 32, 32)
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))


class TestTraining:
    def test_the_papers_stages_freeze_what_they_say(self):
        first, second = (narrow() for _ in PAPERS_TRAINING)
        for network, stage in zip((first, second), PAPERS_TRAINING, strict=True):
            freeze_stages(network, stage.freeze)
        free = {name for name, parameter in first.named_parameters() if parameter.requires_grad}
        assert free == {"classifier.weight", "classifier.bias"}
        free = {".".join(name.split(".")[:3]) for name, each in second.named_parameters() if each.requires_grad}
        convolutions = {f"backbone.trunk.conv5_{number}" for number in (1, 2, 3)}
        vocabulary = {"vlad.weight", "vlad.bias", "vlad.centres"}
        assert free == convolutions | vocabulary | {"classifier.weight", "classifier.bias"}
        assert [stage.lr for stage in PAPERS_TRAINING] == [1.0, 0.0001 / 0.01]

    def test_from_scratch_everything_is_trained_at_once(self):
        assert spec("actionvlad").training == ()
