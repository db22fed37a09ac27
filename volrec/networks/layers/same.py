"""TensorFlow's SAME padding: ceil(n / stride) positions come out, and an odd voxel of padding goes to the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.networks.layers.convolution import Conv3d, convolve3d

__all__ = ["SameConv3d", "SameMaxPool3d", "same_padding"]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding (before, after) of one axis of `size` positions."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv3d(Conv3d):
    """A 3D convolution with SAME padding of zeros, whatever the size of its input (B, C, T, H, W).

    Parameters
    ----------
    in_channels, out_channels : int
        Channels.
    kernel_size, stride : int or tuple of int
        As in `torch.nn.Conv3d`; kernels of even size get the extra voxel at the end.
    **rest
        ``bias`` and ``groups`` of `torch.nn.Conv3d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        **rest: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, **rest)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution (B, F, ceil(T / s), ceil(H / s), ceil(W / s))."""
        pads = _pads(x.shape[2:], self.kernel_size, self.stride)
        padding = tuple(before for before, _ in pads)
        if any(before != after for before, after in pads):
            # The convolution itself can pad both sides alike only.
            x = F.pad(x, [side for pair in reversed(pads) for side in pair])
            padding = (0, 0, 0)
        return convolve3d(self, x, padding)


class SameMaxPool3d(nn.Module):
    """Max pooling with SAME padding that never wins (minus infinity).

    Parameters
    ----------
    kernel_size, stride : int or tuple of int
        (T, H, W).
    """

    def __init__(self, kernel_size: int | Sequence[int], stride: int | Sequence[int]) -> None:
        super().__init__()
        self.kernel_size = _triple(kernel_size)
        self.stride = _triple(stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima (B, C, ceil(T / s), ceil(H / s), ceil(W / s))."""
        # On a CPU torch pools many times faster in this layout, and convolutions of single clips often give the other.
        x = x.contiguous(memory_format=torch.channels_last_3d)
        pads = _pads(x.shape[2:], self.kernel_size, self.stride)
        if any(before != after and step == 1 for (before, after), step in zip(pads, self.stride, strict=True)):
            x = F.pad(x, [side for pair in reversed(pads) for side in pair], value=float("-inf"))
            return F.max_pool3d(x, self.kernel_size, self.stride)
        # A last window that hangs over the end is what one more voxel of padding there would give, without the copy.
        return F.max_pool3d(x, self.kernel_size, self.stride, [before for before, _ in pads], ceil_mode=True)

    def extra_repr(self) -> str:
        """Show the sizes when the module is printed."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


def _pads(sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> list[tuple[int, int]]:
    return [same_padding(int(n), k, s) for n, k, s in zip(sizes, kernel, stride, strict=True)]


def _triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    first, second, third = (value,) * 3 if isinstance(value, int) else value
    return first, second, third
