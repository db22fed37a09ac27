"""The middle slice of every chosen series on one page: people look before they read."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volrec.data.choose import modality_of
from volrec.errors import DataError, VolrecError
from volrec.files import write_atomically
from volrec.io import read_series
from volrec.progress import track
from volrec.report.inspect import printable
from volrec.transforms.windows import WINDOWS

if TYPE_CHECKING:
    from volrec.data.index import StudyIndex, StudyRecord

__all__ = ["contact_sheet", "pick"]

log = logging.getLogger(__name__)

INCH = 2.4
"""Width and height of a picture with its title."""
DPI = 110


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes
    ----------
    title : str
        Two lines.
    image : ndarray, optional
        (H, W) in [0, 1]; None where the series could not be decoded.
    aspect : float
        Height of a pixel over its width.
    fault : str
        Why there is no image.
    """

    title: str
    image: np.ndarray | None
    aspect: float = 1.0
    fault: str = ""


def contact_sheet(index: StudyIndex, path: Path | str, *, columns: int = 6, most: int = 24) -> Path:
    """Draw the middle slices of the chosen series.

    CT is shown through the soft-tissue window and through its own range; everything else through its own range (1st to
    99.5th percentile of the slice).

    Parameters
    ----------
    index : StudyIndex
        With at least one study.
    path : path or str
        PNG file.
    columns : int
        Pictures a row.
    most : int
        Studies drawn at most, spread evenly over the index; the heading says so.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    DataError
        There is no study to draw, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    if not index.studies:
        raise DataError(
            "there is no usable study to draw.", remedy="See the problems listed.", where=path, code="no-usable-study"
        )
    studies = pick(index.studies, most)
    panels = [panel for record in track(studies, "drawing the contact sheet") for panel in panels_of(record)]
    across = min(columns, len(panels))
    rows = math.ceil(len(panels) / across)
    # A single picture is drawn larger, so that the heading has room.
    inch = INCH * max(1.0, 3 / across)
    figure = Figure(figsize=(inch * across, (inch + 0.35) * rows + 0.4), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    heading = (
        f"{len(studies)} {'study' if len(studies) == 1 else 'studies'}"
        if len(studies) == len(index.studies)
        else (f"{len(studies)} of {len(index.studies)} studies, evenly spread")
    )
    # A dollar sign would start a formula.
    figure.suptitle(
        f"{printable(index.root.name)}: {heading}, middle slices".replace("$", r"\$"), color="white", fontsize=9
    )
    axes = figure.subplots(rows, across, squeeze=False)
    for place, panel in zip(axes.flat, [*panels, *[None] * (rows * across - len(panels))], strict=True):
        place.set_axis_off()
        if panel is None:
            continue
        place.set_title(panel.title.replace("$", r"\$"), color="white", fontsize=6)
        if panel.image is None:
            place.text(
                0.5,
                0.5,
                panel.fault.replace("$", r"\$"),
                color="tomato",
                fontsize=6,
                ha="center",
                va="center",
                wrap=True,
            )
        else:
            place.imshow(panel.image, cmap="gray", vmin=0, vmax=1, aspect=panel.aspect, interpolation="nearest")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # folder names in any script
        figure.tight_layout(rect=(0, 0, 1, 0.97))
        figure.savefig(buffer, format="png", facecolor="black")
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise DataError(
            f"it cannot be written ({error.strerror or error}).",
            remedy="Choose another place.",
            where=path,
            code="unwritable",
        ) from None
    return path


def pick(studies: Sequence[StudyRecord], most: int) -> list[StudyRecord]:
    """Return at most `most` studies, the first and the last among them, evenly spread."""
    if len(studies) <= most:
        return list(studies)
    places = np.linspace(0, len(studies) - 1, max(1, most)).round().astype(int)
    return [studies[place] for place in places]


def panels_of(record: StudyRecord) -> Iterator[Panel]:
    """Decode one study and yield its pictures; a study that cannot be decoded yields the reason."""
    name = _shorten(printable(record.study))
    try:
        volume = read_series(record.series)
    except VolrecError as error:
        yield Panel(name, None, fault=f"{error.code}: {_shorten(printable(error.problem), 120)}")
        return
    array = volume.array[0]
    middle = array[array.shape[0] // 2]
    _, height, width = volume.spacing
    size = "x".join(str(length) for length in array.shape)
    geometry = f"{size}, {'x'.join(f'{length:.3g}' for length in volume.spacing)} mm"
    aspect = height / width
    if modality_of(record.series) == "CT":
        level, breadth = WINDOWS["soft-tissue"]
        shown = _scaled(middle, level - breadth / 2, level + breadth / 2)
        yield Panel(f"{name}\n{geometry}", shown, aspect)
        yield Panel(f"{name}\nits own range", _own_range(middle), aspect)
    else:
        yield Panel(f"{name}\n{geometry}", _own_range(middle), aspect)


def _own_range(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, (1, 99.5))
    if low >= high:  # a bright spot on a flat slice
        low, high = float(image.min()), float(image.max())
    return _scaled(image, low, high)


def _scaled(image: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((image.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)


def _shorten(text: str, most: int = 34) -> str:
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"
