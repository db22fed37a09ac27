"""The report of a run: what is computed, and what is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec import api
from volrec.errors import ConfigError, RunError
from volrec.report.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

    from volrec.report.making import Made

__all__ = ["make_report", "tell_report"]


def make_report(run: Path, *, console: Console, **given: Any) -> None:
    """Write the report of a run again and say where it is."""
    _check(given.get("gallery"), given.get("method"))
    if isinstance(api.load(run), api.FusedRun):
        raise RunError(
            "it is a fused run, which has no report of its own.",
            remedy="Report the runs that it was made of, one by one; `volrec evaluate` knows fused runs.",
            where=run,
            code="fused-run",
        )
    tell_report(api.make_report(run, **given), console)


def _check(gallery: int | None, method: str | None) -> None:
    """Refuse what was mistyped: a report made of it would lack its gallery, and say so only at its end."""
    if gallery is not None and gallery < 0:
        raise ConfigError(
            f"--gallery must be at least 0, got {gallery}.", remedy="0 shows none, 3 is usual.", code="parameter"
        )
    if method is not None:
        from volrec.explain import find_method

        find_method(method)


def tell_report(made: Made, console: Console) -> None:
    """Say what the audit means, what could not be shown, and where the page is."""
    if made.audit is not None:
        say(console, f"Context: {made.audit['verdict']['sentence']}")
    for note in made.notes:
        say(console, note)
    say(console, f"Report: {made.path.resolve().as_uri()}")
