"""Pooling as Caffe defines it, and global pooling by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AdaptivePool3d", "CaffeMaxPool3d"]


class CaffeMaxPool3d(nn.Module):
    """Max pooling whose last window may hang over the edge (Caffe's rounding up), with stride equal to the kernel.

    Parameters
    ----------
    kernel : tuple of int
        (T, H, W).
    symmetric : bool
        True: one row and column of padding on both sides in the plane, as ports of C3D have it. The output has the
        same size but the windows lie one voxel further to the start.
    """

    def __init__(self, kernel: tuple[int, int, int], *, symmetric: bool = False) -> None:
        super().__init__()
        self.kernel = kernel
        self.padding = (0, int(symmetric), int(symmetric))

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima (B, C, T', H', W'); every voxel of the input lies in one window."""
        return F.max_pool3d(x, self.kernel, self.kernel, self.padding, ceil_mode=True)

    def extra_repr(self) -> str:
        """Show kernel and padding when the module is printed."""
        return f"kernel={self.kernel}, padding={self.padding}"


class AdaptivePool3d(nn.Module):
    """Global pooling of maps (B, C, T, H, W) to (B, F): mean, max, or both side by side (F = 2C)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    @property
    def multiple(self) -> int:
        """Features a channel gives."""
        return 2 if self.kind == "mean-max" else 1

    def forward(self, x: Tensor) -> Tensor:
        """Pool over every position."""
        if self.kind == "mean":
            return x.mean((2, 3, 4))
        if self.kind == "max":
            return x.amax((2, 3, 4))
        return torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], dim=1)

    def extra_repr(self) -> str:
        """Show the kind when the module is printed."""
        return self.kind
