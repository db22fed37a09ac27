"""A volume: voxels and where they are in the patient, always together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import SimpleITK

__all__ = ["Volume", "read_volume"]


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels in canonical orientation with their geometry.

    Attributes
    ----------
    array : ndarray
        (C, T, H, W), int16 where that loses nothing, else float32; HU for CT.
    affine : ndarray
        (4, 4) float64: (t, h, w, 1) to LPS mm (x to the left, y to the back, z to the head).
    meta : dict
        Plain JSON types: ``modality, series, source, slice_axis, units, corrections, assumptions``.
    """

    array: np.ndarray
    affine: np.ndarray
    meta: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, T, H, W)."""
        return tuple(self.array.shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm between voxels along (t, h, w)."""
        t, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(t), float(h), float(w)

    @property
    def slice_axis(self) -> str:
        """Anatomical plane of the slices: ``"axial"``, ``"coronal"`` or ``"sagittal"``."""
        return str(self.meta["slice_axis"])

    @property
    def affine_ras(self) -> np.ndarray:
        """(4, 4): (t, h, w, 1) to RAS mm, the convention of NIfTI."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine

    def to_sitk(self) -> SimpleITK.Image:
        """Return a SimpleITK image of the first channel that owns its voxels.

        Raises
        ------
        DataError
            When the axes are not at right angles, which an ITK image cannot express.
        """
        raise NotImplementedError


def read_volume(
    path: Path | str,
    *,
    slice_axis: Literal["acquired", "axial", "coronal", "sagittal"] = "acquired",
    missing_slices: Literal["quarantine", "interpolate"] = "quarantine",
    jobs: int = 1,
) -> Volume:
    """Read a folder that holds one series, or one file.

    Parameters
    ----------
    path : path or str
        Folder of DICOM files of one series, or a file (NIfTI, multi-frame DICOM).
    slice_axis, missing_slices, jobs
        As in `read_series`.

    Returns
    -------
    Volume
        ``(1, T, H, W)`` in canonical orientation.

    Raises
    ------
    DataError
        No usable series, or several: they are named.
    """
    raise NotImplementedError
