"""The application itself, the arguments that commands share, and how a result becomes an exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter

from volrec.errors import Problem, VolrecError

if TYPE_CHECKING:
    from rich.console import Console

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
        "pretrain or the weights file of a 2D network. Its network is taken over, and of a run grid and intensities."
    ),
]
Studies = Annotated[
    Path | None,
    Parameter(
        help="Only these studies: a text file with one a line, or the splits.csv of a run (its test part is left out)."
    ),
]
PlanOf = Annotated[str | None, Parameter(help="Plan: a YAML file that --plan wrote.")]
Resume = Annotated[Path | None, Parameter(help="Go on with an interrupted run; give its folder and nothing else.")]
Epochs = Annotated[int | None, Parameter(help="Length, in epochs.")]
Seed = Annotated[int | None, Parameter(help="Seed of weights, places and augmentation.")]
Devices = Annotated[int | None, Parameter(help="GPUs, or processes on the CPU.")]
SetOf = Annotated[
    list[str] | None,
    Parameter(name="--set", help="Change one key, e.g. --set optim.lr=0.0003 (--keys lists them)."),
]
WritePlan = Annotated[
    Path | None,
    Parameter(help="Only write the plan, with its reasons, to this file; edit it, then give it as --config."),
]
Keys = Annotated[bool, Parameter(negative="", help="Print every key with its meaning, and stop.")]


def console() -> Console:
    """Return the terminal."""
    from rich.console import Console

    return Console()


def say_error(error: VolrecError) -> None:
    """Print what is wrong, and what to do."""
    from rich.console import Console

    console = Console(stderr=True)
    console.print("[bold red]error:[/]", end=" ")
    where = f"{error.where}: " if error.where else ""
    console.print(f"{where}{error.problem}", markup=False, highlight=False, soft_wrap=True)
    if error.remedy:
        console.print(f"       {error.remedy}", markup=False, highlight=False, soft_wrap=True)


def finish(problems: Sequence[Problem], *, say: bool = True, table: Path | str = "quarantine.csv") -> int:
    """Print what was quarantined, and the table of all of it where there is one; turn it into the exit code."""
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
            where = f" ({table} has them all)" if table else ""
            console.print(f"  … and {len(fatal) - 20} more{where}", markup=False, soft_wrap=True)
    return SOME_QUARANTINED if fatal else OK


def pairs(settings: Sequence[str] | None) -> dict[str, Any]:
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


def named(settings: Sequence[str] | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``--set`` says, and the options that stand for a key of their own."""
    overrides = pairs(settings)
    for key, value in named.items():
        if value is not None:
            overrides.setdefault(key, value)
    return overrides
