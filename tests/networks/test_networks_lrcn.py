from __future__ import annotations

import pytest
import torch
from torch import nn

from volrec.errors import ConfigError
from volrec.networks import create, describe
from volrec.networks.layers import SingleBiasLSTM


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow(**options):
    return create("lrcn", **{"num_classes": 3, "width": 1 / 16, "dropout": 0.0, **options})


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def loop(lstm: SingleBiasLSTM, x: torch.Tensor, suffix: str = "") -> torch.Tensor:
    """The recurrence of one direction step by step in float64: one bias a gate, gates i, f, g, o."""
    weights = {name: value.double() for name, value in lstm.named_parameters()}
    inner, bias = weights[f"weight_ih_l0{suffix}"], weights[f"bias_ih_l0{suffix}"]
    recurrent = weights[f"weight_hh_l0{suffix}"]
    state = cell = torch.zeros(len(x), lstm.hidden_size, dtype=torch.float64)
    states = []
    for step in x.double().unbind(1):
        i, f, g, o = (step @ inner.T + state @ recurrent.T + bias).chunk(4, dim=1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        state = o.sigmoid() * cell.tanh()
        states.append(state)
    return torch.stack(states, 1)


class TestThePapersNetwork:
    def test_has_the_published_sizes(self):
        told = describe("lrcn")
        parts = {layer["name"]: layer["parameters"] for layer in told["layers"]}
        cnn = sum(number for name, number in parts.items() if name.startswith("backbone."))
        assert cnn / 1e6 == pytest.approx(60.94, abs=0.005)
        assert parts["lstm1"] == 4 * 256 * (4096 + 256 + 1) == 4_457_472
        assert parts["classifier"] == 25_957
        assert told["parameters"] == 65_421_285
        assert told["gmacs"] == pytest.approx(19.0 + 0.07, abs=0.05)
        wide = describe("lrcn", units=1024)
        assert {layer["name"]: layer["parameters"] for layer in wide["layers"]}["lstm1"] == 20_975_616

    def test_has_the_layers_of_the_table(self):
        found = {layer["name"]: tuple(layer["output"]) for layer in describe("lrcn")["layers"]}
        table = {"slice_maps": (384, 16, 6, 6), "lstm1": (16, 256), "classifier": (101,)}
        # Layers of the backbone see the 16 slices of a clip one beside the other.
        table |= {"backbone.trunk.pool5": (384, 6, 6), "backbone.tail.fc6": (4096,)}
        assert {name: found[name] for name in table} == table

    def test_second_net_reads_fc7(self):
        with torch.device("meta"):
            network = create("lrcn", num_classes=101, faithful=True, features="fc7")
        assert network.lstm1.input_size == 4096
        assert network.backbone.tail.fc7.out_features == 4096
        assert count(network) == 65_421_285 + 4096 * 4097

    def test_drops_nine_tenths_before_and_half_after_the_lstm(self):
        network = create("lrcn", num_classes=2, faithful=True, width=1 / 16)
        assert network.backbone.tail.drop6.p == 0.9
        assert network.drop_features.p == 0
        assert network.drop.p == 0.5

    def test_starts_from_the_papers_weights(self):
        network = create("lrcn", num_classes=50, faithful=True, width=0.25)
        weights = dict(network.lstm1.named_parameters())
        for weight in (weights["weight_ih_l0"], weights["weight_hh_l0"]):
            assert weight.abs().max() <= 0.01
            assert weight.std().item() == pytest.approx(0.01 / 3**0.5, rel=0.02)
        assert (weights["bias_ih_l0"] == 0).all()
        assert network.backbone.trunk.conv3.conv.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert (network.backbone.trunk.conv3.conv.bias == 0.1).all()
        assert network.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)

    def test_reads_its_own_slice_size_only_but_any_number_of_slices(self):
        network = create("lrcn", num_classes=2, faithful=True, width=1 / 64).eval()
        for slices in (1, 3):
            assert network(torch.zeros(1, 3, slices, 227, 227)).shape == (1, 2)
        with pytest.raises(ConfigError, match="exactly T x H x W = any x 227 x 227, got T x H x W = 16 x 224 x 227"):
            network(torch.zeros(1, 3, 16, 224, 227))

    @pytest.mark.parametrize(
        "options",
        [
            {"features": "pool"},
            {"backbone": "vgg-16"},
            {"backbone": "monai:resnet10"},
            {"readout": "last"},
            {"bidirectional": True},
            {"norm": "batch"},
            {"dropout": 0.1},
        ],
    )
    def test_refuses_what_the_paper_does_not_have(self, options):
        with pytest.raises(ConfigError, match="when faithful=True"):
            create("lrcn", num_classes=2, faithful=True, **options)


