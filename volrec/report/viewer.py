"""A slice viewer inside a page: scroll through studies as on a reading station, with the model's evidence over them.

It is drawn on a 2D canvas by our own script (``viewer.js``) and needs no package. niivue, the viewer one would take
otherwise, is some megabytes of script for one file, and draws by WebGL: on paper and in browsers without a graphics
card there would be nothing. Reports need slices, windows and one overlay, and these are a few hundred lines.

Voxels travel inside the page with their true values, deflated, and are unpacked for the study that is looked at.
Studies that are too large for a page are shown by means over areas, and the caption says so. Without JavaScript, in
browsers without `DecompressionStream` (before 2023) and on paper every study shows its most telling slice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from volrec.errors import ConfigError
from volrec.progress import track
from volrec.report.inspect import printable
from volrec.report.viewer_data import colour_map
from volrec.report.viewer_study import EDGES, OPACITY, Pictures, ViewerStudy, describe, prepare

__all__ = ["VIEWER_SCRIPT", "VIEWER_STYLE", "ViewerStudy", "viewer_html"]

VIEWER_STYLE = files("volrec.report").joinpath("viewer.css").read_text(encoding="utf-8")
"""Style of all viewers of a page: once, beside that of the page, whose colours it takes."""
VIEWER_SCRIPT = files("volrec.report").joinpath("viewer.js").read_text(encoding="utf-8")
"""Script of all viewers of a page: once, in a `<script>`; it starts every viewer that it finds."""

MOST_SIDE, LEAST_SIDE = 256, 48
"""Rows or columns of a picture: at most, and at least before slices are put together."""
MOST_SLICES, LEAST_SLICES = 96, 16

_KEYS = (
    ("wheel, ↑ ↓", "slice by slice; down goes to lower numbers, in axial slices towards the feet"),
    ("Page Up, Page Down", "ten slices"),
    ("Home, End", "first and last slice"),
    ("S", "the slice with the strongest evidence"),
    ("drag", "window: across for the width, up and down for the level (on a touch screen: slices)"),
    ("1 to 9", "windows"),
    ("O", "overlay on and off"),
    ("[ and ]", "overlay weaker and stronger"),
    ("N, P", "next and previous study"),
    ("F", "full screen"),
    ("R", "as it was at first"),
)
_WINDOW_BUTTONS = 9
_CURVE = (600.0, 80.0)


def viewer_html(studies: Sequence[ViewerStudy], *, identifier: str, max_bytes: int = 8_000_000) -> str:
    """Return a viewer of some studies as a piece of HTML; the page needs `VIEWER_STYLE` and `VIEWER_SCRIPT` once.

    Parameters
    ----------
    studies : sequence of ViewerStudy
        Listed under their groups, groups in the order of their first study. None gives an empty string. A study that
        stands in several groups (`dataclasses.replace` with another group) is carried once.
    identifier : str
        Of the element, one for each viewer of a page: letters, digits, hyphens.
    max_bytes : int
        What the studies may take in the page; pictures get smaller until they fit, then slices are put together.

    Raises
    ------
    ConfigError
        When the smallest pictures take more than `max_bytes`, or the identifier cannot be one.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", identifier):
        raise ConfigError(
            f"{identifier!r} cannot be the identifier of a viewer.",
            remedy="Begin with a letter, then letters, digits and hyphens.",
            code="viewer",
        )
    if not studies:
        return ""
    groups = list(dict.fromkeys(study.group for study in studies))
    ordered = [study for group in groups for study in studies if study.group == group]
    pictures = _fitted({_key(study): study for study in ordered}, max_bytes)
    carriers = {key: number for number, key in enumerate(pictures)}
    facts = [{**describe(study, pictures[_key(study)]), "carrier": carriers[_key(study)]} for study in ordered]
    colours = {name: colour_map(signed=signed).ravel().tolist() for name, signed in (("for", False), ("signed", True))}
    figures = (_figure([study for study in ordered if _key(study) == key], shown) for key, shown in pictures.items())
    carried = (_carried(carriers[key], shown) for key, shown in pictures.items())
    return "\n".join(
        [
            f'<div class="vr-viewer" id="{identifier}">',
            _application(facts, [study.group for study in ordered], identifier),
            '<p class="vr-old" hidden>This browser is too old to scroll through the slices (it lacks '
            "DecompressionStream). Each study shows the slice that tells most.</p>",
            f'<div class="vr-static">{"".join(figures)}</div>',
            f'<script type="application/json" class="vr-data">{_json({"studies": facts, "colours": colours})}</script>',
            *carried,
            "</div>",
        ]
    )


