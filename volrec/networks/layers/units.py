"""The step most networks are made of: convolution, normalisation, ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.networks.layers.blocks import norm_layer
from volrec.networks.layers.convolution import Conv3d
from volrec.networks.layers.same import SameConv3d

__all__ = ["ConvUnit", "CrossChannelNorm"]


class ConvUnit(nn.Module):
    """Convolution, normalisation by name, ReLU; in 2D or 3D.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels.
    kernel_size, stride, padding, groups : int or tuple of int
        As in `torch.nn.Conv3d`. ``padding="same"`` is TensorFlow's SAME (3D only).
    dims : {2, 3}
        Number of spatial axes.
    norm : {"none", "batch", "instance", "group"}
        After the convolution.
    bias : bool, optional
        None: a bias where there is no normalisation.
    eps : float
        Of the normalisation.
    relu : bool
        False leaves the ReLU out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        groups: int = 1,
        dims: int = 3,
        norm: str = "batch",
        bias: bool | None = None,
        eps: float = 1e-5,
        relu: bool = True,
    ) -> None:
        super().__init__()
        bias = norm == "none" if bias is None else bias
        self.conv: nn.Module
        if padding == "same":
            self.conv = SameConv3d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)  # type: ignore[arg-type]
        else:
            kind = nn.Conv2d if dims == 2 else Conv3d
            self.conv = kind(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)  # type: ignore[arg-type]
        self.norm = norm_layer(norm, out_channels, dims=dims)
        if norm != "none":
            self.norm.eps = eps  # type: ignore[assignment]
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations."""
        x = self.norm(self.conv(x))
        return F.relu(x, inplace=True) if self.relu else x


class CrossChannelNorm(nn.Module):
    """Local response normalisation over neighbouring channels, ``x / (k + alpha * sum of squares) ** beta``.

    Parameters
    ----------
    size : int
        Channels in the sum, odd.
    alpha, beta, k : float
        Constants.
    mean : bool
        True: alpha times the mean of the squares (Caffe, torch). False: times their sum (Krizhevsky et al. 2012).
    """

    def __init__(self, size: int, *, alpha: float, beta: float, k: float, mean: bool) -> None:
        super().__init__()
        self.size, self.beta, self.k = size, beta, k
        self.alpha = alpha if mean else alpha * size

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (N, C, ...) of the same shape."""
        # In half precision the square of an activation above 255 is infinite, and the quotient silently 0.
        exact = x.float() if x.dtype == torch.float16 else x
        return F.local_response_norm(exact, self.size, alpha=self.alpha, beta=self.beta, k=self.k).to(x.dtype)

    def extra_repr(self) -> str:
        """Show the constants when the module is printed."""
        return f"{self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}"