class TestLSTM:
    def test_equals_a_loop_in_float64(self):
        lstm = SingleBiasLSTM(5, 4)
        x = torch.randn(3, 7, 5)
        torch.testing.assert_close(lstm(x)[0].double(), loop(lstm, x), rtol=1e-5, atol=1e-6)

    def test_equals_torchs_with_the_same_total_bias(self):
        lstm, theirs = SingleBiasLSTM(5, 4, bidirectional=True), nn.LSTM(5, 4, batch_first=True, bidirectional=True)
        theirs.load_state_dict(lstm.state_dict())
        with torch.no_grad():
            for suffix in ("", "_reverse"):
                second = torch.randn(16)
                getattr(theirs, f"bias_ih_l0{suffix}").sub_(second)
                getattr(theirs, f"bias_hh_l0{suffix}").add_(second)
        x = torch.randn(3, 7, 5)
        torch.testing.assert_close(lstm(x)[0], theirs(x)[0])
        assert count(theirs) - count(lstm) == 2 * 4 * 4

    def test_second_direction_reads_from_the_end(self):
        lstm = SingleBiasLSTM(5, 4, bidirectional=True)
        x = torch.randn(2, 6, 5)
        found = lstm(x)[0].double()
        torch.testing.assert_close(found[..., :4], loop(lstm, x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[..., 4:], loop(lstm, x.flip(1), "_reverse").flip(1), rtol=1e-5, atol=1e-6)

    def test_forget_gate_is_open_at_first_in_the_adapted_form_only(self):
        for faithful, forget in ((False, 1.0), (True, 0.0)):
            lstm = create("lrcn", num_classes=2, width=1 / 64, faithful=faithful).lstm1
            assert lstm.bias_ih_l0.tolist() == [0.0] * 4 + [forget] * 4 + [0.0] * 8
            assert lstm.bidirectional is not faithful
            if lstm.bidirectional:
                assert torch.equal(lstm.bias_ih_l0_reverse, lstm.bias_ih_l0)

    def test_gradients_in_eval_mode_go_around_cudnn(self, monkeypatch):
        lstm, seen = SingleBiasLSTM(5, 4), []
        forward = nn.LSTM.forward
        monkeypatch.setattr(
            nn.LSTM, "forward", lambda *given: (seen.append(torch.backends.cudnn.enabled), forward(*given))[1]
        )
        x = torch.randn(1, 2, 5)
        lstm(x)
        lstm.eval()(x)
        with torch.no_grad():
            lstm(x)
        assert seen == [True, False, True]
        assert torch.backends.cudnn.enabled


class TestScores:
    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_are_the_mean_of_the_scores_of_every_step(self, bidirectional):
        network = narrow(bidirectional=bidirectional).eval()
        x = torch.randn(2, 1, 6, 20, 24)
        features = network.forward_features(x)
        steps = network.step_logits(features)
        assert steps.shape == (2, 6, 3)
        torch.testing.assert_close(steps.mean(1), network(x))
        assert not torch.allclose(steps, network.slice_logits(features))
        torch.testing.assert_close(network.classifier(network.lstm1(features)[0]), steps)

    def test_a_step_knows_the_slices_before_it_only(self):
        x = torch.randn(1, 1, 6, 16, 16)
        changed = x.clone()
        changed[:, :, 3] += 5
        for bidirectional in (False, True):
            network = narrow(bidirectional=bidirectional).eval()
            before, after = (network.step_logits(network.forward_features(clip)) for clip in (x, changed))
            same = [torch.allclose(before[:, t], after[:, t], atol=1e-7, rtol=0) for t in range(6)]
            assert same == ([False] * 6 if bidirectional else [True] * 3 + [False] * 3)

    def test_depend_on_the_order_of_the_slices(self):
        network = narrow().eval()
        x = torch.randn(1, 1, 6, 16, 16)
        assert not torch.allclose(network(x), network(x.flip(2)), atol=1e-6)

    def test_readout_takes_the_last_step_or_the_largest_value(self):
        network = narrow(bidirectional=False).eval()
        features = torch.randn(2, 5, network.backbone.num_features)
        states = network.lstm1(features)[0]
        for readout, read in (("mean", states.mean(1)), ("last", states[:, -1]), ("max", states.amax(1))):
            other = narrow(readout=readout, bidirectional=False).eval()
            other.load_state_dict(network.state_dict())
            torch.testing.assert_close(other.aggregate(features), network.classifier(read))

    def test_last_step_of_the_second_direction_is_the_first_slice(self):
        network = narrow(readout="last").eval()
        features = torch.randn(2, 5, network.backbone.num_features)
        states = network.lstm1(features)[0]
        expected = torch.cat([states[:, -1, :16], states[:, 0, 16:]], 1)
        assert torch.equal(network.aggregate(features, pre_logits=True), expected)


class TestAdapted:
    def test_units_are_scaled_by_width(self):
        assert narrow(bidirectional=False).num_features == 16
        assert narrow(units=1024).lstm1.hidden_size == 64
        assert narrow(units=1024).num_features == 128

    @pytest.mark.parametrize("features", ["pool", "fc6", "fc7"])
    def test_dropout_of_features_is_applied_once(self, features):
        network = narrow(features=features, feature_dropout=0.6, dropout=0.3)
        drops = [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)]
        assert sorted(drops) == sorted({"pool": [0.6], "fc6": [0, 0.6], "fc7": [0, 0.6, 0.6]}[features] + [0.3])

    def test_any_backbone_by_name(self):
        network = narrow(backbone="monai:resnet10", num_classes=2).eval()
        assert network.lstm1.input_size == 512
        x = torch.randn(2, 1, 3, 17, 20)
        assert network(x).shape == (2, 2)
        assert network.architecture["options"]["backbone"] == "monai:resnet10"

    def test_backbone_without_the_layer_is_refused(self):
        with pytest.raises(ConfigError, match="densenet-121 has no fc6"):
            narrow(backbone="densenet-121", features="fc6")
        with pytest.raises(
            ConfigError, match=r"The 'backbone' parameter of lrcn must be one of 'hybrid'.*'monai:NAME'"
        ):
            narrow(backbone="resnet")

    def test_instance_statistics_need_more_than_one_position(self):
        assert narrow(norm="instance").smallest == (1, 32, 32)

    def test_runs_under_bfloat16(self):
        network = narrow()
        with torch.autocast("cpu", torch.bfloat16):
            assert network(torch.randn(2, 1, 4, 32, 32)).isfinite().all()
