"""The first convolution for another number of input channels."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from volrec.errors import ConfigError

__all__ = ["adapt_channels"]


def adapt_channels(weight: Tensor, channels: int, mode: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return the kernels of a first convolution for inputs of another number of channels.

    Parameters
    ----------
    weight : Tensor
        Kernels (O, C, ...) that read C channels.
    channels : int
        Channels C' of the new input.
    mode : {"sum", "mean"}
        ``"sum"``: every new channel gets ``sum over C / C'``, so that C' equal channels give what C equal channels
        gave: the scale of what follows stays. ``"mean"``: every new channel gets the mean kernel, as TSN does for
        stacks of flow (Wang et al., ECCV 2016); C' equal channels then give C' / C times as much.

    Returns
    -------
    Tensor
        Kernels (O, C', ...), of the same type.

    Raises
    ------
    ConfigError
        For another mode, fewer than one channel, or kernels without channels.
    """
    if weight.ndim < 2 or channels < 1:
        raise ConfigError(
            f"kernels of shape {tuple(weight.shape)} cannot be adapted to {channels} channel(s).",
            remedy="Give kernels (O, C, ...) and at least one channel.",
            code="init-adapt",
        )
    if mode not in ("sum", "mean"):
        raise ConfigError(
            f"there is no way '{mode}' to adapt the first layer.",
            remedy="Choose sum or mean.",
            where="init.first_layer",
            code="init-adapt",
        )
    # Added up in float64: 16-bit kernels would lose digits.
    total = weight.double().sum(1, keepdim=True)
    shared = total / (channels if mode == "sum" else weight.shape[1])
    return shared.to(weight.dtype).repeat_interleave(channels, dim=1)
