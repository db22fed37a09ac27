from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks import create, describe
from volrec.networks.layers.heads import head_loss
from volrec.networks.two_stream_common import split_streams


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow(**options):
    """Return a network of one appearance and four motion channels whose last layer is large enough to matter."""
    network = create("two-stream", **{"num_classes": 3, "in_channels": 5, "width": 1 / 16, **options}).eval()
    with torch.no_grad():
        network.classifier.weight.normal_()
        network.classifier.bias.normal_()
        if hasattr(network.stream_bias, "gap"):
            network.stream_bias.gap.normal_()
    return network


def clips(slices: int = 4, batch: int = 2, channels: int = 5) -> torch.Tensor:
    return torch.randn(batch, channels, slices, 20, 24)


def tower_logits(network, features: torch.Tensor) -> list[np.ndarray]:
    """The logits (B, T, K) of each tower in float64, from the columns of the last layer."""
    weight, bias = (value.detach().double().numpy() for value in network.classifier.parameters())
    gap = getattr(network.stream_bias, "gap", torch.zeros(len(bias))).detach().double().numpy()
    half = weight.shape[1] // 2
    read = features.detach().double().numpy()
    return [read[..., :half] @ weight[:, :half].T + bias + gap, read[..., half:] @ weight[:, half:].T + bias - gap]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class TestThePapersNetwork:
    def test_has_the_published_sizes(self):
        parts = {layer["name"]: layer["parameters"] for layer in describe("two-stream")["layers"]}
        spatial, temporal = (
            sum(number for name, number in parts.items() if name.startswith(tower)) + 2048 * 101 + 101
            for tower in ("spatial.", "temporal.")
        )
        assert (spatial, temporal) == (90_627_813, 90_707_781)
        assert describe("two-stream")["parameters"] == spatial + temporal == sum(parts.values())
        # Without motion both towers read the three channels; with twenty of appearance both read twenty.
        assert describe("two-stream", in_channels=3)["gmacs"] / 2 == pytest.approx(1.66, abs=0.005)
        twenty = describe("two-stream", in_channels=40, appearance_channels=20)
        assert twenty["gmacs"] / 2 == pytest.approx(2.61, abs=0.005)
        assert twenty["parameters"] / 1e6 == pytest.approx(181.42, abs=0.005)

    def test_has_the_layers_of_the_table(self):
        found = {layer["name"]: tuple(layer["output"]) for layer in describe("two-stream")["layers"]}
        for tower in ("spatial", "temporal"):
            trunk = {"pool1": (96, 54, 54), "pool2": (256, 13, 13), "conv4.conv": (512, 13, 13), "pool5": (512, 6, 6)}
            assert {name: found[f"{tower}.trunk.{name}"] for name in trunk} == trunk
            assert found[f"{tower}.tail.fc6"] == (4096,)
            assert found[f"{tower}.tail.fc7"] == (2048,)

    @pytest.mark.parametrize("options", [{"faithful": True}, {"norm": "none"}])
    def test_has_the_second_response_normalisation_in_the_spatial_tower_only(self, options):
        network = create("two-stream", num_classes=2, width=1 / 32, **options)
        assert hasattr(network.spatial.trunk, "norm2")
        assert not hasattr(network.temporal.trunk, "norm2")
        assert hasattr(network.temporal.trunk, "norm1")

    def test_drops_nine_tenths_after_the_fully_connected_layers_only(self):
        network = create("two-stream", num_classes=2, faithful=True, width=1 / 32)
        assert [network.temporal.tail.drop6.p, network.temporal.tail.drop7.p, network.drop.p] == [0.9, 0.9, 0]
        assert create("two-stream", num_classes=2, faithful=True, width=1 / 32, dropout=0.5).spatial.tail.drop7.p == 0.5

    def test_reads_its_own_slice_size_only_but_any_number_of_slices(self):
        network = create("two-stream", num_classes=2, faithful=True, width=1 / 64).eval()
        assert network(torch.randn(1, 23, 3, 224, 224)).shape == (1, 2)
        with pytest.raises(ConfigError, match="exactly T x H x W = any x 224 x 224"):
            network(torch.zeros(1, 23, 1, 225, 224))

    @pytest.mark.parametrize(
        "options", [{"features": "pool"}, {"backbone": "alexnet"}, {"norm": "batch"}, {"dropout": 0.2}]
    )
    def test_refuses_what_the_paper_does_not_have(self, options):
        with pytest.raises(ConfigError, match="when faithful=True"):
            create("two-stream", num_classes=2, faithful=True, **options)


