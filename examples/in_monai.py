"""A network of the zoo in MONAI's trainer, under MONAI's Grad-CAM, and scored on a stack longer than its clip.

MONAI's `SlidingWindowInferer` stitches maps, so it cannot take a classifier; `volrec.inference.Predictor` cuts a long
stack into clips and pools their scores instead.

Usage: pip install pytorch-ignite; python examples/in_monai.py
"""

from __future__ import annotations

import numpy as np
import torch
from monai.engines import SupervisedTrainer
from monai.inferers import SlidingWindowInferer
from monai.visualize import GradCAM

from volrec.config import IntensityConfig, ProtocolConfig, SamplingConfig
from volrec.inference import Predictor
from volrec.networks import create

CLIP = (16, 32, 32)


def stacks(count: int, *, slices: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (N, 1, T, H, W) and labels (N,); half of the stacks hold a bright ball."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(count, 1, slices, *CLIP[1:])).astype(np.float32)
    t, h, w = np.ogrid[:slices, : CLIP[1], : CLIP[2]]
    for index in range(0, count, 2):
        centre = random.integers((4, 8, 8), (slices - 4, 24, 24))
        ball = (t - centre[0]) ** 2 + (h - centre[1]) ** 2 + (w - centre[2]) ** 2 < 16
        images[index, 0][ball] += 4
    return torch.from_numpy(images), torch.arange(1, count + 1) % 2


def main() -> None:
    torch.manual_seed(0)
    network = create("c3d", num_classes=1, width=0.125)

    images, labels = stacks(64, slices=CLIP[0], seed=0)
    batches = [{"image": images[i : i + 8], "label": labels[i : i + 8, None].float()} for i in range(0, 64, 8)]
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=6,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=3e-3),
        loss_function=torch.nn.BCEWithLogitsLoss(),
    ).run()
    network.eval()

    # Any layer with maps goes by its name; `network.cam_layer` names the last one, here too coarse for 32 pixels.
    # MONAI's default output is inverted (important = 0), hence the postprocessing.
    print(f"last maps: {network.cam_layer}")
    cam = GradCAM(nn_module=network, target_layers="conv3b", postprocessing=lambda found: found)
    heat = torch.as_tensor(cam(x=images[:1], class_idx=0)[0, 0])
    peak = np.unravel_index(int(heat.argmax()), tuple(heat.shape))
    centre = np.argwhere(images[0, 0].numpy() > 3).mean(0).round()
    print(f"a ball at (T, H, W) = {tuple(map(int, centre))}, Grad-CAM peaks at {tuple(map(int, peak))}")

    long, labels = stacks(40, slices=80, seed=1)
    try:
        SlidingWindowInferer(roi_size=CLIP)(long[:1], network)
    except Exception as error:  # noqa: BLE001 - whatever MONAI raises is the point
        print(f"MONAI's SlidingWindowInferer with a classifier: {type(error).__name__}")
    predictor = Predictor(
        network,
        intensity=IntensityConfig(kind="none"),
        sampling=SamplingConfig(clip_length=CLIP[0]),
        protocol=ProtocolConfig(overlap=0.5, consensus="max"),
        task="binary",
    )
    scores = np.array([predictor.score(stack[0].numpy()).scores[0] for stack in long])
    positive, negative = scores[labels == 1], scores[labels == 0]
    auc = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    print(f"volrec's Predictor on stacks of 80 slices, clips of {CLIP[0]}, highest clip counts: AUC {auc:.2f}")


if __name__ == "__main__":
    main()
