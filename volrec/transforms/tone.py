"""Random changes of gamma, contrast and brightness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from volrec.transforms.drawn import DrawnTransform, check_strength, spawn, uniform, warn_noop

__all__ = ["RandomTone", "ToneParams"]


@dataclass(frozen=True)
class ToneParams:
    """Exponent, contrast factor and shift of each sequence, ``(B,)`` each."""

    gamma: torch.Tensor
    contrast: torch.Tensor
    brightness: torch.Tensor


class RandomTone(DrawnTransform):
    """Bend, stretch and shift the intensities of each sequence: gamma, then contrast, then brightness.

    Parameters
    ----------
    gamma : float
        Largest change of log2 gamma; the power is taken between the sequence's own minimum and maximum, which stay.
    contrast : float
        Largest relative change of the distance to the mean (of each channel), which stays.
    brightness : float
        Largest shift, in units of the normalised input.

    Notes
    -----
    Values may leave [0, 1]: clipping them would make the ends of a window blind to the change.
    """

    def __init__(self, *, gamma: float = 0.0, contrast: float = 0.0, brightness: float = 0.0) -> None:
        check_strength(gamma=gamma, contrast=contrast, brightness=brightness)
        self.gamma, self.contrast, self.brightness = gamma, contrast, brightness
        if not (gamma or contrast or brightness):
            warn_noop(self, "gamma", "contrast", "brightness")

    def draw(self, batch_size: int, shape: Sequence[int], generator: torch.Generator | None = None) -> ToneParams:
        """Draw the three changes of each sequence, independently."""
        for_gamma, for_contrast, for_brightness = spawn(generator, 3)
        size = (batch_size,)
        return ToneParams(
            torch.exp2(uniform(size, -self.gamma, self.gamma, for_gamma)),
            uniform(size, 1 - self.contrast, 1 + self.contrast, for_contrast),
            uniform(size, -self.brightness, self.brightness, for_brightness),
        )

    def apply(self, images: torch.Tensor, params: ToneParams) -> torch.Tensor:
        """Apply what was drawn."""

        def per_sequence(values: torch.Tensor) -> torch.Tensor:
            return values.to(images).view(-1, *[1] * (images.ndim - 1))

        out = images
        if bool((params.gamma != 1).any()):
            every = tuple(range(1, images.ndim))
            low, high = out.amin(every, keepdim=True), out.amax(every, keepdim=True)
            width = (high - low).clamp_min(torch.finfo(out.dtype).tiny)
            # Rounding may leave a value a hair below 0, and a power of it would be NaN.
            unit = ((out - low) / width).clamp_(0, 1)
            out = unit.pow_(per_sequence(params.gamma)).mul_(width).add_(low)
        if bool((params.contrast != 1).any()) or bool((params.brightness != 0).any()):
            factor = per_sequence(params.contrast)
            mean = out.mean(dim=(-3, -2, -1), keepdim=True)
            out = torch.addcmul(mean * (1 - factor) + per_sequence(params.brightness), out, factor)
        return out
