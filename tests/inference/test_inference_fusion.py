"""Scores of runs joined by name and combined: against numpy by hand, whatever the order of classes and studies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from volrec.errors import ConfigError, RunError
from volrec.inference.fusion import (
    PRESETS,
    Combination,
    FusionRule,
    check_stage,
    check_weights,
    combine,
    fused_table,
    mean_over_folds,
    stage_values,
    svm_inputs,
)
from volrec.inference.joining import RunTable, join_tables

ACTIONS = ("climb", "climb_stairs", "kick", "kick_ball", "sword", "sword_exercise")
SWAPPED = ("climb_stairs", "climb", "kick_ball", "kick", "sword_exercise", "sword")


def actions(name: str, logits: np.ndarray, *, classes: tuple[str, ...] = ACTIONS, fold: Any = None) -> RunTable:
    """Make the scores of a run: `logits` (N, K) in the order of `classes`."""
    scores = softmax(logits, axis=1)
    table = pd.DataFrame({"study": [f"v{n}" for n in range(len(logits))], "patient": "p"})
    if fold is not None:
        table["fold"] = fold
    table["action"] = [ACTIONS[n % len(ACTIONS)] for n in range(len(logits))]
    for place, label in enumerate(classes):
        table[f"score_{label}"], table[f"logit_{label}"] = scores[:, place], logits[:, place]
    return RunTable(name, table, "multiclass", ("action",), classes)


def yes_or_no(name: str, logits: np.ndarray, classes: tuple[str, str] = ("no", "yes")) -> RunTable:
    table = pd.DataFrame({"study": [f"s{n}" for n in range(len(logits))]})
    table[f"score_{classes[1]}"], table[f"logit_{classes[1]}"] = expit(logits), logits
    return RunTable(name, table, "binary", ("bleed",), classes)


def rule_of(runs: list[RunTable], weights: Any, **options: Any) -> FusionRule:
    first, joined = runs[0], join_tables(runs, logits=True)
    parts = {"": Combination(weights=check_weights(weights, joined.runs))}
    naming: dict[str, Any] = {"task": first.task, "targets": first.targets, "classes": first.classes}
    given: dict[str, Any] = {"stage": "softmax", "method": "weights", "parts": parts, **options}
    return FusionRule(**naming, runs=joined.runs, names=joined.names, **given)


def fused(runs: list[RunTable], weights: Any = (1, 1), **options: Any) -> pd.DataFrame:
    return fused_table(rule_of(runs, weights, **options), join_tables(runs, logits=True))


def scores_of(table: pd.DataFrame, classes: tuple[str, ...] = ACTIONS, kind: str = "score") -> np.ndarray:
    return table[[f"{kind}_{name}" for name in classes]].to_numpy()


def two(studies: int = 7, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(seed).normal(1, 2, (2, studies, len(ACTIONS)))
    return drawn[0], drawn[1]


def test_each_stage_is_what_numpy_gives_by_hand() -> None:
    a, b = two()
    runs = [actions("a", a), actions("b", b)]
    np.testing.assert_allclose(
        scores_of(fused(runs, (1, 2))), (softmax(a, axis=1) + 2 * softmax(b, axis=1)) / 3, rtol=1e-12
    )
    logits = fused(runs, (1, 1.5), stage="logits")
    np.testing.assert_allclose(scores_of(logits, kind="logit"), (a + 1.5 * b) / 2.5, rtol=1e-12)
    np.testing.assert_allclose(scores_of(logits), softmax((a + 1.5 * b) / 2.5, axis=1), rtol=1e-12)
    as_given = fused(runs, (1, 1.5), stage="logits", as_given=True)
    np.testing.assert_allclose(scores_of(as_given), softmax(a + 1.5 * b, axis=1), rtol=1e-12)
    up, down = np.maximum(a, 0), np.maximum(b, 0)
    expected = up / up.sum(1, keepdims=True) + 1.5 * down / down.sum(1, keepdims=True)
    np.testing.assert_allclose(scores_of(fused(runs, (1, 1.5), stage="relu-l1")), expected / 2.5, rtol=1e-12)


def test_stages_rank_differently() -> None:
    # One run is very sure of kick, the other a little surer of climb: probabilities cap what the first may say.
    a, b = np.full((1, 6), -4.0), np.full((1, 6), -4.0)
    a[0, 2], a[0, 0] = 12.0, 0.0
    b[0, 0], b[0, 2] = 6.0, 1.0
    runs = [actions("a", a), actions("b", b)]
    leading = {
        stage: ACTIONS[scores_of(fused(runs, (1, 1.2), stage=stage)).argmax()]
        for stage in ("logits", "softmax", "relu-l1")
    }
    assert leading == {"logits": "kick", "softmax": "climb", "relu-l1": "kick"}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), stage=st.sampled_from(["logits", "softmax", "relu-l1"]), seed=st.integers(0, 99))
def test_the_order_of_classes_and_studies_changes_nothing(data: st.DataObject, stage: str, seed: int) -> None:
    a, b = two(seed=seed)
    runs = [actions("a", a), actions("b", b)]
    plain = fused(runs, (1, 1.5), stage=stage)
    moved = data.draw(st.integers(0, 1))
    classes = tuple(data.draw(st.permutations(ACTIONS)))
    order = data.draw(st.permutations(range(len(a))))
    one = runs[moved]
    table = actions(one.name, (a, b)[moved][:, [ACTIONS.index(name) for name in classes]], classes=classes).table
    runs[moved] = replace(one, table=table.iloc[list(order)].reset_index(drop=True), classes=classes)
    again = fused(runs, (1, 1.5), stage=stage)
    pd.testing.assert_frame_equal(again[list(plain.columns)], plain, check_exact=False, rtol=1e-12)


def test_class_pairs_in_the_other_order_cost_nothing_though_adding_columns_would() -> None:
    rng = np.random.default_rng(3)
    truth = np.arange(120) % 6
    noisy = [2.0 * np.eye(6)[truth] + rng.normal(0, 1, (120, 6)) for _ in range(2)]
    swap = [ACTIONS.index(name) for name in SWAPPED]
    together = fused([actions("a", noisy[0]), actions("b", noisy[1])])
    swapped = fused([actions("a", noisy[0]), actions("b", noisy[1][:, swap], classes=SWAPPED)])
    pd.testing.assert_frame_equal(swapped, together)
    by_place = softmax(noisy[0], axis=1) + softmax(noisy[1][:, swap], axis=1)
    order = [int(study[1:]) for study in together["study"]]
    right = (scores_of(together).argmax(1) == truth[order]).mean()
    assert (by_place.argmax(1) == truth).mean() < right - 0.1


def test_classes_are_given_in_the_order_of_the_first_run() -> None:
    a, b = two()
    table = fused([actions("a", a, classes=SWAPPED), actions("b", b)])
    names = [column for column in table if column.startswith("score_")]
    assert names == [f"score_{name}" for name in SWAPPED]
    assert list(table.columns[:3]) == ["study", "patient", "action"]


def test_a_binary_run_with_its_classes_turned_is_turned_back() -> None:
    a, b = np.array([-2.0, 0.5, 3.0]), np.array([1.0, -0.5, 0.25])
    for stage in ("softmax", "logits"):
        straight = fused([yes_or_no("a", a), yes_or_no("b", b)], stage=stage)
        turned = fused([yes_or_no("a", a), yes_or_no("b", -b, ("yes", "no"))], stage=stage)
        pd.testing.assert_frame_equal(turned, straight, check_exact=False, rtol=1e-12)
    np.testing.assert_allclose(straight["score_yes"], expit((a + b) / 2))


def test_labels_and_quantities_are_joined_by_target() -> None:
    def make(name: str, task: str, targets: tuple[str, ...], values: np.ndarray) -> RunTable:
        table = pd.DataFrame({"study": ["x", "y"]})
        for place, target in enumerate(targets):
            table[f"score_{target}"] = values[:, place]
            if task == "multilabel":
                table[f"logit_{target}"] = np.log(values[:, place] / (1 - values[:, place]))
        return RunTable(name, table, task, targets, targets if task == "multilabel" else ())

    one, other = np.array([[0.2, 0.6], [0.9, 0.1]]), np.array([[0.4, 0.8], [0.3, 0.5]])
    for task in ("multilabel", "regression"):
        table = fused([make("a", task, ("age", "volume"), one), make("b", task, ("volume", "age"), other)], (3, 1))
        np.testing.assert_allclose(table[["score_age", "score_volume"]], (3 * one + other[:, ::-1]) / 4)
        assert ("logit_age" in table) == (task == "multilabel")


def test_a_study_without_a_positive_logit_is_as_likely_of_each_class() -> None:
    logits = np.array([[-1.0, -2, -3, -4, -5, -6], [1.0, 3, 0, 0, 0, 0]])
    table = fused([actions("a", logits), actions("b", logits)], stage="relu-l1")
    np.testing.assert_allclose(scores_of(table), [[1 / 6] * 6, [0.25, 0.75, 0, 0, 0, 0]])


def test_logits_of_pooled_probabilities_cannot_pass_relu() -> None:
    a, b = two()
    runs = [actions("a", a), actions("b", np.log(softmax(b, axis=1)))]
    joined = join_tables(runs, logits=True)
    with pytest.raises(RunError, match=r"no logit of b is above 0.*protocol\.stage=logits"):
        check_stage(joined, task="multiclass", stage="relu-l1")
    check_stage(joined, task="multiclass", stage="logits")
    with pytest.raises(ConfigError, match="the task is binary"):
        check_stage(joined, task="binary", stage="relu-l1")
    with pytest.raises(ConfigError, match="must be one of logits, softmax, relu-l1"):
        check_stage(joined, task="binary", stage="sigmoid")


def test_presets_are_the_published_rules() -> None:
    found = {name: (*preset.weights, preset.stage) for name, preset in PRESETS.items()}
    assert found == {
        "two-stream": (1, 1, "softmax"),
        "lrcn": (1, 2, "softmax"),
        "tsn": (1, 1.5, "logits"),
        "tsn-pami": (1, 1, "logits"),
        "actionvlad": (1, 2, "logits"),
        "i3d": (1, 1, "logits"),
        "hidden-two-stream": (1, 1.5, "relu-l1"),
    }


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1,), "number of weights is 1, that of runs 2.*in this order: a, b"),
        ((1, -1), "must be at least 0"),
        ((0, 0), "not all 0"),
        ((1, np.nan), "got 1, nan"),
    ],
)
def test_weights_that_cannot_be_used_are_named(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_weights(weights, ("a", "b"))


@pytest.mark.parametrize("turned", [False, True])
def test_what_one_run_lacks_is_named_with_the_run(turned: bool) -> None:
    a, b = two()
    whole = actions("whole", a)

    def refused(part: RunTable, message: str, **options: Any) -> None:
        pair = [part, whole] if turned else [whole, part]
        with pytest.raises(RunError, match=message):
            join_tables(pair, logits=options.get("logits", True))

    part = actions("part", b)
    refused(replace(part, table=part.table.drop(index=[2, 4])), "part has no score of study v2, v4, which whole has")
    refused(replace(part, classes=ACTIONS[:-1]), "part has no class sword_exercise, which whole has")
    refused(replace(part, targets=("kind",)), "part has no target action, which whole|whole has no target kind")
    refused(replace(part, task="multilabel"), "task of (part|whole) is multi(label|class), that of")
    refused(replace(part, table=part.table.drop(columns="score_kick")), "scores of part lack score_kick")
    refused(replace(part, table=pd.concat([part.table, part.table.iloc[[3]]])), "part scores study v3 twice")
    refused(replace(part, table=part.table.assign(action="kick")), "study v0: action is (climb|kick) in")
    gap = part.table.copy()
    gap.loc[5, "score_climb"] = np.nan
    refused(replace(part, table=gap), "part has a score of study v5 that is no number")
    refused(actions("part", b, fold="fold-1"), "divided differently: their folds are (none|fold-1) and")


def test_tables_without_logits_still_fuse_probabilities() -> None:
    a, b = two()
    old = actions("old", b)
    old = replace(old, table=old.table[[c for c in old.table if not c.startswith("logit_")]])
    with pytest.raises(RunError, match=r"scores of old have no logits.*stage softmax, or train that run again"):
        join_tables([actions("a", a), old], logits=True)
    joined = join_tables([actions("a", a), old], logits=False)
    rule = rule_of([actions("a", a), actions("old", b)], (1, 1))
    np.testing.assert_allclose(combine(rule, joined)[0], (softmax(a, axis=1) + softmax(b, axis=1)) / 2)


def test_a_label_that_one_run_knows_is_kept() -> None:
    a, b = two()
    first, second = actions("a", a), actions("b", b)
    first.table.loc[2, "action"] = None
    assert join_tables([first, second], logits=True).keys["action"].tolist() == second.table["action"].tolist()


def test_folds_have_rules_of_their_own_and_are_averaged_for_new_studies() -> None:
    a, b = two(4)
    folds = ["fold-0", "fold-1"] * 2
    runs = [actions("a", a, fold=folds), actions("b", b, fold=folds)]
    for run in runs:  # two members, each of which scores both studies
        run.table["study"] = ["x", "x", "y", "y"]
        run.table["action"] = "kick"
    parts = {"fold-0": Combination(weights=np.array([1.0, 0])), "fold-1": Combination(weights=np.array([0, 1.0]))}
    rule = rule_of(runs, (1, 1), method="learned", parts=parts)
    joined = join_tables(runs, logits=True)
    table = fused_table(rule, joined)
    assert table[["fold", "study"]].to_numpy().tolist() == [
        ["fold-0", "x"], ["fold-0", "y"], ["fold-1", "x"], ["fold-1", "y"],
    ]  # fmt: skip
    p, q = softmax(a, axis=1), softmax(b, axis=1)
    np.testing.assert_allclose(scores_of(table), [p[0], p[2], q[1], q[3]])
    mean = mean_over_folds(rule, table)
    assert mean["study"].tolist() == ["x", "y"]
    np.testing.assert_allclose(scores_of(mean), [(p[0] + q[1]) / 2, (p[2] + q[3]) / 2])
    np.testing.assert_allclose(np.exp(scores_of(mean, kind="logit")), scores_of(mean))
    np.testing.assert_allclose(rule.weights, [0.5, 0.5])
    with pytest.raises(RunError, match="nothing was fitted for fold-1; the rule knows fold-0"):
        combine(replace(rule, parts={"fold-0": parts["fold-0"]}), joined)


def test_what_an_svm_reads_are_distributions_of_length_one() -> None:
    a, b = two()
    scores = np.stack([softmax(a, axis=1), softmax(b, axis=1)])
    inputs = svm_inputs(scores, "multiclass")
    assert inputs.shape == (6, 7, 12)
    for run in range(2):
        expected = scores[run] / np.sqrt((scores[run] ** 2).sum(1, keepdims=True))
        for output in inputs:
            np.testing.assert_allclose(output[:, 6 * run : 6 * run + 6], expected)
    chances = np.array([[[0.3, 0.5]], [[0.9, 0.0]]])  # two runs, one study, two labels
    inputs = svm_inputs(chances, "multilabel")
    assert inputs.shape == (2, 1, 4)
    np.testing.assert_allclose(inputs[0, 0], [*np.array([0.7, 0.3]) / np.hypot(0.7, 0.3),
                                              *np.array([0.1, 0.9]) / np.hypot(0.1, 0.9)])  # fmt: skip
    np.testing.assert_allclose(inputs[1, 0], [np.sqrt(0.5), np.sqrt(0.5), 1, 0])


def test_values_at_a_stage_keep_their_shape() -> None:
    a, b = two()
    joined = join_tables([actions("a", a), actions("b", b)], logits=True)
    for stage in ("logits", "softmax", "relu-l1"):
        assert stage_values(joined, stage).shape == (2, 7, 6)
    np.testing.assert_allclose(stage_values(joined, "relu-l1").sum(-1), 1)
