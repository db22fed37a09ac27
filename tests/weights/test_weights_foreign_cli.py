"""`volrec import-weights` and `volrec.import_weights`: what is printed, what is written, how it ends."""

from __future__ import annotations

import json

import pytest
import torch

import volrec
from volrec.cli import main
from volrec.networks import create
from volrec.weights import load_network


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A narrow C3D under the names of MMAction2, an extra layer's count among them."""
    torch.manual_seed(0)
    network = create("c3d", num_classes=2, faithful=True, width=1 / 16).eval()
    state = {}
    for name, value in network.state_dict().items():
        layer, leaf = name.split(".")
        place = "cls_head.fc_cls" if layer == "fc8" else f"backbone.{layer}"
        state[f"{place}{'.conv' if layer.startswith('conv') else ''}.{leaf}"] = value
    state["backbone.bn.num_batches_tracked"] = torch.tensor(1)
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "my c3d.pth")
    (tmp_path / "labels.txt").write_text("0 no\n1 yes\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return network


def test_the_table_folds_what_was_loaded_and_lists_the_rest(checkpoint, tmp_path, capsys):
    assert main(["import-weights", "my c3d.pth", "--as", "c3d", "--classes", "labels.txt"]) == 0
    shown = capsys.readouterr().out
    assert "22 keys" in shown
    assert "conv3b" not in shown
    assert "backbone.bn.num_batches_tracked" in shown
    assert "a count of batches" in shown
    assert "Format: mmaction2. Keys: 22 loaded, 0 adapted, 1 dropped, 0 missing." in shown
    network, card = load_network(tmp_path / "c3d-my-c3d.safetensors")
    assert card["classes"] == ["no", "yes"]
    assert json.loads((tmp_path / "c3d-my-c3d.json").read_text())["source"]["file"] == "my c3d.pth"
    assert torch.equal(network.conv3b.weight, checkpoint.conv3b.weight)


def test_all_lists_every_key(checkpoint, capsys):
    assert main(["import-weights", "my c3d.pth", "--as", "c3d", "--all", "--out", "x.safetensors"]) == 0
    shown = capsys.readouterr().out
    assert "backbone.conv3b.conv.weight" in shown
    assert "22 keys" not in shown
    assert "Written to x.safetensors" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my c3d.pth"], "Say which with --as"),
        (["none.pth", "--as", "c3d"], "no such file"),
        (["my c3d.pth", "--as", "i3d"], "no known format of i3d"),
        (["my c3d.pth", "--as", "c3d", "--format", "mmaction"], "Did you mean 'mmaction2'?"),
        (["my c3d.pth", "--as", "c3d", "--mean", "labels.txt"], "have no mean volume"),
        (["my c3d.pth", "--as", "c3d", "--out", "x.pt"], "Call it x.safetensors"),
    ],
)
def test_what_does_not_fit_ends_with_code_2_and_writes_nothing(checkpoint, tmp_path, capsys, arguments, message):
    assert main(["import-weights", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_file_of_volrec_itself_keeps_its_card(checkpoint, tmp_path, capsys):
    assert main(["import-weights", "my c3d.pth", "--as", "c3d", "--out", "x.safetensors"]) == 0
    assert main(["import-weights", "x.safetensors", "--as", "c3d"]) == 2
    assert "nothing to import" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "c3d-x.safetensors").exists()


def test_the_function_gives_network_and_table_and_writes_only_when_asked(checkpoint, tmp_path):
    done = volrec.import_weights("my c3d.pth", as_="c3d")
    assert done.path is None
    assert not list(tmp_path.glob("*.safetensors"))
    assert done.table.summary == "22 loaded, 0 adapted, 1 dropped, 0 missing"
    assert torch.equal(done.network.fc8.weight, checkpoint.fc8.weight)
