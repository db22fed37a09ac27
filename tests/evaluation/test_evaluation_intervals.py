"""Intervals of proportions and bootstrap intervals: published figures, scipy, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from volrec.evaluation.intervals import (
    bootstrap_interval,
    calibration_interval,
    edge_interval,
    proportion_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("hits", "size", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(hits, size, low, high):
    """Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 3."""
    assert wilson(hits / size, size) == pytest.approx((low, high), abs=5e-5)


def test_one_study_a_patient_is_wilsons_interval_and_copies_add_nothing():
    right = np.arange(40) < 31
    alone = binomtest(31, 40).proportion_ci(method="wilson")
    assert proportion_interval(right, np.arange(40)) == pytest.approx((alone.low, alone.high))
    assert proportion_interval(np.repeat(right, 3), np.repeat(np.arange(40), 3)) == pytest.approx(alone, abs=2e-3)
    always = proportion_interval(np.ones(120, dtype=bool), np.repeat(np.arange(40), 3))
    assert always == pytest.approx(wilson(1, 40))
    assert always[1] == 1
    one = proportion_interval(np.array([True, False, True]), np.zeros(3, dtype=int))
    assert one == pytest.approx(wilson(2 / 3, 1))


def test_independent_studies_of_a_patient_count_nearly_in_full():
    rng = np.random.default_rng(0)
    right, patients = rng.random(3000) < 0.7, np.repeat(np.arange(1000), 3)
    low, high = proportion_interval(right, patients)
    assert high - low == pytest.approx(np.ptp(wilson(right.mean(), 3000)), rel=0.06)


@pytest.mark.parametrize("size", [15, 300])
def test_the_bootstrap_interval_is_scipys_bca_wider_for_few_patients(size):
    values = np.random.default_rng(1).lognormal(size=size)
    made = bootstrap((values,), np.mean, n_resamples=5000, method="BCa", rng=np.random.default_rng(3))
    drawn, left_out = made.bootstrap_distribution, (values.sum() - values) / (size - 1)
    many = bootstrap_interval(values.mean(), drawn, left_out, patients=10**6)
    expected = (made.confidence_interval.low, made.confidence_interval.high)
    assert many == pytest.approx(expected, rel=0.005)
    few = bootstrap_interval(values.mean(), drawn, left_out, patients=10)
    assert few[0] < many[0]
    assert many[1] < few[1]


def test_a_bootstrap_interval_stays_within_what_was_drawn():
    drawn = np.linspace(0, 1, 101)
    for value in (0.0, 0.5, 1.0, 2.0):
        for left_out in (np.array([]), np.array([np.nan, 0.5]), np.array([0.0, 0, 0, 1]), np.array([0.0, 1, 1, 1])):
            low, high = bootstrap_interval(value, drawn, left_out, patients=4)
            assert 0 <= low <= high <= 1


def test_a_perfect_value_has_an_interval_by_the_patients_behind_it():
    counts = {"with_finding": 8, "without": 30}
    assert edge_interval("sensitivity", 1, **counts) == pytest.approx(wilson(1, 8))
    assert edge_interval("sensitivity_at_90_specificity", 1, **counts) == pytest.approx(wilson(1, 8))
    assert edge_interval("average_precision", 1, **counts) == pytest.approx(wilson(1, 8))
    assert edge_interval("specificity", 0, **counts) == pytest.approx(wilson(0, 30))
    assert edge_interval("brier", 0, **counts) == pytest.approx(wilson(0, 38))
    low, high = edge_interval("balanced_accuracy", 1, **counts)
    assert wilson(1, 8)[0] / 2 + wilson(1, 30)[0] / 2 < low < 1
    assert high == 1
    # All are called: a sensitivity of 1 and a specificity of 0, each known as well as its patients let it be.
    assert edge_interval("balanced_accuracy", 0.5, **counts) == pytest.approx(
        (wilson(1, 8)[0] / 2, 1 - wilson(1, 8)[0] / 2)
    )
    # F1 is 2 J / (1 + J) of the share J of hits among hits, misses and alarms.
    assert edge_interval("f1", 1, **counts)[0] == pytest.approx(2 * wilson(1, 8)[0] / (1 + wilson(1, 8)[0]))
    assert edge_interval("auc", 1, **counts)[0] < edge_interval("auc", 1, with_finding=80, without=300)[0] < 1
    for name, value in (("loss", 0), ("mae", 0), ("accuracy", 0.5)):
        assert edge_interval(name, value, **counts) is None
    for name in ("sensitivity", "auc", "balanced_accuracy"):
        assert edge_interval(name, 1, with_finding=0, without=5) is None


def test_the_calibration_error_of_a_calibrated_model_is_held_although_the_value_is_far_above():
    rng, inside, above = np.random.default_rng(4), 0, 0
    for _ in range(200):
        chance = rng.random(80)
        right = rng.random(80) < chance
        low, high = calibration_interval(right, chance, np.arange(80))
        inside += low == 0
        above += high > 0.1
    assert inside >= 190  # the true error is 0
    assert above >= 190


def test_a_clear_calibration_error_is_told_and_patients_count_once():
    rng = np.random.default_rng(5)
    chance = np.full(600, 0.9)
    right = rng.random(600) < 0.5
    low, high = calibration_interval(right, chance, np.arange(600))
    assert 0.3 < low < 0.4 < high < 0.5
    whole = calibration_interval(np.repeat(right, 4), np.repeat(chance, 4), np.repeat(np.arange(600), 4))
    assert whole == pytest.approx((low, high))


def test_an_interval_of_a_share_holds_it_as_often_as_it_says():
    rng, inside = np.random.default_rng(6), 0
    patients = np.arange(60) // 3
    for _ in range(200):
        own = rng.beta(4, 1, 20)[patients]  # mean 0.8
        low, high = proportion_interval(rng.random(60) < own, patients)
        inside += low <= 0.8 <= high
    assert 184 <= inside <= 198
