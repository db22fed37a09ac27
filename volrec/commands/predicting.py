"""Scores of a folder: what is computed, and what is told."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec import api
from volrec.errors import Problem, RunError
from volrec.report.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["predict"]

SHOWN = 5
"""Most kinds of warnings told on the terminal; the table has them all."""
NUMBER = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
"""A number in a warning; those in names of runs (c3d, fold-1) are none."""


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
    runs = json.loads(files["record"].read_text(encoding="utf-8"))["runs"]
    if any(name.startswith(("called", "calibrated_")) for name in table.columns):
        for note in dict.fromkeys(run["decision_note"] for run in runs if run["decision_note"]):
            say(console, f"note: {note}.")
    for name, what in (("slices", _slices(runs)), ("quarantine", "What was left out or assumed")):
        if files[name].is_file():
            say(console, f"{what}: {files[name]}")
    warned = table["warning"].fillna("")
    kinds = _kinds(warned)
    for (example, alike), times in kinds[:SHOWN]:
        say(console, f"warning, {times} of {len(table)}{'' if alike else ', for example'}: {example}")
    if len(kinds) > SHOWN:
        say(console, f"{(warned != '').sum()} studies have warnings, of {len(kinds)} kinds: see the column warning.")
    return problems


def _slices(runs: Sequence[dict[str, Any]]) -> str:
    """Say what the scores of slices are: of a slice alone, or of all clips that hold it."""
    alone = {run["slice_scores"] == "slice alone" for run in runs}
    if alone == {True}:
        return "Scores of single slices"
    if alone == {False}:
        return "Scores of the clips that hold each slice"
    return "Scores of single slices or, by networks that read clips, of the clips that hold each slice"


def _kinds(warnings: Iterable[str]) -> list[tuple[tuple[str, bool], int]]:
    """Return the kinds of warnings, those that differ in their numbers being of one, the most frequent one first.

    Returns
    -------
    list of ((str, bool), int)
        The first warning of the kind, whether all read like it, and the number of studies.
    """
    found: dict[str, list[list[str]]] = defaultdict(list)
    for text in warnings:
        own: dict[str, list[str]] = defaultdict(list)
        for part in filter(None, text.split("; ")):
            own[NUMBER.sub("N", part)].append(part)
        for kind, parts in own.items():
            found[kind].append(parts)
    kinds = [
        ((studies[0][0], len({part for parts in studies for part in parts}) == 1), len(studies))
        for studies in found.values()
    ]
    return sorted(kinds, key=lambda kind: -kind[1])
