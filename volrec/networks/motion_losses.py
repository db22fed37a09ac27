"""What MotionNet learns from: how well a slice is restored from the next one, and how smooth the fields are.

Y. Zhu, Z. Lan, S. Newsam, A. Hauptmann, "Hidden Two-Stream Convolutional Networks for Action Recognition", ACCV 2018;
constants are those of the released files.

At every level and for every pair of slices, both shrunk to the level, the second is warped back by the field:

pixel : generalised Charbonnier ``(d^2 + .001^2) ^ .4`` of 255 times the difference.
smooth : ``(d^2 + .001^2) ^ .3`` of the differences along x and y of both components, in pixels of the level.
ssim : ``1 - SSIM`` in windows of 8 x 8 that lie side by side, weighted by a Gaussian of standard deviation 4/3.

The first two are means over positions that are farther from the edge than a tenth of the shorter side: what moved out
of the picture cannot be found in it. Before all else slices are normalised locally (`normalise_locally`). With equal
slices and no motion ssim is 0, pixel at its floor of .00398, and smooth at .0158 for each component and direction.

Ambiguity and the argument that settles it
------------------------------------------
scale_weights : what the weights .16, .08, .04, .02, .01 of levels 6 to 2 multiply. The released files: ssim only, which
    is a sum over windows, channels and pairs there ("ssim"). The paper's text: the loss of the whole level ("whole").
    The re-implementation in deepethogram: smooth only ("smooth"). In the last two ssim is a mean.

Ours: the released layer divides pixel and smooth by the size of the batch once more than their mean does, so that their
share depends on it; here it does not. Windows that hang over the edge (all of them, at levels smaller than 8) weigh
what lies in the picture up to one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks.facts import suggest
from volrec.networks.layers.warp import warp

__all__ = [
    "LEVEL_WEIGHTS",
    "SCALE_WEIGHTS",
    "motion_loss",
    "normalise_locally",
    "pixel_loss",
    "smoothness_loss",
    "ssim_loss",
]

SCALE_WEIGHTS = ("ssim", "whole", "smooth")
LEVEL_WEIGHTS = {2: 0.01, 3: 0.02, 4: 0.04, 5: 0.08, 6: 0.16}
_EPSILON = 0.001
_WINDOW = 8
_BORDER = 0.1


def motion_loss(slices: Tensor, flows: Sequence[Tensor], *, scale_weights: str = "ssim") -> Tensor:
    """Return the loss of displacements at several levels, a scalar.

    Parameters
    ----------
    slices : Tensor
        (N, n, C, H, W), of mean 0 and a standard deviation of about .25.
    flows : sequence of Tensor
        (N, n - 1, 2, h, w) of levels 2, 3, …, in pixels of the level, as `MotionNet` gives them.
    scale_weights : {"ssim", "whole", "smooth"}
        What the weights of the levels multiply; see the head of this file.

    Raises
    ------
    ConfigError
        For another name.
    """
    if scale_weights not in SCALE_WEIGHTS:
        raise ConfigError(
            f"there are no scale_weights {scale_weights!r}.",
            remedy=f"{suggest(str(scale_weights), SCALE_WEIGHTS)}Known: {', '.join(SCALE_WEIGHTS)}.",
            where="network.options.scale_weights",
            code="network-option",
        )
    wide = torch.promote_types(slices.dtype, torch.float32)
    batch, count = slices.shape[:2]
    pictures = normalise_locally(slices.to(wide).flatten(0, 1))
    total = pictures.new_zeros(())
    for level, flow in enumerate(flows, 2):
        # Halved with rounding up, as the network does; a last row or column that is alone stays as it is.
        pictures = F.avg_pool2d(pictures, 2, ceil_mode=True)
        stacks = pictures.unflatten(0, (batch, count))
        first, second = (part.flatten(0, 1) for part in (stacks[:, :-1], stacks[:, 1:]))
        field = flow.to(wide).flatten(0, 1)
        restored = warp(second, field)[0]
        pixel, smooth, ssim = pixel_loss(first, restored), smoothness_loss(field), ssim_loss(first, restored)
        weight = LEVEL_WEIGHTS[level]
        if scale_weights == "whole":
            total = total + weight * (pixel + smooth + ssim)
        elif scale_weights == "smooth":
            total = total + pixel + weight * smooth + ssim
        else:
            height, width = first.shape[-2:]
            windows = math.ceil(height / _WINDOW) * math.ceil(width / _WINDOW) * first.shape[1] * (count - 1)
            total = total + pixel + smooth + weight * windows * ssim
    return total


def normalise_locally(pictures: Tensor) -> Tensor:
    """Return pictures (N, C, H, W) over ``(1 + sum of squares of 9 neighbouring channels / 9) ^ .7``."""
    return F.local_response_norm(pictures, 9, alpha=1.0, beta=0.7, k=1.0)


def pixel_loss(first: Tensor, restored: Tensor) -> Tensor:
    """Return the mean over the inner positions of ``((255 d)^2 + .001^2) ^ .4``, of pictures (N, C, h, w)."""
    border = _border(first)
    return _mean_charbonnier(255 * _inner(first - restored, border), 0.4)


def smoothness_loss(flow: Tensor) -> Tensor:
    """Return how fields (N, 2, h, w) change: a mean over positions, summed over both components and directions."""
    border = _border(flow)
    changes = (_inner(flow.diff(dim=axis), border, like=flow) for axis in (-1, -2))
    # Both components have as many positions: their sum is twice their mean.
    along_x, along_y = (2 * _mean_charbonnier(change, 0.3) for change in changes)
    return along_x + along_y


def ssim_loss(first: Tensor, restored: Tensor) -> Tensor:
    """Return the mean over windows and channels of ``1 - SSIM``, of pictures (N, C, h, w)."""
    height, width = first.shape[-2:]
    fill = (0, -width % _WINDOW, 0, -height % _WINDOW)
    place = torch.arange(_WINDOW, device=first.device, dtype=first.dtype) - _WINDOW // 2
    bell = torch.exp(-place.square() / (2 * (2 * _WINDOW / 12) ** 2))
    weights = bell[:, None] * bell

    def pooled(maps: Tensor) -> Tensor:
        tiles = F.pad(maps, fill).unflatten(-1, (-1, _WINDOW)).unflatten(-3, (-1, _WINDOW))
        return (tiles * weights[:, None]).sum((-3, -1))

    inside = pooled(torch.ones_like(first[:1, :1]))
    x, y = pooled(first) / inside, pooled(restored) / inside
    spread_x = pooled(first.square()) / inside - x.square()
    spread_y = pooled(restored.square()) / inside - y.square()
    shared = pooled(first * restored) / inside - x * y
    mean_part = (2 * x * y + 1e-4) / (x.square() + y.square() + 1e-4)
    shape_part = (2 * shared + 1e-3) / (spread_x + spread_y + 1e-3)
    return (1 - mean_part * shape_part).mean()


def _border(maps: Tensor) -> int:
    """Return how many positions at each edge do not count."""
    return math.floor(_BORDER * min(maps.shape[-2:]) + 0.5)


def _inner(maps: Tensor, border: int, *, like: Tensor | None = None) -> Tensor:
    """Return maps without the border of pictures of the size of `like`; differences may have one position less."""
    height, width = (maps if like is None else like).shape[-2:]
    return maps[..., border : height - border, border : width - border]


def _mean_charbonnier(difference: Tensor, power: float) -> Tensor:
    """Return the mean of ``(d^2 + .001^2) ^ power``; 0 where a side of one pixel leaves no differences."""
    return (difference.square() + _EPSILON**2).pow(power).sum() / max(difference.numel(), 1)
