"""How good a run is: what is computed, and what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from volrec import api
from volrec.errors import Problem
from volrec.report import terminal
from volrec.report.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["evaluate"]


def evaluate(
    run: Path,
    folder: Path | None,
    *,
    labels: Path | None,
    out: Path | None,
    include_training: bool = False,
    console: Console,
) -> list[Problem]:
    """Print metrics with intervals and write them where asked."""
    metrics, problems = api.evaluate_run(api.load(run), folder, labels=labels, include_training=include_training)
    for problem in problems:
        if problem.code == "seen-in-training":
            say(console, f"{problem.reason} {problem.remedy}")
    part = metrics.get("part", "test")
    say(console, f"{run} on {folder if folder is not None else f'its own {part} studies'}")
    say(console, f"{metrics.get('studies', 0)} studies of {metrics.get('patients', 0)} patients")
    terminal.print_metrics(metrics.get("metrics", {}), console, title="")
    if "fold_mean" in metrics:
        terminal.print_metrics(metrics["fold_mean"], console, title="mean over folds")
    for label, found in metrics.get("labels", {}).items():
        terminal.print_metrics(found["metrics"], console, title=label)
    if out is not None:
        from volrec.files import write_atomically

        write_atomically(out, json.dumps(metrics, indent=2) + "\n")
        say(console, f"Written to {out}.")
    return problems
