"""From a folder of studies to a report that can be shown, in ten lines of Python.

    python examples/study_report.py OUT --task nodule

makes phantoms, trains a narrow C3D, audits its use of context, maps where it looked, scores the folder again as if it
were new, and leaves OUT/run/report.html. With studies of your own only the line of the phantoms changes. The tests run
it (`tests/test_examples_study_report.py`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import volrec


def main(out: Path, *, task: str = "nodule", studies: int = 240, epochs: int = 12) -> Any:
    folder = volrec.make_phantoms(out / "studies", task=task, studies=studies, size=48, slices=24)
    run = volrec.train(
        folder=folder,
        labels=folder / "labels.csv",
        out=out / "run",
        network={"name": "c3d", "width": 0.125},
        intensity={"kind": "window", "windows": [{"level": 40, "width": 400}]},
        augment={"flip": {"T": 0.5, "H": 0.5, "W": 0.5}, "shift": 2},
        sampling={"clip_length": 24, "train": "center"},
        optim={"lr": 3e-3},
        epochs=epochs,
        patience=0,
    )
    print(run.metrics["metrics"]["auc"])  # value and 95 % interval
    print(volrec.audit(run)["verdict"]["sentence"])  # does it need context?
    print(run.explain(run.scores["study"][0], method="occlusion").per_slice)  # where it looked, slice by slice
    print(run.predict(folder, out=out / "scores.csv")[["study", "called", "warning"]].head())
    print(run.report)  # open it in a browser
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", default="nodule", choices=["nodule", "bleed"])
    parser.add_argument("--studies", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    main(given.out, task=given.task, studies=given.studies, epochs=given.epochs)
