"""The sections of the report, each from what was found to a piece of HTML (empty where there is nothing to say)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
import yaml

from volrec.config import NESTED
from volrec.errors import RunError
from volrec.inference.decision import questions
from volrec.report import plots
from volrec.report.findings import Findings, metric_name, plain_value
from volrec.report.page import Raw, details, section, table

__all__ = ["curves", "metrics", "mistakes", "plan", "repeat", "scores", "time"]

MANY_CLASSES = 8
WORST = 12
PLACES = frozenset({"data.folder", "data.labels", "data.slice_labels", "streams.flow.folder", "store.folder"})


def scores(found: Findings) -> str:
    """ROC, precision and recall, calibration and confusion, for each head; or scatter and agreement."""
    return "".join(_scores(view, heading) for view, heading in _headed(found, "How well"))


def _scores(found: Findings, heading: str) -> str:
    if found.scores is None or not len(found.scores):
        return ""
    if found.task == "regression":
        return section(heading, _group(_regression(found)))
    figures: list[str] = []
    names = found.classes if found.task == "multiclass" else found.targets
    for column, name in list(enumerate(names))[:MANY_CLASSES]:
        label = "" if found.task == "binary" else name
        if found.task == "multiclass":
            known = np.isfinite(found.truth[:, 0]) & np.isfinite(found.predicted).all(1)
            truth = (found.truth[:, 0] == column).astype(float)
        else:
            known = np.isfinite(found.truth[:, column]) & np.isfinite(found.predicted[:, column])
            truth = found.truth[:, column]
        figures += _class_figures(found, truth, found.predicted[:, column], known, label)
    return section(heading, _group(figures), _confusion(found), _decided(found))


def metrics(found: Findings) -> str:
    """Every metric with its interval; the folds beside each other."""
    overall = found.metrics.get("metrics", {})
    rows: list[list[object]] = []
    for name, value in overall.items():
        shown = plain_value(value)
        if value.get("value") is None or value.get("low") is None:
            shown += f" ({value['reason']})" if value.get("reason") else ""
        rows.append([metric_name(name), shown])
    parts = [table(["metric", "value [95 % interval]"], rows)]
    folds = found.metrics.get("folds", {})
    if folds:
        members = found.metrics.get("members", {})
        names = [name for name in overall if any(fold["metrics"].get(name) is not None for fold in folds.values())][:6]
        lines = [
            [name, fold["studies"], _lengths(members.get(name, {})), _kept(members.get(name, {}))]
            + [plain_value(fold["metrics"][metric]) for metric in names]
            for name, fold in folds.items()
        ]
        mean = found.metrics.get("fold_mean", {})
        lines.append(["mean of folds", "", "", ""] + [plain_value(mean.get(metric)) for metric in names])
        head = ["fold", "studies", "epochs", "weights of", *(metric_name(metric) for metric in names)]
        parts.append(table(head, lines))
        parts.append(
            '<p class="note">Above: all studies pooled. A mean of folds compares scores within folds only.</p>'
        )
    labels = found.metrics.get("labels", {})
    if labels:
        names = list(overall)[:6]
        lines = [
            [label, entry["studies"], *(plain_value(entry["metrics"].get(metric)) for metric in names)]
            for label, entry in labels.items()
        ]
        parts.append(table(["target", "studies", *(metric_name(metric) for metric in names)], lines))
    return section("Metrics", *parts)


def curves(found: Findings) -> str:
    """Learning curves of every member, stage by stage where it was trained in several."""
    stages = found.stages or {"": found.histories}
    figures = []
    for number, (stage, histories) in enumerate(stages.items(), 1):
        if not histories:
            continue
        named = {
            column[4:]
            for columns in histories.values()
            for column in columns
            if column.startswith("val_") and column not in {"val_loss", "val_metric"}
        }
        metric = metric_name(named.pop()) if len(named) == 1 else "metric" if named else "loss"
        marked = {member: {**columns, "best": columns.get("kept", [])} for member, columns in histories.items()}
        caption = "Loss and validation metric after each epoch, on whole studies."
        if not any("val_loss" in columns for columns in histories.values()):
            caption = "Loss of each epoch."
        if stage:
            caption = f"Stage {number} of {len(found.run.config.stages)}, {stage}. {caption}"
        figures.append(found.show(plots.learning_curves(marked, metric=metric, stage=stage), caption, wide=True))
    return section("Training", _group(figures)) if figures else ""


def mistakes(found: Findings) -> str:
    """Name the studies that are farthest off, for each head: a person should look at them."""
    return "".join(_mistakes(view, heading) for view, heading in _headed(found, "Studies to look at"))


def _mistakes(found: Findings, heading: str) -> str:
    if found.scores is None or not len(found.scores) or found.task == "multilabel":
        return ""
    studies = found.scores["study"].astype(str).to_numpy()
    lines: list[list[object]] = []
    if found.task == "regression":
        error = np.abs(found.predicted[:, 0] - found.truth[:, 0])
        for row in _largest(error):
            lines.append(
                [studies[row], f"{found.truth[row, 0]:.5g}", f"{found.predicted[row, 0]:.5g}", f"{error[row]:.4g}"]
            )
        head = ["study", f"true {found.targets[0]}", "predicted", "off by"]
    else:
        given = _probability_of_truth(found)
        for row in _largest(np.where(given < 0.5, 1 - given, np.nan)):
            truth = found.classes[int(found.truth[row, 0])]
            lines.append([studies[row], truth, f"{given[row]:.3f}"])
        head = ["study", found.targets[0], "probability given to it"]
    if not lines:
        return ""
    note = '<p class="note">Wrong labels, wrong series and unusual anatomy gather here.</p>'
    return section(heading, table(head, lines), note)


def plan(found: Findings) -> str:
    """Every setting, with its reason where one was given."""
    config = found.run.config.to_dict()
    reasons = _reasons(found)
    rows: list[list[object]] = []
    for key, value in _flat(config):
        if key in PLACES:
            continue  # places on this machine say nothing to a reader
        shown = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("...\n")
        cells = [Raw(f"<code>{escape(text.strip())}</code>") for text in (key, shown)]
        rows.append([*cells, reasons.get(key, "")])
    explained = [row for row in rows if row[2]]
    rest = [row[:2] for row in rows if not row[2]]
    head = ["setting", "value", "why"]
    return section("Plan", table(head, explained), details(f"All other settings ({len(rest)})", table(head[:2], rest)))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give dotted keys as far down as `volrec.config.dump_yaml` gives lines."""
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and value and (not prefix or dotted in NESTED):
            yield from _flat(value, f"{dotted}.")
        elif dotted == "stages" and value:
            for stage in value:
                yield f"{dotted}.{stage['name']}", {name: one for name, one in stage.items() if name != "name"}
        else:
            yield dotted, value


