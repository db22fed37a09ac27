"""What the layers of an inflated 2D network are made of: the rule along T, and convolution and pool with one axis more.

J. Carreira, A. Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017. The
conversion of whole networks is `volrec.networks.layers.inflation.inflate_module`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.networks.facts import parameter_error
from volrec.networks.layers.convolution import Conv3d, convolve3d
from volrec.networks.layers.same import same_padding

__all__ = ["TEMPORAL_PADDINGS", "TIME_KERNELS", "TIME_STRIDES", "InflatedConv3d", "InflatedPool3d", "Inflation", "pair"]

TIME_KERNELS = ("cube", "three")
TIME_STRIDES = ("keep", "i3d", "plane")
TEMPORAL_PADDINGS = ("zero", "replicate")
_I3D_FLAT_POOLS = 2
"""Pools at the beginning that leave time alone in I3D."""


@dataclass
class Inflation:
    """The rule by which kernels and strides get their extent along T.

    Attributes
    ----------
    time_kernel : {"cube", "three"}
        A kernel k x k becomes k x k x k (I3D; the larger side where they differ), or no more than 3 x k x k; a kernel
        of 1 x 1 becomes 1 x 1 x 1 either way.
    time_stride : {"keep", "i3d", "plane"}
        "keep": all strides along T are 1. "plane": they are those in the plane. "i3d": the same, but the first two max
        pools with a stride leave time alone. A pool with a stride in the plane but none along T is 1 x k x k.
    temporal_padding : {"zero", "replicate"}
        What convolutions read before the first and after the last slice: zeros, or that slice again. Pools repeat the
        slice, which is no more than leaving out what is not there.
    """

    time_kernel: str = "cube"
    time_stride: str = "keep"
    temporal_padding: str = "replicate"
    strided_max_pools: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a name that is none of these."""
        for name, known in (
            ("time_kernel", TIME_KERNELS),
            ("time_stride", TIME_STRIDES),
            ("temporal_padding", TEMPORAL_PADDINGS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise parameter_error(name, "inflation", "one of " + ", ".join(map(repr, known)), value)

    def convolution(self, kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
        """Return kernel and stride along T of a convolution with these in the plane."""
        return self._depth(kernel), 1 if self.time_stride == "keep" else max(stride)

    def pool(self, kernel: tuple[int, int], stride: tuple[int, int], *, mean: bool) -> tuple[int, int]:
        """Return kernel and stride along T of a pool with these in the plane; to be asked in the network's order."""
        step = max(stride)
        if step == 1:
            return self._depth(kernel), 1
        self.strided_max_pools += not mean
        spared = self.time_stride == "i3d" and not mean and self.strided_max_pools <= _I3D_FLAT_POOLS
        if spared or self.time_stride == "keep":
            return 1, 1
        # A window shorter than its stride would step over slices.
        return max(self._depth(kernel), step), step

    def _depth(self, kernel: tuple[int, int]) -> int:
        side = max(kernel)
        return side if self.time_kernel == "cube" else min(side, 3)


class InflatedConv3d(Conv3d):
    """The 3D twin of a 2D convolution: ceil(T / s) steps come out; the plane is padded as in 2D.

    It starts with the 2D kernel, repeated along T and divided by its depth.

    Parameters
    ----------
    flat : nn.Conv2d
        The 2D convolution.
    rule : Inflation
        Kernel, stride and padding along T.
    padding : tuple of int, optional
        Zeros on both sides of H and of W; None: TensorFlow's SAME on all three axes, an odd one at the end.
    """

    def __init__(self, flat: nn.Conv2d, rule: Inflation, *, padding: tuple[int, int] | None) -> None:
        (height, width), (down, right) = pair(flat.kernel_size), pair(flat.stride)
        depth, step = rule.convolution((height, width), (down, right))
        super().__init__(
            flat.in_channels,
            flat.out_channels,
            (depth, height, width),
            stride=(step, down, right),
            dilation=(1, *pair(flat.dilation)),
            groups=flat.groups,
            bias=flat.bias is not None,
            device=flat.weight.device,
            dtype=flat.weight.dtype,
        )
        self.in_plane = padding
        self.replicate = rule.temporal_padding == "replicate"
        with torch.no_grad():
            self.weight.copy_(flat.weight.unsqueeze(2).expand_as(self.weight) / depth)
            if self.bias is not None and flat.bias is not None:
                self.bias.copy_(flat.bias)
                self.bias.requires_grad_(flat.bias.requires_grad)
        self.weight.requires_grad_(flat.weight.requires_grad)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution (B, F, ceil(T / s), H', W') of (B, C, T, H, W)."""
        sizes = [int(n) for n in input.shape[2:]]
        if self.in_plane is None:
            sides = [same_padding(n, k, s) for n, k, s in zip(sizes, self.kernel_size, self.stride, strict=True)]
        else:
            time = _along_time(sizes[0], self.kernel_size[0], self.stride[0])
            sides = [time, *((zeros, zeros) for zeros in self.in_plane)]
        if self.replicate and any(sides[0]):
            input = F.pad(input, (0, 0, 0, 0, *sides[0]), mode="replicate")
            sides[0] = (0, 0)
        padding = tuple(before for before, _ in sides)
        if any(before != after for before, after in sides):
            # The convolution itself can pad both sides alike only.
            input = F.pad(input, [zeros for side in reversed(sides) for zeros in side])
            padding = (0, 0, 0)
        return convolve3d(self, input, padding)


class InflatedPool3d(nn.Module):
    """The 3D twin of a 2D pool: every slice is pooled by it, then windows of slices.

    Parameters
    ----------
    plane : nn.Module
        The 2D pool.
    rule : Inflation
        Kernel and stride along T.
    kernel, stride : int or tuple of int
        Of the 2D pool.
    mean : bool
        A mean, not a maximum.
    same : bool
        True: windows along T lie as with TensorFlow's SAME padding; False: around every s-th slice.
    """

    def __init__(
        self,
        plane: nn.Module,
        rule: Inflation,
        *,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int],
        mean: bool,
        same: bool = False,
    ) -> None:
        super().__init__()
        # Not as a child: it has no weights, and a list of layers shows this one with its slices.
        self.plane = (plane,)
        self.mean = mean
        self.same = same
        self.kernel, self.stride = rule.pool(pair(kernel), pair(stride), mean=mean)

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled maps (B, C, ceil(T / s), H', W') of maps (B, C, T, H, W)."""
        batch, _, slices = x.shape[:3]
        # On a CPU torch pools many times faster in this layout, in which slices are a batch without a copy.
        x = x.contiguous(memory_format=torch.channels_last_3d)
        x = self.plane[0](x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, slices)).transpose(1, 2)
        if self.kernel == self.stride == 1:
            return x
        pads = (same_padding if self.same else _along_time)(int(slices), self.kernel, self.stride)
        if any(pads):
            x = F.pad(x, (0, 0, 0, 0, *pads), mode="replicate")
        pool = F.avg_pool3d if self.mean else F.max_pool3d
        return pool(x, (self.kernel, 1, 1), (self.stride, 1, 1))

    def extra_repr(self) -> str:
        """Show kernel and stride along T when the module is printed."""
        return f"{self.plane[0]}, kernel={self.kernel}, stride={self.stride}"


def pair(value: Any) -> tuple[int, int]:
    """Return (H, W) of what torch keeps as one number or as two."""
    first, second = (value, value) if isinstance(value, int) else value
    return first, second


def _along_time(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding (before, after) of T slices so that the windows lie around every `stride`-th of them."""
    before = (kernel - 1) // 2
    return before, max((-(-size // stride) - 1) * stride + kernel - size - before, 0)
