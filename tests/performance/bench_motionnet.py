"""Fields of motion a second, side by side: ``python tests/performance/bench_motionnet.py [--size 224] [--rounds 3]``.

TV-L1 and Farneback of OpenCV (TV-L1 of scikit-image where OpenCV's is not there) pair by pair, MotionNet and
Tiny-MotionNet of full width on stacks of 11 and of 6 slices, without gradients and with freshly drawn weights (time
does not depend on them). The input is smooth noise that moves by a pixel or two from slice to slice.

Every line is the best of some rounds that take turns, so that a busy machine slows all of them alike: read the ratios,
which are over TV-L1 where there is one, else over the first line. What is not installed is said to be missing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from volrec.networks.motionnet import MotionNet, TinyMotionNet


def moving_noise(slices: int, size: int) -> np.ndarray:
    """Return slices (T, H, W) in [0, 1] whose content moves by (1, 2) pixels from one to the next."""
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, size + 64, size + 64))).float()
    scene = F.avg_pool2d(noise, 9, 1, 4)[0, 0]
    scene = (scene - scene.min()) / (scene.max() - scene.min())
    return np.stack([scene[44 - t : 44 - t + size, 44 - 2 * t : 44 - 2 * t + size].numpy() for t in range(slices)])


def classical(volume: np.ndarray, threads: int) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """Return methods that give the fields of `volume` one by one, and what is missing."""
    found: dict[str, Callable[[], object]] = {}
    missing: list[str] = []
    bytes_ = (255 * volume).round().astype(np.uint8)
    pairs = list(pairwise(bytes_))
    cv2: Any = None
    try:
        import cv2
    except ImportError:
        missing.append(
            "OpenCV is not there: no TV-L1 and no Farneback of it (pip install opencv-contrib-python-headless)"
        )
    if cv2 is not None:
        cv2.setNumThreads(threads)
        if hasattr(cv2, "optflow"):
            solver = cv2.optflow.createOptFlow_DualTVL1()
            found["TV-L1, OpenCV"] = lambda: [solver.calc(first, second, None) for first, second in pairs]
        else:
            missing.append("OpenCV has no optflow: TV-L1 needs the contrib build (opencv-contrib-python-headless)")
        found["Farneback, OpenCV"] = lambda: [
            cv2.calcOpticalFlowFarneback(first, second, None, 0.5, 3, 15, 3, 5, 1.2, 0) for first, second in pairs
        ]
    if "TV-L1, OpenCV" not in found:
        try:
            from skimage.registration import optical_flow_tvl1
        except ImportError:
            missing.append("scikit-image is not there: no TV-L1 of it either (pip install scikit-image)")
        else:
            floats = volume.astype(np.float32)
            # One pair: it takes seconds, and scikit-image gives (y, x).
            found["TV-L1, scikit-image"] = lambda: optical_flow_tvl1(floats[0], floats[1])
    return found, missing


def networks(volume: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return the networks on as many stacks as cover `volume`, each with its slices side by side."""
    found: dict[str, Callable[[], object]] = {}
    for kind, slices in ((MotionNet, 11), (TinyMotionNet, 11), (TinyMotionNet, 6)):
        network = kind(1, slices).eval()
        starts = range(0, len(volume) - slices + 1, slices - 1)
        stacks = torch.from_numpy(np.stack([volume[start : start + slices] for start in starts]))[:, :, None]
        stacks = 0.25 * (stacks - stacks.mean()) / stacks.std()

        def run(network: MotionNet = network, stacks: torch.Tensor = stacks) -> object:
            with torch.inference_mode():
                return network.flow(stacks)

        found[f"{kind.__name__}, stacks of {slices} slices"] = run
    return found


def main() -> None:
    """Time every method in turns and print fields a second and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    volume = moving_noise(11, arguments.size)
    methods, missing = classical(volume, arguments.threads)
    methods |= networks(volume)
    fields = {name: 1 if name.endswith("scikit-image") else len(volume) - 1 for name in methods}
    best = dict.fromkeys(methods, float("inf"))
    for _ in range(arguments.rounds):
        for name, call in methods.items():
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
    rates = {name: fields[name] / seconds for name, seconds in best.items()}
    reference = next((name for name in rates if name.startswith("TV-L1")), next(iter(rates)))
    print(f"fields a second of {arguments.size} x {arguments.size}, {arguments.threads} threads; times {reference}")
    for name, rate in rates.items():
        print(f"  {name:40s}{rate:10.2f}{rate / rates[reference]:10.2f}x")
    for line in missing:
        print(f"  {line}")


if __name__ == "__main__":
    main()
