from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM
from torch import nn

from volrec.errors import ConfigError
from volrec.networks import SlicewiseNetwork, create, describe, list_networks, spec
from volrec.networks.layers import CONSENSUS, SegmentConsensus
from volrec.networks.layers.consensus import (
    attention_weights,
    average_consensus,
    max_consensus,
    position_weights,
    top_k_consensus,
    weighted_consensus,
)
from volrec.networks.tsn import TSN, TSNOfClips
from volrec.weights.adapt import adapt_channels

# Networks that have others of the zoo within themselves take options for them, and are left out.
WITHIN = [name for name in list_networks() if not any(option.kind is dict for option in spec(name).options.values())]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow(**options):
    return create("tsn", **{"num_classes": 3, "width": 1 / 16, "dropout": 0.0, **options})


def clip(network, snippets: int = 3, *, batch: int = 2) -> torch.Tensor:
    slices, height, width = network.smallest
    return torch.randn(batch, network.in_channels, snippets * slices, 2 * height, 2 * width)


def softmax(values: np.ndarray) -> np.ndarray:
    return np.exp(values) / np.exp(values).sum(-1, keepdims=True)


class TestThePapersNetwork:
    @pytest.mark.parametrize(("channels", "gmacs"), [(3, 2.03), (10, 2.31)])
    def test_has_the_published_sizes(self, channels, gmacs):
        told = describe("tsn", in_channels=channels, clip=(1, 224, 224))
        assert told["parameters"] == 10_373_765 + 64 * 49 * (channels - 3)
        assert told["gmacs"] == pytest.approx(gmacs, abs=0.005)
        three = describe("tsn", in_channels=channels)
        assert three["gmacs"] == pytest.approx(3 * told["gmacs"], rel=1e-4)

    def test_has_the_layers_of_the_table(self):
        told = describe("tsn")
        found = {layer["name"]: tuple(layer["output"]) for layer in told["layers"]}
        table = {"slice_maps": (1024, 3, 7, 7), "backbone.tail.1": (1024,), "dropout": (3, 1024), "classifier": (101,)}
        assert {name: found[name] for name in table} == table

    def test_starts_and_drops_as_the_paper_does(self):
        network = create("tsn", num_classes=400, faithful=True, width=0.25)
        assert network.classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)
        assert (network.classifier.bias == 0).all()
        network.reset_classifier(500)
        assert network.classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)
        assert network.dropout.p == 0.8
        assert create("tsn", num_classes=2, faithful=True, width=1 / 16, dropout=0.7).dropout.p == 0.7

    def test_reads_its_own_frame_size_and_any_number_of_snippets(self):
        network = create("tsn", num_classes=2, faithful=True, width=1 / 16).eval()
        for snippets in (1, 2, 7):
            assert network(torch.zeros(1, 3, snippets, 224, 224)).shape == (1, 2)
        with pytest.raises(ConfigError, match="exactly T x H x W = any x 224 x 224"):
            network(torch.zeros(1, 3, 3, 224, 256))

    def test_other_backbones_of_the_paper_end_in_their_own_layers(self):
        with torch.device("meta"):
            network = create("tsn", num_classes=101, faithful=True, backbone="vgg-16")
        assert network.num_features == 4096
        drops = [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)]
        assert sorted(drops) == [0.0, 0.8, 0.8]  # once after each layer, not twice after the last

    @pytest.mark.parametrize(
        "options", [{"dropout": 0.5}, {"norm": "none"}, {"network": "t3d-121"}, {"backbone": "resnet-18"}]
    )
    def test_refuses_what_the_paper_does_not_have(self, options):
        with pytest.raises(ConfigError, match="when faithful=True"):
            create("tsn", num_classes=2, faithful=True, **options)

    @pytest.mark.parametrize("channels", [10, 15])
    def test_first_layer_for_flow_and_differences_is_the_mean_over_rgb(self, channels):
        rgb = create("tsn", num_classes=2, in_channels=3, width=1 / 8)
        other = create("tsn", num_classes=2, in_channels=channels, width=1 / 8)
        weight = rgb.backbone.trunk.conv1_7x7_s2.conv.weight.detach()
        got = adapt_channels(weight, channels, "mean")
        assert got.shape == other.backbone.trunk.conv1_7x7_s2.conv.weight.shape
        mean = weight.double().numpy().mean(1)
        for channel in range(channels):
            np.testing.assert_allclose(got[:, channel].numpy(), mean, atol=1e-7)


