"""Scores of a folder: what is computed, and what is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from volrec import api
from volrec.errors import Problem, RunError
from volrec.report.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["predict"]


def predict(run: Path, folder: Path, *, out: Path, device: str, console: Console) -> list[Problem]:
    """Score a folder and write one row a study."""
    table = api.load(run).predict(folder, device=device)
    problems = [Problem(**problem) for problem in table.attrs.pop("problems")]
    if table.empty:
        first = next((problem for problem in problems if problem.fatal), None)
        raise RunError(
            f"no study of {folder} could be scored" + (f": {first.reason}" if first else "."),
            remedy=first.remedy if first else "`volrec inspect` says what is in it.",
            code="no-usable-study",
        )
    from volrec.files import write_atomically

    text = table.to_json(orient="records", indent=2) if out.suffix == ".json" else table.to_csv(index=False)
    write_atomically(out, text)
    say(console, f"{len(table)} {'study' if len(table) == 1 else 'studies'} scored, written to {out}.")
    warned = table.loc[table["warning"].fillna("") != "", "warning"]
    for warning, count in warned.value_counts().items():
        say(console, f"warning, {count} of {len(table)}: {warning}")
    return problems
