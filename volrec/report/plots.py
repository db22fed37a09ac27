"""Plots of the report: each takes arrays and gives one SVG element that follows the page's light or dark colours.

A `Drawing` is that element, and knows how to write itself as SVG and PNG files for a paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from volrec.evaluation import pr_points, roc_points
from volrec.files import replacing, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS",
    "FAINT",
    "INK",
    "Drawing",
    "bland_altman",
    "calibration",
    "draw",
    "learning_curves",
    "new_figure",
    "precision_recall",
    "roc",
    "scatter",
    "style_of",
]

# Middle tones, told apart with the common colour deficiencies and readable on white and on near-black.
COLOURS = ("#2f80d0", "#e08214", "#2a9d74", "#b565c9", "#d1495b", "#8c8c3a", "#5e7ce2", "#b07d62")
INK = "#010203"  # replaced by the page's own text colour
FAINT = "#010204"  # the same, for grid and reference lines
PRINTED = "#1c2733"
"""Ink on paper."""
GRID = np.linspace(0, 1, 101)
DOTS_PER_INCH = 300
"""Of PNG files: what journals ask for."""


class Drawing(str):
    """An SVG element for a page, with the figure that it shows.

    Attributes
    ----------
    name : str
        What the plot is called, also as a file.
    figure : matplotlib.figure.Figure
        Drawn in dark ink: on white paper it can be read as it is.
    """

    name: str
    figure: Figure

    def save(self, folder: Path, *, png: bool = True) -> list[Path]:
        """Write ``NAME.svg``, and ``NAME.png`` at 300 dots an inch, into a folder; return the paths."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.") or "plot"
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{stem}.svg"]
        with rc_context(style_of(self.name)):
            text = io.StringIO()
            self.figure.savefig(text, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
            write_atomically(written[0], text.getvalue().replace(INK, PRINTED).replace(FAINT, PRINTED))
            if png:
                written.append(folder / f"{stem}.png")
                with replacing(written[1]) as partial:
                    self.figure.savefig(
                        partial, format="png", facecolor="white", dpi=DOTS_PER_INCH, metadata={"Software": None}
                    )
        return written


def learning_curves(histories: Mapping[str, Mapping[str, Sequence[float]]], *, metric: str, stage: str = "") -> Drawing:
    """Draw training and validation loss, and the metric that chose the weights, over epochs.

    Parameters
    ----------
    histories : mapping
        Member -> columns ``epoch``, ``train_loss`` and, where there was a validation, ``val_loss`` and ``val_metric``.
    metric : str
        Name of the metric on the axis.
    stage : str
        Name of the training, where there are several on a page.
    """
    name = f"curves-{stage}"
    with_metric = any("val_metric" in columns for columns in histories.values())
    figure, panels = new_figure(2 if with_metric else 1, name=name)
    for (member, columns), colour in zip(histories.items(), _cycle(), strict=False):
        epochs = np.asarray(columns["epoch"], dtype=float) + 1
        label = member if len(histories) > 1 else "training"
        panels[0].plot(epochs, columns["train_loss"], color=colour, label=label)
        if "val_loss" in columns:
            label = "" if len(histories) > 1 else "validation"
            panels[0].plot(epochs, columns["val_loss"], color=colour, linestyle="--", linewidth=1, label=label)
        if "val_metric" in columns:
            values = np.asarray(columns["val_metric"], dtype=float)
            panels[1].plot(epochs, values, color=colour, label=member)
            kept = np.flatnonzero(np.asarray(columns.get("best", []), dtype=float) > 0)
            if kept.size:
                panels[1].plot(epochs[kept[-1]], values[kept[-1]], "o", color=colour, markersize=6)
    panels[0].set(xlabel="epoch", ylabel="loss" if len(histories) == 1 else "loss (dashed: validation)")
    panels[0].legend(frameon=False)
    for panel in panels:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    if with_metric:
        panels[1].set(xlabel="epoch", ylabel=f"validation {metric} (dot: weights kept)")
    return draw(figure, name)


def roc(truth: np.ndarray, scores: np.ndarray, *, groups: np.ndarray, folds: np.ndarray, name: str = "") -> Drawing:
    """Draw the ROC curve of all studies with its 95 % band over patients, and a thin line a fold.

    Parameters
    ----------
    truth : ndarray
        ``(N,)`` 0 or 1.
    scores : ndarray
        ``(N,)`` scores of the positive class.
    groups : ndarray
        ``(N,)`` patients: the units that are drawn again for the band.
    folds : ndarray
        ``(N,)`` member that scored the study.
    name : str
        Class, where there are several.
    """

    def points(labels: np.ndarray, values: np.ndarray) -> tuple[list[float], list[float]]:
        found = roc_points(labels, values)
        return found["false_positive_rate"], found["true_positive_rate"]

    figure, (axis,) = new_figure(1, name=f"roc-{name}", square=True)
    axis.plot([0, 1], [0, 1], color=FAINT, alpha=0.4, linewidth=1, linestyle=":")
    curves = []
    for hits, alarms in _resampled(truth, scores, groups):
        curves.append(np.interp(GRID, np.append(0, alarms / alarms[-1]), np.append(0, hits / hits[-1])))
    _band(axis, curves)
    _lines(axis, truth, scores, folds, points, drawstyle="default")
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), title=name)
    return draw(figure, f"roc-{name}")


