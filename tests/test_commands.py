"""Whole commands on small studies: plan, train, evaluate, predict, from the shell and from Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from studies import two_class_folder, write_study

import volrec
from volrec.cli import main
from volrec.config import load_config
from volrec.errors import ConfigError

# The deepest are of the kind of those with 121 layers.
TRIED = [
    pytest.param(name, marks=pytest.mark.slow) if name.endswith("-169") else name
    for name in volrec.networks.list_networks()
]
QUICK = [
    "--epochs",
    "2",
    "--set",
    "network.width=0.03125",
    "--set",
    "trainer.workers=0",
    "--set",
    "trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A folder of studies, its labels, and a run trained on it by the command."""
    root = tmp_path_factory.mktemp("commands")
    labels = two_class_folder(root / "data", studies=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLREC_CACHE", str(root / "cache"))
        assert main(["train", str(root / "data"), "--labels", str(labels), "--out", str(root / "run"), *QUICK]) == 0
    return root / "data", labels, root / "run"


def test_a_run_folder_holds_what_reproduces_it(trained: tuple[Path, Path, Path]) -> None:
    folder, _, run = trained
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml",
        "versions.json",
        "splits.csv",
        "scores.csv",
        "metrics.json",
        "report.html",
        "log.txt",
    }
    config = load_config(run / "config.yaml")
    assert config.trainer.epochs == 2
    assert config.data.folder == str(folder)
    assert "# set by you" in (run / "config.yaml").read_text(encoding="utf-8")
    splits = pd.read_csv(run / "splits.csv", dtype=str)
    assert splits.groupby("patient")["part"].nunique().max() == 1
    for path in run.rglob("*"):
        if path.is_file():
            # Whole names: three letters by themselves come up by chance in pictures that are written as text.
            assert not any(name in path.read_bytes() for name in (b"Doe^", b"Mrs Doe", b"20200229")), path


