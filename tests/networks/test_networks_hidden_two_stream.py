from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from moving import endpoint_errors, moving_blobs
from torch import nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks import create, describe, freeze_stages, spec
from volrec.networks.hidden_two_stream import _starts

NAME = "hidden-two-stream"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow(**options):
    return create(NAME, **{"num_classes": 3, "width": 1 / 16, "dropout": 0.0, **options})


def paper(**options):
    return create(NAME, **{"num_classes": 3, "width": 1 / 64, "faithful": True, **options})


def heard(network: nn.Module, part: str, x: torch.Tensor) -> list[torch.Tensor]:
    """Return what a part of the network is given while it reads clips."""
    found: list[torch.Tensor] = []
    target = network.get_submodule(part)
    hook = target.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    network(x)
    hook.remove()
    return found


class TestThePapersNetwork:
    def test_stacked_temporal_stream_has_the_published_size(self):
        told = describe(NAME, use_spatial=False)
        assert told["parameters"] == 42_319_860 + 134_684_133
        assert told["parameters"] / 1e6 == pytest.approx(177, abs=0.1)
        assert told["gmacs"] == pytest.approx(36.0, abs=0.05)
        assert told["layers"][-1]["name"] == "classifier"

    def test_both_streams_have_their_own_last_layer(self):
        told = describe(NAME)
        parts = {layer["name"]: layer for layer in told["layers"]}
        assert parts["classifier"]["parameters"] == 2 * (4096 + 1) * 101
        assert parts["classifier"]["output"] == [2, 101]
        spatial = sum(layer["parameters"] for name, layer in parts.items() if name.startswith("spatial."))
        assert told["parameters"] == 42_319_860 + 134_684_133 + spatial + 4097 * 101 == 311_678_334
        assert told["gmacs"] == pytest.approx(51.48, abs=0.005)

    def test_has_the_layers_of_the_table(self):
        found = {layer["name"]: layer["output"] for layer in describe(NAME)["layers"]}
        assert found["motion.decoder.predict_flow2"] == [20, 112, 112]
        assert found["temporal.trunk.conv1_1.conv"] == found["spatial.trunk.conv1_1.conv"] == [64, 224, 224]
        assert found["temporal.tail.fc7"] == found["spatial.tail.fc7"] == [4096]

    def test_hands_fields_over_as_if_read_from_pictures_of_8_bits(self):
        network = paper().eval()
        assert network.motion.slices == 11
        with torch.no_grad():
            layer = network.motion.decoder["predict_flow2"]
            layer.weight.zero_()
            layer.bias.copy_(torch.linspace(-1.5, 1.5, 20))
        x = 0.25 * torch.randn(1, 3, 11, 224, 224)
        given = heard(network, "temporal.trunk", x)[0]
        pixels = (20 * torch.linspace(-1.5, 1.5, 20)).clamp(-20, 20)
        expected = (pixels + 20) * 255 / 40 - 128
        torch.testing.assert_close(given, expected[:, None, None].expand(1, 20, 224, 224), rtol=1e-4, atol=1e-4)
        assert expected[0] == -128
        assert expected[-1] == 127
        torch.testing.assert_close(heard(network, "motion.encoder.level1", x)[0], x.transpose(1, 2).flatten(1, 2))
        assert torch.equal(heard(network, "spatial", x)[0], x[:, :, 5])

    def test_drops_and_starts_as_released(self):
        network = paper(num_classes=200)
        for stream in (network.temporal, network.spatial):
            assert stream.tail.drop6.p == 0.9
            assert stream.tail.drop7.p == 0.8
        assert network.drop.p == 0
        assert network.classifier.weight.std().item() == pytest.approx(0.001, rel=0.05)

    @pytest.mark.parametrize(
        "options",
        [{"fields": 5}, {"temporal": "resnet-18"}, {"stage": "logits"}, {"temporal_network": "c3d"}, {"levels": 4}],
    )
    def test_refuses_what_the_paper_does_not_have(self, options):
        with pytest.raises(ConfigError, match="when faithful=True"):
            paper(**options)

    def test_takes_what_settles_an_ambiguity(self):
        for options in ({"motion": "tiny-motionnet"}, {"scale_weights": "whole"}, {"use_spatial": False}):
            paper(**options)


