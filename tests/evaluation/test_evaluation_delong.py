"""AUC and differences of AUCs by DeLong: against sums over all pairs, scikit-learn and published figures."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from volrec.errors import ConfigError
from volrec.evaluation import auc_difference, auc_interval
from volrec.evaluation.delong import _areas, _hanley, _rows, auc_limits

# 41 patients with poor and 72 with good outcome after subarachnoid haemorrhage (Turck et al. 2010): WFNS grade and the
# place of S100 beta in its order, made from the structural components that the tests of pROC (Robin et al. 2011) list.
WFNS = [
    *map(int, "32455552521254425552525245441442255225555"),
    *map(int, "111151221221112121134141551124112212122111121211324214115422111312244111"),
]
PLACE = [
    *(8, 5, 11, 7, 25, 30, 28, 2, 19, 4, 2, 23, 21, 27, 30, 15, 30, 30, 30, 2, 30),
    *(17, 0, 4, 13, 30, 15, 30, 3, 15, 8, 5, 6, 13, 30, 9, 30, 18, 30, 30, 25),
    *(8, 9, 5, 1, 26, 12, 5, 5, 1, 3, 1, 4, 6, 2, 12, 2, 6, 8, 12, 1, 11, 9, 20, 4, 29, 26, 11, 2, 24, 26, 6, 3, 4, 3),
    *(1, 8, 5, 9, 10, 1, 1, 4, 1, 4, 3, 11, 4, 3, 19, 6, 16, 2, 5, 18, 2, 1, 14, 22, 5, 10, 3, 9, 5, 2, 1, 12, 10, 26),
    *(12, 10, 29, 27),
]
OUTCOME = [1] * 41 + [0] * 72


def covariance(truth, scores, patients=None):
    yes, columns, owners = _rows(truth, scores, patients, 0.95, "test")
    return _areas(yes, columns, owners)


def over_all_pairs(truth, scores, patients):
    """DeLong's and Obuchowski's covariance as their papers write it: every pair, every patient."""
    truth, patients = np.asarray(truth), np.asarray(patients)
    parts = []
    for own in map(np.asarray, scores):
        pairs = (own[truth == 1][:, None] > own[truth == 0]) + 0.5 * (own[truth == 1][:, None] == own[truth == 0])
        parts.append((pairs.mean(), pairs.mean(1), pairs.mean(0)))
    whose, whose_not = patients[truth == 1], patients[truth == 0]
    names, m, n = sorted(set(patients)), len(whose), len(whose_not)
    found = np.zeros((len(scores), len(scores)))
    for r, s in itertools.product(range(len(scores)), repeat=2):
        x = [[(part[1][whose == name] - part[0]).sum() for name in names] for part in (parts[r], parts[s])]
        y = [[(part[2][whose_not == name] - part[0]).sum() for name in names] for part in (parts[r], parts[s])]
        with_one, without, every = len(set(whose)), len(set(whose_not)), len(names)
        s10 = with_one / ((with_one - 1) * m) * sum(a * b for a, b in zip(*x, strict=True))
        s01 = without / ((without - 1) * n) * sum(a * b for a, b in zip(*y, strict=True))
        across = sum(a * b for a, b in zip(x[0], y[1], strict=True)) + sum(
            a * b for a, b in zip(x[1], y[0], strict=True)
        )
        found[r, s] = s10 / m + s01 / n + every / (every - 1) * across / (m * n)
    return np.array([part[0] for part in parts]), found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(8, 40), owners=st.integers(3, 40))
def test_variance_is_the_sum_over_all_pairs_and_patients(seed, size, owners):
    rng = np.random.default_rng(seed)
    truth = np.r_[1, 1, 0, 0, rng.integers(0, 2, size - 4)]
    scores = [rng.integers(0, 8, size) + truth, rng.normal(size=size)]
    patients = np.r_[0, 1, 0, 2, rng.integers(0, owners, size - 4)]
    found = covariance(truth, scores, patients)
    areas, expected = over_all_pairs(truth, scores, patients)
    np.testing.assert_allclose(found.values, areas)
    np.testing.assert_allclose(found.values, [roc_auc_score(truth, own) for own in scores])
    np.testing.assert_allclose(found.covariance, expected, atol=1e-12)


def test_the_published_comparison_of_two_markers_is_found_again():
    first, second = auc_interval(OUTCOME, PLACE), auc_interval(OUTCOME, WFNS)
    assert (first["value"], second["value"]) == pytest.approx((0.731368563685637, 0.823678861788618))
    # pROC, tests/testthat/test-var.R and test-roc.test.R; roc.test(r.wfns, r.s100b).
    spread = covariance(OUTCOME, [PLACE, WFNS]).covariance
    assert np.diag(spread) == pytest.approx([0.00266868245717244, 0.00146991470882363])
    found = auc_difference(OUTCOME, PLACE, WFNS)
    assert found["z"] == pytest.approx(2.20898359144091)
    assert found["p"] == pytest.approx(0.0271757822291882)
    # DeLong's own interval there is 0.0104 to 0.1742.
    assert (found["low"], found["high"]) == pytest.approx((0.0104061769564846, 0.174214419249478), abs=0.012)


def test_the_published_rating_of_ct_images_is_found_again():
    # Hanley and McNeil 1982, table I; Stata's roctab gives 0.8932 and 0.0307 by DeLong.
    truth = np.repeat([0, 1], [58, 51])
    rating = np.concatenate([np.repeat(range(1, 6), counts) for counts in ((33, 6, 6, 11, 2), (3, 2, 2, 11, 33))])
    found = covariance(truth, [rating])
    assert found.values[0] == pytest.approx(0.8932, abs=5e-5)
    assert math.sqrt(found.covariance[0, 0]) == pytest.approx(0.0307, abs=5e-5)
    interval = auc_interval(truth, rating)
    assert (interval["low"], interval["high"]) == pytest.approx((0.83295, 0.95339), abs=0.025)


def test_with_many_patients_the_interval_is_delongs():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 20_000)
    scores = rng.normal(size=20_000) * (1 + truth) + truth
    found, spread = auc_interval(truth, scores), covariance(truth, [scores]).covariance[0, 0]
    plain = found["value"] + 1.959964 * math.sqrt(spread) * np.array([-1, 1])
    assert (found["low"], found["high"]) == pytest.approx(plain, abs=1e-4)


def test_an_area_of_one_has_no_point_for_an_interval():
    truth = [0] * 12 + [1] * 4
    found = auc_interval(truth, np.arange(16))
    assert (found["value"], found["high"], found["method"]) == (1.0, 1.0, "Newcombe")
    assert 0.5 < found["low"] < 0.9
    # The end is the area that the one seen just contradicts.
    assert 1 - found["low"] == pytest.approx(1.959964 * math.sqrt(_hanley(found["low"], 4, 12)))
    reversed_ = auc_interval(truth, -np.arange(16))
    assert (reversed_["low"], reversed_["high"]) == pytest.approx((0, 1 - found["low"]))
    more = auc_interval(truth * 10, np.tile(np.arange(16), 10))
    assert found["low"] < more["low"] < 1


@settings(max_examples=60, deadline=None)
@given(
    value=st.floats(0, 1),
    sides=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    ratio=st.floats(0, 20),
)
def test_ends_hold_the_value_within_0_and_1(value, sides, ratio):
    variance = ratio * _hanley(value, *sides)
    low, high = auc_limits(value, *sides, variance=variance)
    assert 0 <= low <= value <= high <= 1
    assert low < high
    wider = auc_limits(value, *sides, variance=variance, level=0.99)
    assert wider[0] <= low
    assert high <= wider[1]


def test_studies_of_a_patient_are_worth_less_than_as_many_patients():
    rng = np.random.default_rng(1)
    truth, own = np.repeat(rng.integers(0, 2, 60), 4), np.repeat(rng.normal(size=60), 4)
    scores, patients = own + truth, np.repeat(np.arange(60), 4)
    apart, whole = auc_interval(truth, scores), auc_interval(truth, scores, patients=patients)
    assert whole["value"] == apart["value"]
    assert whole["high"] - whole["low"] == pytest.approx(2 * (apart["high"] - apart["low"]), rel=0.1)
    once = auc_interval(truth[::4], scores[::4])
    assert (whole["low"], whole["high"]) == pytest.approx((once["low"], once["high"]))


def test_the_difference_changes_its_sign_with_the_order():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, 60)
    first, second = rng.normal(size=60) + truth, rng.normal(size=60) + 2 * truth
    there, back = auc_difference(truth, first, second), auc_difference(truth, second, first)
    assert there["difference"] == pytest.approx(roc_auc_score(truth, second) - roc_auc_score(truth, first))
    assert there["low"] < there["difference"] < there["high"]
    for one, other in (("difference", "difference"), ("low", "high"), ("high", "low"), ("z", "z")):
        assert there[one] == pytest.approx(-back[other])
    assert there["p"] == pytest.approx(back["p"])


def test_the_same_order_of_studies_is_no_difference_and_two_perfect_scores_may_differ():
    truth = np.repeat([0, 1], 10)
    scores = np.random.default_rng(3).normal(size=20) + truth
    same = auc_difference(truth, scores, np.exp(scores))
    assert [same[name] for name in ("difference", "low", "high", "z", "p")] == [0, 0, 0, 0, 1]
    perfect = auc_difference(truth, truth + 0.1 * scores.argsort() / 20, truth)
    assert (perfect["difference"], perfect["z"], perfect["p"]) == (0, 0, 1)
    assert perfect["low"] < 0 < perfect["high"]
    opposite = auc_difference(truth, -truth, truth)
    assert (opposite["difference"], opposite["high"]) == (1, 1)
    assert opposite["z"] is opposite["p"] is None
    assert 0 < opposite["low"] < 1


def test_what_cannot_be_had_is_none_with_a_reason():
    for found in (auc_interval([1, 1], [0.2, 0.3]), auc_interval([], []), auc_difference([0], [1], [2])):
        assert "only one class among" in found["reason"]
        assert found["low"] is None
    for found in (
        auc_interval([0, 1], [0.2, 0.3], patients=["a", "a"]),
        auc_difference([0, 1], [1, 2], [2, 1], patients=["a", "a"]),
    ):
        assert "single patient" in found["reason"]
    one = auc_interval([0, 0, 0, 1], [1, 2, 4, 3])
    assert one["method"] == "Newcombe"
    assert one["low"] < one["value"] < one["high"]
    gaps = auc_interval([0, 1, math.nan, 1, 0], [0.1, 0.4, 0.2, math.nan, 0.6])
    assert gaps["value"] == 0.5
    json.dumps([one, gaps, auc_difference([0, 1, 0, 1], [1, 2, 3, 4], [4, 2, 3, 1])], allow_nan=False)


def test_wrong_arguments_are_named():
    with pytest.raises(ConfigError, match=r"'level' parameter of auc_interval.*Got 95"):
        auc_interval([0, 1], [0, 1], level=95)
    with pytest.raises(ConfigError, match="have 2, 2, 3, 2 rows"):
        auc_difference([0, 1], [0, 1], [0, 1, 2])


@pytest.mark.parametrize(("studies", "each", "share"), [(30, 1, 0.3), (90, 3, 0.3)])
def test_the_interval_holds_the_truth_as_often_as_it_says(studies, each, share):
    """200 draws of an AUC of 0.9: an exact interval holds it 184 to 197 times but for 1 in 500 runs of such a test."""
    rng = np.random.default_rng(4)
    patients, inside = np.arange(studies) // each, 0
    for _ in range(200):
        truth = (rng.random(patients[-1] + 1) < share)[patients]
        truth[:each], truth[-each:] = True, False
        noise = np.sqrt(0.5) * rng.normal(size=patients[-1] + 1)[patients] + np.sqrt(0.5) * rng.normal(size=studies)
        if each == 1:
            noise = rng.normal(size=studies)
        found = auc_interval(truth, noise + 1.2815516 * np.sqrt(2) * truth, patients=patients)
        inside += found["low"] <= 0.9 <= found["high"]
    assert 184 <= inside <= 198
