"""Pooling as Caffe defines it, and global pooling by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AdaptivePool3d", "CaffeMaxPool3d", "RunningCentre"]


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
        # On a CPU torch pools many times faster in this layout, and convolutions of single clips often give the other.
        x = x.contiguous(memory_format=torch.channels_last_3d)
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


class RunningCentre(nn.Module):
    """Take from features (B, F) their running mean over the training studies.

    What all studies have in common is otherwise by far the largest part of maps whose positions are kept apart, and a
    linear layer on top would learn little else for long. Batch normalisation would also blow up the positions where
    nothing ever differs; here every position keeps its scale.

    Parameters
    ----------
    features : int
        Length of the feature vector.
    momentum : float
        Share of a new batch in the running mean; the first batches are averaged evenly.
    """

    mean: Tensor
    batches: Tensor

    def __init__(self, features: int, *, momentum: float = 0.03) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features less their mean; in training mode the batch is counted first."""
        if self.training:
            with torch.no_grad():
                self.batches += 1
                share = (1 / self.batches.to(torch.float32)).clamp(min=self.momentum)
                self.mean += share * (x.detach().to(self.mean).mean(0) - self.mean)
        return x - self.mean.to(x)

    def extra_repr(self) -> str:
        """Show the size when the module is printed."""
        return f"{len(self.mean)}, momentum={self.momentum}"
