from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn import metrics as oracle

from volrec.errors import ConfigError, LabelsError
from volrec.evaluation import auc_interval, evaluate_scores, read_columns, score_columns
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


def test_every_interval_says_how_it_was_made():
    methods = {name: entry["method"] for name, entry in binary(table(), resamples=100)["metrics"].items()}
    assert methods.pop("auc") == "DeLong"
    assert {methods.pop(name) for name in ("accuracy", "sensitivity", "specificity")} == {"Wilson"}
    assert methods.pop("ece") == "bins"
    assert set(methods.values()) == {"bootstrap"}


def test_auc_is_delongs_over_patients():
    frame = table(40)
    found = binary(frame)["metrics"]["auc"]
    expected = auc_interval(frame["label"] == "yes", frame["score_yes"], patients=frame["patient"])
    assert found.pop("method") == expected.pop("method") == "DeLong"
    assert found == pytest.approx(expected)


def test_bootstrap_intervals_are_those_of_a_plain_bootstrap_over_patients():
    frame = table(120)
    rng = np.random.default_rng(5)
    error = (frame["score_yes"] - (frame["label"] == "yes")).to_numpy() ** 2
    by_patient = error.reshape(-1, 2).mean(1)
    draws = by_patient[rng.integers(0, 60, (4000, 60))].mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    found = binary(frame, resamples=4000)["metrics"]["brier"]
    assert found["low"] == pytest.approx(low, abs=0.005)
    assert found["high"] == pytest.approx(high, abs=0.01)


def test_patients_are_drawn_whole():
    frame = table(60, per_patient=1)
    frame = frame.loc[frame.index.repeat(6)].reset_index(drop=True)
    apart = frame.assign(patient=frame.index.astype(str))
    for name in ("auc", "average_precision", "accuracy", "f1", "brier"):
        width = {
            key: (entry := binary(each)["metrics"][name])["high"] - entry["low"]
            for key, each in {"whole": frame, "apart": apart}.items()
        }
        assert width["whole"] == pytest.approx(width["apart"] * np.sqrt(6), rel=0.25), name


def test_the_same_seed_gives_the_same_interval():
    assert binary(table(), seed=1) == binary(table(), seed=1)
    assert binary(table(), seed=1)["metrics"]["f1"]["low"] != binary(table(), seed=2)["metrics"]["f1"]["low"]


def test_cutting_the_resamples_into_chunks_changes_the_memory_only(monkeypatch):
    whole = binary(table(), resamples=300)["metrics"]
    monkeypatch.setattr("volrec.evaluation.resampling._CHUNK", 60 * 37)
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
    assert binary(frame)["metrics"]["balanced_accuracy"]["low"] is not None
    found = binary(frame[:2])["metrics"]["balanced_accuracy"]
    assert found["value"] is not None
    assert (found["low"] is None) == ("reason" in found)
    seen = [binary(frame[:2], seed=seed, resamples=101)["metrics"]["balanced_accuracy"] for seed in range(12)]
    assert any("resamples only" in entry.get("reason", "") for entry in seen)


def test_calling_everyone_gives_no_point_for_an_interval():
    frame = table(24)
    frame["score_yes"] = 0.9
    found = binary(frame)["metrics"]["balanced_accuracy"]
    assert found["value"] == 0.5
    assert 0.2 < found["low"] < 0.45 and 0.55 < found["high"] < 0.8


def test_no_metric_at_its_best_has_a_point_for_an_interval():
    frame = table(24)
    frame["score_yes"] = (frame["label"] == "yes").astype(float)
    found = binary(frame.assign(fold=np.arange(24) // 2 % 2))
    for part in ("metrics", "fold_mean"):
        for name, entry in found[part].items():
            if name == "loss":  # has no end to count from
                continue
            best = 0.0 if name in {"brier", "ece"} else 1.0
            assert entry["value"] == best, name
            assert best in (entry["low"], entry["high"]), name
            assert 0.03 < entry["high"] - entry["low"] < 0.5, name
    assert found["metrics"]["sensitivity"]["method"] == "Wilson"
    assert found["metrics"]["f1"]["method"] == "count of patients"
    assert found["metrics"]["auc"]["method"] == "Newcombe"


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "multihead"])
def test_nor_has_one_of_several_classes_labels_or_heads(task):
    truth = np.arange(24) % 3
    frame = pd.DataFrame({"patient": [f"p{n}" for n in range(24)], "grade": truth})
    classes = ("0", "1", "2")
    if task == "multiclass":
        targets = ("grade",)
        frame[[f"score_{name}" for name in classes]] = np.eye(3)[truth]
    elif task == "multihead":
        targets, frame["side"] = ("grade", "side"), truth % 2
        frame[[f"score_grade={name}" for name in classes]] = np.eye(3)[truth]
        frame[["score_side=0", "score_side=1"]] = np.eye(2)[truth % 2]
        classes = ("grade=0", "grade=1", "grade=2", "side=0", "side=1")
    else:
        classes = targets = ("a", "b")
        frame["a"], frame["b"] = truth == 0, truth == 1
        frame["score_a"], frame["score_b"] = frame["a"].astype(float), frame["b"].astype(float)
    found = evaluate_scores(frame, task=task, classes=classes, targets=targets, resamples=100)
    parts = [found["metrics"], *(entry["metrics"] for entry in found.get("labels", {}).values())]
    for metrics in parts:
        for name, entry in metrics.items():
            if name != "loss":
                assert 0.03 < entry["high"] - entry["low"] < 0.6, name
                assert entry["low"] <= entry["value"] <= entry["high"]


