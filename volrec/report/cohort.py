"""The sections on the data: what the studies are, who was in which part, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from volrec.errors import Problem, RunError
from volrec.report.findings import Findings
from volrec.report.page import details, section, table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["data", "people", "quarantine"]

PARTS = {"train": "training", "validation": "validation", "test": "test"}
GEOMETRY = {
    "slices": ("slices", ""),
    "spacing_t": ("distance of slices", "mm"),
    "height": ("rows", ""),
    "width": ("columns", ""),
    "spacing_h": ("size of a pixel (row by row)", "mm"),
    "spacing_w": ("size of a pixel (column by column)", "mm"),
}
MANY_VALUES = 12
"""Values of a target up to which each is counted; more are a quantity."""


def data(found: Findings) -> str:
    """Say what the studies are: modality, plane, geometry, and how the labels are spread over the parts."""
    index, splits = _table(found, "index"), _table(found, "splits")
    if index is None or splits is None:
        return ""
    chosen = index[index["chosen"].astype(str) == "True"]
    used = chosen[chosen["study"].isin(splits["study"])]
    if not len(used):
        return ""
    kinds = ", ".join(
        f"{len(own)} {modality} ({plane})" for (modality, plane), own in used.groupby(["modality", "orientation"])
    )
    first = f"<p>{len(used)} studies of {splits['patient'].nunique()} patients: {kinds}.</p>"
    rows = [
        [name, _number(values.median(), unit), _number(values.min(), unit), _number(values.max(), unit)]
        for column, (name, unit) in GEOMETRY.items()
        if column in used and len(values := used[column].dropna())
    ]
    return section("Data", first, table(["", "median", "least", "most"], rows), _labels(found, splits))


def people(found: Findings) -> str:
    """Who trained, who chose the weights, who was tested; and that nobody did two of them."""
    splits = _table(found, "splits")
    if splits is None:
        return ""
    rows = []
    for name, own in splits.groupby("split", sort=False):
        row: list[object] = [name]
        for part in PARTS:
            chosen = own[own["part"] == part]
            row.append(f"{len(chosen)} ({chosen['patient'].nunique()})")
        rows.append(row)
    note = '<p class="note">Studies, and patients in brackets.</p>'
    return section("Who was in which part", table(["split", *PARTS.values()], rows), note, _leakage(splits))


def quarantine(found: Findings) -> str:
    """List what was left out, why, and what to do; then what was assumed."""
    problems = found.run.quarantine()
    fatal = [problem for problem in problems if problem.fatal]
    assumed = [problem for problem in problems if not problem.fatal]
    if not fatal:
        first = "<p>Nothing was left out.</p>"
    else:
        first = f"<p>{len(fatal)} left out:</p>" + _problems(fatal[:100])
        if len(fatal) > 100:
            first += f'<p class="note">{len(fatal) - 100} more are in quarantine.csv.</p>'
    second = details(f"{len(assumed)} corrections and assumptions", _problems(assumed[:200])) if assumed else ""
    return section("Quarantine", first, second)


def shared_patients(splits: pd.DataFrame) -> dict[str, list[str]]:
    """Return, for each split that has any, the patients that are in more than one of its parts."""
    found = {}
    for name, own in splits.groupby("split", sort=False):
        parts = own.groupby("patient")["part"].nunique()
        both = sorted(map(str, parts[parts > 1].index))
        if both:
            found[str(name)] = both
    return found


def _leakage(splits: pd.DataFrame) -> str:
    """Say what was checked, on the table of splits as it lies in the run folder."""
    shared = shared_patients(splits)
    if shared:
        lines = "; ".join(f"{name}: {', '.join(patients[:5])}" for name, patients in shared.items())
        return (
            f"<p><b>Leak:</b> patients on two sides of a split ({escape(lines)}). The numbers of this report cannot be "
            "trusted: divide the studies again.</p>"
        )
    several = splits["split"].nunique() > 1
    repeated = splits[splits["part"] == "test"].groupby("study")["split"].nunique()
    twice = f" {int((repeated > 1).sum())} studies were tested more than once." if (repeated > 1).any() else ""
    where = "of any split" if several else "of the split"
    return f'<p class="note">Checked in splits.csv: no patient is on two sides {where}.{twice}</p>'


def _labels(found: Findings, splits: pd.DataFrame) -> str:
    """Count the labels in each part; a quantity by its range."""
    labels = _table(found, "labels")
    if labels is None:
        return ""
    several = splits["split"].nunique() > 1
    parts = (
        {"": labels}
        if several
        else {
            name: labels[labels["study"].isin(splits.loc[splits["part"] == part, "study"])]
            for part, name in PARTS.items()
        }
    )
    headings = ["label", *(name or "studies" for name in parts)]
    rows: list[list[object]] = []
    for target in (column for column in labels.columns if column not in {"study", "patient"}):
        values = labels[target].dropna()
        if found.task == "regression" or values.nunique() > MANY_VALUES:
            rows.append([target, *(_range(own[target].dropna().to_numpy(dtype=float)) for own in parts.values())])
            continue
        for value in sorted(values.unique(), key=str):
            rows.append([f"{target} = {value}", *(int((own[target] == value).sum()) for own in parts.values())])
    return table(headings, rows)


def _range(values: np.ndarray) -> str:
    if not len(values):
        return "-"
    return f"{np.median(values):.4g} ({values.min():.4g} to {values.max():.4g})"


def _number(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()


def _problems(problems: Sequence[Problem]) -> str:
    rows = [[problem.study or "-", problem.where, problem.reason, problem.remedy] for problem in problems]
    return table(["study", "where", "reason", "remedy"], rows)


def _table(found: Findings, name: str) -> pd.DataFrame | None:
    try:
        return found.run.read_table(name)
    except RunError:  # an older run, or one that was interrupted early
        return None
