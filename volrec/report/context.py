"""The sections on what a run was asked besides its score: the use of context, groups of studies, where it looked."""

from __future__ import annotations

from html import escape
from typing import Any

from volrec.report.audit_plot import audit_plot
from volrec.report.findings import Findings, plain_value
from volrec.report.forest import subgroup_forest
from volrec.report.page import details, section, table
from volrec.report.terminal import NAMES
from volrec.report.viewer import ViewerStudy, viewer_html

__all__ = ["audit", "gallery", "subgroups"]

ORDER = {
    "used": "It uses the order of the slices.",
    "not-used": "The order of the slices makes no difference to it.",
    "cannot": "It cannot use the order of slices: it puts them together without regard to it.",
    "unclear": "Whether it uses the order of the slices cannot be told from so few studies.",
}


def audit(found: Findings) -> str:
    """Say whether slices are read as a sequence, and show what became of the metric without their order or extent."""
    facts = found.audit
    if not facts:
        return ""
    verdict, metric = facts["verdict"], facts["metric"]
    rows = [
        [one["name"], plain_value(one["metrics"][metric]), plain_value(one["difference"]) if one["difference"] else ""]
        for one in facts["conditions"]
    ]
    name = NAMES.get(metric, metric)
    lead = f'<p class="lead">{escape(verdict["sentence"])}</p>'
    order = f"<p>{escape(ORDER[verdict['order']])}</p>" if verdict.get("order") in ORDER else ""
    caption = (
        f"{name} of {facts['studies']} {facts['part']} studies of {facts['patients']} patients, scored again by the "
        "networks that had not seen them. Left: only so many slices around the most informative one are shown, which "
        "is chosen without labels. Right: slices in another order, repeated or left out. Dashed: the studies as they "
        "are."
    )
    more = table(["slices shown", f"{name} [95 % interval]", "difference from the studies as they are"], rows)
    return section(
        "Does it need context?",
        lead,
        order,
        found.show(audit_plot(facts), caption, wide=True),
        details("All conditions, and the rules of the sentence", more + _rules(verdict)),
    )


def subgroups(found: Findings) -> str:
    """Show how good the run is in groups of studies: women and men, one scanner and the next."""
    tables: list[dict[str, Any]] = found.subgroups.get("columns", [])
    if not tables:
        return ""
    overall = found.metrics.get("metrics", {}).get(tables[0]["metric"])
    caption = "Groups of the test studies, with 95 % intervals over patients; hollow: too few to be trusted."
    sentences = "".join(f"<p>{escape(one['sentence'])}</p>" for one in tables if one.get("sentence"))
    rows = [
        [
            one["column"],
            group["name"],
            group["studies"],
            group["patients"],
            plain_value(group["difference"]),
            group["warning"],
        ]
        for one in tables
        for group in one["groups"]
    ]
    headings = ["column", "group", "studies", "patients", "difference from all others", "caution"]
    return section(
        "For whom",
        found.show(subgroup_forest(tables, overall=overall), caption, wide=True),
        sentences,
        details("All groups", table(headings, rows)),
    )


def gallery(found: Findings, studies: list[ViewerStudy]) -> str:
    """Show the studies that tell most, slice by slice."""
    if not studies:
        return ""
    lead = (
        "<p>The studies that went worst, those that the network is least sure of, and those that went best, as they "
        "were acquired. The overlay shows where the network found what speaks for the class that is named with the "
        "map; it is no outline of a finding.</p>"
    )
    return section("Where it looked", lead, viewer_html(studies, identifier="gallery"))


def _rules(verdict: dict[str, Any]) -> str:
    rules = verdict.get("rules")
    if not rules:
        return ""
    lines = rules.items() if isinstance(rules, dict) else enumerate(rules, 1)
    return table(["rule", "value"], [[str(name).replace("_", " "), str(value)] for name, value in lines])
