"""What every network of the registry keeps; a new one is tested by being registered."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from volrec.errors import ConfigError
from volrec.networks import SlicewiseNetwork, create, describe, list_networks, spec

NAMES = list_networks()
NARROW = 1 / 16
# What a choice needs beside it.
NEEDS = {("stacked-lstm", "features", "fc"): {"backbone": "alexnet"}}
# Positions a side that 48 voxels leave with the paper's stem and with one of stride 1, where the last pool is not read.
BEFORE_THE_LAST_POOL = {"actionvlad": [3, 6]}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def narrow(name: str, **arguments):
    return create(name, **{"num_classes": 2, "width": NARROW, **arguments})


def clip(network, size=None, *, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, network.in_channels, *(size or network.smallest))


def odd(network) -> tuple[int, int, int]:
    slices, height, width = network.smallest
    return slices + 4 + slices % 2, height + 1 + height % 2 * 2, width + 3 + width % 2 * 2


def seen_maps(network, x: torch.Tensor) -> torch.Tensor:
    """Return what the layer gives that Grad-CAM looks at."""
    found: list[torch.Tensor] = []
    hook = network.get_submodule(network.cam_layer).register_forward_hook(lambda *call: found.append(call[2]))
    network(x)
    hook.remove()
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("name", NAMES)
class TestEveryNetwork:
    def test_reads_its_smallest_clip_and_odd_sizes(self, name):
        network = narrow(name)
        for size in (network.smallest, odd(network), (network.smallest[0] + 2, *odd(network)[1:])):
            for mode in (True, False):
                logits = network.train(mode)(clip(network, size))
                assert logits.shape == (2, 2)
                assert logits.isfinite().all()
        assert network.smallest == spec(name).smallest

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_names_the_smallest_clip_when_one_is_too_small(self, name, axis):
        network = narrow(name)
        size = list(network.smallest)
        size[axis] -= 1
        with pytest.raises(ConfigError, match=" x ".join(str(n) for n in network.smallest)) as caught:
            network(torch.zeros(1, 1, *size))
        assert " x ".join(str(n) for n in size) in caught.value.problem

    def test_names_other_faults_of_the_input(self, name):
        network = narrow(name)
        with pytest.raises(ConfigError, match=r"3 input channel\(s\), got 1|1 input channel\(s\), got 3"):
            network(torch.zeros(1, 3, *network.smallest))
        with pytest.raises(ConfigError, match=r"\(B, C, T, H, W\), got a tensor of shape \(2, 3\)"):
            network(torch.zeros(2, 3))
        with pytest.raises(ConfigError, match=r"floats, got torch.int16"):
            network(torch.zeros(1, 1, *network.smallest, dtype=torch.int16))
        with pytest.raises(ConfigError, match="floats, got ndarray"):
            network(torch.zeros(1, 1, *network.smallest).numpy())
        with pytest.raises(ConfigError, match=r"computes in torch.float32, got torch.float64"):
            network(torch.zeros(1, 1, *network.smallest).double())

    @pytest.mark.parametrize("in_channels", [1, 2, 3, 6])
    def test_takes_any_number_of_channels(self, name, in_channels):
        network = narrow(name, in_channels=in_channels).eval()
        x = clip(network)
        assert network(x).shape == (2, 2)
        for channel in range(in_channels):
            changed = x.clone()
            changed[:, channel] += torch.randn_like(changed[:, channel])
            assert not torch.equal(network(changed), network(x)), f"channel {channel} is not read"

    @pytest.mark.parametrize("num_classes", [1, 5])
    def test_gives_any_number_of_outputs_and_takes_a_new_last_layer(self, name, num_classes):
        network = narrow(name, num_classes=num_classes).eval()
        x = clip(network)
        assert network(x).shape == (2, num_classes)
        before = network.forward_features(x)
        network.reset_classifier(7)
        assert network(x).shape == (2, 7)
        assert network.num_classes == network.architecture["num_classes"] == 7
        torch.testing.assert_close(network.forward_features(x), before)
        with pytest.raises(ConfigError, match=f"'num_classes' parameter of {name} must"):
            network.reset_classifier(0)

    def test_forward_is_features_then_head(self, name):
        network = narrow(name).eval()
        x = clip(network, odd(network))
        features = network.forward_features(x)
        assert torch.equal(network(x), network.forward_head(features))
        before = network.forward_head(features, pre_logits=True)
        assert before.shape == (2, network.num_features)
        assert torch.equal(network.get_classifier()(before), network(x))

    def test_takes_a_batch_of_one_in_training(self, name):
        network = narrow(name)
        slices, height, width = network.smallest
        logits = network(clip(network, (slices + 3, 2 * height, 2 * width), batch=1))
        assert logits.shape == (1, 2)
        logits.sum().backward()

    @pytest.mark.parametrize("slices", [1, 2, 3, 5, 8])
    def test_reads_every_slice_of_a_stack_however_thin(self, name, slices):
        network = narrow(name, width=1 / 8).eval()
        x = clip(network, (max(slices, network.smallest[0]), *odd(network)[1:]), batch=1)
        before = network(x)
        for index in range(x.shape[2]):
            changed = x.clone()
            changed[:, :, index] += 5 * torch.randn_like(changed[:, :, index])
            assert not torch.equal(network(changed), before), f"slice {index} of {slices} is not read"

    def test_strides_of_one_keep_every_slice(self, name):
        option = spec(name).options.get("temporal_strides")
        assert (option is None) == (not spec(name).strides)
        if option is None:
            return
        assert option.length == len(spec(name).strides)
        network = narrow(name, temporal_strides=[1] * option.length).eval()
        assert seen_maps(network, clip(network, (9, *odd(network)[1:]))).shape[2] == 9

    def test_shows_maps_with_a_slice_axis(self, name):
        network = narrow(name).eval()
        maps = seen_maps(network, clip(network, odd(network)))
        assert maps.ndim == 5
        assert len(maps) == 2

    def test_runs_in_bfloat16(self, name):
        network = narrow(name).eval()
        x = clip(network, odd(network))
        exact = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(x)
        assert logits.isfinite().all()
        spread = (exact - exact.mean()).abs().max() + exact.abs().max()
        assert (logits.float() - exact).abs().max() < 0.15 * spread + 0.02

    def test_gradients_reach_every_parameter(self, name):
        network = narrow(name)
        network(clip(network, odd(network))).square().sum().backward()
        for label, parameter in network.named_parameters():
            assert parameter.grad is not None, label
            assert parameter.grad.abs().sum() > 0, label

    def test_eval_is_deterministic_and_clips_do_not_mix(self, name):
        network = narrow(name).eval()
        x = clip(network, odd(network), batch=3)
        both = network(x)
        assert torch.equal(both, network(x))
        for index in range(3):
            torch.testing.assert_close(network(x[index : index + 1]), both[index : index + 1], rtol=1e-4, atol=1e-5)

    def test_state_goes_round_and_copies_stand_alone(self, name):
        network, other = narrow(name).eval(), narrow(name).eval()
        x = clip(network)
        assert not torch.equal(network(x), other(x))
        other.load_state_dict(network.state_dict())
        assert torch.equal(network(x), other(x))
        twin = copy.deepcopy(network)
        assert twin.architecture == network.architecture
        with torch.no_grad():
            next(twin.parameters()).add_(1)
        assert not torch.equal(network(x), twin(x))

    def test_its_architecture_rebuilds_it(self, name):
        network = narrow(name, in_channels=2, num_classes=3)
        arguments = copy.deepcopy(network.architecture)
        options = arguments.pop("options")
        again = create(arguments.pop("name"), **arguments, **options)
        assert again.architecture == network.architecture
        again.load_state_dict(network.state_dict())

    def test_width_scales_the_parameters(self, name):
        small, large = (
            sum(parameter.numel() for parameter in narrow(name, width=width).parameters()) for width in (0.125, 0.25)
        )
        assert 2.5 < large / small < 4.5

    def test_exports(self, name):
        network = narrow(name).eval()
        x = clip(network, odd(network))
        file = io.BytesIO()
        torch.export.save(torch.export.export(network, (x,)), file)
        file.seek(0)
        torch.testing.assert_close(torch.export.load(file).module()(x), network(x))

    def test_learns_a_plain_difference(self, name):
        network = narrow(name)
        x = clip(network, odd(network), batch=8)
        y = torch.arange(8) % 2
        x[y == 1] += 1.0
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(25):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        assert (network(x).argmax(1) == y).all()

    def test_every_choice_of_every_option_can_be_built_and_run(self, name):
        for key, option in spec(name).options.items():
            for choice in option.choices or ((True, False) if option.kind is bool else ()):
                network = narrow(name, **{key: choice}, **NEEDS.get((name, key, choice), {}))
                assert network.architecture["options"][key] == choice
                assert network(clip(network, odd(network))).shape == (2, 2)

    def test_refuses_wrong_options_with_value_and_remedy(self, name):
        with pytest.raises(ConfigError, match="has no option 'nonsense'"):
            narrow(name, nonsense=1)
        for key, option in spec(name).options.items():
            with pytest.raises(ConfigError, match=rf"The '{key}' parameter of {name} must be .* Got <object") as caught:
                narrow(name, **{key: object()})
            assert caught.value.code == "parameter"
            assert option.meaning
            misspelt = key[:-1] + ("x" if key[-1] != "x" else "y")
            with pytest.raises(ConfigError, match=f"Did you mean '{key}'"):
                narrow(name, **{misspelt: option.default})

    @pytest.mark.parametrize(
        ("argument", "value", "allowed"),
        [
            ("num_classes", 0, r"an int in \[1, inf\)"),
            ("num_classes", 2.0, r"an int in \[1, inf\)"),
            ("num_classes", True, r"an int in \[1, inf\)"),
            ("in_channels", 0, r"an int in \[1, inf\)"),
            ("in_channels", "3", r"an int in \[1, inf\)"),
            ("width", 0, r"a float in \(0, inf\)"),
            ("width", float("nan"), r"a float in \(0, inf\)"),
            ("width", "wide", r"a float in \(0, inf\)"),
            ("faithful", "yes", "a bool"),
        ],
    )
    def test_refuses_wrong_arguments_in_one_form(self, name, argument, value, allowed):
        with pytest.raises(ConfigError, match=f"The '{argument}' parameter of {name} must be {allowed}. Got "):
            create(name, **{"num_classes": 2, argument: value})

    def test_the_papers_form_reads_the_papers_clip(self, name):
        facts = spec(name)
        told = describe(name)
        assert told["layers"][-1]["output"][-1] == facts.num_classes
        with torch.device("meta"):
            network = create(name, num_classes=3, faithful=True)
            assert network.in_channels == facts.default_clip[0]
            assert network(torch.empty(2, *facts.default_clip)).shape == (2, 3)
            for axis, size in enumerate(network.exact or (), 2):
                if size is None:
                    continue
                other = [2, *facts.default_clip]
                other[axis] += 1
                with pytest.raises(ConfigError, match="of exactly"):
                    network(torch.empty(other))

    def test_leaves_normalisation_and_dropout_to_the_user(self, name):
        options = spec(name).options
        assert set(options["norm"].choices) >= {"none", "batch", "instance", "group"}
        assert not any(
            isinstance(module, nn.BatchNorm3d | nn.BatchNorm2d) for module in narrow(name, norm="group").modules()
        )
        chosen = narrow(name, dropout=0.37)
        assert any(module.p == 0.37 for module in chosen.modules() if isinstance(module, nn.Dropout))

    def test_starts_near_equal_scores_with_and_without_normalisation(self, name):
        for norm in ("none", "batch"):
            network = narrow(name, norm=norm)
            assert network(clip(network, odd(network))).abs().max() < 3, norm

    def test_describes_itself(self, name):
        facts = spec(name)
        told = describe(name)
        assert told["parameters"] > 0
        assert told["gmacs"] > 0
        assert tuple(told["clip"]) == facts.default_clip
        assert tuple(describe(name, faithful=False)["smallest"]) == facts.smallest
        assert sum(layer["parameters"] for layer in told["layers"]) == told["parameters"]
        assert set(told["options"]) == set(facts.options)
        assert facts.title
        assert facts.year > 1990


@pytest.mark.parametrize("name", [name for name in NAMES if spec(name).slicewise])
class TestSlicewise:
    def test_forward_equals_aggregate_of_encoded_slices(self, name):
        network = narrow(name, in_channels=2).eval()
        assert isinstance(network, SlicewiseNetwork)
        x = clip(network, odd(network))
        per_clip = [network.encode_slices(volume.transpose(0, 1)) for volume in x]
        torch.testing.assert_close(network.aggregate(torch.stack(per_clip)), network(x), rtol=1e-5, atol=1e-6)

    def test_slice_logits_are_those_of_each_slice_alone(self, name):
        network = narrow(name).eval()
        x = clip(network, odd(network))
        logits = network.slice_logits(network.forward_features(x))
        assert logits.shape == (2, x.shape[2], 2)
        alone = network(x[:, :, 1:2])
        torch.testing.assert_close(logits[:, 1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_slicewise_says_the_spec_and_the_class(name):
    assert isinstance(narrow(name), SlicewiseNetwork) == spec(name).slicewise


@pytest.mark.parametrize("name", [name for name in NAMES if "backbone" in spec(name).options])
def test_a_finer_stem_of_the_backbone_keeps_more_positions(name):
    coarse, fine = (narrow(name, stem_stride=stride).eval() for stride in (None, 1))
    x = torch.randn(1, 1, 2, 48, 48)
    sides = [seen_maps(network, x).shape[-1] for network in (coarse, fine)]
    assert sides == BEFORE_THE_LAST_POOL.get(name, [2, 3])
    with pytest.raises(ConfigError, match="got stem_stride=3"):
        narrow(name, stem_stride=3)
    with pytest.raises(ConfigError, match="when faithful=True"):
        narrow(name, stem_stride=1, faithful=True)
