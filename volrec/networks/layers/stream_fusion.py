"""Ways to make one map of the maps of two towers.

C. Feichtenhofer, A. Pinz, A. Zisserman, "Convolutional Two-Stream Network Fusion for Video Action Recognition", CVPR
2016.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks.layers.convolution import Conv3d

__all__ = ["FUSIONS", "FUSION_INITS", "MapFusion", "bilinear_pool", "pad_alike"]

FUSIONS = ("sum", "max", "concat", "conv", "bilinear")
FUSION_INITS = ("gaussian", "identity")

_SHARES = {"gaussian": (0.25, 0.75), "identity": (0.5, 0.5)}
_SIGMA = 1.0


class MapFusion(nn.Module):
    """Maps of two towers to one map, position by position: their sum, maximum, both side by side, or a convolution.

    Parameters
    ----------
    kind : {"sum", "max", "concat", "conv"}
        ``conv`` has kernels of 1 x 1 over both maps side by side, and a ReLU.
    channels : (int, int)
        Of the two maps; equal for ``sum`` and ``max``.
    cube : bool
        A convolution of 3 x 3 x 3 (T, h, w) and a ReLU follow; with ``conv`` they take the place of 1 x 1.
    init : {"gaussian", "identity"}
        Convolutions begin as a weighted mean of the two maps, channel by channel, with biases of 0. ``gaussian``:
        weights .25 and .75, spread over the kernel by a Gaussian of sigma 1 whose values sum to 1. ``identity``: .5 and
        .5 in the middle of the kernel.

    Attributes
    ----------
    out_channels : int
        Channels of the map: those of the first tower, or of both.
    """

    def __init__(self, kind: str, channels: tuple[int, int], *, cube: bool, init: str) -> None:
        super().__init__()
        self.kind = kind
        parts = channels if kind in ("concat", "conv") else channels[:1]
        self.out_channels = sum(parts)
        self.conv: nn.Conv3d | None = None
        if cube or kind == "conv":
            side = 3 if cube else 1
            self.out_channels = channels[0]
            self.conv = Conv3d(sum(parts), channels[0], side, padding=side // 2)
            _init_mean(self.conv, parts, init=init)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return maps (B, T, out_channels, h, w) of maps (B, T, C, h, w) of both towers."""
        if self.kind == "sum":
            joined = first + second
        elif self.kind == "max":
            joined = torch.maximum(first, second)
        else:
            joined = torch.cat([first, second], dim=2)
        return joined if self.conv is None else F.relu(self.conv(joined.transpose(1, 2))).transpose(1, 2)


def bilinear_pool(first: Tensor, second: Tensor, *, over_slices: bool) -> Tensor:
    """Return the products of all pairs of channels of two maps, averaged over positions, as unit vectors.

    Parameters
    ----------
    first, second : Tensor
        Maps (B, T, C, h, w) and (B, T, D, h, w).
    over_slices : bool
        Average over the slices as well.

    Returns
    -------
    Tensor
        (B, T, C * D), T being 1 with `over_slices`: the square root of each mean with the sign kept, then the whole
        divided by its L2 norm.
    """
    if over_slices:
        first, second = (maps.transpose(1, 2).flatten(2, 3)[:, None] for maps in (first, second))
    first, second = first.flatten(3), second.flatten(3)
    mean = (first @ second.transpose(2, 3)).float() / first.shape[3]
    # The root has no slope at 0, which is where channels that are never on together lie.
    root = mean.sign() * (mean.abs() + 1e-8).sqrt()
    return F.normalize(root.flatten(2), dim=2).to(first.dtype)


def pad_alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps (N, C, h, w) with zeros after the last row and column of the smaller: at most one of each.

    Raises
    ------
    ConfigError
        Where they differ by more.
    """
    sizes = [tuple(int(side) for side in maps.shape[2:]) for maps in (first, second)]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    if any(height - h > 1 or width - w > 1 for h, w in sizes):
        (h1, w1), (h2, w2) = sizes
        raise ConfigError(
            f"the towers' maps cannot be laid on each other: {h1} x {w1} and {h2} x {w2} positions.",
            remedy="Choose two backbones of the same stride, or the same twice.",
            where="network.options.temporal_backbone",
            code="network-option",
        )
    padded = (F.pad(maps, (0, width - maps.shape[3], 0, height - maps.shape[2])) for maps in (first, second))
    first, second = padded
    return first, second


def _init_mean(conv: nn.Conv3d, parts: tuple[int, ...], *, init: str) -> None:
    """Make a convolution the weighted mean of the maps of `parts` channels each that it reads; see `MapFusion`."""
    side = conv.kernel_size[0]
    offsets = torch.arange(side, dtype=torch.float32) - side // 2
    line = torch.exp(-0.5 * (offsets / _SIGMA) ** 2) if init == "gaussian" else (offsets == 0).float()
    line = line / line.sum()
    kernel = line[:, None, None] * line[:, None] * line
    shares = _SHARES[init] if len(parts) == 2 else (1.0,)
    out = conv.out_channels
    matrix = torch.cat([share * torch.eye(out, part) for share, part in zip(shares, parts, strict=True)], dim=1)
    with torch.no_grad():
        conv.weight.copy_(matrix[:, :, None, None, None] * kernel)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