def _fitted(studies: dict[Any, ViewerStudy], max_bytes: int) -> dict[Any, Pictures]:
    """Make the pictures of studies in the largest size that fits."""
    side = min(MOST_SIDE, max(max(study.image.shape[1:]) for study in studies.values()))
    slices = min(MOST_SLICES, max(len(study.image) for study in studies.values()))
    while True:
        pictures = {
            key: prepare(study, side=side, slices=slices)
            for key, study in track(studies.items(), "pictures of the report", len(studies))
        }
        total = sum(shown.size for shown in pictures.values())
        if total <= max_bytes:
            return pictures
        share = max_bytes / total
        if side > LEAST_SIDE:
            side = max(LEAST_SIDE, min(side - 8, int(side * math.sqrt(share) / 8) * 8))
        elif slices > LEAST_SLICES:
            slices = max(LEAST_SLICES, min(slices - 4, int(slices * share)))
        else:
            raise ConfigError(
                f"{len(studies)} studies take {total:,} bytes in their smallest size, and {max_bytes:,} are allowed.",
                remedy="Show fewer studies, or allow more bytes.",
                code="viewer",
            )


def _key(study: ViewerStudy) -> tuple[object, ...]:
    """Return what makes two entries the same pictures."""
    windows = tuple(tuple(window) for window in study.windows)
    return (id(study.image), id(study.overlay), id(study.slice_scores), study.title, windows, study.signed)


def _json(data: object) -> str:
    """Return JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _carried(number: int, shown: Pictures) -> str:
    """Return the voxels as elements of their own: they are read when the study is looked at."""
    parts = [("voxels", shown.voxels), ("weights", shown.weights)]
    return "\n".join(
        f'<script type="text/plain" class="vr-{name}" data-number="{number}">{text}</script>'
        for name, text in parts
        if text
    )


def _application(facts: Sequence[dict[str, Any]], groups: Sequence[str], identifier: str) -> str:
    """Return the controls; the script fills them and takes away `hidden`."""
    edges = "".join(f'<span class="vr-edge vr-{side}"></span>' for side in ("left", "right", "top", "bottom"))
    corners = "".join(f'<div class="vr-corner vr-{name}"></div>' for name in ("study", "slice", "window", "plane"))
    most = min(_WINDOW_BUTTONS, max(len(own["windows"]) for own in facts))
    buttons = "".join(f'<button type="button" class="vr-preset" data-number="{n}"></button>' for n in range(most))
    keys = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>" for key, text in _KEYS)
    return f"""<div class="vr-app" role="group" aria-label="Slice viewer" hidden>
<div class="vr-list" role="listbox" tabindex="0" aria-label="Studies">{_options(facts, groups, identifier)}</div>
<div class="vr-main">
<div class="vr-stage" tabindex="0" role="application" aria-roledescription="slice viewer" aria-label="Slices"
 aria-describedby="{identifier}-help"><canvas></canvas>{edges}{corners}<p class="vr-message" role="status"></p></div>
