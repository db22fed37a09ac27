"""`volrec benchmark volumes`: the hand-crafted side for CT and MR volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from volrec.cli.benchmarks import benchmark
from volrec.cli.shell import console, finish


@benchmark.command
def volumes(
    run: Annotated[Path, Parameter(help="Run folder of `volrec train`, with classes as targets.")],
    *,
    out: Annotated[Path | None, Parameter(help="Folder of the result; default RUN/trajectories.")] = None,
    fit_on: Annotated[
        Literal["train", "validation", "train+validation"],
        Parameter(
            help="Studies that the classifiers learn from. A network knows its training studies: where there are many "
            "validation studies, they show better what it is worth."
        ),
    ] = "train",
    words: Annotated[int | None, Parameter(help="Gaussians of each descriptor; default 64.")] = None,
    grid_mm: Annotated[
        float | None,
        Parameter(help="Pixels that slices are brought to; default: 96 to 240 of them along the shorter side."),
    ] = None,
    slice_mm: Annotated[
        float | None,
        Parameter(help="Distance of the frames that tracks go through; default: the slices', with 20 frames at least."),
    ] = None,
    step_mm: Annotated[float | None, Parameter(help="Distance of the points; default 5 pixels.")] = None,
    patch_mm: Annotated[float | None, Parameter(help="Side of the tubes; default 32 pixels.")] = None,
    drift: Annotated[
        Literal["none", "homography"], Parameter(help="Take out what moves as a whole from slice to slice.")
    ] = "none",
    model: Annotated[Literal["logistic", "svm"], Parameter(help="Kind of linear model.")] = "logistic",
    seed: Annotated[int, Parameter(help="Of the vocabulary.")] = 0,
    jobs: Annotated[int, Parameter(help="Processes; 0: the processors at hand.")] = 0,
) -> int:
    """Measure what trajectories across the slices give alone, and beside the features of a run's network.

    Per fold, three linear models are fitted to the run's training studies and scored on its test studies: on the
    network's pooled features, on the trajectories, and on both. Scores are written in the form of the run's own. Needs
    `pip install 'volrec[video]'`.

    Example: `volrec benchmark volumes runs/c3d-label`
    """
    from volrec import commands

    problems = commands.trajectories_beside(
        run,
        out=out,
        fit_on=fit_on,
        words=words,
        grid_mm=grid_mm,
        slice_mm=slice_mm,
        step_mm=step_mm,
        patch_mm=patch_mm,
        drift=drift,
        model=model,
        seed=seed,
        jobs=jobs,
        console=console(),
    )
    return finish(problems)
