"""Which way to teach slices without labels? The same 2D network and steps by SimCLR, by VICReg, and untaught.

Two measures: how often a slice of a held-out study is found again from a changed view of its place, and what a linear
classifier makes of the frozen features (means of six parts of the stack; five folds, three shuffles) for each label of
the table. The features see no label; the untaught network says what its random filters are worth.

Usage: python examples/compare_teachers.py --data ../shared/data/hippocampus [--steps 1500] [--out FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from volrec.config import AugmentConfig, IntensityConfig, PretrainConfig, TeacherConfig, parse_config
from volrec.data.images import unlabelled
from volrec.data.index import index
from volrec.data.store import Store
from volrec.runs import RunFolder
from volrec.transfer import load_teacher, pretrain
from volrec.transfer.features import TeacherView

METHODS = {"simclr": 1e-3, "vicreg": 1e-3, "untaught": 1e-12}  # learning rates
PARTS, AN_EPOCH = 6, 50


def settings(arguments: argparse.Namespace, method: str) -> PretrainConfig:
    """The same for every method, but for its name and, untaught, a learning rate that moves nothing."""
    return parse_config(
        {
            "kind": "pretrain",
            "data": {"folder": str(arguments.data / "images")},
            "preprocess": {"spacing": [2, 2, 2], "canvas": [24, 32, 24], "slice_axis": "acquired"},
            "intensity": {"kind": "zscore"},
            "backbone": {"name": "resnet-18", "width": 0.25, "stem_stride": 1},
            "method": {"name": "simclr" if method == "untaught" else method},
            "views": {"neighbours": 2.01},
            "augment": {"rotate": 10, "shift": 3, "gamma": 0.3, "noise": 0.1, "blur": 0.5},
            "optim": {"lr": METHODS[method], "weight_decay": 0.01, "batch_size": 64},
            "trainer": {
                "epochs": 1 if method == "untaught" else arguments.steps // AN_EPOCH,
                "batches_per_epoch": AN_EPOCH,
                "patience": 0,
                "checkpoint": "last",
                "seed": arguments.seed,
            },
            "store": {"folder": str(arguments.out / "store")},
        },
        schema=PretrainConfig,
    )


def features(arguments: argparse.Namespace, run: Path, config: PretrainConfig) -> tuple[list[str], np.ndarray]:
    """Return studies and their frozen features (N, PARTS x F)."""
    teacher = load_teacher(TeacherConfig(source=str(run)), intensity=IntensityConfig(), canvas=None)
    view = TeacherView(teacher, AugmentConfig(), seed=0)
    cases = unlabelled(index(arguments.data / "images")).cases
    store = Store(arguments.out / "store")
    entries, _ = store.fill(cases, config.preprocess)
    rows = []
    for case in cases:
        images = view.images(store.open(entries[case.series.uid]), case.study, 0, torch.device("cpu"))
        parts = np.array_split(view.encode(images).numpy(), PARTS)
        rows.append(np.concatenate([part.mean(axis=0) for part in parts]))
    return [case.study for case in cases], np.stack(rows)


def linear_auc(x: np.ndarray, y: np.ndarray) -> float:
    """Return the cross-validated AUC of a linear classifier on frozen features."""
    values = []
    for shuffle in range(3):
        folds = StratifiedKFold(5, shuffle=True, random_state=shuffle)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=3000))
        values.append(roc_auc_score(y, cross_val_predict(model, x, y, cv=folds, method="decision_function")))
    return float(np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hippocampus"), help="images/ and labels.csv")
    parser.add_argument("--targets", nargs="+", default=["large_for_crop", "anterior_for_crop"])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("compare-teachers"))
    arguments = parser.parse_args()
    labels = pd.read_csv(arguments.data / "labels.csv").set_index("study")
    lines: list[dict[str, Any]] = []
    for method in METHODS:
        config, out = settings(arguments, method), arguments.out / method
        run = RunFolder(out)
        if not run.finished:
            pretrain(config, out, resume=(out / "config.yaml").is_file())
        studies, x = features(arguments, out, config)
        found = {target: linear_auc(x, labels.loc[studies, target].to_numpy()) for target in arguments.targets}
        lines.append({"method": method, "found again": run.metrics["value"], **found})
        print(pd.DataFrame(lines).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
