"""The plot of a context audit: the metric against how many slices are seen, and every other condition as a dot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FixedLocator, NullLocator

from volrec.report import plots
from volrec.report.terminal import NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["audit_plot"]

CHANCE = {"auc": 0.5, "correlation": 0.0}
NAME = "audit"


def audit_plot(audit: Mapping[str, Any]) -> plots.Drawing:
    """Draw a context audit as one SVG element.

    Left: the metric of windows of 1, 3, 5 … slices and of the whole studies (square), with its 95 % band; below the
    slices stand their mm. Right: the conditions that keep the length of a study, and its parts, with 95 % intervals.
    The dashed line is the study as it is, the dotted one what chance gives.

    Parameters
    ----------
    audit : mapping
        As of `volrec.evaluation.audit.audit_run`.
    """
    return plots.draw(_draw(audit), NAME)


def _draw(audit: Mapping[str, Any]) -> Figure:
    metric = audit["metric"]
    label = NAMES.get(metric, metric)
    figure, panels = plots.new_figure(2, name=NAME)
    # Names of conditions stand where the second panel has its numbers.
    figure.subplots_adjust(wspace=0.62)
    _context(panels[0], audit, label)
    _conditions(panels[1], audit, label)
    whole = audit["conditions"][0]["metrics"][metric]["value"]
    for panel, line in zip(panels, ("axhline", "axvline"), strict=True):
        getattr(panel, line)(CHANCE[metric], color=plots.FAINT, alpha=0.4, linewidth=1, linestyle=":")
        if whole is not None:
            getattr(panel, line)(whole, color=plots.FAINT, alpha=0.4, linewidth=1, linestyle="--")
    low, high = _range(audit)
    panels[0].set_ylim(low, high)
    panels[1].set_xlim(low, high)
    return figure


def _context(panel: Axes, audit: Mapping[str, Any], label: str) -> None:
    points = [point for point in audit["context"] if point["value"] is not None]
    across = [point["slices"] for point in points]
    colour = plots.COLOURS[0]
    banded = [point for point in points if point["low"] is not None]
    panel.fill_between(
        [point["slices"] for point in banded],
        [point["low"] for point in banded],
        [point["high"] for point in banded],
        color=colour,
        alpha=0.18,
        linewidth=0,
    )
    panel.plot(across, [point["value"] for point in points], color=colour)
    for point in points:
        shape, size = ("s", 6) if point["whole"] else ("o", 4)
        panel.plot(point["slices"], point["value"], shape, color=colour, markersize=size)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(across))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticklabels(
        [f"{'all' if point['whole'] else point['slices']}\n{point['millimetres']:.0f}" for point in points]
    )
    panel.set_title("most informative slices alone", loc="left")
    panel.set_ylabel(f"{label} (band: 95 %)")
    panel.annotate(
        "slices\nmm", (0, 0), xytext=(-6, -3.5), xycoords="axes fraction", textcoords="offset points",
        ha="right", va="top", color=plots.INK,
    )  # fmt: skip


def _conditions(panel: Axes, audit: Mapping[str, Any], label: str) -> None:
    metric = audit["metric"]
    shown = [
        one for one in audit["conditions"] if one["kind"] != "window" and one["metrics"][metric]["value"] is not None
    ]
    for place, condition in enumerate(shown):
        found = condition["metrics"][metric]
        colour = plots.COLOURS[0] if condition["kind"] in ("whole", "slice") else plots.COLOURS[1]
        if found["low"] is not None:
            panel.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=1.2)
        panel.plot(found["value"], place, "s" if condition["kind"] == "whole" else "o", color=colour, markersize=5)
    panel.set_yticks(range(len(shown)), [one["name"] for one in shown])
    panel.set_ylim(len(shown) - 0.5, -0.5)
    panel.set_xlabel(f"{label} (bars: 95 %)")


def _range(audit: Mapping[str, Any]) -> tuple[float, float]:
    metric = audit["metric"]
    known = [one["metrics"][metric] for one in audit["conditions"]]
    values = [value[key] for value in known for key in ("value", "low", "high") if value[key] is not None]
    low, high = min([CHANCE[metric], *values]), max([CHANCE[metric], *values])
    margin = 0.05 * ((high - low) or 1.0)
    return low - margin, high + margin
