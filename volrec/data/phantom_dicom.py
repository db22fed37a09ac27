"""Phantom slices as DICOM CT files, fast: a series is encoded once, and each file only changes what differs."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from volrec.data.phantom_geometry import Anatomy
from volrec.data.phantom_motion import Scene

__all__ = ["SliceWriter"]

INTERCEPT = -1024.0
HIGHEST = 4095  # 12 bits stored

# The elements that differ from slice to slice, in the order of the file, with the VR of each.
_META_UID, _UID, _NUMBER, _POSITION, _LOCATION, _PIXELS = (
    (0x0002, 0x0003, b"UI"),
    (0x0008, 0x0018, b"UI"),
    (0x0020, 0x0013, b"IS"),
    (0x0020, 0x0032, b"DS"),
    (0x0020, 0x1041, b"DS"),
    (0x7FE0, 0x0010, b"OW"),
)
_VARYING = (_META_UID, _UID, _NUMBER, _POSITION, _LOCATION, _PIXELS)


class SliceWriter:
    """Encodes the slices of one series.

    Parameters
    ----------
    study, patient : str
        Names; all UIDs are derived from `study` and `seed`.
    anatomy : Anatomy or Scene
        Gives sizes, spacing and tilt.
    origin : sequence of float
        Centre of the lowest slice, LPS mm.
    seed : sequence of int
        Sets the UIDs of otherwise equal studies apart.

    Notes
    -----
    A tilted gantry: the table moves along z, the slice planes lean by the tilt about the x axis, so positions advance
    by ``spacing / cos(tilt)`` along z and the stack is sheared.
    """

    def __init__(
        self, study: str, patient: str, anatomy: Anatomy | Scene, origin: Sequence[float], seed: Sequence[int]
    ) -> None:
        self.anatomy = anatomy
        self._names = [study, *map(str, seed)]
        lean = np.radians(anatomy.tilt)
        self._down = np.array([0.0, np.cos(lean), np.sin(lean)])  # direction of increasing row index
        pixel = anatomy.spacing[1]
        _, rows, columns = anatomy.shape
        self._corner = (
            np.asarray(origin, dtype=np.float64)
            - self._down * (rows - 1) / 2 * pixel
            - np.array([1.0, 0.0, 0.0]) * (columns - 1) / 2 * pixel
        )
        self._pieces = self._encode(study, patient)

    def position(self, index: int) -> tuple[float, float, float]:
        """Return ImagePositionPatient of slice `index` (0 is the lowest) as the file holds it, mm."""
        x, y, z = self._corner + np.array([0.0, 0.0, index * self.anatomy.table_step])
        return round(float(x), 6), round(float(y), 6), round(float(z), 6)

    def slice(self, image: np.ndarray, *, index: int, instance_number: int) -> bytes:
        """Return the file of one slice.

        Parameters
        ----------
        image : numpy.ndarray
            ``(H, W)`` in HU.
        index : int
            Place in the stack, 0 is the lowest.
        instance_number : int
            What the file calls itself, in any order.
        """
        stored = np.clip(np.rint(image - np.float32(INTERCEPT)), 0, HIGHEST).astype("<u2")
        position = self.position(index)
        uid = self._uid("slice", str(index))
        values = {
            _META_UID: uid.encode(),
            _UID: uid.encode(),
            _NUMBER: str(instance_number).encode(),
            _POSITION: "\\".join(map(_decimal, position)).encode(),
            _LOCATION: _decimal(position[2]).encode(),
            _PIXELS: stored.tobytes(),
        }
        parts: list[bytes] = []
        for piece, element in zip(self._pieces, _VARYING, strict=True):
            parts += (piece, _element(element, values[element]))
        return b"".join(parts)

    def _uid(self, *names: str) -> UID:
        """Derive a UID, always 64 characters long: the length of the file's meta group does not change."""
        return generate_uid(entropy_srcs=["volrec phantom", *self._names, *names])

    def _encode(self, study: str, patient: str) -> list[bytes]:
        """Encode the series with one slice, and cut out what differs: the pieces before each varying element."""
        uid = self._uid("slice", "0")
        anatomy = self.anatomy
        thickness, pixel, _ = anatomy.spacing
        header = Dataset()
        header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        header.SOPClassUID = CTImageStorage
        header.SOPInstanceUID = uid
        header.StudyDate, header.StudyTime = "20200101", "120000"
        header.AccessionNumber = ""
        header.Modality = "CT"
        header.Manufacturer = "volrec phantom"
        header.ReferringPhysicianName = ""
        header.StudyDescription = "Phantom"
        header.SeriesDescription = "Phantom axial"
        header.PatientName = f"Phantom^{patient}"
        header.PatientID = patient
        header.PatientBirthDate = header.PatientSex = ""
        header.KVP = "120"
        header.SliceThickness = _decimal(thickness)
        header.GantryDetectorTilt = _decimal(anatomy.tilt)
        header.ConvolutionKernel = "STANDARD"
        header.PatientPosition = "HFS"
        header.StudyInstanceUID = self._uid("study")
        header.SeriesInstanceUID = self._uid("series")
        header.FrameOfReferenceUID = self._uid("frame")
        header.StudyID = study[-16:]
        header.SeriesNumber = "1"
        header.AcquisitionNumber = "1"
        header.InstanceNumber = "1"
        header.PositionReferenceIndicator = ""
        header.ImagePositionPatient = ["0", "0", "0"]
        header.ImageOrientationPatient = ["1", "0", "0", "0", *(f"{value:.12f}" for value in self._down[1:])]
        header.SliceLocation = "0"
        header.SamplesPerPixel = 1
        header.PhotometricInterpretation = "MONOCHROME2"
        header.Rows, header.Columns = anatomy.shape[1:]
        header.PixelSpacing = [_decimal(pixel)] * 2
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
        header.WindowCenter, header.WindowWidth = "100", "600"
        header.RescaleIntercept, header.RescaleSlope, header.RescaleType = f"{INTERCEPT:g}", "1", "HU"
        header.PixelData = b"\0\0"
        header["PixelData"].VR = "OW"
        header.file_meta = FileMetaDataset()
        header.file_meta.MediaStorageSOPClassUID = CTImageStorage
        header.file_meta.MediaStorageSOPInstanceUID = uid
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        buffer = BytesIO()
        dcmwrite(buffer, header, enforce_file_format=True)
        rest = buffer.getvalue()
        placeholders = {
            _META_UID: uid.encode(),
            _UID: uid.encode(),
            _NUMBER: b"1",
            _POSITION: b"0\\0\\0",
            _LOCATION: b"0",
            _PIXELS: b"\0\0",
        }
        pieces = []
        for element in _VARYING:
            piece, _, rest = rest.partition(_element(element, placeholders[element]))
            pieces.append(piece)
        return pieces


def _element(element: tuple[int, int, bytes], value: bytes) -> bytes:
    """Encode one element in explicit VR little endian."""
    group, number, vr = element
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    if vr == b"OW":
        return struct.pack("<HH2sHI", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def _decimal(value: float) -> str:
    """Write a number as a DICOM decimal string: at most 16 characters, 6 decimals."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
