"""The contract every network of the zoo keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.networks.facts import NetworkSpec, check_number

__all__ = ["SequenceNetwork", "SlicewiseNetwork", "pass_as_block"]


class SequenceNetwork(nn.Module):
    """A classifier of sequences: ``(B, C, T, H, W)`` to logits ``(B, num_classes)``.

    A subclass writes `forward_features` and `forward_head`, sets `num_features`, and keeps its last linear layer
    under the attribute that `classifier_name` says.

    Parameters
    ----------
    num_classes, in_channels : int
        Outputs and input channels.
    smallest : tuple of int
        Smallest (T, H, W) that can be read.
    exact : tuple, optional
        The only (T, H, W) that can be read, for a paper's network with fixed fully connected layers; None leaves an
        axis free.

    Attributes
    ----------
    spec : NetworkSpec
        Facts of the network (set by the registry).
    architecture : dict
        The arguments that rebuild it: name, num_classes, in_channels, faithful, width, options (plain JSON types).
    num_features : int
        Features that enter the last layer.
    cam_layer : str
        Name of the layer whose output (B, F, T', h, w) says where evidence lies: the target of Grad-CAM.
    kernels_channels_last : bool
        False: `volrec.networks.create` leaves the kernels in torch's ordinary layout.
    stage_order : tuple of str
        Parts that are read in another order than they are registered in, in the order of reading.
    tower_names : tuple of str
        Parts side by side, each of which the weights of one 2D network can fill.
    frozen : tuple of str
        Modules that stay in evaluation mode (`keep_still`).
    """

    classifier_name = "classifier"
    kernels_channels_last = True
    stage_order: tuple[str, ...] = ()
    tower_names: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    cam_layer: str
    spec: NetworkSpec
    architecture: dict[str, Any]
    num_features: int

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        smallest: tuple[int, int, int],
        exact: tuple[int | None, int | None, int | None] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.smallest = smallest
        self.exact = exact

    @property
    def registry_name(self) -> str:
        """Name in the registry, also while the network is being built; that of the class where it is in none."""
        facts = getattr(self, "spec", None) or getattr(type(self), "network_spec", None)
        return facts.name if facts else type(self).__name__

    def train(self, mode: bool = True) -> SequenceNetwork:
        """Switch to training or evaluation; modules that are frozen stay in evaluation."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def keep_still(self, names: Iterable[str]) -> None:
        """Keep modules, beside those that are frozen already, in evaluation mode whatever `train` is told."""
        self.frozen = tuple(dict.fromkeys((*self.frozen, *names)))
        self.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) of clips (B, C, T, H, W)."""
        self.check_input(x)
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the features that the head reads: maps (B, F, T', H', W'), or (B, T, F) where slicewise."""
        raise NotImplementedError

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of features, or with `pre_logits` what enters the last layer."""
        raise NotImplementedError

    def forward_branches(self, features: Tensor) -> dict[str, Tensor]:
        """Return logits (B, num_classes) of each part that has a loss of its own in training, by the part's name.

        Of one head by default. A network of several streams gives those of each; losses are summed with
        `branch_weights`.
        """
        return {"": self.forward_head(features)}

    @property
    def branch_weights(self) -> dict[str, float]:
        """Weight of the loss of each part of `forward_branches`; one where a part is not named."""
        return {}

    def auxiliary_loss(self, x: Tensor) -> Tensor | None:
        """Return a loss (a scalar) of clips (B, C, T, H, W) that needs no labels, or None where there is none."""
        return None

    def get_classifier(self) -> nn.Linear:
        """Return the last layer."""
        return self.get_submodule(self.classifier_name)  # type: ignore[return-value]

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh last layer with `num_classes` outputs in place, on the device of the old one."""
        check_number(num_classes, name="num_classes", owner=self.registry_name, kind=int, low=1)
        old = self.get_classifier()
        new = nn.Linear(old.in_features, num_classes, device=old.weight.device, dtype=old.weight.dtype)
        self.init_classifier(new)
        self.set_submodule(self.classifier_name, new)
        self.num_classes = num_classes
        if hasattr(self, "architecture"):
            self.architecture = {**self.architecture, "num_classes": num_classes}

    def init_classifier(self, layer: nn.Linear) -> None:
        """Draw the weights of a last layer: small, so that training starts near equal scores."""
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)

    def check_input(self, x: Tensor) -> None:
        """Raise `ConfigError` for an input that this network cannot read, with the sizes it can."""
        name = self.registry_name
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise ConfigError(
                f"{name} reads tensors of floats, got {kind}.",
                remedy="Give a torch tensor, normalised as in training; x.float() turns integers into floats.",
                code="input-type",
            )
        own = next(self.parameters()).dtype
        if x.dtype != own and not torch.is_autocast_enabled(x.device.type):
            raise ConfigError(
                f"{name} computes in {own}, got {x.dtype}.",
                remedy=f"Give x.to({own}); arrays of numpy are float64 until they are converted.",
                code="input-type",
            )
        if x.ndim != 5:
            raise ConfigError(
                f"{name} reads clips (B, C, T, H, W), got a tensor of shape {tuple(x.shape)}.",
                remedy="Add the missing axes; a single volume (T, H, W) is x[None, None].",
                code="input-shape",
            )
        if x.shape[1] != self.in_channels:
            raise ConfigError(
                f"{name} was built for {self.in_channels} input channel(s), got {x.shape[1]}.",
                remedy="Build it with in_channels equal to the number of windows or channels of the clips.",
                code="input-channels",
            )
        size = tuple(x.shape[2:])
        if self.exact is not None and any(
            need not in (None, have) for have, need in zip(size, self.exact, strict=True)
        ):
            raise ConfigError(
                f"the paper's {name} reads clips of exactly {_triple(self.exact)}, got {_triple(size)}.",
                remedy="Resize the clips, or build it with faithful=False for any size.",
                code="input-size",
            )
        if any(have < need for have, need in zip(size, self.smallest, strict=True)):
            raise ConfigError(
                f"{name} reads clips from {_triple(self.smallest)} up, got {_triple(size)}.",
                remedy="Use longer clips or a larger canvas, or another network (`volrec models` lists them).",
                code="input-size",
            )


