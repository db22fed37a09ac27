"""`volrec pretrain` and `volrec transfer` from the shell and from Python, up to the training that begins with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from studies import write_labels, write_study

import volrec
from volrec.cli import main
from volrec.config import load_config
from volrec.errors import ConfigError
from volrec.transfer import PretrainRun, TransferRun, pretraining, student

FAST = [
    "trainer.workers=0",
    "trainer.accelerator=cpu",
    "optim.batch_size=8",
    "trainer.batches_per_epoch=2",
    "holdout.share=0.25",
]
PRETRAIN = [*FAST, "backbone.width=0.0625", "method.projection=[16, 8]"]
TRANSFER = [*FAST, "network.width=0.0625", "matching.hidden=[16, 8]", "teacher.views=1", "sampling.clip_length=4"]


def sets(keys: list[str]) -> list[str]:
    return [part for key in keys for part in ("--set", key)]


def run(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return exit code and all that was printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")  # no word of a table is cut in two
        code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    text = " ".join((shown.out + shown.err).split())
    assert "Traceback" not in text
    return code, text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight studies of twelve slices, and a table of labels."""
    root = tmp_path_factory.mktemp("studies") / "data"
    rng = np.random.default_rng(0)
    for number in range(8):
        array = rng.normal(0, 20, (12, 24, 24)).astype(np.int16)
        array[:, 4:20, 4:20] += 40
        array[3:9, 6 + number : 12 + number, 8:14] += 30 * (1 + number % 2)
        write_study(root / f"case{number:02d}", array=array)
    write_labels(root / "labels.csv", {f"case{number:02d}": number % 2 for number in range(8)})
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def runs(folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher and a student, made by the commands."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLREC_CACHE", str(cache))
        begin = ["pretrain", str(folder), "--out", str(out / "teacher"), "--epochs", "2", *sets(PRETRAIN)]
        assert main(begin) == 0
        begin = ["transfer", str(folder), "--teacher", str(out / "teacher"), "--network", "slice-mean"]
        assert main([*begin, "--out", str(out / "student"), "--epochs", "2", *sets(TRANSFER)]) == 0
    return out / "teacher", out / "student"


@pytest.fixture(autouse=True)
def _one_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, _own_cache: None) -> None:
    monkeypatch.setenv("VOLREC_CACHE", str(cache))


def test_run_folders_hold_weights_card_history_and_report(runs: tuple[Path, Path]) -> None:
    for path, member, more in zip(runs, ("teacher", "student"), ({"metrics.json"}, {"matching.csv"}), strict=True):
        names = {each.name for each in path.iterdir()}
        assert names >= {"config.yaml", "studies.csv", "report.html", "log.txt", "finished", *more}
        assert {each.name for each in (path / member).iterdir()} >= {"weights.safetensors", "card.json", "history.csv"}
        text = (path / "config.yaml").read_text(encoding="utf-8")
        assert "# set by you" in text and text.count("  # ") > 8
        assert "<html" in (path / "report.html").read_text(encoding="utf-8")
    config = load_config(runs[1] / "config.yaml", schema=TransferRun.schema)
    assert config.teacher.source == str(runs[0])
    # The student reads studies as its teacher did.
    theirs = load_config(runs[0] / "config.yaml", schema=PretrainRun.schema)
    assert (config.preprocess, config.intensity) == (theirs.preprocess, theirs.intensity)


def test_nothing_that_is_written_holds_a_name_a_date_or_free_text(runs: tuple[Path, Path], cache: Path) -> None:
    written = [path for root in (*runs, cache) for path in root.rglob("*") if path.is_file()]
    assert any(path.suffix == ".npy" and "features" in path.parts for path in written)
    for path in written:
        content = path.read_bytes()
        for secret in (b"Doe", b"20200229", b"free text"):
            assert secret not in content, path


