"""Draw the picture of the README (examples/idea.svg): a stack of slices read as a film.

Usage: python examples/draw_idea.py
"""

from __future__ import annotations

from pathlib import Path

INK, PALE, ACCENT, LESION = "#24292f", "#d0d7de", "#0969da", "#cf222e"


def slice_at(x: float, y: float, size: float, *, lesion: float, vessel: tuple[float, float]) -> str:
    """One axial slice: body, a vessel that drifts, a lesion that grows and shrinks."""
    middle = size / 2
    parts = [
        f'<rect x="{x}" y="{y}" width="{size}" height="{size}" rx="3" fill="#0d1117" stroke="{PALE}"/>',
        f'<ellipse cx="{x + middle}" cy="{y + middle}" rx="{size * 0.42}" ry="{size * 0.34}" fill="#57606a"/>',
        f'<circle cx="{x + vessel[0] * size}" cy="{y + vessel[1] * size}" r="{size * 0.055}" fill="#f6f8fa"/>',
    ]
    if lesion:
        parts.append(f'<circle cx="{x + size * 0.62}" cy="{y + size * 0.52}" r="{size * lesion}" fill="{LESION}"/>')
    return "".join(parts)


def arrow(x0: float, x1: float, y: float) -> str:
    """A plain arrow to the right."""
    return f'<path d="M{x0} {y}H{x1 - 7}" stroke="{INK}" stroke-width="2"/><path d="M{x1} {y}l-9 -5v10z" fill="{INK}"/>'


def text(
    x: float, y: float, words: str, *, anchor: str = "middle", colour: str = INK, size: int = 14, bold: bool = False
) -> str:
    """A line of text."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{weight}>{words}</text>'


def draw() -> str:
    """Return the whole picture as SVG."""
    lesions = [0.0, 0.0, 0.05, 0.085, 0.1, 0.085, 0.05, 0.0]
    vessels = [(0.3 + 0.012 * step, 0.45 + 0.008 * step) for step in range(len(lesions))]
    body = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1020 270" font-family="system-ui, sans-serif">',
        '<rect width="1020" height="270" fill="#ffffff"/>',
    ]
    for step in reversed(range(len(lesions))):  # the stack: far slices first
        body.append(slice_at(30 + 9 * step, 130 - 11 * step, 90, lesion=lesions[step], vessel=vessels[step]))
    body += [text(110, 250, "a CT or MR volume", bold=True), arrow(215, 260, 125)]
    left, top, size, step = 275.0, 92.0, 52.0, 58.0
    for index, lesion in enumerate(lesions):
        body.append(slice_at(left + index * step, top, size, lesion=lesion, vessel=vessels[index]))
    right = left + len(lesions) * step
    body += [
        arrow(left, right - 4, 172),
        text((left + right) / 2, 194, "slice axis = time axis", colour=ACCENT),
        text((left + right) / 2, 76, "a film: (C, T, H, W)", size=13),
        text((left + right) / 2, 250, "clips", bold=True),
        arrow(right + 4, right + 46, 118),
        f'<path d="M{right + 52} 72l70 24v44l-70 24z" fill="#ddf4ff" stroke="{ACCENT}"/>',
        text(right + 87, 123, "C3D …", colour=ACCENT),
        text(right + 87, 250, "a video network", bold=True),
        arrow(right + 128, right + 166, 118),
        text(right + 215, 112, "nodule", bold=True),
        text(right + 215, 132, "one score a study", size=12),
        "</svg>",
    ]
    return "\n".join(body) + "\n"


if __name__ == "__main__":
    target = Path(__file__).with_name("idea.svg")
    target.write_text(draw(), encoding="utf-8")
