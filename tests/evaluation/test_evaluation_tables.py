from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as oracle

from volrec.errors import ConfigError, LabelsError
from volrec.evaluation import evaluate_scores, read_columns, score_columns
from volrec.inference import score_columns as inference_columns


def table(studies: int = 60, *, folds: int = 0, per_patient: int = 2, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, studies)
    frame = pd.DataFrame(
        {
            "study": [f"s{n}" for n in range(studies)],
            "patient": [f"p{n // per_patient}" for n in range(studies)],
            "label": np.where(truth, "yes", "no"),
            "score_yes": 1 / (1 + np.exp(-(2 * truth - 1 + rng.normal(size=studies)))),
        }
    )
    if folds:
        frame["fold"] = [f"fold-{n // per_patient % folds}" for n in range(studies)]
    return frame


def binary(frame: pd.DataFrame, **options):
    return evaluate_scores(frame, task="binary", classes=("no", "yes"), targets=("label",), **options)


def test_values_are_scikit_learns_and_intervals_hold_them():
    frame = table()
    found = binary(frame)
    truth = frame["label"] == "yes"
    assert found["metrics"]["auc"]["value"] == pytest.approx(oracle.roc_auc_score(truth, frame["score_yes"]))
    for entry in found["metrics"].values():
        assert entry["low"] < entry["value"] < entry["high"]
    assert (found["studies"], found["patients"], found["left_out"]) == (60, 30, 0)


def test_intervals_are_the_percentiles_of_a_plain_bootstrap_over_patients():
    frame = table(40)
    rng = np.random.default_rng(5)
    truth, scores = (frame["label"] == "yes").to_numpy(), frame["score_yes"].to_numpy()
    groups = list(frame.groupby("patient").indices.values())
    draws = []
    for _ in range(1500):
        rows = np.concatenate([groups[n] for n in rng.integers(0, len(groups), len(groups))])
        ahead = scores[rows][truth[rows]][:, None] - scores[rows][~truth[rows]]
        draws.append(np.mean((ahead > 0) + 0.5 * (ahead == 0)))
    low, high = np.percentile(draws, [2.5, 97.5])
    found = binary(frame, resamples=3000)["metrics"]["auc"]
    assert found["low"] == pytest.approx(low, abs=0.02)
    assert found["high"] == pytest.approx(high, abs=0.02)


def test_patients_are_drawn_whole():
    frame = table(40, per_patient=1)
    frame = frame.loc[frame.index.repeat(6)].reset_index(drop=True)
    apart = frame.assign(patient=frame.index.astype(str))
    width = {
        name: (entry := binary(each)["metrics"]["auc"])["high"] - entry["low"]
        for name, each in {"whole": frame, "apart": apart}.items()
    }
    assert width["whole"] == pytest.approx(width["apart"] * np.sqrt(6), rel=0.2)


def test_the_same_seed_gives_the_same_interval():
    assert binary(table(), seed=1) == binary(table(), seed=1)
    assert binary(table(), seed=1)["metrics"]["auc"]["low"] != binary(table(), seed=2)["metrics"]["auc"]["low"]


def test_cutting_the_resamples_into_chunks_changes_the_memory_only(monkeypatch):
    whole = binary(table(), resamples=300)["metrics"]
    monkeypatch.setattr("volrec.evaluation.tables._CHUNK", 60 * 37)
    assert binary(table(), resamples=300)["metrics"] == whole


def test_rows_without_target_or_score_are_left_out_and_counted():
    frame = table()
    frame.loc[3, "label"] = None
    frame.loc[7, "score_yes"] = np.nan
    found = binary(frame, resamples=0)
    kept = frame.drop([3, 7])
    assert (found["studies"], found["left_out"]) == (58, 2)
    assert found["metrics"]["auc"]["value"] == pytest.approx(
        oracle.roc_auc_score(kept["label"] == "yes", kept["score_yes"])
    )
    assert found["metrics"]["auc"]["low"] is None
    assert "no resamples" in found["metrics"]["auc"]["reason"]


def test_one_class_only_gives_none_and_the_reason():
    frame = table()
    found = binary(frame[frame["label"] == "yes"])["metrics"]
    assert found["auc"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": f"only one class among {(frame['label'] == 'yes').sum()} studies (all 1)",
    }
    assert found["sensitivity"]["value"] is not None


