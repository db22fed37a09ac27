"""Forest plots: a value with its interval a row, for groups of studies and for runs that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from volrec.report.plots import COLOURS, FAINT, INK, Drawing, draw, style_of
from volrec.report.terminal import NAMES, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ForestRow",
    "comparison_forest",
    "comparison_rows",
    "forest",
    "save_forest",
    "subgroup_forest",
    "subgroup_rows",
]

WIDTH, ROW = 7.2, 0.27
LABELS, VALUES = 2.3, 1.75
"""Inches left of the axis for names, right of it for numbers."""
LONGEST = 34
SHARES = ("auc", "average_precision", "balanced_accuracy", "accuracy", "f1", "sensitivity", "specificity")
ERRORS = ("mae", "rmse")
"""Metrics of one scale, which can stand on one axis."""


@dataclass(frozen=True)
class ForestRow:
    """One line of the plot.

    Attributes
    ----------
    label : str
        What stands at its left.
    found : mapping, optional
        ``value, low, high``; None for a heading.
    note : str
        Behind the label: how many studies.
    doubtful : bool
        Drawn as an open mark with a dashed line: too few to trust the interval.
    """

    label: str
    found: Mapping[str, Any] | None = None
    note: str = ""
    doubtful: bool = False


def subgroup_rows(
    tables: Sequence[Mapping[str, Any]], *, metric: str, overall: Mapping[str, Any] | None
) -> list[ForestRow]:
    """Return the rows of subgroups.

    Parameters
    ----------
    tables : sequence of dict
        As of `volrec.evaluation.subgroup_table`.
    metric : str
        One of the metrics of the groups.
    overall : mapping, optional
        The same metric of all studies: the first row.
    """
    rows = [] if overall is None else [ForestRow("all studies", overall)]
    for table in tables:
        rows.append(ForestRow(str(table["column"])))
        rows += [
            ForestRow(group["name"], group["metrics"].get(metric), str(group["studies"]), bool(group["warning"]))
            for group in table["groups"]
        ]
    return rows


def comparison_rows(comparisons: Sequence[Mapping[str, Any]]) -> list[ForestRow]:
    """Return the rows of comparisons (`volrec.evaluation.compare_tables`): differences of metrics of one scale."""
    rows = []
    for found in comparisons:
        names = ERRORS if found["task"] == "regression" else SHARES
        rows.append(ForestRow(f"{found['second']} minus {found['first']}", note=f"{found['studies']} studies"))
        rows += [
            ForestRow(
                NAMES.get(name, name.replace("_", " ")),
                found["metrics"][name]["difference"],
                "",
                bool(found["warning"]),
            )
            for name in names
            if name in found["metrics"]
        ]
    return rows


def subgroup_forest(tables: Sequence[Mapping[str, Any]], *, overall: Mapping[str, Any] | None = None) -> Drawing:
    """Return the SVG element of subgroups by the metric that they are compared by."""
    metric = str(tables[0]["metric"])
    reference = None if overall is None else overall.get("value")
    rows = subgroup_rows(tables, metric=metric, overall=overall)
    return forest(rows, axis=NAMES.get(metric, metric), reference=reference, name="subgroups")


def comparison_forest(comparisons: Sequence[Mapping[str, Any]]) -> Drawing:
    """Return the SVG element of the differences between runs."""
    return forest(comparison_rows(comparisons), axis="difference", reference=0.0, name="comparison")


def forest(rows: Sequence[ForestRow], *, axis: str, reference: float | None = None, name: str = "forest") -> Drawing:
    """Draw rows as one SVG element that follows the page's colours.

    Parameters
    ----------
    rows : sequence of ForestRow
        From the top down.
    axis : str
        What the numbers are.
    reference : float, optional
        Where the dotted line stands: no difference, or the value of all studies.
    name : str
        Unique on the page.
    """
    return draw(_draw(rows, axis=axis, reference=reference, name=name), name)


def save_forest(
    rows: Sequence[ForestRow], path: Path | str, *, axis: str, reference: float | None = None
) -> list[Path]:
    """Write the plot beside a file, under its name, as SVG and as PNG; return both paths."""
    path = Path(path)
    return forest(rows, axis=axis, reference=reference, name=path.stem).save(path.parent)


def _draw(rows: Sequence[ForestRow], *, axis: str, reference: float | None, name: str) -> Figure:
    height = ROW * max(1, len(rows)) + 0.75
    with rc_context(style_of(name)):
        figure = Figure(figsize=(WIDTH, height))
        panel = figure.subplots()
        figure.subplots_adjust(
            left=LABELS / WIDTH, right=1 - VALUES / WIDTH, bottom=0.55 / height, top=1 - 0.15 / height
        )
        _draw_rows(panel, rows)
        if reference is not None:
            panel.axvline(reference, color=FAINT, alpha=0.5, linewidth=1, linestyle=":")
        panel.set(xlabel=axis, ylim=(len(rows) - 0.4, -0.6), yticks=[])
        low, high = _limits(rows, reference)
        panel.set_xlim(low, high)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6))
        panel.spines["left"].set_visible(False)
        panel.grid(axis="x", color=FAINT, alpha=0.12, linewidth=0.6)
        panel.set_axisbelow(True)
    return figure


def _draw_rows(panel: Axes, rows: Sequence[ForestRow]) -> None:
    transform = panel.get_yaxis_transform()  # across in parts of the axis, down in rows
    left = -(LABELS - 0.1) / (WIDTH - LABELS - VALUES)
    for place, row in enumerate(rows):
        heading = row.found is None
        text = row.label if len(row.label) <= LONGEST else row.label[: LONGEST - 1] + "…"
        shown = f"{text} ({row.note})" if row.note else text
        indent = left if heading or place == 0 else left + 0.05
        weight = "bold" if heading else "normal"
        panel.text(indent, place, shown, transform=transform, va="center", color=INK, fontweight=weight)
        if row.found is None:
            continue
        panel.text(1.03, place, interval(row.found), transform=transform, va="center", color=INK)
        value, low, high = (row.found.get(key) for key in ("value", "low", "high"))
        if value is None:
            continue
        if low is not None and high is not None:
            style = (0, (2, 1.5)) if row.doubtful else "-"
            panel.plot([low, high], [place, place], color=COLOURS[0], linewidth=1.4, linestyle=style)
        panel.plot(
            [value],
            [place],
            "s",
            color=COLOURS[0],
            markersize=5,
            markerfacecolor="none" if row.doubtful else COLOURS[0],
        )


def _limits(rows: Sequence[ForestRow], reference: float | None) -> tuple[float, float]:
    numbers = [reference] + [row.found.get(key) for row in rows if row.found for key in ("value", "low", "high")]
    known = np.array([number for number in numbers if number is not None], dtype=float)
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    margin = 0.06 * ((high - low) or 1.0)
    return low - margin, high + margin
