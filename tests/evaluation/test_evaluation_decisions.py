"""Fitting decisions: against all cuts there are, against float64 optimisers and scikit-learn, and when it cannot be."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as oracle
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from volrec.config import DecisionConfig
from volrec.evaluation.calibration import calibration_report, score_quality
from volrec.evaluation.decisions import (
    LEAST_ISOTONIC,
    best_threshold,
    choose_cut,
    decision_facts,
    fit_decision,
    fit_isotonic,
    fit_temperature,
    thresholds_by_fold,
)
from volrec.inference.decision import Decision, Fitted

BINARY: dict[str, Any] = {"task": "binary", "classes": ("no", "yes"), "targets": ("label",)}
LABELS: dict[str, Any] = {"task": "multilabel", "classes": ("a", "b"), "targets": ("a", "b")}
KINDS: dict[str, Any] = {"task": "multiclass", "classes": ("x", "y", "z"), "targets": ("kind",)}
HEADS: dict[str, Any] = {"task": "multihead", "classes": ("p=1", "p=2", "q=u", "q=v"), "targets": ("p", "q")}

PAIRS = st.lists(st.tuples(st.booleans(), st.one_of(st.floats(0, 1), st.sampled_from([0, 0.25, 0.5, 1]))), min_size=2)


def binary_table(count: int = 80, *, seed: int = 0, louder: float = 3.0) -> pd.DataFrame:
    """Scores of a network that is too sure of itself by a known factor."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 2, count)
    truth = rng.random(count) < expit(honest)
    logits = louder * honest
    return pd.DataFrame(
        {
            "study": [f"s{n}" for n in range(count)],
            "label": np.where(truth, "yes", "no"),
            "score_yes": expit(logits),
            "logit_yes": logits,
        }
    )


def class_table(naming: dict[str, Any], count: int = 90, *, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, len(naming["classes"])))
    table = pd.DataFrame({"study": [f"s{n}" for n in range(count)]})
    groups = {"kind": (0, 1, 2)} if naming is KINDS else {"p": (0, 1), "q": (2, 3)}
    for target, places in groups.items():
        chances = softmax(logits[:, places] / 2, axis=1)
        drawn = [rng.choice(len(places), p=row) for row in chances]
        names = [naming["classes"][place].removeprefix(f"{target}=") for place in places]
        table[target] = [names[index] for index in drawn]
        scores = softmax(logits[:, places], axis=1)
        for own, place in enumerate(places):
            table[f"score_{naming['classes'][place]}"] = scores[:, own]
            table[f"logit_{naming['classes'][place]}"] = logits[:, place]
    return table


def rates(truth: np.ndarray, scores: np.ndarray, cut: float) -> tuple[float, float]:
    return float((scores >= cut)[truth].mean()), float((scores < cut)[~truth].mean())


