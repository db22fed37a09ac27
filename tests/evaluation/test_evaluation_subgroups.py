"""Groups of studies: metrics as scikit-learn has them, differences as brute force has them, and refusals."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score, recall_score, roc_auc_score

from volrec.errors import LabelsError
from volrec.evaluation.groups import MISSING, group_values
from volrec.evaluation.subgroups import subgroup_table, too_small

BINARY: dict[str, Any] = {"task": "binary", "classes": ["no", "yes"], "targets": ["finding"]}


def binary(studies: int = 120, *, per_patient: int = 2, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, studies)
    site = np.array(["a", "b", "c"])[rng.integers(0, 3, studies)]
    # Scores say nothing at site c.
    score = np.clip(0.5 + 0.25 * (2 * truth - 1) * (site != "c") + rng.normal(0, 0.25, studies), 0, 1)
    return pd.DataFrame(
        {
            "study": [f"s{number}" for number in range(studies)],
            "patient": [f"p{number // per_patient}" for number in range(studies)],
            "finding": np.where(truth, "yes", "no"),
            "score_yes": score,
            "site": site,
        }
    )


def test_metrics_of_a_group_are_those_of_scikit_learn() -> None:
    table = binary()
    found = subgroup_table(table, "site", **BINARY, thresholds={"": {"yes": 0.4}}, resamples=50)
    assert [group["name"] for group in found["groups"]] == ["a", "b", "c"]
    json.dumps(found)
    for group in found["groups"]:
        own = table[table["site"] == group["name"]]
        truth, said = own["finding"] == "yes", own["score_yes"] >= 0.4
        expected = {
            "auc": roc_auc_score(truth, own["score_yes"]),
            "sensitivity": recall_score(truth, said),
            "specificity": recall_score(~truth, ~said),
        }
        assert {name: one["value"] for name, one in group["metrics"].items()} == pytest.approx(expected)
        assert group["studies"] == len(own)
        assert group["patients"] == own["patient"].nunique()
        assert group["positives"] == truth.sum()
        assert all(one["low"] <= one["value"] <= one["high"] for one in group["metrics"].values())


def test_thresholds_of_folds_hold_within_a_group() -> None:
    table = binary().assign(fold=lambda rows: np.where(np.arange(len(rows)) % 2, "fold-0", "fold-1"))
    cuts = {"fold-0": {"yes": 0.3}, "fold-1": {"yes": 0.7}}
    found = subgroup_table(table, "site", **BINARY, thresholds=cuts, resamples=0)
    own = table[table["site"] == "a"]
    said = own["score_yes"] >= np.where(own["fold"] == "fold-0", 0.3, 0.7)
    expected = recall_score(own["finding"] == "yes", said)
    assert found["groups"][0]["metrics"]["sensitivity"]["value"] == pytest.approx(expected)


def test_a_difference_from_the_rest_is_that_of_rows_drawn_again_patient_by_patient() -> None:
    table = binary(60)
    found = subgroup_table(table, "site", **BINARY, resamples=60, seed=3)
    # Brute force: the same draws, as tables of repeated rows.
    patients = sorted(table["patient"].unique())
    drawn = np.random.default_rng(3).multinomial(len(patients), [1 / len(patients)] * len(patients), size=60)
    differences = []
    for counts in drawn:
        times = table["patient"].map(dict(zip(patients, counts, strict=True)))
        again = table.loc[table.index.repeat(times)]
        parts = [again[again["site"] == "c"], again[again["site"] != "c"]]
        aucs = [roc_auc_score(part["finding"] == "yes", part["score_yes"]) for part in parts]
        differences.append(aucs[0] - aucs[1])
    difference = found["groups"][2]["difference"]
    assert [difference["low"], difference["high"]] == pytest.approx(np.percentile(differences, [2.5, 97.5]))
    assert difference["p"] == pytest.approx(2 * (sum(one >= 0 for one in differences) + 1) / 61)


def test_a_group_that_differs_is_named_and_comparisons_are_counted() -> None:
    found = subgroup_table(binary(240), "site", **BINARY, resamples=200)
    differs = {group["name"]: group["differs"] for group in found["groups"]}
    assert differs["c"] is True
    assert found["comparisons"] == 3
    assert "c" in found["sentence"]
    assert "from the rest (3 comparisons). Of 3, 0.15 would be expected to differ by chance alone." in found["sentence"]


def test_two_groups_are_one_comparison_and_mirror_each_other() -> None:
    table = binary(240, seed=1).assign(sex=lambda rows: np.where(np.arange(len(rows)) // 2 % 2, "F", "M"))
    found = subgroup_table(table, "sex", **BINARY, resamples=100)
    first, second = (group["difference"] for group in found["groups"])
    assert found["comparisons"] == 1
    assert first["value"] == pytest.approx(-second["value"])
    assert [first["low"], first["high"]] == pytest.approx([-second["high"], -second["low"]])
    assert "no difference is shown in 1 comparison," in found["sentence"]


def test_a_small_group_is_marked_and_not_compared() -> None:
    table = binary(120, per_patient=1)
    table["site"] = ["a"] * 102 + ["b"] * 18
    found = subgroup_table(table, "site", **BINARY, resamples=50)
    large, small = found["groups"]
    assert large["warning"] == ""
    assert "18 patients (fewer than 20)" in small["warning"]
    assert small["differs"] is None and large["differs"] is None
    assert found["comparisons"] == 0
    assert found["sentence"] == "No group is large enough to be compared with the rest."


def test_the_rule_of_small_groups_counts_patients_of_each_class() -> None:
    truth = np.repeat([[0.0], [1.0]], [30, 12], axis=0)
    patients = np.array([f"p{number}" for number in range(42)])
    assert too_small(truth, patients, **BINARY) == ""
    patients[30:] = "one"  # twelve studies, one patient
    assert too_small(truth, patients, **BINARY) == "patients of a class: 1 of yes (fewer than 10)"
    assert too_small(truth[:19], patients[:19], task="regression", classes=[], targets=["size"]).startswith(
        "19 patients"
    )


def test_missing_values_are_a_group_of_their_own_and_last() -> None:
    table = binary(60)
    values = dict(zip(table["study"], ["x", "n/a", ""] * 20, strict=True))
    found = subgroup_table(table, "scanner", values=values, **BINARY, resamples=0)
    assert [(group["name"], group["studies"]) for group in found["groups"]] == [("x", 20), (MISSING, 40)]
    assert found["without_value"] == 40


def test_studies_without_a_label_or_score_are_in_no_group() -> None:
    table = binary(60)
    table.loc[:9, "score_yes"] = np.nan
    found = subgroup_table(table, "site", **BINARY, resamples=0)
    assert sum(group["studies"] for group in found["groups"]) == found["studies"] == 50


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "multihead", "regression"])
def test_every_task_has_its_headline(task: str) -> None:
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"study": [f"s{n}" for n in range(80)], "sex": ["F", "M"] * 40})
    naming: dict[str, Any]
    own = np.arange(80) % 2 == 0
    if task == "regression":
        table["size"] = rng.normal(50, 10, 80)
        table["score_size"] = table["size"] + rng.normal(0, 5, 80)
        naming = {"task": task, "classes": [], "targets": ["size"]}
        parts = table["size"][own], table["score_size"][own]
        expected = {"mae": mean_absolute_error(*parts), "r2": r2_score(*parts)}
    elif task == "multilabel":
        for name in ("x", "y"):
            table[name] = rng.integers(0, 2, 80)
            table[f"score_{name}"] = rng.random(80)
        naming = {"task": task, "classes": ["0", "1"], "targets": ["x", "y"]}
        aucs = [roc_auc_score(table[name][own], table[f"score_{name}"][own]) for name in ("x", "y")]
        expected = {"auc": np.mean(aucs)}
    else:
        table["kind"] = rng.choice(["u", "v", "w"], 80)
        chances = rng.dirichlet([1, 1, 1], 80)
        prefix = "kind=" if task == "multihead" else ""
        for place, name in enumerate("uvw"):
            table[f"score_{prefix}{name}"] = chances[:, place]
        naming = {"task": task, "classes": [f"{prefix}{name}" for name in "uvw"], "targets": ["kind"]}
        said = np.array(list("uvw"))[chances.argmax(1)]
        expected = {
            "auc": roc_auc_score(table["kind"][own], chances[own], multi_class="ovr"),
            "balanced_accuracy": balanced_accuracy_score(table["kind"][own], said[own]),
        }
    found = subgroup_table(table, "sex", **naming, resamples=30)
    metrics = found["groups"][0]["metrics"]
    assert {name: metrics[name]["value"] for name in expected} == pytest.approx(expected)
    assert found["groups"][0]["difference"]["value"] is not None
    json.dumps(found)


def names(values: list[Any], column: str = "x", patients: list[str] | None = None) -> list[str]:
    found = group_values(column, [str(value) for value in values], patients or [f"p{n}" for n in range(len(values))])
    return list(found.names)


def test_ages_are_cut_at_plain_years_and_other_numbers_at_quartiles() -> None:
    ages = [17, 18, 39, 40, 59, 60, 79, 80, 95]
    found = group_values("PatientAge", [str(age) for age in ages], [f"p{age}" for age in ages])
    assert found.of == (
        *("under 18", "18 to 39", "18 to 39", "40 to 59", "40 to 59"),
        *("60 to 79", "60 to 79", "80 and over", "80 and over"),
    )
    assert found.cut == "Ages in years, cut at 18, 40, 60 and 80."
    assert names(["017Y", "006M", "063Y", "065Y", "080Y", "044Y", "045Y", "019Y"], "age")[0] == "under 18"
    weights = group_values("weight", [str(value) for value in range(40, 80)], [f"p{n}" for n in range(40)])
    assert weights.names == ("up to 49.8", "above 49.8 to 59.5", "above 59.5 to 69.2", "above 69.2")
    assert [weights.of.count(name) for name in weights.names] == [10, 10, 10, 10]
    assert "40 different numbers" in weights.cut


def test_few_numbers_are_a_group_each_in_their_order() -> None:
    assert names([10, 2, 1.0, 1, "1,5"] * 3) == ["1", "1.5", "2", "10"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=8, max_size=60))
def test_every_number_lies_in_the_range_that_its_group_names(values: list[float]) -> None:
    found = group_values("weight", [repr(value + 0.5) for value in values], [f"p{n % 3}" for n in range(len(values))])
    assert set(found.of) == set(found.names)
    if found.cut:
        for value, name in zip(values, found.of, strict=True):
            low, _, high = name.removeprefix("above ").removeprefix("up to ").partition(" to ")
            if name.startswith("above "):
                assert value + 0.5 > float(low)
            if name.startswith("up to "):
                assert value + 0.5 <= float(low)
            if high:
                assert value + 0.5 <= float(high)


@pytest.mark.parametrize(
    ("column", "values", "code"),
    [
        ("scan", ["2020-02-29", "2021-03-01"] * 10, "subgroup-dates"),
        ("scan", ["29.02.2020", "CT"] * 10, "subgroup-dates"),
        ("scan", ["20200229", "20210301"] * 10, "subgroup-dates"),
        ("StudyDate", ["a", "b"] * 10, "subgroup-dates"),
        ("year of birth", ["1950", "1960"] * 10, "subgroup-dates"),
        ("doctor", [f"Dr {number}" for number in range(20)], "subgroup-names"),
        ("mrn", [str(1_000_000 + number) for number in range(20)], "subgroup-names"),
    ],
)
def test_what_points_to_persons_is_refused(column: str, values: list[str], code: str) -> None:
    with pytest.raises(LabelsError) as caught:
        names(values, column)
    assert caught.value.code == code


def test_too_many_groups_and_the_target_itself_are_refused() -> None:
    with pytest.raises(LabelsError, match="31 different values"):
        names([f"site {number % 31}" for number in range(200)])
    with pytest.raises(LabelsError, match="what is recognised"):
        subgroup_table(binary(), "finding", **BINARY)
    with pytest.raises(LabelsError, match="no column 'sex'"):
        subgroup_table(binary(), "sex", **BINARY)


def test_identifiers_are_known_by_patients_not_by_studies() -> None:
    patients = [f"p{number // 4}" for number in range(40)]
    assert len(names(["x", "y", "z"] * 13 + ["x"], patients=patients)) == 3
    with pytest.raises(LabelsError, match="10 different values for 10 patients"):
        names([f"who {number // 4}" for number in range(40)], patients=patients)


@pytest.mark.parametrize("column", ["patient_name", "PatientName", "Patient ID", "name", "MRN", "last name"])
def test_columns_of_names_are_refused_however_few_values_they_hold(column: str) -> None:
    patients = [f"p{number}" for number in range(40)]
    with pytest.raises(LabelsError, match="tells persons apart"):
        group_values(column, ["Doe^Jane", "Roe^Max"] * 20, patients)
    assert group_values("site_name", ["north", "south"] * 20, patients).names == ("north", "south")