def test_thresholds_of_each_fold_are_used_and_told():
    frame = table(60, folds=2)
    chosen = {"fold-0": {"yes": 0.3}, "fold-1": {"yes": 0.7}}
    found = binary(frame, thresholds=chosen, resamples=0)
    said = frame["score_yes"] >= np.where(frame["fold"] == "fold-0", 0.3, 0.7)
    truth = frame["label"] == "yes"
    assert found["thresholds"] == chosen
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(oracle.accuracy_score(truth, said))
    assert found["metrics"]["f1"]["value"] == pytest.approx(oracle.f1_score(truth, said))
    own = frame["fold"] == "fold-1"
    expected = oracle.recall_score(truth[own], frame.loc[own, "score_yes"] >= 0.7)
    assert found["folds"]["fold-1"]["metrics"]["sensitivity"] == pytest.approx(expected)
    assert found["metrics"]["auc"] == binary(frame, resamples=0)["metrics"]["auc"]
    # Wilson's interval is that of the same calls.
    entry = binary(frame.assign(patient=frame.index), thresholds=chosen)["metrics"]["accuracy"]
    right = int((said == truth).sum())
    interval = binomtest(right, 60).proportion_ci(method="wilson")
    assert (entry["low"], entry["high"]) == pytest.approx((interval.low, interval.high))


def test_rows_of_no_known_fold_take_the_mean_of_the_thresholds():
    frame = table(30)
    chosen = {"fold-0": {"yes": 0.2}, "fold-1": {"yes": 0.6}}
    assert binary(frame, thresholds=chosen, resamples=0)["thresholds"] == {"": {"yes": pytest.approx(0.4)}}
    one = binary(frame.assign(fold="fold-1"), thresholds=chosen, resamples=0)
    assert one["thresholds"] == {"fold-1": {"yes": 0.6}}
    all_rows = {"": {"yes": 0.9}, "fold-0": {"yes": 0.2}}
    assert binary(frame, thresholds=all_rows, resamples=0)["thresholds"] == {"": {"yes": 0.9}}
    assert binary(frame, resamples=0)["thresholds"] == {"": {"yes": 0.5}}
    assert binary(frame[:0], thresholds=chosen, resamples=0)["thresholds"] == {"": {"yes": pytest.approx(0.4)}}
    for wrong, message in (({"": {"no": 0.5}}, "output 'no'.*Outputs are yes"), ({"": {"yes": np.inf}}, "is inf")):
        with pytest.raises(ConfigError, match=message):
            binary(frame, thresholds=wrong)


def test_labels_have_thresholds_of_their_own():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"patient": [f"p{n}" for n in range(50)]})
    for name in ("a", "b"):
        frame[name], frame[f"score_{name}"] = rng.integers(0, 2, 50), rng.random(50)
    options = {"task": "multilabel", "classes": ("a", "b"), "targets": ("a", "b"), "resamples": 50}
    found = evaluate_scores(frame, **options, thresholds={"": {"b": 0.8}})
    for name, cut in (("a", 0.5), ("b", 0.8)):
        entry = found["labels"][name]["metrics"]["accuracy"]
        assert entry["value"] == pytest.approx(oracle.accuracy_score(frame[name], frame[f"score_{name}"] >= cut))
        assert entry["low"] < entry["value"] < entry["high"]
    assert found["thresholds"] == {"": {"a": 0.5, "b": 0.8}}
    assert found["labels"]["a"]["metrics"]["auc"]["method"] == "DeLong"
    assert found["metrics"]["auc"]["method"] == "bootstrap"
    assert "thresholds" not in evaluate_scores(frame.assign(a=rng.random(50)), **(options | {"task": "regression"}))


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
