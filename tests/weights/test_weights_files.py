from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn

from volrec.errors import ConfigError, RunError
from volrec.networks import create, list_networks
from volrec.weights import card_path, load_network, load_state, load_weights, save_weights

CARD = {"task": "binary", "classes": ["no", "yes"], "preprocess": {"spacing": [None, 1.5, 1.5]}, "regression": None}


def small(**options):
    return create("c3d", **{"num_classes": 2, "width": 0.05, **options})


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = small(temporal_strides=[1, 1, 2, 2, 2], in_channels=2)
    network(torch.randn(2, 2, 4, 32, 32))  # moves the running statistics away from their start
    path = tmp_path / "weights.safetensors"
    save_weights(path, network, CARD)
    return path, network.eval()


@pytest.mark.parametrize("name", list_networks())
def test_every_network_comes_back_with_the_same_numbers(tmp_path, name):
    torch.manual_seed(0)
    network = create(name, num_classes=3, in_channels=2, width=1 / 16)
    save_weights(tmp_path / "x.safetensors", network, {})
    again, _ = load_network(tmp_path / "x.safetensors")
    x = torch.randn(1, 2, *network.smallest)
    assert not again.training
    assert torch.equal(again(x), network.eval()(x))


def test_card_holds_what_was_said_and_what_rebuilds_the_network(saved):
    path, network = saved
    state, card = load_weights(path)
    assert {key: card[key] for key in CARD} == CARD
    assert card["architecture"] == network.architecture
    assert card["tensors"]["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert card["tensors"]["count"] == len(state) == len(network.state_dict())
    assert set(card["versions"]) == {"volrec", "torch"}
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    assert json.loads((path.parent / "card.json").read_text()) == card


def test_options_and_statistics_come_back(saved):
    path, network = saved
    again, _ = load_network(path)
    assert again.pool2.kernel == network.pool2.kernel == (1, 2, 2)
    assert torch.equal(again.norm1a.running_mean, network.norm1a.running_mean)


def test_a_new_last_layer_is_rebuilt(tmp_path):
    network = small()
    network.reset_classifier(5)
    save_weights(tmp_path / "weights.safetensors", network, {})
    assert load_network(tmp_path / "weights.safetensors")[0].num_classes == 5


def test_bfloat16_and_shared_tensors_are_saved(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(torch.bfloat16)
    network[1].weight = network[0].weight
    save_weights(tmp_path / "weights.safetensors", network, {})
    state, card = load_weights(tmp_path / "weights.safetensors")
    assert state["0.weight"].dtype == torch.bfloat16
    assert torch.equal(state["1.weight"], network[0].weight)
    assert card["architecture"] is None
    with pytest.raises(RunError, match="no network of the registry"):
        load_network(tmp_path / "weights.safetensors")


def test_the_copy_lies_beside_and_a_changed_one_is_pointed_out(saved, caplog):
    path, _ = saved
    assert card_path(path).name == "card.json"
    assert card_path(path.with_name("c3d.safetensors")).name == "c3d.json"
    copy = path.parent / "card.json"
    copy.write_text(copy.read_text().replace('"yes"', '"maybe"'))
    with caplog.at_level(logging.WARNING):
        assert load_weights(path)[1]["classes"] == ["no", "yes"]
    assert "card.json was changed" in caplog.text
    copy.unlink()
    caplog.clear()
    load_weights(path)
    assert not caplog.text


def test_a_failed_write_leaves_the_old_weights(saved, monkeypatch):
    path, _ = saved
    before = path.read_bytes()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="disk is full") as caught:
        save_weights(path, small(), {})
    assert caught.value.code == "disk-full"
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["card.json", "weights.safetensors"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RunError, match="cannot be written") as caught:
        save_weights(tmp_path / "no" / "weights.safetensors", small(), {})
    assert "no/weights.safetensors" in str(caught.value)


@pytest.mark.parametrize("card", [{"a": object()}, {"a": float("nan")}, {"architecture": {}}, {"tensors": 1}])
def test_a_card_that_cannot_be_kept_is_refused(tmp_path, card):
    with pytest.raises(ConfigError, match="card"):
        save_weights(tmp_path / "weights.safetensors", small(), card)
    assert not list(tmp_path.iterdir())


def test_every_mismatch_is_named_and_nothing_is_loaded(saved):
    path, _ = saved
    state, _ = load_weights(path)
    state["extra.weight"] = torch.zeros(1)
    del state["conv3a.weight"]
    state["fc8.bias"] = torch.zeros(9)
    network = small(temporal_strides=[1, 1, 2, 2, 2], in_channels=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RunError) as caught:
        load_state(network, state, where=path)
    for fault in (
        "conv3a.weight is missing",
        "extra.weight is unexpected",
        "fc8.bias has shape (9,) where (2,) is needed",
    ):
        assert fault in caught.value.problem
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text"])
def test_damage_is_found(saved, damage):
    path, _ = saved
    whole = path.read_bytes()
    middle = len(whole) * 3 // 4
    path.write_bytes(
        {
            "cut": whole[:-100],
            "bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "empty": b"",
            "text": b"no weights here at all",
        }[damage]
    )
    with pytest.raises(RunError) as caught:
        load_weights(path)
    assert caught.value.code == "weights-damaged"


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_not_read(tmp_path, zipped):
    path = tmp_path / "weights.safetensors"
    torch.save({"x": torch.zeros(1)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(RunError, match="pickle") as caught:
        load_weights(path)
    assert caught.value.code == "pickle"
    assert f"volrec import-weights {path} --as" in caught.value.remedy


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_a_length_that_looks_like_a_pickle_is_none(tmp_path, start):
    path = tmp_path / "weights.safetensors"
    network = nn.Linear(2, 1)
    wanted = int.from_bytes(start, "little")
    save_weights(path, network, {"note": ""})
    short = int.from_bytes(path.read_bytes()[:8], "little")
    filler = (wanted - short) % 256 ** len(start)
    for length in range(filler - 16, filler + 16):
        save_weights(path, network, {"note": "x" * length})
        if path.read_bytes().startswith(start):
            break
    assert path.read_bytes().startswith(start)
    assert torch.equal(load_weights(path)[0]["weight"], network.weight)


def test_missing_files_and_foreign_ones_are_named(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(RunError, match="no such file"):
        load_weights(tmp_path / "weights.safetensors")
    with pytest.raises(RunError, match="cannot be read"):
        load_weights(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(RunError, match="no volrec card"):
        load_weights(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize(
    "change", [{"name": "os.system"}, {"options": {"unknown": 1}}, {"surprise": 1}, {"width": "wide"}]
)
def test_a_card_that_names_something_else_builds_nothing(tmp_path, change):
    network = small()
    network.architecture = {**network.architecture, **change}
    save_weights(tmp_path / "weights.safetensors", network, {})
    with pytest.raises(RunError, match="cannot build its network") as caught:
        load_network(tmp_path / "weights.safetensors")
    assert caught.value.code == "architecture"
