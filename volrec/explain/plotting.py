"""Curves along slices as one picture, for the screen and for papers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from volrec.explain.curves import Curve

__all__ = ["draw_curves"]

COLOURS = ("#2f80d0", "#e08214", "#2a9d74", "#b565c9", "#d1495b", "#8c8c3a", "#5e7ce2")
"""Middle tones that are told apart with the common colour deficiencies."""
LABELS = {
    "evidence": "evidence",
    "alone": "output for the\nslice alone",
    "attention": "attention",
    "contribution": "contribution\nto the output",
    "words": "share of words",
}
DPI = 150
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "volrec",  # the same study gives the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
}


def draw_curves(curves: Sequence[Curve], positions: np.ndarray, *, title: str) -> dict[str, str | bytes]:
    """Draw curves over the slices of a study, a panel for each group.

    Parameters
    ----------
    curves : sequence of Curve
        With values (T,); gaps where they are NaN.
    positions : ndarray
        (T,) of the slices, mm: the upper axis.
    title : str
        Of the whole.

    Returns
    -------
    dict
        ``"svg"``, a text, and ``"png"``, bytes.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.group, []).append(curve)
    slices = np.arange(len(positions))
    with rc_context(_STYLE):
        height = 1.0 + 1.5 * len(groups)
        figure = Figure(figsize=(7.0, height), facecolor="white")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (group, own) in zip(panels, groups.items(), strict=True):
            for number, curve in enumerate(own):
                first = number == 0
                colour = COLOURS[number % len(COLOURS)]
                size = {"markersize": 3 if first else 2, "linewidth": 1.6 if first else 0.9}
                axis.plot(slices, curve.values, "o-", color=colour, label=curve.name.replace("_", " "), **size)
            values = np.concatenate([curve.values for curve in own])
            if np.nanmin(values, initial=0.0) < 0:
                axis.axhline(0, color="0.5", linewidth=0.8)
            else:
                axis.set_ylim(bottom=0)
            axis.set_ylabel(LABELS.get(group, group))
            axis.grid(color="0.9", linewidth=0.6)
            axis.set_axisbelow(True)
            if len(own) > 1:
                axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        panels[-1].set_xlabel("slice, from 0")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(positions) > 1:
            _positions(panels[0], positions)
        # A dollar sign would start a formula.
        figure.text(0.01, 1 - 0.1 / height, title.replace("$", r"\$"), va="top", fontsize=10)
        figure.subplots_adjust(0.13, 0.45 / height, 0.8, 1 - 0.8 / height, hspace=0.2)
        text, picture = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    return {"svg": text.getvalue(), "png": picture.getvalue()}


def _positions(axis: Any, positions: np.ndarray) -> None:
    """Show millimetres above a panel: slices of a volume lie one distance apart."""
    step = (positions[-1] - positions[0]) / (len(positions) - 1) or 1.0
    top = axis.secondary_xaxis(
        "top", functions=(lambda place: positions[0] + place * step, lambda at: (at - positions[0]) / step)
    )
    top.set_xlabel("position, mm")