def precision_recall(
    truth: np.ndarray, scores: np.ndarray, *, groups: np.ndarray, folds: np.ndarray, name: str = ""
) -> Drawing:
    """Draw precision over recall as `roc` does; the dotted line is the prevalence, what chance reaches."""

    def points(labels: np.ndarray, values: np.ndarray) -> tuple[list[float], list[float]]:
        found = pr_points(labels, values)
        return [0.0, *found["recall"]], [found["precision"][0], *found["precision"]]

    figure, (axis,) = new_figure(1, name=f"pr-{name}", square=True)
    axis.axhline(float(np.mean(truth)), color=FAINT, alpha=0.4, linewidth=1, linestyle=":")
    curves = []
    for hits, alarms in _resampled(truth, scores, groups):
        # Precision at a recall: that of the first threshold which reaches it (a step, no line between thresholds).
        place = np.minimum(np.searchsorted(hits / hits[-1], GRID - 1e-12), len(hits) - 1)
        place = np.maximum(place, np.argmax(hits + alarms > 0))
        curves.append(hits[place] / (hits[place] + alarms[place]))
    _band(axis, curves)
    _lines(axis, truth, scores, folds, points, drawstyle="steps-pre")
    axis.set(xlabel="recall (sensitivity)", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), title=name)
    return draw(figure, f"pr-{name}")


