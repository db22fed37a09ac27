"""The command that scores studies with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from volrec.cli.shell import USE, Folder, app, console, finish


@app.command(group=USE)
def predict(
    run: Annotated[Path, Parameter(help="Run folder.")],
    folder: Folder,
    *,
    out: Annotated[Path, Parameter(help="Where the scores go: one row a study (CSV, or JSON by suffix).")] = Path(
        "scores.csv"
    ),
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to compute.")] = "auto",
) -> int:
    """Score every study of a folder with a trained run.

    Example: `volrec predict runs/c3d-label /data/new --out scores.csv`
    """
    from volrec import commands

    return finish(commands.predict(run, folder, out=out, device=device, console=console()))
