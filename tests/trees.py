"""Small trees of real DICOM and NIfTI files, and headers and series without files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from volrec.errors import Problem
from volrec.io import Header, Series

CT = "1.2.840.10008.5.1.4.1.1.2"


def uid(*parts: object) -> str:
    """A valid uid that depends on its parts alone."""
    import hashlib

    number = int(hashlib.sha256(repr(parts).encode()).hexdigest()[:24], 16)
    return f"2.25.{number}"


def write_series(
    folder: Path,
    *,
    study: str,
    patient: str = "P",
    series: str = "1",
    slices: int = 4,
    size: tuple[int, int] = (6, 8),
    spacing: tuple[float, float, float] = (5.0, 0.8, 0.8),
    modality: str = "CT",
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    name: str = "{:03d}.dcm",
    **tags: Any,
) -> list[Path]:
    """Write one DICOM series, a file a slice; `tags` are set last, None deletes."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    folder.mkdir(parents=True, exist_ok=True)
    normal = np.cross(orientation[:3], orientation[3:])
    paths = []
    for index in range(slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        meta.MediaStorageSOPClassUID = CT
        meta.MediaStorageSOPInstanceUID = uid(study, patient, series, index)
        data = Dataset()
        data.file_meta = meta
        data.SOPClassUID = CT
        data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID = uid("study", study)
        data.SeriesInstanceUID = uid("series", study, patient, series)
        data.FrameOfReferenceUID = uid("frame", study)
        data.PatientID = patient
        data.PatientName = "Secret^Name"
        data.PatientBirthDate = "19700101"
        data.StudyDate = "20200202"
        data.SeriesDescription = "free text of a person"
        data.Modality = modality
        data.ImageType = list(image_type)
        data.InstanceNumber = index + 1
        data.Rows, data.Columns = size
        data.PixelSpacing = [spacing[1], spacing[2]]
        data.SliceThickness = spacing[0]
        data.ImageOrientationPatient = [float(value) for value in orientation]
        data.ImagePositionPatient = [float(value) for value in normal * spacing[0] * index]
        data.SamplesPerPixel = 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        ramp = np.arange(size[0] * size[1], dtype="<i2").reshape(size) * 10 + index
        data.PixelData = ramp.tobytes()
        for key, value in tags.items():
            if value is None:
                delattr(data, key)
            else:
                setattr(data, key, value)
        path = folder / name.format(index)
        pydicom.dcmwrite(path, data, enforce_file_format=True)
        paths.append(path)
    return paths


def write_nifti(path: Path, *, shape: tuple[int, ...] = (8, 6, 5), spacing: tuple[float, ...] = (1, 1, 3)) -> Path:
    """Write one NIfTI file, voxel axes along R, A, S."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)
    return path


def make_series(
    path: str,
    *,
    root: Path = Path("/tree"),
    uid: str = "",
    kind: str = "dicom",
    study: str = "",
    patient: str = "",
    modality: str = "CT",
    orientation: str = "axial",
    slices: int = 20,
    thick: float = 5.0,
    files: int = 2,
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    **values: Any,
) -> Series:
    """A series without files: `path` is its folder (DICOM) or file (NIfTI), relative to `root`."""
    if kind == "nifti":
        names = (str(root / path),)
        modality, image_type = "", ()
    else:
        names = tuple(str(root / path / f"{uid or 'f'}-{number}") for number in range(files))
    # Patient axis (0 left, 1 back, 2 head) of each array axis (T, H, W).
    patient_axes = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}[orientation]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, step in enumerate((thick, 1.0, 1.0)):
        affine[patient_axes[axis], axis] = step
    return Series(
        uid=uid or path,
        kind=kind,
        study_uid=study,
        patient_id=patient,
        modality=modality,
        orientation=orientation,
        image_type=image_type,
        path=path,
        files=names,
        headers=tuple(Header(name) for name in names),
        shape=(slices, 32, 32),
        spacing=(thick, 1.0, 1.0),
        affine=tuple(tuple(float(value) for value in row) for row in affine),
        derived="DERIVED" in image_type,
        **values,
    )


def fault(code: str = "gap", reason: str = "A slice is missing.") -> Problem:
    return Problem("x", code, reason)
