"""Rules fitted on validation scores: against a grid of weights, and against scikit-learn by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax
from sklearn.svm import LinearSVC

from volrec.errors import ConfigError
from volrec.evaluation.fitting import SVM_C, fit_rule
from volrec.inference.fusion import combine
from volrec.inference.joining import Joined, RunTable, join_tables

CLASSES = ("kick", "kick_ball", "sword")
NAMING: dict[str, Any] = {"task": "multiclass", "targets": ("action",), "classes": CLASSES}


def runs(count: int = 90, *, seed: int = 0, noise: tuple[float, ...] = (1.0, 2.0)) -> tuple[list[RunTable], np.ndarray]:
    """Make runs that see the truth through noise; return them with the class index (N,)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    made = []
    for name, sigma in zip("abc", noise, strict=False):
        logits = 2 * np.eye(3)[truth] + rng.normal(0, sigma, (count, 3))
        table = pd.DataFrame({"study": [f"v{n:03d}" for n in range(count)]})
        table["action"] = [CLASSES[label] for label in truth]
        for place, label in enumerate(CLASSES):
            table[f"score_{label}"] = softmax(logits, axis=1)[:, place]
            table[f"logit_{label}"] = logits[:, place]
        made.append(RunTable(name, table, classes=CLASSES, targets=("action",), task="multiclass"))
    return made, truth


def fit(joined: Joined | None, **options: Any) -> Any:
    named = {"runs": ("a", "b")} if joined is None else {"runs": joined.runs}
    names = CLASSES if joined is None else joined.names
    return fit_rule(joined, **{**NAMING, **named, "names": names, **options})


def log_loss(values: np.ndarray, truth: np.ndarray) -> float:
    return float(-np.log(values[np.arange(len(truth)), truth]).mean())


@pytest.mark.parametrize("stage", ["softmax", "logits"])
def test_learned_weights_are_those_of_a_fine_grid(stage: str) -> None:
    made, truth = runs()
    joined = join_tables(made, logits=True)
    values = joined.scores if stage == "softmax" else joined.logits
    assert values is not None
    grid = np.linspace(0, 1, 2001)
    mixed = [share * values[0] + (1 - share) * values[1] for share in grid]
    losses = [log_loss(one if stage == "softmax" else softmax(one, axis=1), truth) for one in mixed]
    rule = fit(joined, method="learned", stage=stage)
    assert rule.weights[0] == pytest.approx(grid[np.argmin(losses)], abs=1e-3)
    assert 0.5 < rule.weights[0] < 1
    assert rule.weights.sum() == pytest.approx(1, abs=1e-12)


def test_a_run_of_noise_gets_no_weight() -> None:
    made, _ = runs(noise=(0.5, 60.0))
    np.testing.assert_allclose(fit(join_tables(made, logits=True), method="learned").weights, [1, 0], atol=1e-2)


def test_three_runs_lie_on_the_simplex_and_beat_equal_weights_on_validation() -> None:
    made, truth = runs(noise=(1.0, 2.0, 3.0))
    joined = join_tables(made, logits=True)
    for stage in ("softmax", "logits"):
        learned, equal = (fit(joined, method=method, stage=stage) for method in ("learned", "weights"))
        assert (learned.weights >= 0).all() and learned.weights.sum() == pytest.approx(1)
        assert learned.weights[0] > learned.weights[2]
        assert log_loss(combine(learned, joined)[0], truth) < log_loss(combine(equal, joined)[0], truth)


def test_the_svm_is_scikit_learns_on_stacked_unit_scores() -> None:
    made, truth = runs()
    joined = join_tables(made, logits=False)
    rule = fit(joined, method="svm")
    stacked = np.concatenate([one / np.sqrt((one**2).sum(1, keepdims=True)) for one in joined.scores], axis=1)
    machine = LinearSVC(C=SVM_C, dual=False, tol=1e-8, max_iter=10_000).fit(stacked, truth)
    scores, margins = combine(rule, joined)
    np.testing.assert_allclose(margins, machine.decision_function(stacked), atol=1e-6)
    np.testing.assert_array_equal(scores.argmax(1), machine.predict(stacked))
    np.testing.assert_allclose(scores, softmax(margins, axis=1))
    assert rule.weights is None


