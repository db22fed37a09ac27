"""Random mirroring along the axes of a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from volrec.errors import ConfigError
from volrec.transforms.drawn import DrawnTransform, warn_noop

__all__ = ["AXES", "RandomFlip", "flip_axes"]

AXES = {"T": -3, "H": -2, "W": -1}


class RandomFlip(DrawnTransform):
    """Mirror each sequence along each axis with a probability.

    In canonical axial order W runs from the patient's right to the left: a mirror along W swaps the sides, so leave it
    out where the label knows sides. A mirror along T also turns the order of slice labels.

    Parameters
    ----------
    probabilities : mapping
        From ``"T"``, ``"H"``, ``"W"`` to a probability in [0, 1]; an axis left out is never mirrored.

    Raises
    ------
    ConfigError
        For an unknown axis, or a probability outside [0, 1].
    """

    def __init__(self, probabilities: Mapping[str, float]) -> None:
        for axis, probability in probabilities.items():
            if axis not in AXES or not 0 <= probability <= 1:
                raise ConfigError(
                    f"flip takes T, H or W and a probability in [0, 1]; got {axis!r}: {probability!r}.",
                    remedy="Give for example {W: 0.5}.",
                    where="augment.flip",
                    code="augment",
                )
        self.probabilities = dict(probabilities)
        if not any(self.probabilities.values()):
            warn_noop(self, "a probability of T, H or W")

    def draw(self, batch_size: int, shape: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw bool ``(B, 3)``: mirrored along T, H, W."""
        wanted = torch.tensor([float(self.probabilities.get(axis, 0.0)) for axis in AXES])
        return torch.rand((batch_size, 3), generator=generator) < wanted

    def apply(self, images: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        """Mirror what `draw` chose."""
        out = images
        for row in torch.unique(params, dim=0):
            axes = [axis for axis, mirrored in zip(AXES.values(), row, strict=True) if mirrored]
            if axes:
                out = images.clone() if out is images else out
                chosen = torch.nonzero((params == row).all(dim=1)).flatten().to(images.device)
                out[chosen] = images[chosen].flip(axes)
        return out


def flip_axes(image: torch.Tensor, axes: Sequence[str]) -> torch.Tensor:
    """Mirror ``(..., T, H, W)`` along the named axes (test-time augmentation)."""
    return image.flip([AXES[axis] for axis in axes]) if axes else image
