"""The bare page of a report: style, tables, figures. Everything is in the one file; nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Raw", "anchor", "details", "figure", "navigation", "page", "section", "table", "tiles"]

STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5b6b7b; --paper: #fbfcfd; --card: #ffffff; --line: #dfe5eb;
  --accent: #2f80d0; --link: #1d66ac; --good: 42, 157, 116; --bad: 209, 73, 91; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e3e9ef; --soft: #98a6b3; --paper: #12181f;
  --card: #1a222b; --line: #2d3945; --link: #6db0ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header { border-bottom: 3px solid var(--accent); padding-bottom: 1.25rem; margin-bottom: 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .35rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p, li { margin: .45rem 0; max-width: 46rem; } li { margin: .15rem 0; } ul { padding-left: 1.2rem; margin: .3rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .9rem; margin: 0 0 1rem; }
a { color: var(--link); } nav a { text-decoration: none; } nav a:hover, nav a:focus { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
section { scroll-margin-top: 1rem; }
.soft, figcaption, .note { color: var(--soft); font-size: .9rem; }
.lead { font-size: 1.08rem; }
header .lead { margin-top: 1rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.1rem 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem 1rem;
  min-width: 9rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1rem; }
figure { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; margin: 0; padding: .8rem; }
figure.wide { grid-column: 1 / -1; }
figure svg { display: block; width: 100%; height: auto; max-height: 30rem; }
figcaption { margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { text-align: left; padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; }
td.number, td:first-child { white-space: nowrap; }
table.matrix td, table.matrix th { text-align: center; padding: .55rem 1.1rem; border: 1px solid var(--line); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .87em;
  overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .7rem .9rem;
  white-space: pre-wrap; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--link); }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem; }
@media print { :root { color-scheme: light; } nav { display: none; }
  body { max-width: none; padding: 0; background: #fff; font-size: 11pt; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } }
"""


class Raw(str):
    """Text that is HTML already."""


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """Return a whole document.

    Parameters
    ----------
    title : str
        Of the window; it is escaped.
    body : str
        HTML.
    style, script : str
        Of what stands in the body (the slice viewer): CSS after that of the page, and a script at the end.
    """
    ending = f"<script>\n{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n{ending}</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a heading with what belongs to it, or nothing when that is empty."""
    content = "\n".join(part for part in parts if part)
    if not content:
        return ""
    return f'<section id="{anchor(title)}">\n<h2>{escape(title)}</h2>\n{content}\n</section>'


def anchor(title: str) -> str:
    """Return what a heading is called in an address."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


def navigation(sections: Sequence[str]) -> str:
    """Return links to sections, in their order; nothing for fewer than three."""
    found = re.findall(r'<section id="([^"]*)">\n<h2>(.*?)</h2>', "\n".join(sections))
    links = [f'<a href="#{place}">{name}</a>' for place, name in found]
    return f'<nav aria-label="Sections of this report">{" ".join(links)}</nav>' if len(links) > 2 else ""


def figure(svg: str, caption: str, *, wide: bool = False) -> str:
    """Return a plot with the sentence that says how to read it."""
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """Return a row of large values, each with its meaning below."""
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in facts
    )
    return f'<div class="tiles">{cells}</div>'


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, kind: str = "") -> str:
    """Return a table; numbers are set right. Cells that are `Raw` are taken as they are."""
    if not rows:
        return ""
    right = [all(_is_number(row[place]) for row in rows) for place in range(len(headings))]
    head = "".join(f"<th{_number(flag)}>{escape(text)}</th>" for text, flag in zip(headings, right, strict=True))
    body = "\n".join(
        "<tr>" + "".join(_cell(value, right=flag) for value, flag in zip(row, right, strict=True)) + "</tr>"
        for row in rows
    )
    attribute = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll"><table{attribute}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    )


def details(summary: str, content: str) -> str:
    """Return something that is folded away."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>" if content else ""


def _cell(value: object, *, right: bool) -> str:
    if isinstance(value, Raw) and value.startswith("<td"):
        return value
    text = value if isinstance(value, Raw) else escape(str(value))
    return f"<td{_number(right)}>{text}</td>"


def _number(flag: bool) -> str:
    return ' class="number"' if flag else ""


def _is_number(value: object) -> bool:
    text = str(value).split(" ")[0].replace("%", "")
    try:
        float(text)
    except ValueError:
        return text in {"", "-"} or value is None
    return True
