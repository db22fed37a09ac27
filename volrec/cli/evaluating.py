"""Commands that say how good a run is, and which of several is better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from volrec.cli.shell import USE, Labels, app, console, finish


@app.command(group=USE)
def evaluate(
    run: Annotated[Path, Parameter(help="Run folder, also one that `volrec fuse` wrote.")],
    folder: Annotated[Path | None, Parameter(help="Other studies; without it the run's own test studies.")] = None,
    *,
    labels: Annotated[
        Path | None,
        Parameter(
            help="Table of labels of these studies. Without a folder: where the columns of --by are read from, if not "
            "from the table that the run was trained with."
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        Parameter(
            help="Also look at groups of studies by this column of the table of labels (sex, site, scanner, age); "
            "repeat it for several. Ages are cut at 18, 40, 60 and 80, other numbers at their quartiles."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(help="Write metrics.json, and beside it metrics.csv; with --by a forest plot as .svg and .png, too."),
    ] = None,
    scores: Annotated[Path | None, Parameter(help="Write the score table (CSV, a row a study).")] = None,
    resamples: Annotated[
        int | None,
        Parameter(
            validator=Number(gte=0),
            help="Draws of patients behind the intervals. Default: 1000; the run's own metrics.json is taken as it is.",
        ),
    ] = None,
    include_training: Annotated[
        bool, Parameter(negative="", help="Also score studies of patients that the run was trained on.")
    ] = False,
) -> int:
    """Metrics with 95 % intervals: of the run's own test studies, or of another folder with labels.

    Sensitivity, specificity, accuracy and F1 are at the thresholds that the run carries from its validation studies; it
    is said which. In a group of fewer than 20 patients, or fewer than 10 of a class, an interval is not to be trusted;
    such groups are marked and not compared. Columns that hold dates or tell patients apart are refused.

    Example: `volrec evaluate runs/c3d-label --by sex --by site --out metrics.json`

    Elsewhere: `volrec evaluate runs/c3d-label /data/hospital-b --labels b.csv`
    """
    from volrec import commands

    return finish(
        commands.evaluate(
            run,
            folder,
            labels=labels,
            out=out,
            include_training=include_training,
            by=by or [],
            resamples=resamples,
            scores=scores,
            console=console(),
        ),
        table="",
    )


@app.command(group=USE)
def compare(
    runs: Annotated[
        list[Path], Parameter(help="Run folders, two or more, also fused ones; each is compared with the first.")
    ],
    *,
    folder: Annotated[
        Path | None, Parameter(help="Other studies, scored by every run; without it the runs' own test studies.")
    ] = None,
    labels: Labels = None,
    out: Annotated[
        Path | None,
        Parameter(help="Write compare.json, and beside it compare.csv and a forest plot as .svg and .png."),
    ] = None,
    resamples: Annotated[
        int, Parameter(validator=Number(gte=0), help="Draws of patients behind the intervals, the same for all runs.")
    ] = 1000,
    include_training: Annotated[
        bool, Parameter(negative="", help="With --folder: also score studies of patients that a run was trained on.")
    ] = False,
) -> int:
    """Which of several runs is better: the difference of each metric, with its 95 % interval and p value.

    Only studies that both runs have scored count, and they are compared study by study: the difference of two AUCs by
    DeLong's method, the others in the same draws of patients for both runs. Two intervals that overlap say little about
    a difference; the interval of the difference does.

    Runs with the same labels and the same split.seed test the same studies. Where they do not, `--folder` has them
    score others; studies that either learned from are left out.

    Example: `volrec compare runs/c3d runs/lrcn --out compare.json`

    Elsewhere: `volrec compare runs/c3d runs/lrcn --folder /data/hospital-b --labels b.csv`
    """
    from volrec import commands

    return finish(
        commands.compare(
            runs,
            folder=folder,
            labels=labels,
            out=out,
            include_training=include_training,
            resamples=resamples,
            console=console(),
        ),
        table="",
    )
