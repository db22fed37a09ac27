"""Scores of several runs as one: what is weighted, the rules of papers, and how a stored rule is applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.errors import ConfigError, RunError
from volrec.inference.consensus import inverse_link, link
from volrec.inference.joining import Joined
from volrec.inference.tables import logit_columns, score_columns

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "METHODS",
    "PRESETS",
    "STAGES",
    "Combination",
    "FusionRule",
    "Preset",
    "check_stage",
    "check_weights",
    "combine",
    "fused_table",
    "mean_over_folds",
    "stage_values",
    "svm_inputs",
]

STAGES = ("logits", "softmax", "relu-l1")
METHODS = ("weights", "svm", "learned")
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Preset:
    """How a paper fuses its two streams: weights of (intensity, flow), and the stage they are applied at."""

    weights: tuple[float, ...]
    stage: str
    paper: str


PRESETS: dict[str, Preset] = {
    "two-stream": Preset((1, 1), "softmax", "Simonyan and Zisserman 2014"),
    "lrcn": Preset((1, 2), "softmax", "Donahue et al. 2015"),
    "tsn": Preset((1, 1.5), "logits", "Wang et al. 2016"),
    "tsn-pami": Preset((1, 1), "logits", "Wang et al. 2018"),
    "actionvlad": Preset((1, 2), "logits", "Girdhar et al. 2017"),
    "i3d": Preset((1, 1), "logits", "Carreira and Zisserman 2017"),
    "hidden-two-stream": Preset((1, 1.5), "relu-l1", "Zhu et al. 2018"),
}
"""Rules of papers for two streams, intensity first."""


@dataclass(frozen=True, eq=False)
class Combination:
    """What one fold's scores are combined with.

    Attributes
    ----------
    weights : ndarray, optional
        (R,) one a run.
    coefficients, intercepts : ndarray, optional
        (K, F) and (K,) of a linear support vector machine on `svm_inputs`.
    """

    weights: np.ndarray | None = None
    coefficients: np.ndarray | None = None
    intercepts: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class FusionRule:
    """How the scores of runs become one.

    Attributes
    ----------
    task, targets, classes
        Of the fused scores, in the first run's order.
    runs : tuple of str
        Names of the runs; weights follow their order.
    names : tuple of str
        Names of the outputs in the order of coefficients (see `Joined`).
    stage : {"logits", "softmax", "relu-l1"}
        What is weighted.
    method : {"weights", "svm", "learned"}
        Where the weights come from.
    parts : mapping
        From fold to `Combination`; the key ``""`` stands for every fold.
    as_given : bool
        Logits are summed with the weights as they are; else weights are brought to a sum of one.
    """

    task: str
    targets: tuple[str, ...]
    classes: tuple[str, ...]
    runs: tuple[str, ...]
    names: tuple[str, ...]
    stage: str
    method: str
    parts: Mapping[str, Combination]
    as_given: bool = False

    @property
    def weights(self) -> np.ndarray | None:
        """(R,) weights as they are applied, the mean over folds where each has its own; None for an SVM."""
        found = [self.applied(part.weights) for part in self.parts.values() if part.weights is not None]
        return np.mean(found, axis=0) if found else None

    def applied(self, weights: np.ndarray) -> np.ndarray:
        """Return weights (R,) as they are applied: with a sum of one, unless they are to be used as given."""
        return weights if self.as_given else weights / weights.sum()


def check_weights(weights: Sequence[float], runs: Sequence[str]) -> np.ndarray:
    """Return weights as float64 (R,).

    Raises
    ------
    ConfigError
        Not one a run, a negative one, or none above zero.
    """
    found = np.asarray(list(weights), dtype=np.float64)
    if len(found) != len(runs):
        problem = f"the number of weights is {len(found)}, that of runs {len(runs)}."
        remedy = f"Give one a run, in this order: {', '.join(runs)}."
    elif not np.isfinite(found).all() or (found < 0).any() or not found.sum() > 0:
        problem = f"weights must be at least 0 and not all 0, got {', '.join(f'{weight:g}' for weight in found)}."
        remedy = "Leave a run out instead of subtracting it."
    else:
        return found
    raise ConfigError(problem, remedy=remedy, where="weights", code="fusion-weights")


def check_stage(joined: Joined, *, task: str, stage: str) -> None:
    """Make sure that scores can be fused at a stage.

    Raises
    ------
    ConfigError
        An unknown stage, or ``relu-l1`` for anything but exclusive classes.
    RunError
        ``relu-l1`` of a run with no logit above zero, such as one pooled at the stage probabilities.
    """
    if stage not in STAGES:
        raise ConfigError(
            f"the stage must be one of {', '.join(STAGES)}, got {stage!r}.", where="stage", code="fusion-stage"
        )
    if stage != "relu-l1":
        return
    if task != "multiclass":
        raise ConfigError(
            f"stage 'relu-l1' divides the positive logits of several classes by their sum; the task is {task}, with "
            "one logit an answer.",
            remedy="Choose stage softmax or logits.",
            where="stage",
            code="fusion-stage",
        )
    if joined.logits is None:
        return
    for name, logits in zip(joined.runs, joined.logits, strict=True):
        if len(logits) and (logits <= 0).all():
            raise RunError(
                f"no logit of {name} is above 0, so that ReLU leaves nothing: logits of a run pooled at the stage "
                "probabilities are logarithms of probabilities.",
                remedy="Choose stage softmax, or train with --set protocol.stage=logits.",
                code="fusion-stage",
            )


def stage_values(joined: Joined, stage: str) -> np.ndarray:
    """Return what is weighted, (R, N, K): scores, logits, or logits after ReLU divided by their sum over classes."""
    if stage == "softmax" or joined.logits is None:
        return joined.scores
    if stage == "logits":
        return joined.logits
    positive = np.maximum(joined.logits, 0.0)
    total = positive.sum(axis=-1, keepdims=True)
    return np.divide(positive, total, out=np.zeros_like(positive), where=total > 0)


def svm_inputs(scores: np.ndarray, task: str) -> np.ndarray:
    """Return what a linear SVM reads, (K, N, F): for each output the distributions of all runs, each of length one.

    Parameters
    ----------
    scores : ndarray
        (R, N, K) probabilities. A single probability p counts as the distribution (1 - p, p).
    task : str
        For multiclass F is R K and the same for every output, else F is 2 R.

    Returns
    -------
    ndarray
        Run after run: "a multi-class linear SVM on the stacked L2-normalised softmax scores" (Simonyan and Zisserman
        2014).
    """
    parts = scores[None] if task == "multiclass" else np.stack([1 - scores, scores], axis=-1).transpose(2, 0, 1, 3)
    unit = parts / np.linalg.norm(parts, axis=-1, keepdims=True)
    stacked = np.concatenate(list(unit.swapaxes(0, 1)), axis=-1)
    return np.broadcast_to(stacked, (scores.shape[-1], *stacked.shape[1:])) if task == "multiclass" else stacked


def combine(rule: FusionRule, joined: Joined) -> tuple[np.ndarray, np.ndarray]:
    """Return fused scores and logits, (N, K) each, in the order of ``joined.names``.

    The margins of an SVM take the place of logits: their order and their sign are right, but what sigmoid or softmax
    makes of them is no calibrated probability.

    Raises
    ------
    RunError
        A fold that the rule does not know.
    """
    shape = joined.scores.shape[1:]
    scores, logits = np.empty(shape), np.empty(shape)
    folds = joined.folds
    for fold in dict.fromkeys(folds.tolist()):
        chosen = folds == fold
        part = rule.parts.get(fold, rule.parts.get(""))
        if part is None:
            raise RunError(
                f"nothing was fitted for {fold or 'scores without folds'}; the rule knows {', '.join(rule.parts)}.",
                remedy="Fuse the runs again.",
                code="other-splits",
            )
        scores[chosen], logits[chosen] = _combined(rule, part, joined.rows(chosen))
    return scores, logits


def fused_table(rule: FusionRule, joined: Joined) -> pd.DataFrame:
    """Return a score table of fused studies: the keys, then scores and logits in the rule's order of classes."""
    scores, logits = combine(rule, joined)
    names = rule.classes if rule.task == "multiclass" else rule.targets
    places = [0] if rule.task == "binary" else [joined.names.index(name) for name in names]
    naming: dict[str, Any] = {"classes": rule.classes, "targets": rule.targets}
    table = joined.keys.copy()
    for columns, values in ((score_columns, scores), (logit_columns, logits)):
        for place, column in zip(places, columns(rule.task, **naming), strict=False):  # no logits of regressions
            table[column] = values[:, place]
    return table


