"""One picture of a study with its map: slices side by side, as a radiologist expects to see them."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["MOST", "Picture", "chosen_slices", "draw_montage", "shown_range", "strongest_slice"]

MOST = 24
"""Slices that are drawn at most."""
COLUMNS = 6
DPI = 110
INCH = 2.2
OPAQUE = 0.65
"""Opacity of the strongest voxels."""
MARK = "#5ad1ff"
"""Colour of the strongest slice, in neither colour scale."""
SIDES = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}
"""What lies at the left and right edge of a slice in canonical order."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What is drawn.

    Attributes
    ----------
    image : ndarray
        (T, H, W) of the study, in canonical order.
    overlay : ndarray
        (T, H, W) float32: the map on the same grid.
    spacing : tuple of float
        (t, h, w), mm.
    positions : ndarray
        (T,) of the slices, mm.
    per_slice : ndarray
        (T,), NaN where no clip shows the slice.
    window : tuple of float, optional
        Lowest and highest value shown; None takes the 1st and 99.5th percentile of the slices.
    plane : str
        ``"axial"``, ``"coronal"`` or ``"sagittal"``.
    signed : bool
        Whether values below 0 speak against.
    title : str
        Study, class, score.
    subtitle : str
        Method and what it says.
    """

    image: np.ndarray
    overlay: np.ndarray
    spacing: tuple[float, float, float]
    positions: np.ndarray
    per_slice: np.ndarray
    window: tuple[float, float] | None
    plane: str
    signed: bool
    title: str
    subtitle: str


def strongest_slice(per_slice: np.ndarray) -> int | None:
    """Return the slice with the largest value (T,); None where there is none above 0."""
    if not np.isfinite(per_slice).any() or np.nanmax(per_slice) <= 0:
        return None
    return int(np.nanargmax(per_slice))


def chosen_slices(per_slice: np.ndarray, *, most: int = MOST) -> list[int]:
    """Return which slices are drawn: all, or evenly spread ones with the strongest among them."""
    count = len(per_slice)
    if count <= most:
        return list(range(count))
    chosen = np.linspace(0, count - 1, most).round().astype(int)
    strongest = strongest_slice(per_slice)
    if strongest is not None:
        chosen[np.abs(chosen - strongest).argmin()] = strongest
    return [int(place) for place in chosen]


def draw_montage(picture: Picture) -> bytes:
    """Draw slices in rows and return the PNG.

    Slices are seen from the feet (axial), the front (coronal) or the patient's left (sagittal): the patient's right
    is on the left of axial and coronal slices. They are numbered from 0 as in ``slices.csv``; the strongest has a
    frame.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = chosen_slices(picture.per_slice)
    shown = picture.image[chosen]
    low, high = picture.window or _range(shown)
    colours, limits = "coolwarm" if picture.signed else "inferno", _limits(picture.overlay, signed=picture.signed)
    rows = math.ceil(len(chosen) / COLUMNS)
    across = math.ceil(len(chosen) / rows)
    _, spacing_h, spacing_w = picture.spacing
    ratio = shown.shape[1] * spacing_h / (shown.shape[2] * spacing_w)
    tall = min(2.5, max(0.5, ratio)) * INCH + 0.25
    figure = Figure(figsize=(INCH * max(across, 3) + 0.9, tall * rows + 0.9), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    strongest = strongest_slice(picture.per_slice)
    panels = figure.subplots(rows, across, squeeze=False)
    for axis in panels.flat[len(chosen) :]:
        axis.set_axis_off()
    for axis, place in zip(panels.flat, chosen, strict=False):
        grey = np.clip((picture.image[place].astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)
        look = {"aspect": spacing_h / spacing_w, "interpolation": "nearest"}
        axis.imshow(grey, cmap="gray", vmin=0, vmax=1, **look)
        overlay = picture.overlay[place]
        alpha = OPAQUE * np.clip(np.abs(overlay) / limits[1], 0, 1)  # what says little hides little
        axis.imshow(overlay, cmap=colours, vmin=limits[0], vmax=limits[1], alpha=alpha, **look)
        _dress(axis, picture, place, is_strongest=place == strongest)
    _heading(figure, picture, strongest)
    width, height = figure.get_size_inches()
    figure.subplots_adjust(0.01, 0.02, 1 - 0.85 / width, 1 - 0.85 / height, wspace=0.04, hspace=0.16)
    _colour_bar(figure, (1 - 0.72 / width, 0.1, 0.12 / width, 0.65), colours, limits)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # study names in any script
        figure.savefig(buffer, format="png", facecolor="black")
    return buffer.getvalue()


def shown_range(windows: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Return the lowest and highest value of the widest of some windows (level, width); None of none."""
    if not windows:
        return None
    level, width = max(windows, key=lambda window: window[1])
    return level - width / 2, level + width / 2


def _range(image: np.ndarray) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(image, (1, 99.5)))
    return (low, high) if high > low else (float(image.min()), float(image.max()))


def _limits(overlay: np.ndarray, *, signed: bool) -> tuple[float, float]:
    """Return the values at both ends of the colour bar: single voxels may stand out and are cut."""
    sizes = np.abs(overlay)
    sizes = sizes[sizes > 0]
    top = float(np.percentile(sizes, 99.5)) if sizes.size else 1.0
    return (-top if signed else 0.0), top


def _dress(axis: Any, picture: Picture, place: int, *, is_strongest: bool) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(
        f"slice {place + 1}, {picture.positions[place]:.1f} mm",
        color=MARK if is_strongest else "white",
        fontsize=6.5,
        pad=2,
    )
    for spine in axis.spines.values():
        spine.set_visible(is_strongest)
        spine.set(color=MARK, linewidth=2)
    for text, where, side in zip(SIDES[picture.plane], (0.02, 0.98), ("left", "right"), strict=True):
        axis.text(where, 0.5, text, color="0.75", fontsize=5.5, ha=side, va="center", transform=axis.transAxes)


def _heading(figure: Any, picture: Picture, strongest: int | None) -> None:
    lines = [
        (picture.title, "white", 10),
        (picture.subtitle, "0.8", 7.5),
        (
            "no slice speaks for it"
            if strongest is None
            else f"strongest: slice {strongest + 1} (framed), {picture.positions[strongest]:.1f} mm; "
            f"{len(chosen_slices(picture.per_slice))} of {len(picture.per_slice)} slices, numbered from 0",
            MARK,
            7.5,
        ),
    ]
    height = figure.get_figheight()
    for number, (text, colour, size) in enumerate(lines):
        # A dollar sign would start a formula.
        text = text.replace("$", r"\$")
        figure.text(0.01, 1 - (0.12 + 0.2 * number) / height, text, color=colour, fontsize=size, va="top")


def _colour_bar(figure: Any, place: tuple[float, ...], colours: str, limits: tuple[float, float]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    # Of its own, as slices have an opacity a voxel.
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), colours), cax=figure.add_axes(place))
    bar.ax.tick_params(colors="white", labelsize=6)
    bar.outline.set_edgecolor("0.5")
    bar.ax.yaxis.get_offset_text().set(color="white", fontsize=6)
    bar.ax.set_title("for it", color="white", fontsize=6.5)
    if limits[0] < 0:
        bar.ax.set_xlabel("against it", color="white", fontsize=6.5)
