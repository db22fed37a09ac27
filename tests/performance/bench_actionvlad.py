"""What ActionVLAD's words are worth from scratch: sharpness, first words, stages, and the paper's other poolings.

    python tests/performance/bench_actionvlad.py --ways kmeans --alpha 1 10 30 100 1000
    python tests/performance/bench_actionvlad.py --ways random average max average-first words-late --alpha 10

Each takes about five minutes on one core, and digits differ between machines: with 80 studies much is left to chance.

Volumes of 6 x 40 x 40 hold smooth noise and, on two neighbouring slices somewhere, a patch of stripes: their direction
is the class. 80 studies are learned, 192 others are tested, every way in 16 epochs in all.

==============  ====================================================================================
way             what is trained
==============  ====================================================================================
kmeans          everything, from words of k-means of the untrained features
random          everything, from words drawn from the sphere
average, max    everything, with that pooling in place of words
average-first   8 epochs with the average, then words of k-means and 8 epochs of everything
words-late      8 epochs from words drawn from the sphere, then words of k-means and 8 epochs of everything
==============  ====================================================================================
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from volrec.networks import create
from volrec.training.vocabulary import fit_words
from volrec.transforms.batch import BatchTransform
from volrec.transforms.intensity import BatchIntensity

WAYS = ("kmeans", "random", "average", "max", "average-first", "words-late")
EPOCHS = 16


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 6, 40, 40, generator=generator)
    smooth = torch.randn(count, 1, 4, 6, 6, generator=generator)
    images = 0.5 * images + nn.functional.interpolate(smooth, size=(6, 40, 40), mode="trilinear")
    labels = torch.arange(count) % 2
    places = torch.arange(16)
    for image, label in zip(images[:, 0], labels, strict=True):
        t = int(torch.randint(0, 5, (1,), generator=generator))
        h, w = torch.randint(0, 24, (2,), generator=generator).tolist()
        phase = float(torch.rand(1, generator=generator)) * 6.28
        wave = torch.sin(2 * 3.1416 * places / 5 + phase)
        image[t : t + 2, h : h + 16, w : w + 16] += 0.7 * (wave[:, None] if label else wave[None])
    return images, labels


def build(alpha: float, pooling: str = "vlad") -> nn.Module:
    options = {"words": 16, "alpha": alpha, "pooling": pooling, "dropout": 0.2, "stem_stride": 1}
    return create("actionvlad", num_classes=2, width=1 / 16, **options)


def fit(network: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, seed: int) -> nn.Module:
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(images) // 8))
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    return network


def find_words(network: nn.Module, images: Tensor, seed: int) -> None:
    batches = [{"image": batch} for batch in images.split(16)]
    fit_words(network, batches, transform=BatchTransform(BatchIntensity("none")), seed=seed, per_clip=128, limit=8192)


def train(way: str, alpha: float, seed: int, images: Tensor, labels: Tensor) -> nn.Module:
    if way in ("average", "max"):
        return fit(build(alpha, way), images, labels, epochs=EPOCHS, seed=seed)
    if way in ("kmeans", "random"):
        network = build(alpha)
        if way == "kmeans":
            find_words(network, images, seed)
        return fit(network, images, labels, epochs=EPOCHS, seed=seed)
    first = fit(build(alpha, "average" if way == "average-first" else "vlad"), images, labels, epochs=8, seed=seed)
    network = build(alpha) if way == "average-first" else first
    network.backbone.load_state_dict(first.backbone.state_dict())
    find_words(network, images, seed)
    return fit(network, images, labels, epochs=EPOCHS // 2, seed=seed)


@torch.no_grad()
def score(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    network.eval()
    logits = torch.cat([network(batch) for batch in images.split(32)])
    return (logits.argmax(1) == labels).float().mean().item(), nn.functional.cross_entropy(logits, labels).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument("--alpha", nargs="*", type=float, default=[1, 10, 30, 100, 1000])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    chosen = parser.parse_args()
    print(f"{'way':<14}{'alpha':>6}  accuracy, log loss of {len(chosen.seeds)} seeds (mean, then each accuracy)")
    for way in chosen.ways:
        # Sharpness means nothing where there are no words.
        for alpha in chosen.alpha if way not in ("average", "max") else chosen.alpha[:1]:
            found = []
            for seed in chosen.seeds:
                torch.manual_seed(seed)
                found.append(score(train(way, alpha, seed, *draw(80, 100 + seed)), *draw(192, 999)))
            accuracy, loss = np.mean(found, axis=0)
            each = " ".join(f"{value:.3f}" for value, _ in found)
            print(f"{way:<14}{alpha:>6g}  {accuracy:.3f}, {loss:.3f}   {each}", flush=True)


if __name__ == "__main__":
    main()
