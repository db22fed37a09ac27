"""The report of a run: what is computed, and what is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec import api
from volrec.report.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

    from volrec.report.making import Made

__all__ = ["make_report", "tell_report"]


def make_report(run: Path, *, console: Console, **given: Any) -> None:
    """Write the report of a run again and say where it is."""
    tell_report(api.make_report(run, **given), console)


def tell_report(made: Made, console: Console) -> None:
    """Say what the audit means, what could not be shown, and where the page is."""
    if made.audit is not None:
        say(console, f"Context: {made.audit['verdict']['sentence']}")
    for note in made.notes:
        say(console, note)
    say(console, f"Report: {made.path.resolve().as_uri()}")