<input type="range" class="vr-slider" min="0" step="1" aria-label="Slice">
<div class="vr-ends"><span></span><span></span></div>
<div class="vr-curve"><div class="vr-curve-name"><span></span><span></span></div>
<div class="vr-plot" aria-hidden="true"></div></div>
<p class="note">Wheel or arrow keys: slices. Drag: window. O: overlay.</p>
<p class="vr-caption note"></p>
<p class="vr-said" aria-live="polite"></p>
</div>
<div class="vr-side">
<dl class="vr-facts"></dl>
<div class="vr-box" role="group" aria-label="Window"><h3>Window</h3><div class="vr-presets">{buttons}</div></div>
<div class="vr-box vr-overlay" role="group" aria-label="Overlay"><h3 class="vr-evidence"></h3>
<button type="button" class="vr-toggle" aria-pressed="true"><kbd>O</kbd> Overlay</button>
<label>Opacity <input type="range" class="vr-opacity" min="0" max="100" step="5" value="{100 * OPACITY:.0f}"></label>
<div class="vr-legend"><canvas width="256" height="1" aria-hidden="true"></canvas><div><span></span><span></span></div>
</div></div>
<div class="vr-box vr-buttons"><button type="button" class="vr-strongest">Strongest slice <kbd>S</kbd></button>
<button type="button" class="vr-reset">Reset <kbd>R</kbd></button>
<button type="button" class="vr-full">Full screen <kbd>F</kbd></button></div>
</div>
<details class="vr-help"><summary>Mouse and keys</summary><dl id="{identifier}-help">{keys}</dl></details>
</div>"""


def _options(facts: Sequence[dict[str, Any]], groups: Sequence[str], identifier: str) -> str:
    """Return the studies of the list under the names of their groups."""
    parts: list[str] = []
    for place, group in enumerate(dict.fromkeys(groups)):
        name = f"{identifier}-group-{place}"
        heading = escape(printable(group[:1].upper() + group[1:])) or "Studies"
        options = "".join(
            f'<div role="option" id="{identifier}-study-{number}" data-number="{number}" aria-selected="false">'
            f"<b>{escape(own['title'])}</b><span>{escape(_short(own['facts']))}</span></div>"
            for number, own in enumerate(facts)
            if groups[number] == group
        )
        parts.append(f'<div role="group" aria-labelledby="{name}"><h3 id="{name}">{heading}</h3>{options}</div>')
    return "".join(parts)


def _short(facts: Sequence[Sequence[str]]) -> str:
    return " · ".join(f"{name} {value}" for name, value in facts[:2])


def _figure(studies: Sequence[ViewerStudy], shown: Pictures) -> str:
    """Return the most telling slice of a study: what paper shows, and pages where no script runs."""
    study = studies[0]
    facts = describe(study, shown)
    wide, high = facts["mm"]
    groups = ", ".join(printable(own.group) for own in studies if own.group)
    name, level, width = shown.windows[0]
    where = f"{facts['slices'][shown.start]}, {facts['positions'][shown.start]}"
    (left, _), (right, _), _, _ = EDGES[study.plane]
    said = [f"{where}; {study.plane}, {left} on the left and {right} on the right of the picture;"]
    said.append(
        f"window {printable(name)} (level {level:.5g}, width {width:.5g}{facts['unit'] and ' ' + facts['unit']})."
    )
    if shown.mixed:
        said.append(
            f"Right: {printable(study.overlay_name)}, orange to yellow"
            + (" for it, blue against it" if study.signed else "")
            + ", the brighter the stronger."
        )
    curve = _curve(study, facts["places"][shown.start])
    if curve:
        said.append(f"Curve: {printable(study.slice_score_name)} of every slice; the line is at this one.")
    said.append(facts["caption"])
    size = f'style="aspect-ratio:{wide:.6g}/{high:.6g}"'
    pictures = f'<img {size} src="{shown.plain}" alt="{escape(where)}">'
    if shown.mixed:
        pictures += f'<img {size} src="{shown.mixed}" alt="{escape(where)} with {escape(facts["evidence"])}">'
    about = " · ".join(f"{name} {value}" for name, value in facts["facts"])
    return (
        f"<figure><h3>{escape(facts['title'])}{' <small>' + escape(groups) + '</small>' if groups else ''}</h3>"
        f"<p>{escape(about)}</p><div>{pictures}</div>{curve}"
        f"<figcaption>{escape(' '.join(said).strip())}</figcaption></figure>"
    )


def _curve(study: ViewerStudy, cursor: float) -> str:
    """Draw the slice scores over the slices, with a line at the slice that is shown; empty where there are none."""
    if study.slice_scores is None:
        return ""
    scores = np.asarray(study.slice_scores, dtype=np.float64)
    if not np.isfinite(scores).any():
        return ""
    across, up = _CURVE
    low, high = _range(scores)
    path: list[str] = []
    pen_down = False
    for place, score in enumerate(scores):
        if not math.isfinite(score):
            pen_down = False
            continue
        x = across * (place / (len(scores) - 1) if len(scores) > 1 else 0.5)
        y = up * (1 - (score - low) / (high - low))
        # A step of no length leaves a dot: a slice whose neighbours have no score is seen too.
        path.append(f"L{x:.1f} {y:.1f}" if pen_down else f"M{x:.1f} {y:.1f}h0")
        pen_down = True
    return (
        f'<svg class="vr-scores" viewBox="0 0 {across:g} {up:g}" preserveAspectRatio="none" role="img" '
        f'data-low="{low:.3g}" data-high="{high:.3g}" '
        f'aria-label="{escape(printable(study.slice_score_name))} of each slice, from {low:.3g} to {high:.3g}">'
        f'<path class="vr-line" d="{"".join(path)}"/>'
        f'<path class="vr-cursor" d="M{across * cursor:.1f} 0V{up:g}"/></svg>'
    )


def _range(scores: np.ndarray) -> tuple[float, float]:
    """Return the ends of the axis: 0 and 1 for probabilities, so that studies can be compared; else the values' own."""
    finite = scores[np.isfinite(scores)]
    low, high = float(finite.min()), float(finite.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin
