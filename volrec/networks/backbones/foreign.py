"""2D networks of MONAI and timm by name, without their classifier.

``monai:NAME`` names a class or a builder of ``monai.networks.nets`` that needs no arguments but the number of axes and
of channels (``monai:DenseNet121``, ``monai:resnet18``, ``monai:SEResNet50``), or ``monai:efficientnet-b0`` to
``-b8`` and ``-l2``. Nothing else can be reached by a name. ``timm:NAME`` names a network of timm, which is imported
only then.

What a network gives is found by running it once on the meta device, where nothing is computed:

==============================================  ======================  ==========================
the network ends with                           maps                    features
==============================================  ======================  ==========================
a pool over the plane, then one linear layer    what enters the pool    what leaves it
other linear layers                             the features, 1 x 1     what enters the last layer
maps (N, F, h, w), as segmentation networks     its output              their mean over the plane
==============================================  ======================  ==========================

The linear layer is taken out; a dropout in front of it is not applied. Of a list of outputs the first counts. Networks
that read only multiples of 32 get slices padded by zeros below and to the right.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volrec.errors import ConfigError
from volrec.networks.backbones.contract import Backbone
from volrec.networks.facts import suggest

__all__ = ["foreign_backbone", "monai_names"]

# Maps of a network that has no features of its own, but as many output channels as it is asked for.
_OUTPUTS = 64
_MULTIPLE = 32
# The library has several words for the same thing.
_CHANNELS = ("in_channels", "n_input_channels")
_CLASSES = ("out_channels", "num_classes")
_GIVEN = ("spatial_dims", "pretrained", *_CHANNELS, *_CLASSES)
_ALTERNATIVE = (
    "Choose a 2D network that needs only the number of channels, such as monai:DenseNet121 or monai:resnet18."
)
# What libraries raise for arguments, axes or sizes that do not fit (MONAI's OptionalImportError is an ImportError).
_FAULTS = (
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)


def foreign_backbone(name: str, *, in_channels: int, tail: str) -> Backbone:
    """Build ``monai:NAME`` or ``timm:NAME``.

    Parameters
    ----------
    name : str
        With its prefix.
    in_channels : int
        Channels of a slice.
    tail : str
        ``"pool"`` or ``"last"``, which is the same: these networks have no fc6 or fc7.

    Raises
    ------
    ConfigError
        For an unknown name (with the nearest), a network that cannot be built or run in 2D, or timm missing.
    """
    if tail not in ("pool", "last"):
        raise _refusal(f"{name} has no {tail}.", "Choose pool, or a paper's network (hybrid, vgg-16).")
    library, _, inner = name.partition(":")
    return {"monai": _MonaiBackbone, "timm": _TimmBackbone}[library](inner, in_channels)


def monai_names() -> list[str]:
    """Return every ``monai:NAME`` that can be tried (some need arguments that cannot be given, or are not in 2D)."""
    return [f"monai:{name}" for name in _makers()]


class _MonaiBackbone(Backbone):
    """A network of MONAI; see the head of this file."""

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        plan = _plan(name, in_channels)
        network = _build(name, in_channels)
        if plan.classifier:
            network.set_submodule(plan.classifier, nn.Identity())
        pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        tap = None
        if plan.pool:
            pool = network.get_submodule(plan.pool)
            tap = _Tap(pool)
            network.set_submodule(plan.pool, tap)
        self.trunk = _Trunk(network, tap, plan.multiple)
        self.tail = nn.Sequential(pool, nn.Flatten())
        self.num_maps = self.num_features = plan.features
        self.smallest = (plan.smallest, plan.smallest)


class _Tap(nn.Module):
    """A pool that keeps what enters it until it is fetched."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.pool(x)


class _Trunk(nn.Module):
    """Slices (N, C, H, W) to maps (N, F, h, w); its 3D twin (`inflate_module`) has one axis more in front of H."""

    def __init__(self, network: nn.Module, tap: _Tap | None, multiple: int) -> None:
        super().__init__()
        self.network = network
        self.tap = tap
        self.multiple = multiple

    def forward(self, x: Tensor) -> Tensor:
        if self.tap is None:
            output = _first(self.network(_pad(x, self.multiple)))
            return output if output.ndim > 2 else output.reshape(*output.shape, *[1] * (x.ndim - 2))
        self.tap.seen.clear()
        self.network(_pad(x, self.multiple))
        return self.tap.seen.pop()


