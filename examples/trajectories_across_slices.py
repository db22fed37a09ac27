"""What hand-crafted trajectories across slices give alone, and beside a small network: three AUCs with intervals.

Motion phantoms: the way that textured shapes go from slice to slice is the class, and no single slice shows it. A
network that scores slice by slice is blind to it, a C3D is not. Trajectories follow the shapes, so they tell the
classes by themselves; with studies of your own, give the run of a network to `volrec benchmark volumes RUN`.

AUC on the test studies, seeds 0 and 1 (same test studies), with the 95 % interval of seed 0:

============  ==========================  =====================  ===================  =====================
studies       network's features          trajectories           both                 both minus network
============  ==========================  =====================  ===================  =====================
phantoms      slice-mean 0.505, 0.415     1.000, 1.000           1.000, 0.927         0.495 [0.318, 0.674]
phantoms      c3d 1.000, 1.000            1.000, 1.000           1.000, 1.000         0.000 [0.000, 0.000]
hippocampus   c3d 0.708, 0.693            0.683, 0.703           0.713, 0.706         0.005 [-0.033, 0.042]
============  ==========================  =====================  ===================  =====================

Features of a network that has learned nothing pull the third classifier down (0.927), and on the hippocampus crops 75
test studies show no gain. Made by `--seed S`, `--network c3d --seed S`, and `--network c3d --epochs 8 --words 32 --seed
S --folder FOLDER/images --labels FOLDER/labels.csv --target large_for_crop --set split.test=0.35 split.validation=0.2
preprocess.spacing=[1,1,1] preprocess.canvas=[36,52,36] preprocess.slice_axis=acquired intensity.kind=zscore
augment.flip={}` (FOLDER: Task04 of the Medical Segmentation Decathlon, with `labels.csv`).

Usage: python examples/trajectories_across_slices.py [--network c3d] [--studies 80] [--out FOLDER]
On studies of your own: python examples/trajectories_across_slices.py --folder FOLDER --labels TABLE --target COLUMN
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import volrec
from volrec.api import trajectories_beside
from volrec.errors import VolrecError
from volrec.report.terminal import interval

SLICES, SIZE = 20, 32
# No mirrors: they turn motion around.
PHANTOM = {
    "preprocess.canvas": [SLICES, SIZE, SIZE],
    "intensity.kind": "window",
    "intensity.windows": [{"level": 40, "width": 400}],
    "augment.flip": {},
}
TRAINING = {
    "network.width": 0.125,
    "optim.batch_size": 8,
    "trainer.batches_per_epoch": 20,
    "trainer.workers": 0,
    "split.test": 0.5,
    "split.validation": 0.0,
}


def trained(given: argparse.Namespace, out: Path):
    """Train a small network, on phantoms where no folder is given; a run that is there is taken as it is."""
    run = out / f"run-{given.network}-{given.seed}"
    if (run / "finished").is_file():
        return volrec.load(run)
    folder, labels, settings = given.folder, given.labels, dict(TRAINING)
    if folder is None:
        folder, labels = out / "phantoms", out / "phantoms" / "labels.csv"
        settings |= PHANTOM
        if not labels.is_file():
            volrec.make_phantoms(folder, task="motion", studies=given.studies, size=SIZE, slices=SLICES, directions=2)
    settings["store.folder"] = str(out / "store")
    settings |= {"network.name": given.network, "trainer.epochs": given.epochs, "trainer.seed": given.seed}
    # Every network is tested on the same studies.
    settings |= {"split.seed": 0, **dict(pair.split("=", 1) for pair in given.set)}
    return volrec.train(folder=folder, labels=labels, target=given.target, out=run, overrides=_parsed(settings))


def _parsed(settings):
    import yaml

    return {key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in settings.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="slice-mean", help="any of `volrec models`")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--studies", type=int, default=80, help="phantoms")
    parser.add_argument("--seed", type=int, default=0, help="of the network and of the vocabulary")
    parser.add_argument("--words", type=int, default=8, help="Gaussians of each descriptor")
    parser.add_argument("--fit-on", choices=("train", "validation", "train+validation"), default="train")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0: the processors at hand")
    parser.add_argument("--folder", type=Path, help="studies of your own")
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--target", help="column of the labels")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as in `volrec train --set`")
    parser.add_argument("--out", type=Path, help="keep runs and results here, and go on with what is there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        try:
            run = trained(given, out)
            result = trajectories_beside(
                run,
                out / f"beside-{given.network}-{given.seed}-{given.fit_on}",
                words=given.words,
                seed=given.seed,
                fit_on=given.fit_on,
                jobs=given.jobs,
            )
        except VolrecError as error:
            raise SystemExit(f"{error.where}: {error.problem} {error.remedy}") from None
    counts = result.scores["both"]["trajectories"]
    print(f"{len(counts)} test studies, {counts.median():.0f} trajectories in the median one. AUC [95 % interval]:")
    for arm, name in (
        ("run", f"{given.network}, as trained"),
        ("network", "its features"),
        ("trajectories", "trajectories"),
        ("both", "both side by side"),
    ):
        print(f"  {name:<24}{interval(result.metrics[arm]['metrics']['auc'])}")
    print(f"  {'both minus features':<24}{interval(result.gains['auc'])}")


if __name__ == "__main__":
    main()