def every_cut(truth: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    return [rates(truth, scores, cut) for cut in [*np.unique(scores), np.inf]]


@given(PAIRS, st.sampled_from([0.05, 0.5, 0.7, 0.9, 0.95, 0.999]))
def test_thresholds_are_the_best_of_all_cuts(pairs: list[tuple[bool, float]], at: float) -> None:
    truth, scores = np.array([one for one, _ in pairs]), np.array([float(one) for _, one in pairs])
    assume(truth.any() and not truth.all())
    cuts = every_cut(truth, scores)
    sensitive = choose_cut(truth, scores, rule="sensitivity", at=at)
    assert (sensitive.sensitivity, sensitive.specificity) == pytest.approx(rates(truth, scores, sensitive.threshold))
    assert sensitive.sensitivity >= at
    assert sensitive.specificity == pytest.approx(max(spec for sens, spec in cuts if sens >= at))
    specific = choose_cut(truth, scores, rule="specificity", at=at)
    assert (specific.sensitivity, specific.specificity) == pytest.approx(rates(truth, scores, specific.threshold))
    assert specific.specificity >= at
    assert specific.sensitivity == pytest.approx(max(sens for sens, spec in cuts if spec >= at))
    if len(set(scores)) > 1:
        best = choose_cut(truth, scores, rule="youden")
        assert (best.sensitivity, best.specificity) == pytest.approx(rates(truth, scores, best.threshold))
        assert best.sensitivity + best.specificity == pytest.approx(max(map(sum, cuts[1:-1])))
        assert best_threshold(truth, scores) == best.threshold


@given(PAIRS, st.integers(-12, 0))
def test_the_same_studies_are_called_when_all_scores_are_smaller(pairs: list[tuple[bool, float]], power: int) -> None:
    truth, scores = np.array([one for one, _ in pairs]), np.array([float(one) for _, one in pairs])
    assume(truth.any() and not truth.all() and len(set(scores)) > 1)
    assume(min(np.diff(np.unique(scores))) > 1e-200)
    factor = 2.0**power
    for rule in ("youden", "sensitivity", "specificity"):
        one = choose_cut(truth, scores, rule=rule, at=0.8)
        other = choose_cut(truth, scores * factor, rule=rule, at=0.8)
        assert ((scores >= one.threshold) == (scores * factor >= other.threshold)).all()


def test_among_equal_cuts_the_middle_of_the_widest_gap_is_taken() -> None:
    truth = np.array([0, 0, 1, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.35, 0.7, 0.8, 0.9])
    # From 0.35 or from 0.8 on sensitivity and specificity have the same mean; the gap below the first is wider.
    assert best_threshold(truth, scores) == pytest.approx(0.275)
    assert best_threshold(truth, np.array([0.1, 0.2, 0.3, 0.7, 0.85, 0.9])) == pytest.approx(0.775)
    # The highest that reaches it lies halfway down from the lowest positive that is needed, and no lower.
    assert choose_cut(truth, scores, rule="sensitivity", at=1.0).threshold == pytest.approx(0.275)
    assert choose_cut(truth, scores, rule="specificity", at=1.0).threshold == pytest.approx(0.75)


def test_between_two_neighbouring_floats_the_upper_one_is_the_threshold() -> None:
    scores = np.array([0.5, np.nextafter(0.5, 1)])
    found = choose_cut(np.array([0, 1]), scores, rule="youden")
    assert (scores >= found.threshold).tolist() == [False, True]


def test_all_or_none_are_called_where_nothing_else_reaches_it() -> None:
    truth, scores = np.array([1, 0, 1]), np.array([0.0, 0.5, 1.0])
    assert choose_cut(truth, scores, rule="sensitivity", at=0.9).threshold == 0.0
    none = choose_cut(1 - truth, scores, rule="specificity", at=0.9)
    assert none.threshold > 1
    assert none.sensitivity == 0


@pytest.mark.parametrize("outputs", [1, 4])
def test_the_temperature_is_that_of_other_optimisers(outputs: int) -> None:
    rng = np.random.default_rng(outputs)
    honest = rng.normal(0, 2, (300, outputs))
    whole = np.column_stack([np.zeros(300), honest]) if outputs == 1 else honest
    truth = np.array([rng.choice(whole.shape[1], p=row) for row in softmax(whole, axis=1)])
    found, why = fit_temperature(truth, 2.5 * honest)
    assert found is not None
    assert not why

    def loss(temperature: float) -> float:
        return float(-log_softmax(2.5 * whole / temperature, axis=1)[np.arange(300), truth].mean())

    grid = np.linspace(0.5, 6, 4001)
    assert found == pytest.approx(grid[np.argmin([loss(one) for one in grid])], abs=2e-3)
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_temperature], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        own = torch.nn.functional.cross_entropy(
            torch.from_numpy(2.5 * whole) / log_temperature.exp(), torch.from_numpy(truth)
        )
        own.backward()
        return own

    optimiser.step(step)
    assert found == pytest.approx(float(log_temperature.exp().detach()), rel=1e-7)
    assert 1.8 < found < 3.3  # the factor that they were made louder by, but for chance


