from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as oracle
from sklearn.calibration import calibration_curve

from volrec.evaluation import calibration_points, confusion, operating_point, pr_points, roc_points

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 2, 80).astype(float)
SCORES = np.clip(0.3 * TRUTH + RNG.random(80) * 0.7, 0, 1).round(2)


def test_roc_points_equal_scikit_learn():
    found = roc_points(TRUTH, SCORES)
    false_rate, true_rate, threshold = oracle.roc_curve(TRUTH, SCORES, drop_intermediate=False)
    np.testing.assert_allclose(found["false_positive_rate"], false_rate)
    np.testing.assert_allclose(found["true_positive_rate"], true_rate)
    np.testing.assert_allclose(found["threshold"][1:], threshold[1:])
    assert found["threshold"][0] is None


def test_pr_points_equal_scikit_learn():
    found = pr_points(TRUTH, SCORES)
    precision, recall, threshold = oracle.precision_recall_curve(TRUTH, SCORES)
    np.testing.assert_allclose(found["precision"][::-1], precision[:-1])
    np.testing.assert_allclose(found["recall"][::-1], recall[:-1])
    np.testing.assert_allclose(found["threshold"][::-1], threshold)


def test_calibration_points_equal_scikit_learn():
    found = calibration_points(TRUTH, SCORES, bins=5)
    observed, predicted = calibration_curve(TRUTH, SCORES, n_bins=5)
    np.testing.assert_allclose(found["observed"], observed)
    np.testing.assert_allclose(found["predicted"], predicted)
    assert sum(found["studies"]) == len(TRUTH)
    assert calibration_points([1.0], [1.0])["studies"] == [1]


def test_bins_of_equally_many_studies_equal_scikit_learn():
    found = calibration_points(TRUTH, SCORES, bins=5, equal="studies")
    observed, predicted = calibration_curve(TRUTH, SCORES, n_bins=5, strategy="quantile")
    np.testing.assert_allclose(found["observed"], observed)
    np.testing.assert_allclose(found["predicted"], predicted)
    assert max(found["studies"]) - min(found["studies"]) <= 4  # equal scores stay together
    assert calibration_points([0, 1, 1], [0.5, 0.5, 0.5], equal="studies")["studies"] == [3]
    assert calibration_points([], [], equal="studies")["studies"] == []


def test_the_share_of_each_bin_has_wilsons_interval():
    found = calibration_points(TRUTH, SCORES, bins=4)
    for share, low, high, size in zip(found["observed"], found["low"], found["high"], found["studies"], strict=True):
        expected = binomtest(round(share * size), size).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high))


def test_an_operating_point_lies_on_the_curve_with_its_intervals():
    found = operating_point([*TRUTH, np.nan], [*SCORES, 0.9], threshold=0.4)
    said = SCORES >= 0.4
    assert found["sensitivity"]["value"] == pytest.approx(oracle.recall_score(TRUTH, said))
    assert found["specificity"]["value"] == pytest.approx(oracle.recall_score(TRUTH, said, pos_label=0))
    curve = roc_points(TRUTH, SCORES)
    mark = (1 - found["specificity"]["value"], found["sensitivity"]["value"])
    assert (
        np.hypot(
            np.array(curve["false_positive_rate"]) - mark[0], np.array(curve["true_positive_rate"]) - mark[1]
        ).min()
        < 1e-12
    )
    assert found["sensitivity"]["studies"] + found["specificity"]["studies"] == len(TRUTH)
    for entry in (found["sensitivity"], found["specificity"]):
        assert entry["low"] < entry["value"] < entry["high"]
    copies = operating_point(
        np.repeat(TRUTH, 3), np.repeat(SCORES, 3), threshold=0.4, patients=np.repeat(np.arange(80), 3)
    )
    assert copies["sensitivity"]["low"] == pytest.approx(found["sensitivity"]["low"], abs=0.01)
    assert operating_point([1, 1], [0.2, 0.9])["specificity"]["value"] is None
    json.dumps([found, copies], allow_nan=False)


def test_confusion_takes_the_threshold_that_was_chosen():
    expected = oracle.confusion_matrix(TRUTH, SCORES >= 0.3)
    assert confusion(TRUTH, SCORES, num_classes=2, threshold=0.3) == expected.tolist()
    assert confusion(TRUTH, SCORES, num_classes=2, threshold=np.full(80, 0.3)) == expected.tolist()


@pytest.mark.parametrize("shape", ["flat", "column", "two columns"])
def test_confusion_equals_scikit_learn(shape):
    scores = {"flat": SCORES, "column": SCORES[:, None], "two columns": np.stack([1 - SCORES - 1e-9, SCORES], 1)}[shape]
    expected = oracle.confusion_matrix(TRUTH, SCORES >= 0.5)
    assert confusion(TRUTH, scores, num_classes=2) == expected.tolist()


def test_confusion_keeps_rows_for_classes_that_do_not_occur():
    assert confusion([[0], [2]], np.eye(3)[[1, 2]], num_classes=3) == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_missing_rows_are_left_out_and_empty_curves_are_empty():
    with_gaps = roc_points([*TRUTH, np.nan, 1], [*SCORES, 0.5, np.nan])
    assert with_gaps == roc_points(TRUTH, SCORES)
    assert confusion([0, np.nan], [0.1, 0.2], num_classes=2) == [[1, 0], [0, 0]]
    for empty in (roc_points([1, 1], [0.1, 0.2]), roc_points([], []), pr_points([0], [0.1]), pr_points([], [])):
        assert all(values == [] for values in empty.values())
    assert calibration_points([], [])["studies"] == []


def test_points_are_plain_json():
    for points in (roc_points, pr_points, calibration_points):
        json.dumps(points(TRUTH, SCORES), allow_nan=False)
