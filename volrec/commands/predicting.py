"""Scores of a folder: what is computed, and what is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec import api
from volrec.errors import Problem, RunError
from volrec.report.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["predict"]

SHOWN = 5
"""Most warnings told on the terminal; the table has them all."""


def predict(
    run: Path, folder: Path, *, out: Path, also: Sequence[Path] = (), console: Console, **options: Any
) -> list[Problem]:
    """Score a folder, write its files, and tell what they are and what is odd."""
    table = api.load(run).predict(folder, out=out, also=also, **options)
    problems = [Problem(**problem) for problem in table.attrs.pop("problems")]
    if table.empty:
        first = next((problem for problem in problems if problem.fatal), None)
        raise RunError(
            f"no study of {folder} could be scored" + (f": {first.reason}" if first else "."),
            remedy=first.remedy if first else "`volrec inspect` says what is in it.",
            code="no-usable-study",
        )
    from volrec.inference.outputs import beside

    files = beside(out)
    count = f"{len(table)} {'study' if len(table) == 1 else 'studies'}"
    say(console, f"{count} scored, written to {files['scores']} and, with all settings, {files['record']}.")
    for name, what in (("slices", "Scores of single slices"), ("quarantine", "What was left out or assumed")):
        if files[name].is_file():
            say(console, f"{what}: {files[name]}")
    warned = table["warning"].fillna("")
    told = Counter(part for text in warned for part in text.split("; ") if part)
    for warning, times in told.most_common(SHOWN):
        say(console, f"warning, {times} of {len(table)}: {warning}")
    if len(told) > SHOWN:
        say(console, f"{(warned != '').sum()} studies have warnings, of {len(told)} kinds: see the column warning.")
    return problems
