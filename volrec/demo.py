"""``volrec demo``: two tasks, two networks, one table that shows where context across slices matters."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volrec.config import TrainConfig, parse_config
from volrec.errors import Problem, RunError
from volrec.progress import progress

if TYPE_CHECKING:
    from rich.console import Console

    from volrec.runs import RunFolder

__all__ = ["NETWORKS", "TASKS", "demo_config", "run_demo"]

log = logging.getLogger(__name__)

TASKS: dict[Literal["nodule", "bleed"], str] = {
    "nodule": "a sphere among vessels: any one slice shows the same discs in both classes",
    "bleed": "a bright blob that a single slice shows",
}
NETWORKS = {"slice-mean": "one slice at a time", "c3d": "C3D, slices as time"}
STUDIES = {"nodule": 240, "bleed": 140}
SIZE, SLICES = 48, 24


def demo_config(folder: Path, network: str, *, store: Path, seed: int = 0) -> TrainConfig:
    """Return the recipe of the demonstration.

    Parameters
    ----------
    folder : path
        Phantoms with ``labels.csv``.
    network : str
        ``slice-mean`` or ``c3d``.
    store : path
        Where decoded volumes go.
    seed : int
        Of split, weights and augmentation.
    """
    return parse_config(
        {
            "data": {"folder": str(folder), "labels": str(folder / "labels.csv"), "target": ["label"]},
            "split": {"validation": 0.15, "test": 0.5, "seed": seed},
            "preprocess": {"canvas": [SLICES, SIZE, SIZE]},
            "intensity": {"kind": "window", "windows": [{"level": 40, "width": 400}]},
            "sampling": {"clip_length": SLICES, "train": "center"},
            "augment": {"flip": {"T": 0.5, "H": 0.5, "W": 0.5}, "shift": 2},
            "network": {"name": network, "width": 0.125 if network == "c3d" else 0.25},
            "optim": {"lr": 3e-3, "batch_size": 8},
            "trainer": {"epochs": 6, "patience": 0, "seed": seed, "workers": 0, "accelerator": "cpu"},
            "store": {"folder": str(store)},
        },
        where="demo",
    )


def run_demo(out: Path | str, *, seed: int = 0, console: Console | None = None) -> list[Problem]:
    """Make phantoms, train two networks on two tasks, and print the 2x2 table of test AUCs.

    What a previous call finished is kept: an interrupted demonstration goes on where it was.

    Parameters
    ----------
    out : path
        Folder of phantoms, store, runs and reports.
    seed : int
        Same seed, same numbers on the same machine.
    console : rich.console.Console, optional
        Where the table goes.

    Returns
    -------
    list of Problem
        What was quarantined (nothing, unless a file was damaged in between).
    """
    from rich.console import Console

    from volrec.data.phantoms import make_phantoms
    from volrec.report import write_report
    from volrec.training import train

    out, console = Path(out), console or Console()
    began = time.monotonic()
    runs: dict[tuple[str, str], RunFolder] = {}
    problems: list[Problem] = []
    with progress("demo", len(TASKS) * (1 + len(NETWORKS))) as bar:
        for task in TASKS:
            folder = out / "phantoms" / task
            bar.update(description=f"phantoms: {task}")
            if not (folder / "labels.csv").is_file():
                make_phantoms(folder, task=task, studies=STUDIES[task], seed=seed, size=SIZE, slices=SLICES)
            bar.advance()
            for network in NETWORKS:
                bar.update(description=f"training {network} on {task}")
                path = out / "runs" / f"{task}-{network}"
                config = demo_config(folder, network, store=out / "store", seed=seed)
                run = _finished(path)
                if run is None:
                    run = train(config, path, resume=(path / "config.yaml").is_file())
                    if run is None:  # pragma: no cover - the demonstration is one process
                        raise RunError("the demonstration runs in one process.", remedy="Start it without torchrun.")
                    write_report(run)
                runs[task, network] = run
                problems += [problem for problem in run.quarantine() if problem.fatal]
                bar.advance()
    _print(runs, out, time.monotonic() - began, console)
    return problems


def _finished(path: Path) -> RunFolder | None:
    from volrec.runs import RunFolder

    run = RunFolder(path)
    return run if run.finished else None


def _print(runs: Mapping[tuple[str, str], Any], out: Path, seconds: float, console: Console) -> None:
    from rich.table import Table

    from volrec.report.terminal import interval

    table = Table(title="AUC on test studies, none of them seen in training [95 % interval]", title_justify="left")
    table.add_column("task")
    for network, meaning in NETWORKS.items():
        table.add_column(f"{network}\n({meaning})", justify="center")
    for task, meaning in TASKS.items():
        cells = [interval(runs[task, network].metrics["test"]["auc"]) for network in NETWORKS]
        table.add_row(f"{task}: {meaning}", *cells)
    console.print()
    console.print(table)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say("A bleed shows in one slice: both networks find it.")
    say("A nodule and a tapering vessel show the same discs, slice by slice:")
    say("only the network that reads slices as time can tell them apart. That is what volrec is for.")
    say(f"\nReport: {(out / 'runs' / 'nodule-c3d' / 'report.html').resolve().as_uri()}")
    say(f"Everything is in {out} ({seconds:.0f} s). Next, on your own studies:")
    say("  volrec inspect FOLDER\n  volrec train FOLDER --labels labels.csv")
