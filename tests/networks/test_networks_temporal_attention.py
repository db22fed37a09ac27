from __future__ import annotations

import math

import pytest
import torch
from monai.visualize import GradCAM
from torch import nn

from volrec.errors import ConfigError
from volrec.networks import SequenceNetwork, SlicewiseNetwork, create, describe
from volrec.networks.layers import SoftAttention, coverage_penalty
from volrec.networks.temporal_attention import SliceEncoder3d


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(**options):
    return create("temporal-attention", **{"num_classes": 2, "width": 1 / 16, "backbone": "vgg-16", **options})


def spread(module: nn.Module) -> nn.Module:
    """Draw larger weights, so that attention is far from even."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.6)
    return module


def mask_of(*lengths: int, size: int) -> torch.Tensor:
    return torch.arange(size) < torch.tensor(lengths)[:, None]


class TestSoftAttention:
    @pytest.mark.parametrize("gate", [False, True])
    def test_equals_a_loop_in_float64(self, gate):
        attention = spread(SoftAttention(5, 7, 4, gate=gate))
        features, state, mask = torch.randn(3, 6, 5), torch.randn(3, 7), mask_of(6, 4, 1, size=6)
        context, weights = attention(features, state, mask=mask)
        weight = {name: value.detach().double().tolist() for name, value in attention.state_dict().items()}
        v, h = features.double().tolist(), state.double().tolist()
        for b in range(3):
            energies = []
            for i in range(6):
                energy = 0.0
                for k in range(4):
                    inner = weight["key.bias"][k]
                    inner += sum(weight["key.weight"][k][f] * v[b][i][f] for f in range(5))
                    inner += sum(weight["query.weight"][k][s] * h[b][s] for s in range(7))
                    energy += weight["score.weight"][0][k] * math.tanh(inner)
                energies.append(energy if mask[b, i] else -math.inf)
            total = sum(math.exp(energy) for energy in energies)
            expected = [math.exp(energy) / total for energy in energies]
            scale = 1.0
            if gate:
                open_ = weight["gate.bias"][0] + sum(weight["gate.weight"][0][s] * h[b][s] for s in range(7))
                scale = 1 / (1 + math.exp(-open_))
            for i in range(6):
                assert weights[b, i].item() == pytest.approx(expected[i], abs=1e-6)
            for f in range(5):
                value = scale * sum(expected[i] * v[b][i][f] for i in range(6))
                assert context[b, f].item() == pytest.approx(value, abs=1e-5)

    def test_weights_sum_to_one_and_padding_has_none(self):
        attention = spread(SoftAttention(5, 7, 4))
        features, state, mask = torch.randn(3, 6, 5), torch.randn(3, 7), mask_of(6, 4, 1, size=6)
        _, weights = attention(features, state, mask=mask)
        torch.testing.assert_close(weights.sum(1), torch.ones(3))
        assert (weights[~mask] == 0).all()
        assert (weights[mask] > 0).all()

    def test_padding_changes_nothing(self):
        attention = spread(SoftAttention(5, 7, 4))
        features, state = torch.randn(2, 6, 5), torch.randn(2, 7)
        short, alone = attention(features[:, :4], state)
        padded, weights = attention(features, state, mask=mask_of(4, 4, size=6))
        torch.testing.assert_close(padded, short)
        torch.testing.assert_close(weights[:, :4], alone)

    def test_a_row_without_any_slice_gives_zeros_and_no_nan(self):
        attention = spread(SoftAttention(5, 7, 4))
        features = torch.randn(2, 6, 5, requires_grad=True)
        context, weights = attention(features, torch.randn(2, 7), mask=mask_of(6, 0, size=6))
        assert (context[1] == 0).all()
        assert (weights[1] == 0).all()
        context.sum().backward()
        assert features.grad.isfinite().all()

    def test_follows_a_permutation_of_the_slices(self):
        attention = spread(SoftAttention(5, 7, 4))
        features, state, order = torch.randn(2, 6, 5), torch.randn(2, 7), torch.randperm(6)
        context, weights = attention(features, state)
        same, moved = attention(features[:, order], state)
        torch.testing.assert_close(same, context)
        torch.testing.assert_close(moved, weights[:, order])

    def test_takes_features_projected_before(self):
        attention = spread(SoftAttention(5, 7, 4))
        features, state = torch.randn(2, 6, 5), torch.randn(2, 7)
        projected = attention.project(features)
        assert projected.shape == (2, 6, 4)
        for found, expected in zip(
            attention(features, state, projected=projected), attention(features, state), strict=True
        ):
            assert torch.equal(found, expected)
        _, others = attention(features, state, projected=torch.zeros_like(projected))
        torch.testing.assert_close(others, torch.full((2, 6), 1 / 6))

    def test_gate_scales_the_context_and_leaves_the_weights(self):
        attention = spread(SoftAttention(5, 7, 4, gate=True))
        features, state = torch.randn(2, 6, 5), torch.randn(2, 7)
        nn.init.zeros_(attention.gate.weight)
        found = {}
        for bias in (-100.0, 0.0, 100.0):
            nn.init.constant_(attention.gate.bias, bias)
            found[bias] = attention(features, state)
        torch.testing.assert_close(found[0.0][0], found[100.0][0] / 2)
        assert found[-100.0][0].abs().max() < 1e-30
        assert all(torch.equal(weights, found[0.0][1]) for _, weights in found.values())

    @pytest.mark.parametrize("mask", [torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 6), torch.ones(6) > 0])
    def test_refuses_a_mask_of_another_shape_or_type(self, mask):
        with pytest.raises(ConfigError, match=r"bool and \(B, T\) = \(2, 6\), got torch") as caught:
            SoftAttention(5, 7, 4)(torch.randn(2, 6, 5), torch.randn(2, 7), mask=mask)
        assert str(tuple(mask.shape)) in caught.value.problem


class TestCoveragePenalty:
    def test_is_zero_where_every_slice_gathers_one(self):
        assert coverage_penalty(torch.eye(5)[None]).item() == 0
        assert coverage_penalty(torch.full((2, 5, 5), 0.2)).item() == pytest.approx(0, abs=1e-12)

    def test_is_largest_where_all_steps_look_at_one_slice(self):
        weights = torch.zeros(1, 4, 5)
        weights[:, :, 2] = 1
        assert coverage_penalty(weights, scale=1).item() == pytest.approx((1 - 4) ** 2 + 4)
        assert coverage_penalty(weights).item() == pytest.approx(0.70602 * 13)

    def test_few_steps_can_meet_their_share(self):
        assert coverage_penalty(torch.full((1, 2, 8), 1 / 8), target=2 / 8).item() == 0
        assert coverage_penalty(torch.full((1, 2, 8), 1 / 8)).item() > 0

    def test_padding_is_not_asked_for_and_studies_are_averaged(self):
        weights = torch.zeros(2, 3, 6)
        weights[0, :, :3] = torch.eye(3)
        weights[1, :, 0] = 1
        mask = mask_of(3, 3, size=6)
        assert coverage_penalty(weights, mask=mask, scale=1).item() == pytest.approx((0 + 4 + 2) / 2)


class TestThePapersForm:
    def test_decoder_has_the_counted_parameters(self):
        told = describe("temporal-attention")
        assert told["parameters"] == 83_944_616
        assert told["gmacs"] == pytest.approx(44.53, abs=0.01)
        layers = {layer["name"]: layer for layer in told["layers"]}
        cell = layers["decoder.gates"]["parameters"]
        decoder = sum(
            layer["parameters"] for name, layer in layers.items() if name.startswith(("decoder.", "classifier"))
        )
        assert cell == 63_929_096
        assert decoder == 77_971_064
        # With words: their 468 numbers enter the cell, 20,000 classes; two biases that change nothing.
        assert (cell + 4 * 3518 * 468) / 1e6 == pytest.approx(70.5, abs=0.05)
        words = decoder + 4 * 3518 * 468 + 20_000 * 468 + 469 * (20_000 - 101) + 468 + 1
        assert words / 1e6 == pytest.approx(103.25, abs=0.01)
        assert not any(name.startswith(("neighbours", "encoder3d")) for name in layers)

    def test_has_the_sizes_of_the_table(self):
        layers = {layer["name"]: layer["output"] for layer in describe("temporal-attention")["layers"]}
        assert layers["decoder.attend.key"] == [28, 1024]
        assert layers["decoder.start"] == [2 * 3518]
        assert layers["decoder.gates"] == [4 * 3518]
        assert layers["decoder.readout"] == [468]
        assert layers["classifier"] == [101]

    def test_reads_any_number_of_frames_of_its_own_size(self):
        with torch.device("meta"):
            network = create("temporal-attention", num_classes=2, faithful=True).eval()
            assert network(torch.empty(1, 3, 26, 224, 224)).shape == (1, 2)
            assert network.attention(torch.empty(1, 3, 5, 224, 224)).shape == (1, 3, 5)
            with pytest.raises(ConfigError, match=r"exactly T x H x W = any x 224 x 224"):
                network(torch.empty(1, 3, 28, 112, 112))

    def test_3d_features_join_the_2d_ones(self):
        layers = {layer["name"]: layer for layer in describe("temporal-attention", encoder3d="conv3d")["layers"]}
        assert layers["decoder.attend.key"]["output"] == [28, 1024 + 128]
        assert layers["encoder3d.trunk.pool3"]["output"] == [128, 4, 28, 28]
        convs = [layer["parameters"] for layer in layers.values() if layer["kind"] == "Conv3d"]
        assert convs == [27 * 3 * 32 + 32, 27 * 32 * 64 + 64, 27 * 64 * 128 + 128]

    def test_starts_from_the_released_weights(self):
        network = create("temporal-attention", num_classes=40, faithful=True, width=1 / 16)
        decoder = network.decoder
        recurrent = decoder.gates.weight[:, -decoder.units :]
        for block in recurrent.split(decoder.units):
            torch.testing.assert_close(block @ block.T, torch.eye(decoder.units), atol=1e-5, rtol=0)
        for weight in (decoder.start.weight, decoder.readout.weight, decoder.attend.query.weight):
            assert weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert decoder.gates.weight[:, : -decoder.units].std().item() == pytest.approx(0.01, rel=0.05)
        assert all((p == 0).all() for name, p in decoder.named_parameters() if name.endswith("bias"))

    @pytest.mark.parametrize(
        "options",
        [{"context": "conv"}, {"encoder3d": "c3d"}, {"units": 512}, {"backbone": "vgg-16"}, {"pool_time": False}],
    )
    def test_refuses_what_the_paper_does_not_have(self, options):
        with pytest.raises(ConfigError, match="when faithful=True"):
            create("temporal-attention", num_classes=2, faithful=True, **options)

    def test_options_that_settle_an_ambiguity_change_the_network(self):
        narrow = {"num_classes": 2, "faithful": True, "width": 1 / 32}
        network = create("temporal-attention", **narrow)
        assert network.decoder.steps == 3
        assert network.decoder.attend.gate is not None
        assert create("temporal-attention", **narrow, steps=1).decoder.steps == 1
        assert create("temporal-attention", **narrow, gate=False).decoder.attend.gate is None


class TestDecoder:
    def test_a_step_equals_the_lstm_cell_of_torch(self):
        decoder = build().decoder.eval()
        features, size = decoder.gates.in_features - decoder.units, decoder.units
        cell = nn.LSTMCell(features, size)
        # torch orders the gates input, forget, new, output; here the three sigmoids come first.
        order = torch.cat([torch.arange(2 * size), torch.arange(3 * size, 4 * size), torch.arange(2 * size, 3 * size)])
        with torch.no_grad():
            decoder.gates.bias.normal_()
            cell.weight_ih.copy_(decoder.gates.weight[order, :features])
            cell.weight_hh.copy_(decoder.gates.weight[order, features:])
            cell.bias_ih.copy_(decoder.gates.bias[order])
            cell.bias_hh.zero_()
        context, state, memory = torch.randn(3, features), torch.randn(3, size), torch.randn(3, size)
        for found, expected in zip(decoder.step(context, state, memory), cell(context, (state, memory)), strict=True):
            torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("padded", [False, True])
    def test_equals_its_equations_step_by_step_in_float64(self, padded):
        network = build(steps=3, context="none").eval()
        decoder = spread(network.decoder).double()
        network.double()
        v = torch.randn(2, 5, network.backbone.num_features, dtype=torch.float64)
        mask = mask_of(5, 3, size=5) if padded else None
        logits, weights = network.aggregate(v, mask=mask), network.step_weights(v, mask=mask)
        for b in range(2):
            real = v[b] if mask is None else v[b][mask[b]]
            start = (decoder.start.weight @ real.mean(0) + decoder.start.bias).tanh()
            h, c = start[: decoder.units], start[decoder.units :]
            readouts = []
            for t in range(3):
                attend = decoder.attend
                energies = [
                    attend.score.weight[0]
                    @ (attend.key.weight @ one + attend.key.bias + attend.query.weight @ h).tanh()
                    for one in real
                ]
                alpha = torch.stack(energies).exp()
                alpha = alpha / alpha.sum()
                torch.testing.assert_close(weights[b, t, : len(real)], alpha)
                context = sum(a * one for a, one in zip(alpha, real, strict=True))
                context = context * torch.sigmoid(attend.gate.weight[0] @ h + attend.gate.bias)
                i, f, o, g = (decoder.gates.weight @ torch.cat([context, h]) + decoder.gates.bias).chunk(4)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                readouts.append((decoder.readout.weight @ torch.cat([h, context]) + decoder.readout.bias).tanh())
            expected = network.classifier(torch.stack(readouts).mean(0))
            torch.testing.assert_close(logits[b], expected)

    def test_dropout_reaches_gates_state_and_readout(self):
        network = build(width=0.25, dropout=0.5)
        seen = {}
        network.decoder.readout.register_forward_hook(lambda module, inputs, output: seen.update(state=inputs[0]))
        network.classifier.register_forward_hook(lambda module, inputs, output: seen.update(readout=inputs[0]))
        network.aggregate(torch.randn(16, 5, network.backbone.num_features))
        hidden = network.decoder.units
        assert 0.4 < (seen["state"][:, :hidden] == 0).float().mean() < 0.6
        assert (seen["state"][:, hidden:] != 0).all()
        assert 0.4 < (seen["readout"] == 0).float().mean() < 0.6
        # A dropped pre-activation leaves its gate half open: with gates that are else shut, half of the new state.
        decoder = network.decoder
        nn.init.zeros_(decoder.gates.weight)
        with torch.no_grad():
            decoder.gates.bias[: 3 * hidden] = -50.0
            decoder.gates.bias[3 * hidden :] = 50.0
        _, memory = decoder.step(torch.zeros(16, decoder.gates.in_features - hidden), *torch.zeros(2, 16, hidden))
        assert 0.4 < (memory == 0.5).float().mean() < 0.6
        assert set(memory.unique().round(decimals=6).tolist()) == {0.0, 0.5}

    def test_forget_gates_start_open_where_adapted(self):
        decoder = build().decoder
        assert decoder.gates.bias.reshape(4, -1).mean(1).tolist() == [0, 1, 0, 0]


class TestWeightsOfSlices:
    @pytest.mark.parametrize("options", [{}, {"encoder3d": "conv3d"}, {"encoder3d": "c3d"}, {"context": "none"}])
    def test_sum_to_one_over_slices_at_every_step(self, options):
        network = build(steps=4, **options).eval()
        spread(network.decoder)
        x = torch.randn(2, 1, 7, 32, 36)
        weights = network.attention(x)
        assert weights.shape == (2, 4, 7)
        torch.testing.assert_close(weights.sum(2), torch.ones(2, 4))
        assert weights.std() > 0.001
        features = network.forward_features(x)
        torch.testing.assert_close(network.slice_weights(features), weights.mean(1))
        torch.testing.assert_close(network.slice_weights(features).sum(1), torch.ones(2))

    def test_attention_checks_its_clip(self):
        with pytest.raises(ConfigError, match="from T x H x W = 1 x 16 x 16 up"):
            build().attention(torch.zeros(1, 1, 3, 8, 8))

    @pytest.mark.parametrize("context", ["none", "conv"])
    def test_padding_changes_no_score(self, context):
        network = build(context=context).eval()
        spread(network.decoder)
        features = torch.randn(2, 6, network.backbone.num_features)
        short = network.aggregate(features[:, :4])
        padded = network.aggregate(features, mask=mask_of(4, 4, size=6))
        torch.testing.assert_close(padded, short)
        assert not torch.allclose(network.aggregate(features), short)
        weights = network.slice_weights(features, mask=mask_of(4, 4, size=6))
        assert (weights[:, 4:] == 0).all()
        with pytest.raises(ConfigError, match="mask of slices"):
            network.aggregate(features, mask=torch.ones(2, 6))

    def test_follow_a_permutation_where_slices_are_a_set(self):
        network = build(context="none").eval()
        spread(network.decoder)
        features, order = torch.randn(2, 6, network.backbone.num_features), torch.tensor([3, 0, 5, 1, 4, 2])
        torch.testing.assert_close(network.aggregate(features[:, order]), network.aggregate(features))
        torch.testing.assert_close(network.slice_weights(features[:, order]), network.slice_weights(features)[:, order])

    def test_order_counts_where_slices_see_their_neighbours(self):
        network = build(context="conv").eval()
        features, order = torch.randn(2, 6, network.backbone.num_features), torch.tensor([3, 0, 5, 1, 4, 2])
        moved, plain = network.aggregate(features[:, order]), network.aggregate(features)
        assert (moved - plain).abs().max() > 1e-4
        changed = features.clone()
        changed[:, 3] += 1
        differs = (network.neighbours(changed) != network.neighbours(features)).any(2).any(0)
        assert differs.tolist() == [False, False, True, True, True, False]

    # A slice that has taken in its neighbours may stand for them: "conv" blurs the weights by one slice.
    @pytest.mark.parametrize(("context", "blur"), [("none", 0), ("conv", 1)])
    def test_find_a_planted_slice_after_a_short_training(self, context, blur):
        # Six classes: of two, a decoder may learn to look for the one and take its absence for the other.
        network = build(context=context, num_classes=6)
        size = network.backbone.num_features
        patterns = torch.randn(6, size) * 1.5

        def studies(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            features = torch.randn(count, 9, size) * 0.5
            labels, places = torch.randint(6, (count,)), torch.randint(9, (count,))
            features[torch.arange(count), places] += patterns[labels]
            return features, labels, places

        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(60):
            features, labels, _ = studies(32)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network.aggregate(features), labels).backward()
            optimizer.step()
        network.eval()
        features, labels, places = studies(200)
        assert (network.aggregate(features).argmax(1) == labels).float().mean() > 0.9
        found = network.slice_weights(features).argmax(1)
        assert ((found - places).abs() <= blur).float().mean() > 0.8

    def test_penalty_reaches_the_weights(self):
        network = build()
        features = torch.randn(2, 5, network.backbone.num_features)
        coverage_penalty(network.step_weights(features), target=3 / 5).backward()
        assert network.decoder.attend.score.weight.grad.abs().sum() > 0


class TestEncoder3d:
    def test_a_network_with_one_is_not_slicewise(self):
        assert isinstance(build(), SlicewiseNetwork)
        for kind in ("conv3d", "c3d"):
            network = build(encoder3d=kind)
            assert isinstance(network, SequenceNetwork)
            assert not isinstance(network, SlicewiseNetwork)

    @pytest.mark.parametrize("kind", ["conv3d", "c3d"])
    def test_features_are_those_of_both_networks(self, kind):
        network = build(encoder3d=kind, in_channels=2).eval()
        x = torch.randn(2, 2, 5, 32, 35)
        features = network.forward_features(x)
        flat = network.backbone(x.transpose(1, 2).reshape(10, 2, 32, 35)).reshape(2, 5, -1)
        torch.testing.assert_close(features[:, :, : flat.shape[2]], flat)
        torch.testing.assert_close(features[:, :, flat.shape[2] :], network.encoder3d(x))
        assert features.shape[2] == network.decoder.attend.key.in_features

    @pytest.mark.parametrize("pool_time", [False, True])
    @pytest.mark.parametrize("slices", [1, 2, 5, 13])
    @pytest.mark.parametrize("kind", ["conv3d", "c3d"])
    def test_every_slice_has_a_feature_and_counts(self, kind, slices, pool_time):
        encoder = SliceEncoder3d(kind, in_channels=1, width=0.1, norm="none", pool_time=pool_time).eval()
        x = torch.randn(1, 1, slices, *encoder.smallest)
        features = encoder(x)
        assert features.shape == (1, slices, encoder.num_features)
        for index in {0, slices // 2, slices - 1}:
            changed = x.clone()
            changed[:, :, index] += 5
            assert not torch.equal(encoder(changed), features), index

    @pytest.mark.parametrize(("kind", "slices", "index"), [("conv3d", 9, 3), ("conv3d", 9, 4), ("c3d", 19, 9)])
    def test_features_belong_to_the_same_slices(self, kind, slices, index):
        encoder = SliceEncoder3d(kind, in_channels=1, width=0.1, norm="none", pool_time=False).eval()
        # Kernels without a direction of their own: drawn ones lean to one side or the other.
        for layer in encoder.modules():
            if isinstance(layer, nn.Conv3d):
                nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
        x = torch.rand(1, 1, slices, 32, 32)
        changed = x.clone()
        changed[:, :, index] += 1
        change = (encoder(changed) - encoder(x)).norm(dim=2)[0]
        assert change.argmax().item() == index
        assert change[index] > 1.01 * max(change[index - 1], change[index + 1])
        assert (change[index - 3 : index].diff() > 0).all()
        assert (change[index : index + 3].diff() < 0).all()

    def test_conv3d_sees_three_slices_to_each_side(self):
        encoder = SliceEncoder3d("conv3d", in_channels=1, width=0.5, norm="none", pool_time=False).eval()
        x = torch.randn(1, 1, 12, 16, 16)
        changed = x.clone()
        changed[:, :, 5] += torch.randn(16, 16)
        differs = (encoder(changed) - encoder(x)).abs().amax((0, 2)) > 1e-6
        assert differs.tolist() == [2 <= index <= 8 for index in range(12)]

    @pytest.mark.parametrize(("kind", "stride"), [("conv3d", 8), ("c3d", 16)])
    def test_pooled_time_is_laid_back_on_the_slices_it_came_from(self, kind, stride):
        encoder = SliceEncoder3d(kind, in_channels=1, width=0.1, norm="none", pool_time=True)
        encoder.trunk = Windows(stride)  # gives the centre of the slices that each window covers
        slices = 2 * stride + 3
        x = torch.arange(float(slices)).reshape(1, 1, slices, 1, 1)
        inner = slice(stride // 2, 2 * stride - stride // 2)  # between the centres of the first two windows
        torch.testing.assert_close(encoder(x)[0, inner, 0], torch.arange(float(slices))[inner])

    def test_c3d_is_the_trunk_of_c3d(self):
        encoder = SliceEncoder3d("c3d", in_channels=1, width=0.05, norm="batch", pool_time=True).eval()
        c3d = create("c3d", num_classes=1, width=0.05).eval()
        missing, unexpected = c3d.load_state_dict(encoder.trunk.state_dict(), strict=False)
        assert set(missing) == {"fc8.weight", "fc8.bias"}
        assert not unexpected
        x = torch.randn(1, 1, 16, 32, 32)
        expected = c3d.forward_features(x).amax((2, 3, 4))
        torch.testing.assert_close(encoder(x), expected[:, None].expand(-1, 16, -1))

    @pytest.mark.parametrize("kind", ["conv3d", "c3d"])
    def test_gradients_reach_every_parameter_and_the_network_exports(self, kind):
        network = build(encoder3d=kind, pool_time=True)
        x = torch.randn(2, 1, 5, 33, 35)
        network(x).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        network.eval()
        exported = torch.export.export(network, (x,))
        torch.testing.assert_close(exported.module()(x), network(x))

    @pytest.mark.parametrize("norm", ["none", "instance", "group"])
    @pytest.mark.parametrize("kind", ["conv3d", "c3d"])
    def test_reads_one_slice_of_its_smallest_size(self, kind, norm):
        encoder = SliceEncoder3d(kind, in_channels=1, width=0.1, norm=norm, pool_time=False)
        assert encoder(torch.randn(1, 1, 1, *encoder.smallest)).isfinite().all()

    @pytest.mark.parametrize("norm", ["batch", "instance"])
    def test_reads_the_larger_of_both_smallest_sizes(self, norm):
        for kind in ("conv3d", "c3d"):
            network = build(encoder3d=kind, norm=norm)
            assert network.smallest == ((1, 32, 32) if norm == "instance" else (1, 16, 16))
            assert network(torch.randn(2, 1, *network.smallest)).isfinite().all()

    def test_grad_cam_maps_the_evidence_of_the_slices(self):
        network = build(encoder3d="conv3d").eval()
        assert GradCAM(network, network.cam_layer)(torch.randn(1, 1, 5, 40, 44)).shape == (1, 1, 5, 40, 44)

    def test_head_before_the_last_layer(self):
        network = build(encoder3d="conv3d").eval()
        x = torch.randn(2, 1, 3, 20, 20)
        before = network.forward_head(network.forward_features(x), pre_logits=True)
        assert before.shape == (2, network.num_features)
        assert torch.equal(network.classifier(before), network(x))
        assert isinstance(network.get_submodule(network.cam_layer), nn.Identity)


class Windows(nn.Module):
    """Mean of windows of `stride` slices from slice 0 on; the last may hang over the end."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.avg_pool1d(x.flatten(2), self.stride, ceil_mode=True)
        return pooled[..., None, None]