def test_a_student_begins_a_training_and_a_teacher_is_inflated(
    runs: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["train", folder, "--labels", folder / "labels.csv", "--epochs", "1", *sets(FAST[:2])]
    code, _ = run([*common, "--init", runs[1], "--out", tmp_path / "a", "--set", "split.folds=0"], capsys)
    assert code == 0
    made = volrec.load(tmp_path / "a")
    facts = made.folder.finished_members()[0].card()["init"]
    assert facts["source"].endswith("student") and facts["counts"]["loaded"] > 20
    assert made.config.network.name == "slice-mean"
    inflate = ["--init", f"inflate:{runs[0]}", "--out", tmp_path / "b", "--set", "split.folds=0"]
    code, _ = run([*common, *inflate], capsys)
    assert code == 0
    facts = volrec.load(tmp_path / "b").folder.finished_members()[0].card()["init"]
    assert facts["counts"]["adapted"] + facts["counts"]["loaded"] > 20


@pytest.mark.parametrize("which", [0, 1])
def test_weights_come_back_from_python(which: int, runs: tuple[Path, Path]) -> None:
    from volrec.api.weights import WeightsRun

    kind = (PretrainRun, TransferRun)[which]
    made = WeightsRun(kind.open(runs[which]))
    network: Any = made.network
    assert not network.training
    clip = (3, 12, 32, 32) if which else (3, 32, 32)  # three windows of CT
    with torch.no_grad():
        assert network(torch.rand(2, *clip)).isfinite().all()
    assert made.weights.is_file() and made.report.is_file()
    assert [problem.code for problem in made.problems] == ["order-blind"] * which  # the student is slice-mean
    assert 0 <= made.metrics["value"] <= 1
    assert str(runs[which]) in repr(made)


def test_python_does_what_the_commands_do(runs: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {key: json.loads(value) if value[0] in "[0123456789" else value
                            for key, value in (each.split("=") for each in PRETRAIN)}  # fmt: skip
    told: list[tuple[str, Path]] = []
    made = volrec.pretrain(
        folder, out=tmp_path / "run", overrides=keys, epochs=2,
        announce=lambda plan, out: told.append((plan.text(), out)),
    )  # fmt: skip
    assert made is not None
    assert made.metrics == PretrainRun.open(runs[0]).metrics
    assert told[0][1] == tmp_path / "run" and "kind: pretrain" in told[0][0]
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        volrec.pretrain(folder, out=tmp_path / "other", epoch=2)
    assert not (tmp_path / "other").exists()


def test_the_terminal_says_what_was_found(
    runs: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(["pretrain", folder, "--out", tmp_path / "t", "--epochs", "1", *sets(PRETRAIN)], capsys)
    assert code == 0
    assert "8 studies of 8 patients" in text and "Plan: resnet-18 (width 0.0625)" in text
    assert "held-out studies" in text and "report.html" in text
    assert f"Next: volrec transfer FOLDER --teacher {tmp_path / 't'}" in text
    begin = ["transfer", folder, "--teacher", tmp_path / "t", "--network", "slice-mean", "--out", tmp_path / "s"]
    code, text = run([*begin, "--epochs", "1", *sets(TRANSFER)], capsys)
    assert code == 0
    assert "slices of another patient" in text and "statistics alone" in text
    assert f"--init {tmp_path / 's'}" in text


@pytest.mark.parametrize("kind", ["pretrain", "transfer"])
def test_a_plan_is_written_and_obeyed(
    kind: str, runs: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--teacher", runs[0], "--network", "slice-mean"] if kind == "transfer" else []
    keys = sets(TRANSFER if kind == "transfer" else PRETRAIN)
    plan = tmp_path / "plan.yaml"
    code, text = run([kind, folder, *more, *keys, "--epochs", "1", "--plan", plan], capsys)
    assert code == 0 and f"volrec {kind} --config {plan}" in text
    assert not (tmp_path / "runs").exists()
    code, text = run([kind, folder, *more, "--plan", plan], capsys)
    assert code == 2 and "there is a plan already" in text
    edited = plan.read_text(encoding="utf-8").replace("seed: 0", "seed: 4")
    plan.write_text(edited, encoding="utf-8")
    code, _ = run([kind, "--config", plan, "--out", tmp_path / "run"], capsys)
    assert code == 0
    schema = TransferRun.schema if kind == "transfer" else PretrainRun.schema
    written = load_config(tmp_path / "run" / "config.yaml", schema=schema)
    assert written.to_dict()["holdout"] == {"share": 0.25, "seed": 4}
    other = "pretrain" if kind == "transfer" else "transfer"
    code, text = run([other, "--config", plan, "--out", tmp_path / "no"], capsys)
    assert code == 2 and f"volrec {kind}" in text
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("kind", ["pretrain", "transfer"])
def test_every_key_is_explained(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run([kind, "--keys"], capsys)
    assert code == 0
    key = "views.neighbours" if kind == "pretrain" else "matching.negatives"
    assert key in text and "holdout.share" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain"], "no folder of studies is named"),
        (["transfer"], "no folder of studies is named"),
        (["pretrain", "FOLDER", "--backbone", "resnet-81"], "resnet-18"),
        (["pretrain", "FOLDER", "--method", "simclrr"], "simclr"),
        (["pretrain", "FOLDER", "--set", "method.nme=simclr"], "did you mean 'name'"),
        (["pretrain", "FOLDER", "--set", "optim.layer_decay=0.5"], "optim.layer_decay"),
        (["pretrain", "FOLDER", "--method", "supervised"], "--labels"),
        (["pretrain", "FOLDER", "--studies", "nowhere.csv"], "nowhere.csv"),
        (["pretrain", "nowhere"], "nowhere"),
        # What the settings alone show is said before the folder is looked for.
        (["pretrain", "nowhere", "--method", "supervised"], "supervised needs labels"),
        (["pretrain", "nowhere", "--set", "optim.freeze=1"], "optim.freeze"),
        (
            ["transfer", "nowhere", "--teacher", "TEACHER", "--set", "teacher.augment.flip.T=0.5"],
            "teacher.augment.flip.T",
        ),
        (
            ["transfer", "nowhere", "--teacher", "TEACHER", "--set", "teacher.augment.mixup=0.2"],
            "teacher.augment.mixup",
        ),
        (["transfer", "nowhere", "--teacher", "TEACHER", "--set", "augment.mixup=0.2"], "augment.mixup"),
        (["pretrain", "--resume", "nowhere"], "nowhere"),
        (["transfer", "FOLDER"], "no teacher is named"),
        (["transfer", "FOLDER", "--teacher", "nowhere"], "there is no teacher 'nowhere'"),
        (["transfer", "FOLDER", "--teacher", "FOLDER"], "holds no finished teacher"),
        (["transfer", "FOLDER", "--teacher", "monai:resnet10"], "teacher.weights"),
        (["transfer", "FOLDER", "--teacher", "x", "--network", "c4d"], "c3d"),
        (["transfer", "nowhere", "--teacher", "TEACHER"], "nowhere"),
        (["transfer", "--resume", "TEACHER"], "pretrain"),
        (["train", "--resume", "TEACHER"], "Give a run of `volrec train`"),
        (["evaluate", "TEACHER"], "Give a run of `volrec train`"),
        (["predict", "TEACHER", "FOLDER"], "Give a run of `volrec train`"),
        (["pretrain", "--resume", "TEACHER", "--epochs", "3"], "no other option"),
        (["pretrain", "FOLDER", "--resume", "TEACHER"], "no other option"),
        (["transfer", "--resume", "TEACHER", "--teacher", "x"], "no other option"),
        (["pretrain", "--resume", "TEACHER", "--plan", "x.yaml"], "no other option"),
        (["pretrain", "FOLDER", "--out", "TEACHER"], "finished run"),
    ],
)
def test_what_is_wrong_ends_with_code_2_and_says_what_to_do(
    arguments: list[str], message: str, runs: tuple[Path, Path], folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names = {"FOLDER": str(folder), "TEACHER": str(runs[0])}
    before = (runs[0] / "metrics.json").read_bytes()
    code, text = run([names.get(each, each) for each in arguments], capsys)
    assert code == 2
    assert message in text.replace(" │ │ ", " ")
    assert list(tmp_path.iterdir()) == []
    assert (runs[0] / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "FOLDER", "--backbone", "resnet-81"],
        ["transfer", "FOLDER", "--teacher", "nowhere"],
        ["transfer", "FOLDER", "--teacher", "TEACHER", "--network", "c4d"],
    ],
)
def test_names_are_looked_up_before_a_folder_is_scanned(
    arguments: list[str], runs: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from volrec.transfer import prepare

    def scanned(*_: Any, **__: Any) -> None:
        raise AssertionError("the folder was scanned")

    monkeypatch.setattr(prepare, "images_of", scanned)
    names = {"FOLDER": str(folder), "TEACHER": str(runs[0])}
    assert run([names.get(each, each) for each in arguments], capsys)[0] == 2


def test_a_broken_study_is_set_aside_and_the_code_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for number in range(4):
        write_study(data / f"case{number}", size=(24, 24))
    bad = write_study(data / "broken", size=(24, 24))[1]
    bad.write_bytes(bad.read_bytes()[:-50])
    keys = sets([*PRETRAIN, "trainer.epochs=1"])
    code, text = run(["pretrain", data, "--out", tmp_path / "t", *keys], capsys)
    assert code == 3 and "broken" in text and "1 quarantined" in text
    table = pd.read_csv(tmp_path / "t" / "quarantine.csv", dtype=str)
    assert "broken" in set(table.loc[table["fatal"] == "True", "study"])
    begin = ["transfer", data, "--teacher", tmp_path / "t", "--network", "slice-mean", "--out", tmp_path / "s"]
    code, text = run([*begin, "--epochs", "1", *sets(TRANSFER)], capsys)
    assert code == 3 and "broken" in text


@pytest.mark.parametrize("kind", ["pretrain", "transfer"])
def test_an_interruption_says_how_to_go_on_and_going_on_gives_the_same(
    kind: str, runs: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from volrec.training.interrupts import StopFlag

    room, name = (pretraining, "SliceModule") if kind == "pretrain" else (student, "TransferModule")
    module = getattr(room, name)
    original, flags = module.training_step, []
    init = StopFlag.__init__

    def noted(self: StopFlag) -> None:
        init(self)
        flags.append(self)

    def step(self: Any, batch: Any, number: int) -> torch.Tensor:
        if (self.current_epoch, number) == (1, 0):
            flags[0].requested = True
        return original(self, batch, number)

    more = ["--teacher", runs[0], "--network", "slice-mean"] if kind == "transfer" else []
    keys = sets(TRANSFER if kind == "transfer" else PRETRAIN)
    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "__init__", noted)
        patch.setattr(module, "training_step", step)
        code, text = run([kind, folder, *more, "--out", tmp_path / "run", "--epochs", "2", *keys], capsys)
    assert code == 130 and f"volrec {kind} --resume {tmp_path / 'run'}" in text
    code, text = run([kind, "--resume", tmp_path / "run"], capsys)
    assert code == 0 and "report.html" in text
    own, whole = (
        json.loads((path / "metrics.json").read_text()) for path in (tmp_path / "run", runs[kind == "transfer"])
    )
    assert own == whole
    assert run([kind, "--resume", tmp_path / "run"], capsys)[0] == 0  # nothing left to do
