"""A step of `volrec transfer` with the teacher's features kept, over one that encodes the slices anew.

Ratios within one run, medians of some rounds that take turns. Teachers: a narrow ResNet-18 as `volrec pretrain` makes
it, and EfficientNet-Lite0 (without its ImageNet weights: time does not depend on them).

Usage: python tests/performance/bench_transfer.py [--batch 16] [--slices 12] [--size 48] [--steps 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from volrec.config import AugmentConfig, IntensityConfig, MatchingConfig, OptimConfig
from volrec.networks.backbones import create_backbone
from volrec.transfer.student import TeacherStep, TransferModule
from volrec.transfer.teacher import Teacher

SIDES = {"rotate": 10.0, "shift": 3.0, "noise": 0.1, "contrast": 0.2, "brightness": 0.1}


def teacher(name: str, width: float, channels: int, size: int | None) -> Teacher:
    backbone = create_backbone(name, in_channels=channels, width=width)
    return Teacher(
        backbone,
        intensity=IntensityConfig(kind="percentile"),
        contract={"range": [0.0, 255.0], "mean": [127.0], "std": [128.0]},
        size=size,
        facts={"sha256": ""},
    )


def module(length: int, network: dict[str, Any]) -> TransferModule:
    return TransferModule(
        network=network,
        intensity=IntensityConfig(kind="percentile").to_dict(),
        augment=AugmentConfig(**SIDES).to_dict(),
        matching=MatchingConfig().to_dict(),
        optim=OptimConfig().to_dict(),
        spacing=None,
        teacher_features=length,
        seed=0,
        steps_per_epoch=1,
        epochs=1,
    )


def step(work: TransferModule, batch: dict[str, Any]) -> float:
    began = time.perf_counter()
    work.training_step(dict(batch), 0).backward()
    work.zero_grad()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    shape = (arguments.batch, 1, arguments.slices, arguments.size, arguments.size)
    network = {"name": "c3d", "width": 0.125, "options": {}}
    print(f"C3D of width 1/8, batch {shape[0]}, clips of {shape[2]} slices of {shape[3]} x {shape[4]}")
    for name, width, channels, size in (("resnet-18", 0.25, 1, None), ("efficientnet-lite0", 1.0, 3, 96)):
        guide = teacher(name, width, channels, size)
        work = module(guide.num_features, network)
        work.encode_with(TeacherStep(guide, AugmentConfig(**SIDES)))
        batch = {
            "image": torch.randint(-200, 200, shape, dtype=torch.int16),
            "other_image": torch.randint(-200, 200, shape, dtype=torch.int16),
            "quantiles": torch.linspace(-200, 200, 1001).repeat(len(range(shape[0])), 1),
            "patient": torch.arange(shape[0]),
            "has_other": torch.ones(shape[0], dtype=torch.bool),
            "valid": torch.ones(shape[0], dtype=torch.bool),
        }
        kept = {**batch, "teacher": torch.randn(shape[0], guide.num_features)}
        kept["other"] = torch.randn_like(kept["teacher"])
        for each in (batch, kept):
            step(work, each)
        times = [(step(work, batch), step(work, kept)) for _ in range(arguments.steps)]
        anew, read = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:20} width {width:g}: {read / anew:.2f}x ({1000 * read:.0f} of {1000 * anew:.0f} ms)")


if __name__ == "__main__":
    main()
