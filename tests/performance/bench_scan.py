"""Files a second of a header scan and of a rescan: ``python tests/performance/bench_scan.py [--files 20000]``.

A tree of small DICOM files, 100 a series, is written once; then it is walked, scanned by one process, scanned by all
processors, and scanned again unchanged, when no file may be opened. The reference is a loop over pydicom that reads the
same headers (on a tenth of the files). Each line is one run: a scan that is repeated would find the disk's cache warm,
so the files are read through once before. At the end: the memory that an index holds, by size of the tree.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SERIES = 100
SIZE = 32
TAGS = [
    *("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "ImageType"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "BitsAllocated"),
    *("RescaleSlope", "RescaleIntercept", "SliceThickness", "TransferSyntaxUID", "PixelRepresentation"),
]


def write_tree(root: Path, files: int) -> None:
    """Write DICOM files of 32x32 with the header of a usual CT; one study a series."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    rng = np.random.default_rng(0)
    for number in range(-(-files // SERIES)):
        folder = root / f"site-{number % 7}" / f"patient-{number:05d}"
        folder.mkdir(parents=True)
        for index in range(min(SERIES, files - number * SERIES)):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
            meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
            meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{number}.{index}.1"
            data = Dataset()
            data.file_meta = meta
            data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
            data.StudyInstanceUID = f"1.2.826.0.1.3680043.8.498.{number}.2"
            data.SeriesInstanceUID = f"1.2.826.0.1.3680043.8.498.{number}.3"
            data.FrameOfReferenceUID = f"1.2.826.0.1.3680043.8.498.{number}.4"
            data.PatientID, data.PatientName, data.StudyDate = f"P{number}", "Name^Given", "20200101"
            data.Manufacturer, data.ManufacturerModelName, data.StationName = "Maker", "Model 64", "CT1"
            data.StudyDescription, data.SeriesDescription, data.ProtocolName = "Thorax", "Lung 5.0", "Thorax routine"
            data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
            data.InstanceNumber, data.AcquisitionNumber, data.KVP, data.Exposure = index + 1, 1, 120, 80
            data.ConvolutionKernel, data.SliceThickness = "B30f", 5
            data.ImagePositionPatient = [-150.0, -150.0, 5.0 * index]
            data.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
            data.Rows = data.Columns = SIZE
            data.PixelSpacing, data.SamplesPerPixel, data.PhotometricInterpretation = [9.4, 9.4], 1, "MONOCHROME2"
            data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
            data.RescaleSlope, data.RescaleIntercept, data.WindowCenter, data.WindowWidth = 1, -1024, 40, 400
            data.PixelData = rng.integers(0, 4096, (SIZE, SIZE), dtype=np.uint16).tobytes()
            pydicom.dcmwrite(folder / f"{index:04d}", data, enforce_file_format=True)


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Return seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def memory_of_index(root: Path, cache: Path) -> float:
    """Return the peak of resident megabytes while a fresh process makes an index, over what it starts with (Linux)."""
    code = (
        "import sys\n"
        "from volrec.data.index import index\n"
        "def peak(): return next(int(line.split()[1]) for line in open('/proc/self/status') if line[:5] == 'VmHWM')\n"
        "before = peak()\n"
        "found = index(sys.argv[1], cache=sys.argv[2])\n"
        "print((peak() - before) / 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), str(cache)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    """Write the tree, time everything, print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--tree", type=Path, help="keep the tree here, or use the one that is there")
    options = parser.parse_args()

    import pydicom

    from volrec.data.index import index
    from volrec.data.scan import scan_tree
    from volrec.data.walk import walk
    from volrec.parallel import available_cpus

    with tempfile.TemporaryDirectory() as folder:
        root = options.tree or Path(folder) / "tree"
        if not root.exists():
            seconds, _ = timed(lambda: write_tree(root, options.files))
            print(f"wrote {options.files} files of {SIZE}x{SIZE} in {seconds:.0f} s")
        paths = [root / path for path in walk(root).files]
        for path in paths:
            path.read_bytes()
        some = paths[:: max(1, len(paths) // 2000)]

        def loop() -> None:
            for path in some:
                pydicom.dcmread(path, specific_tags=TAGS, stop_before_pixels=True)

        reference = timed(loop)[0] / len(some)

        def line(what: str, seconds: float, files: int) -> None:
            rate = files / seconds
            print(f"{what:44s} {seconds:7.2f} s  {rate:9.0f} files/s  {reference * rate:7.1f} x pydicom loop")

        print(f"{os.cpu_count()} processors, {len(paths)} files")
        line("pydicom loop, one process, nothing checked", reference * len(some), len(some))
        line("walk and stat", timed(lambda: walk(root))[0], len(paths))
        line("first scan, one process", timed(lambda: scan_tree(root, cache=Path(folder, "1"), jobs=1))[0], len(paths))
        cache = Path(folder, "all")
        seconds, scan = timed(lambda: scan_tree(root, cache=cache))
        line(f"first scan, {available_cpus()} processes", seconds, len(paths))
        seconds, scan = timed(lambda: scan_tree(root, cache=cache))
        assert scan.read == 0
        line("rescan: headers from the cache", seconds, len(paths))
        seconds, found = timed(lambda: index(root, cache=cache))
        line("rescan and index: series, studies, choice", seconds, len(paths))
        print(f"{found!r}; cache {sum(path.stat().st_size for path in cache.rglob('*.jsonl')) / 1e6:.1f} MB")
        part = next(path for path in sorted(root.iterdir()) if path.is_dir())
        some_files = len(walk(part).files)
        little, much = memory_of_index(part, Path(folder, "part")), memory_of_index(root, cache)
        each = 1000 * (much - little) / (len(paths) - some_files)
        print(f"memory: {little:.0f} MB for {some_files} files, {much:.0f} MB for {len(paths)}: {each:.1f} kB a file")


if __name__ == "__main__":
    main()