def test_nothing_to_score_gives_none_and_the_reason():
    for frame in (table()[:0], table().assign(label=None)):
        found = binary(frame)
        assert found["studies"] == 0
        assert all(entry["reason"] == "no study has both target and score" for entry in found["metrics"].values())


def test_a_single_patient_has_values_without_interval():
    found = binary(table().assign(patient="p0"))["metrics"]["auc"]
    assert found["value"] is not None
    assert found["low"] is None
    assert "single patient" in found["reason"]


def test_too_few_defined_resamples_give_no_interval():
    # One positive in three patients: absent in 30 % of the resamples; one class is left in most with two patients.
    frame = table(3, per_patient=1).assign(label=["yes", "no", "no"])
    assert binary(frame)["metrics"]["auc"]["low"] is not None
    found = binary(frame[:2])["metrics"]["auc"]
    assert found["value"] is not None
    assert (found["low"] is None) == ("reason" in found)
    seen = [binary(frame[:2], seed=seed, resamples=101)["metrics"]["auc"] for seed in range(12)]
    assert any("resamples only" in entry.get("reason", "") for entry in seen)


def test_folds_are_given_each_as_mean_and_pooled():
    frame = table(90, folds=3)
    found = binary(frame)
    aucs = []
    for name, group in frame.groupby("fold"):
        expected = oracle.roc_auc_score(group["label"] == "yes", group["score_yes"])
        assert found["folds"][name]["metrics"]["auc"] == pytest.approx(expected)
        assert found["folds"][name]["studies"] == len(group)
        aucs.append(expected)
    mean = found["fold_mean"]["auc"]
    assert mean["value"] == pytest.approx(np.mean(aucs))
    assert mean["low"] < mean["value"] < mean["high"]
    pooled = oracle.roc_auc_score(frame["label"] == "yes", frame["score_yes"])
    assert found["metrics"]["auc"]["value"] == pytest.approx(pooled)
    assert "folds" not in binary(frame.drop(columns="fold"))
    assert "folds" not in binary(frame.assign(fold="fold-0"))
    assert list(binary(frame.drop(columns="fold").assign(split=frame["fold"]))["folds"]) == list(found["folds"])


def test_folds_are_listed_in_their_order_and_an_undefined_one_is_named():
    frame = table(48, folds=12)
    frame.loc[frame["fold"] == "fold-2", "label"] = "yes"
    found = binary(frame)
    assert list(found["folds"]) == [f"fold-{n}" for n in range(12)]
    assert found["fold_mean"]["auc"]["value"] is None
    assert "fold-2" in found["fold_mean"]["auc"]["reason"]
    assert found["fold_mean"]["accuracy"]["value"] is not None


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_several_targets_are_given_each_and_as_mean(task):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"patient": [f"p{n}" for n in range(50)]})
    for name in ("a", "b", "c"):
        frame[name] = rng.integers(0, 2, 50) if task == "multilabel" else rng.normal(size=50)
        frame[f"score_{name}"] = rng.random(50)
    frame["b"] = frame["b"].where(frame.index > 9)
    found = evaluate_scores(frame, task=task, classes=("a", "b", "c"), targets=("a", "b", "c"), resamples=200)
    metric = "auc" if task == "multilabel" else "r2"
    score = oracle.roc_auc_score if task == "multilabel" else oracle.r2_score
    expected = [score(frame[n].dropna(), frame.loc[frame[n].notna(), f"score_{n}"]) for n in ("a", "b", "c")]
    values = [found["labels"][name]["metrics"][metric]["value"] for name in ("a", "b", "c")]
    assert values == pytest.approx(expected)
    assert found["metrics"][metric]["value"] == pytest.approx(np.mean(expected))
    assert [found["labels"][name]["studies"] for name in ("a", "b", "c")] == [50, 40, 50]


def test_a_class_without_studies_is_named():
    frame = pd.DataFrame({"patient": list("abcd"), "grade": [0, 1, 0, 1]})
    for name in range(3):
        frame[f"score_{name}"] = 1 / 3
    found = evaluate_scores(frame, task="multiclass", classes=("0", "1", "2"), targets=("grade",), resamples=50)
    assert found["metrics"]["auc"]["reason"] == "no study of class 2"
    assert found["metrics"]["accuracy"]["value"] == 0.5


