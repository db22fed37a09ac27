"""Densely connected 3D convolutions: blocks, the transitions between them, the temporal transition layer.

Names of modules are those of the common DenseNet checkpoints (``denselayer1.norm1``, ``conv1``, ``norm2``, ``conv2``;
``norm``, ``conv`` in a transition), so that importing one is a matter of renaming at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from volrec.networks.layers.blocks import norm_layer
from volrec.networks.layers.convolution import Conv3d
from volrec.networks.layers.same import SameConv3d

__all__ = ["DenseBlock", "DenseLayer", "MeanPool3d", "TemporalTransition", "Transition"]

_SMALL = 20480
"""Channels x slices x rows up to which torch takes a batch of one for too small for its fast convolution."""


class DenseLayer(nn.Module):
    """Normalisation, ReLU, 1x1x1, normalisation, ReLU, 3x3x3: `growth` new maps from all maps so far.

    Parameters
    ----------
    in_channels, bottleneck, growth : int
        Channels of the input, after the 1x1x1 and after the 3x3x3 convolution.
    norm : {"none", "batch", "instance", "group"}
        Normalisation; convolutions have a bias where there is none.
    dropout : float
        Share of the values of the new maps that is dropped.
    """

    def __init__(self, in_channels: int, *, bottleneck: int, growth: int, norm: str, dropout: float) -> None:
        super().__init__()
        bias = norm == "none"
        self.norm1 = norm_layer(norm, in_channels, dims=3)
        self.conv1 = Conv3d(in_channels, bottleneck, 1, bias=bias)
        self.norm2 = norm_layer(norm, bottleneck, dims=3)
        self.conv2 = _Conv3x3x3(bottleneck, growth, 3, padding=1, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, *maps: Tensor) -> Tensor:
        """Return new maps (B, growth, T, H, W) of maps (B, C, T, H, W), given whole or as parts of the channels."""
        x = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
        x = self.conv1(_activate(self.norm1, x))
        return self.dropout(self.conv2(_activate(self.norm2, x)))


class DenseBlock(nn.Module):
    """Dense layers, each reading the input of the block and the new maps of all layers before it.

    Parameters
    ----------
    in_channels, layers, bottleneck, growth : int
        Channels of the input, number of layers, and channels within and after each.
    norm, dropout
        As in `DenseLayer`.
    recompute : bool
        True: in training the insides of a layer are computed again in the backward pass instead of being kept. Same
        numbers; running statistics count every batch once.

    Attributes
    ----------
    out_channels : int
        ``in_channels + layers * growth``.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        layers: int,
        bottleneck: int,
        growth: int,
        norm: str,
        dropout: float,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        for index in range(layers):
            channels = in_channels + index * growth
            layer = DenseLayer(channels, bottleneck=bottleneck, growth=growth, norm=norm, dropout=dropout)
            self.add_module(f"denselayer{index + 1}", layer)
        self.out_channels = in_channels + layers * growth
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """Return all maps (B, out_channels, T, H, W): the input, then those of every layer."""
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            for layer in self.children():
                x = torch.cat([x, layer(x)], dim=1)
            return x
        # The parts are handed over one by one: kept as they are, they cost no copy for every layer.
        maps = [x]
        for layer in self.children():
            maps.append(checkpoint(layer, *maps, use_reentrant=False, context_fn=_contexts(layer)))
        return torch.cat(maps, dim=1)


