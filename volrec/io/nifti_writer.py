"""A NIfTI file that lies on another one, or on a DICOM study, in any viewer."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volrec.errors import DataError
from volrec.files import write_atomically
from volrec.io.series import Series

__all__ = ["Forms", "forms_of", "write_nifti"]

LARGEST = 32767
"""Largest side of a NIfTI-1 image."""
SCANNER = 1
"""Code of an orientation that comes from the scanner."""


@dataclass(frozen=True, eq=False)
class Forms:
    """The orientation in a NIfTI header, as it stands there.

    Attributes
    ----------
    sform, qform : ndarray or None
        (4, 4) to RAS; None where the code is 0.
    sform_code, qform_code : int
        What the space is.
    units : int
        ``xyzt_units`` of the header.
    """

    sform: np.ndarray | None
    qform: np.ndarray | None
    sform_code: int
    qform_code: int
    units: int


def forms_of(series: Series) -> Forms | None:
    """Return the orientation in the file of a NIfTI series; None for DICOM and for files within an archive.

    Raises
    ------
    DataError
        The file is gone.
    """
    if series.kind != "nifti":
        return None
    import nibabel

    path = series.headers[0].path
    try:
        header: Any = nibabel.load(path).header
    except nibabel.filebasedimages.ImageFileError:
        return None
    except OSError as error:
        raise DataError(
            f"it cannot be read ({error.strerror or error}).",
            remedy="Check the file and its permissions.",
            where=path,
            code="unreadable",
        ) from None
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    return Forms(sform, qform, int(sform_code), int(qform_code), int(header["xyzt_units"]))


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray, *, forms: Forms | None = None) -> None:
    """Write a NIfTI file, all or nothing; gzipped where the name ends in ``.gz``. Its header has no text in it.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``.
    array : ndarray
        (i, j, k), float32 or int16.
    affine : ndarray
        (4, 4): (i, j, k, 1) to RAS mm. A sheared one (gantry tilt) is written as it is: an sform can say it.
    forms : Forms, optional
        Orientation of the file that this one lies on, taken over unchanged in place of the affine.
    """
    import nibabel

    kind = nibabel.Nifti1Image if max(array.shape) <= LARGEST else nibabel.Nifti2Image
    image = kind(np.asarray(array), affine)
    header: Any = image.header
    if forms is None:
        header.set_xyzt_units("mm")
        columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        right_angles = np.abs(columns.T @ columns - np.eye(3)).max() < 1e-4
        image.set_qform(affine, code=SCANNER if right_angles else 0)
        image.set_sform(affine, code=SCANNER)
    else:
        header["xyzt_units"] = forms.units
        # The qform sets the voxel sizes; where there is none they are those of the sform.
        image.set_qform(forms.sform if forms.qform is None else forms.qform, code=forms.qform_code)
        image.set_sform(np.eye(4) if forms.sform is None else forms.sform, code=forms.sform_code)
    content = image.to_bytes()
    # Maps are mostly smooth or empty: more effort gains little. No time stamp: the same map is the same file.
    write_atomically(path, gzip.compress(content, 1, mtime=0) if path.suffix == ".gz" else content)
