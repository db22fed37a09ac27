"""Pictures of blobs that move by a known step: what motion between slices is tested on."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["endpoint_errors", "moving_blobs"]


def moving_blobs(clips: int, *, slices: int, side: int, seed: int, fastest: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return stacks (N, slices, 1, side, side) of standard deviation .25, and the step (N, 2), x first, of each.

    Twelve Gaussian blobs of random place, size and sign move by the same step of up to `fastest` pixels a component.
    """
    random = torch.Generator().manual_seed(seed)
    step = (2 * torch.rand(clips, 2, generator=random) - 1) * fastest
    start = torch.rand(clips, 12, 2, generator=random) * (side + 16) - 8
    size = 1.5 + 2.5 * torch.rand(clips, 1, 12, 1, generator=random)
    sign = 2 * torch.rand(clips, 12, generator=random) - 1
    place = start[:, None] + torch.arange(float(slices))[:, None, None] * step[:, None, None]
    pixels = torch.arange(float(side))
    along_x, along_y = (torch.exp(-((pixels - place[..., axis, None]) ** 2) / (2 * size**2)) for axis in (0, 1))
    pictures = torch.einsum("nk,nskh,nskw->nshw", sign, along_y, along_x)
    return 0.25 * (pictures / pictures.std((1, 2, 3), keepdim=True))[:, :, None], step


def endpoint_errors(flow: Tensor, pictures: Tensor, step: Tensor) -> tuple[float, float]:
    """Return the mean length in pixels by which fields (N, S - 1, 2, H, W) miss the step, and that of no motion.

    Counted where there is something to see: where the picture changes along x or y by more than .03.
    """
    true = step[:, None, :, None, None].expand_as(flow)
    first = pictures[:, :-1, 0]
    seen = (torch.gradient(first, dim=-1)[0].abs() > 0.03) | (torch.gradient(first, dim=-2)[0].abs() > 0.03)
    return (flow - true).norm(dim=2)[seen].mean().item(), true.norm(dim=2)[seen].mean().item()
