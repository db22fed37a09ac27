"""Synthetic DICOM for the tests: every slice is written with pydicom, the truth stays with the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"


def slice_dataset(
    pixels: np.ndarray,
    *,
    position: Sequence[float] | None,
    orientation: Sequence[float] | None = AXIAL,
    spacing: Sequence[float] | None = (0.7, 0.7),
    number: int = 1,
    modality: str = "CT",
    slope: float | None = 1,
    intercept: float | None = -1024,
    syntax: str = ExplicitVRLittleEndian,
    **tags: Any,
) -> Dataset:
    """One image; `pixels` are stored values. Further tags by keyword; None leaves one out."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID = MRImageStorage if modality == "MR" else CTImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = STUDY, SERIES
    ds.PatientID, ds.PatientName = "P1", "Surname^Given"
    ds.Modality = modality
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber = number
    ds.FrameOfReferenceUID = STUDY + ".9"
    if position is not None:
        ds.ImagePositionPatient = [float(f"{value:.6f}") for value in position]
    if orientation is not None:
        ds.ImageOrientationPatient = [float(f"{value:.9f}") for value in orientation]
    if spacing is not None:
        ds.PixelSpacing = [float(value) for value in spacing]
    ds.SliceThickness = "99"  # never the spacing
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    ds.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    if slope is not None:
        ds.RescaleSlope, ds.RescaleIntercept = str(slope), str(intercept)
    ds.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            if name in ds:
                delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", CTImageStorage)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3")
    return ds


def save(ds: Dataset, path: Path | str) -> str:
    """Write with preamble, in the transfer syntax that the file names."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True, overwrite=True)
    return str(path)


def positions_of(
    count: int,
    *,
    spacing: float = 2.5,
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-20.0, -30.0, 100.0),
    drift: Sequence[float] = (0.0, 0.0),
) -> np.ndarray:
    """Positions (count, 3) along the normal; `drift`: mm a slice along (column, row) directions, as by a tilt."""
    rows, columns = np.array(orientation[:3]), np.array(orientation[3:])
    step = np.cross(rows, columns) * spacing + columns * drift[0] + rows * drift[1]
    return np.asarray(origin) + np.arange(count)[:, None] * step


def linear(world: np.ndarray) -> np.ndarray:
    """A linear function of a place (LPS mm): linear interpolation gives it back exactly."""
    return world @ np.array([3.0, -2.0, 1.5])


def write_series(
    folder: Path,
    stored: np.ndarray,
    *,
    positions: np.ndarray | None = None,
    numbers: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    each: Callable[[int], dict[str, Any]] = lambda index: {},
    **common: Any,
) -> list[str]:
    """Write (T, H, W) stored values, one file a slice; `each` gives further tags of a slice."""
    orientation = common.get("orientation", AXIAL)
    positions = positions_of(len(stored), orientation=orientation) if positions is None else positions
    paths = []
    for index, plane in enumerate(stored):
        tags = {**common, **each(index)}
        tags.setdefault("position", positions[index])
        tags.setdefault("number", index + 1 if numbers is None else numbers[index])
        name = f"{index:04d}.dcm" if names is None else names[index]
        paths.append(save(slice_dataset(plane, **tags), folder / name))
    return paths


def noise(
    shape: tuple[int, ...], *, seed: int = 0, low: int = 0, high: int = 3000, dtype: Any = np.uint16
) -> np.ndarray:
    """Random stored values."""
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)
