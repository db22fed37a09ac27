"""`volrec audit` and `volrec.audit` on small runs: what is written, reused, gone on with and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from studies import two_class_folder, write_labels, write_study

import volrec
from volrec.api import FusedRun
from volrec.cli import main
from volrec.errors import ConfigError, DataError, LabelsError, RunError
from volrec.evaluation import audit as module
from volrec.evaluation import evaluate_scores
from volrec.evaluation.audit_responses import Journal, Responder
from volrec.inference.fused import FusedFolder
from volrec.inference.studies import open_run
from volrec.runs import RunFolder

SETTINGS: dict[str, Any] = {
    "network": {"name": "slice-mean", "width": 0.03125},
    "split": {"folds": 2},
    "trainer": {"epochs": 2, "patience": 0, "workers": 0, "accelerator": "cpu"},
    "sampling": {"clip_length": 6, "train": "center"},
    "optim": {"lr": 0.003},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of 28 studies, and a run of two folds on it."""
    root = tmp_path_factory.mktemp("auditing")
    labels = two_class_folder(root / "data", studies=28)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLREC_CACHE", str(root / "cache"))
        store = {"folder": str(root / "store")}
        run = volrec.train(
            folder=root / "data", labels=labels, out=root / "run", report={"audit": False}, store=store, **SETTINGS
        )
    assert run is not None
    return root / "data", root / "run"


def scores(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "audit.csv", dtype={"study": str})


