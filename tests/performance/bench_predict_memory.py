"""Peak memory of `volrec predict`: over the number of studies, and over their length.

``python tests/performance/bench_predict_memory.py`` (about two minutes on two cores) writes small DICOM studies and a
run of a slicewise network that was never trained to a temporary folder, and predicts in processes of their own:

- 20, then 200 studies of 12 slices of 64 x 64: the peak must not grow by more than 5 MB;
- 6 studies of 30, 60, 120 and 240 slices of 184 x 184: the peak may grow by the voxels of the studies that are held at
  a time alone. That is the one that is scored (its int16 voxels), and the one that is decoded meanwhile (its voxels
  before and after preprocessing, and a copy while they are put together): at most 16 bytes a voxel of one study.

Written are scores, slices and JSON, as the command does. The script prints a table and the verdict, and ends with 1
when either is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

GROWTH = 5.0
"""MB that 180 more studies may take."""
BYTES = 16.0
"""Bytes of a voxel that a longer study may take."""
LENGTHS = (30, 60, 120, 240)
SIZE = 184
"""So that 30 slices, of which all lengths are multiples, are what the network reads at a time (`predictor.BUDGET`)."""


def peak_of_prediction(run: Path, folder: Path, studies: int) -> None:
    """Predict in this process and print its peak memory in MB."""
    from volrec.inference import predict_folder

    table, problems = predict_folder(run, folder, out=folder.parent / f"{folder.name}-out" / "s.csv", device="cpu")
    if len(table) != studies or any(problem.fatal for problem in problems):
        raise SystemExit(f"{len(table)} of {studies} studies were scored: {problems[:3]}")
    # Not getrusage: a process inherits the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    print(int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024)


def measure(run: Path, folder: Path, studies: int, rounds: int) -> float:
    """Return the smallest peak, MB, of some processes: what is above it is the allocator's mood."""
    command = [sys.executable, __file__, "--predict", str(run), str(folder), str(studies)]
    found = [subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout for _ in range(rounds)]
    return min(float(text.split()[-1]) for text in found)


def write(folder: Path, studies: int, slices: int, size: int) -> Path:
    """Write studies of noise."""
    from studies import write_study

    rng = np.random.default_rng(0)
    for number in range(studies):
        array = rng.integers(-1000, 1000, (slices, size, size), dtype=np.int16)
        write_study(folder / f"s{number:03d}", array=array)
    return folder


def make_run(path: Path) -> Path:
    """Write a run of a slicewise network that reads studies as they are."""
    from untrained import make_run as make

    from volrec.config import parse_config

    sections = {
        "network": {"name": "slice-mean", "width": 0.125},
        "intensity": {"kind": "zscore"},
        "sampling": {"clip_length": 8},
    }
    return make(path, config=parse_config(sections)).path


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", nargs=3, metavar=("RUN", "FOLDER", "STUDIES"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=1, help="Processes a measurement.")
    given = parser.parse_args()
    if given.predict:
        run, folder, studies = given.predict
        peak_of_prediction(Path(run), Path(folder), int(studies))
        return 0
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        run = make_run(work / "run")
        print(f"{'studies':>8} {'slices':>7} {'size':>9} {'peak MB':>8}")
        peaks = {}
        for count in (20, 200):
            peaks[count] = measure(run, write(work / f"many-{count}", count, 12, 64), count, given.rounds)
            print(f"{count:8} {12:7} {'64 x 64':>9} {peaks[count]:8.1f}")
        growth = peaks[200] - peaks[20]
        lengths = {}
        for slices in LENGTHS:
            folder = write(work / f"long-{slices}", 6, slices, SIZE)
            lengths[slices] = measure(run, folder, 6, given.rounds)
            print(f"{6:8} {slices:7} {f'{SIZE} x {SIZE}':>9} {lengths[slices]:8.1f}")
    slopes = [(lengths[b] - lengths[a]) * 2**20 / ((b - a) * SIZE * SIZE) for a, b in pairwise(LENGTHS)]
    print(f"180 more studies: {growth:+.1f} MB (at most {GROWTH:g})")
    print(f"a voxel more of each study: {', '.join(f'{slope:.1f}' for slope in slopes)} bytes (at most {BYTES:g})")
    met = growth <= GROWTH and max(slopes) <= BYTES
    print("bounded" if met else "NOT bounded")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
