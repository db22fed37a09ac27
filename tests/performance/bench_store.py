"""Clips from the store against decoding: ratios side by side in one run.

``python tests/performance/bench_store.py`` writes a DICOM series of 60 and one of 300 slices of 512 x 512 to a
temporary folder (about 0.5 GB with the store), and prints for each: the plain pydicom loop that checks nothing, a clip
of 32 slices from the store (``npy``, and ``blosc2`` where it is installed), opening an entry, and the rate at which the
store is filled and checked. Times are the best of several rounds in which the candidates take turns. Then it fills
stores with few and with many studies, each in a process of its own, and prints the peak memory of that process and of
its largest worker.

Target: a clip of 32 slices takes at most 0.1 of the pydicom loop.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pydicom

sys.path.insert(0, str(Path(__file__).parents[1]))
from studies import write_study

from volrec.config import PreprocessConfig
from volrec.data.store import Store
from volrec.io import Series, assemble, scan_file

TARGET = 0.1


def series_of(folder: Path) -> Series:
    """Index one series."""
    headers = [header for path in sorted(folder.iterdir()) for header in scan_file(path).headers]
    (series,), _ = assemble(headers, root=folder)
    return series


def pydicom_loop(folder: Path) -> np.ndarray:
    """Read a series as one writes it on the first day: no checks."""
    slices = sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda one: one.ImagePositionPatient[2])
    return np.stack([one.pixel_array for one in slices])


def best_times(functions: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Seconds of each function: the best of some rounds in which they take turns, after one to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if number:
                taken[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in taken.items()}


def clips(work: Path, slices: int) -> bool:
    """Compare clips of one series with the loop; tell whether the target is met."""
    rng = np.random.default_rng(0)
    # Smooth with noise, as CT is: blosc2 would look better on zeros and worse on pure noise.
    ramp = np.linspace(-1000, 1000, 512, dtype=np.float32)[None, :, None]
    array = (ramp + rng.normal(0, 20, (slices, 512, 512)).astype(np.float32)).astype(np.int16)
    folder = work / f"source-{slices}"
    write_study(folder, array=array)
    series = series_of(folder)
    formats = ["npy", *(["blosc2"] if importlib.util.find_spec("blosc2") else [])]
    stores = {format: Store(work / f"store-{slices}-{format}", format=format) for format in formats}  # type: ignore[arg-type]
    starts = iter(np.random.default_rng(1).integers(0, slices - 32 + 1, 10_000).tolist())

    def fill(store: Store) -> None:
        store.prune()
        store.fill([series], PreprocessConfig(), jobs=1)

    def check(store: Store) -> None:
        Store(store.folder, format=store.format).fill([series], PreprocessConfig())

    def clip(store: Store) -> np.ndarray:
        first = next(starts)
        return store.open(entries[store.format]).read(np.arange(first, first + 32))

    slow = {f"fill {format}": partial(fill, store) for format, store in stores.items()}
    times = best_times({"loop": partial(pydicom_loop, folder), **slow}, rounds=3)
    entries = {format: store.fill([series], PreprocessConfig())[0][series.uid] for format, store in stores.items()}
    functions: dict[str, Callable[[], object]] = {"loop": partial(pydicom_loop, folder)}
    for format, store in stores.items():
        functions[f"clip {format}"] = partial(clip, store)
        functions[f"open {format}"] = partial(store.open, entries[format])
        functions[f"check {format}"] = partial(check, store)
    again = best_times(functions, rounds=9)
    loop = min(times["loop"], again.pop("loop"))
    times |= again
    print(f"\n{slices} slices of 512 x 512 ({array.nbytes / 1e6:.0f} MB): pydicom loop {loop * 1e3:.0f} ms")
    for format in formats:
        one = {what: times[f"{what} {format}"] for what in ("clip", "open", "fill", "check")}
        print(
            f"  {format:6}  clip of 32 {one['clip'] * 1e3:6.2f} ms = {one['clip'] / loop:.3f} of the loop"
            f"   (opening alone {one['open'] * 1e3:.2f} ms)"
            f"   fill {array.nbytes / one['fill'] / 1e6:4.0f} MB/s = {one['fill'] / loop:.2f} loops"
            f"   check {array.nbytes / one['check'] / 1e6:5.0f} MB/s   size {entries[format].size / array.nbytes:.2f}"
        )
    return times["clip npy"] <= TARGET * loop


def filling(work: Path, counts: list[int], jobs: list[int]) -> None:
    """Print rate and memory while stores of growing size are filled, each by a process of its own."""
    folder = work / "many"
    array = np.random.default_rng(0).integers(-1000, 1000, (40, 256, 256)).astype(np.int16)
    for number in range(max(counts)):
        write_study(folder / f"s{number}", array=array)
    print(f"\nfilling with studies of 40 x 256 x 256 ({array.nbytes / 1e6:.1f} MB), spacing and canvas changed")
    for job in jobs:
        for count in counts:
            subprocess.run([sys.executable, __file__, "--fill", folder, str(count), str(job)], check=True)


def fill_and_tell(folder: Path, count: int, jobs: int) -> None:
    """Fill a store with the first studies of a folder and print what it took."""
    series = [series_of(folder / f"s{number}") for number in range(count)]
    contract = PreprocessConfig(spacing=(None, 1.5, 1.5), canvas=(None, 160, 160))
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        start = time.perf_counter()
        Store(name).fill(series, contract, jobs=jobs)
        taken = time.perf_counter() - start
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    # Not getrusage: a process inherits the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    own = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024
    print(
        f"  {jobs} job(s)  {count:4} studies  {taken:6.1f} s  {count / taken:6.1f} studies/s"
        f"   peak memory: this process {own:.0f} MB" + (f", a worker {worker:.0f} MB" if jobs > 1 else "")
    )


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--studies", type=int, default=160, help="studies of the largest fill")
    parser.add_argument("--fill", nargs=3, metavar=("FOLDER", "COUNT", "JOBS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        folder, count, jobs = options.fill
        fill_and_tell(Path(folder), int(count), int(jobs))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        work = Path(name)
        good = [clips(work, slices) for slices in (60, 300)]
        filling(work, [options.studies // 8, options.studies], [1, 2])
    print(f"\ntarget (clip of 32 from npy at most {TARGET} of the loop): {'met' if all(good) else 'MISSED'}")
    raise SystemExit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
