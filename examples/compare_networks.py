"""Train every network of the zoo, narrow, on two kinds of phantoms for the same budget, and print one table of AUCs.

A *bleed* shows in one slice, so every network should find it. A *nodule* and a tapering vessel show the same discs
slice by slice: only a network that reads the order of the slices can tell them apart. Plans are those of
`volrec train`; only network, width, epochs and what the phantoms need are set. What is finished is kept: an interrupted
comparison goes on.

Usage: python examples/compare_networks.py [--networks "*fusion*" lrcn] [--epochs 12] [--out comparison]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

import volrec
from volrec.api import resume
from volrec.networks import list_networks, spec
from volrec.progress import progress
from volrec.report.terminal import interval
from volrec.runs import RunFolder

TASKS = {"bleed": "one slice shows it", "nodule": "only the order of slices tells"}
SLICES, SIZE = 24, 48


def settings(folder: Path, *, epochs: int, width: float, network: str, seed: int) -> dict[str, object]:
    """What is the same for every network; the rest is planned from the data."""
    return {
        "data.folder": str(folder),
        "data.labels": str(folder / "labels.csv"),
        "data.target": ["label"],
        "split.validation": 0.15,
        "split.test": 0.35,
        "split.seed": seed,
        "preprocess.canvas": [SLICES, SIZE, SIZE],
        "intensity.kind": "window",
        "intensity.windows": [{"level": 40, "width": 400}],
        "augment.flip": {"T": 0.5, "H": 0.5, "W": 0.5},
        "augment.rotate": 0.0,
        "augment.shift": 2.0,
        "network.name": network,
        "network.width": width,
        "optim.lr": 2e-3,
        "optim.batch_size": 8,
        "optim.ema_decay": 0.0,
        "trainer.epochs": epochs,
        "trainer.patience": 0,
        "trainer.workers": 0,
        "trainer.seed": seed,
    }


def trained(folder: Path, out: Path, given: dict[str, object]) -> RunFolder:
    """Return the finished run under `out`: as it is, gone on with, or new."""
    run = RunFolder(out)
    if run.finished:
        return run
    if (out / "config.yaml").is_file():
        resume(out)
    else:
        volrec.train(folder=folder, labels=folder / "labels.csv", out=out, overrides=given)
    return RunFolder(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["*"], help="names or patterns of the registry")
    parser.add_argument("--studies", type=int, default=320, help="phantoms a task")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--width", type=float, default=0.125, help="scale of all channel counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("comparison"))
    arguments = parser.parse_args()
    names = sorted({name for pattern in arguments.networks for name in list_networks(pattern)})
    console = Console()
    table = Table(title="AUC on test studies [95 % interval]", title_justify="left", show_edge=False, padding=(0, 1))
    for heading in ("network", "by slice", *TASKS):
        table.add_column(heading, no_wrap=True)
    with progress("comparison", len(names) * len(TASKS)) as bar:
        for name in names:
            cells = []
            for task in TASKS:
                bar.update(description=f"{name} on {task}")
                folder = arguments.out / task
                if not (folder / "labels.csv").is_file():
                    volrec.make_phantoms(
                        folder,
                        task=task,
                        studies=arguments.studies,
                        seed=arguments.seed,
                        size=SIZE,
                        slices=SLICES,
                    )
                given = settings(
                    folder, epochs=arguments.epochs, width=arguments.width, network=name, seed=arguments.seed
                )
                run = trained(folder, arguments.out / "runs" / f"{task}-{name}", given)
                cells.append(interval(run.metrics["test"]["auc"]))
                bar.advance()
            table.add_row(name, "yes" if spec(name).slicewise else "no", *cells)
    console.print(table)
    for task, what in TASKS.items():
        console.print(f"{task}: {what}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("Stopped; the same command goes on where it was.") from None