def mean_over_folds(rule: FusionRule, table: pd.DataFrame) -> pd.DataFrame:
    """Average the fused scores that the folds give a study, as the members of a run are averaged."""
    import pandas as pd

    naming: dict[str, Any] = {"classes": rule.classes, "targets": rule.targets}
    scores, logits = (columns(rule.task, **naming) for columns in (score_columns, logit_columns))
    mean = table.groupby("study", sort=False)[scores].mean()
    if logits:
        mean[logits] = inverse_link(mean[scores].to_numpy(), rule.task)
    facts = table.drop(columns=["fold", *scores, *logits]).drop_duplicates("study").set_index("study")
    return pd.concat([facts, mean], axis=1).reset_index()


def _combined(rule: FusionRule, part: Combination, joined: Joined) -> tuple[np.ndarray, np.ndarray]:
    if part.coefficients is not None and part.intercepts is not None:
        inputs = svm_inputs(joined.scores, rule.task)
        margins = np.einsum("knf,kf->nk", inputs, part.coefficients) + part.intercepts
        return link(margins, rule.task), margins
    weights = rule.applied(np.ones(len(rule.runs)) if part.weights is None else part.weights)
    weighted = np.einsum("r,rnk->nk", weights, stage_values(joined, rule.stage))
    if rule.task == "regression":
        return weighted, weighted
    if rule.stage == "logits":
        return link(weighted, rule.task), weighted
    if rule.task == "multiclass":
        # A study in which no run has a positive logit says nothing of any class.
        silent = weighted.sum(axis=-1) <= TINY
        weighted[silent] = 1.0
        weighted = weighted / weighted.sum(axis=-1, keepdims=True)
    return weighted, inverse_link(weighted, rule.task)
