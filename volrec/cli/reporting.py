"""The command that writes the report of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from volrec.cli.shell import OK, USE, app, console


@app.command(group=USE)
def report(
    run: Annotated[Path, Parameter(help="Run folder.")],
    *,
    by: Annotated[
        list[str] | None,
        Parameter(help="Column of the labels file that makes groups of studies (sex, scanner, site); repeat for more."),
    ] = None,
    audit: Annotated[
        bool | None,
        Parameter(help="Ask whether the network needs the context of slices (`volrec audit`). Default: as trained."),
    ] = None,
    gallery: Annotated[
        int | None,
        Parameter(
            help="Studies shown of each kind: worst, most uncertain, best; 0 shows none. Default: as trained (3)."
        ),
    ] = None,
    method: Annotated[
        str | None, Parameter(help="Map of where the network looked (`volrec explain --help` lists them).")
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to compute.")] = "auto",
    refresh: Annotated[
        bool, Parameter(negative="", help="Audit and explain again what was done with the same weights.")
    ] = False,
) -> int:
    """Write the report of a run again: one HTML file, plots for papers in `figures/`, a model card.

    `volrec train` writes it at the end. This command adds what it lacks, or shows more studies.

    Example: `volrec report runs/c3d-label --gallery 6 --method occlusion`
    """
    from volrec import commands

    commands.make_report(
        run, audit=audit, gallery=gallery, method=method, device=device, refresh=refresh, console=console()
    )
    return OK
