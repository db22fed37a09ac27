"""Random Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from volrec.transforms.drawn import DrawnTransform, check_strength, uniform, warn_noop

__all__ = ["NoiseParams", "RandomNoise"]


@dataclass(frozen=True)
class NoiseParams:
    """Standard deviation of each sequence ``(B,)``, and the seed of the noise itself."""

    std: torch.Tensor
    seed: int


class RandomNoise(DrawnTransform):
    """Add white Gaussian noise, of a standard deviation drawn between 0 and `std` for each sequence.

    Parameters
    ----------
    std : float
        Largest standard deviation, in units of the normalised input.
    """

    def __init__(self, *, std: float) -> None:
        check_strength(noise=std)
        self.std = std
        if std == 0:
            warn_noop(self, "std")

    def draw(self, batch_size: int, shape: Sequence[int], generator: torch.Generator | None = None) -> NoiseParams:
        """Draw the strengths, and a seed rather than the noise: a replay on the same kind of device is the same."""
        std = uniform((batch_size,), 0.0, self.std, generator)
        return NoiseParams(std, int(torch.randint(2**62, (1,), generator=generator, dtype=torch.int64)))

    def apply(self, images: torch.Tensor, params: NoiseParams) -> torch.Tensor:
        """Add the noise; every channel gets its own."""
        generator = torch.Generator(images.device).manual_seed(params.seed)
        noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
        std = params.std.to(images).view(-1, *[1] * (images.ndim - 1))
        return noise.mul_(std).add_(images)