def test_the_command_prints_a_table_and_a_sentence_and_writes_the_rest(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = trained
    assert main(["audit", str(run), "--out", str(tmp_path / "audit"), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    for word in ("as it is", "1 slice", "5 slices", "shuffled", "reversed", "every second slice", "28 studies"):
        assert word in shown
    found = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert " ".join(found["verdict"]["sentence"].split()) in " ".join(shown.split())
    assert found["part"] == "test"
    assert {path.name for path in (tmp_path / "audit").iterdir()} == {
        "audit.json",
        "audit.csv",
        "audit.jsonl",
        "audit.svg",
        "audit.png",
    }
    assert b"Doe" not in b"".join(path.read_bytes() for path in (tmp_path / "audit").iterdir())


def test_studies_as_they_are_have_the_scores_of_the_run(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = trained
    result = volrec.audit(run, out=tmp_path, device="cpu")
    table = scores(tmp_path)
    own = pd.read_csv(run / "scores.csv", dtype={"study": str}).set_index("study")
    whole = table[table["condition"] == "as it is"].set_index("study")
    np.testing.assert_allclose(whole["score_1"], own.loc[whole.index, "score_1"], atol=1e-6)
    assert (whole["fold"] == own.loc[whole.index, "fold"]).all()
    # Each condition can be computed anew from the table.
    for condition in result["conditions"]:
        part = table[table["condition"] == condition["name"]]
        again = evaluate_scores(part, task="binary", classes=["0", "1"], targets=["label"], resamples=0)
        assert again["metrics"]["auc"]["value"] == pytest.approx(condition["metrics"]["auc"]["value"])


def test_an_audit_that_is_there_is_not_made_again(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = trained
    asked: list[str] = []
    respond = Responder.respond

    def counted(self: Responder, volume: Any, *, study: str) -> Any:
        asked.append(study)
        return respond(self, volume, study=study)

    monkeypatch.setattr(Responder, "respond", counted)
    few = volrec.audit(run, out=tmp_path, studies=8, device="cpu")
    assert few["studies"] == len(asked) == 8
    table = scores(tmp_path)
    assert table.groupby("study")["label"].first().value_counts().to_dict() == {0: 4, 1: 4}
    assert volrec.audit(run, out=tmp_path, studies=8, device="cpu") == few
    assert len(asked) == 8
    volrec.audit(run, out=tmp_path, studies=12, device="cpu")
    assert len(set(asked)) == len(asked) == 12  # those of before are among them
    volrec.audit(run, out=tmp_path, studies=8, seed=1, device="cpu")
    assert len(asked) == 20
    volrec.audit(run, out=tmp_path, studies=8, seed=1, refresh=True, device="cpu")
    assert len(asked) == 28


def test_an_interrupted_audit_goes_on_to_the_same_result(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = trained
    whole = volrec.audit(run, out=tmp_path / "whole", studies=8, device="cpu")
    add = Journal.add
    written: list[str] = []

    def interrupted(self: Journal, key: str, responses: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(key)
        add(self, key, responses)

    monkeypatch.setattr(Journal, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        volrec.audit(run, out=tmp_path / "parts", studies=8, device="cpu")
    assert not (tmp_path / "parts" / "audit.json").exists()
    monkeypatch.setattr(Journal, "add", add)
    assert volrec.audit(run, out=tmp_path / "parts", studies=8, device="cpu") == whole
    assert (tmp_path / "parts" / "audit.csv").read_bytes() == (tmp_path / "whole" / "audit.csv").read_bytes()


def test_other_weights_take_nothing_from_the_journal(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.open(trained[1])
    studies = open_run(folder)
    module.audit_run(folder, studies, most=4, device="cpu", out=tmp_path)
    lines = len((tmp_path / "audit.jsonl").read_text().split())
    hashed = module._member_hash
    monkeypatch.setattr(module, "_member_hash", lambda card: hashed({**card, "tensors": {"sha256": "others"}}))
    module.audit_run(folder, studies, most=4, device="cpu", out=tmp_path)
    assert len((tmp_path / "audit.jsonl").read_text().split()) == 2 * lines


def test_a_study_that_cannot_be_scored_is_set_aside(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = trained
    respond = Responder.respond

    def broken(self: Responder, volume: Any, *, study: str) -> Any:
        if study == "case04":
            raise DataError("it is no good.", code="bad")
        return respond(self, volume, study=study)

    monkeypatch.setattr(Responder, "respond", broken)
    assert main(["audit", str(run), "--out", str(tmp_path), "--device", "cpu"]) == 3
    streams = capsys.readouterr()
    assert "case04: it is no good." in streams.err
    assert "27 studies" in streams.out
    assert "case04" not in set(scores(tmp_path)["study"])


def test_other_studies_are_scored_by_all_members(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = trained
    with pytest.raises(LabelsError, match="all 28 studies"):
        volrec.audit(run, data, out=tmp_path / "seen")
    rng, labels = np.random.default_rng(5), {}
    for number in range(4):
        array = rng.normal(0, 20, (6, 16, 16)).astype(np.int16)
        array[2:4, 5:11, 5:11] += 200 * (number % 2)
        write_study(tmp_path / "other" / f"new{number}", array=array)
        labels[f"new{number}"] = number % 2
    write_labels(tmp_path / "other" / "labels.csv", labels)
    result = volrec.audit(run, tmp_path / "other", device="cpu")
    assert result["part"] == "given"
    assert result["verdict"]["code"] == "unclear"  # of four studies nothing can be said
    table = scores(run / "audit-other")
    assert "fold" not in table
    predicted = volrec.load(run).predict(tmp_path / "other").set_index("study")["score_1"]
    whole = table[table["condition"] == "as it is"].set_index("study")["score_1"]
    np.testing.assert_allclose(whole, predicted[whole.index], atol=1e-6)


def test_what_cannot_be_audited_is_said(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = trained
    with pytest.raises(ConfigError, match="no folder"):
        volrec.audit(run, labels=tmp_path / "labels.csv")
    with pytest.raises(ConfigError, match="studies must be at least 0") as caught:
        volrec.audit(run, studies=-1)
    assert caught.value.remedy
    with pytest.raises(RunError, match="fusion"):
        volrec.audit(FusedRun(FusedFolder(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "code"), [("nodule", "needs-context"), ("bleed", "one-slice")])
def test_phantoms_get_the_verdict_that_is_true_of_them(task: Any, code: str, tmp_path: Path) -> None:
    """The whole chain: phantoms, a training by the recipe of the demonstration, the audit of its test studies."""
    from volrec.demo import SIZE, SLICES, STUDIES, demo_config
    from volrec.training import train

    folder = volrec.make_phantoms(
        tmp_path / "phantoms", task=task, studies=STUDIES[task], seed=0, size=SIZE, slices=SLICES
    )
    folder = folder if folder.is_dir() else folder.parent
    train(demo_config(folder, "c3d", store=tmp_path / "store"), tmp_path / "run")
    result = volrec.audit(tmp_path / "run", studies=40, device="cpu")
    assert result["verdict"]["code"] == code
    by_name = {one["name"]: one["metrics"]["auc"] for one in result["conditions"]}
    assert by_name["as it is"]["low"] > 0.85  # an AUC of 1 on 40 studies has 0.899
    if task == "nodule":
        assert by_name["1 slice"]["low"] < 0.5 < by_name["1 slice"]["high"]
        assert result["verdict"]["order"] == "used"
        assert 3 <= result["verdict"]["reach"]["slices"] <= 9
    else:
        assert by_name["1 slice"]["value"] > 0.97
        assert by_name["middle slice"]["high"] < by_name["1 slice"]["value"]
        assert result["verdict"]["reach"]["slices"] == 1
