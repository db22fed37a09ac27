"""2D networks that encode the slices of a slicewise network: the papers' own, and those of MONAI and timm by name.

`create_backbone` is the entrance. A name resolves in the table of this file, after ``monai:`` among the networks of
MONAI, after ``timm:`` among those of timm (an extra).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from volrec.errors import ConfigError
from volrec.networks.facts import suggest

if TYPE_CHECKING:
    from volrec.networks.backbones.contract import Backbone

__all__ = ["BACKBONES", "PREFIXES", "create_backbone"]

# Name -> (file of this folder, class).
_HOME = {
    "hybrid": ("hybrid", "Hybrid"),
    "alexnet": ("alexnet", "AlexNet"),
    "cnn-m-2048": ("cnn_m", "CNNM2048"),
    "vgg-16": ("vgg", "VGG16"),
    "googlenet": ("googlenet", "GoogLeNet"),
    "bn-inception": ("bn_inception", "BNInception"),
    "densenet-121": ("densenet", "DenseNet121"),
}
BACKBONES = tuple(_HOME)
PREFIXES = ("monai:", "timm:")


def create_backbone(
    name: str,
    *,
    in_channels: int,
    faithful: bool = False,
    width: float = 1.0,
    norm: str = "batch",
    tail: str = "pool",
    dropout: float = 0.0,
) -> Backbone:
    """Build a 2D network by name.

    Parameters
    ----------
    name : str
        One of `BACKBONES`, ``monai:NAME`` or ``timm:NAME``.
    in_channels : int
        Channels of a slice.
    faithful : bool
        The paper's network for the paper's slice size; False adapts it to any size.
    width : float
        Scale of all channel counts (networks of MONAI and timm stay as they are).
    norm : {"none", "batch", "instance", "group"}
        Normalisation after every convolution where the paper has none or batch normalisation; not used when `faithful`.
    tail : {"pool", "fc6", "fc7"}
        What turns maps into features: the mean over the plane, or the paper's fully connected layers up to that one.
    dropout : float
        After each fully connected layer of the tail.

    Raises
    ------
    ConfigError
        For an unknown name or a tail that the network does not have.
    """
    if name.startswith(PREFIXES):
        from volrec.networks.backbones.foreign import foreign_backbone

        return foreign_backbone(name, in_channels=in_channels, tail=tail)
    if name not in _HOME:
        raise ConfigError(
            f"there is no backbone {name!r}.",
            remedy=f"{suggest(name, BACKBONES)}Known: {', '.join(BACKBONES)}, monai:NAME, timm:NAME.",
            where="network.options.backbone",
            code="backbone",
        )
    file, kind = _HOME[name]
    make = getattr(import_module(f"{__name__}.{file}"), kind)
    return make(in_channels=in_channels, faithful=faithful, width=width, norm=norm, tail=tail, dropout=dropout)
