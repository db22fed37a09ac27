"""One look at one file, whatever its name: what it is, what its header says, whether it is whole."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from volrec.errors import Problem
from volrec.io.dicom import headers_of
from volrec.io.elements import read_elements
from volrec.io.headers import FileScan, Header
from volrec.io.nifti import HEADER_BYTES, inflate, is_analyze, is_nifti, parse_header, scan_nifti

__all__ = ["scan_file"]

_HEAD = 1 << 15
_DICOMDIR = "1.2.840.10008.1.3.10"
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_NIFTI_SUFFIXES = (".nii", ".nii.gz")


def scan_file(path: Path | str) -> FileScan:
    """Read one file's header, once; a bad file is described, never raised.

    Parameters
    ----------
    path : path or str
        Any file, whatever its name or suffix.

    Returns
    -------
    FileScan
        With one header an image frame, and the problem where there is one. A DICOM image that is cut short keeps its
        headers, each with a note, so that its series is known to be incomplete.

    Examples
    --------
    >>> from volrec.io import scan_file
    >>> scan_file("no/such/file").problem.code
    'unreadable'
    """
    name = os.fspath(path)
    try:
        state = os.stat(name)
        if not stat.S_ISREG(state.st_mode):
            return FileScan(name, state.st_size, state.st_mtime_ns, "other")
        with open(name, "rb", buffering=0) as handle:
            return _look(handle, name, state.st_size, state.st_mtime_ns)
    except OSError as error:
        reason = f"it cannot be read ({error.strerror or error})."
        return FileScan(
            name, 0, 0, "other", (), Problem(name, "unreadable", reason, "Check the file and its permissions.")
        )


def _look(handle: BinaryIO, name: str, size: int, mtime_ns: int) -> FileScan:
    head = handle.read(_HEAD)
    lower = name.lower()

    def other(problem: Problem | None = None) -> FileScan:
        return FileScan(name, size, mtime_ns, "other", (), problem)

    def nifti(found: tuple[Header | None, Problem | None]) -> FileScan:
        header, problem = found
        return FileScan(name, size, mtime_ns, "nifti", () if header is None else (header,), problem)

    if is_nifti(head):
        return nifti(scan_nifti(handle, head, name, size, mtime_ns))
    if head[:2] == b"\x1f\x8b":
        content = inflate(head, HEADER_BYTES)
        if is_nifti(content):
            return nifti(scan_nifti(handle, head, name, size, mtime_ns))
        if content[128:132] == b"DICM":
            return other(Problem(name, "gzipped-dicom", "it is a compressed DICOM file (gzip).", "Unpack it first."))
    elif head[:4] == b"PK\x03\x04":
        return _look_into_zip(name, size, mtime_ns)
    else:
        scan = _look_for_dicom(handle, head, name, size, mtime_ns)
        if scan is not None:
            return scan
    if lower.endswith(_NIFTI_SUFFIXES) or (lower.endswith(".hdr") and is_analyze(head)):
        return nifti((None, _no_nifti(name, size, head)))
    if lower.endswith(_DICOM_SUFFIXES):
        what = "it is empty." if not size else "its name says DICOM, its content does not."
        return other(Problem(name, "not-dicom", what, "Copy it again, or rename it."))
    return other()


def _no_nifti(name: str, size: int, head: bytes) -> Problem:
    if is_analyze(head):
        return Problem(
            name,
            "no-orientation",
            "it is an ANALYZE 7.5 image, which does not say where left is.",
            "Convert it to NIfTI with the orientation set.",
        )
    if not size:
        return Problem(name, "truncated", "it is empty.", "Copy it again from its source.")
    return Problem(name, "nifti-header", "its name says NIfTI, its content does not.", "Copy it again, or rename it.")


def _look_for_dicom(handle: BinaryIO, head: bytes, name: str, size: int, mtime_ns: int) -> FileScan | None:
    try:
        found = read_elements(handle, size, head)
        if found is None:
            return None
        if found.first("sop_class") == _DICOMDIR:
            return FileScan(name, size, mtime_ns, "dicomdir")
        headers, problem = headers_of(handle, name, size, mtime_ns, found)
    except Exception as error:  # noqa: BLE001 - pydicom raises many kinds on broken files, and one bad file never stops a folder
        if head[128:132] != b"DICM":
            return None
        reason = f"its DICOM header cannot be parsed ({type(error).__name__}: {_short_text(error)})."
        return FileScan(
            name,
            size,
            mtime_ns,
            "dicom",
            (),
            Problem(name, "unreadable-dicom", reason, "Export it again from its source."),
        )
    return FileScan(name, size, mtime_ns, "dicom", headers, problem)


def _look_into_zip(name: str, size: int, mtime_ns: int) -> FileScan:
    def answer(problem: Problem | None, header: Header | None = None) -> FileScan:
        kind = "nifti" if header is not None or problem is not None else "other"
        return FileScan(name, size, mtime_ns, kind, () if header is None else (header,), problem)  # type: ignore[arg-type]

    images: list[tuple[str, bytes]] = []
    try:
        with zipfile.ZipFile(name) as archive:
            for member in archive.infolist():
                if member.is_dir() or member.file_size < 132:
                    continue
                with archive.open(member) as file:
                    start = file.read(_HEAD)
                content = inflate(start, HEADER_BYTES) if start[:2] == b"\x1f\x8b" else start[:HEADER_BYTES]
                if is_nifti(content):
                    images.append((member.filename, content))
                elif content[128:132] == b"DICM":
                    return answer(
                        Problem(name, "zipped-dicom", "it is a zip of DICOM files.", "Unpack it into a folder.")
                    )
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        if not name.lower().endswith(".zip"):
            return answer(None)
        reason = f"its content cannot be unpacked ({_short_text(error)})."
        return answer(Problem(name, "zip", reason, "Copy it again from its source, or unpack it into a folder."))
    if not images:
        return answer(None)
    if len(images) > 1:
        return answer(
            Problem(
                name, "several-in-zip", f"it holds {len(images)} NIfTI images.", "Unpack it, or keep one image a zip."
            )
        )
    member_name, content = images[0]
    header, problem = parse_header(content.ljust(HEADER_BYTES, b"\0"), name, member=member_name)
    return answer(problem, None if header is None else replace(header, size=size, mtime_ns=mtime_ns))


def _short_text(error: BaseException) -> str:
    # Parsers quote what they stumble over; a quoted value could be a name.
    text = str(error).split("\n")[0].split("'")[0].strip()
    return text[:120] or "no details"
