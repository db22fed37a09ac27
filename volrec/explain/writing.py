"""The folder of an explanation: a map that overlays on the study, a picture, a table of slices, and how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from volrec.config import IntensityConfig
from volrec.errors import DataError
from volrec.explain.curves import Curve
from volrec.explain.finding import FoundStudy
from volrec.explain.geometry import (
    Grid,
    file_affine,
    in_file_order,
    slice_positions,
    slices_in_study,
    to_study_geometry,
)
from volrec.explain.methods import METHODS
from volrec.explain.montage import Picture, draw_montage, shown_range, strongest_slice
from volrec.explain.plotting import draw_curves
from volrec.explain.sanity import Sanity
from volrec.explain.study import EvidenceMap
from volrec.files import write_atomically
from volrec.io import Volume
from volrec.io.nifti_writer import forms_of, write_nifti

__all__ = ["Explanation", "folder_name", "write_explanation"]

FORMAT = "volrec explanation 1"
INCOMPLETE = 0.05
"""Share of the output's change by which voxels that should add up to it may miss it before it is said."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """A map in the geometry of its study.

    Attributes
    ----------
    study : str
        Its name.
    evidence : EvidenceMap
        On the stored grid, with method, output and scores.
    array : ndarray
        (T, H, W) float32 on the study's own grid, in canonical order (as `volrec.read_volume` gives it).
    affine : ndarray
        (4, 4): (t, h, w, 1) of it to LPS mm.
    per_slice : ndarray
        (T,) float32 of the study's own slices; NaN for slices that no clip shows.
    positions : ndarray
        (T,) of the slices along the axis that they are stacked along, LPS mm.
    warnings : tuple of str
        What to keep in mind.
    folder : Path, optional
        Where ``evidence.nii.gz``, ``montage.png``, ``slices.csv``, ``curves.svg``, ``curves.png`` and ``explain.json``
        are; None: not written.
    curves : tuple of Curve
        What the networks say of each of the study's own slices beside the map.
    sanity : Sanity, optional
        How much of the map is left where the weights mean nothing; None: not measured.
    """

    study: str
    evidence: EvidenceMap
    array: np.ndarray
    affine: np.ndarray
    per_slice: np.ndarray
    positions: np.ndarray
    warnings: tuple[str, ...] = ()
    folder: Path | None = None
    curves: tuple[Curve, ...] = ()
    sanity: Sanity | None = None

    @property
    def strongest(self) -> int | None:
        """The slice with the largest value, counted from 0; None where no slice speaks for the output."""
        return strongest_slice(self.per_slice)


def place_in_study(
    found: FoundStudy,
    evidence: EvidenceMap,
    volume: Volume,
    *,
    curves: Sequence[Curve] = (),
    sanity: Sanity | None = None,
) -> Explanation:
    """Bring a map to the geometry of its study.

    Parameters
    ----------
    found : FoundStudy
        The study.
    evidence : EvidenceMap
        Its map.
    volume : Volume
        As it was read, before resampling.
    curves : sequence of Curve
        Along the stored slices.
    sanity : Sanity, optional
        Of the map.
    """
    grid = Grid.of(volume)
    warnings = [found.note] if found.note else []
    if sanity is not None and sanity.warning:
        warnings.append(sanity.warning)
    check = evidence.completeness
    if check is not None and check["relative_gap"] > INCOMPLETE:
        warnings.append(
            f"the voxels of a clip add up to the change of the output with an error of {check['relative_gap']:.0%}: "
            "more steps would lessen it (--set steps=128)."
        )
    return Explanation(
        found.study,
        evidence,
        to_study_geometry(evidence, grid),
        grid.affine,
        slices_in_study(evidence.per_slice, evidence.affine, grid),
        slice_positions(grid),
        tuple(warnings),
        curves=tuple(replace(curve, values=slices_in_study(curve.values, evidence.affine, grid)) for curve in curves),
        sanity=sanity,
    )


def write_explanation(
    folder: Path,
    explained: Explanation,
    found: FoundStudy,
    volume: Volume,
    *,
    intensity: IntensityConfig,
    with_image: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of an explanation, ``explain.json`` last: its presence says that the others are whole.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    explained : Explanation
        What is written.
    found, volume
        The study, as for `place_in_study`.
    intensity : IntensityConfig
        Whose windows the picture is shown through.
    with_image : bool
        Also write ``image.nii.gz``, the study itself on the same grid.
    facts : mapping, optional
        More plain JSON facts.

    Raises
    ------
    DataError
        The folder cannot be written.
    """
    series = found.series
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "explain.json").unlink(missing_ok=True)
        forms, affine = forms_of(series), file_affine(series, Grid.of(volume))
        as_filed = in_file_order(explained.array, series, volume.slice_axis)
        write_nifti(folder / "evidence.nii.gz", as_filed, affine, forms=forms)
        if with_image:
            image = in_file_order(volume.array[0], series, volume.slice_axis)
            write_nifti(folder / "image.nii.gz", image, affine, forms=forms)
        write_atomically(folder / "montage.png", draw_montage(_picture(explained, volume, intensity)))
        write_atomically(folder / "slices.csv", _slices(explained))
        for suffix, content in draw_curves(_curves(explained), explained.positions, title=_title(explained)).items():
            write_atomically(folder / f"curves.{suffix}", content)
        text = json.dumps(_facts(explained, found, volume, facts or {}), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / "explain.json", text + "\n")
    except OSError as error:
        raise DataError(
            f"it cannot be written ({error.strerror or error}).",
            remedy="Choose another place with --out.",
            where=folder,
            code="unwritable",
        ) from None