def test_the_result_is_plain_json():
    for frame in (table(folds=2), table()[:0]):
        found = binary(frame, resamples=20)
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_classes_are_compared_as_text():
    frame = pd.DataFrame({"label": [0.0, 1.0, np.nan, 1.0], "score_1": [0.1, 0.2, 0.3, np.nan]})
    truth, scores = read_columns(frame, task="binary", classes=("0", "1"), targets=("label",))
    np.testing.assert_array_equal(truth[:, 0], [0, 1, np.nan, 1])
    np.testing.assert_array_equal(scores[:, 0], [0.1, 0.2, 0.3, np.nan])
    for values in ([False, True], ["0", "1"], [0, 1]):
        frame = pd.DataFrame({"label": values, "score_1": 0.5})
        assert read_columns(frame, task="binary", classes=("0", "1"), targets=("label",))[0][:, 0].tolist() == [0, 1]


def test_each_head_is_evaluated_as_the_multiclass_task_that_it_is():
    rng = np.random.default_rng(6)
    frame = table(60, folds=2).drop(columns=["label", "score_yes"])
    heads = {"grade": ("1", "2", "3"), "side": ("left", "right")}
    for name, classes in heads.items():
        frame[name] = rng.choice(classes, 60)
        frame[[f"score_{name}={one}" for one in classes]] = rng.dirichlet(np.ones(len(classes)), 60)
    frame["grade"] = frame["grade"].astype(float)  # as a column of numbers with gaps is read
    frame.loc[:20, "grade"] = np.nan
    frame.loc[50:, "side"] = None
    flat = [f"{name}={one}" for name, classes in heads.items() for one in classes]
    found = evaluate_scores(frame, task="multihead", classes=flat, targets=list(heads), resamples=200)
    for name, classes in heads.items():
        alone = frame.rename(columns={f"score_{name}={one}": f"score_{one}" for one in classes})
        own = evaluate_scores(alone, task="multiclass", classes=classes, targets=[name], resamples=0)
        assert found["labels"][name]["studies"] == own["studies"]
        for metric, value in own["metrics"].items():
            assert found["labels"][name]["metrics"][metric]["value"] == pytest.approx(value["value"])
            assert found["labels"][name]["metrics"][metric]["low"] < value["value"]
    both = [found["labels"][name]["metrics"]["auc"]["value"] for name in heads]
    assert found["metrics"]["auc"]["value"] == pytest.approx(np.mean(both))
    assert set(found["folds"]) == {"fold-0", "fold-1"}
    frame["side"] = "left"
    found = evaluate_scores(frame, task="multihead", classes=flat, targets=list(heads), resamples=0)
    assert found["labels"]["side"]["metrics"]["auc"]["reason"] == "no study of class right"


def test_wrong_tables_are_named():
    with pytest.raises(LabelsError, match=r"lacks column\(s\) score_yes.*study, patient, label"):
        binary(table().drop(columns="score_yes"))
    with pytest.raises(LabelsError, match=r"'label' holds 'maybe'.*no, yes"):
        binary(table().replace({"label": {"yes": "maybe"}}))
    with pytest.raises(ConfigError, match=r"'resamples' parameter.*Got -1"):
        binary(table(), resamples=-1)


def test_score_columns_follow_the_outputs_of_the_network():
    assert score_columns("binary", classes=("no", "yes"), targets=("label",)) == ["score_yes"]
    assert score_columns("multiclass", classes=("a", "b", "c"), targets=("grade",)) == ["score_a", "score_b", "score_c"]
    assert score_columns("multilabel", classes=(), targets=("x", "y")) == ["score_x", "score_y"]
    assert score_columns("regression", classes=(), targets=("volume",)) == ["score_volume"]
    heads = ("organ=liver", "organ=lung", "side=left", "side=right")
    assert score_columns("multihead", classes=heads, targets=("organ", "side")) == [f"score_{name}" for name in heads]
    assert score_columns is inference_columns  # what is written is what is read


def test_an_unknown_task_is_named():
    with pytest.raises(ConfigError, match="no task 'guess'"):
        read_columns(pd.DataFrame(), task="guess", classes=("a",), targets=("x",))