class Transition(nn.Sequential):
    """Normalisation, ReLU, 1x1x1 convolution, mean pool.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels.
    stride : tuple of int
        Kernel and stride of the pool (T, H, W).
    norm : {"none", "batch", "instance", "group"}
        Normalisation.
    exact : bool
        True: order and rounding down as published. False: no slice, row or column is lost (`MeanPool3d`), and the pool
        comes before the convolution, which gives the same numbers on a fraction of the voxels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: tuple[int, int, int], norm: str, exact: bool
    ) -> None:
        super().__init__()
        self.add_module("norm", norm_layer(norm, in_channels, dims=3))
        self.add_module("relu", nn.ReLU(inplace=norm != "none"))
        conv = Conv3d(in_channels, out_channels, 1, bias=norm == "none")
        pool = MeanPool3d(stride, exact=exact)
        for name, layer in [("conv", conv), ("pool", pool)] if exact else [("pool", pool), ("conv", conv)]:
            self.add_module(name, layer)


class TemporalTransition(nn.Module):
    """Temporal transition layer: branches of several temporal depths side by side.

    Every branch is normalisation, ReLU and one convolution of (depth, 3, 3), or (1, 1, 1) where the depth is 1, with
    SAME padding; where the depth is even, the odd slice of padding lies at the end.

    Parameters
    ----------
    in_channels, branch_channels : int
        Channels of the input and of each branch.
    depths : tuple of int
        Temporal depth of each branch, in slices.
    norm : {"none", "batch", "instance", "group"}
        Normalisation.
    pool : nn.Module, optional
        Pools the maps of each branch. A pool acts on every channel alone, so that pooling before the branches are put
        together saves the memory of the whole.
    """

    def __init__(
        self,
        in_channels: int,
        branch_channels: int,
        *,
        depths: tuple[int, ...],
        norm: str,
        pool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for index, depth in enumerate(depths, 1):
            kernel = (1, 1, 1) if depth == 1 else (depth, 3, 3)
            branch = nn.Sequential()
            branch.add_module("norm", norm_layer(norm, in_channels, dims=3))
            branch.add_module("relu", nn.ReLU(inplace=norm != "none"))
            branch.add_module("conv", SameConv3d(in_channels, branch_channels, kernel, bias=norm == "none"))
            self.add_module(f"branch{index}", branch)
        self.pool = nn.Identity() if pool is None else pool
        self.branches = len(depths)
        self.out_channels = branch_channels * len(depths)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (B, branches x branch_channels, T', H', W')."""
        branches = (self.get_submodule(f"branch{index}") for index in range(1, self.branches + 1))
        return torch.cat([self.pool(branch(x)) for branch in branches], dim=1)


class MeanPool3d(nn.Module):
    """Mean pool with stride equal to its kernel.

    Parameters
    ----------
    kernel : tuple of int
        (T, H, W).
    exact : bool
        True: what is left over at the end is dropped. False: the last window is the mean of as many voxels as are
        left, so that none is lost.
    """

    def __init__(self, kernel: tuple[int, int, int], *, exact: bool) -> None:
        super().__init__()
        self.kernel = kernel
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        """Return the means (B, C, T', H', W')."""
        # torch refuses kernels larger than the maps.
        kernel = self.kernel if self.exact else [min(k, int(n)) for k, n in zip(self.kernel, x.shape[2:], strict=True)]
        return F.avg_pool3d(x, kernel, self.kernel, ceil_mode=not self.exact)

    def extra_repr(self) -> str:
        """Show the sizes when the module is printed."""
        return f"kernel={self.kernel}, exact={self.exact}"


class _Conv3x3x3(Conv3d):
    """A 3x3x3 convolution with padding 1 that gives a single clip to the processor as two half clips in training.

    Where gradients are needed only a batch of two gets the fast implementation (see `Conv3d`). The halves overlap by
    the slices that the kernel reaches.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution (B, F, T, H, W)."""
        batch, channels, slices, height, _ = input.shape
        small = slices > 1 and channels * slices * height <= _SMALL
        if batch > 1 or not small or input.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(input)
        half = -(-slices // 2)
        x = F.pad(input[0], (0, 0, 0, 0, 1, 1 + 2 * half - slices))
        halves = torch.stack([x[:, : half + 2], x[:, half:]])
        y = F.conv3d(halves, self.weight, self.bias, padding=(0, 1, 1))
        return y.transpose(0, 1).flatten(1, 2)[None, :, :slices]


def _activate(norm: nn.Module, x: Tensor) -> Tensor:
    """Return ReLU after a normalisation, in place where that does not overwrite `x`, which others read as well."""
    y = norm(x)
    return F.relu(y, inplace=y is not x)


def _contexts(layer: nn.Module) -> Any:
    return lambda: (nullcontext(), _uncounted(layer))


@contextmanager
def _uncounted(layer: nn.Module) -> Iterator[None]:
    """Keep the running statistics as they are: the first forward pass has counted this batch already."""
    norms = [module for module in layer.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, batches) in zip(norms, kept, strict=True):
        norm.momentum = 0.0
        norm.num_batches_tracked = None if batches is None else batches.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = batches
