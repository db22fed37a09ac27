"""Milliseconds a pair of slices and memory of each estimator of flow, on one thread, and of the stacks read of a store.

python tests/performance/bench_flow.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from scipy import ndimage

from volrec.transforms.drift import warped_flow
from volrec.transforms.flow import FLOW_METHODS, estimate_flow, flow_backend
from volrec.transforms.flow_fields import STACK_ORDERS, quantise, stack_fields

SIZES = ((64, 48), (224, 224))


def pair(shape):
    scene = ndimage.gaussian_filter(np.random.default_rng(0).random((shape[0] + 8, shape[1] + 8)), 3)
    scene = ((scene - scene.min()) / np.ptp(scene)).astype(np.float32)
    return scene[4:-4, 4:-4].copy(), scene[2:-6, 5:-3].copy()


def seconds(call, repeats=5):
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def one_method(method):
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    backend = flow_backend(method)
    estimate_flow(*pair((24, 24)), method=method)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shape in SIZES:
        first, second = pair(shape)
        plain = seconds(lambda images=(first, second): estimate_flow(*images, method=method))
        warped = seconds(lambda images=(first, second): warped_flow(*images, method=method), 3)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{backend:24} {shape[0]} x {shape[1]}: {plain * 1e3:7.1f} ms a pair, warped {warped * 1e3:7.1f} ms, "
            f"package {(loaded - base) >> 10} MB, work {(peak - loaded) >> 10} MB, process {peak >> 10} MB"
        )


def stacks():
    fields = np.random.default_rng(0).normal(0, 2, (40, 2, 224, 224)).astype(np.float32)
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file.name, quantise(fields))
        stored = np.load(file.name, mmap_mode="r")
        for order in STACK_ORDERS:
            taken = seconds(lambda order=order: stack_fields(stored, np.arange(10, 26), length=10, order=order), 3)
            print(f"stacks of 10 fields, 16 slices of 224 x 224, {order}: {taken * 1e3:.0f} ms")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one_method(sys.argv[1])
    else:
        for name in FLOW_METHODS:
            subprocess.run([sys.executable, __file__, name], check=True)
        stacks()
