"""Two runs on the same studies: differences as brute force and textbook DeLong have them, joins and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import accuracy_score, brier_score_loss, mean_absolute_error, roc_auc_score

from volrec.errors import RunError
from volrec.evaluation import compare_tables
from volrec.inference.joining import RunTable

STUDIES = 90


def run(name: str, *, seed: int, strength: float = 0.2, studies: int = STUDIES, per_patient: int = 1) -> RunTable:
    rng = np.random.default_rng(seed)
    truth = np.arange(studies) % 2
    table = pd.DataFrame(
        {
            "study": [f"s{number:02d}" for number in range(studies)],
            "patient": [f"p{number // (2 * per_patient)}-{number % 2}" for number in range(studies)],
            "finding": np.where(truth, "yes", "no"),
            "score_yes": np.clip(0.5 + strength * (2 * truth - 1) + rng.normal(0, 0.25, studies), 0.01, 0.99),
        }
    )
    return RunTable(name, table, "binary", ("finding",), ("no", "yes"))


def change(table: RunTable, **columns: Any) -> RunTable:
    return replace(table, table=table.table.assign(**columns))


def textbook_delong(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return difference and p value by the formulas of the paper, pair by pair (every row a patient)."""
    parts = []
    for scores in (first, second):
        yes, no = scores[truth == 1], scores[truth == 0]
        wins = (yes[:, None] > no[None]) + 0.5 * (yes[:, None] == no[None])
        parts.append((wins.mean(1), wins.mean(0), wins.mean()))
    left, right = (np.cov([part[side] for part in parts]) / len(parts[0][side]) for side in (0, 1))
    spread = (left + right) @ [-1, 1] @ [-1, 1]
    change = parts[1][2] - parts[0][2]
    return change, 2 * norm.sf(abs(change) / np.sqrt(spread))


def test_the_difference_of_two_aucs_is_delongs() -> None:
    first, second = run("a", seed=1), run("b", seed=2, strength=0.4)
    found = compare_tables(first, second, resamples=50)
    entry = found["metrics"]["auc"]
    truth = (first.table["finding"] == "yes").to_numpy()
    difference, p = textbook_delong(truth.astype(int), *(one.table["score_yes"].to_numpy() for one in (first, second)))
    assert entry["difference"]["method"] == "DeLong"
    assert entry["difference"]["value"] == pytest.approx(difference)
    assert entry["difference"]["p"] == pytest.approx(p)
    assert entry["difference"]["low"] < difference < entry["difference"]["high"]
    assert entry["first"]["value"] == pytest.approx(roc_auc_score(truth, first.table["score_yes"]))
    assert entry["second"]["value"] == pytest.approx(roc_auc_score(truth, second.table["score_yes"]))
    json.dumps(found)


def test_other_differences_are_those_of_rows_drawn_again_patient_by_patient() -> None:
    first, second = run("a", seed=1, per_patient=2), run("b", seed=2, strength=0.1, per_patient=2)
    found = compare_tables(first, second, thresholds=({"": {"yes": 0.3}}, None), resamples=60, seed=5)
    table = first.table.assign(other=second.table["score_yes"], truth=first.table["finding"] == "yes")
    patients = sorted(table["patient"].unique())
    drawn = np.random.default_rng(5).multinomial(len(patients), [1 / len(patients)] * len(patients), size=60)
    metrics: dict[str, list[float]] = {"accuracy": [], "brier": []}
    for counts in drawn:
        rows = table.loc[table.index.repeat(table["patient"].map(dict(zip(patients, counts, strict=True))))]
        accuracy = [
            accuracy_score(rows["truth"], rows[key] >= cut) for key, cut in (("score_yes", 0.3), ("other", 0.5))
        ]
        metrics["accuracy"].append(accuracy[1] - accuracy[0])
        brier = [brier_score_loss(rows["truth"], rows[key]) for key in ("score_yes", "other")]
        metrics["brier"].append(brier[1] - brier[0])
    for name, values in metrics.items():
        difference = found["metrics"][name]["difference"]
        assert [difference["low"], difference["high"]] == pytest.approx(np.percentile(values, [2.5, 97.5]))
    assert found["metrics"]["brier"]["difference"]["better"] == "first"  # lower is better, and the second is worse


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 0.5))
def test_changing_sides_changes_the_sign_and_nothing_else(seed: int, strength: float) -> None:
    first, second = run("a", seed=seed), run("b", seed=seed + 1, strength=strength)
    there, back = compare_tables(first, second, resamples=40), compare_tables(second, first, resamples=40)
    for name, entry in there["metrics"].items():
        other = back["metrics"][name]
        assert entry["first"] == other["second"]
        assert entry["difference"]["value"] == pytest.approx(-other["difference"]["value"], abs=1e-12)
        if name == "ece":
            assert entry["difference"]["low"] is None and "enlarges" in entry["difference"]["reason"]
            continue
        assert entry["difference"]["low"] == pytest.approx(-other["difference"]["high"], abs=1e-12)
        assert entry["difference"]["p"] == pytest.approx(other["difference"]["p"])
        sides = {"first": "second", "second": "first", None: None}
        assert entry["difference"]["better"] == sides[other["difference"]["better"]]


