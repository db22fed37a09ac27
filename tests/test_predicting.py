"""`volrec predict` as a user meets it: what it writes, tells and returns, of runs and of fused runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from studies import write_study
from untrained import CONFIG, FACTS, make_run, write_folder

import volrec
from volrec.cli import main
from volrec.config import parse_config
from volrec.data.index import index
from volrec.inference import Ensemble
from volrec.networks import create
from volrec.runs import RunFolder, member_card


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, both fused, and three studies of which one cannot be read."""
    root = tmp_path_factory.mktemp("predicting")
    write_folder(root / "sound")
    write_folder(root / "in")
    damaged = write_study(root / "in" / "p1")[2]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    for seed, name in enumerate("ab"):
        run = make_run(root / name, seed=seed)
        scores = volrec.load(run.path).predict(root / "sound", device="cpu")
        scores.attrs.clear()
        run.write_table("scores", scores.assign(bleed=[0, 1, 0]))
        parts = pd.DataFrame({"split": "fold-0", "part": "test", "study": scores["study"], "patient": scores["study"]})
        run.write_table("splits", parts)
        run.write_metrics({"part": "test"})
        run.finish()
    volrec.fuse([root / "a", root / "b"], root / "fused", weights=[1, 3])
    return root


def predict(place: Path, run: str, out: Path, *more: str) -> int:
    return main(["predict", str(place / run), str(place / "in"), "--out", str(out), "--device", "cpu", *more])


def interrupt(patch: pytest.MonkeyPatch, calls: int) -> None:
    score, seen = Ensemble.score, []

    def scored(self: Ensemble, *given: Any, **options: Any) -> Any:
        if len(seen) == calls:
            raise KeyboardInterrupt
        seen.append(1)
        return score(self, *given, **options)

    patch.setattr(Ensemble, "score", scored)


def test_a_broken_study_is_set_aside_and_every_file_says_its_part(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "scores.csv"
    assert predict(place, "a", out) == 3
    shown = capsys.readouterr()
    assert "1 quarantined" in shown.err
    told = " ".join(shown.out.split())
    for name in ("scores.csv", "scores.json", "scores-slices.csv", "scores-quarantine.csv"):
        assert name in "".join(told.split()), name
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "scores-quarantine.csv",
        "scores-slices.csv",
        "scores.csv",
        "scores.json",
    ]
    table = pd.read_csv(out, keep_default_na=False)
    assert table["study"].tolist() == ["p0", "p2"]
    assert list(table.columns) == [
        *("study", "patient", "score_1", "logit_1", "entropy", "members", "clips", "slices", "warning")
    ]
    record = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert [row["score_1"] for row in record["rows"]] == table["score_1"].tolist()
    card = json.loads((place / "a" / "fold-0" / "card.json").read_text(encoding="utf-8"))
    assert record["runs"][0]["members"] == [{"name": "fold-0", "weights_sha256": card["tensors"]["sha256"]}]
    assert record["runs"][0]["protocol"] == card["protocol"]
    assert record["versions"]["torch"]
    (line,) = [line for line in record["quarantine"] if line["fatal"]]
    quarantine = pd.read_csv(out.parent / "scores-quarantine.csv", keep_default_na=False)
    assert quarantine[["where", "code", "reason", "remedy", "study"]].to_dict("records") == [
        {key: line[key] for key in ("where", "code", "reason", "remedy", "study")}
    ]
    slices = pd.read_csv(out.parent / "scores-slices.csv")
    assert slices.groupby("study")["slice"].apply(list).to_dict() == {"p0": [*range(6)], "p2": [*range(6)]}


