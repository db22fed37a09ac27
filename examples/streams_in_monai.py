"""The streams of two-stream networks as MONAI transforms: flow, or differences, of every slice in a `Compose`.

Makes phantoms whose class is the direction in which shapes go from slice to slice, and trains a small two-stream
network on slices alone, on slices with differences, and on slices with flow. Flow says which way; a difference says it
only together with the slice (a bright edge that comes and a dark one that goes look the same), and the two towers meet
no earlier than at their scores.

Usage: python examples/streams_in_monai.py
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose, ConcatItemsd, CopyItemsd, Lambdad, ScaleIntensityRanged

import volrec
from volrec.networks import create
from volrec.transforms import SliceDifference, SliceFlow, stack_fields

FIELDS = 2  # a slice carries those that follow it
BOUND = 4.0  # voxels; shapes go half a voxel to two voxels a slice
METHOD = "dis" if find_spec("cv2") else "demons"  # fast, or without OpenCV


def read(path: str) -> torch.Tensor:
    """Voxels (1, T, H, W) in HU, slices in order whatever the files are called."""
    return torch.from_numpy(volrec.read_volume(path).array.astype(np.float32))


def flow(image: torch.Tensor) -> torch.Tensor:
    """(1, T, H, W) in [0, 1] to (2 L, T, H, W): x1, y1, x2, y2 … of each slice's own stack."""
    fields = SliceFlow(method=METHOD, bound=BOUND)(image).numpy()  # (2, T - 1, H, W), over the bound
    return torch.from_numpy(stack_fields(fields.swapaxes(0, 1), range(image.shape[1]), length=FIELDS))


def difference(image: torch.Tensor) -> torch.Tensor:
    """(1, T, H, W) to the same: each slice to the next; the last slice has the difference before it."""
    found = SliceDifference()(image)
    return torch.cat([found, found[:, -1:]], dim=1)


MOTION = {"slices alone": None, "slices and differences": difference, "slices and flow": flow}


def prepare(motion) -> Compose:
    """From the path of a study to the channels of a network: appearance first, then motion."""
    steps = [
        Lambdad("image", read),
        ScaleIntensityRanged("image", -160, 240, 0.0, 1.0, clip=True),
    ]
    if motion is not None:
        steps += [
            CopyItemsd("image", names="motion"),
            Lambdad("motion", motion),
            ConcatItemsd(["image", "motion"], name="image"),
        ]
    return Compose(steps)


def accuracy(train: list[dict], test: list[dict], *, motion, epochs: int) -> tuple[float, int]:
    """Train and return the share of test studies that are right, and the channels that were read."""
    torch.manual_seed(0)
    learned, asked = (CacheDataset(studies, prepare(motion), progress=False) for studies in (train, test))
    channels = learned[0]["image"].shape[0]
    # What moves a slice as a whole is the class here, so its mean stays in.
    options = {"appearance_channels": 1, "stem_stride": 1, "subtract_mean": False}
    network = create("two-stream", num_classes=2, in_channels=channels, width=0.125, **options)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in DataLoader(learned, batch_size=8, shuffle=True):
            # Each tower has a loss of its own, as in the paper.
            branches = network.forward_branches(network.forward_features(batch["image"]))
            loss = sum(torch.nn.functional.cross_entropy(logits, batch["label"]) for logits in branches.values())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    network.eval()
    with torch.inference_mode():
        right = [network(batch["image"]).argmax(1) == batch["label"] for batch in DataLoader(asked, batch_size=8)]
    return torch.cat(right).float().mean().item(), channels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = volrec.make_phantoms(
            Path(scratch) / "motion", task="motion", directions=2, studies=given.studies, size=40, slices=12, seed=0
        )
        table = pd.read_csv(folder / "labels.csv")
        studies = [
            {"image": str(folder / row.study), "label": int(row.direction == "right")} for row in table.itertuples()
        ]
        cut = 3 * len(studies) // 4
        for name, motion in MOTION.items():
            share, channels = accuracy(studies[:cut], studies[cut:], motion=motion, epochs=given.epochs)
            print(f"{name}: {channels} channels, {share:.0%} of {len(studies) - cut} test studies")


if __name__ == "__main__":
    main()