class _TimmBackbone(Backbone):
    """A network of timm: maps from its ``forward_features``, features from its ``forward_head``.

    Where ``forward_features`` gives tokens, the maps are the features, 1 x 1.
    """

    trunk: _TimmTrunk

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        try:
            timm = import_module("timm")
        except ImportError:
            raise _refusal(
                f"timm:{name} needs timm, which is not installed.",
                "Install the extra: pip install 'volrec[timm]' (it brings torchvision, which replaces a CPU build of "
                "torch); or choose a network of MONAI, such as monai:DenseNet121.",
            ) from None
        known = timm.list_models()
        # Names with a prefix (hf-hub:) or a path of their own lead elsewhere; only those of the list pass, with a tag.
        if name.split(".")[0] not in known or set(name) & set(":/"):
            raise _refusal(f"timm has no network {name!r}.", suggest(name, known) + "timm.list_models() names all.")
        try:
            network = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0)
            twin = copy.deepcopy(network).to("meta")
            side = _smallest(twin.forward_features, in_channels, multiple=1)
            with torch.no_grad():
                output = twin.forward_features(torch.empty(2, in_channels, side, side, device="meta"))
                features = twin.forward_head(output, pre_logits=True)
        except _FAULTS as fault:
            raise _unusable(f"timm:{name}", fault) from fault
        self.smallest = (side, side)
        self.num_features = features.shape[1]
        axis = None
        if output.ndim == 4:
            axis = 1 if output.shape[1] == network.num_features else 3
        self.num_maps = self.num_features if axis is None else output.shape[axis]
        self.trunk = _TimmTrunk(network, axis)

    def forward_tail(self, maps: Tensor) -> Tensor:
        """Return features (N, num_features) of maps."""
        return self.trunk.pool(maps)


class _TimmTrunk(nn.Module):
    """Slices (N, C, H, W) to maps (N, F, h, w); holds the head as well, so that its weights have one owner.

    Parameters
    ----------
    network : nn.Module
        Of timm.
    axis : int, optional
        Where its maps have their channels; None for tokens.
    """

    def __init__(self, network: Any, axis: int | None) -> None:
        super().__init__()
        self.network = network
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        output = self.network.forward_features(x)
        if self.axis is None:
            return self.network.forward_head(output, pre_logits=True)[:, :, None, None]
        return output.movedim(self.axis, 1)

    def pool(self, maps: Tensor) -> Tensor:
        if self.axis is None:
            return maps.flatten(1)
        return self.network.forward_head(maps.movedim(1, self.axis), pre_logits=True)


@dataclass(frozen=True)
class _Plan:
    """What a run on the meta device showed of a network."""

    smallest: int
    multiple: int
    classifier: str
    pool: str
    features: int


@cache
def _plan(name: str, in_channels: int) -> _Plan:
    """Find out what a network of MONAI reads and gives."""
    with torch.device("meta"):
        network = _build(name, in_channels)
    try:
        multiple = 1
        try:
            found = _inspect(network, torch.empty(2, in_channels, 67, 75, device="meta"))
        except _FAULTS:
            multiple = _MULTIPLE
            found = _inspect(network, torch.empty(2, in_channels, 64, 96, device="meta"))
        return _Plan(_smallest(network, in_channels, multiple=multiple), multiple, *found)
    except _FAULTS as fault:
        raise _unusable(f"monai:{name}", fault) from fault


