"""Metrics against scikit-learn, with ties, weights and missing entries."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from volrec.errors import ConfigError
from volrec.evaluation import default_metric, higher_is_better, metric_names, study_metric, weighted


def oracle_operating_point(y, s, wanted, held, least) -> float:
    if len(np.unique(y)) < 2:
        return math.nan
    false_rate, true_rate, _ = oracle.roc_curve(y, s, drop_intermediate=False)
    rates = {"sensitivity": true_rate, "specificity": 1 - false_rate}
    return max(one for one, other in zip(rates[wanted], rates[held], strict=True) if other >= least - 1e-9)


def oracle_calibration_error(right, chance) -> float:
    """Guo et al. 2017, equation 3: bins ((m - 1)/15, m/15], weighted by their studies."""
    edges = np.linspace(0, 1, 16)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        held = ((chance > low) & (chance <= high)) | ((low == 0) & (chance == 0))
        if held.any():
            total += held.sum() / len(chance) * abs(right[held].mean() - chance[held].mean())
    return total


TASKS = ("binary", "multiclass", "multilabel", "regression")


def oracle_binary(y, s) -> dict[str, float]:
    said = s >= 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = len(np.unique(y)) == 2
        return {
            "auc": oracle.roc_auc_score(y, s) if both else math.nan,
            "average_precision": oracle.average_precision_score(y, s) if y.any() else math.nan,
            "accuracy": oracle.accuracy_score(y, said),
            "balanced_accuracy": oracle.balanced_accuracy_score(y, said) if both else math.nan,
            "f1": oracle.f1_score(y, said),
            "sensitivity": oracle.recall_score(y, said) if y.any() else math.nan,
            "specificity": oracle.recall_score(y, said, pos_label=0) if (y == 0).any() else math.nan,
            "sensitivity_at_90_specificity": oracle_operating_point(y, s, "sensitivity", "specificity", 0.9),
            "sensitivity_at_95_specificity": oracle_operating_point(y, s, "sensitivity", "specificity", 0.95),
            "specificity_at_90_sensitivity": oracle_operating_point(y, s, "specificity", "sensitivity", 0.9),
            "specificity_at_95_sensitivity": oracle_operating_point(y, s, "specificity", "sensitivity", 0.95),
            "brier": oracle.brier_score_loss(y, s, labels=[0, 1], pos_label=1),
            "ece": oracle_calibration_error(y, s),
            "loss": oracle.log_loss(y, np.clip(s, 1e-7, 1 - 1e-7), labels=[0, 1]),
        }


def oracle_multiclass(y, s) -> dict[str, float]:
    classes = s.shape[1]
    said = s.argmax(1)
    full = len(np.unique(y)) == classes
    return {
        "auc": oracle.roc_auc_score(y, s, multi_class="ovr", average="macro") if full else math.nan,
        "average_precision": oracle.average_precision_score(np.eye(classes)[y], s) if full else math.nan,
        "accuracy": oracle.accuracy_score(y, said),
        "balanced_accuracy": float(np.mean([oracle.accuracy_score(y[y == c], said[y == c]) for c in np.unique(y)])),
        "f1": oracle.f1_score(y, said, average="macro"),
        "brier": ((s - np.eye(classes)[y]) ** 2).sum(1).mean(),
        "ece": oracle_calibration_error(said == y, s.max(1)),
        "loss": oracle.log_loss(y, s, labels=range(classes)),
    }


def agree(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


scores_with_ties = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5, 0.75, 1.0]), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), scores=scores_with_ties)
def test_binary_metrics_equal_scikit_learn(data, scores):
    y = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(scores), max_size=len(scores))))
    s = np.array(scores)
    agree({name: study_metric(name, "binary", y, s) for name in metric_names("binary")}, oracle_binary(y, s))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(4, 40), classes=st.integers(3, 5))
def test_multiclass_metrics_equal_scikit_learn(seed, size, classes):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, size)
    s = rng.dirichlet(np.ones(classes), size)
    agree({n: study_metric(n, "multiclass", y, s) for n in metric_names("multiclass")}, oracle_multiclass(y, s))


def test_heads_are_scored_as_multiclass_tasks_over_their_own_studies_and_averaged():
    rng = np.random.default_rng(4)
    y = np.column_stack([rng.integers(0, 3, 40), rng.integers(0, 4, 40)]).astype(float)
    y[:15, 0] = y[30:, 1] = np.nan
    s = np.concatenate([rng.dirichlet(np.ones(3), 40), rng.dirichlet(np.ones(4), 40)], axis=1)
    parts = [oracle_multiclass(y[15:, 0].astype(int), s[15:, :3]), oracle_multiclass(y[:30, 1].astype(int), s[:30, 3:])]
    for name in metric_names("multihead"):
        found = study_metric(name, "multihead", y, s, heads=(3, 4))
        assert found == pytest.approx(np.mean([part[name] for part in parts])), name
    y[:, 1] = np.nan  # what is not known of one head leaves the other
    assert study_metric("auc", "multihead", y, s, heads=(3, 4)) == pytest.approx(parts[0]["auc"])


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_regression_metrics_equal_scikit_learn(offset):
    rng = np.random.default_rng(0)
    y = rng.normal(size=50) + offset
    s = y + rng.normal(size=50)
    assert study_metric("mae", "regression", y, s) == pytest.approx(oracle.mean_absolute_error(y, s))
    assert study_metric("rmse", "regression", y, s) == pytest.approx(oracle.root_mean_squared_error(y, s))
    assert study_metric("r2", "regression", y, s) == pytest.approx(oracle.r2_score(y, s), abs=1e-7)
    assert study_metric("loss", "regression", y, s) == pytest.approx(oracle.mean_squared_error(y, s))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_weight_is_a_repetition(task):
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 4, (6, 40))
    scores = rng.dirichlet(np.ones(3), 40).round(1) if task == "multiclass" else rng.random(40).round(1)
    scores = scores + 1e-3
    targets = rng.random(40) if task == "regression" else rng.integers(0, 3 if task == "multiclass" else 2, 40)
    many = getattr(weighted, task)(targets.astype(float), scores, counts.astype(float))
    for row, count in enumerate(counts):
        for name, values in many.items():
            once = study_metric(name, task, np.repeat(targets, count), np.repeat(scores, count, axis=0))
            assert values[row] == pytest.approx(once, nan_ok=True), name


def test_missing_targets_and_scores_are_left_out():
    y = np.array([0, 1, np.nan, 1, 0, 1])
    s = np.array([0.1, 0.7, 0.9, 0.4, 0.6, np.nan])
    assert study_metric("auc", "binary", y, s) == oracle.roc_auc_score([0, 1, 1, 0], [0.1, 0.7, 0.4, 0.6])
    assert study_metric("accuracy", "multiclass", [0, 1, np.nan], [[0.9, 0.1], [0.9, 0.1], [0.5, 0.5]]) == 0.5


def test_several_labels_are_averaged_each_over_its_own_studies():
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, (30, 3)).astype(float)
    s = rng.random((30, 3))
    y[:5, 1] = np.nan
    expected = [oracle.roc_auc_score(y[5 * (k == 1) :, k], s[5 * (k == 1) :, k]) for k in range(3)]
    assert study_metric("auc", "multilabel", y, s) == pytest.approx(np.mean(expected))
    y[:, 2] = 0
    assert study_metric("auc", "multilabel", y, s) == pytest.approx(np.mean(expected[:2]))


def test_what_is_not_defined_is_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(study_metric("auc", "binary", [1, 1], [0.2, 0.4]))
        assert math.isnan(study_metric("auc", "binary", [], []))
        assert math.isnan(study_metric("auc", "multiclass", [0, 1], [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]]))
        assert math.isnan(study_metric("r2", "regression", [3.0, 3.0], [1.0, 2.0]))
        assert math.isnan(study_metric("r2", "regression", [3.3], [1.0]))
        assert math.isnan(study_metric("accuracy", "multilabel", [[np.nan, np.nan]], [[0.1, 0.2]]))


def test_auto_is_the_default_metric_and_directions_are_known():
    assert default_metric("multilabel") == "auc"
    assert default_metric("regression") == "r2"
    assert study_metric("auto", "binary", [0, 1], [0.2, 0.4]) == 1.0
    assert higher_is_better("auc")
    assert higher_is_better("r2")
    assert not any(higher_is_better(name) for name in ("mae", "rmse", "loss", "brier", "ece"))


@pytest.mark.parametrize("task", TASKS)
def test_a_perfect_score_is_best_in_every_metric(task):
    y = {"binary": [0, 1, 1], "multiclass": [0, 1, 2], "multilabel": np.eye(3)[:, :2], "regression": [1.0, 2, 4]}[task]
    perfect = np.eye(3) if task == "multiclass" else np.asarray(y, float)
    worse = 0.8 * perfect + 0.2 * np.roll(perfect, 1, axis=0) + 0.05
    for name in metric_names(task):
        best, other = study_metric(name, task, y, perfect), study_metric(name, task, y, worse)
        assert best >= other if higher_is_better(name) else best <= other
        assert best == pytest.approx(1.0 if higher_is_better(name) else 0.0, abs=1e-6)


def test_operating_points_of_many_ranks_equal_scikit_learn():
    rng = np.random.default_rng(7)
    y = rng.integers(0, 2, 400)
    s = np.clip(0.3 * y + 0.7 * rng.random(400), 0, 1).round(3)
    agree({name: study_metric(name, "binary", y, s) for name in metric_names("binary")}, oracle_binary(y, s))


def test_a_rate_of_exactly_nine_in_ten_keeps_the_condition():
    y = np.repeat([0, 1], 10)
    s = np.r_[np.arange(9), 30, np.arange(10, 20)]  # one of ten without the finding is above all
    assert study_metric("sensitivity_at_90_specificity", "binary", y, s) == 1
    assert study_metric("sensitivity_at_95_specificity", "binary", y, s) == 0
    assert study_metric("specificity_at_90_sensitivity", "binary", y, s) == pytest.approx(0.9)
    assert study_metric("specificity_at_90_sensitivity", "binary", 1 - y, s) == 0


def test_thresholds_may_differ_by_row_and_move_only_what_is_called():
    rng = np.random.default_rng(8)
    y, s, cut = rng.integers(0, 2, 60).astype(float), rng.random(60), rng.random(60)
    found = weighted.binary(y, s, np.ones((1, 60)), threshold=cut)
    half = weighted.binary(y, s, np.ones((1, 60)))
    said = s >= cut
    assert found["accuracy"][0] == pytest.approx(oracle.accuracy_score(y, said))
    assert found["f1"][0] == pytest.approx(oracle.f1_score(y, said))
    assert found["sensitivity"][0] == pytest.approx(oracle.recall_score(y, said))
    for name in ("auc", "average_precision", "brier", "ece", "loss", *weighted.OPERATING_POINTS):
        assert found[name][0] == half[name][0], name


def test_unknown_names_are_answered_with_the_list():
    with pytest.raises(ConfigError, match=r"no metric 'r2' of a binary task.*auc, average_precision"):
        study_metric("r2", "binary", [0], [0])
    with pytest.raises(ConfigError, match=r"no task 'ordinal'.*binary, multiclass"):
        study_metric("auc", "ordinal", [0], [0])
    with pytest.raises(ConfigError, match="no metric 'kappa'"):
        higher_is_better("kappa")