class TestChannels:
    def test_constant_fields_give_zeros_and_others_lose_their_mean(self):
        x = torch.randn(6, 5, 7, 8, dtype=torch.float64)
        x[:, 3] = torch.linspace(-2, 3, 6)[:, None, None]
        still, motion = split_streams(x, 1, subtract_mean=True)
        assert torch.equal(still, x[:, :1])
        assert motion[:, 2].abs().max() < 1e-12
        numpy = x[:, 1:].numpy()
        np.testing.assert_allclose(motion.numpy(), numpy - numpy.mean((2, 3), keepdims=True), atol=1e-12)

    def test_a_shift_of_a_whole_field_changes_nothing_unless_the_mean_is_kept(self):
        x = clips()
        shifted = x.clone()
        shifted[:, 1:] += torch.randn(2, 4, 4)[..., None, None]
        network = narrow()
        torch.testing.assert_close(network(shifted), network(x), rtol=1e-4, atol=1e-5)
        network.subtract_mean = False
        assert (network(shifted) - network(x)).abs().max() > 1e-3

    def test_each_tower_reads_its_own_channels(self):
        network = narrow(appearance_channels=2)
        x = clips()
        before = network.forward_features(x).chunk(2, dim=2)
        for channels, tower in ((slice(0, 2), 0), (slice(2, 5), 1)):
            changed = x.clone()
            changed[:, channels] = torch.randn_like(changed[:, channels])
            after = network.forward_features(changed).chunk(2, dim=2)
            assert not torch.equal(after[tower], before[tower])
            assert torch.equal(after[1 - tower], before[1 - tower])

    def test_without_motion_both_towers_read_all_channels_as_they_are(self):
        network = narrow(in_channels=2, appearance_channels=2)
        assert network.spatial.trunk.conv1.conv.in_channels == network.temporal.trunk.conv1.conv.in_channels == 2
        x = clips(channels=2)
        before = network.forward_features(x).chunk(2, dim=2)
        after = network.forward_features(x + 1).chunk(2, dim=2)
        assert not any(torch.allclose(a, b) for a, b in zip(before, after, strict=True))