def _inspect(network: nn.Module, x: Tensor) -> tuple[str, str, int]:
    """Return the names of the last linear layer and of the pool before it ("" for none), and the number of features."""
    calls: list[tuple[str, nn.Module, Any, Any]] = []

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, inputs, output: calls.append((name, module, inputs[0], output))

    hooks = [
        module.register_forward_hook(recorder(name))
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    with torch.no_grad():
        output = _first(network(x))
    for hook in hooks:
        hook.remove()
    if output.ndim not in {2, 4}:
        raise ValueError(f"it gives a tensor of shape {tuple(output.shape)}, neither maps nor features")
    classifier, last, _, left = calls[-1]
    if not isinstance(last, nn.Linear) or left is not output:
        return "", "", output.shape[1]
    for name, module, entered, left in reversed(calls[:-1]):
        shape = tuple(entered.shape) if isinstance(entered, Tensor) else ()
        if len(shape) == 4 and shape[1] == last.in_features and left.numel() == shape[0] * shape[1] < entered.numel():
            return classifier, name, last.in_features
        if next(module.parameters(), None) is not None:
            break
    return classifier, "", last.in_features


def _smallest(run: Callable[[Tensor], Any], in_channels: int, *, multiple: int) -> int:
    """Return the smallest of some sizes that `run` accepts in training, together with an odd one just above."""
    fault: Exception | None = None
    for side in (16, 32, 64, 128, 224):
        try:
            with torch.no_grad():
                for size in ((side, side), (side + 1, side + 3)):
                    run(_pad(torch.empty(2, in_channels, *size, device="meta"), multiple))
        except _FAULTS as error:
            fault = error
        else:
            return side
    raise RuntimeError(str(fault))


def _build(name: str, in_channels: int) -> nn.Module:
    """Build a network of ``monai.networks.nets`` in 2D."""
    makers = _makers()
    if name not in makers:
        raise _refusal(
            f"MONAI has no network {name!r} that can be named here.",
            f"{suggest(name, makers)}Classes and builders of monai.networks.nets, such as DenseNet121, resnet18, "
            "SEResNet50 and efficientnet-b0.",
        )
    maker, given = makers[name]
    signature = inspect.signature(maker).parameters.values()
    further = [
        parameter.name
        for parameter in signature
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in {*_GIVEN, *given}
    ]
    if further:
        raise _refusal(
            f"monai:{name} needs further arguments that cannot be given here: {', '.join(further)}.",
            _ALTERNATIVE,
        )
    named = {parameter.name for parameter in signature if parameter.kind is not parameter.VAR_KEYWORD}
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature)
    fixed = {**given, **{key: value for key, value in (("spatial_dims", 2), ("pretrained", False)) if key in named}}
    if passes_on:
        fixed["spatial_dims"] = 2
    fault: Exception | None = None
    # Builders pass on what they do not name.
    for channels, outputs in product(_CHANNELS, (*_CLASSES, "")):
        arguments = {**fixed, channels: in_channels, **({outputs: _OUTPUTS} if outputs else {})}
        if not passes_on and not named.issuperset(arguments):
            continue
        try:
            return maker(**arguments)
        except TypeError as error:
            fault = fault or error
        except _FAULTS as error:
            raise _unusable(f"monai:{name}", error) from error
    raise _unusable(f"monai:{name}", fault or TypeError("it does not take a number of channels"))


@cache
def _makers() -> dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]]:
    """Return what a name can mean: networks and builders defined in ``monai.networks.nets``, and nothing else."""
    nets = import_module("monai.networks.nets")
    sizes = import_module("monai.networks.nets.efficientnet").efficientnet_params
    makers: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {}
    for name, value in vars(nets).items():
        if not getattr(value, "__module__", "").startswith(f"{nets.__name__}."):
            continue
        is_network = inspect.isclass(value) and issubclass(value, nn.Module)
        is_builder = inspect.isfunction(value) and any(
            parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(value).parameters.values()
        )
        if is_network or is_builder:
            makers[name] = (value, {})
    return makers | {size: (nets.EfficientNetBN, {"model_name": size}) for size in sizes}


def _first(output: Any) -> Tensor:
    """Return the first tensor of an output that may be a list of lists."""
    while isinstance(output, (list, tuple)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(f"it gives a {type(output).__name__}, not a tensor")
    return output


def _pad(x: Tensor, multiple: int) -> Tensor:
    """Return slices with zeros below and to the right, up to a multiple of so many positions."""
    below, right = (-int(n) % multiple for n in x.shape[-2:])
    return F.pad(x, (0, right, 0, below)) if below or right else x


def _unusable(name: str, fault: Exception) -> ConfigError:
    reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0].rstrip(".")
    return _refusal(
        f"{name} cannot encode slices of any size: {reason}.",
        _ALTERNATIVE,
    )


def _refusal(problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, remedy=remedy, where="network.options.backbone", code="backbone")
