"""Integrated gradients: what each voxel adds on the way from an empty clip to the one that is shown.

M. Sundararajan, A. Taly, Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017. The attributions of all voxels
and channels add up to the output for the clip less the output for the empty one (completeness), as far as the integral
is exact; `volrec.explain.explain_study` measures by how much they miss it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.explain.passes import Tick, at_rest, check_output, empty_clip, fitting, resting, values_of

__all__ = ["gradient_at", "integrated_gradients"]


def integrated_gradients(
    network: nn.Module,
    x: Tensor,
    output: int,
    *,
    steps: int = 32,
    empty: Tensor | None = None,
    tick: Tick = resting,
) -> Tensor:
    """Integrate gradients along the straight line from an empty clip, by the Gauss-Legendre rule.

    Parameters
    ----------
    network : nn.Module
        (B, C, T', H, W) to logits (B, K).
    x : Tensor
        (B, C, T', H, W), as the network reads it.
    output : int
        Which output is explained, from 0.
    steps : int
        Points on the line.
    empty : Tensor, optional
        (C,) value of an empty canvas, where the line begins; None: the minimum of each channel of the clip.
    tick : callable
        Told the share of the work that is done.

    Returns
    -------
    Tensor
        (B, T', H, W) float32, summed over channels: above 0 where a voxel speaks for the output, below 0 where against
        it, in the units of the output (before sigmoid or softmax).

    Raises
    ------
    ConfigError
        Fewer than one step, or no such output.
    """
    check_output(network, output)
    if steps < 1:
        raise ConfigError(
            f"steps must be at least 1, got {steps}.", remedy="Use 32 or more.", where="steps", code="explain-option"
        )
    points, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1], where weights add up to 2
    line = torch.as_tensor((points + 1) / 2, dtype=x.dtype, device=x.device)
    shares = torch.as_tensor(weights / 2, dtype=x.dtype, device=x.device)
    size = fitting(x, gradient=True)
    found = []
    with at_rest(network):
        for number, clip in enumerate(x):
            nothing = empty_clip(clip[None], empty)[0]
            way, total, done = clip - nothing, torch.zeros_like(clip), 0
            for places, own in zip(line.split(size), shares.split(size), strict=True):
                gradient = gradient_at(network, nothing + places[:, None, None, None, None] * way, output)
                total += (own[:, None, None, None, None] * gradient).sum(dim=0)
                done += len(places)
                tick((number + done / steps) / len(x))
            found.append((way * total).sum(dim=0).float())
    return torch.stack(found)


def gradient_at(network: nn.Module, x: Tensor, output: int) -> Tensor:
    """Return the gradient (B, C, T', H, W) of an output with respect to each clip of a batch, of a network at rest."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(values_of(network, x, output).sum(), x)
    return gradient
