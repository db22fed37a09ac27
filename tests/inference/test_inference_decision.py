"""Decisions: what is called, how scores are calibrated, the way through a card and back, several members together."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from volrec.errors import ConfigError, RunError
from volrec.evaluation.decisions import fit_isotonic
from volrec.inference.consensus import inverse_link, link
from volrec.inference.decision import Decision, Fitted, combine, questions
from volrec.inference.predictor import StudyScore

NAMING: dict[str, dict[str, Any]] = {
    "binary": {"task": "binary", "classes": ("no", "yes"), "targets": ("label",)},
    "multilabel": {"task": "multilabel", "classes": ("a", "b"), "targets": ("a", "b")},
    "multiclass": {"task": "multiclass", "classes": ("x", "y", "z"), "targets": ("kind",)},
    "multihead": {"task": "multihead", "classes": ("p=1", "p=2", "q=u", "q=v", "q=w"), "targets": ("p", "q")},
    "regression": {"task": "regression", "classes": (), "targets": ("age",)},
}
BINARY = Decision(
    **NAMING["binary"],
    rule="sensitivity",
    at=0.9,
    thresholds={"yes": 0.3},
    calibration={"method": "temperature", "temperatures": {"yes": 2.0}},
    fitted={"yes": Fitted(60, 22, 0.91, 0.74)},
)


def card(decision: Decision) -> dict[str, Any]:
    naming = {"task": decision.task, "classes": list(decision.classes), "targets": list(decision.targets)}
    return json.loads(json.dumps({**naming, "decision": decision.to_card()}))


def curve(scores: list[float], values: list[float]) -> dict[str, list[float]]:
    return {"scores": scores, "values": values}


def test_a_score_on_the_threshold_is_called_and_one_below_is_not() -> None:
    assert BINARY.called([[0.3], [np.nextafter(0.3, 0)], [np.nan]])[:2].ravel().tolist() == [1, 0]
    assert BINARY.columns(np.array([[0.3], [0.2], [np.nan]]))["called"] == ["yes", "no", None]


def test_the_class_with_the_highest_score_is_called_in_each_head() -> None:
    kinds = Decision(**NAMING["multiclass"])
    assert kinds.columns(np.array([[0.2, 0.5, 0.3], [0.2, np.nan, 0.3]])) == {"called": ["y", None]}
    heads = Decision(**NAMING["multihead"])
    assert heads.columns(np.array([[0.4, 0.6, 0.1, 0.2, 0.7]])) == {"called_p": ["2"], "called_q": ["w"]}


def test_each_label_has_its_own_threshold_and_half_where_there_is_none() -> None:
    labels = Decision(**NAMING["multilabel"], thresholds={"a": 0.8})
    assert labels.columns(np.array([[0.7, 0.7], [0.9, 0.4]])) == {"called_a": [0, 1], "called_b": [1, 0]}


def test_nothing_is_decided_on_quantities() -> None:
    ages = Decision(**NAMING["regression"])
    assert ages.columns(np.array([[61.5]])) == {}
    assert ages.calibrated([[61.5]]).tolist() == [[61.5]]
    assert questions(**NAMING["regression"]) == ()


@pytest.mark.parametrize("task", ["binary", "multilabel", "multiclass", "multihead"])
def test_a_temperature_divides_logits_before_sigmoid_or_softmax(task: str) -> None:
    frame = Decision(**NAMING[task])
    temperatures = {one.name: 1.5 + place for place, one in enumerate(frame.questions)}
    decision = Decision(**NAMING[task], calibration={"method": "temperature", "temperatures": temperatures})
    logits = np.random.default_rng(1).normal(0, 4, (6, len(frame.outputs)))
    scores = link(logits, task, heads=(2, 3))
    found = decision.calibrated(scores, logits)
    for one in frame.questions:
        part = torch.from_numpy(logits[:, list(one.columns)] / temperatures[one.name])
        expected = torch.sigmoid(part) if one.has_threshold else torch.softmax(part, 1)
        np.testing.assert_allclose(found[:, list(one.columns)], expected.numpy(), rtol=1e-12)
    # Logits that are not given follow from the scores.
    np.testing.assert_allclose(decision.calibrated(scores), found, rtol=1e-6)


def test_an_isotonic_curve_is_applied_as_scikit_learn_predicts() -> None:
    rng = np.random.default_rng(2)
    scores = np.round(rng.random(200), 2)
    truth = (rng.random(200) < scores**2).astype(float)
    decision = Decision(
        **NAMING["binary"], calibration={"method": "isotonic", "curves": {"yes": fit_isotonic(truth, scores)}}
    )
    new = np.concatenate([[0.0, 1.0], scores, rng.random(500)])
    oracle = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, truth)
    found = Decision.from_card(card(decision))
    assert found is not None
    np.testing.assert_allclose(found.calibrated(new[:, None])[:, 0], oracle.predict(new), atol=1e-12)


def test_isotonic_curves_of_exclusive_classes_sum_to_one_and_leave_what_they_all_deny() -> None:
    step = curve([0.4, 0.6], [0.0, 1.0])
    curves = {"x": step, "y": step, "z": curve([0.0, 0.5], [0.0, 0.5])}
    decision = Decision(**NAMING["multiclass"], calibration={"method": "isotonic", "curves": curves})
    found = decision.calibrated([[0.5, 0.3, 0.2], [0.35, 0.65, 0.0], [0.4, 0.4, 0.0], [np.nan, 0.5, 0.5]])
    np.testing.assert_allclose(found[0], np.array([0.5, 0, 0.2]) / 0.7)
    np.testing.assert_allclose(found[1:3], [[0, 1, 0], [0.4, 0.4, 0.0]])
    assert np.isnan(found[3]).all()


def test_without_a_calibration_scores_stay_as_they_are() -> None:
    labels = Decision(
        **NAMING["multilabel"], calibration={"method": "temperature", "temperatures": {"b": 3.0}}, thresholds={"a": 0.1}
    )
    scores = np.array([[0.2, 0.9], [np.nan, np.nan]])
    found = labels.calibrated(scores)
    assert found[0, 0] == 0.2
    assert found[0, 1] == pytest.approx(link(inverse_link(np.array(0.9), "binary") / 3, "binary"))
    assert np.isnan(found[1]).all()
    assert list(labels.columns(scores)) == ["called_a", "called_b", "calibrated_b"]
    assert labels.columns(scores)["calibrated_b"][1] is None


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=30),
    st.floats(0.05, 20),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8),
)
def test_calibration_keeps_the_order_of_studies(
    values: list[float], temperature: float, knots: list[tuple[float, float]]
) -> None:
    scores = np.sort(np.array(values))[:, None]
    places = sorted({place for place, _ in knots})
    curves = {"yes": curve(places, sorted(value for _, value in knots)[: len(places)])}
    for calibration in (
        {"method": "temperature", "temperatures": {"yes": temperature}},
        {"method": "isotonic", "curves": curves},
    ):
        found = Decision(**NAMING["binary"], calibration=calibration).calibrated(scores)
        assert (np.diff(found[:, 0]) >= -1e-15).all()
        assert ((found >= 0) & (found <= 1)).all()


@given(st.floats(-20, 20), st.floats(0.05, 20), st.floats(0.1, 10))
def test_a_network_with_louder_logits_and_a_higher_temperature_says_the_same(
    logit: float, temperature: float, factor: float
) -> None:
    def chance(size: float) -> float:
        calibration = {"method": "temperature", "temperatures": {"yes": temperature * size}}
        given = np.array([[logit * size]])
        return float(
            Decision(**NAMING["binary"], calibration=calibration).calibrated(link(given, "binary"), given)[0, 0]
        )

    assert chance(factor) == pytest.approx(chance(1.0), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "decision",
    [
        BINARY,
        Decision(
            **NAMING["multiclass"],
            calibration={"method": "isotonic", "curves": {name: curve([0.1, 1 / 3], [0.0, 0.7]) for name in "xyz"}},
            fitted={"kind": Fitted(70)},
        ),
        Decision(
            **NAMING["multilabel"],
            rule="youden",
            thresholds={"a": 0.1 + 0.2, "b": 0.5},
            fitted={"a": Fitted(9, 4, 0.75, 1.0), "b": Fitted(9, 0, None, 1.0, "all 9 are of one class", "too few")},
        ),
    ],
    ids=["binary", "multiclass", "multilabel"],
)
def test_a_decision_comes_back_from_its_card(decision: Decision) -> None:
    again = Decision.from_card(card(decision))
    assert again is not None
    assert again.to_card() == decision.to_card()
    assert (again.fitted, again.thresholds, again.questions) == (
        decision.fitted,
        decision.thresholds,
        decision.questions,
    )
    scores = np.random.default_rng(0).dirichlet(np.ones(len(decision.outputs) + 1), 5)[:, : len(decision.outputs)]
    assert again.columns(scores) == decision.columns(scores)
    assert again.describe() == decision.describe()


def test_what_a_later_version_adds_to_the_facts_is_passed_over() -> None:
    later = card(BINARY)
    later["decision"]["fitted"]["yes"]["moon"] = "full"
    assert Decision.from_card(later) is not None


def test_cards_of_before_have_no_decision() -> None:
    assert Decision.from_card({"task": "binary", "classes": ["no", "yes"], "targets": ["label"]}) is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"thresholds": {"maybe": 0.5}}, "it is on maybe, and the network has yes"),
        ({"calibration": {"method": "magic"}}, "'magic'"),
        ({"calibration": {"method": "temperature", "temperatures": {"yes": 0}}}, "above 0"),
        ({"calibration": {"method": "temperature"}}, "lacks 'temperatures'"),
        ({"calibration": {"method": "isotonic", "curves": {"yes": curve([0.5, 0.5], [0, 1])}}}, "does not rise"),
        ({"calibration": {"method": "isotonic", "curves": {"yes": curve([0.1, 0.5], [1, 0])}}}, "does not rise"),
        ({"rule": "coin"}, "'coin'"),
        ({"fitted": ["yes"]}, "list"),
    ],
)
def test_a_card_that_cannot_be_used_says_why(change: dict[str, Any], match: str) -> None:
    wrong = card(BINARY)
    wrong["decision"] |= change
    with pytest.raises(RunError, match=match):
        Decision.from_card(wrong)


def test_scores_of_another_network_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1 outputs \(yes\); scores have shape \(3, 2\)"):
        BINARY.calibrated(np.ones((3, 2)))


def other(threshold: float, calibration: dict[str, Any]) -> Decision:
    return Decision(**NAMING["binary"], rule="youden", thresholds={"yes": threshold}, calibration=calibration)


def test_members_together_have_the_mean_threshold_and_each_its_own_calibration() -> None:
    second = other(0.7, {"method": "none"})
    both = combine([BINARY, second])
    assert both is not None
    assert both.thresholds == {"yes": 0.5}
    scores = np.array([[[0.9], [0.1]], [[0.5], [0.4]]])  # (members, studies, outputs)
    expected = (link(inverse_link(scores[0], "binary") / 2, "binary") + scores[1]) / 2
    np.testing.assert_allclose(both.calibrated(scores), expected)
    columns = both.columns(scores.mean(0), members=[(one, None) for one in scores])
    assert columns["called"] == ["yes", "no"]
    np.testing.assert_allclose(columns["calibrated_yes"], expected[:, 0])
    assert list(both.columns(scores.mean(0))) == ["called"]
    # Where every member stands on its own threshold, so does the ensemble.
    assert both.called([[np.mean([0.3, 0.7])]]).item() == 1
    with pytest.raises(ConfigError, match="2 members"):
        both.calibrated(scores[:1])
    assert "the mean of the thresholds of 2 members" in both.describe()[0]
    assert "(1 of 2)" in both.describe()[1]


def test_a_row_of_a_study_is_that_of_the_table() -> None:
    first, second = (StudyScore(np.array([p]), inverse_link(np.array([p]), "binary"), 3) for p in (0.9, 0.5))
    assert BINARY.row(first) == {name: own[0] for name, own in BINARY.columns(np.array([[0.9]])).items()}
    both = combine([BINARY, other(0.7, {"method": "none"})])
    assert both is not None
    mean = StudyScore(np.array([0.7]), inverse_link(np.array([0.7]), "binary"), 3, None, (first, second))
    assert both.row(mean) == {"called": "yes", "calibrated_yes": pytest.approx((0.75 + 0.5) / 2)}


def test_members_that_lack_a_decision_or_answer_something_else() -> None:
    assert combine([BINARY]) is BINARY
    assert combine([BINARY, None]) is None
    with pytest.raises(ConfigError, match=r"binary task \(yes\), another a multilabel task \(a, b\)"):
        combine([BINARY, Decision(**NAMING["multilabel"])])
    with pytest.raises(ConfigError, match="no decision"):
        combine([])


def test_what_was_decided_is_said_in_sentences() -> None:
    assert BINARY.describe() == [
        "yes: called from 0.300 on (the highest that reaches sensitivity 0.9): sensitivity 0.91 and specificity 0.74 "
        "on 60 validation studies, 22 of them positive.",
        "yes: calibrated with temperature 2 on 60 validation studies.",
    ]


def test_decisions_need_neither_torch_nor_pandas() -> None:
    code = "import sys, volrec.inference.decision; print({'torch', 'pandas', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
