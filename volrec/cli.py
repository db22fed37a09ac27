"""The command ``volrec``: arguments in, one call of the API out.

Heavy imports stay inside the commands, so that ``volrec --help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import App, CycloptsError, Group, Parameter

from volrec.errors import Problem, VolrecError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["app", "main"]

OK, FAILED, SOME_QUARANTINED, INTERRUPTED = 0, 2, 3, 130

app = App(
    name="volrec",
    help=(
        "Recognise what is in CT and MR volumes by reading the slice axis as the time axis of a video.\n\n"
        "Start with `volrec demo` (about two minutes), look at your data with `volrec inspect FOLDER`, and train on it "
        "with `volrec train FOLDER --labels labels.csv`.\n\n"
        "Exit codes: 0 all was used; 3 some studies were quarantined; 2 nothing usable, or wrong arguments."
    ),
    help_format="markdown",
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=""),
    suppress_keyboard_interrupt=False,  # its text says how to go on; `main` prints it
)
LOOK = Group("Look", sort_key=1)
LEARN = Group("Learn", sort_key=2)
USE = Group("Use", sort_key=3)
TRY = Group("Try", sort_key=4)

Folder = Annotated[Path, Parameter(help="Folder of DICOM or NIfTI studies, any layout, any file names.")]
Labels = Annotated[
    Path | None, Parameter(help="CSV or TSV with a column study, patient or path, and one or more target columns.")
]
Target = Annotated[
    list[str] | None,
    Parameter(
        help="Target column; repeat it for several. Default: the one that looks like a label, and it is said which."
    ),
]
Config = Annotated[str | None, Parameter(help="Recipe or plan: a YAML file, or the name of one under configs/.")]
Set = Annotated[
    list[str] | None,
    Parameter(
        name="--set", help="Change one key of the plan, e.g. --set optim.lr=0.0003 (`volrec plan --keys` lists them)."
    ),
]

Init = Annotated[
    str | None,
    Parameter(
        help="Begin with weights that exist: a run of transfer or train, a weights file, or inflate: and a run of "
        "pretrain or the weights file of a 2D network. Network, grid and intensities are then taken from there."
    ),
]


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
        console=_console(),
    )
    return _finish(problems, say=False)


@app.command(group=LEARN)
def plan(
    folder: Annotated[Path | None, Parameter(help="Folder of DICOM or NIfTI studies.")] = None,
    *,
    labels: Labels = None,
    target: Target = None,
    config: Config = None,
    out: Annotated[Path, Parameter(help="Where the plan is written.")] = Path("plan.yaml"),
    overwrite: Annotated[bool, Parameter(negative="", help="Replace a plan that is there.")] = False,
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
        commands.schema(_console(), as_json=schema)
        return OK
    if out.exists() and not overwrite:
        raise VolrecError(
            "there is a plan already, perhaps edited.",
            remedy="Give another file with --out, or --overwrite.",
            where=out,
            code="plan-exists",
        )
    overrides = _pairs(set_)
    if init is not None:
        overrides.setdefault("init.source", init)
    return _finish(
        commands.plan(
            folder, labels=labels, target=target, config=config, overrides=overrides, out=out, console=_console()
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

    overrides = _pairs(set_)
    for key, value in {
        "split.folds": folds,
        "split.fold": fold,
        "network.name": network,
        "trainer.epochs": epochs,
        "trainer.seed": seed,
        "split.seed": seed,
        "trainer.devices": devices,
        "init.source": init,
    }.items():
        if value is not None:
            overrides.setdefault(key, value)
    if resume is not None and (overrides or any(each is not None for each in (folder, labels, target, config, out))):
        raise VolrecError(
            "a run is resumed as it was begun: no other option can be given.",
            remedy="Say `volrec train --resume RUN` alone, or start a new run.",
            where=resume,
            code="resume-options",
        )
    return _finish(
        commands.train(
            folder,
            labels=labels,
            target=target,
            config=config,
            overrides=overrides,
            out=out,
            resume=resume,
            console=_console(),
        )
    )


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

    return _finish(
        commands.evaluate(run, folder, labels=labels, out=out, include_training=include_training, console=_console())
    )


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

    return _finish(commands.predict(run, folder, out=out, device=device, console=_console()))


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

    return _finish(commands.demo(out, seed=seed, console=_console()))


@app.command(group=TRY)
def phantom(
    out: Annotated[Path, Parameter(help="New folder.")],
    *,
    task: Annotated[
        Literal["nodule", "bleed"], Parameter(help="nodule: context across slices tells; bleed: one slice shows it.")
    ] = "nodule",
    studies: Annotated[int, Parameter(help="Number of studies, half of them positive.")] = 40,
    seed: Annotated[int, Parameter(help="Same seed, same files.")] = 0,
    size: Annotated[int, Parameter(help="Rows and columns of a slice.")] = 64,
    slices: Annotated[int, Parameter(help="Slices a study.")] = 32,
    tilt: Annotated[float, Parameter(help="Largest gantry tilt, degrees.")] = 0.0,
    vary_spacing: Annotated[bool, Parameter(help="Draw another spacing for every study.")] = False,
) -> int:
    """Write DICOM CT phantoms with labels.csv and slice_labels.csv.

    Example: `volrec phantom phantoms/nodule --task nodule --studies 100`
    """
    from volrec.api import make_phantoms

    folder = make_phantoms(
        out, task=task, studies=studies, seed=seed, size=size, slices=slices, tilt=tilt, vary_spacing=vary_spacing
    )
    _console().print(
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

    commands.models(name, _console())
    return OK


@app.command(group=LEARN, name="import-weights")
def import_weights(
    file: Annotated[
        str,
        Parameter(
            help="State dict of PyTorch, safetensors file, caffemodel or TensorFlow checkpoint; or efficientnet-lite0, "
            "whose weights a package carries."
        ),
    ],
    *,
    as_: Annotated[
        str | None, Parameter(name="--as", help="Network (`volrec models`) or backbone, e.g. i3d or resnet-50.")
    ] = None,
    format: Annotated[str | None, Parameter(help="Format of the keys. Default: recognised.")] = None,
    classes: Annotated[Path | None, Parameter(help="Class names, one a line, also as `0 name`.")] = None,
    mean: Annotated[Path | None, Parameter(help="Mean volume of Caffe (binaryproto).")] = None,
    out: Annotated[Path | None, Parameter(help="Safetensors file. Default: NETWORK-FILE.safetensors here.")] = None,
    all_keys: Annotated[bool, Parameter(name="--all", negative="", help="List every key that was loaded.")] = False,
) -> int:
    """Turn weights that others trained into a file of volrec, and say what became of every key.

    Example: `volrec import-weights rgb_imagenet.pt --as i3d`
    """
    from volrec import commands

    commands.import_weights(
        file, as_=as_, format=format, classes=classes, mean=mean, out=out, all_keys=all_keys, console=_console()
    )
    return OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (the console script)."""
    # Set before torch loads: threads that spin while they wait make a shared machine several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", handlers=[_Terminal()])
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = app(tokens, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        return FAILED
    except VolrecError as error:
        _say_error(error)
        return FAILED
    except KeyboardInterrupt as interruption:
        text = str(interruption) or "Interrupted; what was finished is kept."
        sys.stderr.write(f"\n{text}\n")
        return INTERRUPTED
    except BrokenPipeError:
        return OK
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"error: {place}{error.strerror or error}\n")
        return FAILED
    return result if isinstance(result, int) else OK


