"""What a report says, gathered from a run folder; whatever is not there yet is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.data.targets import head_classes
from volrec.errors import RunError
from volrec.inference.decision import Decision
from volrec.report.page import figure
from volrec.report.terminal import NAMES, interval

if TYPE_CHECKING:
    import pandas as pd

    from volrec.report.plots import Drawing
    from volrec.runs import RunFolder

__all__ = ["Findings", "gather", "metric_name", "plain_value"]

Array = np.ndarray


@dataclass
class Findings:
    """One run, read once.

    Attributes
    ----------
    run : RunFolder
        Where it came from.
    task : str
        Empty when no member has been saved yet.
    targets, classes : list of str
        As in the cards.
    metrics : dict
        ``metrics.json``; empty before the end.
    metric : str
        The metric that chose the weights, else the task's own.
    part : str
        ``"test"`` or ``"validation"``: which studies the scores are of.
    scores : DataFrame, optional
        A row a study.
    truth, predicted : ndarray
        ``(N, K)``, ``(N, K')`` of `scores`.
    folds, patients : ndarray
        ``(N,)`` text.
    histories : dict
        Member -> columns; of trainings in stages, of the last.
    stages : dict
        Stage -> member -> columns, in turn, the last included; empty where there is one training.
    thresholds : dict
        Fold -> threshold of a binary task, as its card has it; of a run made before cards had any, the best on its
        validation studies. Empty where there were none.
    decisions : dict
        Fold -> what its card says of thresholds and calibration; empty for quantities and for older runs.
    audit, subgroups : dict
        What `volrec audit` and `volrec evaluate --by` found; empty where they were not asked.
    drawings : list of Drawing
        The plots that the page shows, for files of their own.
    """

    run: RunFolder
    task: str = ""
    targets: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    metric: str = ""
    part: str = ""
    scores: pd.DataFrame | None = None
    truth: Array = field(default_factory=lambda: np.empty((0, 1)))
    predicted: Array = field(default_factory=lambda: np.empty((0, 1)))
    folds: Array = field(default_factory=lambda: np.empty(0, dtype=str))
    patients: Array = field(default_factory=lambda: np.empty(0, dtype=str))
    histories: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    stages: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    subgroups: dict[str, Any] = field(default_factory=dict)
    drawings: list[Drawing] = field(default_factory=list)

    @property
    def headline(self) -> Mapping[str, Any] | None:
        """The metric with its interval."""
        return self.metrics.get("metrics", {}).get(self.metric)

    def show(self, drawing: Drawing, caption: str, *, wide: bool = False) -> str:
        """Return a plot for the page, and keep it for a file of its own."""
        self.drawings.append(drawing)
        return figure(drawing, caption, wide=wide)

    @property
    def what(self) -> str:
        """The question in words."""
        names = ", ".join(self.targets)
        if self.task == "binary":
            return f"{names}: {self.classes[-1]} or {self.classes[0]}"
        if self.task == "multiclass":
            return f"{names}: one of {', '.join(self.classes)}"
        if self.task == "multihead":
            return "; ".join(view.what for view in self.by_head)
        return f"{names} ({'each present or not' if self.task == 'multilabel' else 'a quantity'})"

    @property
    def by_head(self) -> list[Findings]:
        """What was found of each target of a multihead task, as of a multiclass task; else all as it is."""
        if self.task != "multihead":
            return [self]
        views, first = [], 0
        for place, (name, own) in enumerate(head_classes(self.task, self.classes, self.targets).items()):
            truth, predicted = self.truth[:, place : place + 1], self.predicted[:, first : first + len(own)]
            naming: dict[str, Any] = {"task": "multiclass", "targets": [name], "classes": list(own)}
            views.append(replace(self, **naming, truth=truth, predicted=predicted))
            first += len(own)
        return views


def gather(run: RunFolder) -> Findings:
    """Read what a run folder holds."""
    from volrec.evaluation import default_metric, read_columns

    found = Findings(run)
    stages = [stage.name for stage in getattr(run.config, "stages", None) or []]
    for member in run.members:
        trainings = run.trainings_of(member)
        for stage, training in zip(stages or ["all"], trainings, strict=True):
            table = training.history()
            if not len(table):
                continue
            columns = _columns(table)
            if training is member:
                found.histories[member.name] = columns
            if len(stages) > 1:
                found.stages.setdefault(stage, {})[member.name] = columns
        if not found.task and member.card_path.is_file():
            card = member.card()
            found.task, found.targets, found.classes = card["task"], list(card["targets"]), list(card["classes"])
    if not found.task:
        return found
    wanted = run.config.protocol.metric
    found.metric = default_metric(found.task) if wanted == "auto" else wanted
    try:
        found.metrics = run.metrics
        found.scores = run.scores()
    except RunError:  # interrupted: the report shows what there is
        return found
    found.audit, found.subgroups = run.facts("audit"), run.facts("subgroups")
    found.part = found.metrics.get("part") or ""
    naming: dict[str, Any] = {"task": found.task, "classes": found.classes, "targets": found.targets}
    found.truth, found.predicted = read_columns(found.scores, **naming)
    found.folds, found.patients = _text(found.scores, "fold"), _text(found.scores, "patient")
    found.decisions = _decisions(run, found.folds)
    if found.task == "binary":
        own = {fold: one.thresholds.get(one.outputs[0]) for fold, one in found.decisions.items()}
        chosen = {fold: value for fold, value in own.items() if value is not None}
        found.thresholds = chosen if found.decisions else _thresholds(run, naming)
    return found


def metric_name(name: str) -> str:
    """Return a metric's name as people write it."""
    return NAMES.get(name, name.replace("_", " "))


def plain_value(metric: Mapping[str, Any] | float | None) -> str:
    """Return a value, with its interval where it has one."""
    return interval(metric if isinstance(metric, Mapping) or metric is None else {"value": metric})


def _decisions(run: RunFolder, folds: Array) -> dict[str, Decision]:
    """Return the decision of each member by the fold of its scores; of a single split by ``all``."""
    found = {}
    for member in run.members:
        decision = Decision.from_card(member.card()) if member.finished else None
        if decision is not None:
            found[member.name] = decision
    if len(found) == 1 and not set(folds.tolist()) & set(found):
        return {"all": next(iter(found.values()))}
    return found


def _thresholds(run: RunFolder, naming: dict[str, Any]) -> dict[str, float]:
    """Choose thresholds for a run of before its cards had any."""
    from volrec.evaluation import read_columns
    from volrec.evaluation.decisions import best_threshold

    try:
        table = run.read_table("validation_scores")
    except RunError:
        return {}
    truth, scores = read_columns(table, **naming)
    known = np.isfinite(truth[:, 0]) & np.isfinite(scores[:, 0])
    folds = _text(table, "fold")
    found = {}
    for fold in np.unique(folds):
        chosen = known & (folds == fold)
        threshold = best_threshold(truth[chosen, 0], scores[chosen, 0])
        if threshold is not None:
            found[str(fold)] = threshold
    return found


def _columns(table: pd.DataFrame) -> dict[str, list[float]]:
    """Return the history with the metric's column under one name."""
    columns = {str(name): table[name].tolist() for name in table.columns}
    metric = next((name for name in columns if re.fullmatch(r"val_(?!loss$).+", name)), None)
    if metric is not None:
        columns["val_metric"] = columns[metric]
    elif "val_loss" in columns:
        columns["val_metric"] = columns["val_loss"]
    return columns


def _text(table: pd.DataFrame, column: str) -> Array:
    if column in table:
        return table[column].astype(str).to_numpy()
    fallback = table["study"].astype(str).to_numpy() if column == "patient" else np.full(len(table), "all")
    return np.asarray(fallback)
