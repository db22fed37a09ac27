"""Grad-CAM: the maps of a late layer, weighed by what each contributes to an output.

R. R. Selvaraju, M. Cogswell, A. Das, R. Vedantam, D. Parikh, D. Batra, "Grad-CAM: Visual Explanations from Deep
Networks via Gradient-based Localization", ICCV 2017. The layer is the one that a network names
(`SequenceNetwork.cam_layer`); its maps (B, F, t, h, w) have fewer positions than the clip, so that the result is
smooth: it says where, not how large.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.explain.passes import Tick, at_rest, check_output, fitting, resting, values_of

__all__ = ["gradcam", "gradcam_slicewise"]


def gradcam(network: nn.Module, x: Tensor, output: int, *, tick: Tick = resting) -> Tensor:
    """Return the 3D form of Grad-CAM: a map has one weight, its gradient averaged over all its positions.

    Parameters
    ----------
    network : nn.Module
        With ``cam_layer``.
    x : Tensor
        (B, C, T', H, W), as the network reads it.
    output : int
        Which output is explained, from 0.
    tick : callable
        Told the share of the clips that is done.

    Returns
    -------
    Tensor
        (B, T', H, W) float32, not below 0, in the units of the output (before sigmoid or softmax); maps are brought to
        the clip's grid by trilinear interpolation, their voxels being areas.

    Raises
    ------
    ConfigError
        The network names no such layer, or has no such output.
    """
    return _weighted_maps(network, x, output, over=(2, 3, 4), tick=tick)


def gradcam_slicewise(network: nn.Module, x: Tensor, output: int, *, tick: Tick = resting) -> Tensor:
    """Return Grad-CAM slice by slice: a map has a weight at each position along T, its mean gradient in that plane.

    For a network that encodes slices one by one this is the Grad-CAM of images, of each slice in the context of the
    others: a slice that the network overlooks (attention, a maximum over slices) stays dark. Arguments and result as of
    `gradcam`.
    """
    return _weighted_maps(network, x, output, over=(3, 4), tick=tick)


def _weighted_maps(network: nn.Module, x: Tensor, output: int, *, over: tuple[int, ...], tick: Tick) -> Tensor:
    check_output(network, output)
    parts = []
    with at_rest(network):
        for clips in x.split(fitting(x, gradient=True)):
            maps, gradient = _maps_and_gradient(network, clips, output)
            found = (maps * gradient.mean(dim=over, keepdim=True)).sum(dim=1, keepdim=True).relu()
            # In float32 whatever the network computes in; edges of voxels stay where they are (align_corners=False).
            found = F.interpolate(found.float(), size=x.shape[2:], mode="trilinear", align_corners=False)
            parts.append(found[:, 0])
            tick(sum(map(len, parts)) / len(x))
    return torch.cat(parts)


def _maps_and_gradient(network: nn.Module, x: Tensor, output: int) -> tuple[Tensor, Tensor]:
    """Return the maps (B, F, t, h, w) of the layer and the gradient of the output with respect to them.

    The layer's output takes the place of an input: nothing before it is kept for the backward pass.
    """
    name = getattr(network, "cam_layer", None)
    if name is None:
        raise ConfigError(
            f"{type(network).__name__} names no layer for Grad-CAM.",
            remedy="Set cam_layer to the name of the layer whose maps (B, F, T', h, w) say where evidence lies, or use "
            "--method occlusion.",
            code="no-cam-layer",
        )
    seen: list[Tensor] = []

    def take(module: nn.Module, inputs: object, maps: Tensor) -> Tensor:
        leaf = maps.detach().requires_grad_(True)
        seen.append(leaf)
        return leaf.clone()  # a ReLU in place after it must not change what was seen

    hook = network.get_submodule(name).register_forward_hook(take)
    try:
        value = values_of(network, x, output).sum()
    finally:
        hook.remove()
    if not value.requires_grad:  # the output does not depend on these maps, such as those of a stream that is off
        return seen[0].detach(), torch.zeros_like(seen[0])
    gradients = torch.autograd.grad(value, seen, allow_unused=True)
    return seen[0].detach(), torch.zeros_like(seen[0]) if gradients[0] is None else gradients[0]
