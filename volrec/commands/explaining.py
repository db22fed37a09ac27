"""Where networks looked: what is computed, and what is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volrec import api
from volrec.errors import DataError, Problem
from volrec.report.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

    from volrec.explain import Explanation

__all__ = ["explain"]


def explain(
    run: Path,
    studies: Sequence[str],
    *,
    methods: Sequence[str],
    output: str | None,
    options: Mapping[str, Any],
    folder: Path | None,
    out: Path | None,
    image: bool,
    sanity: bool,
    device: str,
    console: Console,
) -> list[Problem]:
    """Map studies, and print where each map is strongest and where its files are."""
    problems = []
    found = api.explain_run(
        api.load(run),
        studies,
        methods=methods,
        output=output,
        options=options,
        folder=folder,
        out=out,
        image=image,
        sanity=sanity,
        device=device,
    )
    said: set[str] = set()
    made = 0
    for one in found:
        if isinstance(one, Problem):
            problems.append(one)
            continue
        for warning in one.warnings:
            if warning not in said:
                say(console, f"warning: {warning}")
                said.add(warning)
        say(console, _line(one))
        made += 1
    if problems and not made:  # nothing was usable, which is no study set aside while the rest went on
        first = problems[0]
        several = f"none of {len(studies)} studies could be explained: " if len(studies) > 1 else ""
        raise DataError(f"{several}{first.reason}", remedy=first.remedy, where=first.where or None, code=first.code)
    return problems


def _line(one: Explanation) -> str:
    evidence = one.evidence
    scores = ", ".join(f"{name} {value:.3g}" for name, value in evidence.scores.items())
    if one.strongest is None:
        where = "no slice speaks for it"
    else:
        slices = f"{one.strongest + 1} of {len(one.per_slice)}"
        where = f"strongest in slice {slices} ({one.positions[one.strongest]:.1f} mm)"
    checked = ""
    if one.sanity is not None and one.sanity.rank_correlation is not None:
        checked = f"; rank correlation with random weights {one.sanity.rank_correlation:.2f}"
    return f"{one.study} (scores: {scores}): {evidence.method} for {evidence.output} {where}{checked}; {one.folder}"
