"""What one file says about itself: allow-listed facts only, read once, plain enough for JSON and process pools."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from volrec.errors import Problem

__all__ = ["HEADER_SCHEMA", "FileScan", "Header"]

HEADER_SCHEMA = 2
"""Version of the fields below: a cache of headers written under another number is stale."""

Kind = Literal["dicom", "nifti", "dicomdir", "other"]


@dataclass(frozen=True, slots=True)
class Header:
    """One DICOM image frame, or one NIfTI file.

    Only structured, allow-listed facts are kept: no name, no date, no free text.

    Attributes
    ----------
    path : str
        File, as it was given to `volrec.io.scan_file`.
    size, mtime_ns : int
        Bytes and modification time of the file when it was scanned.
    kind : str
        ``"dicom"`` or ``"nifti"``.
    frame, frames : int
        Index of this frame, from 0, and how many the file holds.
    study_uid, series_uid, sop_uid, sop_class, patient_id, frame_of_reference : str
        Identifiers; empty where absent.
    modality : str
        DICOM modality, empty where unknown (NIfTI).
    image_type : tuple of str
        DICOM ImageType.
    rows, columns : int
        Size of the frame (H, W).
    position : tuple of float, optional
        ImagePositionPatient, LPS mm.
    orientation : tuple of float, optional
        ImageOrientationPatient: direction of W, then of H.
    pixel_spacing : tuple of float, optional
        mm between rows, between columns (h, w).
    slice_thickness : float, optional
        mm; never used as the spacing.
    gantry_tilt : float, optional
        GantryDetectorTilt, degrees; for the record, positions decide.
    samples, bits_allocated, bits_stored, high_bit : int
        Layout of a pixel.
    signed : bool
        PixelRepresentation.
    photometric : str
        PhotometricInterpretation.
    pixel_kind : str
        ``"int"``, ``"float"`` or ``"double"`` (PixelData, FloatPixelData, DoubleFloatPixelData).
    slope, intercept : float
        Rescale of stored values.
    rescale_type, units : str
        RescaleType (``HU``), Units of PET (``BQML``).
    padding, padding_limit : int, optional
        PixelPaddingValue and PixelPaddingRangeLimit, stored values.
    transfer_syntax : str
        UID.
    pixel_offset, pixel_length : int
        Where this frame's uncompressed bytes lie in the file; length -1: compressed, decoded by frame index.
    instance_number, acquisition_number, temporal_position, echo_number, stack : int or str, optional
        Structured numbers that split a series.
    trigger_time, cardiac_phase, echo_time, b_value, inversion_time, flip_angle : float, optional
        ms, %, ms, s/mm², ms, degrees.
    kernel : str
        ConvolutionKernel.
    diffusion : tuple of float, optional
        Diffusion gradient direction.
    mosaic : int
        Number of tiles of a Siemens mosaic, 0 otherwise.
    fingerprint : int
        Checksum of a part of the pixels: it tells copies of an image from images under one name.
    shape, dtype, affine, member
        NIfTI only: array shape as stored, numpy type, voxel (i, j, k, 1) to RAS mm row by row, member of a zip.
    notes : tuple of (code, text)
        What had to be assumed to read this header.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
    kind: str = "dicom"
    frame: int = 0
    frames: int = 1
    study_uid: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    sop_class: str = ""
    patient_id: str = ""
    frame_of_reference: str = ""
    modality: str = ""
    image_type: tuple[str, ...] = ()
    rows: int = 0
    columns: int = 0
    position: tuple[float, float, float] | None = None
    orientation: tuple[float, ...] | None = None
    pixel_spacing: tuple[float, float] | None = None
    slice_thickness: float | None = None
    gantry_tilt: float | None = None
    samples: int = 1
    bits_allocated: int = 16
    bits_stored: int = 16
    high_bit: int = 15
    signed: bool = False
    photometric: str = "MONOCHROME2"
    pixel_kind: str = "int"
    slope: float = 1.0
    intercept: float = 0.0
    rescale_type: str = ""
    units: str = ""
    padding: int | None = None
    padding_limit: int | None = None
    transfer_syntax: str = ""
    pixel_offset: int = 0
    pixel_length: int = 0
    instance_number: int | None = None
    acquisition_number: int | None = None
    temporal_position: int | None = None
    echo_number: int | None = None
    stack: str = ""
    trigger_time: float | None = None
    cardiac_phase: float | None = None
    echo_time: float | None = None
    b_value: float | None = None
    inversion_time: float | None = None
    flip_angle: float | None = None
    kernel: str = ""
    diffusion: tuple[float, ...] | None = None
    mosaic: int = 0
    fingerprint: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    affine: tuple[float, ...] | None = None
    member: str = ""
    notes: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> list[Any]:
        """Return the values in field order: plain lists, numbers and text."""
        return [_plain(getattr(self, name)) for name in _NAMES]

    @classmethod
    def from_json(cls, values: list[Any]) -> Header:
        """Rebuild what `to_json` gave (under the same `HEADER_SCHEMA`)."""
        return cls(*(_frozen(value) for value in values))


_NAMES = tuple(field.name for field in fields(Header))


@dataclass(frozen=True, slots=True)
class FileScan:
    """What a look at one file found.

    Attributes
    ----------
    path : str
        As given.
    size, mtime_ns : int
        Bytes and modification time: a cache holds while both stay.
    kind : str
        ``"dicom"``, ``"nifti"``, ``"dicomdir"`` (its files are found by walking) or ``"other"``.
    headers : tuple of Header
        One an image frame; empty for what holds no image.
    problem : Problem, optional
        Why the file, or part of it, cannot be used; None for sound files and for ``"other"``.
    """

    path: str
    size: int
    mtime_ns: int
    kind: Kind
    headers: tuple[Header, ...] = ()
    problem: Problem | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dictionaries."""
        return {
            "path": self.path,
            "size": self.size,
            "mtime_ns": self.mtime_ns,
            "kind": self.kind,
            "headers": [header.to_json() for header in self.headers],
            "problem": None if self.problem is None else self.problem.as_dict(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FileScan:
        """Rebuild what `to_json` gave."""
        problem = values["problem"]
        return cls(
            path=values["path"],
            size=values["size"],
            mtime_ns=values["mtime_ns"],
            kind=values["kind"],
            headers=tuple(Header.from_json(header) for header in values["headers"]),
            problem=None if problem is None else Problem(**problem),
        )


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
