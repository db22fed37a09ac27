"""NIfTI-1 and -2: headers read from their first bytes, orientation by the rules, voxels without surprises.

Rules of https://nifti.nimh.nih.gov/nifti-1: the sform where its code is positive, else the qform where its is; a file
with neither does not say where left is, and is refused.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from volrec.errors import DataError, Problem
from volrec.io.headers import Header

__all__ = ["HEADER_BYTES", "is_nifti", "parse_header", "read_array"]

HEADER_BYTES = 544
"""A NIfTI-2 header and the four bytes after it."""

_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_OTHER_TYPES = {1: "bits", 32: "complex numbers", 128: "colours", 1536: "128-bit floats", 1792: "complex numbers"}
_OTHER_TYPES |= {2048: "complex numbers", 2304: "colours"}
_UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}
_DISAGREE_MM = 0.5


def is_nifti(head: bytes) -> bool:
    """Whether these first bytes are a NIfTI header (of either version and byte order)."""
    if len(head) < 348:
        return False
    size = head[:4]
    if size in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return head[344:348] in (b"n+1\0", b"ni1\0")
    return size in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") and head[4:8] in (b"n+2\0", b"ni2\0")


def is_analyze(head: bytes) -> bool:
    """Whether these first bytes are an ANALYZE 7.5 header, the orientation-less ancestor of NIfTI."""
    return len(head) >= 348 and head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and not is_nifti(head)


def parse_header(head: bytes, path: str, *, member: str = "") -> tuple[Header | None, Problem | None]:
    """Read a NIfTI header.

    Parameters
    ----------
    head : bytes
        The first `HEADER_BYTES`.
    path : str
        The file.
    member : str
        Member of a zip file, or the ``.img`` of a pair.

    Returns
    -------
    header : Header or None
        With `shape`, `dtype` (with byte order) and `affine` (RAS, mm).
    problem : Problem or None
        Why it cannot be used.
    """
    facts = _unpack(head)
    dim, pixdim = facts["dim"], facts["pixdim"]
    remedy = "Write the file again with the software that made it."
    if not 1 <= dim[0] <= 7 or any(size < 1 for size in dim[1 : dim[0] + 1]):
        return None, Problem(path, "nifti-header", f"its dimensions are {list(dim)}.", remedy)
    shape = tuple(int(size) for size in dim[1 : dim[0] + 1])
    if facts["datatype"] not in _TYPES:
        what = _OTHER_TYPES.get(facts["datatype"], f"of unknown type {facts['datatype']}")
        code = "colour" if facts["datatype"] in (128, 2304) else "voxel-type"
        return None, Problem(path, code, f"its voxels are {what}.", "Give an image of whole or real numbers.")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        sizes = " x ".join(str(size) for size in shape)
        return None, Problem(
            path, "4d", f"it holds {shape[3]} volumes ({sizes}).", "Split it and give the one volume that is meant."
        )
    shape = (*shape, 1, 1)[:3]
    if any(not math.isfinite(size) or size == 0 for size in pixdim[1:4]):
        return None, Problem(
            path,
            "spacing",
            f"its voxel sizes are {', '.join(f'{size:g}' for size in pixdim[1:4])} mm.",
            "Write the header again with the true voxel sizes.",
        )
    notes: list[tuple[str, str]] = []
    affine, problem = _orientation(facts, path, notes)
    if affine is None:
        return None, problem
    scale = _unit_scale(facts["xyzt_units"], notes)
    affine[:3] *= scale
    slope, intercept = facts["scl_slope"], facts["scl_inter"]
    if not math.isfinite(slope) or slope == 0:
        slope, intercept = 1.0, 0.0
    if not math.isfinite(intercept):
        intercept = 0.0
    order = facts["order"]
    return Header(
        path=path,
        kind="nifti",
        rows=shape[1],
        columns=shape[0],
        slope=float(slope),
        intercept=float(intercept),
        pixel_offset=int(facts["vox_offset"]),
        pixel_length=int(np.prod(shape, dtype=np.int64)) * np.dtype(_TYPES[facts["datatype"]]).itemsize,
        shape=shape,
        dtype=order + _TYPES[facts["datatype"]],
        affine=tuple(float(value) for value in affine.ravel()),
        member=member,
        notes=tuple(notes),
    ), None


def _unpack(head: bytes) -> dict[str, Any]:
    order = "<" if head[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
    first = struct.unpack_from(f"{order}i", head)[0]

    def at(form: str, offset: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + form, head, offset)

    if first == 348:
        return {
            "order": order,
            "dim": at("8h", 40),
            "datatype": at("h", 70)[0],
            "pixdim": at("8f", 76),
            "vox_offset": at("f", 108)[0] if math.isfinite(at("f", 108)[0]) else 0,
            "scl_slope": at("f", 112)[0],
            "scl_inter": at("f", 116)[0],
            "xyzt_units": head[123],
            "qform_code": at("h", 252)[0],
            "sform_code": at("h", 254)[0],
            "quaternion": at("3f", 256),
            "offset": at("3f", 268),
            "srow": at("12f", 280),
            "rest_threshold": 3 * float(np.finfo(np.float32).eps),
        }
    return {
        "order": order,
        "dim": at("8q", 16),
        "datatype": at("h", 12)[0],
        "pixdim": at("8d", 104),
        "vox_offset": at("q", 168)[0],
        "scl_slope": at("d", 176)[0],
        "scl_inter": at("d", 184)[0],
        "xyzt_units": at("i", 500)[0],
        "qform_code": at("i", 344)[0],
        "sform_code": at("i", 348)[0],
        "quaternion": at("3d", 352),
        "offset": at("3d", 376),
        "srow": at("12d", 400),
        "rest_threshold": 3 * float(np.finfo(np.float64).eps),
    }


def _orientation(facts: dict[str, Any], path: str, notes: list[tuple[str, str]]) -> tuple[Any, Problem | None]:
    """Return the affine to RAS mm by the rules, or the problem."""
    sform = np.vstack([np.array(facts["srow"], dtype=np.float64).reshape(3, 4), [0, 0, 0, 1]])
    qform = _from_quaternion(facts)
    has_sform, has_qform = facts["sform_code"] > 0, facts["qform_code"] > 0
    if not has_sform and not has_qform:
        return None, Problem(
            path,
            "no-orientation",
            "its header has neither an sform nor a qform (both codes are 0): where left is, is not said.",
            "Set the orientation, for example with nibabel's set_sform, if you know it.",
        )
    if has_sform and not _sound(sform):
        if not (has_qform and qform is not None and _sound(qform)):
            return None, Problem(
                path, "orientation", "its sform is not a valid orientation.", "Set the sform again, or clear its code."
            )
        notes.append(("sform-invalid", "the sform is not a valid orientation; the qform was used"))
        return qform, None
    if has_sform:
        if has_qform and qform is not None and _sound(qform):
            extent = np.array([max(size - 1, 0) for size in (*facts["dim"][1:4],)], dtype=np.float64)
            corners = np.array(np.meshgrid(*[(0, size) for size in extent])).reshape(3, -1)
            difference = (sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:]
            distance = float(np.linalg.norm(difference, axis=0).max())
            if distance > _DISAGREE_MM:
                notes.append(("sform-qform", f"sform and qform differ by up to {distance:.1f} mm; the sform was used"))
        return sform, None
    if qform is None or not _sound(qform):
        return None, Problem(
            path, "orientation", "its qform is not a valid rotation.", "Set the qform again, or give an sform."
        )
    return qform, None


def _from_quaternion(facts: dict[str, Any]) -> np.ndarray | None:
    b, c, d = (float(part) for part in facts["quaternion"])
    square = b * b + c * c + d * d
    if not math.isfinite(square) or square > 1.0 + 1e-4:
        return None
    # Near half a turn rounding decides the fourth number: below nibabel's threshold it is taken for 0.
    rest = 1.0 - square
    a = 0.0 if rest < facts["rest_threshold"] else math.sqrt(rest)
    norm = math.sqrt(a * a + square)
    a, b, c, d = a / norm, b / norm, c / norm, d / norm
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    sizes = np.abs(np.array(facts["pixdim"][1:4], dtype=np.float64))
    if facts["pixdim"][0] < 0:
        sizes[2] *= -1
    affine = np.eye(4)
    affine[:3, :3] = rotation * sizes
    affine[:3, 3] = facts["offset"]
    return affine


def _sound(affine: np.ndarray) -> bool:
    """Whether an affine maps a volume to a volume: finite, no axis of length 0, no two along one line."""
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not np.isfinite(affine).all() or (lengths < 1e-6).any():
        return False
    return abs(float(np.linalg.det(columns / lengths))) > 1e-3


def _unit_scale(units: int, notes: list[tuple[str, str]]) -> float:
    code = units & 7
    scale = _UNITS.get(code)
    if scale is None:
        notes.append(("units", "the header does not say its unit of length; read as mm"))
        return 1.0
    if scale != 1.0:
        notes.append(("units", f"lengths are given in {'metres' if code == 1 else 'micrometres'}; converted to mm"))
    return scale


def scan_nifti(
    handle: BinaryIO, head: bytes, path: str, size: int, mtime_ns: int
) -> tuple[Header | None, Problem | None]:
    """Read the header of a plain or gzipped NIfTI file (or of the ``.hdr`` of a pair), and see whether it is whole."""
    gzipped = head[:2] == b"\x1f\x8b"
    content = inflate(head, HEADER_BYTES) if gzipped else head
    magic_pair = content[344:348] == b"ni1\0" or content[4:8] == b"ni2\0"
    image = _image_of_pair(path) if magic_pair else None
    header, problem = parse_header(content[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0"), path)
    if header is None:
        return None, problem
    header = replace(header, size=size, mtime_ns=mtime_ns)
    if magic_pair:
        if image is None:
            return None, Problem(path, "no-image-file", "its image file (.img) is not beside it.", "Copy both files.")
        stat = image.stat()
        # Both files make the volume: the signature has to change with either.
        header = replace(header, member=str(image), size=size + stat.st_size, mtime_ns=max(mtime_ns, stat.st_mtime_ns))
        if image.suffix != ".gz" and stat.st_size < header.pixel_offset + header.pixel_length:
            return None, _short(path, stat.st_size - header.pixel_offset, header.pixel_length)
    elif gzipped:
        due = header.pixel_offset + header.pixel_length
        handle.seek(max(0, size - 4))
        # The trailer of gzip holds the length modulo 2^32: where it does not fit (cut short, several members, something
        # behind the voxels), the stream itself is asked.
        if int.from_bytes(handle.read(4), "little") != due % (1 << 32):
            there, is_whole = _inflated(handle)
            if there < due or not is_whole:
                return None, _short(path, min(there, due - 1) - header.pixel_offset, header.pixel_length)
    elif size < header.pixel_offset + header.pixel_length:
        return None, _short(path, size - header.pixel_offset, header.pixel_length)
    return header, None


def _short(path: str, there: int, due: int) -> Problem:
    return Problem(
        path, "truncated", f"{max(there, 0)} of {due} bytes of voxels are there.", "Copy it again from its source."
    )


def _image_of_pair(path: str) -> Path | None:
    base = Path(path)
    stem = base.name.removesuffix(".gz").rpartition(".")[0]
    for name in (f"{stem}.img", f"{stem}.img.gz", f"{stem}.IMG"):
        if (base.parent / name).is_file():
            return base.parent / name
    return None


def inflate(start: bytes, length: int) -> bytes:
    """Return the first `length` bytes of a gzip stream of which `start` is the beginning; fewer if it is broken."""
    try:
        return zlib.decompressobj(wbits=31).decompress(start, length)
    except zlib.error:
        return b""


def _inflated(handle: BinaryIO) -> tuple[int, bool]:
    """Return how many bytes a gzip file really holds, and whether its last member is complete."""
    handle.seek(0)
    count = 0
    inflater = zlib.decompressobj(wbits=31)
    is_whole = False
    chunk = handle.read(1 << 20)
    try:
        while chunk:
            count += len(inflater.decompress(chunk))
            is_whole, chunk = inflater.eof, b""
            if is_whole:
                chunk, inflater = inflater.unused_data.lstrip(b"\0"), zlib.decompressobj(wbits=31)
            chunk = chunk or handle.read(1 << 20)
    except zlib.error:
        return count, False
    return count, is_whole


def read_array(header: Header) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Read the voxels of a NIfTI file.

    Parameters
    ----------
    header : Header
        From `scan_nifti`.

    Returns
    -------
    array : ndarray
        (k, j, i): the slowest axis of the file first; int16 where that loses nothing, else float32.
    corrections : list of dict
        What was changed (non-finite voxels).

    Raises
    ------
    DataError
        The file is cut short, or its compressed stream is damaged.
    """
    content = _content(header)
    due = header.pixel_offset + header.pixel_length
    if len(content) < due:
        raise DataError(
            f"{max(len(content) - header.pixel_offset, 0)} of {header.pixel_length} bytes of voxels are there.",
            remedy="Copy it again from its source.",
            where=header.path,
            code="truncated",
        )
    count = int(np.prod(header.shape, dtype=np.int64))
    stored = np.frombuffer(content, dtype=header.dtype, count=count, offset=header.pixel_offset)
    stored = stored.reshape(header.shape[::-1])
    if header.slope != 1.0 or header.intercept != 0.0:
        values: np.ndarray = stored.astype(np.float64) * header.slope + header.intercept
    else:
        values = stored
    corrections: list[dict[str, Any]] = []
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            lost = int(values.size - np.count_nonzero(finite))
            if lost == values.size:
                raise DataError(
                    "no voxel is a finite number.", remedy="Export it again.", where=header.path, code="non-finite"
                )
            lowest = float(values[finite].min())
            values = np.where(finite, values, np.asarray(lowest, dtype=values.dtype))
            corrections.append(
                {
                    "code": "non-finite",
                    "text": f"{lost} voxels that are no finite number became the minimum, {lowest:g}",
                }
            )
    return narrowest(values), corrections