def test_a_temperature_is_not_taken_from_studies_that_have_none() -> None:
    truth, logits = np.array([0, 0, 1, 1]), np.array([[-2.0], [-1.0], [1.0], [3.0]])
    value, why = fit_temperature(truth, logits)
    assert value is None
    assert "told apart without an error" in why
    value, why = fit_temperature(1 - truth, logits)
    assert value is None
    assert "say nothing" in why
    assert fit_temperature(truth, np.zeros((4, 1)))[0] is None


def test_isotonic_knots_are_those_of_scikit_learn_and_json() -> None:
    table = binary_table(200)
    truth, scores = (table["label"] == "yes").to_numpy(float), table["score_yes"].to_numpy()
    knots = json.loads(json.dumps(fit_isotonic(truth, scores)))
    expected = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, truth).predict(scores)
    np.testing.assert_allclose(np.interp(scores, knots["scores"], knots["values"]), expected, atol=1e-12)


def test_a_decision_says_what_it_was_fitted_on_and_what_it_reaches() -> None:
    table = binary_table()
    decision = fit_decision(table, DecisionConfig(rule="sensitivity", at=0.9), **BINARY)
    assert decision is not None
    truth, scores = table["label"] == "yes", table["score_yes"].to_numpy()
    said = decision.called(scores[:, None])[:, 0] == 1
    assert decision.fitted["yes"].studies == 80
    assert decision.fitted["yes"].positives == truth.sum()
    assert decision.fitted["yes"].sensitivity == oracle.recall_score(truth, said) >= 0.9
    assert decision.fitted["yes"].specificity == oracle.recall_score(~truth, ~said)
    assert (decision.rule, decision.at, decision.method) == ("sensitivity", 0.9, "temperature")
    assert decision.calibration["temperatures"]["yes"] == fit_temperature(truth, table[["logit_yes"]].to_numpy())[0]
    json.dumps(decision.to_card(), allow_nan=False)


def test_each_label_is_fitted_on_the_studies_that_have_it() -> None:
    first, second = binary_table(60, seed=1), binary_table(60, seed=2)
    table = pd.DataFrame({"study": first["study"]})
    for name, own in (("a", first), ("b", second)):
        table[name] = (own["label"] == "yes").astype(float)
        table[f"score_{name}"], table[f"logit_{name}"] = own["score_yes"], own["logit_yes"]
    table.loc[:29, "b"] = np.nan
    decision = fit_decision(table, DecisionConfig(), **LABELS)
    assert decision is not None
    assert (decision.fitted["a"].studies, decision.fitted["b"].studies) == (60, 30)
    alone = fit_decision(second[30:], DecisionConfig(), **BINARY)
    assert alone is not None
    assert decision.thresholds["b"] == alone.thresholds["yes"]
    assert decision.calibration["temperatures"]["b"] == alone.calibration["temperatures"]["yes"]
    table["b"] = 1.0
    one_class = fit_decision(table, DecisionConfig(), **LABELS)
    assert one_class is not None
    assert one_class.thresholds["b"] == 0.5
    assert one_class.calibrated_outputs == ("a",)
    assert one_class.fitted["b"].threshold_reason == "all 60 validation studies are of one class"
    assert one_class.fitted["b"].specificity is None


@pytest.mark.parametrize("naming", [KINDS, HEADS], ids=["multiclass", "multihead"])
def test_exclusive_classes_share_a_temperature_and_have_no_threshold(naming: dict[str, Any]) -> None:
    table = class_table(naming)
    decision = fit_decision(table, DecisionConfig(), **naming)
    assert decision is not None
    assert decision.thresholds == {}
    assert set(decision.calibration["temperatures"]) == set(naming["targets"])
    curves = fit_decision(table, DecisionConfig(calibration="isotonic"), **naming)
    assert curves is not None
    assert set(curves.calibration["curves"]) == set(naming["classes"])
    scores = table[[f"score_{name}" for name in naming["classes"]]].to_numpy()
    for one in curves.questions:
        np.testing.assert_allclose(curves.calibrated(scores)[:, list(one.columns)].sum(1), 1)
    # Without logits they follow from the scores.
    bare = table[[name for name in table if not str(name).startswith("logit_")]]
    again = fit_decision(bare, DecisionConfig(), **naming)
    assert again is not None
    for name, value in decision.calibration["temperatures"].items():
        assert again.calibration["temperatures"][name] == pytest.approx(value, rel=1e-9)