def _reasons(found: Findings) -> dict[str, str]:
    """Read the comments of ``config.yaml``: they are the reasons of the plan."""
    reasons: dict[str, str] = {}
    place: list[str] = []
    for line in (found.run.path / "config.yaml").read_text(encoding="utf-8").splitlines():
        body, _, reason = line.partition("  # ")
        stage = re.match(r"  - {name: ([^,}]+)", body)
        key = f"  {stage[1]}" if stage else body.split(":")[0]
        depth = (len(key) - len(key.lstrip())) // 2
        place = [*place[:depth], key.strip()]
        if reason:
            reasons[".".join(place)] = reason
    return reasons


def time(found: Findings) -> str:
    """Where the time went."""
    facts = found.metrics.get("time", {})
    if "compute_share" not in facts:
        return ""
    names = {"data_wait": "waiting for data", "transfer": "transfer to the device", "compute": "compute"}
    rows = [
        [
            name,
            f"{facts[f'{part}_seconds']:.1f} s",
            f"{100 * facts[f'{part}_share']:.1f} %",
            f"{100 * facts[f'{part}_share_later']:.1f} %" if f"{part}_share_later" in facts else "-",
        ]
        for part, name in names.items()
    ]
    rows.append(["validation on whole studies", f"{facts['validation_seconds']:.1f} s", "", ""])
    return section("Time", table(["part", "seconds", "share of the steps", "after the first epoch"], rows))


def repeat(found: Findings) -> str:
    """Give the commands that do the same again, the weights' signatures, the versions."""
    name = escape(found.run.path.name)
    commands = (
        f"<pre>volrec train --config {name}/config.yaml --out {name}-again\n"
        f"volrec predict {name} FOLDER --out scores.csv</pre>"
    )
    try:
        versions = found.run.versions
    except RunError:
        versions = {}
    rows = [[key, value] for key, value in versions.items() if value not in (None, "")]
    cards: list[list[object]] = []
    for member in found.run.members:
        if member.card_path.is_file():
            card: dict[str, Any] = member.card()
            cards.append([member.name, card.get("epoch", 0) + 1, str(card.get("data_signature", ""))[:16]])
    return section(
        "Do it again",
        commands,
        details("Versions", table(["what", "version"], rows)),
        details("Weights", table(["member", "weights of epoch", "signature of the training studies"], cards)),
    )


def _headed(found: Findings, heading: str) -> list[tuple[Findings, str]]:
    """Return what was found of each head with a heading that names its target; all of it where there is one."""
    views = found.by_head
    return [(view, f"{heading}: {view.targets[0]}" if len(views) > 1 else heading) for view in views]


def _class_figures(found: Findings, truth: np.ndarray, scored: np.ndarray, known: np.ndarray, label: str) -> list[str]:
    truth, scored = truth[known], scored[known]
    if len(np.unique(truth)) < 2:
        return []
    who = {"groups": found.patients[known], "folds": found.folds[known], "name": label}
    band = "Shaded: 95 % band over patients." + (" Thin lines: folds." if len(set(found.folds)) > 1 else "")
    return [
        found.show(plots.roc(truth, scored, **who), f"ROC curve. {band}"),
        found.show(plots.precision_recall(truth, scored, **who), f"Precision and recall; dotted: prevalence. {band}"),
        found.show(
            plots.calibration(truth, scored, name=label),
            "Calibration: on the dotted line a score means what it says. Ticks below: the scores of each class.",
        ),
    ]


