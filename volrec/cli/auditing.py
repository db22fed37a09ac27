"""The command that asks whether a run uses the order and the extent of slices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from volrec.cli.shell import USE, Labels, app, console, finish


@app.command(group=USE)
def audit(
    run: Annotated[Path, Parameter(help="Run folder.")],
    folder: Annotated[
        Path | None,
        Parameter(help="Other studies with labels; without it the run's own test studies, never seen in training."),
    ] = None,
    *,
    labels: Labels = None,
    out: Annotated[
        Path | None, Parameter(help="Folder of what is written. Default: the run, or audit-FOLDER in it.")
    ] = None,
    studies: Annotated[
        int, Parameter(help="Most studies, as many of each class as can be. More take longer; 0 takes all.")
    ] = 100,
    seed: Annotated[int, Parameter(help="Seed of the permutations and of the choice of studies.")] = 0,
    shuffles: Annotated[int, Parameter(help="Permutations a study; their scores are averaged.")] = 3,
    outside: Annotated[
        Literal["cut", "edge", "blank"],
        Parameter(
            help="What stands where slices are taken away. cut: nothing, a study of the window alone; edge: the "
            "outermost slices of the window, repeated to the old length; blank: empty slices."
        ),
    ] = "cut",
    places: Annotated[
        int,
        Parameter(
            help="Most windows of one length that are tried in a study; 0: 64 for networks that encode a slice once, "
            "24 for others. A finding thinner than the gaps between them may be missed."
        ),
    ] = 0,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(help="Where to compute.")] = "auto",
    jobs: Annotated[int, Parameter(help="Processes for decoding; 0 takes the processors at hand.")] = 0,
    include_training: Annotated[
        bool, Parameter(negative="", help="Also score studies of patients that the run was trained on.")
    ] = False,
    refresh: Annotated[bool, Parameter(negative="", help="Score everything again, whatever is there.")] = False,
) -> int:
    """Ask whether a task, as the run solves it, needs context across slices.

    The same studies are scored again with less of what a reader of slices has:

    * **1, 3, 5, 9, 17 … slices** and nothing else: the most informative ones of each study, found without its label,
      in what the network says of so many slices alone. Where one slice gives what all give, a network that reads
      slices singly would do.
    * **shuffled, reversed**: all slices, in another order. Where that costs nothing, the order is not used.
    * **every second slice**, each shown twice: would thicker slices do?
    * **first half, second half, middle slice**: where the finding is.

    Prints a table (metric, interval over patients, paired difference from the studies as they are) and one sentence
    that says what it means: *needs context*, *one slice is enough*, *nothing can be said*, or *more studies are
    needed*. Writes `audit.json` (with the rules of the verdict), `audit.csv` (every score), `audit.svg` and
    `audit.png`. An interrupted audit goes on where it was; one that is there is shown again at once.

    Example: `volrec audit runs/c3d-label`

    Example: `volrec audit runs/c3d-label /data/hospital-b --labels b.csv --studies 40`
    """
    from volrec import commands

    return finish(
        commands.audit(
            run,
            folder,
            labels=labels,
            out=out,
            studies=studies,
            seed=seed,
            shuffles=shuffles,
            outside=outside,
            places=places,
            device=device,
            jobs=jobs,
            include_training=include_training,
            refresh=refresh,
            console=console(),
        )
    )