def test_a_run_does_not_differ_from_itself() -> None:
    found = compare_tables(run("a", seed=1), run("b", seed=1), resamples=30)
    assert found["metrics"].pop("ece")["difference"]["value"] == 0
    for entry in found["metrics"].values():
        assert entry["difference"]["value"] == entry["difference"]["low"] == entry["difference"]["high"] == 0
        assert entry["difference"]["p"] == 1
    assert found["verdict"]["code"] == "none"
    assert "the same as that of a" in found["verdict"]["sentence"]


def test_the_sentence_says_what_it_means() -> None:
    weak, strong = run("weak", seed=1, strength=0.05), run("strong", seed=2, strength=0.5)
    verdict = compare_tables(weak, strong, resamples=50)["verdict"]
    assert verdict["code"] == "second"
    assert verdict["sentence"].startswith("strong's AUC is higher by 0.")
    assert verdict["sentence"].endswith("a difference is shown, in favour of strong.")
    verdict = compare_tables(strong, weak, resamples=50)["verdict"]
    assert verdict["sentence"].startswith("weak's AUC is lower by 0.")
    assert verdict["code"] == "first"
    verdict = compare_tables(weak, run("other", seed=3, strength=0.05), resamples=50)["verdict"]
    assert "no difference is shown, which does not prove that there is none" in verdict["sentence"]
    few = run("few", seed=4, studies=14)
    assert "These are few: 14 patients" in compare_tables(few, few, resamples=20)["verdict"]["sentence"]


def test_only_common_studies_count_and_the_others_are_counted() -> None:
    first, second = run("a", seed=1), run("b", seed=2)
    first, second = (
        replace(one, table=one.table.iloc[part]) for one, part in ((first, slice(0, 80)), (second, slice(30, 90)))
    )
    shuffled = replace(second, table=second.table.sample(frac=1, random_state=0))
    found = compare_tables(first, shuffled, resamples=20)
    assert (found["studies"], found["only_first"], found["only_second"]) == (50, 30, 10)
    own = first.table.iloc[30:]
    assert found["metrics"]["auc"]["first"]["value"] == pytest.approx(
        roc_auc_score(own["finding"] == "yes", own["score_yes"])
    )
    with pytest.raises(RunError, match="no study in common"):
        compare_tables(replace(first, table=first.table[:20]), replace(second, table=second.table[30:]))


def test_folds_of_other_names_are_said_and_repeated_studies_are_joined_by_fold() -> None:
    first = change(run("a", seed=1), fold=["fold-0", "fold-1"] * 45)
    second = change(run("b", seed=2), fold=["fold-0"] * 60 + ["fold-1"] * 30)
    assert compare_tables(first, second, resamples=20)["other_fold"] == 45
    twice = pd.concat([first.table.assign(fold="r0"), first.table.assign(fold="r1", score_yes=0.5)])
    first = replace(first, table=twice)
    second = replace(second, table=twice[::-1].assign(score_yes=lambda rows: rows["score_yes"] * 0.9))
    found = compare_tables(first, second, resamples=20)
    assert found["studies"] == 180
    assert found["metrics"]["auc"]["first"]["value"] is not None
    once = replace(second, table=second.table[:90].drop(columns="fold"))
    with pytest.raises(RunError, match=r"scores study .* several times"):
        compare_tables(first, once)


def test_the_order_of_classes_and_which_is_positive_do_not_matter() -> None:
    first, second = run("a", seed=1), run("b", seed=2)
    turned = RunTable(
        "b",
        second.table.assign(score_no=1 - second.table["score_yes"]).drop(columns="score_yes"),
        "binary",
        ("finding",),
        ("yes", "no"),
    )
    cuts = {"": {"yes": 0.35}}, {"": {"yes": 0.6}}
    straight = compare_tables(first, second, thresholds=cuts, resamples=20)
    other = compare_tables(first, turned, thresholds=(cuts[0], {"": {"no": 0.4}}), resamples=20)
    for name, entry in straight["metrics"].items():
        assert entry["difference"]["value"] == pytest.approx(other["metrics"][name]["difference"]["value"])


