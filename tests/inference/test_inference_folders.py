"""A run applied to a folder: one row a study, one line of quarantine a study that fails."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from studies import write_study
from untrained import CONFIG, FACTS, make_run, write_folder

from volrec.data.index import index
from volrec.data.store import Store
from volrec.errors import ConfigError, Problem, RunError
from volrec.inference import decoding, load_members, predict_folder, score_cohort, score_studies, score_table
from volrec.inference.predictor import StudyScore
from volrec.inference.tables import target_values
from volrec.networks import create
from volrec.runs import RunFolder, member_card

BEFORE, AFTER = ["study", "patient"], ["members", "clips", "slices", "warning"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "in")


@dataclass(frozen=True)
class Labelled:
    study: str
    patient: str
    series: Any
    target: np.ndarray


@dataclass(frozen=True)
class Labels:
    cases: tuple[Labelled, ...]
    task: str = "binary"
    targets: tuple[str, ...] = ("bleed",)
    classes: tuple[str, ...] = ("0", "1")


def labelled(folder: Path, **options: Any) -> Labels:
    records = index(folder).studies
    cases = [Labelled(r.study, r.patient, r.series, np.array([n % 2.0])) for n, r in enumerate(records)]
    return Labels(tuple(cases), **options)


def test_every_study_gets_a_row_with_the_score_that_the_store_would_give(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run", members=2)
    table, problems = predict_folder(run.path, folder, device="cpu")
    uncertainty = ["spread", "entropy", "disagreement"]
    assert list(table.columns) == [*BEFORE, "score_1", "logit_1", *uncertainty, *AFTER]
    assert table["study"].tolist() == ["p0", "p1", "p2"]
    assert table[["members", "clips", "slices"]].to_numpy().tolist() == [[2, 2, 6]] * 3
    assert not [problem for problem in problems if problem.fatal]
    assert (table["warning"] == "").all()

    store = Store(tmp_path / "store")
    records = index(folder).studies
    entries, _ = store.fill(records, CONFIG.preprocess)
    members = load_members(run, device="cpu")
    for row, record in zip(table.itertuples(), records, strict=True):
        volume = store.open(entries[record.series.uid])
        scores = [member.predictor.score(volume).scores[0] for member in members]
        assert row.score_1 == np.mean(scores)
        assert 0 < row.score_1 < 1
    assert table["score_1"].nunique() == 3


def test_a_study_that_fails_is_quarantined_and_the_rest_is_scored(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run")
    whole, _ = predict_folder(run, folder, device="cpu")
    records = index(folder).studies
    damaged = sorted((folder / "p1").iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    members = load_members(run, device="cpu")
    results = {study.study: result for study, result in score_studies(members, records)}
    assert isinstance(results["p1"], Problem)
    assert results["p1"].study == "p1"
    assert "p1" in results["p1"].where
    assert isinstance(results["p2"], StudyScore)
    # Found by the scan, too: either way it is a line of the quarantine and no row.
    table, problems = predict_folder(run, folder, device="cpu")
    assert table["study"].tolist() == ["p0", "p2"]
    assert [problem for problem in problems if problem.fatal and "p1" in problem.where + problem.study]
    np.testing.assert_array_equal(table["score_1"], whole["score_1"][[0, 2]])


def test_an_unexpected_fault_costs_its_study_alone(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    decode = decoding._decode

    def faulty(study: Any, *rest: Any) -> Any:
        if study.study == "p0":
            raise MemoryError("no room")
        return decode(study, *rest)

    monkeypatch.setattr(decoding, "_decode", faulty)
    table, problems = predict_folder(run, folder, device="cpu")
    assert table["study"].tolist() == ["p1", "p2"]
    (problem,) = [problem for problem in problems if problem.fatal]
    assert (problem.study, problem.code) == ("p0", "unexpected")
    assert "MemoryError: no room" in problem.reason


def test_decoding_runs_ahead_by_a_bounded_number_of_studies(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = load_members(make_run(tmp_path / "run"), device="cpu")
    started = []
    decode = decoding._decode
    monkeypatch.setattr(decoding, "_decode", lambda series, *rest: started.append(1) or decode(series, *rest))
    studies = index(folder).studies * 5
    scored = score_studies(members, studies)
    next(scored)
    assert len(started) <= 1 + decoding.AHEAD
    assert len(list(scored)) == len(studies) - 1
    before = threading.active_count()
    half = score_studies(members, studies)
    next(half)
    half.close()
    assert threading.active_count() <= before, "the decoding thread ends with the generator"


def test_other_modalities_are_scored_with_a_warning_and_the_trained_one_is_preferred(
    tmp_path: Path, folder: Path
) -> None:
    run = make_run(tmp_path / "run", modality="MR")
    table, _ = predict_folder(run, folder, device="cpu")
    assert table["warning"].unique().tolist() == ["modality CT (the run was trained on MR)"]

    def as_mr(data: Any, number: int) -> None:
        data.Modality = "MR"
        data.SeriesInstanceUID = "1.2.3.4"

    uid = index(folder).studies[0].series.study_uid
    write_study(folder / "p0" / "mr", patient="p0", study_uid=uid, change=as_mr, slices=8)
    table, _ = predict_folder(run, folder, device="cpu")
    assert table["warning"].tolist() == ["", *["modality CT (the run was trained on MR)"] * 2]


def test_a_folder_whose_studies_all_fail_gives_an_empty_table(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*given: Any) -> Any:
        raise ValueError("no")

    monkeypatch.setattr(decoding, "_decode", faulty)
    table, problems = predict_folder(make_run(tmp_path / "run"), folder, device="cpu")
    assert list(table.columns) == [*BEFORE, "score_1", "logit_1", *AFTER]
    assert len(table) == 0
    assert len([problem for problem in problems if problem.fatal]) == 3


def test_labelled_studies_keep_their_labels_beside_the_scores(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run")
    table, problems = score_cohort(run, labelled(folder), device="cpu")
    assert problems == []
    assert list(table.columns) == ["study", "patient", "bleed", "score_1", "logit_1", "clips", "warning"]
    assert table["bleed"].tolist() == ["0", "1", "0"]
    np.testing.assert_array_equal(table["score_1"], predict_folder(run, folder, device="cpu")[0]["score_1"])


def test_other_labels_than_the_trained_ones_are_refused(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match="trained with targets bleed, the labels have tumour"):
        score_cohort(run, labelled(folder, targets=("tumour",)), device="cpu")
    with pytest.raises(RunError, match="trained with classes 0, 1, the labels have no, yes"):
        score_cohort(run, labelled(folder, classes=("no", "yes")), device="cpu")


def test_regression_scores_are_in_the_targets_own_units(tmp_path: Path, folder: Path) -> None:
    options: dict[str, Any] = {"task": "regression", "targets": ["volume", "age"], "classes": []}
    plain = predict_folder(make_run(tmp_path / "a", **options), folder, device="cpu")[0]
    scaling = {"mean": [3000.0, 50.0], "std": [500.0, 10.0]}
    scaled = predict_folder(make_run(tmp_path / "b", regression=scaling, **options), folder, device="cpu")[0]
    assert list(scaled.columns) == [*BEFORE, "score_volume", "score_age", *AFTER]
    np.testing.assert_allclose(scaled["score_volume"], plain["score_volume"] * 500 + 3000)
    np.testing.assert_allclose(scaled["score_age"], plain["score_age"] * 10 + 50)


def test_a_run_without_finished_members_says_how_to_finish_it(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run", members=0)
    with pytest.raises(RunError, match="no member of this run has finished") as caught:
        predict_folder(run, folder)
    assert "volrec train --resume" in caught.value.remedy


@pytest.mark.parametrize("change", [{"task": None}, {"preprocess": {"spacings": 1}}])
def test_a_card_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    run = RunFolder.create(tmp_path / "run", CONFIG)
    card = {**member_card(CONFIG, split="fold-0", **FACTS), **change}
    if change.get("task", "") is None:
        del card["task"]
    member = run.member("fold-0")
    member.save(create("slice-mean", num_classes=1, width=0.125), card)
    member.finish()
    with pytest.raises(RunError, match=r"the card of these weights (lacks 'task'|does not fit)"):
        load_members(run, device="cpu")


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ConfigError, match="no cuda device"):
        load_members(make_run(tmp_path / "run"), device="cuda")


@pytest.mark.parametrize(
    ("task", "classes", "targets", "target", "expected"),
    [
        ("binary", ["no", "yes"], ["bleed"], [1], {"bleed": "yes"}),
        ("multiclass", ["a", "b", "c"], ["kind"], [2], {"kind": "c"}),
        ("multilabel", [], ["x", "y"], [1, np.nan], {"x": 1, "y": None}),
        ("regression", [], ["age"], [41.5], {"age": 41.5}),
    ],
)
def test_targets_are_shown_as_the_labels_had_them(
    task: str, classes: list[str], targets: list[str], target: list[float], expected: dict[str, Any]
) -> None:
    case = Labelled("s", "p", None, np.array(target, dtype=np.float32))
    assert target_values(case, task=task, classes=classes, targets=targets) == expected  # type: ignore[arg-type]


def test_score_tables_put_facts_before_scores() -> None:
    rows = [
        (
            {"study": "a", "patient": "b", "fold": "fold-0", "kind": "x"},
            StudyScore(np.array([0.25, 0.75]), np.array([1.0, 2.0]), 3),
        )
    ]
    table = score_table(
        rows, task="multiclass", classes=["x", "y"], targets=["kind"], leading=("study", "patient", "fold")
    )
    assert table.to_dict("records") == [
        {
            "study": "a",
            "patient": "b",
            "fold": "fold-0",
            "kind": "x",
            "score_x": 0.25,
            "score_y": 0.75,
            "logit_x": 1.0,
            "logit_y": 2.0,
            "clips": 3,
        }
    ]


def test_a_row_a_member_averages_to_the_row_of_the_study(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run", members=2)
    whole, _ = predict_folder(run, folder, device="cpu")
    each, _ = predict_folder(run, folder, device="cpu", by_member=True)
    assert each[["study", "fold"]].to_numpy().tolist() == [[p, f] for p in whole["study"] for f in ("fold-0", "fold-1")]
    assert each["score_1"].nunique() == 6
    np.testing.assert_allclose(each.groupby("study")["score_1"].mean(), whole["score_1"], rtol=1e-12)
    np.testing.assert_allclose(expit(each["logit_1"]), each["score_1"], rtol=1e-12)
    np.testing.assert_allclose(expit(whole["logit_1"]), whole["score_1"], rtol=1e-12)
    labelled_rows, _ = score_cohort(run, labelled(folder), device="cpu", by_member=True)
    assert labelled_rows["score_1"].tolist() == each["score_1"].tolist()
    assert labelled_rows["bleed"].tolist() == ["0", "0", "1", "1", "0", "0"]