def calibration(truth: np.ndarray, scores: np.ndarray, *, bins: int = 8, name: str = "") -> Drawing:
    """Draw how often the finding was there against how often the score said so, in bins of equally many studies.

    Bars are 95 % Wilson intervals of the observed share; the strip below shows every score.
    """
    figure, (axis,) = new_figure(1, name=f"calibration-{name}", square=True)
    axis.plot([0, 1], [0, 1], color=FAINT, alpha=0.4, linewidth=1, linestyle=":")
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, max(1, min(bins, len(scores) // 5))) if len(part)]
    said = np.array([scores[part].mean() for part in parts])
    seen = np.array([truth[part].mean() for part in parts])
    low, high = _wilson(seen, np.array([len(part) for part in parts]))
    axis.errorbar(
        said,
        seen,
        yerr=np.clip([seen - low, high - seen], 0, None),
        color=COLOURS[0],
        marker="o",
        capsize=2,
        linewidth=1.2,
    )
    for value, colour, height in ((1, COLOURS[1], -0.06), (0, COLOURS[0], -0.1)):
        chosen = scores[truth == value]
        axis.plot(chosen, np.full(len(chosen), height), "|", color=colour, alpha=0.6, markersize=5)
    axis.set(
        xlabel="predicted probability", ylabel="observed share", xlim=(-0.02, 1.02), ylim=(-0.14, 1.02), title=name
    )
    return draw(figure, f"calibration-{name}")


def scatter(truth: np.ndarray, predicted: np.ndarray, *, folds: np.ndarray, name: str) -> Drawing:
    """Draw predicted against true values, a colour a fold, with the line of identity."""
    figure, (axis,) = new_figure(1, name=f"scatter-{name}", square=True)
    low, high = _limits(np.concatenate([truth, predicted]))
    axis.plot([low, high], [low, high], color=FAINT, alpha=0.4, linewidth=1, linestyle=":")
    for fold, colour in zip(np.unique(folds), _cycle(), strict=False):
        axis.plot(
            truth[folds == fold], predicted[folds == fold], "o", color=colour, alpha=0.65, markersize=4, label=fold
        )
    if len(np.unique(folds)) > 1:
        axis.legend(frameon=False)
    axis.set(xlabel=f"true {name}", ylabel=f"predicted {name}", xlim=(low, high), ylim=(low, high))
    return draw(figure, f"scatter-{name}")


def bland_altman(truth: np.ndarray, predicted: np.ndarray, *, name: str) -> Drawing:
    """Draw the difference over the mean of both, with the bias and the 95 % limits of agreement.

    References
    ----------
    Bland and Altman, Statistical methods for assessing agreement between two methods of clinical measurement,
    Lancet 1986.
    """
    figure, (axis,) = new_figure(1, name=f"bland-altman-{name}", square=True)
    difference, middle = predicted - truth, (predicted + truth) / 2
    bias, spread = float(np.mean(difference)), float(np.std(difference, ddof=1)) if len(truth) > 1 else 0.0
    axis.plot(middle, difference, "o", color=COLOURS[0], alpha=0.65, markersize=4)
    for value, style in ((bias, "-"), (bias - 1.96 * spread, "--"), (bias + 1.96 * spread, "--")):
        axis.axhline(value, color=COLOURS[1], linewidth=1.2, linestyle=style)
        axis.annotate(
            f"{value:.3g}", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=INK
        )
    axis.set(xlabel=f"mean of true and predicted {name}", ylabel="predicted - true")
    return draw(figure, f"bland-altman-{name}")


def new_figure(panels: int, *, name: str, square: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """Return an empty figure and its axes in the style of the report; `name` is that of the plot."""
    width, height = 4.1 * panels, 3.9 if square else 3.3
    with rc_context(style_of(name)):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(1, panels, squeeze=False)[0]
    # Margins in inches for five-digit labels; matplotlib's automatic layouts draw everything twice.
    figure.subplots_adjust(
        left=0.62 / width, right=1 - 0.12 / width, bottom=0.5 / height, top=1 - 0.3 / height, wspace=0.8 / 4.1
    )
    for axis in axes:
        axis.grid(color=FAINT, alpha=0.12, linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, list(axes)


def style_of(name: str) -> Any:
    """Return the settings of matplotlib that plots of the report are drawn with; `name` is that of the plot."""
    return {
        "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
        "svg.hashsalt": name,  # the same run gives the same file
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.labelcolor": INK,
        "legend.fontsize": 8,
        "lines.linewidth": 1.6,
    }


def draw(figure: Figure, name: str) -> Drawing:
    """Return a figure as an SVG element: scaled by the page, in its font and text colour."""
    with rc_context(style_of(name)):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    # Scaled by the page; the fixed size in points would overflow a telephone.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', text, count=1)
    text = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1sans-serif", text)
    drawing = Drawing(text.replace(INK, "currentColor").replace(FAINT, "currentColor").strip())
    drawing.name, drawing.figure = name, figure
    return drawing


def _lines(
    axis: Axes,
    truth: np.ndarray,
    scores: np.ndarray,
    folds: np.ndarray,
    points: Callable[[np.ndarray, np.ndarray], tuple[list[float], list[float]]],
    *,
    drawstyle: Literal["default", "steps-pre"],
) -> None:
    """Draw the curve of all studies over a thin one of each fold."""
    names = list(np.unique(folds))
    for fold in names if len(names) > 1 else []:
        chosen = folds == fold
        if len(np.unique(truth[chosen])) == 2:
            across, up = points(truth[chosen], scores[chosen])
            axis.plot(across, up, color=FAINT, alpha=0.35, linewidth=0.8, drawstyle=drawstyle)
    across, up = points(truth, scores)
    axis.plot(across, up, color=COLOURS[0], linewidth=2, drawstyle=drawstyle)


def _resampled(
    truth: np.ndarray, scores: np.ndarray, groups: np.ndarray, *, resamples: int = 400
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give true and false positives at every threshold, from the highest down, for draws of whole patients."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    _, owner = np.unique(groups, return_inverse=True)
    count = int(owner.max()) + 1
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=resamples)
    for weights in drawn[:, owner[order]]:
        hits = np.cumsum(weights * (truth[order] == 1))[last]
        alarms = np.cumsum(weights * (truth[order] == 0))[last]
        if hits[-1] and alarms[-1]:
            yield hits, alarms


def _band(axis: Axes, curves: list[np.ndarray]) -> None:
    """Shade the middle 95 % of curves on `GRID`."""
    if len(curves) > 100:
        low, high = np.percentile(curves, [2.5, 97.5], axis=0)
        axis.fill_between(GRID, low, high, color=COLOURS[0], alpha=0.18, linewidth=0)


def _wilson(share: np.ndarray, count: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % score interval of a proportion (Wilson, JASA 1927)."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    margin = 0.04 * ((high - low) or 1.0)
    return low - margin, high + margin


def _cycle() -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(64)]
