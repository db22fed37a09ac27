"""Stages of a network in the order from the input: what learning rates by depth and frozen layers count in."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from volrec.errors import ConfigError
from volrec.networks.base import SequenceNetwork

__all__ = ["freeze_stages", "network_stages", "ordered_children"]


def network_stages(network: SequenceNetwork) -> list[tuple[str, ...]]:
    """Return the names of all parameters, stage by stage, from the input to the classifier.

    A module that holds at least half of the weight layers of what it lies in (a backbone, its trunk, ``features``) is a
    container and is opened; any other module is one stage as a whole: a convolution, a dense block, a residual stage.
    Normalisation and biases that stand alone belong to the stage before them. The classifier is the last stage. Of
    paths side by side the one that is read first comes first.

    Parameters
    ----------
    network : SequenceNetwork
        Any network of the registry, on any device.

    Returns
    -------
    list of tuple of str
        Every parameter stands in exactly one stage.
    """
    classifier = f"{network.classifier_name}."
    stages: list[list[str]] = []
    leading: list[str] = []  # vectors before the first weight layer
    for names, weighs in _units(network, ""):
        kept = [name for name in names if not name.startswith(classifier)]
        if not kept:
            continue
        if weighs:
            stages.append([*leading, *kept])
            leading = []
        elif stages:
            stages[-1] += kept
        else:
            leading += kept
    last = [name for name, _ in network.named_parameters() if name.startswith(classifier)]
    return [tuple(stage) for stage in (*stages, [*leading, *last]) if stage]


def freeze_stages(network: SequenceNetwork, what: int | Sequence[str], *, where: str = "optim.freeze") -> list[str]:
    """Keep weights and statistics of a part of a network as they are, from now on.

    Frozen parameters need no gradient. A module all of whose parameters are frozen stays in evaluation mode, whatever
    `train` is told: its normalisation statistics do not move, and its dropout is off, so that it gives the same
    features for the same slices. Dropout outside of such modules works as before.

    Parameters
    ----------
    network : SequenceNetwork
        Is changed in place.
    what : int or sequence of str
        So many stages from the input (`network_stages`), or patterns of parameter names (``features.denseblock1.*``).
    where : str
        Key that errors name.

    Returns
    -------
    list of str
        Names of the frozen parameters.

    Raises
    ------
    ConfigError
        When a pattern matches no parameter, or nothing would be left to train.
    """
    parameters = dict(network.named_parameters())
    if isinstance(what, int):
        stages = network_stages(network)
        if what >= len(stages):
            raise ConfigError(
                f"{network.registry_name} has {len(stages)} stages, the classifier among them: {what} of them frozen "
                "leave nothing to train.",
                remedy=f"Freeze at most {len(stages) - 1}.",
                where=where,
                code="freeze",
            )
        frozen = [name for stage in stages[:what] for name in stage]
    else:
        for pattern in what:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise ConfigError(
                    f"no parameter of {network.registry_name} matches '{pattern}'.",
                    remedy=_hint(pattern, list(parameters)),
                    where=where,
                    code="freeze",
                )
        frozen = [name for name in parameters if any(fnmatchcase(name, pattern) for pattern in what)]
    if not {name for name, parameter in parameters.items() if parameter.requires_grad} - set(frozen):
        raise ConfigError(
            f"this and what is frozen already are all parameters of {network.registry_name}: nothing is left to train.",
            remedy=f"Leave out {network.classifier_name}.* at least. A stage freezes parts of its own beside "
            "optim.freeze.",
            where=where,
            code="freeze",
        )
    for name in frozen:
        parameters[name].requires_grad_(False)
    network.keep_still(_still(network, ""))
    return frozen


def ordered_children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a module by name, in the order of reading (`SequenceNetwork.stage_order`)."""
    children = dict(module.named_children())
    # The places of the parts that a network names are filled in the order that it names them in.
    late = [name for name in getattr(module, "stage_order", ()) if name in children]
    order = iter(late)
    return [(name, children[name]) for name in (next(order) if each in late else each for each in children)]


def _units(module: nn.Module, prefix: str) -> Iterator[tuple[list[str], bool]]:
    """Yield names of parameters that belong together, and whether there is a weight layer among them."""
    own = [(prefix + name, _is_kernel(parameter)) for name, parameter in module.named_parameters(recurse=False)]
    if own:
        yield [name for name, _ in own], any(weighs for _, weighs in own)
    total = _weight_layers(module)
    for name, child in ordered_children(module):
        layers = _weight_layers(child)
        if layers > 1 and 2 * layers >= total:
            yield from _units(child, f"{prefix}{name}.")
        elif names := [f"{prefix}{name}.{inner}" for inner, _ in child.named_parameters()]:
            yield names, layers > 0


def _weight_layers(module: nn.Module) -> int:
    """Return how many modules within have kernels or matrices of their own."""
    return sum(any(map(_is_kernel, layer.parameters(recurse=False))) for layer in module.modules())


def _is_kernel(parameter: nn.Parameter) -> bool:
    """Tell kernels and matrices from biases, scales and gains, which have one value a channel."""
    return parameter.ndim > 1 and parameter.numel() > parameter.shape[0]


def _still(module: nn.Module, prefix: str) -> Iterator[str]:
    """Yield the outermost modules all of whose parameters are frozen."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            yield prefix + name
        elif parameters:
            yield from _still(child, f"{prefix}{name}.")


def _hint(pattern: str, names: Sequence[str]) -> str:
    if any(name.startswith(f"{pattern}.") for name in names):
        return f"Did you mean '{pattern}.*'?"
    stems = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
    near = difflib.get_close_matches(pattern.rstrip(".*"), [*stems, *names], n=3, cutoff=0.5)
    known = ", ".join(f"{name}.*" if name in stems else name for name in near)
    return f"Near names: {known}." if near else f"Parameters are called {names[0]} … {names[-1]}."
