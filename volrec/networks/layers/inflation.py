"""From a 2D network to its 3D twin: every kernel gets a third axis, every name stays.

J. Carreira, A. Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017, turn a 2D
network into a 3D one by giving every convolution and every pool an axis along time, square kernels k x k becoming cubes
k x k x k. A 2D kernel is repeated along the new axis and divided by its depth. A volume of one repeated slice (their
"boring video") then gives at every step what the 2D network gives for the slice.

`inflate_module` does this to any network of convolutions, pools, normalisation and activations. A layer of volrec that
computes in 2D by itself says what its twin is in a method ``inflated(rule)``; others are found in the table below.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from volrec.errors import ConfigError
from volrec.networks.layers.convolution import PointwiseConv2d
from volrec.networks.layers.twins import InflatedConv3d, InflatedPool3d, Inflation, pair

__all__ = ["inflate_module"]


def inflate_module(
    module: nn.Module,
    *,
    time_kernel: str = "cube",
    time_stride: str = "keep",
    temporal_padding: str = "replicate",
    size: tuple[int, int, int] | None = None,
) -> nn.Module:
    """Return the 3D twin of a 2D network, which stays as it is.

    Parameters
    ----------
    module : nn.Module
        A network of slices (N, C, H, W) made of convolutions, pools, normalisation and activations, in modules of its
        own or in volrec's.
    time_kernel, time_stride, temporal_padding
        As in `Inflation`.
    size : tuple of int, optional
        (C, H, W) of a slice: both networks are run once on the meta device, where nothing is computed, and every layer
        of the twin must give what the layer gives in 2D, with one axis more. This finds what no table can: functions
        of the plane inside of a ``forward``. Sides that differ find more. Layers with weights that never run are left
        out of the twin.

    Returns
    -------
    nn.Module
        Clips (B, C, T, H, W) to maps (B, F, T', h, w). Parameters and buffers have the names they have in 2D;
        kernels (F, C, k, k) are (F, C, t, k, k), each the 2D one repeated and divided by t.

    Raises
    ------
    ConfigError
        For a layer that has no twin, with its name, or an unknown rule.

    References
    ----------
    J. Carreira, A. Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017.
    """
    rule = Inflation(time_kernel, time_stride, temporal_padding)
    twin = copy.deepcopy(module)
    made: dict[int, nn.Module] = {}
    # The list keeps the replaced layers alive, so that no two of them share an id.
    layers = list(twin.named_modules(remove_duplicate=False))
    for name, layer in layers:
        if id(layer) not in made:
            try:
                new = _turn(layer, rule)
            except _NoTwin as fault:
                raise _no_twin(name, layer, str(fault)) from None
            if new is None:
                continue
            made[id(layer)] = new.train(layer.training)
        if not name:
            return made[id(layer)]
        twin.set_submodule(name, made[id(layer)])
    if size is not None:
        _compare(module, twin, size)
    return twin


def _turn(layer: nn.Module, rule: Inflation) -> nn.Module | None:
    """Return the 3D twin of a layer, or None for one that stays as it is."""
    own: Callable[[Inflation], nn.Module] | None = getattr(layer, "inflated", None)
    if own is not None:
        return own(rule)
    turn = _TWINS.get(type(layer))
    if turn is not None:
        return turn(layer, rule)
    if isinstance(layer, _WITHOUT_AXES):
        return None
    if isinstance(layer, _PLANAR):
        raise _NoTwin("it computes in the plane by a rule of its own")
    if next(layer.parameters(recurse=False), None) is not None:
        raise _NoTwin("it has weights of its own that no rule is known for")
    return None


def _no_twin(name: str, layer: nn.Module, reason: str) -> ConfigError:
    """Return the error for a layer that has no 3D twin."""
    return ConfigError(
        f"layer {name or 'at the top'!r} ({type(layer).__name__}) of the 2D network has no 3D twin: {reason}.",
        remedy="Choose a 2D network of convolutions, pools, normalisation and activations, such as resnet-18; or one "
        "of the networks that encode slice by slice, which take any (lrcn, stacked-lstm).",
        where="network.options.backbone",
        code="inflation",
    )


class _NoTwin(ValueError):
    """A setting of a layer that has no counterpart in 3D; the message says which."""


def _turn_convolution(layer: nn.Conv2d, rule: Inflation) -> nn.Module:
    if layer.padding_mode != "zeros":
        raise _NoTwin(f"it pads the plane with padding_mode={layer.padding_mode!r}")
    padding = layer.padding
    if isinstance(padding, str):
        totals = [
            d * (k - 1) if padding == "same" else 0 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)
        ]
        if any(total % 2 for total in totals):
            raise _NoTwin("it pads one side of the plane more than the other")
        padding = tuple(total // 2 for total in totals)
    return InflatedConv3d(layer, rule, padding=pair(padding))


def _turn_pool(layer: Any, rule: Inflation) -> nn.Module:
    if getattr(layer, "return_indices", False):
        raise _NoTwin("it gives the positions of its maxima as well")
    stride = layer.kernel_size if layer.stride is None else layer.stride
    return InflatedPool3d(
        layer, rule, kernel=layer.kernel_size, stride=stride, mean=isinstance(layer, nn.AvgPool2d), same=False
    )


def _turn_adaptive(layer: Any, rule: Inflation) -> nn.Module:
    if getattr(layer, "return_indices", False):
        raise _NoTwin("it gives the positions of its maxima as well")
    size = pair(layer.output_size)
    kind = nn.AdaptiveAvgPool3d if isinstance(layer, nn.AdaptiveAvgPool2d) else nn.AdaptiveMaxPool3d
    # A single position is one of time as well; a grid of the plane says nothing about time.
    return kind((1 if size == (1, 1) else None, *size))


def _turn_norm(layer: Any, rule: Inflation) -> nn.Module:
    kind = nn.BatchNorm3d if isinstance(layer, nn.BatchNorm2d) else nn.InstanceNorm3d
    twin = kind(
        layer.num_features,
        eps=layer.eps,
        momentum=layer.momentum,
        affine=layer.affine,
        track_running_stats=layer.track_running_stats,
    )
    # The very same parameters and buffers: nothing of them is about space.
    for name, parameter in layer.named_parameters(recurse=False):
        twin.register_parameter(name, parameter)
    for name, buffer in layer.named_buffers(recurse=False):
        twin.register_buffer(name, buffer)
    return twin


def _turn_padding(layer: Any, rule: Inflation) -> nn.Module:
    sides = (*layer.padding, 0, 0)
    if isinstance(layer, nn.ConstantPad2d):
        return nn.ConstantPad3d(sides, layer.value)
    return (nn.ReplicationPad3d if isinstance(layer, nn.ReplicationPad2d) else nn.ReflectionPad3d)(sides)


_TWINS: dict[type[nn.Module], Callable[[Any, Inflation], nn.Module]] = {
    nn.Conv2d: _turn_convolution,
    PointwiseConv2d: _turn_convolution,
    nn.MaxPool2d: _turn_pool,
    nn.AvgPool2d: _turn_pool,
    nn.AdaptiveAvgPool2d: _turn_adaptive,
    nn.AdaptiveMaxPool2d: _turn_adaptive,
    nn.BatchNorm2d: _turn_norm,
    nn.InstanceNorm2d: _turn_norm,
    nn.Dropout2d: lambda layer, rule: nn.Dropout3d(layer.p, layer.inplace),
    nn.ConstantPad2d: _turn_padding,
    nn.ZeroPad2d: _turn_padding,
    nn.ReplicationPad2d: _turn_padding,
    nn.ReflectionPad2d: _turn_padding,
}
# Layers with weights that know no axis of space.
_WITHOUT_AXES = (nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.PReLU, nn.BatchNorm1d)
# Layers without weights that know the plane; also kinds of the layers above that compute in a way of their own.
_PLANAR = (
    nn.modules.conv._ConvNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._LPPoolNd,
    nn.modules.batchnorm._NormBase,
    nn.FractionalMaxPool2d,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.Softmax2d,
    nn.Fold,
    nn.Unfold,
)


def _compare(module: nn.Module, twin: nn.Module, size: tuple[int, int, int]) -> None:
    """Take out of the twin what never runs; raise `ConfigError` unless its layers give what they give in 2D."""
    flat = _shapes(module, size)
    for name, layer in list(module.named_modules()):
        if name not in flat and next(layer.parameters(recurse=False), None) is not None:
            twin.set_submodule(name, nn.Identity())
    solid = _shapes(twin, (size[0], _SLICES, *size[1:]))
    layers = dict(module.named_modules())
    for name, shapes in flat.items():
        others = solid.get(name, [])
        same = len(shapes) == len(others) and all(
            len(shape) != 3 and shape == (other[:2] + other[3:] if len(shape) == 4 else other)
            for shape, other in zip(shapes, others, strict=True)
        )
        if not same:
            raise _no_twin(name, layers[name], f"it gives tensors of {shapes} in 2D and of {others} in 3D")


_SLICES = 5
"""Differs from the sides of all maps of usual sizes, so that a mean over wrong axes shows."""


def _shapes(module: nn.Module, size: tuple[int, ...]) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes that every layer gives, call by call, for a batch of two on the meta device."""
    network = copy.deepcopy(module).to("meta").eval()
    shapes: dict[str, list[tuple[int, ...]]] = {}
    running: list[tuple[str, nn.Module]] = []

    def enter(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda layer, inputs: running.append((name, layer))

    def leave(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(layer: nn.Module, inputs: Any, output: Any) -> None:
            running.pop()
            called = shapes.setdefault(name, [])
            if isinstance(output, Tensor):
                called.append(tuple(output.shape))

        return note

    for name, layer in network.named_modules():
        layer.register_forward_pre_hook(enter(name))
        layer.register_forward_hook(leave(name))
    kind = next((parameter.dtype for parameter in network.parameters()), torch.float32)
    try:
        with torch.no_grad():
            network(torch.empty(2, *size, dtype=kind, device="meta"))
    except _FAULTS as fault:
        name, layer = running[-1] if running else ("", network)
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0].rstrip(".")
        raise _no_twin(name, layer, reason) from fault
    return shapes


# What networks raise for an input of five axes where they know four only.
_FAULTS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
