"""Bytes to arrays plus geometry: headers are scanned once, series assembled and checked, pixels decoded last.

`scan_file` reads one header, `assemble` makes series of many, `read_series` and `read_volume` give a `Volume`.
Nothing here imports torch or MONAI, and pydicom or nibabel only when a file needs them, so that a scan starts fast.
"""

from __future__ import annotations

from volrec.io.assembly import assemble
from volrec.io.headers import HEADER_SCHEMA, FileScan, Header
from volrec.io.reading import read_volume
from volrec.io.scan import scan_file
from volrec.io.series import SET_ASIDE, Series, read_series
from volrec.io.volume import Volume

__all__ = [
    "HEADER_SCHEMA",
    "SET_ASIDE",
    "FileScan",
    "Header",
    "Series",
    "Volume",
    "assemble",
    "read_series",
    "read_volume",
    "scan_file",
]
