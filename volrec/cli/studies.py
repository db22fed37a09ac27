"""Commands for studies and labels: look at them, plan, train; and those that need none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from volrec.cli.shell import (
    LEARN,
    LOOK,
    OK,
    TRY,
    Config,
    Folder,
    Init,
    Labels,
    Set,
    Target,
    app,
    console,
    finish,
    named,
)
from volrec.errors import VolrecError


@app.command(group=LOOK)
def inspect(
    folder: Folder,
    *,
    labels: Labels = None,
    target: Target = None,
    json: Annotated[Path | None, Parameter(help="Also write the index as JSON (or CSV, by suffix).")] = None,
    sheet: Annotated[Path | None, Parameter(help="Contact sheet of the middle slices (PNG).")] = Path(
        "volrec-inspect.png"
    ),
    no_sheet: Annotated[bool, Parameter(negative="", help="Do not draw the contact sheet.")] = False,
    all_studies: Annotated[bool, Parameter(name="--all", negative="", help="List every study, however many.")] = False,
    jobs: Annotated[int, Parameter(help="Processes that read headers; 0 takes the processors at hand.")] = 0,
    refresh: Annotated[
        bool, Parameter(negative="", help="Read every header again instead of using the cache.")
    ] = False,
) -> int:
    """Say what is in a folder: studies, chosen series and why, geometry, problems, what training will need.

    Example: `volrec inspect /data/ct --labels labels.csv`
    """
    from volrec import commands

    problems = commands.inspect(
        folder,
        labels=labels,
        target=target,
        write=json,
        sheet=None if no_sheet else sheet,
        all_studies=all_studies,
        jobs=jobs,
        refresh=refresh,
        console=console(),
    )
    return finish(problems, say=False)


@app.command(group=LEARN)
def plan(
    folder: Annotated[Path | None, Parameter(help="Folder of DICOM or NIfTI studies.")] = None,
    *,
    labels: Labels = None,
    target: Target = None,
    config: Config = None,
    out: Annotated[Path, Parameter(help="Where the plan is written.")] = Path("plan.yaml"),
    overwrite: Annotated[bool, Parameter(negative="", help="Replace a plan that is there.")] = False,
    network: Annotated[str | None, Parameter(help="Network by name (`volrec models`).")] = None,
    init: Init = None,
    set_: Set = None,
    keys: Annotated[bool, Parameter(negative="", help="Print every key of a plan with its meaning, and stop.")] = False,
    schema: Annotated[bool, Parameter(negative="", help="Print the JSON schema of a plan, and stop.")] = False,
) -> int:
    """Work out a training plan from the data, with one reason per choice, without training.

    Edit the file, then `volrec train --config plan.yaml`.

    Example: `volrec plan /data/ct --labels labels.csv --out plan.yaml`
    """
    from volrec import commands

    if keys or schema:
        commands.schema(console(), as_json=schema)
        return OK
    if out.exists() and not overwrite:
        raise VolrecError(
            "there is a plan already, perhaps edited.",
            remedy="Give another file with --out, or --overwrite.",
            where=out,
            code="plan-exists",
        )
    overrides = named(set_, {"network.name": network, "init.source": init})
    return finish(
        commands.plan(
            folder, labels=labels, target=target, config=config, overrides=overrides, out=out, console=console()
        )
    )


@app.command(group=LEARN)
def train(
    folder: Annotated[Path | None, Parameter(help="Folder of DICOM or NIfTI studies.")] = None,
    *,
    labels: Labels = None,
    target: Target = None,
    config: Config = None,
    out: Annotated[Path | None, Parameter(help="Run folder; default runs/NAME.")] = None,
    resume: Annotated[
        Path | None, Parameter(help="Go on with an interrupted run; give its folder and nothing else.")
    ] = None,
    folds: Annotated[int | None, Parameter(help="Cross-validation with so many folds.")] = None,
    fold: Annotated[int | None, Parameter(help="Only this fold (from 0).")] = None,
    network: Annotated[str | None, Parameter(help="Network by name (`volrec models`).")] = None,
    epochs: Annotated[int | None, Parameter(help="Longest training, in epochs.")] = None,
    seed: Annotated[int | None, Parameter(help="Seed of split, weights and augmentation.")] = None,
    devices: Annotated[int | None, Parameter(help="GPUs, or processes on the CPU.")] = None,
    init: Init = None,
    set_: Set = None,
) -> int:
    """Train, validate and test a network on a folder of studies and a table of labels.

    Without a config, volrec plans everything from the data and writes down why. The run folder holds config, splits,
    weights, scores and `report.html`. Ctrl-C stops it; `--resume RUN` goes on with the same result.

    Example: `volrec train /data/ct --labels labels.csv`

    Cross-validation of an edited plan: `volrec train --config plan.yaml --folds 5`

    After an interruption: `volrec train --resume runs/c3d-label`
    """
    from volrec import commands

    overrides = named(
        set_,
        {
            "split.folds": folds,
            "split.fold": fold,
            "network.name": network,
            "trainer.epochs": epochs,
            "trainer.seed": seed,
            "split.seed": seed,
            "trainer.devices": devices,
            "init.source": init,
        },
    )
    if resume is not None and (overrides or any(each is not None for each in (folder, labels, target, config, out))):
        raise VolrecError(
            "a run is resumed as it was begun: no other option can be given.",
            remedy="Say `volrec train --resume RUN` alone, or start a new run.",
            where=resume,
            code="resume-options",
        )
    return finish(
        commands.train(
            folder,
            labels=labels,
            target=target,
            config=config,
            overrides=overrides,
            out=out,
            resume=resume,
            console=console(),
        )
    )


@app.command(group=TRY)
def demo(
    out: Annotated[Path, Parameter(help="Where everything is written.")] = Path("volrec-demo"),
    *,
    seed: Annotated[int, Parameter(help="Seed of phantoms, split and training.")] = 0,
) -> int:
    """See it work in about two minutes: phantoms, two networks, and where context across slices matters.

    Makes small CT phantoms of two kinds (a nodule among vessels, which only context across slices tells; a bleed, which
    one slice shows), trains a slice-by-slice network and a narrow C3D on both, and prints the 2x2 table of test AUCs.

    Example: `volrec demo`
    """
    from volrec import commands

    return finish(commands.demo(out, seed=seed, console=console()))


@app.command(group=TRY)
def phantom(
    out: Annotated[Path, Parameter(help="New folder.")],
    *,
    task: Annotated[
        Literal["nodule", "bleed", "motion"],
        Parameter(
            help="nodule: context across slices tells; bleed: one slice shows it; motion: the way shapes go from slice "
            "to slice is the class."
        ),
    ] = "nodule",
    studies: Annotated[int, Parameter(help="Number of studies, as many of each class.")] = 40,
    seed: Annotated[int, Parameter(help="Same seed, same files.")] = 0,
    size: Annotated[int, Parameter(help="Rows and columns of a slice.")] = 64,
    slices: Annotated[int, Parameter(help="Slices a study.")] = 32,
    tilt: Annotated[float, Parameter(help="Largest gantry tilt, degrees.")] = 0.0,
    vary_spacing: Annotated[bool, Parameter(help="Draw another spacing for every study.")] = False,
    directions: Annotated[
        int, Parameter(help="motion: 4, to the patient's left, right, front or back; 2, left or right.")
    ] = 4,
    drift: Annotated[
        float, Parameter(help="motion: largest in-plane drift of a whole stack, pixels a slice along each axis.")
    ] = 0.0,
) -> int:
    """Write DICOM CT phantoms with labels.csv (and slice_labels.csv, where slices have labels).

    Example: `volrec phantom phantoms/nodule --task nodule --studies 100`
    """
    from volrec.api import make_phantoms

    folder = make_phantoms(
        out,
        task=task,
        studies=studies,
        seed=seed,
        size=size,
        slices=slices,
        tilt=tilt,
        vary_spacing=vary_spacing,
        directions=directions,
        drift=drift,
    )
    console().print(
        f"{studies} studies in {folder}. Next: volrec train {folder} --labels {folder / 'labels.csv'}", markup=False
    )
    return OK


@app.command(group=LOOK)
def models(
    name: Annotated[
        str | None,
        Parameter(help="One network, with its layers, options and ambiguities; or a pattern such as `*3d*`."),
    ] = None,
) -> int:
    """List the networks: paper, parameters, cost, smallest clip, options.

    Example: `volrec models c3d`
    """
    from volrec import commands

    commands.models(name, console())
    return OK
