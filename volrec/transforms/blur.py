"""Random Gaussian blur in plane."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from volrec.transforms.drawn import DrawnTransform, check_strength, uniform, warn_noop

__all__ = ["RandomBlur", "gaussian_matrix"]


class RandomBlur(DrawnTransform):
    """Blur each slice with a Gaussian, of a width drawn between 0 and `sigma` for each sequence.

    Parameters
    ----------
    sigma : float
        Largest standard deviation along H and W, voxels. At the border the kernel is cut and weighs more inside.
    """

    def __init__(self, *, sigma: float) -> None:
        check_strength(blur=sigma)
        self.sigma = sigma
        if sigma == 0:
            warn_noop(self, "sigma")

    def draw(self, batch_size: int, shape: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw the width of each sequence, voxels ``(B,)``."""
        return uniform((batch_size,), 0.0, self.sigma, generator)

    def apply(self, images: torch.Tensor, params: torch.Tensor) -> torch.Tensor:
        """Blur along W, then H: one product with a matrix each."""
        height, width = images.shape[-2:]
        sigma = params.to(device=images.device)
        rows = gaussian_matrix(height, sigma).to(images.dtype)
        columns = gaussian_matrix(width, sigma).to(images.dtype).transpose(1, 2)
        batch = images.shape[0]
        blurred = torch.bmm(images.reshape(batch, -1, width), columns).view(batch, -1, height, width)
        return torch.matmul(rows[:, None], blurred).view(images.shape)


def gaussian_matrix(size: int, sigma: torch.Tensor) -> torch.Tensor:
    """Return ``(B, size, size)``: row i holds the weights with which an axis is averaged around voxel i."""
    index = torch.arange(size, device=sigma.device, dtype=torch.float32)
    squared = (index[:, None] - index[None, :]) ** 2
    # A width of 0 is the identity; the floor keeps the division finite.
    weights = torch.exp(-squared / (2 * sigma.clamp_min(1e-3)[:, None, None] ** 2))
    return weights / weights.sum(dim=2, keepdim=True)