def test_a_rare_class_does_not_stand_in_the_way_of_a_temperature() -> None:
    table = class_table(KINDS)
    table.loc[table["kind"] == "z", "kind"] = "x"
    table.loc[0, "kind"] = "z"
    assert fit_decision(table, DecisionConfig(), **KINDS).calibration["method"] == "temperature"  # type: ignore[union-attr]
    refused = fit_decision(table, DecisionConfig(calibration="isotonic"), **KINDS)
    assert refused is not None
    assert refused.method == "none"
    assert refused.fitted["kind"].calibration_reason == (
        "of the 90 validation studies only 1 of z; 3 of each class are needed"
    )


NO_STUDY = "there were no validation studies"
NO_LABEL = "no validation study has a label"
FEW = "50 are needed; decision.calibration=temperature needs fewer"


@pytest.mark.parametrize(
    ("table", "config", "threshold", "calibration"),
    [
        pytest.param(binary_table(0), {}, NO_STUDY, NO_STUDY, id="no studies"),
        pytest.param(binary_table(20).assign(label=None), {}, NO_LABEL, NO_LABEL, id="no labels"),
        pytest.param(
            binary_table(20).assign(label="no"), {}, "all 20 validation studies", "of one class", id="one class"
        ),
        pytest.param(
            binary_table(20).assign(label=["yes", "yes", *["no"] * 18]),
            {},
            "only 2 positive; 3 of",
            "3 of each",
            id="two",
        ),
        pytest.param(binary_table(8), {}, "", "8 validation studies are too few, 10 are needed", id="eight"),
        pytest.param(binary_table(40), {"calibration": "isotonic"}, "", FEW, id="isotonic"),
        pytest.param(binary_table(40).assign(score_yes=0.4, logit_yes=-0.4), {}, "the same score", "", id="one score"),
        pytest.param(binary_table(40, louder=-1), {}, "better than chance", "say nothing", id="worse than chance"),
    ],
)
def test_what_cannot_be_fitted_is_left_alone_with_the_reason(
    table: pd.DataFrame, config: dict[str, Any], threshold: str, calibration: str
) -> None:
    decision = fit_decision(table, DecisionConfig(**config), **BINARY)
    assert decision is not None
    facts = decision.fitted["yes"]
    assert threshold in facts.threshold_reason
    assert bool(threshold) == bool(facts.threshold_reason) == (decision.thresholds["yes"] == 0.5)
    assert calibration in facts.calibration_reason
    if calibration:
        assert decision.calibration == {"method": "none"}
    json.dumps(decision.to_card(), allow_nan=False)


def test_half_and_none_are_obeyed_without_a_reason() -> None:
    decision = fit_decision(binary_table(), DecisionConfig(rule="half", calibration="none"), **BINARY)
    assert decision is not None
    assert decision.thresholds == {"yes": 0.5}
    assert (decision.at, decision.calibration) == (None, {"method": "none"})
    facts = decision.fitted["yes"]
    assert (facts.threshold_reason, facts.calibration_reason) == ("", "")
    assert facts.sensitivity is not None


def test_studies_that_the_network_has_learned_from_fit_nothing() -> None:
    decision = fit_decision(binary_table(), DecisionConfig(), **BINARY, unusable="it knows them")
    assert decision is not None
    assert decision.thresholds == {"yes": 0.5}
    assert decision.fitted["yes"].threshold_reason == decision.fitted["yes"].calibration_reason == "it knows them"


