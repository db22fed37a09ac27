"""Which studies a person should look at: those called best, those called worst, and those in doubt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from volrec.report.findings import Findings

__all__ = ["KINDS", "Telling", "outputs", "telling_studies"]

Kind = Literal["best", "worst", "most uncertain"]
KINDS: tuple[Kind, ...] = ("worst", "most uncertain", "best")
"""In the order of the report: what may be wrong first."""


@dataclass(frozen=True)
class Telling:
    """A study that is shown, and why.

    Attributes
    ----------
    study : str
        Its name.
    kind : str
        One of `KINDS`.
    member : str
        The member that tested it; ``"all"`` where there is one.
    output : str
        The output that is explained: the class that was called, a label, or a quantity.
    index : int
        Its place among the outputs.
    facts : tuple of (str, str)
        What is told beside the picture, such as the label and the score.
    """

    study: str
    kind: Kind
    member: str
    output: str
    index: int
    facts: tuple[tuple[str, str], ...]


def telling_studies(found: Findings, each: int) -> list[Telling]:
    """Choose the studies of a run that tell most about it.

    Best and worst go by what a study costs: the log loss of its true label (the mean over labels or heads), or the
    absolute error (over the standard deviation of each quantity). The best of several classes are taken in turn, so
    that not all of them are of the easiest one. The most uncertain are those that the network itself is least sure of:
    the highest entropy of its scores. There are none for quantities, whose scores say nothing of their doubt. No study
    is shown twice.

    Parameters
    ----------
    found : Findings
        A run with scores.
    each : int
        Studies of each kind at most; with few studies each kind gets a third.

    Returns
    -------
    list of Telling
        Kind by kind, each from the most telling on.
    """
    if found.scores is None or not len(found.scores) or each < 1:
        return []
    studies = found.scores["study"].astype(str).to_numpy()
    cost = _cost(found)
    usable = np.flatnonzero(np.isfinite(cost))
    kinds = [kind for kind in KINDS if kind != "most uncertain" or found.task != "regression"]
    most = max(1, min(each, len(usable) // len(kinds)))
    taken: set[int] = set()
    chosen: list[Telling] = []
    orders = {
        "worst": usable[np.argsort(-cost[usable], kind="stable")],
        "best": _in_turn(usable[np.argsort(cost[usable], kind="stable")], _groups(found)),
    }
    if "most uncertain" in kinds:
        doubt = _doubt(found)
        orders["most uncertain"] = usable[np.argsort(-doubt[usable], kind="stable")]
    for kind in kinds:
        rows = [int(row) for row in orders[kind] if int(row) not in taken][:most]
        taken.update(rows)
        chosen += [_told(found, studies, row, kind) for row in rows]
    return chosen


def _told(found: Findings, studies: np.ndarray, row: int, kind: Kind) -> Telling:
    names = outputs(found)
    index = _called(found, row)
    return Telling(str(studies[row]), kind, str(found.folds[row]), names[index], index, tuple(_facts(found, row)))


def outputs(found: Findings) -> list[str]:
    """Return what each output of the network is called: the positive class, each class, or each target."""
    if found.task == "binary":
        return [str(found.classes[-1])]
    if found.task == "multihead":
        return [f"{view.targets[0]} {name}" for view in found.by_head for name in view.classes]
    return [str(name) for name in (found.classes if found.task == "multiclass" else found.targets)]


def _called(found: Findings, row: int) -> int:
    """Return the output that a person asks about: the class that was called, or the label that was most in doubt."""
    scores = found.predicted[row]
    if found.task in ("multiclass", "multihead"):
        return int(np.argmax(scores))
    if found.task == "multilabel":
        wrong = np.abs(scores - found.truth[row])
        return int(np.nanargmax(wrong)) if np.isfinite(wrong).any() else 0
    return 0


def _facts(found: Findings, row: int) -> list[tuple[str, str]]:
    truth, scores = found.truth[row], found.predicted[row]
    if found.task == "regression":
        pairs = zip(found.targets, truth, scores, strict=True)
        return [(name, f"true {true:.5g}, predicted {said:.5g}") for name, true, said in pairs]
    if found.task == "binary":
        label = found.classes[int(truth[0])] if np.isfinite(truth[0]) else "unknown"
        return [(found.targets[0], str(label)), (f"score of {found.classes[-1]}", f"{scores[0]:.3f}")]
    if found.task == "multilabel":
        return [
            (name, f"{_yes(true)}, score {said:.3f}")
            for name, true, said in zip(found.targets, truth, scores, strict=True)
        ]
    facts = []
    for view in found.by_head:
        own_truth, own = view.truth[row, 0], view.predicted[row]
        label = view.classes[int(own_truth)] if np.isfinite(own_truth) else "unknown"
        best = int(np.argmax(own))
        facts += [(view.targets[0], str(label)), ("called", f"{view.classes[best]} ({own[best]:.3f})")]
    return facts


def _yes(value: float) -> str:
    return "unknown" if not np.isfinite(value) else "present" if value else "absent"


def _cost(found: Findings) -> np.ndarray:
    """Return what each study costs (N,); NaN where its label or score is not known."""
    if found.task == "regression":
        spread = np.nanstd(found.truth, axis=0)
        errors = np.abs(found.predicted - found.truth) / np.where(spread > 0, spread, 1.0)
        return _mean_known(errors)
    if found.task in ("multiclass", "multihead"):
        return _mean_known(np.stack([_class_cost(view) for view in found.by_head], axis=1))
    given = np.where(found.truth == 1, found.predicted, 1 - found.predicted)
    costs = -np.log(np.clip(given, 1e-12, None))
    return _mean_known(np.where(np.isfinite(found.truth), costs, np.nan))


def _class_cost(view: Findings) -> np.ndarray:
    truth = view.truth[:, 0]
    known = np.isfinite(truth) & np.isfinite(view.predicted).all(1)
    given = view.predicted[np.arange(len(truth)), np.where(known, truth, 0).astype(int)]
    return np.where(known, -np.log(np.clip(given, 1e-12, None)), np.nan)


def _doubt(found: Findings) -> np.ndarray:
    """Return the entropy of the scores of each study (N,), summed over labels or heads."""
    if found.task in ("multiclass", "multihead"):
        return np.sum([_entropy(view.predicted).sum(1) for view in found.by_head], axis=0)
    return (_entropy(found.predicted) + _entropy(1 - found.predicted)).sum(1)


def _entropy(shares: np.ndarray) -> np.ndarray:
    return -shares * np.log(np.clip(shares, 1e-12, None))


def _groups(found: Findings) -> np.ndarray:
    """Return the class of each study (N,), so that the best are of all of them; one group where there are none."""
    if found.task in ("binary", "multiclass"):
        return np.asarray(found.truth[:, 0])
    return np.zeros(len(found.truth))


def _in_turn(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return rows such that groups take turns, the order within each kept."""
    place: dict[float, int] = {}
    turns: list[tuple[int, int]] = []
    for position, row in enumerate(rows):
        turn = place.get(float(groups[row]), 0)
        place[float(groups[row])] = turn + 1
        turns.append((turn, position))
    order = sorted(range(len(rows)), key=lambda number: turns[number])
    return rows[np.asarray(order, dtype=int)] if len(rows) else rows


def _mean_known(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    count = known.sum(1)
    total = np.where(known, values, 0.0).sum(1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