class _Terminal(logging.StreamHandler):
    """Messages to standard error as it is at the moment: a progress bar replaces it to keep its line whole."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """Standard error."""
        return sys.stderr


def _console() -> Console:
    from rich.console import Console

    return Console()


def _say_error(error: VolrecError) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    console.print("[bold red]error:[/]", end=" ")
    where = f"{error.where}: " if error.where else ""
    console.print(f"{where}{error.problem}", markup=False, highlight=False, soft_wrap=True)
    if error.remedy:
        console.print(f"       {error.remedy}", markup=False, highlight=False, soft_wrap=True)


def _finish(problems: Sequence[Problem], *, say: bool = True) -> int:
    """Print what was quarantined and turn it into the exit code."""
    fatal = [problem for problem in problems if problem.fatal]
    if say and fatal:
        from rich.console import Console

        console = Console(stderr=True)
        console.print(f"{len(fatal)} quarantined:", style="yellow")
        for problem in fatal[:20]:
            console.print(
                f"  {problem.study or problem.where}: {problem.reason} {problem.remedy}", markup=False, soft_wrap=True
            )
        if len(fatal) > 20:
            console.print(f"  … and {len(fatal) - 20} more (quarantine.csv has them all)")
    return SOME_QUARANTINED if fatal else OK


def _pairs(settings: Sequence[str] | None) -> dict[str, Any]:
    """Parse ``--set key=value`` (the value as YAML: 3, 0.1, true, [1, 2], name)."""
    pairs: dict[str, Any] = {}
    for setting in settings or ():
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise VolrecError(f"--set got '{setting}'.", remedy="Write it as key=value, e.g. --set optim.lr=0.0003.")
        import yaml

        try:
            pairs[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            pairs[key.strip()] = value
    return pairs
