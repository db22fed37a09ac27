"""Plans that begin with weights that exist: what they take over, what the user's own keys win over, and the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from volrec import api
from volrec.cli import main
from volrec.config import load_config
from volrec.data import index as scanning
from volrec.data.phantoms import make_phantoms
from volrec.errors import ConfigError, RunError
from volrec.networks import create, list_networks
from volrec.networks.backbones import create_backbone
from volrec.planning import inherit
from volrec.runs import RunFolder
from volrec.weights import save_weights

WIDTH = 1 / 16
PREPROCESS = {"slice_axis": "acquired", "spacing": None, "canvas": [8, 32, 32]}
INTENSITY = {"kind": "window", "windows": ["brain", "bone"]}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "bleed"
    return make_phantoms(folder, task="bleed", studies=12, seed=3, size=32, slices=12)


def transfer_run(folder: Path, *, name: str = "densenet3d-121", **options: Any) -> Path:
    torch.manual_seed(5)
    network = create(name, num_classes=16, in_channels=2, width=WIDTH, **options)
    section = {"name": name, "width": WIDTH, "options": options}
    card = {"network": section, "preprocess": PREPROCESS, "intensity": INTENSITY, "sampling": {"clip_length": 5}}
    (folder / "student").mkdir(parents=True)
    save_weights(folder / "student" / "weights.safetensors", network, {**card, "data_signature": "abc"})
    (folder / "config.yaml").write_text("kind: transfer\n")
    return folder


def flat_file(path: Path, name: str = "densenet-121", **arguments: Any) -> Path:
    values = {"in_channels": 3, "faithful": False, "width": WIDTH, "norm": "batch", "tail": "pool", "dropout": 0.0}
    values |= {"stem_stride": None, **arguments}
    network: nn.Module = create_backbone(name, **values)
    network.architecture = {"backbone": name, **values}  # type: ignore[assignment]
    save_weights(path, network, {})
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return transfer_run(tmp_path / "transfer-x", temporal_strides=[1, 1, 2, 2, 2])


@pytest.fixture
def no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the folder was scanned")

    monkeypatch.setattr(scanning, "index", scan)


def test_a_run_hands_on_network_grid_and_intensities_with_a_reason(phantoms: Path, source: Path) -> None:
    plan = api.plan(phantoms, labels=phantoms / "labels.csv", overrides={"init": str(source)})
    config = plan.config.to_dict()
    assert config["network"] == {
        "name": "densenet3d-121",
        "width": WIDTH,
        "options": {"temporal_strides": [1, 1, 2, 2, 2]},
    }
    assert {key: config["preprocess"][key] for key in PREPROCESS} == PREPROCESS
    assert {key: config["intensity"][key] for key in INTENSITY} == INTENSITY
    assert config["sampling"]["clip_length"] == 8  # planned for the data, not the 5 of the source
    why = f"as in {source.parent.name}/transfer-x"
    assert [plan.reasons[section] for section in ("network", "preprocess", "intensity")] == [why] * 3
    assert f"network:  # {why}" in plan.text()
    assert any("densenet3d-121" in note for note in plan.notes)
    drawn = api.plan(phantoms, labels=phantoms / "labels.csv").config.to_dict()
    assert config["optim"] == {**drawn["optim"], "batch_size": config["optim"]["batch_size"]}


def test_keys_of_the_user_win(phantoms: Path, source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"init": str(source), "intensity": {"kind": "zscore"}}))
    plan = api.plan(
        phantoms,
        labels=phantoms / "labels.csv",
        config=recipe,
        overrides={"preprocess.canvas": [6, 48, 48], "init.first_layer": "mean"},
    )
    assert plan.config.intensity.kind == "zscore"
    assert plan.config.preprocess.canvas == (6, 48, 48)
    assert plan.config.sampling.clip_length == 6
    assert plan.config.init.source == str(source)
    assert plan.config.init.first_layer == "mean"
    assert "intensity" not in plan.reasons


@pytest.mark.usefixtures("no_scan")
@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"init.source": "runs/gone"}, RunError, "no such file or folder to take first weights from"),
        ({"network.name": "i3d", "network.width": 0.125}, RunError, "the source is densenet3d-121 at width 0.0625"),
        ({"network.width": 0.125}, RunError, "yours is densenet3d-121 at width 0.125"),
        ({"optim.freeze": ["features.denseblock9.*"]}, ConfigError, "Near names: features.denseblock"),
        ({"optim.freeze": 9}, ConfigError, "Freeze at most 8"),
        ({"optim.partial_bn": "all", "network.options.norm": "group"}, ConfigError, "no batch normalisation to keep"),
    ],
)
def test_what_does_not_fit_is_said_before_the_folder_is_scanned(
    phantoms: Path, source: Path, overrides: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        api.plan(phantoms, labels=phantoms / "labels.csv", overrides={"init.source": str(source), **overrides})


def test_a_3d_file_without_sections_gives_its_network_alone(tmp_path: Path) -> None:
    network = create("i3d", num_classes=400, in_channels=3, width=WIDTH, stem_stride=1)
    save_weights(tmp_path / "i3d.safetensors", network, {"classes": []})
    found = inherit(str(tmp_path / "i3d.safetensors"), {}, {})
    assert set(found.sections) == {"network"}
    assert found.sections["network"]["name"] == "i3d"
    assert found.sections["network"]["options"]["stem_stride"] == 1
    assert "temporal_strides" not in found.sections["network"]["options"]  # null is the paper's own
    assert inherit(str(tmp_path / "i3d.safetensors"), {"network": {"name": "i3d"}}, {}).sections == {}


def test_a_2d_file_gives_width_and_backbone_to_the_network_that_the_user_names(tmp_path: Path) -> None:
    path = flat_file(tmp_path / "x.safetensors", norm="instance")
    keys = inherit(f"inflate:{path}", {}, {"network.name": "lrcn"}).keys
    assert keys == {
        "network.width": WIDTH,
        "network.options.backbone": "densenet-121",
        "network.options.norm": "instance",
    }
    assert inherit(f"inflate:{path}", {}, {"network.name": "densenet3d-121", "network.width": 1.0}).keys == {
        "network.options.norm": "instance"
    }


def test_a_planned_network_takes_2d_weights_and_strides_for_the_data(phantoms: Path, tmp_path: Path) -> None:
    path = flat_file(tmp_path / "x.safetensors")
    plan = api.plan(
        phantoms,
        labels=phantoms / "labels.csv",
        overrides={"init.source": f"inflate:{path}", "network.name": "densenet3d-121"},
    )
    assert plan.config.network.width == WIDTH
    assert plan.config.network.options["stem_stride"] == 1  # slices of 32 pixels
    assert plan.reasons["network.width"].startswith("as in ")
    assert plan.reasons["network.name"] == "set by you"


@pytest.mark.skipif("inflated" not in list_networks(), reason="the network inflated is not in the registry")
def test_2d_weights_alone_plan_their_own_3d_twin(phantoms: Path, tmp_path: Path) -> None:
    path = flat_file(tmp_path / "x.safetensors", "resnet-18")
    plan = api.plan(phantoms, labels=phantoms / "labels.csv", overrides={"init.source": f"inflate:{path}"})
    assert plan.config.network.name == "inflated"
    assert plan.config.network.options["backbone"] == "resnet-18"
    assert plan.reasons["network.name"].startswith("as in inflate:")


def test_the_command_trains_from_a_run_and_notes_what_it_saw(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VOLREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    source = transfer_run(tmp_path / "runs" / "x", name="slice-mean")
    patients = pd.read_csv(phantoms / "labels.csv", dtype=str)
    pd.DataFrame({"study": patients.iloc[:, 0], "patient": ""}).to_csv(source / "studies.csv", index=False)
    command = ["train", str(phantoms), "--labels", str(phantoms / "labels.csv"), "--init", "runs/x", "--out", "runs/y"]
    code = main([*command, "--epochs", "1", "--set", "trainer.workers=0", "--set", "trainer.accelerator=cpu"])
    assert code == 0
    run = RunFolder.open("runs/y")
    assert load_config("runs/y/config.yaml").init.source == str(source)
    assert run.config.network.name == "slice-mean"
    (note,) = [problem for problem in run.quarantine() if problem.code == "seen-in-init"]
    assert "without labels" in note.reason and not note.fatal
    log = (run.path / "log.txt").read_text()
    assert "init: 42 loaded, 0 adapted, 2 dropped, 2 missing from runs/x" in log
    assert "First weights: slice-mean from runs/x" in capsys.readouterr().out
    assert main([*command[:-1], "runs/z", "--set", "init.source=runs/gone"]) == 2
    assert main(["train", "--resume", "runs/y", "--init", "runs/x"]) == 2
