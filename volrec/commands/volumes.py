"""The command that puts trajectories across slices beside a run's network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec import api
from volrec.errors import Problem
from volrec.report import terminal

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["trajectories_beside"]

SHOWN = ("auc", "accuracy")
NAMES = {
    "run": "(the run's own scores)",
    "network": "network",
    "trajectories": "trajectories",
    "both": "both",
}


def trajectories_beside(run: Path, *, out: Path | None, console: Console, **given: Any) -> list[Problem]:
    """Print what network, trajectories and both reach on the run's test studies, and where it is written."""
    done = api.trajectories_beside(run, out, **given)
    table = next(iter(done.scores.values()))
    counts = table["trajectories"]

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"{run}: {len(table)} test studies of {table['patient'].nunique()} patients")
    say(f"Trajectories of a study: {counts.min()} to {counts.max()}, median {counts.median():.0f}")
    rows = [
        [text, *(terminal.interval(done.metrics[arm]["metrics"].get(name)) for name in SHOWN)]
        for arm, text in NAMES.items()
        if arm in done.metrics
    ]
    if done.gains:
        rows.append(["both minus network", *(terminal.interval(done.gains.get(name)) for name in SHOWN)])
    headings = ["classifier reads", *(terminal.NAMES.get(name, name.replace("_", " ")) for name in SHOWN)]
    terminal.print_rows(headings, rows, console, plain=True)
    say(f"Scores and metrics: {done.path}")
    return [problem for problem in done.problems if problem.study]