def test_a_sound_folder_ends_with_0_and_files_of_an_earlier_prediction_go(place: Path, tmp_path: Path) -> None:
    assert predict(place, "a", tmp_path / "s.json") == 3
    assert len(list(tmp_path.iterdir())) == 4
    command = ["predict", str(place / "a"), str(place / "sound"), "--out", str(tmp_path / "s.csv"), "--no-slices"]
    assert main([*command, "--device", "cpu"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.json"]
    assert len(pd.read_csv(tmp_path / "s.csv")) == 3


def test_nothing_usable_ends_with_2_and_leaves_the_reasons(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = write_study(tmp_path / "in" / "only")[2]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    out = tmp_path / "s.csv"
    assert main(["predict", str(place / "a"), str(tmp_path / "in"), "--out", str(out), "--device", "cpu"]) == 2
    assert "no study of" in capsys.readouterr().err
    assert len(pd.read_csv(out)) == 0
    assert pd.read_csv(tmp_path / "s-quarantine.csv")["code"].tolist() == ["truncated"]


def test_runs_that_score_together_are_more_members(place: Path, tmp_path: Path) -> None:
    assert predict(place, "a", tmp_path / "s.csv", "--also", str(place / "b"), "--flips", "H", "W") == 3
    table = pd.read_csv(tmp_path / "s.csv")
    assert table["members"].tolist() == [2, 2]
    assert (table["spread"] > 0).all()
    record = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in record["runs"]] == ["a", "b"]
    assert [run["protocol"]["flips"] for run in record["runs"]] == [["H", "W"]] * 2


@pytest.mark.parametrize("run", ["a", "fused"])
def test_after_ctrl_c_the_same_command_goes_on_to_the_same_bytes(
    run: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(place, run, tmp_path / "whole" / "s.csv") == 3
    for calls in range(2 if run == "a" else 4):
        out = tmp_path / f"stopped-{calls}" / "s.csv"
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, calls)
            assert predict(place, run, out) == 130
        told = " ".join(capsys.readouterr().err.split())
        assert (f"{calls} score" in told and "Go on with the same command." in told) or not calls
        assert predict(place, run, out) == 3
        for path in (tmp_path / "whole").iterdir():
            assert (out.parent / path.name).read_bytes() == path.read_bytes(), path.name
        assert len(list(out.parent.iterdir())) == 4


def test_a_fused_run_weighs_its_runs_and_tells_their_uncertainty(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.csv"
    assert predict(place, "fused", out) == 3
    table = pd.read_csv(out, keep_default_na=False)
    each = np.stack([volrec.load(place / run).predict(place / "in", device="cpu")["score_1"] for run in "ab"])
    np.testing.assert_allclose(table["score_1"], np.average(each, axis=0, weights=[1, 3]))
    np.testing.assert_allclose(table["spread"], each.std(axis=0))
    assert table[["members", "clips", "slices"]].to_numpy().tolist() == [[2, 4, 6]] * 2
    assert table["warning"].tolist() == ["", ""]
    record = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["fusion"] == {"method": "weights", "stage": "softmax", "weights": {"a": 0.25, "b": 0.75}}
    assert set(pd.read_csv(tmp_path / "s-slices.csv")["run"]) == {"a", "b"}
    capsys.readouterr()
    assert predict(place, "fused", out, "--also", str(place / "a")) == 2
    assert "--also: a fused run has its rule" in " ".join(capsys.readouterr().err.split())
    assert predict(place, "a", out, "--also", str(place / "fused")) == 2
    assert "it is a fused run" in capsys.readouterr().err


def test_warnings_are_counted_on_the_terminal(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", modality="MR")
    assert main(["predict", str(run.path), str(place / "sound"), "--out", str(tmp_path / "s.csv")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning, 3 of 3: modality CT (the run was trained on MR)" in shown


def test_warnings_that_differ_in_numbers_alone_are_of_one_kind(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    run.write_table("index", index(place / "sound").table)
    splits = pd.DataFrame({"split": "fold-0", "part": "train", "study": ["p0", "p1", "p2"]})
    run.write_table("splits", splits.assign(patient=splits["study"]))
    for slices in (13, 14, 20):
        write_study(tmp_path / "in" / f"n{slices}", slices=slices)
    write_study(tmp_path / "in" / "wide", slices=6, spacing=(9.0, 1.0, 1.0))
    out = tmp_path / "s.csv"
    assert main(["predict", str(run.path), str(tmp_path / "in"), "--out", str(out), "--device", "cpu"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert lines == [
        "warning, 3 of 4, for example: 13 slices (training had 6)",
        "warning, 1 of 4: slices 9 mm apart (training had 2)",
    ]
    exact = pd.read_csv(out)["warning"].tolist()
    assert exact[:3] == [f"{slices} slices (training had 6)" for slices in (13, 14, 20)]


DECISION = {
    "rule": "half",
    "at": 0.9,
    "thresholds": {"1": 0.5},
    "calibration": {"method": "temperature", "temperatures": {"1": 2.0}},
    "fitted": {},
}


@pytest.mark.parametrize(
    ("more", "changed"),
    [((), False), (("--overlap", "0.25"), True), (("--flips", "W"), True), (("--clips", "2"), True), ("own", False)],
    ids=str,
)
def test_decisions_under_another_protocol_are_told(
    more: Any, changed: bool, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = json.loads((place / "a" / "fold-0" / "card.json").read_text(encoding="utf-8"))
    if more == "own":  # asked for, and what the run has anyway
        more = ("--overlap", str(card["protocol"]["overlap"]))
    run = make_run(tmp_path / "run", decision=DECISION)
    out = tmp_path / "s.csv"
    command = ["predict", str(run.path), str(place / "sound"), "--out", str(out), "--device", "cpu", *more]
    assert main(command) == 0
    assert "called" in pd.read_csv(out)
    sentence = "thresholds and calibration were chosen under the run's own protocol"
    assert (sentence in " ".join(capsys.readouterr().out.split())) is changed
    note = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["runs"][0]["decision_note"]
    assert (sentence in (note or "")) is changed


def test_without_decisions_another_protocol_needs_no_note(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(place, "a", tmp_path / "s.csv", "--flips", "W") == 3
    told = capsys.readouterr().out
    assert "thresholds" not in told and "Scores of single slices" in told


def test_networks_that_read_clips_give_no_scores_of_single_slices(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config({**CONFIG.to_dict(), "network": {"name": "c3d", "width": 0.125}})
    run = RunFolder.create(tmp_path / "run", config)
    member = run.member("fold-0")
    member.save(create("c3d", num_classes=1, width=0.125), member_card(config, split="fold-0", **FACTS))
    member.finish()
    out = tmp_path / "s.csv"
    main(["predict", str(run.path), str(place / "sound"), "--out", str(out), "--device", "cpu"])
    told = capsys.readouterr().out
    assert "Scores of the clips that hold each slice: " in told and "single slices" not in told


def test_an_option_that_cannot_be_ends_at_once(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(place, "a", tmp_path / "s.csv", "--overlap", "1") == 2
    assert "--overlap: 1.0 cannot be used" in capsys.readouterr().err
    assert predict(place, "a", tmp_path / "s.csv", "--jobs", "-1") == 2
    assert "--jobs: there cannot be -1 processes" in " ".join(capsys.readouterr().err.split())
    assert predict(place, "a", tmp_path / "s.txt") == 2
    assert "not as .txt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_python_gives_the_table_and_the_problems(place: Path) -> None:
    run = volrec.load(place / "a")
    assert isinstance(run.folder, RunFolder)
    table = run.predict(place / "in", also=[volrec.load(place / "b")], device="cpu")
    assert table["members"].tolist() == [2, 2]
    assert [problem["study"] for problem in table.attrs["problems"] if problem["fatal"]] == ["p1"]