def folder_name(text: str) -> str:
    """Return a name of a study or a method as that of a folder."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".-")[:100] or "study"


def _slices(explained: Explanation) -> str:
    curves = _curves(explained)
    lines = [",".join(("slice", "position_mm", *(curve.name for curve in curves)))]
    for number, position in enumerate(explained.positions):
        values = (curve.values[number] for curve in curves)
        told = ("" if np.isnan(value) else f"{value:.6g}" for value in values)
        lines.append(",".join((str(number), f"{position:.3f}", *told)))
    return "\n".join(lines) + "\n"


def _curves(explained: Explanation) -> tuple[Curve, ...]:
    """Return the map's own curve, and those beside it."""
    method = METHODS[explained.evidence.method]
    return Curve("evidence", "evidence", method.summary, explained.per_slice), *explained.curves


def _facts(explained: Explanation, found: FoundStudy, volume: Volume, more: Mapping[str, Any]) -> dict[str, Any]:
    evidence, strongest = explained.evidence, explained.strongest
    method = METHODS[evidence.method]
    return {
        "format": FORMAT,
        "study": explained.study,
        "method": evidence.method,
        "meaning": method.summary,
        "options": _plain(evidence.options),
        "output": evidence.output,
        "signed": evidence.signed,
        "unit": "the output before sigmoid or softmax",
        "evidence_of_a_slice": method.per_slice,
        "curves": {curve.name: curve.meaning for curve in explained.curves},
        "scores": dict(evidence.scores),
        "clips": evidence.clips,
        "members": [
            {"name": member.name, "weights_sha256": member.card.get("tensors", {}).get("sha256", "")}
            for member in found.members
        ],
        "completeness": None if evidence.completeness is None else dict(evidence.completeness),
        "strongest_slice": None
        if strongest is None
        else {"slice": strongest, "position_mm": round(float(explained.positions[strongest]), 3)},
        "slice_axis": volume.slice_axis,
        "shape": [int(size) for size in explained.array.shape],
        "spacing_mm": [round(size, 6) for size in volume.spacing],
        "network_grid": {"shape": [int(size) for size in evidence.array.shape], "affine_lps": evidence.affine.tolist()},
        "sanity": None if explained.sanity is None else explained.sanity.to_json(),
        "warnings": list(explained.warnings),
        **more,
    }


def _picture(explained: Explanation, volume: Volume, intensity: IntensityConfig) -> Picture:
    evidence = explained.evidence
    return Picture(
        image=volume.array[0],
        overlay=explained.array,
        spacing=volume.spacing,
        positions=explained.positions,
        per_slice=explained.per_slice,
        window=_window(volume, intensity),
        plane=volume.slice_axis,
        signed=evidence.signed,
        title=_title(explained),
        subtitle=f"{evidence.method}. {METHODS[evidence.method].summary}",
    )


def _title(explained: Explanation) -> str:
    evidence = explained.evidence
    score = evidence.scores.get(evidence.output)
    if score is None and len(evidence.scores) == 1:  # the negative class of two
        score = 1 - next(iter(evidence.scores.values()))
    return f"{explained.study}: evidence for {evidence.output}" + ("" if score is None else f", score {score:.3g}")


def _window(volume: Volume, intensity: IntensityConfig) -> tuple[float, float] | None:
    from volrec.transforms.windows import WINDOWS, resolve_windows

    if intensity.kind == "window":
        return shown_range(resolve_windows(intensity.windows))
    return shown_range([WINDOWS["soft-tissue"]]) if volume.meta.get("units") == "HU" else None


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in options.items()
    }