def test_runs_that_answer_other_questions_or_know_other_labels_are_refused() -> None:
    first, second = run("a", seed=1), run("b", seed=2)
    with pytest.raises(RunError, match="the task of b is multiclass"):
        compare_tables(first, replace(second, task="multiclass"))
    with pytest.raises(RunError, match="b has no target finding"):
        compare_tables(first, replace(second, targets=("other",)))
    with pytest.raises(RunError, match="b has no class yes"):
        compare_tables(first, replace(second, classes=("no", "maybe")))
    labels = second.table["finding"].tolist()
    labels[3] = "no"
    with pytest.raises(RunError, match=r"study s03: finding is yes in a and no in b \(1 such studies\)"):
        compare_tables(first, change(second, finding=labels))


def test_a_label_that_one_run_knows_serves_both_and_missing_scores_are_left_out() -> None:
    first, second = run("a", seed=1), run("b", seed=2)
    unknown = change(second, finding=[None] * 5 + second.table["finding"].tolist()[5:])
    whole, partly = compare_tables(first, second, resamples=20), compare_tables(first, unknown, resamples=20)
    assert partly["metrics"] == whole["metrics"]
    gaps = change(second, score_yes=[np.nan] * 5 + second.table["score_yes"].tolist()[5:])
    found = compare_tables(first, gaps, resamples=20)
    assert (found["studies"], found["left_out"]) == (85, 5)
    own = first.table.iloc[5:]
    assert found["metrics"]["auc"]["first"]["value"] == pytest.approx(
        roc_auc_score(own["finding"] == "yes", own["score_yes"])
    )


def test_several_labels_have_an_entry_each() -> None:
    rng = np.random.default_rng(0)
    truth = {name: rng.integers(0, 2, 60) for name in ("x", "y")}
    studies = [f"s{number}" for number in range(60)]

    def made(name: str) -> RunTable:
        scores = {f"score_{key}": 0.3 * own + 0.7 * rng.random(60) for key, own in truth.items()}
        return RunTable(name, pd.DataFrame({"study": studies, **truth, **scores}), "multilabel", ("x", "y"), ("0", "1"))

    first, second = made("a"), made("b")
    found = compare_tables(first, replace(second, targets=("y", "x")), resamples=30)
    for name in ("x", "y"):
        pair = [one.table[f"score_{name}"].to_numpy() for one in (first, second)]
        difference, p = textbook_delong(truth[name], *pair)
        entry = found["labels"][name]["metrics"]["auc"]["difference"]
        assert (entry["value"], entry["p"]) == pytest.approx((difference, p))
    mean = np.mean([found["labels"][name]["metrics"]["auc"]["difference"]["value"] for name in ("x", "y")])
    assert found["metrics"]["auc"]["difference"]["value"] == pytest.approx(mean)
    assert found["metrics"]["auc"]["difference"]["method"] == "bootstrap over patients"
    json.dumps(found)


@pytest.mark.parametrize("task", ["regression", "multiclass", "multihead"])
def test_quantities_and_exclusive_classes_are_compared(task: str) -> None:
    rng = np.random.default_rng(0)
    studies = [f"s{number}" for number in range(60)]
    truth = rng.normal(50, 10, 60) if task == "regression" else rng.choice(list("uvw"), 60)
    prefix = "kind=" if task == "multihead" else ""

    def made(name: str, noise: float, order: str) -> RunTable:
        table = pd.DataFrame({"study": studies, "kind": truth})
        if task == "regression":
            table["score_kind"] = truth + rng.normal(0, noise, 60)
            return RunTable(name, table, task, ("kind",), ())
        chances = rng.dirichlet([1, 1, 1], 60) * noise + np.array([[one == key for key in "uvw"] for one in truth])
        for place, key in enumerate("uvw"):
            table[f"score_{prefix}{key}"] = (chances / chances.sum(1, keepdims=True))[:, place]
        return RunTable(name, table, task, ("kind",), tuple(f"{prefix}{key}" for key in order))

    first, second = made("a", 20, "uvw"), made("b", 2, "wuv")
    found = compare_tables(first, second, resamples=100)
    assert found["verdict"]["code"] == "second"
    if task == "regression":
        errors = [mean_absolute_error(truth, one.table["score_kind"]) for one in (first, second)]
        assert found["metrics"]["mae"]["difference"]["value"] == pytest.approx(errors[1] - errors[0])
        assert found["verdict"]["sentence"].startswith("b's MAE is lower by ")
    else:
        columns = [f"score_{prefix}{key}" for key in "uvw"]
        aucs = [roc_auc_score(truth, one.table[columns], multi_class="ovr") for one in (first, second)]
        assert found["metrics"]["auc"]["difference"]["value"] == pytest.approx(aucs[1] - aucs[0])


def test_one_class_only_cannot_be_compared_by_auc() -> None:
    first, second = run("a", seed=1), run("b", seed=2)
    found = compare_tables(*(replace(one, table=one.table[::2]) for one in (first, second)), resamples=20)
    assert found["verdict"]["code"] == "undefined"
    assert "only one class" in found["verdict"]["sentence"]
