"""Headers of many files to series: grouped, ordered by position, checked; then decoded into one volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from volrec.errors import Problem
from volrec.io.headers import Header
from volrec.io.volume import Volume

__all__ = ["SET_ASIDE", "MissingSlices", "Series", "SliceAxis", "assemble", "read_series"]

SliceAxis = Literal["acquired", "axial", "coronal", "sagittal"]
MissingSlices = Literal["quarantine", "interpolate"]

SET_ASIDE = frozenset({"localizer", "no-pixels", "secondary-capture", "dicomdir", "colour"})
"""Codes of problems that are no fault of the data: what is no volume is set aside, not quarantined."""


@dataclass(frozen=True)
class Series:
    """What becomes one volume: its files in slice order, its geometry, and what is wrong with it.

    Attributes
    ----------
    uid : str
        SeriesInstanceUID, with ``#2`` … where one UID holds several volumes; for NIfTI its relative path.
    kind : str
        ``"dicom"`` or ``"nifti"``.
    study_uid, patient_id, modality : str
        From the headers; empty where unknown.
    orientation : str
        ``"axial"``, ``"coronal"`` or ``"sagittal"``: the anatomical plane nearest to the slices.
    image_type : tuple of str
        DICOM ImageType.
    path : str
        The file, or the folder that all files share; relative to `root` of `assemble` where given.
    files : tuple of str
        Each file once, in slice order.
    headers : tuple of Header
        One a slice, in slice order (one alone for NIfTI).
    shape : tuple of int
        (T, H, W) as assembled, before the canonical orientation.
    spacing : tuple of float
        (t, h, w), mm.
    affine : tuple of tuple of float
        4x4: (t, h, w, 1) as assembled to LPS mm.
    split_by : dict
        What set it apart from others of its UID (``{"echo_time": 4.6}``).
    localizer, derived : bool
        A scout; an image computed from others (ImageType DERIVED).
    problems : tuple of Problem
        Fatal ones: it cannot be used. Others: corrections and assumptions.
    signature : str
        Hash of name, size and modification time of its files.
    tilt : float
        Gantry tilt found in the positions, degrees; 0 where none.
    missing : tuple of int
        Indices, in the complete stack, of slices that are not there.
    """

    uid: str
    kind: str
    study_uid: str
    patient_id: str
    modality: str
    orientation: str
    image_type: tuple[str, ...]
    path: str
    files: tuple[str, ...]
    headers: tuple[Header, ...]
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    split_by: dict[str, Any] = field(default_factory=dict)
    localizer: bool = False
    derived: bool = False
    problems: tuple[Problem, ...] = ()
    signature: str = ""
    tilt: float = 0.0
    missing: tuple[int, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether `read_series` can be asked for it (a lacking slice may still be refused there)."""
        return not any(problem.fatal for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dictionaries."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Series:
        """Rebuild what `to_json` gave."""
        raise NotImplementedError


def assemble(headers: Sequence[Header], *, root: Path | str | None = None) -> tuple[list[Series], list[Problem]]:
    """Make series of headers: group, order by position, check.

    Parameters
    ----------
    headers : sequence of Header
        Of any number of files, in any order.
    root : path, optional
        Folder that paths in the result (uid of NIfTI, `where` of problems) are relative to.

    Returns
    -------
    list of Series
        Usable and unusable ones; an unusable one carries its fatal problems.
    list of Problem
        What belongs to no series: duplicates dropped, frames without geometry …
    """
    raise NotImplementedError


def read_series(
    series: Series, *, slice_axis: SliceAxis = "acquired", missing_slices: MissingSlices = "quarantine", jobs: int = 1
) -> Volume:
    """Decode a series into a volume in canonical orientation.

    Parameters
    ----------
    series : Series
        As `assemble` made it.
    slice_axis : str
        Anatomical plane of the slices in the result; ``"acquired"`` keeps the series' own.
    missing_slices : str
        ``"quarantine"`` refuses a series that lacks a slice; ``"interpolate"`` fills single ones linearly.
    jobs : int
        Processes that decode compressed slices.

    Returns
    -------
    Volume
        ``(1, T, H, W)``.

    Raises
    ------
    DataError
        What is wrong with which file, and what to do.
    """
    raise NotImplementedError
