"""Commands that say how good a run is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from volrec.cli.shell import USE, Labels, app, console, finish


@app.command(group=USE)
def evaluate(
    run: Annotated[Path, Parameter(help="Run folder.")],
    folder: Annotated[Path | None, Parameter(help="Other studies; without it the run's own test studies.")] = None,
    *,
    labels: Labels = None,
    out: Annotated[Path | None, Parameter(help="Also write the metrics as JSON.")] = None,
    include_training: Annotated[
        bool, Parameter(negative="", help="Also score studies of patients that the run was trained on.")
    ] = False,
) -> int:
    """Metrics with 95 % intervals: of the run's own test studies, or of another folder with labels.

    Example: `volrec evaluate runs/c3d-label /data/hospital-b --labels b.csv`
    """
    from volrec import commands

    return finish(
        commands.evaluate(run, folder, labels=labels, out=out, include_training=include_training, console=console())
    )