class TestWindows:
    @pytest.mark.parametrize("fields", [1, 2, 5, 10])
    def test_are_as_few_as_cover_all_steps_and_evenly_laid(self, fields):
        for slices in range(1, 80):
            starts = _starts(slices, fields)
            steps = max(slices, 2) - 1
            assert len(starts) == max(1, -(-steps // fields))
            covered = {start + place for start in starts for place in range(fields)}
            assert covered >= set(range(steps))
            if len(starts) > 1:
                assert starts[0] == 0
                assert starts[-1] == steps - fields
                gaps = {after - before for before, after in pairwise(starts)}
                assert max(gaps) - min(gaps) <= 1
            else:
                before, after = -starts[0], starts[0] + fields - steps
                assert 0 <= before - after <= 1
                assert after >= 0

    def test_reach_the_motion_network_in_order_standardised_and_continued(self):
        network = narrow(in_channels=2).eval()
        clips = 40 * torch.rand(2, 2, 3, 32, 33) - 1000
        stack = heard(network, "motion.encoder.level1", clips)[0].unflatten(1, (6, 2))
        like = clips.double()
        spread = like.std((2, 3, 4), correction=0, keepdim=True)
        like = ((like - like.mean((2, 3, 4), keepdim=True)) / (4 * spread)).float()
        expected = like[:, :, [0, 0, 0, 1, 2, 2]].transpose(1, 2)
        torch.testing.assert_close(stack, expected, rtol=1e-3, atol=1e-3)
        # Two windows a clip, from slices 0 and 3 of 9.
        long = torch.randn(2, 2, 9, 32, 33)
        stacks = heard(network, "motion.encoder.level1", long)[0].unflatten(1, (6, 2))
        alone = heard(network, "motion.encoder.level1", long[1:])[0].unflatten(1, (6, 2))
        torch.testing.assert_close(stacks[2:], alone)
        torch.testing.assert_close(alone[0, 3:], alone[1, :3])
        assert torch.equal(heard(network, "spatial", long)[0], long[:, :, [3, 6]].transpose(1, 2).flatten(0, 1))

    def test_features_are_means_over_windows(self):
        network = narrow(fields=2).eval()
        x = torch.randn(2, 1, 9, 32, 32)
        found = network.forward_features(x)
        spatial = torch.stack([network.spatial(x[:, :, index]) for index in (1, 3, 5, 7)], 1).mean(1)
        fields = network.predict_flow(x) / 20
        stacks = [fields[:, :, index : index + 2].transpose(1, 2).flatten(1, 2) for index in (0, 2, 4, 6)]
        temporal = torch.stack([network.temporal(stack) for stack in stacks], 1).mean(1)
        torch.testing.assert_close(found, torch.cat([spatial, temporal], 1), rtol=1e-4, atol=1e-5)


class TestPredictedMotion:
    def test_has_a_field_for_each_step_whatever_the_number_of_slices(self):
        network = narrow(in_channels=2).eval()
        for slices in (1, 2, 3, 5, 6, 7, 12):
            assert network.predict_flow(torch.randn(2, 2, slices, 33, 40)).shape == (2, 2, slices - 1, 33, 40)

    def test_is_the_mean_of_overlapping_windows(self):
        network = narrow(fields=3).eval()
        x = torch.randn(1, 1, 6, 32, 32)
        like = (x - x.mean()) / (4 * x.std(correction=0))
        windows = [network.motion.flow(like[:, :, start : start + 4].transpose(1, 2))[0] for start in (0, 2)]
        first, second = (window.transpose(0, 1) for window in windows)
        expected = torch.cat([first[:, :2], (first[:, 2:] + second[:, :1]) / 2, second[:, 1:]], 1)
        torch.testing.assert_close(network.predict_flow(x)[0], expected, rtol=1e-4, atol=1e-5)

    def test_does_not_depend_on_range_and_offset_of_intensities(self):
        network = narrow().eval()
        x = torch.randn(1, 1, 6, 32, 32)
        torch.testing.assert_close(network.predict_flow(300 * x - 1000), network.predict_flow(x), rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(network.auxiliary_loss(300 * x - 1000), network.auxiliary_loss(x), rtol=1e-3, atol=0)

    def test_a_constant_clip_has_finite_loss_and_gradients(self):
        network = narrow()
        x = torch.ones(2, 1, 6, 32, 32, requires_grad=True)
        (network.auxiliary_loss(x) + network(x).square().sum()).backward()
        assert x.grad.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())

    def test_refuses_what_the_network_cannot_read(self):
        network = narrow()
        for read in (network.predict_flow, network.auxiliary_loss):
            with pytest.raises(ConfigError, match=r"reads clips \(B, C, T, H, W\)"):
                read(torch.zeros(1, 6, 32, 32))


class TestStages:
    def test_of_training_are_the_papers(self):
        stages = spec(NAME).training
        assert [(stage.name, stage.objective) for stage in stages] == [
            ("motion", "motion"),
            ("temporal", "labels"),
            ("joint", "joint"),
        ]
        for options in ({}, {"use_spatial": False}):
            moving, still, whole = [], [], []
            for stage, names in zip(stages, (moving, still, whole), strict=True):
                network = narrow(**options)
                if stage.freeze:
                    freeze_stages(network, stage.freeze)
                names += [name for name, parameter in network.named_parameters() if parameter.requires_grad]
            assert {name.partition(".")[0] for name in moving} == {"motion"}
            assert "motion" not in {name.partition(".")[0] for name in still}
            assert sorted(moving + still) == sorted(whole) == sorted(dict(network.named_parameters()))

    def test_loss_without_labels_reaches_the_motion_network_alone_and_all_of_it(self):
        for motion in ("motionnet", "tiny-motionnet"):
            network = narrow(motion=motion)
            network.auxiliary_loss(torch.randn(2, 1, 7, 40, 41)).backward()
            for name, parameter in network.named_parameters():
                assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == name.startswith("motion."), (
                    name
                )

    def test_weighting_of_the_levels_changes_the_loss(self):
        x = torch.randn(1, 1, 6, 32, 32)
        losses = set()
        for scale_weights in ("ssim", "whole", "smooth"):
            torch.manual_seed(0)
            losses.add(round(narrow(scale_weights=scale_weights).auxiliary_loss(x).item(), 4))
        assert len(losses) == 3


class TestFusion:
    @pytest.mark.parametrize("weight", [1.5, 0.5])
    def test_of_logits_is_spatial_and_weighted_temporal_in_one_layer(self, weight):
        network = narrow(motion_weight=weight).eval()
        nn.init.normal_(network.classifier.bias)
        features = network.forward_features(torch.randn(2, 1, 7, 32, 32))
        parts = network.forward_branches(features)
        assert list(parts) == ["spatial", "temporal"]
        torch.testing.assert_close(network.forward_head(features), parts["spatial"] + weight * parts["temporal"])
        changed = features.clone()
        changed[:, : network.spatial_features] += 1
        others = network.forward_branches(changed)
        assert torch.equal(others["temporal"], parts["temporal"])
        assert not torch.allclose(others["spatial"], parts["spatial"])

    @pytest.mark.parametrize("classes", [1, 4])
    def test_of_softmax_is_the_weighted_mean_of_probabilities(self, classes):
        network = narrow(stage="softmax", num_classes=classes).eval()
        nn.init.normal_(network.classifier.weight, std=3)
        features = network.forward_features(torch.randn(2, 1, 7, 32, 32))
        parts = network.forward_branches(features)
        as_share = torch.sigmoid if classes == 1 else lambda scores: scores.softmax(1)
        expected = (as_share(parts["spatial"]) + 1.5 * as_share(parts["temporal"])) / 2.5
        torch.testing.assert_close(as_share(network.forward_head(features)), expected)

    def test_of_relu_l1_is_that_of_the_papers_test(self):
        network = narrow(stage="relu-l1", num_classes=5).eval()
        nn.init.normal_(network.classifier.weight, std=3)
        features = network.forward_features(torch.randn(4, 1, 7, 32, 32))
        shares = []
        for scores in network.forward_branches(features).values():
            positive = scores.clamp(min=0).double()
            shares.append(positive / positive.sum(1, keepdim=True))
        expected = (shares[0] + 1.5 * shares[1]) / 2.5
        torch.testing.assert_close(network.forward_head(features).softmax(1).double(), expected, rtol=1e-5, atol=1e-6)

    def test_of_relu_l1_stands_scores_that_are_all_negative(self):
        network = narrow(stage="relu-l1").eval()
        nn.init.constant_(network.classifier.bias, -1e3)
        assert network(torch.randn(2, 1, 7, 32, 32)).isfinite().all()

    @pytest.mark.parametrize("stage", ["softmax", "relu-l1"])
    def test_of_scores_has_a_last_layer_for_each_stream_also_when_it_is_new(self, stage):
        network = narrow(stage=stage)
        network.reset_classifier(5)
        assert network.classifier.spatial_bias.shape == (5,)
        features = network.forward_features(torch.randn(2, 1, 7, 32, 32))
        assert network.forward_head(features).shape == (2, 5)
        assert [scores.shape for scores in network.forward_branches(features).values()] == [(2, 5)] * 2
        sum(
            F.cross_entropy(part, torch.tensor([0, 1])) for part in network.forward_branches(features).values()
        ).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())

    def test_of_a_single_output_has_no_relu_l1(self):
        with pytest.raises(ConfigError, match="got num_classes=1 and stage='relu-l1'"):
            narrow(stage="relu-l1", num_classes=1)
        network = narrow(stage="relu-l1")
        with pytest.raises(ConfigError, match="got num_classes=1"):
            network.reset_classifier(1)
        narrow(stage="relu-l1", num_classes=1, use_spatial=False)

    def test_there_is_none_of_the_temporal_stream_alone(self):
        network = narrow(use_spatial=False).eval()
        assert network.spatial is None
        x = torch.randn(2, 1, 7, 32, 32)
        features = network.forward_features(x)
        assert list(network.forward_branches(features)) == ["temporal"]
        torch.testing.assert_close(network.forward_branches(features)["temporal"], network(x))


class TestNetworkWithin:
    @pytest.mark.parametrize(
        ("name", "options"),
        [("c3d", {}), ("lrcn", {"backbone": "alexnet"}), ("inflated", {"stem_stride": 1}), ("slice-mean", {})],
    )
    def test_reads_the_fields_as_a_sequence(self, name, options):
        network = narrow(temporal_network=name, temporal_options=options)
        for slices in (1, 2, 7):
            assert network(torch.randn(2, 1, slices, 35, 36)).shape == (2, 3)
        x = torch.randn(2, 1, 7, 35, 36)
        network(x).square().sum().backward()
        for label, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, label
        network.eval()
        given = []
        inner = network.temporal
        forward = inner.forward_features
        inner.forward_features = lambda sequence: (given.append(sequence), forward(sequence))[1]
        logits = network(x)
        torch.testing.assert_close(given[0], network.predict_flow(x) / 20)
        del inner.forward_features
        assert network.get_submodule(network.cam_layer) is not None
        exported = torch.export.export(network, (x,)).module()
        torch.testing.assert_close(exported(x), logits)

    @pytest.mark.parametrize("within", [None, "slice-mean"])
    def test_exports_with_an_open_batch(self, within):
        network = narrow(temporal_network=within).eval()
        x = torch.randn(2, 1, 7, 35, 36)
        exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
        other = torch.randn(3, 1, 7, 35, 36)
        torch.testing.assert_close(exported(other), network(other), rtol=1e-4, atol=1e-5)

    def test_every_step_counts(self):
        network = narrow(temporal_network="c3d", use_spatial=False, width=1 / 8).eval()
        x = torch.randn(1, 1, 9, 32, 32)
        before = network(x)
        for index in range(9):
            changed = x.clone()
            changed[:, :, index] += 5 * torch.randn(32, 32)
            assert not torch.equal(network(changed), before)

    def test_is_part_of_the_architecture(self):
        network = narrow(temporal_network="c3d", temporal_options={"norm": "group"})
        arguments = dict(network.architecture)
        options = arguments.pop("options")
        again = create(arguments.pop("name"), **arguments, **options)
        again.load_state_dict(network.state_dict())
        assert not any(isinstance(layer, nn.BatchNorm3d) for layer in network.temporal.modules())

    def test_cannot_be_itself_unknown_or_wrongly_given(self):
        with pytest.raises(ConfigError, match="cannot be its own temporal_network"):
            narrow(temporal_network=NAME)
        with pytest.raises(ConfigError, match=r"there is no network 'c3e'.*Did you mean 'c3d'"):
            narrow(temporal_network="c3e")
        with pytest.raises(ConfigError, match="c3d has no option 'nrm'"):
            narrow(temporal_network="c3d", temporal_options={"nrm": "group"})
        with pytest.raises(ConfigError, match=r"got \{'norm': 'group'\} without one"):
            narrow(temporal_options={"norm": "group"})

    def test_levels_are_those_of_the_motion_network(self):
        assert narrow(motion="motionnet", levels=5).motion.levels == 5
        with pytest.raises(ConfigError, match="TinyMotionNet has levels 3 to 4, got levels=5"):
            narrow(levels=5)


@pytest.mark.slow
def test_tells_directions_apart_that_no_slice_shows():
    """Stages motion, then labels: blobs move left or right, and single slices of both kinds look alike."""

    def clips(seed):
        pictures, step = moving_blobs(16, slices=6, side=32, seed=seed)
        fast = step[:, 0].abs() > 1
        return pictures[fast].transpose(1, 2), (step[fast, 0] > 0).long(), step[fast]

    network = create(NAME, num_classes=2, width=1 / 8, use_spatial=False, stem_stride=1, dropout=0.0)
    optimizer = torch.optim.Adam(network.motion.parameters(), lr=0.004)
    for seed in range(200):
        optimizer.zero_grad()
        network.auxiliary_loss(clips(seed)[0]).backward()
        optimizer.step()
    unseen, labels, step = clips(10_000)
    error, still = endpoint_errors(network.predict_flow(unseen).transpose(1, 2), unseen.transpose(1, 2), step)
    assert error < 0.7 * still
    freeze_stages(network, spec(NAME).training[1].freeze)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.003)
    for seed in range(200, 260):
        x, y, _ = clips(seed)
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    network.eval()
    unseen, labels, _ = (torch.cat(part) for part in zip(*(clips(seed) for seed in range(20_000, 20_006)), strict=True))
    assert (network(unseen).argmax(1) == labels).float().mean() > 0.85
