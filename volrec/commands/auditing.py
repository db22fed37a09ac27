"""The context audit: what is computed, and what is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec import api
from volrec.errors import Problem
from volrec.report.terminal import NAMES, interval, say

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["audit"]


def audit(run: Path, folder: Path | None, *, out: Path | None, console: Console, **options: Any) -> list[Problem]:
    """Audit a run, print its table and say what it means."""
    result = api.audit(run, folder, out=out, **options)
    problems = [Problem(**problem) for problem in result["problems"]]
    for problem in problems:
        if problem.code == "seen-in-training":
            say(console, f"{problem.reason} {problem.remedy}")
    what = f"{folder}" if folder is not None else f"its own {result['part']} studies"
    say(console, f"{run} on {what}: {result['studies']} studies of {result['patients']} patients")
    _print(result, console)
    say(console, "Numbers of slices: the most informative ones of each study, found without its label, and no others.")
    say(console, "")
    say(console, result["verdict"]["sentence"])
    place = out or (run if folder is None else run / f"audit-{folder.resolve().name}")
    say(console, f"\nScores: {place / 'audit.csv'}\nPlot:   {place / 'audit.svg'}")
    return problems


def _print(result: Mapping[str, Any], console: Console) -> None:
    from rich.table import Table

    name = result["metric"]
    table = Table(show_edge=False)
    table.add_column("condition")
    table.add_column(f"{NAMES.get(name, name)} [95 % interval]", justify="right")
    table.add_column("difference", justify="right")
    for condition in result["conditions"]:
        metric, difference = condition["metrics"][name], condition["difference"]
        note = f"  ({metric['reason']})" if metric.get("reason") else ""
        first = condition["kind"] == "whole"
        label = condition["name"]
        if condition["slices"] is not None:
            label = f"{label} ({condition['slices'] * result['spacing']:.0f} mm)"
        table.add_row(label, interval(metric) + note, "" if first else interval(difference))
    console.print(table)
