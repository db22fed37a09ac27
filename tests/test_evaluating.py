"""Whole commands: groups of studies of a run, and runs that are compared, from the shell and from Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from studies import two_class_folder

import volrec
from volrec.api.comparing import compare_runs
from volrec.cli import main
from volrec.config import parse_config
from volrec.errors import ConfigError, LabelsError, RunError
from volrec.evaluation import evaluate_scores
from volrec.runs import RunFolder

NAMING: dict[str, Any] = {"task": "binary", "classes": ["0", "1"], "targets": ["label"]}
STUDIES = 80


def make_run(
    path: Path,
    *,
    seed: int,
    strength: float = 0.2,
    folds: int = 0,
    decision: dict[str, Any] | None = None,
    part: str = "test",
    tested: slice = slice(None),
) -> RunFolder:
    """Write a finished run with scores, and no network; its folder of studies does not exist."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(0).integers(0, 2, STUDIES)
    table = pd.DataFrame({"study": [f"v{number:02d}" for number in range(STUDIES)]})
    table["patient"] = [f"p{number // 2:02d}" for number in range(STUDIES)]
    names = [f"fold-{number}" for number in range(folds)] or ["split"]
    fold = np.array(names)[np.arange(STUDIES) // 2 % len(names)]
    if folds:
        table["fold"] = fold
    table["label"] = truth
    table["score_1"] = np.clip(0.5 + strength * (2 * truth - 1) + rng.normal(0, 0.25, STUDIES), 0, 1)
    scored = table.iloc[tested]
    data = {"folder": str(path.parent / "gone"), "labels": str(path.parent / "labels.csv")}
    run = RunFolder.create(path, parse_config({"data": data}))
    for number, name in enumerate(names):
        member = run.member(name).make()
        card = {"task": "binary", "targets": ["label"], "classes": ["0", "1"]}
        if decision is not None:
            card["decision"] = {**decision, "thresholds": {"1": decision["thresholds"]["1"] + 0.1 * number}}
        member.card_path.write_text(json.dumps(card))
        member.weights.touch()
        member.finish()
    rows = [
        (name, part if own == name and study in set(scored["study"]) else "train", study, patient)
        for name in names
        for study, patient, own in zip(table["study"], table["patient"], fold, strict=True)
    ]
    run.write_table("splits", pd.DataFrame(rows, columns=["split", "part", "study", "patient"]))
    run.write_table("scores", scored)
    found = evaluate_scores(scored, **NAMING, resamples=50)
    run.write_metrics({"part": part, **found, part: found["metrics"]})
    run.finish()
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run and its labels, with sex, site, age and what must not be a group."""
    number = np.arange(STUDIES)
    labels = pd.DataFrame({"study": [f"v{n:02d}.nii.gz" for n in number], "label": number % 2})
    labels["sex"] = np.where(number // 2 % 2, "F", "M")
    labels["site"] = np.where(number < 70, "north", "south")
    labels["age"] = 20 + number // 2
    labels["date"] = "2020-02-29"
    labels["doctor"] = [f"Dr {n // 2}" for n in number]
    labels.to_csv(tmp_path / "labels.csv", index=False)
    make_run(tmp_path / "first", seed=1)
    return tmp_path / "first"


def test_evaluate_shows_and_writes_groups(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, scores = tmp_path / "metrics.json", tmp_path / "out.csv"
    command = ["evaluate", str(run), "--by", "sex", "--by", "site", "--by", "age", "--resamples", "50"]
    assert main([*command, "--out", str(out), "--scores", str(scores)]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.split("By sex:")[1].split("In brackets")[0].splitlines())) <= 80
    assert "Called from 0.5 on: this run carries no thresholds of its own." in shown
    assert "south *" in shown and "* south: too few to trust the intervals: 5 patients (fewer than 20)" in shown
    assert "Ages in years, cut at 18, 40, 60 and 80." in shown
    assert "comparisons of groups: " in shown
    metrics = json.loads(out.read_text(encoding="utf-8"))
    table = pd.read_csv(run / "scores.csv")
    women = table[table["study"].str[1:].astype(int) // 2 % 2 == 1]
    group = metrics["subgroups"]["sex"]["groups"][0]
    assert (group["name"], group["studies"], group["patients"]) == ("F", 40, 20)
    expected = evaluate_scores(women, **NAMING, resamples=50)["metrics"]["auc"]
    assert group["metrics"]["auc"] == expected
    rows = pd.read_csv(tmp_path / "metrics.csv")
    own = rows[(rows["part"] == "sex") & (rows["group"] == "F") & (rows["metric"] == "auc")]
    assert own["value"].item() == pytest.approx(expected["value"])
    overall = rows[(rows["part"] == "all") & (rows["metric"] == "brier")]
    assert overall["value"].item() == pytest.approx(metrics["metrics"]["brier"]["value"])
    assert (tmp_path / "metrics.svg").is_file() and (tmp_path / "metrics.png").is_file()
    pd.testing.assert_frame_equal(pd.read_csv(scores), table)


def test_folders_of_what_is_written_are_made_and_a_folder_is_no_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scores = tmp_path / "new" / "deep" / "metrics.json", tmp_path / "other" / "scores.csv"
    command = ["evaluate", str(run), "--by", "site", "--by", "sex", "--resamples", "20"]
    assert main([*command, "--out", str(out), "--scores", str(scores)]) == 0
    assert out.is_file() and out.with_suffix(".svg").is_file() and scores.is_file()
    capsys.readouterr()
    assert main([*command, "--out", str(tmp_path / "new")]) == 2
    assert "it is a folder, and a file is to be written." in capsys.readouterr().err
    assert main([*command, "--out", str(out / "metrics.json")]) == 2
    assert "its folder cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("date", "holds dates"),
        ("doctor", "tells persons apart"),
        ("study", "names studies or patients"),
        ("label", "is what is recognised"),
        ("sexx", "Did you mean 'sex'?"),
    ],
)
def test_columns_that_make_no_groups_are_refused(
    column: str, said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--by", column, "--out", str(tmp_path / "out.json")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_table_that_has_moved_is_named(run: Path, tmp_path: Path) -> None:
    loaded = volrec.load(run)
    before = loaded.evaluate(by=["sex"], resamples=20)
    (tmp_path / "labels.csv").rename(tmp_path / "elsewhere.csv")
    with pytest.raises(LabelsError, match="not where it was"):
        loaded.evaluate(by=["sex"])
    assert loaded.evaluate(by=["SEX"], labels=tmp_path / "elsewhere.csv", resamples=20) == before
    with pytest.raises(ConfigError, match="for the columns of --by only"):
        loaded.evaluate(labels=tmp_path / "elsewhere.csv")
    # A row a patient holds for all of its studies; what has no row is a group of its own.
    (tmp_path / "patients.csv").write_text("patient,hand\np00,left\np01,right\np02,left\n", encoding="utf-8")
    found = loaded.evaluate(by=["hand"], labels=tmp_path / "patients.csv", resamples=0)["subgroups"]["hand"]
    assert [(group["name"], group["studies"]) for group in found["groups"]] == [
        ("left", 4),
        ("right", 2),
        ("no value", 74),
    ]
    (tmp_path / "twice.csv").write_text("study,hand\nv00,left\nv00,right\nv01,left\n", encoding="utf-8")
    with pytest.raises(LabelsError, match=r"contradict each other in column 'hand': v00 \(lines 2, 3\)"):
        loaded.evaluate(by=["hand"], labels=tmp_path / "twice.csv")
    (tmp_path / "others.csv").write_text("study,hand\nw00,left\n", encoding="utf-8")
    with pytest.raises(LabelsError, match="none of its rows names one of the 80 studies"):
        loaded.evaluate(by=["hand"], labels=tmp_path / "others.csv")


def test_thresholds_come_from_the_cards_and_are_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decision = {"rule": "sensitivity", "at": 0.95, "thresholds": {"1": 0.3}}
    made = make_run(tmp_path / "folds", seed=2, folds=2, decision=decision)
    found = volrec.load(made.path).evaluate(by=["sex"], resamples=0)
    table = made.scores()
    called = table["score_1"] >= table["fold"].map({"fold-0": 0.3, "fold-1": 0.4})
    assert found["metrics"]["sensitivity"]["value"] == pytest.approx(called[table["label"] == 1].mean())
    women = table["study"].str[1:].astype(int) // 2 % 2 == 1
    own = found["subgroups"]["sex"]["groups"][0]["metrics"]
    assert own["specificity"]["value"] == pytest.approx(1 - called[women & (table["label"] == 0)].mean())
    assert main(["evaluate", str(made.path)]) == 0
    shown = capsys.readouterr().out
    assert "Called: 1 from 0.3 to 0.4 on (each fold has its own; the highest that reaches sensitivity 0.95" in shown
    # Metrics that were written at 0.5 are made again at the thresholds of the cards.
    plain = volrec.load(made.path).evaluate()
    assert plain["metrics"]["sensitivity"]["value"] == found["metrics"]["sensitivity"]["value"]
    assert plain["metrics"]["sensitivity"]["value"] != made.metrics["metrics"]["sensitivity"]["value"]
    single = make_run(tmp_path / "single", seed=2, decision=decision | {"rule": "youden"})
    assert main(["evaluate", str(single.path)]) == 0
    assert "1 from 0.3 on (the best mean of sensitivity and specificity on validation" in capsys.readouterr().out


def test_compare_says_what_it_means_and_writes_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "second", seed=2, strength=0.5)
    make_run(tmp_path / "third", seed=3)
    out = tmp_path / "compare.json"
    runs = [run, tmp_path / "second", tmp_path / "third"]
    assert main(["compare", *map(str, runs), "--resamples", "50", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "second's AUC is higher by 0." in shown and "a difference is shown, in favour of second." in shown
    assert "Note: 2 runs are compared with first" in shown
    table = [line for line in shown.splitlines() if line.startswith(("AUC", "accuracy", "sensitivity", "loss"))]
    assert len(table) == 8 and all(len(line) <= 80 for line in table)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["runs"] == ["first", "second", "third"]
    assert found == volrec.compare(*runs, resamples=50)
    rows = pd.read_csv(tmp_path / "compare.csv")
    auc = rows[(rows["second"] == "third") & (rows["metric"] == "auc")]
    assert auc["difference_value"].item() == pytest.approx(
        found["comparisons"][1]["metrics"]["auc"]["difference"]["value"]
    )
    assert (tmp_path / "compare.svg").is_file() and (tmp_path / "compare.png").is_file()


def test_runs_that_were_divided_otherwise_are_compared_on_what_both_tested_and_it_is_said(
    run: Path, tmp_path: Path
) -> None:
    make_run(tmp_path / "half", seed=2, tested=slice(40, 80))
    found = volrec.compare(run, tmp_path / "half", resamples=20)
    one = found["comparisons"][0]
    assert (one["studies"], one["only_first"], one["only_second"]) == (40, 40, 0)
    assert found["warnings"] == [
        "half learned from 40 of the 80 studies that first is tested on, or from their patients: these are left out of "
        "the comparison. The runs were not divided alike."
    ]
    # Folds are trained on the studies of other folds, and that is no leak: each is scored by a member that has not
    # seen it.
    make_run(tmp_path / "folds", seed=3, folds=4)
    assert volrec.compare(run, tmp_path / "folds", resamples=20)["warnings"] == []
    make_run(tmp_path / "validated", seed=4, part="validation")
    (warning,) = volrec.compare(run, tmp_path / "validated", resamples=20)["warnings"]
    assert warning.startswith("The scores of validated are of validation studies")


def test_compare_refuses_what_cannot_be_compared(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run)]) == 2
    assert "there is nothing to compare: 1 run given" in capsys.readouterr().err
    assert main(["compare", str(run), str(run / ".." / "first")]) == 2
    assert "named twice" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--folder"):
        compare_runs([run, run], labels=tmp_path / "labels.csv")
    unfinished = make_run(tmp_path / "unfinished", seed=2)
    (unfinished.path / "finished").unlink()
    with pytest.raises(RunError, match="has not finished"):
        volrec.compare(run, unfinished.path)
    assert main(["compare", str(run), str(tmp_path / "unfinished"), "--out", str(tmp_path / "x.svg")]) == 2
    assert "Name a .json file" in capsys.readouterr().err


def test_a_fused_run_is_compared_with_one_of_its_own(run: Path, tmp_path: Path) -> None:
    second = make_run(tmp_path / "second", seed=2)
    for path in (run, second.path):
        table = pd.read_csv(path / "scores.csv").assign(logit_1=0.0)
        table.to_csv(path / "scores.csv", index=False)
    fused = volrec.fuse([run, second.path], tmp_path / "both")
    found = volrec.compare(run, fused, resamples=20)
    both = pd.read_csv(tmp_path / "both" / "scores.csv")
    auc = evaluate_scores(both, **NAMING, resamples=0)["metrics"]["auc"]["value"]
    assert found["comparisons"][0]["metrics"]["auc"]["second"]["value"] == auc
    assert found["decided"]["both"] == "Called from 0.5 on: a fused run carries no thresholds."
    assert fused.evaluate(by=["sex"], resamples=0)["subgroups"]["sex"]["groups"][0]["studies"] == 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of studies with labels and sex, and a tiny run trained on it."""
    root = tmp_path_factory.mktemp("evaluating")
    labels = two_class_folder(root / "data", studies=15)
    table = pd.read_csv(labels, dtype=str).assign(sex=["F", "M", "M"] * 5)
    table.to_csv(labels, index=False)
    command = ["train", str(root / "data"), "--labels", str(labels), "--target", "label", "--out", str(root / "run")]
    quick = [
        "network.width=0.1",
        "trainer.workers=0",
        "trainer.accelerator=cpu",
        "report.audit=false",
        "report.gallery=0",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLREC_CACHE", str(root / "cache"))
        settings = [word for one in quick for word in ("--set", one)]
        assert main([*command, "--epochs", "1", "--network", "slice-mean", *settings]) == 0
    return root / "data", root / "run"


def test_groups_of_a_trained_run_are_read_from_its_own_labels(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = trained
    loaded = volrec.load(run)
    sexes = pd.read_csv(folder / "labels.csv").set_index("study")["sex"]
    own = loaded.evaluate(by=["sex"], resamples=0)["subgroups"]["sex"]
    counts = sexes[loaded.scores["study"]].value_counts()
    assert {group["name"]: group["studies"] for group in own["groups"]} == counts.to_dict()
    out = tmp_path / "elsewhere.json"
    command = ["evaluate", str(run), str(folder), "--by", "sex", "--include-training", "--resamples", "20"]
    assert main([*command, "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["studies"] == 15
    groups = {group["name"]: group["studies"] for group in found["subgroups"]["sex"]["groups"]}
    assert groups == {"F": 5, "M": 10}


def test_runs_are_compared_on_other_studies(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = trained
    other = tmp_path / "other"
    shutil.copytree(run, other)
    labels = folder / "labels.csv"
    found, _ = compare_runs([run, other], folder, labels=labels, include_training=True, resamples=20)
    assert found["part"] == "folder"
    assert found["comparisons"][0]["studies"] == 15
    assert found["comparisons"][0]["verdict"]["code"] == "none"
    tested = len(volrec.load(run).scores)
    assert f"run learned from {15 - tested} of the 15 studies" in found["warnings"][0]
    command = ["compare", str(run), str(other), "--folder", str(folder), "--labels", str(labels), "--resamples", "20"]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{15 - tested} of 15 studies are of patients that this run was trained or validated on" in shown
    assert f"on {tested} studies of {tested} patients" in shown


def test_studies_that_chose_the_thresholds_are_named_as_such() -> None:
    from types import SimpleNamespace

    from volrec.api.evaluating import _caution

    said = {part: _caution(SimpleNamespace(metrics={"part": part})) for part in ("test", "validation")}  # type: ignore[arg-type]
    assert said["test"] == ""
    assert "expect less" in said["validation"]