def narrowest(values: np.ndarray) -> np.ndarray:
    """Return int16 where every value is a whole number in its range, else float32."""
    if values.dtype.kind == "f":
        # A look at a few voxels spares the full test for what is plainly real-valued.
        sample = values.reshape(-1)[:: max(1, values.size // 4096)]
        if (sample != np.rint(sample)).any():
            return np.ascontiguousarray(values, dtype=np.float32)
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if low >= -32768 and high <= 32767 and (values.dtype.kind != "f" or bool((values == np.rint(values)).all())):
        return np.ascontiguousarray(values, dtype=np.int16)
    return np.ascontiguousarray(values, dtype=np.float32)


def _content(header: Header) -> Any:
    """Return the bytes of the file that holds the voxels, inflated."""
    source = header.path
    try:
        if header.member and zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                content = archive.read(header.member)
        else:
            source = header.member or source
            with open(source, "rb") as file:
                compressed = file.read(2) == b"\x1f\x8b"
            if not compressed:
                return np.memmap(source, dtype=np.uint8, mode="r")
            content = Path(source).read_bytes()
        return _gunzip(content) if content[:2] == b"\x1f\x8b" else content
    except (zlib.error, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"its compressed content is damaged ({error}).",
            remedy="Copy it again from its source.",
            where=source,
            code="truncated",
        ) from None
    except OSError as error:
        raise DataError(
            f"it cannot be read ({error.strerror or error}).",
            remedy="Check the file and its permissions.",
            where=source,
            code="unreadable",
        ) from None


def _gunzip(content: bytes) -> bytes:
    """Inflate gzip content of one or more members, checksums included."""
    parts = []
    while content[:2] == b"\x1f\x8b":
        inflater = zlib.decompressobj(wbits=31)
        parts.append(inflater.decompress(content))
        if not inflater.eof:
            raise EOFError("the stream ends too early")
        content = inflater.unused_data.lstrip(b"\0")
    return b"".join(parts) if len(parts) > 1 else parts[0]
