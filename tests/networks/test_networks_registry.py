from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import volrec
from volrec.errors import ConfigError
from volrec.networks import NetworkSpec, Option, create, list_networks, register, spec, training_bytes


def test_names_are_listed_by_pattern():
    assert {"c3d", "slice-mean"} <= set(list_networks())
    assert "c3d" in list_networks("*3d*")
    assert "slice-mean" not in list_networks("*3d*")
    assert list_networks("nothing-*") == []
    assert list_networks() == sorted(list_networks())


def test_an_unknown_network_is_answered_with_the_nearest_and_the_list():
    with pytest.raises(ConfigError, match=r"no network 'c3dd'.*Did you mean 'c3d'.*slice-mean"):
        create("c3dd", num_classes=1)
    for typed, meant in (("I3D", "i3d"), ("t3d", "t3d-121"), ("DenseNet3D", "densenet3d-121"), ("late", "late-fusion")):
        with pytest.raises(ConfigError, match=f"Did you mean '{meant}'"):
            spec(typed)
    with pytest.raises(ConfigError, match="Known networks"):
        spec("os.system")


def test_the_papers_channels_are_the_default_of_the_papers_form():
    assert create("c3d", num_classes=1, faithful=True, width=0.01).in_channels == 3
    assert create("c3d", num_classes=1, width=0.01).in_channels == 1


def test_a_factory_that_swallows_or_lacks_options_is_refused():
    facts = NetworkSpec("x", "-", "x", 2000, (1, 1, 1, 1), (1, 1, 1), 2, options={"depth": Option(int, 1, "depth")})

    with pytest.raises(TypeError, match="depth"):

        @register(facts)
        def lacking(*, num_classes, in_channels, faithful, width): ...

    with pytest.raises(TypeError, match="rest"):

        @register(facts)
        def swallowing(*, num_classes, in_channels, faithful, width, depth, **rest): ...


def test_specs_cannot_be_changed():
    with pytest.raises(AttributeError):
        spec("c3d").year = 1999  # type: ignore[misc]


def test_kernels_have_their_channels_last_and_the_same_values():
    torch.manual_seed(3)
    network = create("c3d", num_classes=1, width=0.125)
    assert network.conv2a.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not network.conv2a.weight.is_contiguous()
    x = torch.randn(1, 1, 8, 32, 32)
    expected = network.eval()(x)
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-6)


def test_importing_the_room_costs_no_torch_and_listing_no_more_than_torch():
    program = (
        "import sys, volrec.networks as n\n"
        "assert 'torch' not in sys.modules\n"
        "n.list_networks(); n.spec('c3d')\n"
        "heavy = {'monai', 'pytorch_lightning', 'pandas', 'sklearn', 'pydicom', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "n.describe\n"
        "assert callable(n.spec) and callable(n.describe)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("option", "value", "kept"),
    [
        (Option(float, 0.5, "", low=0, high=1), 1, 1.0),
        (Option(tuple, None, "", low=1, high=4, length=2), [1, 2], (1, 2)),
        (Option(tuple, None, "", low=1, high=4, length=2), None, None),
        (Option(str, "a", "", choices=("a", "none")), None, "none"),
        (Option(bool, False, ""), True, True),
    ],
)
def test_option_values_are_kept_in_their_own_type(option, value, kept):
    found = option.check(value, name="x", owner="y")
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (Option(float, 0.5, "", low=0, high=1), 1.5),
        (Option(float, 0.5, "", low=0, high=1), float("nan")),
        (Option(float, 0.5, "", low=0, high=1), True),
        (Option(int, 1, ""), 1.0),
        (Option(int, 1, ""), None),
        (Option(bool, False, ""), 1),
        (Option(str, "a", "", choices=("a",)), "b"),
        (Option(tuple, None, "", low=1, high=4, length=2), [1, 5]),
        (Option(tuple, None, "", low=1, high=4, length=2), [1]),
        (Option(tuple, None, ""), "12"),
    ],
)
def test_option_values_out_of_range_are_refused(option, value):
    with pytest.raises(ConfigError, match="The 'x' parameter of y must be"):
        option.check(value, name="x", owner="y")


def test_memory_of_training_is_counted_without_allocating_any():
    fixed, each = training_bytes("c3d", clip=(8, 32, 32), width=0.125)
    network = create("c3d", num_classes=1, width=0.125)
    assert fixed == 16 * sum(parameter.numel() for parameter in network.parameters())
    kept: dict[int, torch.Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
        network(torch.randn(2, 1, 8, 32, 32))
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    seen = sum(x.untyped_storage().nbytes() for pointer, x in kept.items() if pointer not in weights) / 2
    assert each == pytest.approx(seen, rel=0.1)
    assert training_bytes("c3d", clip=(16, 32, 32), width=0.125)[1] == pytest.approx(2 * each, rel=0.05)


def test_plain_integers_come_out_of_numpys(tmp_path):
    network = create(
        "c3d", num_classes=np.int64(3), in_channels=np.int64(2), width=np.float32(0.125), stages=np.int32(2)
    )
    assert network(torch.zeros(1, 2, 4, 8, 8)).shape == (1, 3)
    assert json.loads(json.dumps(network.architecture)) == network.architecture


def test_a_name_that_is_no_text_is_an_unknown_network():
    with pytest.raises(ConfigError, match=r"no network \['c3d'\]"):
        create(["c3d"], num_classes=1)


def test_names_are_found_by_completion_and_specs_print_short():
    assert {"create", "describe", "list_networks", "spec"} <= set(dir(volrec.networks))
    assert len(repr(spec("c3d"))) < 400
