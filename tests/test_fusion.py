"""Runs fused as whole folders: what is written, what is refused, and what a fused run says of new studies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from studies import two_class_folder, write_study

import volrec
from volrec.cli import main
from volrec.config import parse_config
from volrec.errors import ConfigError, Problem, RunError
from volrec.evaluation import evaluate_scores
from volrec.inference.fused import FusedFolder, fuse_new_scores
from volrec.runs import RunFolder

CLASSES = ("kick", "kick_ball", "sword")
TURNED = ("kick_ball", "kick", "sword")
STUDIES = 36


def make_run(
    path: Path,
    *,
    seed: int,
    classes: Sequence[str] = CLASSES,
    folds: int = 0,
    shift: int = 0,
    validation: bool = True,
    target: str = "action",
) -> RunFolder:
    """Write a finished run with scores and splits, and no network.

    A third of the studies is tested in each fold; `shift` moves all parts by so many studies.
    """
    run = RunFolder.create(path, parse_config({}))
    rng = np.random.default_rng(seed)
    truth = np.arange(STUDIES) % 3
    names = [f"fold-{number}" for number in range(folds)] or ["split"]
    rows: list[tuple[str, str, str, str]] = []
    tables: dict[str, list[pd.DataFrame]] = {"scores": [], "validation_scores": []}
    for number, name in enumerate(names):
        logits = 1.5 * np.eye(3)[truth] + rng.normal(0, 1.5, (STUDIES, 3))
        turn = (np.arange(STUDIES) // 3 + shift + number) % 3  # 0 tested, 1 validated, 2 trained
        parts = [("test", "validation", "train")[place] for place in turn]
        rows += [(name, part, f"v{n:02d}", f"p{n:02d}") for n, part in enumerate(parts)]
        for part, kind in (("test", "scores"), ("validation", "validation_scores")):
            table = pd.DataFrame({"study": [f"v{n:02d}" for n in range(STUDIES)]})
            table["patient"] = [f"p{n:02d}" for n in range(STUDIES)]
            if folds:
                table["fold"] = name
            table[target] = [CLASSES[label] for label in truth]
            for label in classes:
                table[f"score_{label}"] = softmax(logits, axis=1)[:, CLASSES.index(label)]
            for label in classes:
                table[f"logit_{label}"] = logits[:, CLASSES.index(label)]
            tables[kind].append(table[np.array(parts) == part])
        member = run.member(name).make()
        member.card_path.write_text(json.dumps({"task": "multiclass", "targets": [target], "classes": list(classes)}))
        member.weights.touch()
        member.finish()
    run.write_table("splits", pd.DataFrame(rows, columns=["split", "part", "study", "patient"]))
    for kind, found in tables.items():
        if kind == "scores" or validation:
            run.write_table(kind, pd.concat(found, ignore_index=True))
    run.write_metrics({"part": "test"})
    run.finish()
    return run


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [make_run(tmp_path / name, seed=seed).path for seed, name in enumerate(("ct", "flow"))]


def change(run: Path, name: str, **columns: Any) -> None:
    table = RunFolder(run).read_table(name)
    RunFolder(run).write_table(name, table.assign(**columns))


def test_a_fused_run_holds_its_rule_scores_and_metrics(pair: list[Path], tmp_path: Path) -> None:
    fused = volrec.fuse(pair, tmp_path / "both", weights=[1, 3])
    ct, flow = (RunFolder(path).scores() for path in pair)
    columns = [f"score_{name}" for name in CLASSES]
    np.testing.assert_allclose(fused.scores[columns], (ct[columns] + 3 * flow[columns]) / 4)
    metrics = evaluate_scores(fused.scores, task="multiclass", classes=CLASSES, targets=["action"])
    assert fused.metrics["metrics"] == metrics["metrics"] == fused.metrics["test"]
    assert fused.metrics["metrics"]["accuracy"]["low"] < fused.metrics["metrics"]["accuracy"]["high"]
    for path in pair:
        own = evaluate_scores(RunFolder(path).scores(), task="multiclass", classes=CLASSES, targets=["action"])
        for name, metric in fused.metrics["runs"][path.name].items():
            assert metric == pytest.approx(own["metrics"][name])
    assert len(fused.folder.table("validation_scores")) == 12
    facts = json.loads((tmp_path / "both" / "fusion.json").read_text(encoding="utf-8"))
    assert facts["weights"] == fused.weights == {"ct": 0.25, "flow": 0.75}
    assert [run["relative"] for run in facts["runs"]] == ["../ct", "../flow"]
    loaded = volrec.load(tmp_path / "both")
    assert isinstance(loaded, volrec.FusedRun)
    pd.testing.assert_frame_equal(loaded.scores, fused.scores)
    assert loaded.evaluate() == fused.metrics
    assert [run.path.resolve() for run in loaded.runs] == pair


def test_a_fused_run_says_where_its_reports_are(
    pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volrec.fuse(pair, tmp_path / "both")
    assert main(["report", str(tmp_path / "both")]) == 2
    assert "it is a fused run, which has no report of its own." in capsys.readouterr().err


@pytest.mark.parametrize("method", ["weights", "learned", "svm"])
def test_a_run_with_its_classes_in_another_order_fuses_to_the_same(
    method: str, pair: list[Path], tmp_path: Path
) -> None:
    turned = [make_run(tmp_path / f"turned-{seed}", seed=seed, classes=TURNED).path for seed in (0, 1)]
    plain = volrec.fuse(pair, tmp_path / "plain", method=method)
    other = volrec.fuse([pair[0], turned[1]], tmp_path / "other", method=method)
    assert other.metrics["metrics"] == plain.metrics["metrics"]
    first = volrec.fuse([turned[0], pair[1]], tmp_path / "first", method=method)
    names = [column for column in first.scores if column.startswith("score_")]
    assert names == [f"score_{name}" for name in TURNED]
    pd.testing.assert_frame_equal(first.scores[list(plain.scores.columns)], plain.scores, rtol=1e-9)


@pytest.mark.parametrize("folds", [0, 3])
@pytest.mark.parametrize("method", ["learned", "svm"])
def test_what_is_fitted_has_not_seen_a_test_label(folds: int, method: str, tmp_path: Path) -> None:
    pair = [make_run(tmp_path / name, seed=seed, folds=folds).path for seed, name in enumerate("ab")]
    before = volrec.fuse(pair, tmp_path / "before", method=method)
    rng = np.random.default_rng(9)
    labels = rng.choice(CLASSES, len(before.scores))
    for path in pair:
        change(path, "scores", action=labels)
    after = volrec.fuse(pair, tmp_path / "after", method=method)
    assert set(after.rule.parts) == ({f"fold-{n}" for n in range(folds)} if folds else {""})
    facts = [json.loads((run.path / "fusion.json").read_text(encoding="utf-8")) for run in (before, after)]
    assert facts[0]["parts"] == facts[1]["parts"]
    assert before.metrics["metrics"] != after.metrics["metrics"]
    labels = rng.choice(CLASSES, len(labels))
    for path in pair:  # and validation labels do change it
        change(path, "validation_scores", action=labels)
    other = volrec.fuse(pair, tmp_path / "other", method=method)
    assert json.loads((other.path / "fusion.json").read_text(encoding="utf-8"))["parts"] != facts[0]["parts"]


def test_runs_of_other_splits_are_refused_with_the_study(pair: list[Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", seed=2, shift=1).path
    with pytest.raises(RunError, match=r"other learned from study v\d\d or its patient, and ct is measured on it"):
        volrec.fuse([pair[0], other])
    with pytest.raises(RunError, match="divided differently: their folds are none and fold-0, fold-1, fold-2"):
        volrec.fuse([pair[0], make_run(tmp_path / "folded", seed=2, folds=3).path])


def test_the_patient_of_a_test_study_counts_as_learned_from(pair: list[Path]) -> None:
    splits = RunFolder(pair[1]).read_table("splits")
    trained = splits["part"] == "train"
    splits.loc[trained, "patient"] = ["p00", *splits.loc[trained, "patient"][1:]]
    RunFolder(pair[1]).write_table("splits", splits)
    with pytest.raises(RunError, match="flow learned from study v00 or its patient, and ct is measured"):
        volrec.fuse(pair)


def test_other_validation_studies_forbid_a_fit_but_not_weights(pair: list[Path], tmp_path: Path) -> None:
    splits = RunFolder(pair[1]).read_table("splits")
    swapped = splits["part"].replace({"train": "validation", "validation": "train"})
    change(pair[1], "splits", part=swapped)
    with pytest.raises(RunError, match="flow learned from study v03 or its patient, and ct is measured"):
        volrec.fuse(pair, method="svm")
    fused = volrec.fuse(pair, tmp_path / "both")
    assert not (fused.path / "validation_scores.csv").exists()


def test_runs_that_do_not_fit_are_named(pair: list[Path], tmp_path: Path) -> None:
    few = make_run(tmp_path / "few", seed=1, classes=CLASSES[:2])
    other = make_run(tmp_path / "target", seed=1, target="deed")
    bare = make_run(tmp_path / "bare", seed=1, validation=False)
    scores = RunFolder(pair[1]).scores()
    for paths, message in (
        ([pair[0], few.path], "few has no class sword, which ct has"),
        ([pair[0], other.path], "target has no target action, which ct has"),
        ([pair[0], pair[0]], "this run is named twice"),
        ([pair[0], tmp_path / "nowhere"], "there is no such folder"),
    ):
        with pytest.raises(RunError, match=message):
            volrec.fuse(paths)
    with pytest.raises(ConfigError, match="'learned' is fitted on validation studies, and bare has none"):
        volrec.fuse([pair[0], bare.path], method="learned")
    RunFolder(pair[1]).write_table("scores", scores.iloc[1:])
    with pytest.raises(RunError, match="flow has no score of study v00, which ct has"):
        volrec.fuse(pair)
    (pair[1] / "finished").unlink()
    with pytest.raises(RunError, match="this run has not finished"):
        volrec.fuse(pair)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "svm", "weights": [1, 2]}, "'svm' finds the weights itself"),
        ({"method": "svm", "stage": "logits"}, "reads probabilities, not 'logits'"),
        ({"method": "mean"}, "method must be one of weights, svm, learned"),
        ({"stage": "sigmoid"}, "stage must be one of logits, softmax, relu-l1"),
        ({"preset": "tsn", "stage": "softmax"}, "a preset is weights and a stage"),
        ({"preset": "tsm"}, "no preset 'tsm'.*tsn"),
        ({"as_given": True}, "only logits can be summed"),
        ({"weights": [1, 2, 3]}, "number of weights is 3, that of runs 2"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    options: dict[str, Any], message: str, pair: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        volrec.fuse(pair, tmp_path / "both", **options)
    assert not (tmp_path / "both").exists()


def test_the_preset_of_a_paper_is_its_weights_and_stage(pair: list[Path], tmp_path: Path) -> None:
    preset = volrec.fuse(pair, tmp_path / "preset", preset="tsn")
    by_hand = volrec.fuse(pair, tmp_path / "hand", weights=[1, 1.5], stage="logits")
    pd.testing.assert_frame_equal(preset.scores, by_hand.scores)
    assert preset.rule.stage == "logits"


def test_quantities_are_averaged_in_their_own_units(pair: list[Path], tmp_path: Path) -> None:
    for path in pair:
        run, (member,) = RunFolder(path), RunFolder(path).members
        member.card_path.write_text(json.dumps({"task": "regression", "targets": ["volume"], "classes": []}))
        rng = np.random.default_rng(len(path.name))
        for name in ("scores", "validation_scores"):
            table = run.read_table(name)[["study", "patient"]]
            run.write_table(name, table.assign(volume=np.arange(12.0), score_volume=100 * rng.random(12)))
    fused = volrec.fuse(pair, tmp_path / "both", weights=[1, 3])
    ct, flow = (RunFolder(path).scores()["score_volume"] for path in pair)
    np.testing.assert_allclose(fused.scores["score_volume"], (ct + 3 * flow) / 4)
    assert fused.metrics["metrics"]["mae"]["low"] is not None
    with pytest.raises(ConfigError, match="'logits' has no meaning for quantities"):
        volrec.fuse(pair, tmp_path / "other", stage="logits")
    with pytest.raises(ConfigError, match="needs classes"):
        volrec.fuse(pair, tmp_path / "other", method="svm")


def test_a_fused_run_is_found_after_a_move_and_refused_after_a_change(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fused = volrec.fuse([path.name for path in pair])
    assert fused.path == Path("runs/fused-ct-flow")
    (tmp_path / "moved").mkdir()
    for name in ("ct", "flow", "runs"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    moved = FusedFolder(tmp_path / "moved" / "runs" / "fused-ct-flow")
    assert [source.run.path.resolve() for source in moved.sources()] == [tmp_path / "moved" / n for n in ("ct", "flow")]
    with pytest.raises(RunError, match="it is a fused run"):
        volrec.fuse([moved.path, tmp_path / "moved" / "ct"])
    with pytest.raises(RunError, match="it is not empty"):
        volrec.fuse([tmp_path / "moved" / name for name in ("ct", "flow")], moved.path)
    change(tmp_path / "moved" / "flow", "scores", score_kick=0.5)
    with pytest.raises(RunError, match="the scores of flow have changed since they were fused"):
        moved.sources()
    shutil.rmtree(tmp_path / "moved" / "flow")
    with pytest.raises(RunError, match="the run flow that it fuses is not there any more"):
        moved.sources()


def test_a_damaged_rule_says_so(pair: list[Path], tmp_path: Path) -> None:
    fused = volrec.fuse(pair, tmp_path / "both")
    (fused.path / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"metrics\.json: this part of the fused run is missing.*fuse the runs again"):
        _ = volrec.load(fused.path).metrics
    rule = fused.path / "fusion.json"
    facts = json.loads(rule.read_text(encoding="utf-8"))
    for text, message in (
        ("{", "it cannot be read"),
        (json.dumps({**facts, "schema": 7}), "its schema is 7"),
        (json.dumps({**facts, "parts": 3}), "its rule cannot be read"),
    ):
        rule.write_text(text)
        with pytest.raises(RunError, match=message):
            _ = FusedFolder(fused.path).rule


def test_folds_are_fused_member_by_member_for_new_studies(tmp_path: Path) -> None:
    pair = [make_run(tmp_path / name, seed=seed, folds=3).path for seed, name in enumerate("ab")]
    fused = volrec.fuse(pair, tmp_path / "both", method="learned", stage="logits")
    rng = np.random.default_rng(4)
    logits = {name: rng.normal(size=(2, 3, 3)) for name in "ab"}  # studies, folds, classes

    def score(source: Any) -> tuple[pd.DataFrame, list[Problem]]:
        rows = [
            {"study": study, "patient": study, "fold": f"fold-{fold}", "warning": "odd" if source.name == "a" else ""}
            | {f"logit_{label}": logits[source.name][n, fold, k] for k, label in enumerate(CLASSES)}
            | {f"score_{label}": softmax(logits[source.name][n, fold])[k] for k, label in enumerate(CLASSES)}
            for n, study in enumerate(("y", "x"))
            for fold in range(3)
        ]
        table = pd.DataFrame(rows)
        return (table[table["study"] == "y"] if source.name == "b" else table), []

    table, problems = fuse_new_scores(fused.folder, score)
    assert table["study"].tolist() == ["y"]
    expected = []
    for fold in range(3):
        weights = fused.rule.parts[f"fold-{fold}"].weights
        assert weights is not None
        expected.append(softmax(weights[0] * logits["a"][0, fold] + weights[1] * logits["b"][0, fold]))
    np.testing.assert_allclose(table[[f"score_{name}" for name in CLASSES]].to_numpy()[0], np.mean(expected, axis=0))
    assert table["warning"].tolist() == ["a: odd"]
    (problem,) = problems
    assert (problem.study, problem.code, problem.fatal) == ("x", "not-fused", True)
    assert problem.reason == "it got no score from b."


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A folder of studies and two tiny runs trained on it, of different networks and grids."""
    root = tmp_path_factory.mktemp("fusion")
    labels = two_class_folder(root / "data", studies=15)
    quick = ["--epochs", "1", "--set", "network.width=0.1", "--set", "trainer.workers=0"]
    quick += ["--set", "report.audit=false", "--set", "report.gallery=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOLREC_CACHE", str(root / "cache"))
        for name, more in (
            ("plain", ["--network", "slice-mean", "--set", "protocol.stage=logits"]),
            ("lstm", ["--network", "lrcn", "--set", "preprocess.canvas=[4,16,16]"]),
        ):
            command = ["train", str(root / "data"), "--labels", str(labels), "--out", str(root / name), *quick, *more]
            assert main([*command, "--set", "trainer.accelerator=cpu"]) == 0
    return root / "data", [root / "plain", root / "lstm"]


