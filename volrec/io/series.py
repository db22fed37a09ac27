"""A series: the files that make one volume, in order; and reading it into one."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from volrec.errors import ConfigError, DataError, Problem
from volrec.io.geometry import CANONICAL, canonicalise
from volrec.io.headers import Header
from volrec.io.volume import Volume

__all__ = ["SET_ASIDE", "MissingSlices", "Series", "SliceAxis", "read_series"]

SliceAxis = Literal["acquired", "axial", "coronal", "sagittal"]
MissingSlices = Literal["quarantine", "interpolate"]

SET_ASIDE = frozenset({"localizer", "no-image", "secondary-capture", "colour", "not-a-scan", "single-slice"})
"""Codes of fatal problems that are no fault of the data: what is no volume is set aside, not quarantined."""


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
        ``"axial"``, ``"coronal"`` or ``"sagittal"``: the plane that ``slice_axis="acquired"`` stands for. For DICOM the
        anatomical plane nearest to the slices, for NIfTI the one across the axis of the largest spacing.
    image_type : tuple of str
        DICOM ImageType.
    path : str
        The file, or the folder that all files share; relative to the root given to `assemble` where given.
    files : tuple of str
        Each file once, in slice order.
    headers : tuple of Header
        One a slice, in slice order (one alone for NIfTI); missing slices have none.
    shape : tuple of int
        (T, H, W) as assembled, before the canonical orientation, after the correction of a tilt.
    spacing : tuple of float
        (t, h, w), mm; t is 0 where it is not known.
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
    shifts : tuple of tuple of float
        In-plane correction of a tilt: voxels (h, w) by which each slice of the complete stack moves; empty without.
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
    shifts: tuple[tuple[float, float], ...] = ()

    @property
    def usable(self) -> bool:
        """Whether nothing fatal is known; one with `missing` slices is read only if asked to interpolate."""
        return not any(problem.fatal for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dictionaries."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["headers"] = [header.to_json() for header in self.headers]
        values["problems"] = [problem.as_dict() for problem in self.problems]
        return {name: _lists(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Series:
        """Rebuild what `to_json` gave."""
        plain = {
            name: value if name in ("headers", "problems", "split_by") else _tuples(value)
            for name, value in values.items()
        }
        plain["headers"] = tuple(Header.from_json(header) for header in values["headers"])
        plain["problems"] = tuple(Problem(**problem) for problem in values["problems"])
        return cls(**plain)


def read_series(
    series: Series, *, slice_axis: str = "acquired", missing_slices: str = "quarantine", jobs: int = 1
) -> Volume:
    """Decode a series into a volume in canonical orientation.

    Parameters
    ----------
    series : Series
        As `volrec.io.assemble` made it.
    slice_axis : str
        Anatomical plane of the slices in the result; ``"acquired"`` keeps the series' own.
    missing_slices : str
        ``"quarantine"`` refuses a series that lacks a slice; ``"interpolate"`` fills a single one linearly.
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
    ConfigError
        `slice_axis` or `missing_slices` is none of the words above.
    """
    if slice_axis != "acquired" and slice_axis not in CANONICAL:
        raise ConfigError(
            f"slice_axis must be one of acquired, {', '.join(CANONICAL)}; got '{slice_axis}'.",
            where="slice_axis",
            code="config",
        )
    if missing_slices not in ("quarantine", "interpolate"):
        raise ConfigError(
            f"missing_slices must be quarantine or interpolate; got '{missing_slices}'.",
            where="missing_slices",
            code="config",
        )
    for problem in series.problems:
        if problem.fatal or (problem.code == "missing-slice" and missing_slices == "quarantine"):
            raise DataError(problem.reason, remedy=problem.remedy, where=series.path, code=problem.code)
    assumptions = [
        {"code": problem.code, "text": problem.reason} for problem in series.problems if problem.code not in _CORRECTED
    ]
    corrections: list[dict[str, Any]] = []
    modality: str | None = series.modality or None
    if series.kind == "nifti":
        from volrec.io.nifti import read_array

        array, corrections = read_array(series.headers[0])
        units = ""
        assumptions += [{"code": code, "text": text} for code, text in series.headers[0].notes if code == "units"]
        if modality is None and array.dtype == np.int16 and int(array.min(initial=0)) <= -900:
            modality, units = "CT", "HU"
            assumptions.append({"code": "modality", "text": "whole numbers down to -900 and below: taken for CT in HU"})
    else:
        from volrec.io.values import decode_series

        array, corrections, units = decode_series(series, jobs=jobs)
    plane = series.orientation if slice_axis == "acquired" else slice_axis
    placed, affine = canonicalise(array, np.asarray(series.affine, dtype=np.float64), plane)
    meta: dict[str, Any] = {
        "modality": modality,
        "series": series.uid,
        "study": series.study_uid,
        "source": series.path,
        "slice_axis": plane,
        "units": units,
        "corrections": corrections,
        "assumptions": assumptions,
    }
    return Volume(np.ascontiguousarray(placed)[None], affine, meta)


_CORRECTED = frozenset({"tilt", "missing-slice"})  # listed among the corrections, with what was done


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, (tuple, list)) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
