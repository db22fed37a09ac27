"""How long a series takes to become a volume, beside other readers; ratios in one run.

    python tests/performance/bench_read.py [--slices 60 300] [--repeat 5] [--files 20000]

Every reader gives an array of the whole series from the same files, generated here in a temporary folder. Volrec scans,
groups, orders and checks; the pydicom loop only reads, rescales and trusts the file names. Each round runs all readers
one after another, so that they share the machine's moods; the median of the rounds is printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "io"))
from io_writer import noise, save, slice_dataset, write_series


def pydicom_loop(folder: Path) -> np.ndarray:
    import pydicom

    planes = []
    for path in sorted(folder.iterdir()):
        ds = pydicom.dcmread(path)
        planes.append(ds.pixel_array.astype(np.int16) * int(ds.RescaleSlope) + int(ds.RescaleIntercept))
    return np.stack(planes)


def volrec_reader(folder: Path) -> np.ndarray:
    from volrec.io import read_volume

    return read_volume(folder).array


def sitk_reader(folder: Path) -> np.ndarray:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def sitk_int16_reader(folder: Path) -> np.ndarray:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetOutputPixelType(sitk.sitkInt16)
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def monai_pydicom_reader(folder: Path) -> np.ndarray:
    from monai.data import PydicomReader

    reader = PydicomReader()
    return np.asarray(reader.get_data(reader.read(str(folder)))[0])


def monai_itk_reader(folder: Path) -> np.ndarray:
    from monai.data import ITKReader

    reader = ITKReader()
    return np.asarray(reader.get_data(reader.read(str(folder)))[0])


def compare(folder: Path, slices: int, repeat: int) -> None:
    readers: dict[str, Callable[[Path], np.ndarray]] = {
        "plain pydicom loop, no checks": pydicom_loop,
        "volrec.read_volume, all checks": volrec_reader,
        "SimpleITK series reader": sitk_reader,
        "SimpleITK series reader, int16": sitk_int16_reader,
        "MONAI PydicomReader": monai_pydicom_reader,
    }
    if importlib.util.find_spec("itk") is not None:
        readers["MONAI ITKReader"] = monai_itk_reader
    times: dict[str, list[float]] = {name: [] for name in readers}
    for round_number in range(repeat + 1):
        for name, reader in readers.items():
            if name.startswith("MONAI") and round_number > max(1, repeat // 2):
                continue  # slow: fewer rounds are enough to see the factor
            start = time.perf_counter()
            reader(folder)
            if round_number:  # the first round warms caches and imports
                times[name].append(time.perf_counter() - start)
    base = statistics.median(times["plain pydicom loop, no checks"])
    print(f"\n{slices} slices of 512x512, uncompressed")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"  {name:34s} {1000 * median:9.1f} ms   {median / base:6.2f} of the pydicom loop")
    if "MONAI ITKReader" not in times:
        print("  MONAI ITKReader                    not measured: the package 'itk' is not installed")


def scan_rate(root: Path, files: int) -> None:
    from volrec.io import assemble, scan_file

    template = slice_dataset(noise((32, 32)), position=(0, 0, 0))
    paths = []
    for number in range(files):
        template.ImagePositionPatient = [0, 0, 2.0 * (number % 100)]
        template.SOPInstanceUID = f"1.2.3.{number}"
        template.file_meta.MediaStorageSOPInstanceUID = template.SOPInstanceUID
        template.SeriesInstanceUID = f"1.2.4.{number // 100}"
        paths.append(save(template, root / str(number // 100) / f"{number}"))
    start = time.perf_counter()
    scans = [scan_file(path) for path in paths]
    scanned = time.perf_counter() - start
    start = time.perf_counter()
    series, _ = assemble([header for scan in scans for header in scan.headers])
    assembled = time.perf_counter() - start
    print(f"\nheaders of {files} small files, one process: {files / scanned:,.0f} files/s")
    print(f"assembling them to {len(series)} series: {files / assembled:,.0f} files/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, nargs="*", default=[60, 300])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--files", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for slices in arguments.slices:
            folder = Path(name) / str(slices)
            write_series(folder, noise((slices, 512, 512)))
            compare(folder, slices, arguments.repeat)
        scan_rate(Path(name) / "scan", arguments.files)


if __name__ == "__main__":
    main()