def test_the_command_shows_each_run_beside_the_fused_one(
    trained: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, pair = trained
    out = tmp_path / "both"
    command = ["fuse", *map(str, pair), "--out", str(out), "--weights", "1", "1.5", "--stage", "logits"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.strip()}
    assert lines["plain"][1] == "0.4" and lines["lstm"][1] == "0.6"
    auc = volrec.load(out).metrics["metrics"]["auc"]["value"]
    assert lines["fused"][1] == f"{auc:.3f}"
    assert f"volrec predict {out} FOLDER" in shown
    assert main(["evaluate", str(out)]) == 0
    assert "AUC" in capsys.readouterr().out
    assert main(command) == 2
    assert main(["fuse", str(pair[0]), "--out", str(tmp_path / "one")]) == 2
    assert "nothing to fuse: 1 run given" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "options", [{"weights": [1, 2]}, {"stage": "logits", "method": "learned"}, {"method": "svm"}], ids=str
)
def test_a_fused_run_repeats_its_scores_on_the_same_studies(
    options: dict[str, Any], trained: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    folder, pair = trained
    fused = volrec.fuse(pair, tmp_path / "both", **options)
    table = volrec.load(fused.path).predict(folder)
    assert len(table) == 15
    own = fused.scores.set_index("study")
    again = table.set_index("study").loc[own.index]
    np.testing.assert_allclose(again[["score_1", "logit_1"]], own[["score_1", "logit_1"]], atol=1e-5)
    assert own["score_1"].nunique() == len(own)


def test_a_fused_run_scores_another_folder_by_command(
    trained: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pair = trained
    fused = volrec.fuse(pair, tmp_path / "both")
    write_study(tmp_path / "new" / "sound")
    bad = write_study(tmp_path / "new" / "broken")[1]
    bad.write_bytes(bad.read_bytes()[:-50])
    out = tmp_path / "scores.csv"
    assert main(["predict", str(fused.path), str(tmp_path / "new"), "--out", str(out)]) == 3
    assert "1 quarantined" in capsys.readouterr().err
    assert list(pd.read_csv(out)["study"]) == ["sound"]
    # Studies that either run learned from are left out of an evaluation, unless they are asked for.
    evaluate = ["evaluate", str(fused.path), str(folder), "--labels", str(folder / "labels.csv")]
    assert main(evaluate) == 0
    shown = " ".join(capsys.readouterr().out.split())
    tested = len(fused.scores)
    assert f"{15 - tested} of 15 studies are of patients that this run was trained or validated on" in shown
    assert f"{tested} studies of {tested} patients" in shown
    assert main([*evaluate, "--include-training"]) == 0
    assert "15 studies of 15 patients" in capsys.readouterr().out