def test_the_svm_of_a_binary_task_keeps_its_threshold() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 60)
    made = []
    for name in "ab":
        logits = 2.0 * truth - 1 + rng.normal(0, 1, 60)
        table = pd.DataFrame({"study": [f"s{n:02d}" for n in range(60)], "bleed": truth, "score_1": expit(logits)})
        made.append(RunTable(name, table, "binary", ("bleed",), ("0", "1")))
    joined = join_tables(made, logits=False)
    naming: dict[str, Any] = {"task": "binary", "targets": ("bleed",), "classes": ("0", "1")}
    rule = fit_rule(joined, **naming, runs=joined.runs, names=joined.names, method="svm")
    scores, margins = combine(rule, joined)
    np.testing.assert_array_equal(scores > 0.5, margins > 0)
    assert ((scores[:, 0] > 0.5) == truth).mean() > 0.85
    learned = fit_rule(joined, **naming, runs=joined.runs, names=joined.names, method="learned")
    grid = np.linspace(0, 1, 2001)
    chances = [share * joined.scores[0] + (1 - share) * joined.scores[1] for share in grid]
    losses = [-(truth * np.log(p[:, 0]) + (1 - truth) * np.log(1 - p[:, 0])).mean() for p in chances]
    assert learned.weights is not None
    assert learned.weights[0] == pytest.approx(grid[np.argmin(losses)], abs=1e-3)


def test_labels_that_are_not_known_are_left_out() -> None:
    made, truth = runs()
    gone = np.arange(len(truth)) % 4 == 0
    some = [RunTable(run.name, run.table.copy(), *(run.task, run.targets, run.classes)) for run in made]
    few = [RunTable(run.name, run.table[~gone], run.task, run.targets, run.classes) for run in made]
    for run in some:
        run.table.loc[gone, "action"] = None
    for method in ("learned", "svm"):
        one, other = (fit(join_tables(each, logits=True), method=method).parts[""] for each in (some, few))
        for key in ("weights", "coefficients", "intercepts"):
            if getattr(one, key) is not None:
                np.testing.assert_allclose(getattr(one, key), getattr(other, key), atol=1e-9)


def test_labels_of_several_are_fitted_one_by_one() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 2, (60, 2)).astype(float)
    truth[:9, 1] = np.nan
    made = []
    for name in "ab":
        chances = expit(3 * np.nan_to_num(truth) - 1.5 + rng.normal(0, 1, (60, 2)))
        table = pd.DataFrame({"study": [f"s{n:02d}" for n in range(60)]})
        for place, target in enumerate(("x", "y")):
            table[target], table[f"score_{target}"] = truth[:, place], chances[:, place]
        made.append(RunTable(name, table, "multilabel", ("x", "y"), ("x", "y")))
    joined = join_tables(made, logits=False)
    naming: dict[str, Any] = {"task": "multilabel", "targets": ("x", "y"), "classes": ("x", "y")}
    rule = fit_rule(joined, **naming, runs=joined.runs, names=joined.names, method="svm")
    assert rule.parts[""].coefficients is not None
    assert rule.parts[""].coefficients.shape == (2, 4)
    scores, _ = combine(rule, joined)
    known = np.isfinite(truth)
    assert ((scores > 0.5) == truth)[known].mean() > 0.85
    learned = fit_rule(joined, **naming, runs=joined.runs, names=joined.names, method="learned")
    grid = np.linspace(0, 1, 1001)
    mixed = [share * joined.scores[0] + (1 - share) * joined.scores[1] for share in grid]
    losses = [-np.log(np.where(truth == 1, p, 1 - p)[known]).mean() for p in mixed]
    assert learned.weights is not None
    assert learned.weights[0] == pytest.approx(grid[np.argmin(losses)], abs=2e-3)


def test_each_fold_is_fitted_on_its_own_studies() -> None:
    first, _ = runs(60, seed=1)
    second, _ = runs(60, seed=2, noise=(3.0, 0.7))
    both = []
    for one, other in zip(first, second, strict=True):
        table = pd.concat([one.table.assign(fold="fold-0"), other.table.assign(fold="fold-1")], ignore_index=True)
        both.append(RunTable(one.name, table, one.task, one.targets, one.classes))
    rule = fit(join_tables(both, logits=True), method="learned")
    for fold, alone in (("fold-0", first), ("fold-1", second)):
        expected = fit(join_tables(alone, logits=True), method="learned").parts[""].weights
        np.testing.assert_allclose(rule.parts[fold].weights, expected, atol=1e-9)
    assert rule.parts["fold-0"].weights[0] > 0.5 > rule.parts["fold-1"].weights[0]


def test_what_cannot_be_fitted_is_said() -> None:
    made, truth = runs()
    joined = join_tables(made, logits=True)
    with pytest.raises(ConfigError, match="'svm' is fitted on validation studies, and the runs have none"):
        fit(None, method="svm")
    with pytest.raises(ConfigError, match="'learned' needs classes; the targets are quantities"):
        fit(joined, method="learned", task="regression")
    with pytest.raises(ConfigError, match="no validation study is of class sword"):
        fit(joined.rows(truth != 2), method="svm")
    for run in made:
        run.table["action"] = None
    for method in ("svm", "learned"):
        with pytest.raises(ConfigError, match="no validation study has a label"):
            fit(join_tables(made, logits=True), method=method)
    assert fit(None, weights=(1, 3)).weights.tolist() == [0.25, 0.75]