class SlicewiseNetwork(SequenceNetwork):
    """A network that encodes slices one by one, then puts them together.

    ``forward`` equals ``aggregate`` after ``encode_slices`` of every slice, so overlapping clips cost one encoding a
    slice. A subclass writes `encode_maps`, `embed_maps` and `aggregate`.
    """

    cam_layer = "slice_maps"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        smallest: tuple[int, int, int],
        exact: tuple[int | None, int | None, int | None] | None = None,
    ) -> None:
        super().__init__(num_classes=num_classes, in_channels=in_channels, smallest=smallest, exact=exact)
        # Does nothing: the maps of all slices pass through it as one block, where hooks (Grad-CAM) find them.
        self.slice_maps = nn.Identity()

    def encode_maps(self, x: Tensor) -> Tensor:
        """Return maps (N, F, h, w) of slices (N, C, H, W)."""
        raise NotImplementedError

    def embed_maps(self, maps: Tensor) -> Tensor:
        """Return features (N, ...) of maps (N, F, h, w); the maps themselves where a network says nothing else."""
        return maps

    def encode_slices(self, x: Tensor) -> Tensor:
        """Return features (N, ...) of slices (N, C, H, W)."""
        return self.embed_maps(self.encode_maps(x))

    def aggregate(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of slice features (B, T, ...)."""
        raise NotImplementedError

    def slice_logits(self, features: Tensor) -> Tensor:
        """Return logits (B, T, num_classes) of every slice alone, for features (B, T, ...)."""
        batch, slices = features.shape[:2]
        return self.aggregate(features.reshape(batch * slices, 1, *features.shape[2:])).reshape(batch, slices, -1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return slice features (B, T, ...) of clips (B, C, T, H, W)."""
        batch, channels, slices, height, width = x.shape
        flat = x.transpose(1, 2).reshape(batch * slices, channels, height, width)
        maps = pass_as_block(self.encode_maps(flat), self.slice_maps, batch=batch, slices=slices)
        return self.embed_maps(maps).unflatten(0, (batch, slices))

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return `aggregate` of the features."""
        return self.aggregate(features, pre_logits=pre_logits)


def pass_as_block(maps: Tensor, layer: nn.Module, *, batch: int, slices: int) -> Tensor:
    """Return maps (B * T, F, h, w) of slices after a layer saw them as one block (B, F, T, h, w).

    The layer (`torch.nn.Identity`) is where hooks find the maps, such as those of Grad-CAM.
    """
    block = layer(maps.unflatten(0, (batch, slices)).transpose(1, 2))
    if block.requires_grad and not torch.compiler.is_compiling():
        # MONAI's Grad-CAM takes a view of this gradient, which the transposition would not allow.
        block.register_hook(torch.Tensor.contiguous)
    return block.transpose(1, 2).flatten(0, 1)


def _triple(size: tuple[int | None, ...] | torch.Size) -> str:
    return "T x H x W = " + " x ".join("any" if n is None else str(int(n)) for n in size)
