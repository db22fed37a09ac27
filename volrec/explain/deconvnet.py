"""Deconvnet: what in the clip a network reacts to, brought back to its voxels by running the network in reverse.

M. D. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 2.1; for 3D networks
in D. Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015, section 3.3.

Every layer has its reverse:

- a max pool puts each value back to where the maximum was (the switches of the forward pass), 0 elsewhere;
- a ReLU rectifies what comes down, whatever went up;
- a convolution becomes the transposed one with the same kernels, a linear layer its transpose; biases are left out;
- batch normalisation, which at rest is a scaling and a shift, becomes the scaling alone;
- a mean spreads evenly, a sum goes to each part, of maps side by side each gets its own.

All but the ReLU are what backpropagation does anyway: its pass through a max pool goes along the switches, and through
a convolution it is the transposed one. So the deconvnet is backpropagation with another rule for the ReLU, and that is
how it is computed, in any network that is made of such layers. `tests/explain/test_explain_deconvnet.py` builds the
reverse of C3D by hand, from `torch.nn.functional.max_unpool3d` and `conv_transpose3d`, and finds the same numbers.
Normalisation by the clip's own values (local response, groups) passes its derivative.

Gates, attention and recurrent layers multiply what they read by what they read: there is no reverse that leaves the
input out, and they are refused. So are activations that let negative values through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from volrec.errors import ConfigError
from volrec.explain.passes import Tick, at_rest, check_output, fitting, resting, values_of

__all__ = ["STARTS", "deconvnet", "projection"]

STARTS = ("output", "strongest")
"""Where the reverse pass begins."""

_RECTIFIERS = frozenset({"relu", "relu_", "relu6"})
_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("softmax", "log_softmax", "scaled_dot_product_attention"), "attention (a softmax of features)"),
    "multi_head_attention_forward": "attention (a softmax of features)",
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"), "a recurrent layer"),
    **dict.fromkeys(("sigmoid", "sigmoid_", "tanh", "tanh_", "hardsigmoid"), "gates"),
    **dict.fromkeys(
        ("leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu", "celu", "gelu", "silu", "mish", "hardswish"),
        "activations that are no ReLU",
    ),
    "softplus": "activations that are no ReLU",
}
_PRODUCTS = frozenset({"einsum", "bmm", "matmul", "__matmul__"})


def deconvnet(
    network: nn.Module,
    x: Tensor,
    output: int,
    *,
    start: str = "output",
    feature: int | None = None,
    tick: Tick = resting,
) -> Tensor:
    """Map where the projection of a clip stands out: its size, summed over channels.

    A value of the projection says how a voxel would have to be for the pattern, brighter or darker; it does not say
    that the voxel speaks for the output or against it. So the map has sizes and no sign, and only what speaks for the
    output starts on the way down: the first ReLU from above rectifies the weights that speak against it.

    Parameters
    ----------
    network : nn.Module
        (B, C, T', H, W) to logits (B, K).
    x : Tensor
        (B, C, T', H, W), as the network reads it.
    output : int
        Which output is explained, from 0.
    start : {"output", "strongest"}
        ``"output"``: from the weights of the output, which makes the map one of that output. ``"strongest"``: as in
        the papers, from the strongest activation of the layer `cam_layer` alone (before what normalises or pools it),
        whatever it means for the output.
    feature : int, optional
        With ``"strongest"``: the feature map whose strongest activation is projected; None takes the one with the
        strongest of all.
    tick : callable
        Told the share of the clips that is done.

    Returns
    -------
    Tensor
        (B, T', H, W) float32, not below 0.

    Raises
    ------
    ConfigError
        A network with gates, attention, recurrent layers or other activations than ReLU; no such output, start or
        feature map.
    """
    return projection(network, x, output, start=start, feature=feature, tick=tick).abs().sum(dim=1)


def projection(
    network: nn.Module,
    x: Tensor,
    output: int,
    *,
    start: str = "output",
    feature: int | None = None,
    tick: Tick = resting,
) -> Tensor:
    """Return the projection itself (B, C, T', H, W) float32, the picture of the papers; arguments as of `deconvnet`."""
    check_output(network, output)
    _check_start(start, feature)
    parts = []
    with at_rest(network):
        for clips in x.split(fitting(x, gradient=True)):
            shown = clips.detach().requires_grad_(True)
            with _Reversed(type(network).__name__):
                if start == "output":
                    top = values_of(network, shown, output)
                    signal = torch.ones_like(top)
                else:
                    top = _maps(network, shown)
                    signal = _strongest(top.detach(), feature)
            found = None
            if top.requires_grad:  # where no input reaches it, nothing comes down
                (found,) = torch.autograd.grad(top, shown, signal, allow_unused=True)
            parts.append(torch.zeros_like(clips) if found is None else found)
            tick(sum(map(len, parts)) / len(x))
    return torch.cat(parts).float()


class _Rectify(torch.autograd.Function):
    """A rectifier that on the way back rectifies what comes down."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: float) -> Tensor:
        return x.clamp(0, ceiling)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> tuple[Tensor, None]:
        return signal.clamp(min=0), None


class _Reversed(TorchFunctionMode):
    """Within it ReLUs have the reverse of the deconvnet, and what has none is refused; this thread only."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "hardtanh":  # what a ReLU6 is, as a module
            low, high = kwargs.get("min_val", -1.0), kwargs.get("max_val", 1.0)
            name = "relu6" if (low, high) == (0.0, 6.0) else "elu"
        if name in _RECTIFIERS:
            x = args[0] if args else kwargs["input"]
            rectified = _Rectify.apply(x, 6.0 if name == "relu6" else float("inf"))
            # In place for those who drop what is returned.
            return x.copy_(rectified) if name == "relu_" else rectified
        if name in _REFUSED and any(_followed((args, kwargs))):
            raise self._refusal(_REFUSED[name])
        if name in _PRODUCTS and sum(_followed((args, kwargs))) > 1:
            raise self._refusal("products of features with features")
        return func(*args, **kwargs)

    def _refusal(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self.owner} has {what}, of which there is no deconvnet.",
            remedy="Use integrated-gradients or occlusion, which need nothing but outputs and gradients.",
            where="method",
            code="no-deconvnet",
        )


def _followed(given: Any) -> Iterator[bool]:
    """Give for each tensor of nested arguments whether it depends on the clip."""
    if isinstance(given, Tensor):
        yield given.requires_grad
    elif isinstance(given, Mapping):
        for part in given.values():
            yield from _followed(part)
    elif isinstance(given, (tuple, list)):
        for part in given:
            yield from _followed(part)


def _maps(network: nn.Module, x: Tensor) -> Tensor:
    """Return the maps (B, F, t, h, w) of the layer that the network names, with what leads to them."""
    name = getattr(network, "cam_layer", None)
    if name is None:
        raise ConfigError(
            f"{type(network).__name__} names no layer whose strongest activation could be projected.",
            remedy="Use start=output.",
            where="start",
            code="no-cam-layer",
        )
    seen: list[Tensor] = []

    def take(module: nn.Module, inputs: object, maps: Tensor) -> Tensor:
        seen.append(maps)
        return maps.clone()  # nothing in place after it may change what was seen

    hook = network.get_submodule(name).register_forward_hook(take)
    try:
        network(x)
    finally:
        hook.remove()
    return seen[0]


def _strongest(maps: Tensor, feature: int | None) -> Tensor:
    """Return maps (B, F, t, h, w) of which only the strongest activation of each clip is left, not below 0."""
    if feature is not None and not 0 <= feature < maps.shape[1]:
        raise ConfigError(
            f"there is no feature map {feature}.",
            remedy=f"They are counted from 0 to {maps.shape[1] - 1}.",
            where="feature",
            code="explain-option",
        )
    chosen = maps.relu()
    if feature is not None:
        chosen = torch.zeros_like(maps).index_copy_(1, torch.tensor([feature]).to(maps.device), chosen[:, [feature]])
    flat = chosen.flatten(1)
    values, places = flat.max(dim=1, keepdim=True)
    return torch.zeros_like(flat).scatter_(1, places, values).view_as(maps)


def _check_start(start: str, feature: Any) -> None:
    if start not in STARTS:
        raise ConfigError(
            f"there is no start {start!r}.",
            remedy=f"It is one of {', '.join(STARTS)}.",
            where="start",
            code="explain-option",
        )
    if feature is not None and (isinstance(feature, bool) or not isinstance(feature, int)):
        raise ConfigError(
            f"feature must be a whole number, got {feature!r}.",
            remedy="Feature maps are counted from 0.",
            where="feature",
            code="explain-option",
        )
    if feature is not None and start == "output":
        raise ConfigError(
            f"feature {feature} has nothing to act on where the projection starts from the output.",
            remedy="Add --set start=strongest.",
            where="feature",
            code="explain-option",
        )
