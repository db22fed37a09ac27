"""One DICOM file to its headers: one an image frame, with where its pixels lie and whether they are all there."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from typing import Any, BinaryIO

from volrec.errors import Problem
from volrec.io.elements import Elements
from volrec.io.headers import Header
from volrec.io.tags import DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE

__all__ = ["NATIVE", "headers_of"]

NATIVE = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG, DEFLATED})
"""Transfer syntaxes whose pixels are not compressed (deflated ones as a whole are)."""

_NO_PIXELS = {
    "SR": "a structured report",
    "RTSTRUCT": "a set of contours",
    "RTPLAN": "a treatment plan",
    "KO": "a list of key images",
    "PR": "a presentation state",
    "ECG": "a waveform",
    "REG": "a registration",
}
_SAMPLE = 4096


def headers_of(
    handle: BinaryIO, path: str, size: int, mtime_ns: int, found: Elements
) -> tuple[tuple[Header, ...], Problem | None]:
    """Turn the facts of a DICOM file into headers.

    Parameters
    ----------
    handle : binary file
        Open for reading.
    path, size, mtime_ns
        The file.
    found : Elements
        From `read_elements`.

    Returns
    -------
    headers : tuple of Header
        One a frame; empty where there is no image.
    problem : Problem, optional
        Why the file cannot be used.
    """
    modality = str(found.first("modality", ""))
    if found.truncated:
        return (), truncated(path, f"it ends after {size} bytes, inside its header.")
    rows, columns = _whole(found, "rows"), _whole(found, "columns")
    if not rows or not columns or (not found.pixel_kind and modality in _NO_PIXELS):
        if found.pixel_kind:
            return (), Problem(
                path, "no-size", f"it has pixels, but {rows} rows and {columns} columns.", "Export the image again."
            )
        what = _NO_PIXELS.get(modality, f"of modality {modality or 'unknown'}")
        return (), Problem(path, "no-image", f"it holds no image ({what}).", "Nothing: such files are set aside.")
    header = _first_header(path, size, mtime_ns, modality, found)
    if not found.pixel_kind:
        # The file ends where an element does: nothing says that it was cut. Its series has to know of it.
        note = ("no-pixels", f"it describes an image of {rows} x {columns} pixels but holds none")
        return (replace(header, pixel_kind="int", notes=(*header.notes, note)),), None
    frames = _whole(found, "frames") or 1
    missing = _truncation(handle, header, found, frames, size)
    if missing:
        header = replace(header, notes=(*header.notes, ("truncated", missing)))
    else:
        header = replace(header, fingerprint=_fingerprint(handle, header))
    if "frame_groups" in found.present or "shared_groups" in found.present:
        from volrec.io.multiframe import enhanced_headers

        return enhanced_headers(handle, header, frames)
    if frames > 1:
        from volrec.io.multiframe import plain_headers

        return plain_headers(handle, header, frames, found)
    if header.mosaic or "MOSAIC" in header.image_type:
        from volrec.io.multiframe import mosaic_headers

        return mosaic_headers(handle, header)
    return (header,), None


def truncated(path: str, reason: str) -> Problem:
    """Say that a file ends too early."""
    return Problem(path, "truncated", reason, "Copy it again from its source.")


def _first_header(path: str, size: int, mtime_ns: int, modality: str, found: Elements) -> Header:
    first = found.first
    notes: list[tuple[str, str]] = []
    for name in found.bad:
        notes.append(("invalid-tag", f"{name} holds no valid value and was left out"))
    if found.assumed_syntax:
        notes.append(("assumed-transfer-syntax", f"the file names none; read as {found.transfer_syntax}"))
    if "modality_lut" in found.present:
        notes.append(("modality-lut", "stored values are mapped by a table"))
    bits_allocated = _whole(found, "bits_allocated") or 16
    bits_stored = _whole(found, "bits_stored") or bits_allocated
    signed = first("pixel_representation", 0) == 1
    slope, intercept = _real(found, "slope"), _real(found, "intercept")
    if modality == "CT" and intercept is None and not found.present & {"shared_groups", "frame_groups", "modality_lut"}:
        notes.append(("no-rescale", "it has no RescaleIntercept; stored values were taken for HU"))
    if slope == 0:
        notes.append(("zero-slope", "RescaleSlope is 0"))
    spacing = _reals(found, "pixel_spacing", 2)
    b_value, diffusion = _diffusion(found)
    return Header(
        path=path,
        size=size,
        mtime_ns=mtime_ns,
        study_uid=str(first("study_uid", "")),
        series_uid=str(first("series_uid", "")),
        sop_uid=str(first("sop_uid", "")),
        sop_class=str(first("sop_class", "")),
        patient_id=str(first("patient_id", "")),
        frame_of_reference=str(first("frame_of_reference", "")),
        modality=modality,
        image_type=tuple(str(part) for part in found.values.get("image_type", ())),
        rows=_whole(found, "rows") or 0,
        columns=_whole(found, "columns") or 0,
        position=_reals(found, "position", 3),
        orientation=_reals(found, "orientation", 6),
        pixel_spacing=spacing,
        slice_thickness=_real(found, "slice_thickness"),
        gantry_tilt=_real(found, "gantry_tilt"),
        samples=_whole(found, "samples") or 1,
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=int(first("high_bit", bits_stored - 1)),
        signed=signed,
        photometric=str(first("photometric", "")),
        pixel_kind=found.pixel_kind,
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        rescale_type=str(first("rescale_type", "")),
        units=str(first("units", "")),
        padding=_stored_value(found, "padding", bits_allocated, signed),
        padding_limit=_stored_value(found, "padding_limit", bits_allocated, signed),
        transfer_syntax=found.transfer_syntax,
        pixel_offset=found.pixel_offset if found.located else 0,
        pixel_length=found.pixel_length if found.located and found.transfer_syntax in NATIVE else -1,
        instance_number=_whole(found, "instance_number"),
        acquisition_number=_whole(found, "acquisition_number"),
        temporal_position=_whole(found, "temporal_position"),
        echo_number=_whole(found, "echo_number"),
        stack=str(first("stack", "")),
        trigger_time=_real(found, "trigger_time"),
        cardiac_phase=_real(found, "cardiac_phase"),
        echo_time=_real(found, "echo_time"),
        b_value=b_value,
        inversion_time=_real(found, "inversion_time"),
        flip_angle=_real(found, "flip_angle"),
        kernel="\\".join(str(part) for part in found.values.get("kernel", ())),
        diffusion=diffusion,
        mosaic=_whole(found, "mosaic_tiles") or 0,
        notes=tuple(notes),
    )


def _truncation(handle: BinaryIO, header: Header, found: Elements, frames: int, size: int) -> str:
    """Return what is missing of the pixels, or nothing."""
    if not found.located:
        return ""
    if header.pixel_length >= 0:
        bits = {"float": 32, "double": 64}.get(header.pixel_kind, header.bits_allocated)
        samples = 2 if header.photometric == "YBR_FULL_422" else header.samples
        due = (header.rows * header.columns * samples * frames * bits + 7) // 8
        there = min(header.pixel_length, size - header.pixel_offset)
        return f"{max(there, 0)} of {due} bytes of pixels are there" if there < due else ""
    return _broken_fragments(handle, header.pixel_offset, size, frames)


def _broken_fragments(handle: BinaryIO, position: int, size: int, frames: int) -> str:
    """Walk the items of compressed pixels: each must end within the file, and there must be one a frame at least."""
    count = -1  # the first item is the offset table
    while position + 8 <= size:
        handle.seek(position)
        start = handle.read(8)
        tag, length = start[:4], int.from_bytes(start[4:8], "little")
        if tag == b"\xfe\xff\xdd\xe0":
            break
        if tag != b"\xfe\xff\x00\xe0":
            return "the compressed pixels are not divided as they should be"
        position += 8 + length
        count += 1
        if position > size:
            return f"the file ends {position - size} bytes before its compressed pixels do"
    if count < frames:
        return f"{max(count, 0)} pieces of compressed pixels for {frames} frames"
    return ""


def _fingerprint(handle: BinaryIO, header: Header) -> int:
    """Return a checksum of some pixels, to tell copies of an image from images under one name."""
    if header.pixel_length > 0:
        start = header.pixel_offset + max(0, header.pixel_length - _SAMPLE) // 2
        length = min(_SAMPLE, header.pixel_length)
    else:
        start, length = max(0, header.size - _SAMPLE), _SAMPLE
    handle.seek(start)
    return zlib.crc32(handle.read(length))


def _diffusion(found: Elements) -> tuple[float | None, tuple[float, ...] | None]:
    """b-value (s/mm²) and gradient direction: the standard tags, else the vendors' own structured ones."""
    b_value = next(
        (value for name in ("b_value", "siemens_b", "uih_b", "philips_b") if (value := _real(found, name)) is not None),
        None,
    )
    if b_value is None and (stated := _real(found, "ge_b")) is not None:
        b_value = stated % 100_000  # GE adds 10^9 as a flag
    direction = _reals(found, "diffusion", 3) or _reals(found, "siemens_direction", 3)
    if direction is None and all(
        name in found.values for name in ("ge_direction_x", "ge_direction_y", "ge_direction_z")
    ):
        direction = tuple(float(found.first(f"ge_direction_{axis}")) for axis in "xyz")
    return b_value, direction


def _stored_value(found: Elements, name: str, bits: int, signed: bool) -> int | None:
    """Return a padding value in the range of the stored values (writers confuse US and SS)."""
    value = _whole(found, name)
    if value is None or not 1 <= bits <= 32:
        return value
    if signed and value >= 1 << (bits - 1):
        return value - (1 << bits)
    return value + (1 << bits) if not signed and value < 0 else value


def _whole(found: Elements, name: str) -> int | None:
    value = found.first(name)
    return int(value) if isinstance(value, (int, float)) else None


def _real(found: Elements, name: str) -> float | None:
    value = found.first(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _reals(found: Elements, name: str, count: int) -> Any:
    values = found.values.get(name, ())
    if len(values) != count or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        return None
    return tuple(float(value) for value in values)
