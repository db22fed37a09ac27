"""A 3D convolution that takes one clip as fast as several, and a strided 1x1 one that leaves memory whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Conv3d", "PointwiseConv2d", "convolve3d"]


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d`, faster where a single clip is scored on a CPU; numbers differ in the last digits only."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution (B, F, T', H', W') of (B, C, T, H, W)."""
        return convolve3d(self, input, self.padding)  # type: ignore[arg-type]


def convolve3d(layer: nn.Conv3d, x: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Return what `layer` gives of `x` (B, C, T, H, W) with this padding.

    torch (2.13) hands a batch of one with small maps to its slow implementation, which takes up to six times as long as
    oneDNN (``tests/performance/bench_networks.py``). Without gradients oneDNN can be asked for directly.
    """
    if (
        # First: an exported network may leave the batch open, and a traced one may run elsewhere.
        not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and x.ndim == 5
        and len(x) == 1
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
    ):
        sizes = (list(padding), list(layer.stride), list(layer.dilation))
        return torch.mkldnn_convolution(x, layer.weight, layer.bias, *sizes, layer.groups)
    if padding[0] and x.shape[2] < layer.kernel_size[0] and not torch.compiler.is_compiling():
        # With padding of its own on so few slices (5 of a kernel of 7, stride 2) oneDNN's backward pass writes past
        # its memory (torch 2.13, ``tests/performance/crash_onednn.py``).
        x = F.pad(x, (0, 0, 0, 0, padding[0], padding[0]))
        padding = (0, *padding[1:])
    return F.conv3d(x, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 `torch.nn.Conv2d` with a stride: every stride-th position is taken first, then all of them are mixed.

    The numbers are the same. oneDNN (torch 2.13, processor, two threads) writes past its memory in the backward pass
    of the strided one where channels come last, fewer than 16 of them go in, and the batch is odd: the process dies
    (``tests/performance/crash_onednn.py``).

    Parameters
    ----------
    in_channels, out_channels : int
        Channels.
    stride : int
        Of both axes.
    bias : bool
        Whether there is one.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution (N, F, ceil(H / stride), ceil(W / stride)) of (N, C, H, W)."""
        return F.conv2d(input[:, :, :: self.stride[0], :: self.stride[1]], self.weight, self.bias)