def _confusion(found: Findings) -> str:
    if found.task not in {"binary", "multiclass"}:
        return ""
    known = np.isfinite(found.truth[:, 0]) & np.isfinite(found.predicted).all(1)
    truth = found.truth[known, 0].astype(int)
    if found.task == "binary":
        cut = np.array([found.thresholds.get(str(fold), 0.5) for fold in found.folds[known]])
        said = (found.predicted[known, 0] >= cut).astype(int)
    else:
        said = found.predicted[known].argmax(1)
    size = len(found.classes)
    counts = np.bincount(truth * size + said, minlength=size**2).reshape(size, size)
    rows: list[list[object]] = []
    for index, name in enumerate(found.classes):
        total = max(1, counts[index].sum())
        cells = []
        for other, count in enumerate(counts[index]):
            shade = f"rgba(var(--{'good' if index == other else 'bad'}), {0.5 * count / total:.2f})"
            share = f"<span class='soft'>{100 * count / total:.0f} %</span>"
            cells.append(Raw(f'<td style="background: {shade}">{count}<br>{share}</td>'))
        rows.append([Raw(f"<b>{escape(str(name))}</b>"), *cells])
    heading = ["true \\ called", *map(str, found.classes)]
    return f"<h3>Confusion matrix</h3>{table(heading, rows, kind='matrix')}<p class='note'>{_threshold_note(found)}</p>"


def _threshold_note(found: Findings) -> str:
    if found.task == "multiclass":
        return "The class with the highest score is called; percentages of the true class."
    if found.thresholds:
        values = ", ".join(f"{value:.3f}" for value in found.thresholds.values())
        own = " (each fold its own)" if len(found.thresholds) > 1 else ""
        how = "" if found.decisions else ": the best mean of sensitivity and specificity on the validation studies"
        where = f"Called from {values} on{own}{how}."
    else:
        where = "Called from 0.5 on: there were no validation studies to choose a threshold."
    return where


def _decided(found: Findings) -> str:
    """Say for each fold how scores become calls and probabilities, and what that did to the scores shown here."""
    asked = {one.name for one in questions(found.task, classes=found.classes, targets=found.targets)}
    rows: list[list[object]] = []
    for fold, decision in found.decisions.items():
        for one in decision.questions:
            if one.name in asked:
                rows.append(["" if fold == "all" else fold, " ".join(decision.describe(one))])
    if not rows:
        return ""
    head = "fold" if any(row[0] for row in rows) else ""
    whose = "these very studies" if found.part == "validation" else "the validation studies"
    note = (
        f"Chosen on {whose}, which have also chosen the weights: on new studies expect a little less. "
        "Calibrated probabilities stand beside the scores and change neither a call nor the curves above."
    )
    facts = found.metrics.get("calibration") or {}
    names = {"brier": "Brier score", "log_loss": "log loss", "ece": "calibration error"}
    before, after = facts.get("before") or {}, facts.get("after") or {}
    changed = [[name, f"{before[key]:.3f}", f"{after[key]:.3f}"] for key, name in names.items() if key in after]
    return (
        f"<h3>Decisions</h3>{table([head, 'decision'], rows)}<p class='note'>{escape(note)}</p>"
        + (table(["of these studies", "before calibration", "after"], changed) if changed else "")
        + (f"<p class='note'>{escape(str(facts['note']))}</p>" if facts.get("note") else "")
    )


def _regression(found: Findings) -> list[str]:
    figures = []
    for column, name in list(enumerate(found.targets))[:MANY_CLASSES]:
        known = np.isfinite(found.truth[:, column]) & np.isfinite(found.predicted[:, column])
        truth, said = found.truth[known, column], found.predicted[known, column]
        if len(truth) > 1:
            figures += [
                found.show(
                    plots.scatter(truth, said, folds=found.folds[known], name=name),
                    "Predicted against true; dotted: equal.",
                ),
                found.show(
                    plots.bland_altman(truth, said, name=name),
                    "Agreement (Bland and Altman): difference over mean; lines: bias and 95 % limits of agreement.",
                ),
            ]
    return figures


def _probability_of_truth(found: Findings) -> np.ndarray:
    truth = found.truth[:, 0]
    if found.task == "binary":
        return np.where(truth == 1, found.predicted[:, 0], 1 - found.predicted[:, 0])
    rows = np.arange(len(truth))
    return np.where(np.isfinite(truth), found.predicted[rows, np.nan_to_num(truth).astype(int)], np.nan)


def _largest(values: np.ndarray) -> list[int]:
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    return [int(row) for row in order[:WORST] if np.isfinite(values[row])]


def _lengths(member: dict[str, Any]) -> str:
    """Return the epochs that were trained, those of each stage where there were several."""
    return " + ".join(str(stage["epochs"]) for stage in member.get("stages", {"": member}).values() if stage) or "-"


def _kept(member: dict[str, Any]) -> str:
    return f"epoch {member['epoch'] + 1}" if "epoch" in member else "-"


def _group(figures: list[str]) -> str:
    return f'<div class="figures">{"".join(figures)}</div>' if figures else ""
