"""Runs that need no training and folders of small studies, for tests of prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from studies import write_study
from torch import nn

from volrec.config import TrainConfig, parse_config
from volrec.networks import create
from volrec.runs import RunFolder, member_card

CONFIG = parse_config(
    {
        "network": {"name": "slice-mean", "width": 0.125},
        "preprocess": {"canvas": [None, 16, 16], "spacing": [None, 1.5, 1.5]},
        "intensity": {"kind": "zscore"},
        "sampling": {"clip_length": 4},
    }
)
FACTS: dict[str, Any] = {"task": "binary", "targets": ["bleed"], "classes": ["0", "1"], "modality": "CT"}


def make_run(path: Path, *, members: int = 1, config: TrainConfig = CONFIG, seed: int = 0, **facts: Any) -> RunFolder:
    """Write a run of networks that were never trained, `members` of them, a card each and no tables."""
    run = RunFolder.create(path, config)
    card = {**FACTS, **facts}
    outputs = 1 if card["task"] == "binary" else len(card["classes"] or card["targets"])
    for number in range(members):
        torch.manual_seed(100 * seed + number)
        network = create(config.network.name, num_classes=outputs, width=0.125)
        nn.init.normal_(network.classifier.weight)
        member = run.member(f"fold-{number}")
        member.save(network, member_card(config, split=member.name, **card))
        member.finish()
    return run


def write_folder(folder: Path, *, studies: int = 3, slices: int = 6) -> Path:
    """Write studies p0, p1 … of noise."""
    for number in range(studies):
        array = np.random.default_rng(number).normal(0, 100, (slices, 16, 16)).astype(np.int16)
        write_study(folder / f"p{number}", array=array)
    return folder
