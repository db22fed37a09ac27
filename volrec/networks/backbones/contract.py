"""What every 2D network of this folder keeps."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.networks.facts import suggest
from volrec.networks.layers import ConvUnit, scale_channels

__all__ = ["Backbone"]


class Backbone(nn.Module):
    """A 2D network: slices (N, C, H, W) to maps (N, num_maps, h, w), and maps to features (N, num_features).

    A subclass sets `trunk` (slices to maps) and `tails`, then calls `add_tail`.

    Attributes
    ----------
    trunk : nn.Module
        Slices to maps, up to and with the paper's last pool before fully connected layers or global pooling.
    tails : dict
        Class attribute: the fully connected layers the paper has, name to size (``{"fc6": 4096, "fc7": 4096}``).
    stem_stride : int
        Class attribute: the paper's stride in the plane of the first layer that has one (conv1, or pool1 of VGG-16).
    frame_size : tuple of int
        Class attribute: the paper's slice size (H, W).
    grid : tuple of int
        Class attribute: size (h, w) of the maps of such slices, which the first fully connected layer reads. Adapted
        networks are pooled to it before, which changes nothing at the paper's size.
    smallest : tuple of int
        Smallest (H, W).
    exact : tuple of int, optional
        The only (H, W): `frame_size`, with ``faithful=True`` and fully connected layers.
    num_maps, num_features : int
        Channels of the maps; length of the features.
    architecture : dict
        The arguments of `create_backbone` that rebuild it, the name as ``"backbone"`` (set there; plain JSON types).
    """

    tails: ClassVar[dict[str, int]] = {}
    stem_stride: ClassVar[int] = 2
    frame_size: ClassVar[tuple[int, int]] = (224, 224)
    grid: ClassVar[tuple[int, int]] = (7, 7)
    trunk: nn.Module
    smallest: tuple[int, int]
    exact: tuple[int, int] | None = None
    num_maps: int
    num_features: int
    architecture: dict[str, Any]

    def least(self, side: int, stem_stride: int) -> tuple[int, int]:
        """Return the smallest (H, W) of a network that needs `side` with the paper's stem: less with a finer one."""
        side = max(16, -(-side * stem_stride // self.stem_stride))
        return side, side

    def add_tail(self, tail: str, *, faithful: bool, width: float, dropout: float, name: str) -> None:
        """Add what turns maps into features.

        Parameters
        ----------
        tail : str
            ``"pool"``, a name of `tails` (the layers up to that one), or ``"last"``: as the paper's network ends, the
            last of `tails` or else the pool.
        faithful, width, dropout
            As for `create_backbone`.
        name : str
            Of the network, for the message.
        """
        if tail == "last":
            tail = [*self.tails][-1] if self.tails else "pool"
        if tail == "pool":
            self.tail: nn.Module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.num_features = self.num_maps
            return
        if tail not in self.tails:
            raise ConfigError(
                f"{name} has no {tail}.",
                remedy=f"Choose {' or '.join(['pool', *self.tails])}, or another backbone.",
                where="network.options.backbone",
                code="backbone",
            )
        self.exact = self.frame_size if faithful else None
        layers: dict[str, nn.Module] = {} if faithful else {"pool": nn.AdaptiveAvgPool2d(self.grid)}
        layers["flatten"] = nn.Flatten()
        features = self.num_maps * self.grid[0] * self.grid[1]
        for layer, size in self.tails.items():
            out = scale_channels(size, width)
            layers |= {
                layer: nn.Linear(features, out),
                f"relu{layer[-1]}": nn.ReLU(),
                f"drop{layer[-1]}": nn.Dropout(dropout),
            }
            features = out
            if layer == tail:
                break
        self.tail = nn.Sequential()
        for layer, module in layers.items():
            self.tail.add_module(layer, module)
        self.num_features = features

    def end_at(self, layer: str) -> None:
        """End the trunk at a convolution, before its ReLU: the maps are then what it computes and normalises.

        For networks whose tail is the pool. `architecture` stays that of the whole network.

        Parameters
        ----------
        layer : str
            One of the convolutions that the trunk is a plain row of, such as ``"conv5_3"`` of VGG-16.

        Raises
        ------
        ConfigError
            When there is no such convolution.
        """
        parts = dict(self.trunk.named_children()) if isinstance(self.trunk, nn.Sequential) else {}
        known = {name: part for name, part in parts.items() if isinstance(part, ConvUnit)}
        if layer not in known:
            name = self.architecture["backbone"]
            raise ConfigError(
                f"{name} has no convolution {layer!r} to end at.",
                remedy=f"{suggest(layer, known)}Known: {', '.join(known)}."
                if known
                else "Leave it out: the last maps are read then.",
                where="network.options",
                code="network-option",
            )
        for name in list(parts)[list(parts).index(layer) + 1 :]:
            delattr(self.trunk, name)
        known[layer].relu = False
        self.num_maps = self.num_features = known[layer].get_parameter("conv.weight").shape[0]

    def forward_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, num_maps, h, w) of slices (N, C, H, W)."""
        return self.trunk(x)

    def forward_tail(self, maps: Tensor) -> Tensor:
        """Return features (N, num_features) of maps."""
        return self.tail(maps)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, num_features) of slices (N, C, H, W)."""
        return self.forward_tail(self.forward_maps(x))
