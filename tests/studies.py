"""Small studies on disk for whole-command tests: one file a slice, real DICOM, written in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

Change = Callable[[Dataset, int], None]


def write_study(
    folder: Path,
    *,
    patient: str | None = None,
    slices: int = 6,
    size: tuple[int, int] = (16, 16),
    spacing: tuple[float, float, float] = (2.0, 1.0, 1.0),
    skip: Sequence[int] = (),
    change: Change | None = None,
    array: np.ndarray | None = None,
    study_uid: str | None = None,
) -> list[Path]:
    """Write one CT study, a file a slice; `change` may alter each data set before it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    name = patient or folder.name
    study = study_uid or generate_uid(entropy_srcs=[str(folder), "study"])
    series = generate_uid(entropy_srcs=[str(folder), "series"])
    if array is None:
        rng = np.random.default_rng(abs(hash(name)) % 2**32)
        array = rng.normal(0, 20, (slices, *size)).astype(np.int16)
        array[:, 4:12, 4:12] += 40
    paths = []
    for number in range(len(array)):
        if number in skip:
            continue
        data = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID, data.PatientID = study, series, name
        data.PatientName = "Doe^Jane"
        data.StudyDate = "20200229"
        data.SeriesDescription = "free text of Mrs Doe"
        data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.InstanceNumber = number + 1
        data.ImagePositionPatient = [-8.0, -8.0, number * spacing[0]]
        data.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        data.PixelSpacing = [spacing[1], spacing[2]]
        data.SliceThickness = spacing[0]
        data.Rows, data.Columns = array.shape[1:]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = array[number].astype("<i2").tobytes()
        if change is not None:
            change(data, number)
        path = folder / f"slice{number:03d}.dcm"
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_labels(path: Path, rows: dict[str, object], *, column: str = "study", target: str = "label") -> Path:
    """Write a table of labels."""
    path.write_text(
        f"{column},{target}\n" + "".join(f"{name},{value}\n" for name, value in rows.items()), encoding="utf-8"
    )
    return path


def two_class_folder(folder: Path, *, studies: int = 12, slices: int = 6, size: tuple[int, int] = (16, 16)) -> Path:
    """Write studies of which every other one holds a bright block, with ``labels.csv``; return the table."""
    rng = np.random.default_rng(0)
    labels: dict[str, object] = {}
    for number in range(studies):
        array = rng.normal(0, 20, (slices, *size)).astype(np.int16)
        if number % 2:
            array[1:-1, 5:11, 5:11] += 200
        write_study(folder / f"case{number:02d}", array=array)
        labels[f"case{number:02d}"] = number % 2
    return write_labels(folder / "labels.csv", labels)