def test_nothing_is_decided_on_quantities() -> None:
    assert fit_decision(pd.DataFrame(), DecisionConfig(), task="regression", classes=(), targets=("age",)) is None


def test_calibration_pulls_a_loud_network_back_on_new_studies() -> None:
    for method in ("temperature", "isotonic"):
        decision = fit_decision(binary_table(400), DecisionConfig(calibration=method), **BINARY)  # type: ignore[arg-type]
        assert decision is not None
        found = calibration_report(binary_table(400, seed=9), {"": decision}, **BINARY)
        assert found["after"]["log_loss"] < found["before"]["log_loss"]
        assert found["after"]["ece"] < found["before"]["ece"]
        assert "note" not in found


def test_quality_is_that_of_scikit_learn() -> None:
    table = binary_table(100, louder=1)
    truth, scores = (table["label"] == "yes").to_numpy(float), table["score_yes"].to_numpy()
    found = score_quality(truth[:, None], scores[:, None], **BINARY)
    assert found["brier"] == pytest.approx(oracle.brier_score_loss(truth, scores))
    assert found["log_loss"] == pytest.approx(oracle.log_loss(truth, scores))
    kinds = class_table(KINDS)
    index = kinds["kind"].map({"x": 0, "y": 1, "z": 2}).to_numpy(float)
    chances = kinds[["score_x", "score_y", "score_z"]].to_numpy()
    several = score_quality(index[:, None], chances, **KINDS)
    assert several["log_loss"] == pytest.approx(oracle.log_loss(index, chances))
    assert several["brier"] == pytest.approx(((chances - np.eye(3)[index.astype(int)]) ** 2).sum(1).mean())
    assert score_quality(np.full((3, 1), np.nan), np.ones((3, 1)), **BINARY) == {}


def test_each_fold_is_calibrated_in_its_own_way_and_all_are_pooled() -> None:
    cool = Decision(**BINARY, calibration={"method": "temperature", "temperatures": {"yes": 3.0}})
    table = pd.concat([binary_table(30, seed=5).assign(fold="fold-0"), binary_table(30, seed=6).assign(fold="fold-1")])
    found = calibration_report(table, {"fold-0": cool, "fold-1": Decision(**BINARY)}, **BINARY)
    scores = table["score_yes"].to_numpy(copy=True)
    scores[:30] = expit(table["logit_yes"].to_numpy()[:30] / 3)
    assert found["after"]["log_loss"] == pytest.approx(oracle.log_loss(table["label"] == "yes", scores))
    assert found["note"] == "not calibrated: fold-1; their scores enter as they are"
    assert found["studies"] == 60
    none = calibration_report(table, {"fold-0": Decision(**BINARY), "fold-1": Decision(**BINARY)}, **BINARY)
    assert none["after"] is None
    again = calibration_report(table.drop(columns="fold"), {"": cool}, **BINARY, fitted_on_these=True)
    assert "very studies" in again["note"]


def test_facts_of_a_run_are_json_with_thresholds_by_fold() -> None:
    one = Decision(**BINARY, rule="youden", thresholds={"yes": 0.4}, fitted={"yes": Fitted(20, 9, 0.8, 0.9)})
    two = fit_decision(binary_table(LEAST_ISOTONIC), DecisionConfig(calibration="isotonic"), **BINARY)
    assert two is not None
    facts = json.loads(json.dumps(decision_facts({"fold-0": one, "fold-1": two}), allow_nan=False))
    assert facts["thresholds"] == thresholds_by_fold({"fold-0": one, "fold-1": two})
    assert facts["thresholds"]["fold-0"] == {"yes": 0.4}
    assert facts["rule"] == "youden"
    assert facts["members"]["fold-1"]["calibration"] == {"method": "isotonic"}
    assert facts["sentences"][0].startswith("fold-0, yes: called from 0.400 on (best mean of")
    assert thresholds_by_fold({"": Decision(**KINDS)}) == {}