def test_the_same_command_gives_the_same_numbers(
    trained: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, labels, run = trained
    assert main(["train", str(folder), "--labels", str(labels), "--out", str(tmp_path / "again"), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "report.html" in shown
    first, second = (pd.read_csv(path / "scores.csv") for path in (run, tmp_path / "again"))
    pd.testing.assert_frame_equal(first, second)


def test_evaluate_repeats_the_run_and_scores_another_folder(
    trained: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, labels, run = trained
    assert main(["evaluate", str(run)]) == 0
    assert "AUC" in capsys.readouterr().out
    out = tmp_path / "metrics.json"
    assert main(["evaluate", str(run), str(folder), "--labels", str(labels), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "16 of 20 studies are of patients that this run was trained or validated on" in " ".join(shown.split())
    metrics = json.loads(out.read_text(encoding="utf-8"))
    own = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["studies"] == 4
    assert metrics["metrics"]["auc"]["value"] == own["test"]["auc"]["value"]
    every = ["evaluate", str(run), str(folder), "--labels", str(labels), "--out", str(out), "--include-training"]
    assert main(every) == 0
    metrics = json.loads(out.read_text(encoding="utf-8"))
    assert metrics["studies"] == 20
    assert 0 <= metrics["metrics"]["auc"]["low"] <= metrics["metrics"]["auc"]["high"] <= 1


def test_predict_writes_a_row_a_study_and_sets_the_broken_one_aside(
    trained: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, run = trained
    write_study(tmp_path / "new" / "sound")
    bad = write_study(tmp_path / "new" / "broken")[1]
    bad.write_bytes(bad.read_bytes()[:-50])
    out = tmp_path / "scores.csv"
    assert main(["predict", str(run), str(tmp_path / "new"), "--out", str(out)]) == 3
    assert "broken" in capsys.readouterr().err
    table = pd.read_csv(out)
    assert list(table["study"]) == ["sound"]
    assert table["score_1"].between(0, 1).all()


def test_predict_repeats_the_scores_of_training(trained: tuple[Path, Path, Path]) -> None:
    folder, _, run = trained
    loaded = volrec.load(run)
    again = loaded.predict(folder).set_index("study")["score_1"]
    own = loaded.scores.set_index("study")["score_1"]
    np.testing.assert_allclose(again[own.index], own, atol=1e-6)


def test_a_run_that_is_there_is_not_overwritten(
    trained: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, labels, run = trained
    before = (run / "scores.csv").read_bytes()
    assert main(["train", str(folder), "--labels", str(labels), "--out", str(run), *QUICK]) == 2
    assert "finished run" in capsys.readouterr().err
    assert (run / "scores.csv").read_bytes() == before


def test_a_plan_is_obeyed(trained: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, labels, _ = trained
    plan = tmp_path / "plan.yaml"
    assert main(["plan", str(folder), "--labels", str(labels), "--out", str(plan)]) == 0
    text = plan.read_text(encoding="utf-8")
    assert text.count("  # ") > 10
    plan.write_text(text.replace("epochs: ", "epochs: 1 # was "), encoding="utf-8")
    run = volrec.train(plan, out=tmp_path / "run", network={"name": "slice-mean", "width": 0.1}, workers=0)
    assert run is not None
    assert run.config.trainer.epochs == 1
    assert run.config.network.name == "slice-mean"
    assert run.metrics["test"]["auc"]["value"] is not None
    assert run.network.num_classes == 1


def test_wrong_networks_are_refused_before_anything_is_written(
    trained: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, labels, _ = trained
    begin = ["train", str(folder), "--labels", str(labels), "--out", str(tmp_path / "run")]
    assert main([*begin, "--network", "c3"]) == 2
    assert "c3d" in capsys.readouterr().err
    assert main([*begin, "--set", "network.options.poool5=ceil"]) == 2
    assert "pool5" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_takes_no_other_option_and_a_plan_is_not_overwritten(
    trained: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, labels, run = trained
    assert main(["train", "--resume", str(run), "--epochs", "9"]) == 2
    assert "no other option" in capsys.readouterr().err
    plan = tmp_path / "plan.yaml"
    plan.write_text("mine", encoding="utf-8")
    assert main(["plan", str(folder), "--labels", str(labels), "--out", str(plan)]) == 2
    assert plan.read_text(encoding="utf-8") == "mine"
    assert main(["plan", str(folder), "--labels", str(labels), "--out", str(plan), "--overwrite"]) == 0


def test_an_interruption_says_how_to_go_on(
    trained: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from volrec import commands

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("Stopped. Go on with: volrec train --resume runs/x")

    monkeypatch.setattr(commands, "train", interrupted)
    assert main(["train", "x", "--labels", "y"]) == 130
    assert "volrec train --resume runs/x" in capsys.readouterr().err


def test_overrides_from_python_are_checked(tmp_path: Path) -> None:
    labels = two_class_folder(tmp_path / "data", studies=8)
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        volrec.train({}, folder=tmp_path / "data", labels=labels, epoch=3)
    with pytest.raises(ConfigError, match="several sections"):
        volrec.train({}, folder=tmp_path / "data", labels=labels, seed=3)


def test_phantoms_train_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "phantoms"
    arguments = ["phantom", str(folder), "--task", "bleed", "--studies", "12", "--size", "32", "--slices", "12"]
    assert main(arguments) == 0
    assert main(["inspect", str(folder), "--labels", str(folder / "labels.csv"), "--no-sheet"]) == 0
    assert "12 studies of 12 patients" in capsys.readouterr().out


@pytest.mark.parametrize("name", TRIED)
def test_every_network_is_planned_trained_and_used(name: str, trained: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder, labels, _ = trained
    run = tmp_path / "run"
    options = [
        "--out",
        str(run),
        "--network",
        name,
        *QUICK[2:],
        "--set",
        "trainer.batches_per_epoch=1",
        "--set",
        "report.audit=false",  # tests/explain and tests/evaluation ask every network
        "--set",
        "report.gallery=0",
        "--epochs",
        "1",
    ]
    assert main(["train", str(folder), "--labels", str(labels), *options]) == 0
    assert load_config(run / "config.yaml").network.name == name
    assert main(["predict", str(run), str(folder), "--out", str(tmp_path / "scores.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 20


def test_models_lists_the_zoo_and_tells_one_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    told = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in told.splitlines() if line.strip()}
    assert set(volrec.networks.list_networks()) <= set(rows)
    assert rows["i3d"][1:6] == ["Carreira", "2017", "12.7", "111", "3x64x224x224"]
    assert max(len(line) for line in told.splitlines()) <= 80
    assert main(["models", "*zzz*"]) == 2
    assert "no network matches" in capsys.readouterr().err
    assert main(["models", "t3d-121"]) == 0
    told = capsys.readouterr().out
    facts = volrec.networks.describe("t3d-121")
    assert f"{facts['parameters']:,} parameters" in told
    # Four hundred layers are told by block, with what the whole block gives.
    (block,) = (line.split() for line in told.splitlines() if line.startswith("features.denseblock1"))
    assert block[1:] == ["30", "layers", "256", "x", "16", "x", "56", "x", "56", "777,408"]
    assert all(option in told for option in facts["options"])
    assert all(ambiguity.split(":")[0] in told for ambiguity in facts["ambiguities"])


def test_models_tells_streams_and_the_trainings_that_are_done_in_turn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # every reason on one line
    told = {}
    for name in ("two-stream-fusion", "hidden-two-stream", "actionvlad", "c3d"):
        assert main(["models", name]) == 0
        told[name] = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    fusion = told["two-stream-fusion"]
    assert "Reads: intensity, flow" in fusion
    assert "Clips in the paper: a snippet from each of 5 equal parts of a study" in fusion
    place = fusion.index("Trained in turn")
    assert fusion[place + 1 : place + 4] == [
        "stage learns from epochs rate frozen why",
        "streams labels x 0.6 x 1 - each tower learns from a loss of its own",
        "fusion labels x 0.4 x 0.1 spatial.*, temporal.* the layers from the fusion on learn, the towers stay",
    ]
    # The pattern of names is printed as it stands: a terminal must not take its brackets for a style.
    hidden = "\n".join(told["hidden-two-stream"])
    assert "motion motion x 0.3 x 1 [!m]* the motion network" in hidden
    assert "joint labels, motion x 0.03 x 0.3 x 0.1 - labels and motion together" in hidden
    vlad = told["actionvlad"]
    assert "Trained in turn" not in vlad and "Trained in turn where first weights exist (init)" in vlad
    assert "Reads: intensity" in told["c3d"]
    assert not [line for line in told["c3d"] if line.startswith(("Trained", "Clips"))]
