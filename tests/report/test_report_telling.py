"""Which studies the report shows: those that cost most, those in doubt, those that went well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from volrec.report.findings import Findings
from volrec.report.telling import KINDS, outputs, telling_studies
from volrec.runs import RunFolder


def findings(task: str, truth: Any, predicted: Any, **names: Any) -> Findings:
    truth, predicted = np.asarray(truth, float), np.asarray(predicted, float)
    truth = truth[:, None] if truth.ndim == 1 else truth
    predicted = predicted[:, None] if predicted.ndim == 1 else predicted
    table = pd.DataFrame({"study": [f"s{number}" for number in range(len(truth))]})
    folds = np.full(len(truth), "all")
    return Findings(
        RunFolder(Path("nowhere")), task=task, scores=table, truth=truth, predicted=predicted, folds=folds, **names
    )


BINARY = {"targets": ["label"], "classes": ["benign", "malignant"]}


def test_the_worst_is_the_surest_mistake_and_the_most_uncertain_is_nearest_to_a_half() -> None:
    found = findings("binary", [1, 0, 1, 0, 1, 0], [0.02, 0.9, 0.52, 0.03, 0.98, 0.3], **BINARY)
    chosen = {kind: [one.study for one in telling_studies(found, 1) if one.kind == kind] for kind in KINDS}
    assert chosen == {"worst": ["s0"], "most uncertain": ["s2"], "best": ["s4"]}


def test_the_best_are_of_both_classes() -> None:
    found = findings("binary", [1, 1, 1, 0, 0, 0, 1, 0], [0.99, 0.98, 0.97, 0.2, 0.3, 0.4, 0.5, 0.55], **BINARY)
    best = [one.study for one in telling_studies(found, 2) if one.kind == "best"]
    assert best == ["s0", "s3"]


def test_facts_name_label_and_score() -> None:
    found = findings("binary", [1, 0, 1], [0.2, 0.1, 0.9], **BINARY)
    worst = telling_studies(found, 1)[0]
    assert worst.facts == (("label", "malignant"), ("score of malignant", "0.200"))
    assert (worst.output, worst.index, worst.member) == ("malignant", 0, "all")


def test_of_several_classes_the_called_one_is_explained() -> None:
    names: dict[str, Any] = {"targets": ["organ"], "classes": ["a", "b", "c"]}
    scores = [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]]
    found = findings("multiclass", [1, 2, 0], scores, **names)
    chosen = {one.kind: one for one in telling_studies(found, 1)}
    assert chosen["worst"].output == "a"
    assert chosen["most uncertain"].study == "s2"
    assert chosen["best"].study == "s1"


def test_quantities_have_no_doubt_and_their_cost_is_the_error_in_standard_deviations() -> None:
    truth = np.array([[0.0, 0.0], [1.0, 100.0], [2.0, 200.0]])
    predicted = truth + np.array([[0.5, 0.0], [0.0, 10.0], [0.0, 0.0]])
    found = findings("regression", truth, predicted, targets=["x", "y"], classes=[])
    assert [(one.kind, one.study) for one in telling_studies(found, 1)] == [("worst", "s0"), ("best", "s2")]


def test_studies_without_a_label_are_not_judged() -> None:
    found = findings("binary", [np.nan, 0, 1, 1], [0.5, 0.1, 0.9, 0.8], **BINARY)
    assert "s0" not in {one.study for one in telling_studies(found, 3)}


def test_labels_that_are_unknown_do_not_count() -> None:
    truth = [[1, np.nan], [0, 1], [0, 0]]
    predicted = [[0.9, 0.01], [0.1, 0.05], [0.2, 0.2]]
    found = findings("multilabel", truth, predicted, targets=["x", "y"], classes=[])
    worst = telling_studies(found, 1)[0]
    assert (worst.study, worst.output) == ("s1", "y")
    assert worst.facts[1] == ("y", "present, score 0.050")


@pytest.mark.parametrize("each", [0, -1])
def test_none_are_chosen_where_none_are_asked_for(each: int) -> None:
    assert telling_studies(findings("binary", [1, 0], [0.2, 0.3], **BINARY), each) == []


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0.001, 0.999)), min_size=1, max_size=40), st.integers(1, 5))
def test_no_study_is_shown_twice_and_the_worst_costs_most(pairs: list[tuple[int, float]], each: int) -> None:
    truth, scores = (np.array(column, float) for column in zip(*pairs, strict=True))
    found = findings("binary", truth, scores, **BINARY)
    chosen = telling_studies(found, each)
    studies = [one.study for one in chosen]
    assert len(set(studies)) == len(studies) <= 3 * each
    cost = [log_loss([label], [score], labels=[0, 1]) for label, score in zip(truth, scores, strict=True)]
    assert cost[int(chosen[0].study[1:])] == pytest.approx(max(cost))


def test_outputs_of_heads_carry_the_target() -> None:
    found = findings(
        "multihead",
        [[0, 1]],
        [[0.6, 0.4, 0.1, 0.9]],
        targets=["side", "organ"],
        classes=["side=l", "side=r", "organ=x", "organ=y"],
    )
    assert outputs(found) == ["side l", "side r", "organ x", "organ y"]