class TestConsensusFunctions:
    scores = np.random.default_rng(0).normal(size=(4, 5, 3))

    def test_average_and_maximum(self):
        x = torch.from_numpy(self.scores)
        np.testing.assert_allclose(average_consensus(x), self.scores.mean(1))
        np.testing.assert_allclose(max_consensus(x), self.scores.max(1))

    @pytest.mark.parametrize("k", [1, 2, 5, 9])
    def test_top_k_takes_the_largest_of_each_class(self, k):
        expected = np.sort(self.scores, axis=1)[:, ::-1][:, :k].mean(1)
        np.testing.assert_allclose(top_k_consensus(torch.from_numpy(self.scores), k), expected)

    def test_weighted_sums_by_position_and_by_study(self):
        weights = np.array([0.1, 0.2, 0.3, 0.4, 0.0])
        x = torch.from_numpy(self.scores)
        expected = np.einsum("s,bsk->bk", weights, self.scores)
        np.testing.assert_allclose(weighted_consensus(x, torch.from_numpy(weights)), expected)
        each = np.random.default_rng(1).random((4, 5))
        expected = np.einsum("bs,bsk->bk", each, self.scores)
        np.testing.assert_allclose(weighted_consensus(x, torch.from_numpy(each)), expected)

    def test_attention_is_a_softmax_over_snippets_of_one_product_each(self):
        rng = np.random.default_rng(2)
        features, direction = rng.normal(size=(4, 5, 7)), rng.normal(size=7)
        got = attention_weights(torch.from_numpy(features), torch.from_numpy(direction))
        np.testing.assert_allclose(got, softmax(features @ direction))

    @pytest.mark.parametrize("snippets", [1, 2, 3, 4, 5, 9, 25])
    def test_weights_of_segments_go_to_any_number_of_snippets_by_relative_place(self, snippets):
        energies = np.array([0.3, -1.0, 2.0, 0.5])
        middles = (np.arange(4) + 0.5) / 4
        expected = np.interp((np.arange(snippets) + 0.5) / snippets, middles, softmax(energies))
        got = position_weights(torch.from_numpy(energies), snippets)
        np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-6)

    @pytest.mark.parametrize("kind", CONSENSUS)
    def test_module_does_the_trained_function_in_training_and_the_mean_in_evaluation(self, kind):
        rng = np.random.default_rng(3)
        features = rng.normal(size=(4, 5, 7)).astype(np.float32)
        consensus = SegmentConsensus(kind, features=7, segments=5, top_k=2)
        for parameter in consensus.parameters():
            nn.init.normal_(parameter)
        expected = {
            "average": lambda: self.scores.mean(1),
            "max": lambda: self.scores.max(1),
            "top-k": lambda: np.sort(self.scores, axis=1)[:, -2:].mean(1),
            "weighted": lambda: np.einsum("s,bsk->bk", softmax(consensus.energies.detach().numpy()), self.scores),
            "attention": lambda: np.einsum(
                "bs,bsk->bk", softmax(features @ consensus.direction.detach().numpy()), self.scores
            ),
        }[kind]()
        arguments = torch.from_numpy(self.scores).float(), torch.from_numpy(features)
        np.testing.assert_allclose(consensus(*arguments).detach(), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(consensus.eval()(*arguments).detach(), self.scores.mean(1), rtol=1e-4, atol=1e-6)
        consensus.test = "same"
        np.testing.assert_allclose(consensus(*arguments).detach(), expected, rtol=1e-4, atol=1e-6)

    def test_unknown_functions_are_refused(self):
        with pytest.raises(ConfigError, match=r"no consensus 'median'.*average, max"):
            SegmentConsensus("median", features=2)
        with pytest.raises(ConfigError, match="no test_consensus 'max'"):
            SegmentConsensus("average", features=2, test="max")


@pytest.mark.parametrize("kind", CONSENSUS)
class TestEveryConsensus:
    def test_of_equal_snippets_is_the_score_of_one(self, kind):
        network = narrow(consensus=kind, segments=4, norm="none", test_consensus="same").eval()
        for parameter in network.consensus.parameters():
            nn.init.normal_(parameter)
        one = torch.randn(2, 1, 1, 32, 32)
        for snippets in (2, 4, 7):
            together = network(one.expand(-1, -1, snippets, -1, -1))
            torch.testing.assert_close(together, network(one), rtol=1e-4, atol=1e-6)

    def test_is_of_the_scores_before_the_softmax(self, kind):
        network = narrow(consensus=kind, segments=5, test_consensus="same", top_k=2).eval()
        for parameter in network.consensus.parameters():
            nn.init.normal_(parameter)
        with torch.no_grad():
            features = network.forward_features(torch.randn(2, 1, 5, 32, 32))
            scores = network.slice_logits(features)
            torch.testing.assert_close(scores, network.snippet_logits(features), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(
                network.forward_head(features), network.consensus(scores, features), rtol=1e-4, atol=1e-6
            )

    def test_what_enters_the_last_layer_explains_the_score_where_it_can(self, kind):
        for test, exact in (("average", True), ("same", kind not in ("max", "top-k"))):
            network = narrow(consensus=kind, test_consensus=test, top_k=2).eval()
            for parameter in network.consensus.parameters():
                nn.init.normal_(parameter)
            x = torch.randn(2, 1, 5, 32, 32)
            before = network.forward_head(network.forward_features(x), pre_logits=True)
            assert torch.equal(network.classifier(before), network(x)) == exact

    def test_learns_with_all_its_parameters(self, kind):
        network = narrow(consensus=kind)
        network(torch.randn(2, 1, 5, 32, 32)).square().sum().backward()
        for label, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, label

    def test_exports_and_runs_in_bfloat16(self, kind):
        network = narrow(network="slice-mean", consensus=kind, test_consensus="same").eval()
        x = torch.randn(2, 1, 5, 32, 32)
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert network.train()(x).isfinite().all()


def test_learned_weights_start_as_the_mean_and_dropout_hits_each_snippet_by_itself():
    features = torch.randn(2, 5, 64)
    plain = narrow()
    for kind in ("weighted", "attention"):
        network = narrow(consensus=kind)
        network.classifier.load_state_dict(plain.classifier.state_dict())
        torch.testing.assert_close(network.aggregate(features), plain.aggregate(features))
    dropping = narrow(dropout=0.5)
    alike = torch.ones(1, 400, 64)
    scores = dropping.snippet_logits(alike)
    assert (scores[0, 0] != scores[0, 1]).any()
    # Other units are dropped in every snippet: their mean over many is that of none dropped.
    expected = dropping.classifier(alike[:, 0])
    torch.testing.assert_close(dropping.aggregate(alike), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", WITHIN)
class TestAnyNetworkWithin:
    def test_scores_snippets_forward_and_backward(self, name):
        network = narrow(network=name, snippet_length=max(2, spec(name).smallest[0]), in_channels=2)
        assert isinstance(network, TSNOfClips)
        logits = network(clip(network))
        assert logits.shape == (2, 3)
        logits.square().sum().backward()
        for label, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, label

    def test_gives_features_of_each_snippet_as_the_network_alone_would(self, name):
        network = narrow(network=name, snippet_length=spec(name).smallest[0] + 2).eval()
        alone = create(name, num_classes=1, width=1 / 16).eval()
        alone.load_state_dict({**alone.state_dict(), **network.encoder.state_dict()})
        x = clip(network)
        length = network.snippet_length
        with torch.no_grad():
            features = network.forward_features(x)
            for number in range(3):
                snippet = x[:, :, number * length : (number + 1) * length]
                expected = alone.forward_head(alone.forward_features(snippet), pre_logits=True)
                torch.testing.assert_close(features[:, number], expected, rtol=1e-4, atol=1e-5)
            # The same features, whatever their number: the consensus of equal snippets is one of them.
            same = network(snippet.repeat(1, 1, 3, 1, 1))
            torch.testing.assert_close(same, network(snippet), rtol=1e-4, atol=1e-5)

    def test_shows_its_maps_to_grad_cam(self, name):
        network = narrow(network=name).eval()
        x = clip(network, batch=1)
        cam = GradCAM(nn_module=network, target_layers=network.cam_layer, postprocessing=lambda found: found)
        found = cam(x=x, class_idx=1)
        assert found.shape == (1, 1, *x.shape[2:])
        assert torch.as_tensor(found).isfinite().all()


class TestSnippets:
    def test_default_form_reads_slices_and_a_network_reads_as_few_as_it_can(self):
        assert isinstance(narrow(), TSN) and isinstance(narrow(), SlicewiseNetwork)
        network = narrow(network="c3d")
        assert network.snippet_length == 1 and not isinstance(network, SlicewiseNetwork)
        assert narrow(network="c3d", snippet_length=8).smallest == (8, 16, 16)

    def test_snippets_of_a_batch_do_not_mix_and_none_is_left_out(self):
        network = narrow(network="c3d", snippet_length=2).eval()
        x = clip(network, 4)
        before = network(x)
        torch.testing.assert_close(network(x[:1]), before[:1], rtol=1e-4, atol=1e-6)
        # The mean does not know the order of snippets, the network within that of the slices of each.
        order = torch.tensor([6, 7, 2, 3, 0, 1, 4, 5])
        torch.testing.assert_close(network(x[:, :, order]), before, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(network(x[:, :, order.flip(0)]), before, rtol=1e-4, atol=1e-6)
        for index in range(8):
            changed = x.clone()
            changed[:, :, index] += 5
            assert not torch.equal(network(changed), before)

    def test_go_through_the_network_as_one_batch(self):
        network = narrow(network="c3d", snippet_length=2).eval()
        seen = []
        network.encoder.conv1a.register_forward_hook(lambda layer, given, out: seen.append(given[0].shape))
        network(clip(network, 5, batch=2))
        assert [tuple(shape) for shape in seen] == [(10, 1, 2, 32, 32)]

    def test_options_reach_the_network_within(self):
        network = narrow(network="lrcn", network_options={"backbone": "alexnet", "units": 32}, norm="group")
        assert network.encoder.architecture["options"]["backbone"] == "alexnet"
        assert network.encoder.architecture["options"]["norm"] == "group"
        own = narrow(network="c3d", network_options={"norm": "instance"}, norm="group")
        assert own.encoder.architecture["options"]["norm"] == "instance"
        stem = narrow(network="t3d-121", stem_stride=1)
        assert stem.encoder.architecture["options"]["stem_stride"] == 1

    def test_state_copies_export_and_architecture_hold_the_network_within(self):
        network = narrow(network="slice-mean", network_options={"slice_pooling": "max"}, snippet_length=2).eval()
        x = clip(network)
        arguments = copy.deepcopy(network.architecture)
        again = create(arguments.pop("name"), **arguments.pop("options"), **arguments).eval()
        assert again.architecture == network.architecture
        again.load_state_dict(network.state_dict())
        assert torch.equal(again(x), network(x))
        assert torch.equal(copy.deepcopy(network)(x), network(x))
        file = io.BytesIO()
        torch.export.save(torch.export.export(network, (x,)), file)
        assert describe("tsn", faithful=False, network="t3d-121", clip=(6, 64, 64))["parameters"] > 1e7

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"network": "tsn"}, "within itself"),
            ({"network": "t3d-12"}, "no network 't3d-12'.*Did you mean 't3d-121'"),
            ({"network": "c3d", "network_options": {"nrm": "none"}}, "c3d has no option 'nrm'.*'norm'"),
            ({"network": "c3d", "backbone": "vgg-16"}, "takes the place of the backbone, got backbone='vgg-16'"),
            ({"network": "c3d", "stem_stride": 1}, "c3d has no option 'stem_stride'"),
            ({"network_options": {"norm": "none"}}, "no network within"),
            ({"snippet_length": 4}, "snippets of one slice, got snippet_length=4"),
        ],
    )
    def test_what_cannot_be_built_is_said(self, options, message):
        with pytest.raises(ConfigError, match=message):
            narrow(**options)

    def test_too_short_snippets_and_broken_clips_are_refused(self):
        network = narrow(network="c3d", snippet_length=4)
        with pytest.raises(ConfigError, match=r"clips of 10 slices are no whole number of snippets of 4.*multiple"):
            network(torch.zeros(1, 1, 10, 32, 32))
        with pytest.raises(ConfigError, match="from T x H x W = 4 x 16 x 16 up"):
            network(torch.zeros(1, 1, 2, 32, 32))
