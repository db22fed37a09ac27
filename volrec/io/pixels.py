"""Pixels of a file to stored values: read by offset where they are not compressed, else decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from volrec.errors import DataError
from volrec.io.elements import quiet_pydicom
from volrec.io.headers import Header
from volrec.io.tags import EXPLICIT_LITTLE, IMPLICIT_LITTLE

__all__ = ["stored_values"]

_DIRECT = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE})
_PARALLEL_PIXELS = 16_000_000
"""Starting processes costs about what decoding 64 slices of 512x512 does."""
_PACKAGES = {
    "1.2.840.10008.1.2.4.90": "python-gdcm",
    "1.2.840.10008.1.2.4.91": "python-gdcm",
    "1.2.840.10008.1.2.4.201": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg pylibjpeg-openjpeg",
}
_PIXEL_MODULE = [
    0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102,
    0x00280103, 0x00283000, 0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010,
]  # fmt: skip


def stored_values(headers: Sequence[Header], *, jobs: int = 1) -> np.ndarray:
    """Read or decode the stored values of slices of one size.

    Parameters
    ----------
    headers : sequence of Header
        One a slice.
    jobs : int
        Processes for compressed slices, where there are enough of them.

    Returns
    -------
    ndarray
        (T, H, W) of the narrowest type that holds them all.

    Raises
    ------
    DataError
        A file is gone, changed, damaged, or needs a decoder that is not installed.
    """
    first = headers[0]
    if all(_is_direct(header) for header in headers):
        types = {_stored_type(header) for header in headers}
        if len(types) == 1:
            raw = np.empty((len(headers), first.rows, first.columns), dtype=types.pop())
            _read_direct(headers, raw)
            return raw
    planes = _decode_all(headers, jobs)
    common = np.result_type(*{plane.dtype for plane in planes})
    raw = np.empty((len(headers), first.rows, first.columns), dtype=common)
    for number, plane in enumerate(planes):
        raw[number] = plane
    return raw


def _is_direct(header: Header) -> bool:
    return (
        header.transfer_syntax in _DIRECT
        and header.pixel_length > 0
        and not header.mosaic
        and (header.pixel_kind != "int" or header.bits_allocated in (8, 16, 32))
        and not _has_lut(header)
    )


def _stored_type(header: Header) -> str:
    if header.pixel_kind != "int":
        return "<f4" if header.pixel_kind == "float" else "<f8"
    return f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}"


def _read_direct(headers: Sequence[Header], raw: np.ndarray) -> None:
    """Read uncompressed slices straight into place: their offsets are known from the scan."""
    number = 0
    while number < len(headers):
        path = headers[number].path
        try:
            with open(path, "rb", buffering=0) as handle:
                _check_unchanged(handle, headers[number])
                while number < len(headers) and headers[number].path == path:
                    header = headers[number]
                    target = memoryview(raw[number]).cast("B")
                    handle.seek(header.pixel_offset)
                    if handle.readinto(target) != len(target):
                        raise _cut(path)
                    number += 1
        except OSError as error:
            raise _unreadable(path, error) from None


def _check_unchanged(handle: BinaryIO, header: Header) -> None:
    state = os.fstat(handle.fileno())
    if state.st_size != header.size or (header.mtime_ns and state.st_mtime_ns != header.mtime_ns):
        raise DataError(
            "the file changed after its header was read.",
            remedy="Scan the folder again.",
            where=header.path,
            code="changed",
        )


def _cut(path: str) -> DataError:
    return DataError(
        "it ends before its pixels do.", remedy="Copy it again from its source.", where=path, code="truncated"
    )


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(
        f"it cannot be read ({error.strerror or error}).",
        remedy="Check the file and its permissions.",
        where=path,
        code="unreadable",
    )


@dataclass(frozen=True)
class _Share:
    """Slices of one file that one process decodes; `numbers` are their places in the stack."""

    numbers: tuple[int, ...]
    headers: tuple[Header, ...] = field(repr=False)


def _decode_all(headers: Sequence[Header], jobs: int) -> list[np.ndarray]:
    by_file: dict[str, list[int]] = {}
    for number, header in enumerate(headers):
        by_file.setdefault(header.path, []).append(number)
    parallel = jobs > 1 and len(headers) * headers[0].rows * headers[0].columns >= _PARALLEL_PIXELS
    shares = []
    for numbers in by_file.values():
        # A file of many frames is divided too: each process reads it once.
        pieces = min(jobs, len(numbers)) if parallel and not headers[numbers[0]].mosaic else 1
        for piece in np.array_split(np.array(numbers), pieces):
            shares.append(_Share(tuple(int(n) for n in piece), tuple(headers[n] for n in piece)))
    planes: list[np.ndarray | None] = [None] * len(headers)
    if not parallel:
        for share in shares:
            for number, plane in zip(share.numbers, _decode_share(share), strict=True):
                planes[number] = plane
    else:
        from volrec.parallel import map_processes

        outcomes = map_processes(
            _decode_share, shares, jobs=jobs, description="decoding slices", name=lambda share: share.headers[0].path
        )
        for outcome in outcomes:
            if outcome.error is not None or outcome.result is None:
                raise outcome.error or _cut(outcome.item.headers[0].path)
            for number, plane in zip(outcome.item.numbers, outcome.result, strict=True):
                planes[number] = plane
    return [plane for plane in planes if plane is not None]


def _decode_share(share: _Share) -> list[np.ndarray]:
    """Decode frames of one file with pydicom."""
    from pydicom.pixels import get_decoder

    header = share.headers[0]
    try:
        decoder = get_decoder(header.transfer_syntax)
    except NotImplementedError:
        raise DataError(
            f"its transfer syntax {header.transfer_syntax} is not known.",
            remedy="Convert it, for example with dcmconv or gdcmconv.",
            where=header.path,
            code="transfer-syntax",
        ) from None
    if not decoder.is_available:
        raise DataError(
            f"its pixels are compressed ({decoder.UID.name}) and no decoder is installed.",
            remedy=f"pip install {_PACKAGES.get(header.transfer_syntax, 'python-gdcm')}",
            where=header.path,
            code="no-codec",
        )
    try:
        with open(header.path, "rb") as handle, quiet_pydicom():
            _check_unchanged(handle, header)
            planes = _decoded(decoder, handle, share)
    except OSError as error:
        raise _unreadable(header.path, error) from None
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise many kinds on damaged streams
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise DataError(
            f"its pixels cannot be decoded ({type(error).__name__}: {reason}).",
            remedy="Open it in a viewer, or convert it, for example with gdcmconv --raw.",
            where=header.path,
            code="decode",
        ) from None
    for plane in planes:
        if plane.shape != (header.rows, header.columns):
            raise DataError(
                f"its pixels decode to {plane.shape}, not to {header.rows} rows and {header.columns} columns.",
                remedy="Export it again.",
                where=header.path,
                code="decode",
            )
    return planes


def _decoded(decoder: Any, handle: BinaryIO, share: _Share) -> list[np.ndarray]:
    header = share.headers[0]
    indices = [0] if header.mosaic else [part.frame for part in share.headers]
    if header.pixel_offset and header.pixel_length < 0 and not _has_lut(header):
        # By offset, item by item: the end of the stream that pydicom looks for may also occur inside it.
        handle.seek(header.pixel_offset)
        options = _pixel_options(header)
        planes = [decoder.as_array(handle, index=index, raw=True, **options)[0] for index in indices]
    else:
        import pydicom
        from pydicom.pixels import apply_modality_lut

        data = pydicom.dcmread(handle, force=True, specific_tags=list(_PIXEL_MODULE))
        planes = [plane for plane, _ in decoder.iter_array(data, indices=indices, raw=True)]
        if _has_lut(header):
            planes = [apply_modality_lut(plane, data) for plane in planes]
    if not header.mosaic:
        return planes
    tiles = []
    across = planes[0].shape[1] // header.columns
    for part in share.headers:
        row, column = divmod(part.frame, across)
        top, left = row * header.rows, column * header.columns
        tiles.append(planes[0][top : top + header.rows, left : left + header.columns])
    return tiles


def _has_lut(header: Header) -> bool:
    return any(code == "modality-lut" for code, _ in header.notes)


def _pixel_options(header: Header) -> dict[str, Any]:
    side = math.isqrt(max(header.mosaic - 1, 0)) + 1  # tiles of a mosaic along each edge
    return {
        "rows": header.rows * side,
        "columns": header.columns * side,
        "samples_per_pixel": header.samples,
        "number_of_frames": 1 if header.mosaic else header.frames,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "photometric_interpretation": header.photometric,
        "pixel_representation": int(header.signed),
        "pixel_keyword": "PixelData",
    }
