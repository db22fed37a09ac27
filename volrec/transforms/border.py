"""Random borders: what lies near the edge of the plane is cut away, as another field of view would have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from volrec.errors import ConfigError
from volrec.transforms.drawn import DrawnTransform, uniform, warn_noop

__all__ = ["RandomBorder"]


class RandomBorder(DrawnTransform):
    """Replace a border of random width on each of the four sides of the plane by the sequence's own minimum.

    The outline of a study (where its padding begins, how far the table reaches) is then no sign of whose it is.

    Parameters
    ----------
    border : float
        Largest share of the height and of the width that is cut on each side, below 0.5.

    Raises
    ------
    ConfigError
        For a share outside [0, 0.5).
    """

    def __init__(self, *, border: float) -> None:
        if not 0 <= border < 0.5:
            raise ConfigError(
                f"border must be in [0, 0.5), got {border}.",
                remedy="0.15 cuts up to 15 % on each side; 0 turns it off.",
                where="augment.border",
                code="augment",
            )
        self.border = border
        if border == 0:
            warn_noop(self, "border")

    def draw(self, batch_size: int, shape: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw int64 ``(B, 4)``: rows cut at top and bottom, columns at left and right; all slices of one alike."""
        share = uniform((batch_size, 4), 0.0, self.border, generator)
        sizes = torch.tensor([shape[1], shape[1], shape[2], shape[2]], dtype=torch.float32)
        return (share * sizes).round().long()

    def apply(self, images: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        """Cut what was drawn."""
        if not bool(params.any()):
            return images
        dark = images.amin(dim=(-3, -2, -1), keepdim=True)
        return torch.where(self.inside(images, params), images, dark)

    def inside(self, images: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        """Return bool ``(B, 1, 1, H, W)``: what is not cut away."""
        top, bottom, left, right = (cut.to(images.device)[:, None] for cut in params.T)
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device)[None]
        columns = torch.arange(width, device=images.device)[None]
        inside_rows = (rows >= top) & (rows < height - bottom)
        inside_columns = (columns >= left) & (columns < width - right)
        return inside_rows[:, None, None, :, None] & inside_columns[:, None, None, None, :]
