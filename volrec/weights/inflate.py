"""2D weights for 3D networks: kernels along time, and states by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from volrec.errors import ConfigError
from volrec.networks import SequenceNetwork
from volrec.weights.accounting import KeyTable
from volrec.weights.fitting import fit_state

__all__ = ["inflate_kernel", "inflate_state"]


def inflate_kernel(weight: Tensor, depth: int, mode: Literal["average", "center"] = "average") -> Tensor:
    """Return a 2D kernel with a time axis.

    For a boring volume (all slices equal) either gives what the 2D kernel gives for its slice, as long as no zeros of
    padding are read along time (``"average"``), or always (``"center"``).

    Parameters
    ----------
    weight : Tensor
        Kernels (O, I, h, w).
    depth : int
        Slices t.
    mode : {"average", "center"}
        ``"average"``: repeated and divided by t (Carreira and Zisserman, CVPR 2017). ``"center"``: at position t // 2
        among zeros: at first the network reads slice by slice.

    Returns
    -------
    Tensor
        Kernels (O, I, t, h, w), of the same type.

    Raises
    ------
    ConfigError
        For kernels of other axes, a depth below 1 or another mode.
    """
    if weight.ndim != 4 or depth < 1:
        raise ConfigError(
            f"kernels of shape {tuple(weight.shape)} cannot be inflated to {depth} slices.",
            remedy="Give kernels (O, I, h, w) and at least one slice.",
            code="init-inflate",
        )
    if mode == "average":
        return (weight.double() / depth).to(weight.dtype).unsqueeze(2).repeat(1, 1, depth, 1, 1)
    if mode == "center":
        kernel = torch.zeros((*weight.shape[:2], depth, *weight.shape[2:]), dtype=weight.dtype, device=weight.device)
        kernel[:, :, depth // 2] = weight
        return kernel
    raise ConfigError(
        f"there is no inflation '{mode}'.",
        remedy="Choose average or center.",
        where="init.inflate",
        code="init-inflate",
    )


def inflate_state(
    state: Mapping[str, Tensor],
    network: SequenceNetwork,
    *,
    in_channels: int | None = None,
    first_layer: Literal["sum", "mean"] = "sum",
    mode: Literal["average", "center"] = "average",
) -> tuple[dict[str, Tensor], KeyTable]:
    """Bring the weights of a 2D network into the form of a 3D one, through their names.

    Kernels get their time axis; normalisation and biases stay as they are. A slicewise network, whose kernels are 2D,
    takes them without inflation. Temporal transition layers and whatever else has no counterpart in 2D keep their drawn
    weights.

    Parameters
    ----------
    state : mapping
        Parameters and buffers of a 2D network.
    network : SequenceNetwork
        The 3D network; it stays as it is.
    in_channels : int, optional
        Input channels of the 2D network; None: those of its first kernel.
    first_layer : {"sum", "mean"}
        See `adapt_channels`.
    mode : {"average", "center"}
        See `inflate_kernel`.

    Returns
    -------
    state : dict
        From keys of the network to tensors of its shapes.
    table : KeyTable
        What became of every key of both.
    """
    return fit_state(
        state,
        network,
        in_channels=in_channels,
        first_layer=first_layer,
        inflate=partial(inflate_kernel, mode=mode),
        absent="no counterpart in the 2D network",
    )
