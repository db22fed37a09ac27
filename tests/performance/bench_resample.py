"""Cost of resampling 60 slices of 512x512, side by side: ``python tests/performance/bench_resample.py [--monai]``.

Two targets: 1x1x2 mm (from .7x.7x5 mm: in plane it shrinks, through the slices it grows) and a canvas of 32x224x224.
The reference is trilinear interpolation by torch, which is not anti-aliased; every line is the best of some rounds that
take turns, so that a busy machine slows all of them alike. Processor time (all threads together) says what a method
costs when several processes decode at once; volrec works on one thread, torch and SimpleITK on two.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np

THREADS = 2
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))

SPACING = (5.0, 0.7, 0.7)
TARGETS = {"1x1x2 mm": (150, 358, 358), "32x224x224": (32, 224, 224)}


def methods(volume: np.ndarray, size: tuple[int, int, int], *, with_monai: bool) -> dict[str, Callable[[], object]]:
    """Return what is timed; every entry makes `size` voxels of `volume`, int16 ``(T, H, W)``."""
    import SimpleITK as sitk
    import torch
    import torch.nn.functional as functional

    from volrec.transforms.resample import resample

    torch.set_num_threads(THREADS)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(THREADS)
    spacing = [old * n / m for old, n, m in zip(SPACING, volume.shape, size, strict=True)]
    affine = np.diag([*SPACING, 1.0])
    floats = volume.astype(np.float32)
    tensor = torch.from_numpy(floats)[None, None]
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(SPACING[::-1])

    def simpleitk() -> object:
        origin = [(new - old) / 2 for new, old in zip(spacing, SPACING, strict=True)][::-1]
        return sitk.Resample(
            image, size[::-1], sitk.Transform(), sitk.sitkLinear, origin, spacing[::-1], image.GetDirection(), -1024
        )

    def area() -> object:
        return functional.interpolate(tensor, size=size, mode="area")

    def antialiased() -> object:
        plane = functional.interpolate(tensor[0], size=size[1:], mode="bilinear", antialias=True)
        return functional.interpolate(plane[None], size=size, mode="trilinear")

    found: dict[str, Callable[[], object]] = {
        "torch trilinear, float32": lambda: functional.interpolate(tensor, size=size, mode="trilinear"),
        "torch trilinear, int16 in and out": lambda: (
            functional.interpolate(torch.from_numpy(volume).float()[None, None], size=size, mode="trilinear")
            .round_()
            .short()
        ),
        "volrec, float32": lambda: resample(floats, affine, spacing=spacing),
        "volrec, int16 in and out": lambda: resample(volume, affine, spacing=spacing),
        "torch antialias in plane, then linear": antialiased,
        "torch area": area,
        "SimpleITK linear, int16": simpleitk,
    }
    if with_monai:
        from monai.data import MetaTensor
        from monai.transforms import Spacing

        meta = MetaTensor(tensor[0], affine=torch.from_numpy(affine))
        spacer = Spacing(pixdim=spacing, mode="bilinear")
        found["MONAI Spacing, float32"] = lambda: spacer(meta)
    return found


def main() -> None:
    """Time every method in turns and print milliseconds and the ratio to torch trilinear."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--monai", action="store_true", help="also MONAI's Spacing (seconds a round)")
    arguments = parser.parse_args()
    volume = np.random.default_rng(0).integers(-1000, 1500, (60, 512, 512)).astype(np.int16)
    for name, size in TARGETS.items():
        timed = methods(volume, size, with_monai=arguments.monai)
        wall = dict.fromkeys(timed, float("inf"))
        processor = dict.fromkeys(timed, float("inf"))
        for _ in range(arguments.rounds):
            for method, call in timed.items():
                start, start_processor = time.perf_counter(), time.process_time()
                call()
                wall[method] = min(wall[method], time.perf_counter() - start)
                processor[method] = min(processor[method], time.process_time() - start_processor)
        reference = next(iter(timed))
        print(f"60x512x512 to {name} {size}: time elapsed, processor time, each also over {reference}")
        for method in timed:
            elapsed = f"{wall[method] * 1e3:8.1f} ms {wall[method] / wall[reference]:6.2f}x"
            used = f"{processor[method] * 1e3:8.1f} ms {processor[method] / processor[reference]:6.2f}x"
            print(f"  {method:40s}{elapsed}{used}")


if __name__ == "__main__":
    main()
