"""A volume: voxels and where they are in the patient, always together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from volrec.errors import DataError

if TYPE_CHECKING:
    import SimpleITK

__all__ = ["Volume"]


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
        """Voxel distances along (t, h, w), mm."""
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
        """Return a SimpleITK image (LPS) of the first channel; it owns its voxels.

        Raises
        ------
        DataError
            When the axes are not at right angles, which an ITK image cannot express.
        """
        import SimpleITK

        spacing = self.spacing
        # ITK names axes fastest first: (w, h, t).
        directions = (self.affine[:3, :3] / spacing)[:, ::-1]
        skew = float(np.abs(directions.T @ directions - np.eye(3)).max())
        if skew > 1e-3:
            raise DataError(
                f"its axes are not at right angles (cosine {skew:.4f}).",
                remedy="Resample it to a grid at right angles first.",
                where=str(self.meta.get("source", "")),
                code="orientation",
            )
        image = SimpleITK.GetImageFromArray(self.array[0])
        image.SetSpacing(spacing[::-1])
        image.SetOrigin([float(value) for value in self.affine[:3, 3]])
        image.SetDirection([float(value) for value in directions.ravel()])
        return image
