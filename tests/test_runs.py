"""What a training leaves is read back as it was, and a folder that is no run says so."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from volrec import versions
from volrec.config import TrainConfig, parse_config
from volrec.errors import Problem, RunError
from volrec.networks import create
from volrec.runs import RunFolder, member_card
from volrec.weights import load_network


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", TrainConfig(name="x"), reasons={"optim.lr": "as usual"})


def test_config_comes_back_with_its_reasons_as_comments(run: RunFolder) -> None:
    assert run.config == TrainConfig(name="x")
    assert "lr: 0.001  # as usual" in (run.path / "config.yaml").read_text()


def test_versions_name_python_packages_platform_and_what_is_added(run: RunFolder) -> None:
    run.write_versions(accelerator="cpu")
    found = run.versions
    assert found["numpy"] == np.__version__
    assert found["torch"].startswith(torch.__version__.split("+")[0])
    assert {"python", "platform", "monai", "pytorch-lightning", "pydicom", "nibabel", "SimpleITK"} <= found.keys()
    assert found["accelerator"] == "cpu"
    assert found["device"]


def test_the_commit_is_the_sources_own_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    head = subprocess.run(
        ["git", "-C", str(Path(versions.__file__).parents[1]), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if head.returncode == 0:
        assert versions.collect_versions()["git_commit"].startswith(head.stdout.strip())
    # An installation inside somebody's own repository: its commit says nothing about volrec.
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "their own"]):
        subprocess.run([*git, *command], check=True)
    inside = tmp_path / "venv" / "volrec"
    inside.mkdir(parents=True)
    monkeypatch.setattr(versions, "__file__", str(inside / "versions.py"))
    assert versions.collect_versions()["git_commit"] is None


def test_tables_keep_identifiers_as_text(run: RunFolder) -> None:
    table = pd.DataFrame({"study": ["007", "8"], "patient": ["01", "02"], "score_1": [0.1, 1 / 3], "clips": [3, 4]})
    run.write_table("scores", table)
    pd.testing.assert_frame_equal(run.scores(), table, check_dtype=False)


def test_the_quarantine_comes_back_as_problems(run: RunFolder) -> None:
    assert run.quarantine() == []
    problems = [
        Problem("a/b", "truncated", 'it has 3 bytes, "not" 4\nlines', "Copy it again.", "007"),
        Problem("c", "tilt", "tilted", fatal=False),
    ]
    run.write_quarantine(problems)
    assert run.quarantine() == problems
    run.write_quarantine([])
    assert run.quarantine() == []


def test_metrics_take_numpy_numbers(run: RunFolder) -> None:
    run.write_metrics({"auc": {"value": np.float32(0.5), "low": None}, "n": np.int64(3), "curve": np.arange(2)})
    assert run.metrics == {"auc": {"value": 0.5, "low": None}, "n": 3, "curve": [0, 1]}


def test_a_run_is_not_overwritten(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has not finished") as caught:
        RunFolder.create(run.path, TrainConfig())
    assert f"volrec train --resume {run.path}" in caught.value.remedy
    run.finish()
    with pytest.raises(RunError, match="holds a finished run"):
        RunFolder.create(run.path, TrainConfig())
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.jpg").touch()
    with pytest.raises(RunError, match="not empty and holds no volrec run"):
        RunFolder.create(other, TrainConfig())
    assert run.config.name == "x"
    assert [path.name for path in other.iterdir()] == ["a.jpg"]


def test_an_empty_folder_may_be_given(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path, TrainConfig()).config == TrainConfig()


def test_resuming_keeps_what_is_there(run: RunFolder) -> None:
    taken_up = RunFolder.create(run.path, TrainConfig(name="other"), resume=True)
    assert taken_up.config.name == "x"


def test_what_is_no_run_says_so_and_where_the_run_is(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        RunFolder.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"not a volrec run folder: config\.yaml is missing"):
        RunFolder.open(tmp_path / "empty")
    member = run.member("fold-0").make()
    with pytest.raises(RunError, match="not a volrec run folder") as caught:
        RunFolder.open(member.path)
    assert str(run.path) in caught.value.remedy
    with pytest.raises(RunError, match="no such folder"):
        RunFolder.create(tmp_path / "nowhere", TrainConfig(), resume=True)


def test_missing_and_damaged_parts_are_named(run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"metrics\.json: this part of the run is missing.*--resume"):
        _ = run.metrics
    with pytest.raises(RunError, match=r"scores\.csv: this part of the run is missing.*--resume"):
        run.scores()
    (run.path / "metrics.json").write_text('{"auc": ')
    with pytest.raises(RunError, match=r"metrics\.json: it cannot be read"):
        _ = run.metrics
    (run.path / "config.yaml").write_text("optim: {lr: -1}")
    with pytest.raises(RunError, match=r"optim\.lr"):
        _ = run.config


def test_members_are_listed_in_natural_order_and_only_finished_ones_are_used(run: RunFolder) -> None:
    with pytest.raises(RunError, match="no member of this run has finished") as caught:
        run.finished_members()
    assert "volrec train --resume" in caught.value.remedy
    (run.path / "tensorboard").mkdir()
    card = {"task": "binary"}
    network = create("slice-mean", num_classes=1, width=0.125)
    for name in ("fold-10", "fold-2"):
        run.member(name).save(network, card)
    run.member("fold-3").write_history([{"epoch": 0, "loss": 0.5}])
    assert [member.name for member in run.members] == ["fold-2", "fold-3", "fold-10"]
    run.member("fold-2").finish()
    assert [member.name for member in run.finished_members()] == ["fold-2"]
    run.member("fold-2").weights.unlink()
    assert not run.member("fold-2").finished


def test_a_member_keeps_weights_card_and_history(run: RunFolder) -> None:
    config = parse_config({"network": {"name": "slice-mean", "width": 0.125}, "intensity": {"kind": "zscore"}})
    network = create("slice-mean", num_classes=1, width=0.125)
    member = run.member("fold-0")
    assert member.history().empty
    member.save(
        network,
        member_card(
            config,
            split="fold-0",
            task="regression",
            targets=["v"],
            classes=[],
            modality="CT",
            regression={"mean": [np.float64(3)], "std": [2]},
            epoch=4,
        ),
    )
    member.write_history([{"epoch": 0, "auc": 0.5}, {"epoch": 1, "auc": 0.75}])
    again, card = load_network(member.weights)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    assert card == member.card()
    assert card["regression"] == {"mean": [3.0], "std": [2.0]}
    assert card["intensity"]["kind"] == "zscore"
    assert (card["modality"], card["epoch"], card["split"]) == ("CT", 4, "fold-0")
    assert member.history()["auc"].tolist() == [0.5, 0.75]


def test_the_log_goes_to_the_run_while_the_block_lasts(run: RunFolder) -> None:
    log = logging.getLogger("volrec.somewhere")
    with run.logging():
        log.info("epoch %d", 3)
        log.debug("detail")
    log.warning("after")
    with run.logging():
        log.warning("again")
    text = (run.path / "log.txt").read_text()
    assert "epoch 3" in text
    assert "again" in text
    assert "detail" not in text
    assert "after" not in text


def test_a_write_that_fails_leaves_the_old_file(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_metrics({"auc": 0.5})

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="the disk is full") as caught:
        run.write_metrics({"auc": 0.7})
    assert caught.value.code == "disk-full"
    monkeypatch.undo()
    assert json.loads((run.path / "metrics.json").read_text()) == {"auc": 0.5}
    assert not list(run.path.glob("*.tmp"))
