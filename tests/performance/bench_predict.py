"""What slices that are encoded once save, and what ONNX Runtime saves: ratios within one run.

Three questions, each asked for a network of slices:

- overlap 1/2: `Predictor.score` of so many studies over encoding their slices once (target: at most 1.10);
- overlap 15/16: the same clips one by one, as a sliding window of MONAI scores them, over `Predictor.score` (target: at
  least 8), and the largest difference of the scores (target: 1e-5);
- the time of torch over that of ONNX Runtime, with the time to make the network ready beside it.

The last also for networks that read clips. Both sides get studies that are normalised already, and take turns study by
study. One by one is measured on every so manieth study (`--one-by-one`), and the ratio is of these studies.

Usage: python tests/performance/bench_predict.py [--studies 200] [--slices 60] [--size 64] [--one-by-one 20]
       python tests/performance/bench_predict.py --only onnx [--runs 10]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volrec.config import IntensityConfig, ProtocolConfig, SamplingConfig
from volrec.inference import Predictor
from volrec.networks import SequenceNetwork, create
from volrec.transforms.clips import protocol_clips

CLIP = 16
SLICEWISE: dict[str, dict[str, Any]] = {
    "slice-mean": {"width": 0.25},
    "lrcn": {"width": 0.25},
    "temporal-attention": {"width": 0.25},
    "tsn": {"backbone": "resnet-18"},
}
"""Three narrow ones, and one of the size that is trained on studies."""
FAMILIES: dict[str, dict[str, Any]] = {
    **SLICEWISE,
    "c3d": {"width": 0.25},
    "i3d": {"width": 0.5},
    "densenet3d-121": {"width": 0.5},
    "t3d-121": {"width": 0.5},
    "ltc": {"width": 0.5},
    "inflated": {"width": 0.5},
    "slow-fusion": {"width": 0.5},
}


def network(name: str) -> SequenceNetwork:
    torch.manual_seed(0)
    made = create(name, num_classes=2, **FAMILIES[name]).eval()
    torch.nn.init.normal_(made.get_classifier().weight, std=0.002)
    return made


def predictor(made: SequenceNetwork, overlap: float, backend: Any = "torch") -> Predictor:
    return Predictor(
        made,
        intensity=IntensityConfig(kind="none"),
        sampling=SamplingConfig(clip_length=CLIP),
        protocol=ProtocolConfig(overlap=overlap, stage="logits"),
        task="multiclass",
        backend=backend,
    )


def study(seed: int, arguments: argparse.Namespace) -> np.ndarray:
    shape = (arguments.slices, arguments.size, arguments.size)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@torch.inference_mode()
def encode(made: SequenceNetwork, voxels: np.ndarray) -> Tensor:
    return made.encode_slices(torch.from_numpy(voxels)[:, None])  # type: ignore[operator]


@torch.inference_mode()
def one_by_one(made: SequenceNetwork, voxels: np.ndarray, overlap: float) -> np.ndarray:
    clips = protocol_clips(len(voxels), clip_length=CLIP, overlap=overlap)
    logits = [made(torch.from_numpy(voxels[clip])[None, None]) for clip in clips]
    return torch.cat(logits).double().mean(0).softmax(0).numpy()


def timed(work: Any, *given: Any) -> tuple[float, Any]:
    # Of the processor, over all threads: what else runs on the machine does not count.
    began = time.process_time()
    result = work(*given)
    return time.process_time() - began, result


def slices_once(name: str, arguments: argparse.Namespace) -> None:
    made = network(name)
    half, dense = predictor(made, 0.5), predictor(made, 15 / 16)
    quantiles = np.zeros(1001, dtype=np.float32)  # of no use without normalisation, and slow to find
    once = scored = single = overlapped = difference = 0.0
    step = max(1, arguments.studies // arguments.one_by_one)
    for number in range(-2, arguments.studies):
        voxels = study(number + 2, arguments)
        first, _ = timed(encode, made, voxels)
        second, _ = timed(half.score, voxels, quantiles)
        if number < 0:  # the first studies warm up
            continue
        once, scored = once + first, scored + second
        if number % step == 0:
            third, expected = timed(one_by_one, made, voxels, 15 / 16)
            fourth, found = timed(dense.score, voxels, quantiles)
            single, overlapped = single + third, overlapped + fourth
            difference = max(difference, float(np.abs(found.scores - expected).max()))
    print(
        f"{name:20s} overlap 1/2: {scored / once:5.2f} x encoding once   "
        f"overlap 15/16: one by one costs {single / overlapped:5.1f} x   largest difference {difference:.1e}",
        flush=True,
    )


def backends(name: str, arguments: argparse.Namespace) -> None:
    made = network(name)
    voxels, quantiles = study(0, arguments), np.zeros(1001, dtype=np.float32)
    ours, other = predictor(made, 0.5), predictor(made, 0.5, "onnxruntime")
    ours.score(voxels, quantiles)
    ready, _ = timed(other.score, voxels, quantiles)
    torch_time = onnx_time = difference = 0.0
    for number in range(arguments.runs):
        voxels = study(number, arguments)
        first, expected = timed(ours.score, voxels, quantiles)
        second, found = timed(other.score, voxels, quantiles)
        torch_time, onnx_time = torch_time + first, onnx_time + second
        # Of the logits, over the largest: untrained networks are so sure that all their scores are 0 and 1.
        gap = np.abs(found.logits - expected.logits).max() / np.abs(expected.logits).max()
        difference = max(difference, float(gap))
    per_study = onnx_time / arguments.runs
    print(
        f"{name:20s} ONNX Runtime takes {onnx_time / torch_time:4.2f} of torch's time   made ready in the time of "
        f"{(ready - per_study) / per_study:5.1f} studies   largest relative difference {difference:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--one-by-one", type=int, default=20)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--only", choices=("once", "onnx"))
    arguments = parser.parse_args()
    print(f"{arguments.studies} studies of {arguments.slices} x {arguments.size}²; {torch.get_num_threads()} thread(s)")
    if arguments.only != "onnx":
        for name in SLICEWISE:
            slices_once(name, arguments)
    if arguments.only != "once":
        for name in FAMILIES:
            backends(name, arguments)


if __name__ == "__main__":
    main()
