"""From a folder and labels to a finished run: whole, resumed, over two processes, and when something is wrong."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from volrec.config import TrainConfig, apply_overrides, parse_config
from volrec.data.phantoms import make_phantoms
from volrec.errors import ConfigError, LabelsError, RunError
from volrec.evaluation import decisions
from volrec.inference.decision import Decision
from volrec.report import write_report
from volrec.report.findings import gather
from volrec.runs import RunFolder
from volrec.runs.member import Member
from volrec.training import pipeline
from volrec.training.devices import own_device
from volrec.training.distributed import check_world, is_launched, local_size, on_main, rank, world_size
from volrec.training.interrupts import Interrupted
from volrec.training.pipeline import train
from volrec.weights import read_card


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantoms(
        tmp_path_factory.mktemp("phantoms") / "bleed", task="bleed", studies=16, seed=3, size=32, slices=12
    )


@pytest.fixture(scope="module")
def config(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return parse_config(
        {
            "data": {"folder": str(phantoms), "labels": str(phantoms / "labels.csv"), "target": ["label"]},
            "split": {"folds": 2, "validation": 0.5},
            "preprocess": {"canvas": [8, 16, 16]},
            "intensity": {"kind": "window", "windows": ["brain"]},
            "sampling": {"clip_length": 8},
            "network": {"name": "slice-mean", "width": 0.125},
            "optim": {"batch_size": 4},
            "trainer": {"epochs": 2, "accelerator": "cpu", "workers": 0},
            "store": {"folder": str(tmp_path_factory.mktemp("store")), "jobs": 1},
        }
    )


@pytest.fixture(scope="module")
def finished(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = train(config, tmp_path_factory.mktemp("runs") / "whole", reasons={"network.name": "it is small"})
    assert run is not None
    return run


def same_networks(one: RunFolder, other: RunFolder) -> bool:
    pairs = [(load_file(a.weights), load_file(b.weights)) for a, b in zip(one.members, other.members, strict=True)]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def test_every_study_is_tested_once_by_the_member_that_had_not_seen_it(finished: RunFolder) -> None:
    scores, splits = finished.scores(), finished.read_table("splits")
    assert sorted(scores["study"]) == sorted(splits["study"].unique())
    tested = splits[splits["part"] == "test"].set_index("study")["split"]
    assert (scores.set_index("study")["fold"] == tested.sort_index().reindex(scores["study"])).all()
    assert scores["score_1"].between(0, 1).all()


def test_metrics_are_those_of_the_table(finished: RunFolder) -> None:
    scores, metrics = finished.scores(), finished.metrics
    expected = roc_auc_score(scores["label"], scores["score_1"])
    assert metrics["test"]["auc"]["value"] == pytest.approx(expected)
    assert metrics["metrics"] == metrics["test"]
    assert metrics["part"] == "test"
    assert set(metrics["folds"]) == {"fold-0", "fold-1"} == set(metrics["members"])
    parts = [metrics["time"][f"{part}_share"] for part in ("data_wait", "transfer", "compute")]
    assert sum(parts) == pytest.approx(1, abs=1e-3)


def test_a_run_folder_is_whole(finished: RunFolder) -> None:
    assert finished.finished
    assert {path.name for path in finished.path.iterdir()} == {
        "config.yaml", "versions.json", "index.csv", "splits.csv", "quarantine.csv", "labels.csv", "scores.csv",
        "validation_scores.csv", "metrics.json", "log.txt", "finished", "fold-0", "fold-1",
    }  # fmt: skip
    assert "# it is small" in (finished.path / "config.yaml").read_text()
    assert "fold-1 epoch 2/2" in (finished.path / "log.txt").read_text()
    assert len(finished.read_table("validation_scores")) == 8


def test_finished_members_are_not_trained_again_and_the_result_is_the_same(
    finished: RunFolder, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    original = pipeline.fit_member

    def fit_member(*arguments: Any, **named: Any) -> Any:
        trained.append(named["member"].name)
        if named["member"].name == "fold-1" and not named["resume"] and len(trained) == 2:
            raise Interrupted("stopped")
        return original(*arguments, **named)

    monkeypatch.setattr(pipeline, "fit_member", fit_member)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run")
    assert not RunFolder(tmp_path / "run").finished
    with pytest.raises(RunError, match="has not finished"):
        train(config, tmp_path / "run")
    run = train(config, tmp_path / "run", resume=True)
    assert run is not None
    assert trained == ["fold-0", "fold-1", "fold-1"]
    assert same_networks(run, finished)
    pd.testing.assert_frame_equal(run.scores(), finished.scores())
    assert run.metrics["metrics"] == finished.metrics["metrics"]
    before = (run.path / "metrics.json").stat().st_mtime_ns
    assert train(config, tmp_path / "run", resume=True) is not None  # nothing left to do
    assert (run.path / "metrics.json").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="finished run"):
        train(config, tmp_path / "run")


def test_one_fold_alone_is_the_same_as_among_the_others(
    finished: RunFolder, config: TrainConfig, tmp_path: Path
) -> None:
    run = train(apply_overrides(config, {"split.fold": 1}), tmp_path / "run")
    assert run is not None
    assert [member.name for member in run.members] == ["fold-1"]
    own = finished.scores().query("fold == 'fold-1'").reset_index(drop=True)
    assert run.scores()["score_1"].tolist() == own["score_1"].tolist()


def test_without_a_test_part_the_validation_studies_are_scored_and_it_is_said(
    config: TrainConfig, tmp_path: Path
) -> None:
    run = train(apply_overrides(config, {"split.folds": 0, "split.test": 0.0}), tmp_path / "run")
    assert run is not None
    assert run.metrics["part"] == "validation"
    assert run.metrics["calibration"]["part"] == "validation"
    assert len(run.scores()) == 8
    assert "fold" not in run.scores()


@pytest.fixture
def _few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "LEAST_OF_EACH", 1)
    monkeypatch.setattr(decisions, "LEAST_TEMPERATURE", 2)


def unfinished(finished: RunFolder, folder: Path, *, changes: dict[str, Any] | None = None) -> RunFolder:
    """Return a copy of a run whose members are trained and whose end is still to come."""
    shutil.copytree(finished.path, folder)
    (folder / "finished").unlink()
    run = RunFolder(folder)
    run.write_config(apply_overrides(run.config, changes or {}))
    return run


def test_too_few_validation_studies_decide_nothing_and_it_is_said(finished: RunFolder) -> None:
    why = "of the 4 validation studies only 2 negative and 2 positive; 3 of each class are needed"
    for member in finished.members:
        decision = Decision.from_card(read_card(member.weights))
        assert decision is not None
        assert decision.thresholds == {"1": 0.5}
        assert decision.fitted["1"].threshold_reason == decision.fitted["1"].calibration_reason == why
    assert why in (finished.path / "log.txt").read_text()
    assert finished.metrics["decision"]["thresholds"] == {"fold-0": {"1": 0.5}, "fold-1": {"1": 0.5}}
    assert finished.metrics["calibration"]["after"] is None
    assert finished.metrics["calibration"]["before"]["log_loss"] == pytest.approx(
        finished.metrics["metrics"]["loss"]["value"]
    )


@pytest.mark.usefixtures("_few_are_enough")
def test_each_member_carries_what_its_own_validation_studies_say(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"decision.rule": "sensitivity", "decision.at": 0.9}
    run = unfinished(finished, tmp_path / "run", changes=settings)
    amend, amended = Member.amend_card, []

    def stopped(member: Member, **facts: Any) -> None:
        amended.append(member.name)
        if len(amended) == 2:
            raise Interrupted("stopped")
        amend(member, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(Member, "amend_card", stopped)
        with pytest.raises(Interrupted):
            train(run.config, run.path, resume=True)
    assert not run.finished
    assert train(run.config, run.path, resume=True) is not None
    assert amended == ["fold-0", "fold-1"]
    assert same_networks(run, finished)
    pd.testing.assert_frame_equal(run.scores(), finished.scores())
    validation = run.read_table("validation_scores")
    naming: dict[str, Any] = {"task": "binary", "classes": ("0", "1"), "targets": ("label",)}
    for member in run.members:
        own = validation[validation["fold"] == member.name]
        expected = decisions.fit_decision(own, run.config.decision, **naming)
        found = Decision.from_card(member.card())
        assert expected is not None
        assert found is not None
        assert found.thresholds["1"] == pytest.approx(expected.thresholds["1"])
        assert (found.rule, found.at) == ("sensitivity", 0.9)
        assert found.fitted["1"].sensitivity == 1.0
        assert found.fitted == expected.fitted
        assert run.metrics["decision"]["thresholds"][member.name] == found.thresholds
    shown = gather(run)
    assert shown.thresholds == {name: own["1"] for name, own in run.metrics["decision"]["thresholds"].items()}
    page = write_report(run).read_text()
    assert "the highest that reaches sensitivity 0.9" in page
    assert "which have also chosen the weights" in page


def test_an_svm_that_has_learned_from_the_validation_studies_decides_nothing_on_them(
    finished: RunFolder, tmp_path: Path
) -> None:
    run = unfinished(finished, tmp_path / "run")
    run.member("fold-1").amend_card(svm="validation")
    train(run.config, run.path, resume=True)
    reasons = [Decision.from_card(member.card()).fitted["1"].threshold_reason for member in run.members]  # type: ignore[union-attr]
    assert ["support vector machine" in reason for reason in reasons] == [False, True]


def test_without_validation_studies_nothing_is_decided_and_it_is_said(config: TrainConfig, tmp_path: Path) -> None:
    changed = apply_overrides(config, {"split.validation": 0.0, "split.folds": 0, "trainer.epochs": 1})
    run = train(changed, tmp_path / "run")
    assert run is not None
    assert run.metrics["decision"]["thresholds"] == {"": {"1": 0.5}}
    assert "1: called from 0.5 on, as there were no validation studies." in run.metrics["decision"]["sentences"]
    assert gather(run).decisions["all"].fitted["1"].studies == 0
    assert "as there were no validation studies" in write_report(run).read_text()


def test_bad_studies_are_quarantined_and_the_rest_is_used(config: TrainConfig, phantoms: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(phantoms, folder)
    studies = pd.read_csv(folder / "labels.csv", dtype=str)["study"].tolist()
    victims = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".csv")
    victims[0].write_bytes(victims[0].read_bytes()[:3000])
    table = pd.read_csv(folder / "labels.csv", dtype=str)
    table.loc[len(table)] = ["nobody" if column == "study" else table[column][0] for column in table.columns]
    table.to_csv(folder / "labels.csv", index=False)
    changed = apply_overrides(config, {"data.folder": str(folder), "data.labels": str(folder / "labels.csv")})
    run = train(changed, tmp_path / "run")
    assert run is not None
    fatal = [problem for problem in run.quarantine() if problem.fatal]
    assert any("nobody" in f"{problem.study} {problem.reason}" for problem in fatal)
    assert any(problem.code == "truncated" for problem in fatal)
    assert len(run.scores()) == len(studies) - 1


def test_studies_that_went_away_are_named_when_a_run_goes_on(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **named: Any) -> Any:
        raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "fit_member", stop)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    splits = RunFolder(tmp_path / "run").path / "splits.csv"
    splits.write_text(splits.read_text() + "fold-1,train,gone-study,gone-patient\n")
    with pytest.raises(LabelsError, match="gone-study"):
        train(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("overrides", "kind", "match"),
    [
        ({"data.folder": None}, ConfigError, "data.folder is not set"),
        ({"data.labels": None}, ConfigError, "data.labels is not set"),
        ({"data.target": ["labl"]}, LabelsError, "labl"),
        ({"trainer.num_nodes": 2}, ConfigError, "started alone"),
        ({"trainer.precision": "16"}, ConfigError, "trainer.precision"),
        ({"data.task": "regression", "protocol.consensus": "sci"}, ConfigError, "consensus 'sci' .* regression"),
    ],
)
def test_what_is_wrong_is_said_before_a_folder_is_made(
    overrides: dict[str, Any], kind: type[Exception], match: str, config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=match):
        train(apply_overrides(config, overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_not_touched(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        train(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.fixture
def _as_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")


@pytest.mark.usefixtures("_as_launched")
def test_ranks_that_do_not_fit_the_configuration_are_refused() -> None:
    assert is_launched()
    check_world(3, 1)
    check_world(1, 1)  # torchrun alone decides
    with pytest.raises(ConfigError, match="3 processes were started"):
        check_world(2, 1)


def test_slurm_ranks_are_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "77",
        "SLURM_NODELIST": "node[3-4]", "SLURM_JOB_NAME": "train", "SLURM_TASKS_PER_NODE": "2(x2)",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert is_launched()
    assert (rank(), world_size(), local_size()) == (2, 4, 2)
    assert os.environ["MASTER_ADDR"] == "node3"


def test_alone_there_is_nobody_to_tell() -> None:
    assert on_main(lambda: 5) == 5


def test_two_processes_over_gloo_give_one_run(finished: RunFolder, config: TrainConfig, tmp_path: Path) -> None:
    changed = apply_overrides(config, {"trainer.devices": 2, "split.fold": 0, "optim.batch_size": 2})
    run = train(changed, tmp_path / "run")
    assert run is not None
    assert run.finished
    own = finished.scores().query("fold == 'fold-0'")
    assert run.scores()["study"].tolist() == own["study"].tolist()
    history = run.members[0].history()
    assert history["epoch"].tolist() == [0, 1]
    # Half the studies of each step are in the other process: as many steps as one process with twice the batch.
    assert history["step"].tolist() == finished.members[0].history()["step"].tolist()
    # Same start, same first learning rates; only augmentation and order differ.
    assert history["lr"].tolist() == finished.members[0].history()["lr"].tolist()
    log = (run.path / "log.txt").read_text()
    assert log.count("fold-0 epoch 2/2") == 1


@pytest.mark.slow
def test_a_fault_in_the_other_processes_arrives_as_itself(config: TrainConfig, tmp_path: Path) -> None:
    changed = apply_overrides(config, {"trainer.devices": 2, "data.target": ["labl"]})
    with pytest.raises(LabelsError, match="labl"):
        train(changed, tmp_path / "run")


def test_logs_are_quiet_unless_asked(config: TrainConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().setLevel(logging.WARNING)
    train(apply_overrides(config, {"split.fold": 0, "trainer.epochs": 1}), tmp_path / "run")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err == ""


def test_metrics_are_plain_json(finished: RunFolder) -> None:
    text = (finished.path / "metrics.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["time"]["compute_seconds"] > 0
    assert np.isfinite(finished.metrics["time"]["validation_seconds"])


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (own_device("cuda"), own_device("cpu")) == (torch.device("cuda", 1), torch.device("cpu"))
    monkeypatch.delenv("LOCAL_RANK")
    assert own_device("cuda") == torch.device("cuda", 0)
