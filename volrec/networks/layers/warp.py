"""Pull a picture back along a field of displacements."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["warp"]


def warp(image: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``warped(h, w) = image(h + y, w + x)``: backward warping with bilinear interpolation.

    Where `flow` says how what lies in one slice moved to the next, and `image` is that next slice, the first is
    restored. Displacements of whole pixels give exactly the pixels they point at. (`torch.nn.functional.grid_sample`
    does not: it reads positions as fractions of the size, and rounds them.)

    Parameters
    ----------
    image : Tensor
        Pictures (N, C, H, W) of any float type.
    flow : Tensor
        Displacements (N, 2, H, W) in pixels, x (along W) first, then y (along H).

    Returns
    -------
    warped : Tensor
        (N, C, H, W) in the type of `image`. A position outside of the picture gives the nearest pixel of its edge.
    valid : Tensor
        Bool (N, 1, H, W): the position lies inside of the picture. False also where the displacement is no number;
        such a pixel is nan in `warped`.
    """
    height, width = image.shape[-2:]
    # In float32 at least: bfloat16 cannot count the pixels of a row beyond 256.
    kind = torch.promote_types(torch.promote_types(image.dtype, flow.dtype), torch.float32)
    moved = flow.to(kind)
    x = moved[:, 0] + torch.arange(width, device=image.device, dtype=kind)
    y = moved[:, 1] + torch.arange(height, device=image.device, dtype=kind)[:, None]
    valid = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    # Clamped again as integers: nan has no integer, and may become any.
    left, top = x.detach().long().clamp(0, width - 1), y.detach().long().clamp(0, height - 1)
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    to_right, to_bottom = (x - left)[:, None], (y - top)[:, None]
    flat = image.to(kind).flatten(2)

    def pixels(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).flatten(1)[:, None].expand(-1, flat.shape[1], -1)
        return flat.gather(2, index).unflatten(2, (height, width))

    above = pixels(top, left) * (1 - to_right) + pixels(top, right) * to_right
    below = pixels(bottom, left) * (1 - to_right) + pixels(bottom, right) * to_right
    return (above * (1 - to_bottom) + below * to_bottom).to(image.dtype), valid[:, None]
