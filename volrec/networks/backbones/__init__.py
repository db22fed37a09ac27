"""2D networks that encode the slices of a slicewise network: the papers' own, and those of MONAI and timm by name.

`create_backbone` is the entrance. A name resolves in the table of this file, after ``monai:`` among the networks of
MONAI, after ``timm:`` among those of timm (an extra).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from volrec.errors import ConfigError
from volrec.networks.facts import PAPER, Option, suggest

if TYPE_CHECKING:
    from volrec.networks.backbones.contract import Backbone

__all__ = ["BACKBONES", "PREFIXES", "STEM_STRIDE", "backbone_option", "create_backbone"]

# Name -> (file of this folder, class).
_HOME = {
    "hybrid": ("hybrid", "Hybrid"),
    "alexnet": ("alexnet", "AlexNet"),
    "cnn-m-2048": ("cnn_m", "CNNM2048"),
    "vgg-16": ("vgg", "VGG16"),
    "googlenet": ("googlenet", "GoogLeNet"),
    "bn-inception": ("bn_inception", "BNInception"),
    "densenet-121": ("densenet", "DenseNet121"),
    "resnet-18": ("resnet", "ResNet18"),
    "resnet-34": ("resnet", "ResNet34"),
    "resnet-50": ("resnet", "ResNet50"),
    "efficientnet-lite0": ("efficientnet", "EfficientNetLite0"),
    "inception-v1": ("inception_v1", "InceptionV1"),
}
BACKBONES = tuple(_HOME)
PREFIXES = ("monai:", "timm:")
STEM_STRIDE = Option(
    int,
    None,
    "stride in the plane of the first layer of the backbone that has one; 1 keeps the detail of small canvases "
    "(None: the paper's, 2, or 4 for alexnet)",
    low=1,
    high=4,
)
"""The option of every network that has one of these backbones."""


def backbone_option(
    default: str, *, paper: Any = PAPER, free: tuple[str, ...] = (), use: str = "that encodes a slice"
) -> Option:
    """Return the option that chooses the backbone of a network; see `Option` for `paper` and `free`.

    `use` says in the meaning of the option what the 2D network is there for.
    """
    return Option(
        str,
        default,
        f"2D network {use}; those of monai: and timm: stay as they are: width and norm do not reach them",
        choices=BACKBONES,
        prefixes=PREFIXES,
        paper=paper,
        free=free,
        hint=_hint,
    )


def create_backbone(
    name: str,
    *,
    in_channels: int,
    faithful: bool = False,
    width: float = 1.0,
    norm: str = "batch",
    tail: str = "pool",
    dropout: float = 0.0,
    stem_stride: int | None = None,
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
        Networks of MONAI and timm have their own, and only the default is accepted.
    tail : {"pool", "fc6", "fc7", "last"}
        What turns maps into features: the mean over the plane, or the paper's fully connected layers up to that one;
        "last": as the paper's network ends, with its last fully connected layer or else the mean.
    dropout : float
        After each fully connected layer of the tail.
    stem_stride : int, optional
        Stride in the plane of the first layer that has one, from 1 to the paper's; None: the paper's. A finer one
        keeps the detail of small slices.

    Returns
    -------
    Backbone
        Its ``architecture`` holds these arguments, in plain JSON types: ``create_backbone(name, **others)`` of them
        rebuilds it.

    Raises
    ------
    ConfigError
        For an unknown name, or a tail, stride or normalisation that the network cannot have.
    """
    if name.startswith(PREFIXES):
        # These networks have one form, whatever the network around them is asked for.
        faithful, width, dropout = False, 1.0, 0.0
        backbone = _foreign(name, in_channels=in_channels, norm=norm, tail=tail, stem_stride=stem_stride)
    else:
        backbone = _home(
            name,
            in_channels=in_channels,
            faithful=faithful,
            width=width,
            norm=norm,
            tail=tail,
            dropout=dropout,
            stem_stride=stem_stride,
        )
    backbone.architecture = {
        "backbone": name,
        "in_channels": int(in_channels),
        "faithful": bool(faithful),
        "width": float(width),
        "norm": norm,
        "tail": tail,
        "dropout": float(dropout),
        "stem_stride": None if stem_stride is None else int(stem_stride),
    }
    return backbone


def _foreign(name: str, *, in_channels: int, norm: str, tail: str, stem_stride: int | None) -> Backbone:
    """Build ``monai:NAME`` or ``timm:NAME``."""
    if norm != "batch":
        raise ConfigError(
            f"{name} has normalisation of its own, got norm={norm!r}.",
            remedy="Leave it out, or choose a paper's network.",
            where="network.options.norm",
            code="network-option",
        )
    if stem_stride is not None:
        raise _no_stride(f"{name} has a stem of its own, got stem_stride={stem_stride}.", "choose a paper's network")
    from volrec.networks.backbones.foreign import foreign_backbone

    return foreign_backbone(name, in_channels=in_channels, tail=tail)


def _home(name: str, *, faithful: bool, stem_stride: int | None, **arguments: Any) -> Backbone:
    """Build one of `BACKBONES`."""
    if name not in _HOME:
        raise ConfigError(
            f"there is no backbone {name!r}.",
            remedy=f"{_hint(name)}Known: {', '.join(BACKBONES)}, monai:NAME, timm:NAME.",
            where="network.options.backbone",
            code="backbone",
        )
    file, kind = _HOME[name]
    make = getattr(import_module(f"{__name__}.{file}"), kind)
    if stem_stride is not None and not 1 <= stem_stride <= make.stem_stride:
        raise _no_stride(
            f"the stem of {name} has stride {make.stem_stride}, got stem_stride={stem_stride}.",
            f"choose one from 1 to {make.stem_stride}",
        )
    if faithful and stem_stride not in (None, make.stem_stride):
        raise _no_stride(f"the paper's {name} has no stem_stride={stem_stride}.", "set faithful=False")
    return make(faithful=faithful, stem_stride=stem_stride, **arguments)


def _hint(name: str) -> str:
    """Return "Did you mean 'x'? " for a network of MONAI without its prefix, else for the nearest name here."""
    from volrec.networks.backbones.foreign import monai_names

    whole = f"monai:{name}"
    same = [known for known in monai_names() if known.casefold() == whole.casefold()]
    if same:
        own = next((f"Among volrec's own: {known!r}. " for known in BACKBONES if _plain(known) == _plain(name)), "")
        return f"Did you mean {(whole if whole in same else same[0])!r}? {own}"
    return suggest(name, BACKBONES)


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def _no_stride(problem: str, remedy: str) -> ConfigError:
    return ConfigError(
        problem,
        remedy=f"Leave it out, or {remedy}.",
        where="network.options.stem_stride",
        code="network-option",
    )