class TestScores:
    def test_logits_are_the_weighted_mean_of_the_towers_logits(self):
        network = narrow(motion_weight=1.5)
        x = clips()
        features = network.forward_features(x)
        spatial, temporal = (logits.mean(1) for logits in tower_logits(network, features))
        expected = (spatial + 1.5 * temporal) / 2.5
        np.testing.assert_allclose(network(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
        branches = network.forward_branches(features)
        assert list(branches) == ["spatial", "temporal"]
        for logits, oracle in zip(branches.values(), (spatial, temporal), strict=True):
            np.testing.assert_allclose(logits.detach().numpy(), oracle, rtol=1e-4, atol=1e-5)

    def test_probabilities_are_averaged_over_slices_and_towers(self):
        network = narrow(stage="softmax", motion_weight=2.0)
        x = clips()
        features = network.forward_features(x)
        spatial, temporal = (softmax(logits).mean(1) for logits in tower_logits(network, features))
        np.testing.assert_allclose(network(x).softmax(1).detach(), (spatial + 2 * temporal) / 3, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(network(x).exp().detach().sum(1), 1, rtol=1e-5)
        for logits, oracle in zip(network.forward_branches(features).values(), (spatial, temporal), strict=True):
            np.testing.assert_allclose(logits.softmax(1).detach(), oracle, rtol=1e-4, atol=1e-6)

    def test_one_output_is_averaged_as_a_sigmoid(self):
        network = narrow(stage="softmax", num_classes=1)
        x = clips()
        both = tower_logits(network, network.forward_features(x))
        expected = np.mean([1 / (1 + np.exp(-logits)) for logits in both], axis=(0, 2))
        np.testing.assert_allclose(network(x).sigmoid().detach(), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("num_classes", [1, 3])
    def test_sure_towers_give_finite_logits(self, num_classes):
        network = narrow(stage="softmax", num_classes=num_classes)
        with torch.no_grad():
            network.classifier.weight.abs_().mul_(1e4)
        logits = network(clips())
        assert logits.isfinite().all()
        assert logits.abs().max() > 1e2

    def test_two_biases_are_those_of_two_networks(self):
        network = narrow(stage="softmax")
        features = network.forward_features(clips())
        own = [torch.randn(3), torch.randn(3)]
        with torch.no_grad():
            network.classifier.bias.copy_((own[0] + own[1]) / 2)
            network.stream_bias.gap.copy_((own[0] - own[1]) / 2)
        halves = network.classifier.weight.chunk(2, dim=1)
        expected = [F.linear(part, *pair) for part, *pair in zip(features.chunk(2, dim=2), halves, own, strict=True)]
        found = network.part_logits(features.chunk(2, dim=2))
        torch.testing.assert_close(found, torch.stack(expected, dim=2), rtol=1e-4, atol=1e-5)
        assert isinstance(narrow(stage="logits").stream_bias, torch.nn.Identity)

    @pytest.mark.parametrize("stage", ["logits", "softmax"])
    def test_the_loss_of_a_tower_trains_that_tower_only(self, stage):
        network = narrow(stage=stage).train()
        for name, other in (("spatial", "temporal"), ("temporal", "spatial")):
            network.zero_grad()
            network.forward_branches(network.forward_features(clips()))[name].square().sum().backward()
            own = [parameter.grad.abs().sum() > 0 for parameter in getattr(network, name).parameters()]
            assert all(own)
            left = [parameter.grad for parameter in getattr(network, other).parameters()]
            assert all(grad is None or not grad.any() for grad in left)
            halves = network.classifier.weight.grad.chunk(2, dim=1)
            assert [bool(half.any()) for half in halves] == [name == "spatial", name == "temporal"]


class TestSVM:
    def test_is_the_average_until_it_is_fitted(self):
        average, fused = narrow(), narrow(fusion="svm")
        fused.load_state_dict(average.state_dict(), strict=False)
        x = clips()
        assert torch.equal(fused(x), average(x))

    @pytest.mark.parametrize(("num_classes", "columns"), [(1, 4), (2, 4), (3, 6)])
    def test_gives_the_decisions_of_scikit_learn(self, num_classes, columns):
        network = narrow(fusion="svm", num_classes=num_classes)
        features = torch.rand(24, 3, network.num_features)
        scores = network.stream_scores(features)
        assert scores.shape == (24, columns)
        assert len(network.svm.weight) == num_classes
        labels = np.arange(24) % max(2, num_classes)
        theirs = LinearSVC(C=10).fit(scores.detach().numpy(), labels)
        network.set_svm(theirs.coef_, theirs.intercept_)
        decisions = network.aggregate(features).detach().numpy()
        expected = theirs.decision_function(scores.detach().numpy())
        if num_classes == 1:
            decisions = decisions[:, 0]
        elif num_classes == 2:
            decisions = decisions[:, 1] - decisions[:, 0]
        np.testing.assert_allclose(decisions, expected, rtol=1e-4, atol=1e-5)

    def test_reads_the_mean_probabilities_of_each_tower_over_their_norm(self):
        network = narrow(fusion="svm")
        features = network.forward_features(clips())
        means = [softmax(logits).mean(1) for logits in tower_logits(network, features)]
        expected = np.concatenate([mean / np.linalg.norm(mean, axis=1, keepdims=True) for mean in means], axis=1)
        np.testing.assert_allclose(network.stream_scores(features).detach(), expected, rtol=1e-4, atol=1e-6)

    def test_travels_with_the_weights_and_is_no_parameter(self):
        network = narrow(fusion="svm")
        network.set_svm(torch.randn(3, 6), torch.randn(3))
        other = narrow(fusion="svm")
        other.load_state_dict(network.state_dict())
        x = clips()
        assert torch.equal(other(x), network(x))
        assert not torch.equal(network(x), network.forward_branches(network.forward_features(x))["spatial"])
        assert not any(name.startswith("svm") for name, _ in network.named_parameters())
        network.reset_classifier(4)
        assert network(x).shape == (2, 4)
        assert not network.svm.fitted

    def test_refuses_weights_that_do_not_fit(self):
        with pytest.raises(ConfigError, match=r"has weights \(3, 6\), got \(3, 5\) with 3 bias"):
            narrow(fusion="svm").set_svm(np.zeros((3, 5)), np.zeros(3))
        with pytest.raises(ConfigError, match="got \\(1, 6\\) with 1 bias"):
            narrow(fusion="svm").set_svm(np.zeros((1, 6)), np.zeros(1))
        with pytest.raises(ConfigError, match="not all finite"):
            narrow(fusion="svm").set_svm(np.full((3, 6), np.nan), np.zeros(3))
        with pytest.raises(ConfigError, match="without an SVM"):
            narrow().set_svm(np.zeros((3, 6)), np.zeros(3))


class TestHeads:
    heads = (4, 3)

    def test_loss_is_the_sum_of_two_cross_entropies(self):
        logits = torch.randn(9, 7, dtype=torch.float64, requires_grad=True)
        own = torch.tensor([0, 1, 1, 0, 0, 1, 0, 0, 0])
        targets = torch.tensor([3, 2, 0, 1, 0, 1, 2, 3, 3])
        loss = head_loss(logits, F.one_hot(targets + 4 * own, 7).double(), self.heads)
        first, second = own == 0, own == 1
        expected = F.cross_entropy(logits[first, :4], targets[first]) + F.cross_entropy(
            logits[second, 4:], targets[second]
        )
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert not logits.grad[first, 4:].any()
        assert not logits.grad[second, :4].any()
        assert logits.grad[first, :4].any(1).all()

    def test_a_head_without_studies_adds_nothing(self):
        logits = torch.randn(3, 7, requires_grad=True)
        targets = torch.tensor([0, 1, 2])
        loss = head_loss(logits, F.one_hot(targets + 4, 7).float(), self.heads)
        torch.testing.assert_close(loss, F.cross_entropy(logits[:, 4:], targets))
        loss.backward()
        assert logits.grad.isfinite().all()

    def test_probabilities_sum_to_one_in_each_head(self):
        network = narrow(num_classes=7, heads=self.heads, stage="softmax")
        x = clips()
        spatial, temporal = tower_logits(network, network.forward_features(x))
        expected = [
            (softmax(spatial[..., part]) + softmax(temporal[..., part])).mean(1) / 2 for part in (slice(4), slice(4, 7))
        ]
        np.testing.assert_allclose(network(x).exp().detach(), np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-6)

    def test_a_new_last_layer_has_one_head(self):
        network = narrow(num_classes=7, heads=self.heads, stage="softmax", fusion="svm")
        assert network.stream_scores(torch.randn(2, 3, network.num_features)).shape == (2, 14)
        network.reset_classifier(3)
        assert network.architecture["options"]["heads"] is None
        x = clips()
        torch.testing.assert_close(network(x).exp().sum(1), torch.ones(2))
        assert network.stream_scores(torch.randn(2, 3, network.num_features)).shape == (2, 6)

    def test_refuses_heads_that_do_not_fit(self):
        with pytest.raises(ConfigError, match=r"heads of 4 \+ 3 outputs make 7, got num_classes=6"):
            narrow(num_classes=6, heads=self.heads)
        with pytest.raises(ConfigError, match="need 8 logits and targets, got 7 and 8"):
            head_loss(torch.zeros(2, 7), torch.zeros(2, 8), (4, 4))
        with pytest.raises(ConfigError, match="need 7 logits and targets, got 7 and 2"):
            head_loss(torch.zeros(2, 7), torch.zeros(2, 2), self.heads)


class TestOneTowerAlone:
    @pytest.mark.parametrize(("tower", "channels", "count"), [("spatial", 3, 90_627_813), ("temporal", 20, 90_707_781)])
    def test_has_the_parameters_of_that_tower_of_the_paper(self, tower, channels, count):
        with torch.device("meta"):
            network = create("two-stream", num_classes=101, in_channels=channels, faithful=True, tower=tower)
        assert sum(weight.numel() for weight in network.parameters()) == count
        assert hasattr(network.get_submodule(tower).trunk, "norm2") == (tower == "spatial")

    @pytest.mark.parametrize(("tower", "first"), [("spatial", 0), ("temporal", 1)])
    @pytest.mark.parametrize("stage", ["logits", "softmax"])
    def test_gives_what_it_gives_beside_the_other(self, tower, first, stage):
        both, x = narrow(stage=stage), clips()
        alone = narrow(stage=stage, tower=tower, in_channels=4 if first else 1)
        alone.get_submodule(tower).load_state_dict(both.get_submodule(tower).state_dict())
        half = both.num_features // 2
        with torch.no_grad():
            alone.classifier.weight.copy_(both.classifier.weight[:, first * half : (first + 1) * half])
            alone.classifier.bias.copy_(both.classifier.bias)
            if stage == "softmax":
                alone.classifier.bias.add_(both.stream_bias.gap * (1 - 2 * first))
            expected = both.forward_branches(both.forward_features(x))[tower]
            read = x[:, 1:] if first else x[:, :1]
            assert torch.allclose(alone(read).softmax(1), expected.softmax(1), atol=1e-5)
            assert list(alone.forward_branches(alone.forward_features(read))) == [tower]

    def test_takes_the_mean_away_from_motion_only(self):
        x = clips(channels=4)
        spatial, temporal = (narrow(tower=tower, in_channels=4) for tower in ("spatial", "temporal"))
        with torch.no_grad():
            assert torch.allclose(temporal(x), temporal(x + 5), atol=1e-4)
            assert not torch.allclose(spatial(x), spatial(x + 5), atol=1e-4)

    def test_has_no_svm(self):
        with pytest.raises(ConfigError, match="both towers"):
            narrow(tower="spatial", fusion="svm")
