"""The closed registry: a name resolves to a factory in a file of this folder, and to nothing else."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

from volrec.errors import ConfigError
from volrec.networks.base import SequenceNetwork
from volrec.networks.facts import NetworkSpec, check_number, parameter_error, suggest
from volrec.networks.layers import channels_last

__all__ = ["create", "list_networks", "register", "spec"]

Factory = Callable[..., SequenceNetwork]
_Marked = TypeVar("_Marked", bound=Factory)


def register(spec: NetworkSpec) -> Callable[[_Marked], _Marked]:
    """Mark a class (or a function) as the factory of a network of the zoo.

    The factory takes ``num_classes, in_channels, faithful, width`` and every option of the spec by keyword, already
    checked, and gives a `SequenceNetwork`. A file of this folder that holds such a class adds a network; nothing else
    has to be edited.

    Raises
    ------
    TypeError
        Where the signature and the options of the spec disagree (a fault of the programmer, found at import).
    """

    def mark(factory: _Marked) -> _Marked:
        wanted = {"num_classes", "in_channels", "faithful", "width", *spec.options}
        found = set(inspect.signature(factory).parameters)
        if wanted != found:
            raise TypeError(f"factory of {spec.name!r} and its options disagree on {sorted(wanted ^ found)}")
        factory.network_spec = spec  # type: ignore[attr-defined]
        return factory

    return mark


def create(
    name: str,
    *,
    num_classes: int,
    in_channels: int | None = None,
    faithful: bool = False,
    width: float = 1.0,
    **options: Any,
) -> SequenceNetwork:
    """Build a network by its registry name.

    Parameters
    ----------
    name : str
        Registry name (`list_networks`).
    num_classes : int
        Outputs of the last layer; one for a binary task or a single regression target.
    in_channels : int, optional
        Channels C of the input (B, C, T, H, W). Default: 1, or the paper's with ``faithful=True``.
    faithful : bool
        True: the paper's network to the last layer and parameter, for the paper's clip size. False: the same network
        adapted to volumes, for any size from `SequenceNetwork.smallest` up.
    width : float
        Scale of all channel counts; 1 is the paper's.
    **options
        The network's own options (``spec(name).options``); an unknown name is an error.

    Returns
    -------
    SequenceNetwork
        With freshly drawn weights, in training mode.

    Raises
    ------
    ConfigError
        For an unknown name or option (with the nearest one), or a value that is not allowed.

    Examples
    --------
    >>> network = create("c3d", num_classes=1, width=0.125)
    >>> network.smallest
    (1, 16, 16)
    """
    factory = _factory(name)
    facts: NetworkSpec = factory.network_spec  # type: ignore[attr-defined]
    if not isinstance(faithful, bool):
        raise parameter_error("faithful", name, "a bool", faithful)
    if in_channels is None:
        in_channels = facts.default_clip[0] if faithful else 1
    check_number(num_classes, name="num_classes", owner=name, kind=int, low=1)
    check_number(in_channels, name="in_channels", owner=name, kind=int, low=1)
    check_number(width, name="width", owner=name, kind=float, low=0, open_low=True)
    values = facts.resolve(options, faithful=faithful)
    num_classes, in_channels = int(num_classes), int(in_channels)  # plain ints: cards and exports hold them
    network = factory(num_classes=num_classes, in_channels=in_channels, faithful=faithful, width=float(width), **values)
    if network.kernels_channels_last:
        channels_last(network)
    network.spec = facts
    network.architecture = {
        "name": name,
        "num_classes": num_classes,
        "in_channels": in_channels,
        "faithful": faithful,
        "width": float(width),
        "options": {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
    }
    return network


def list_networks(pattern: str = "*") -> list[str]:
    """Return the registry names that match a shell pattern such as ``"*3d*"``, sorted."""
    return sorted(name for name in _catalogue() if fnmatchcase(name, pattern))


def spec(name: str) -> NetworkSpec:
    """Return the facts of a network; an unknown name raises `ConfigError` with the nearest one."""
    return _factory(name).network_spec  # type: ignore[attr-defined]


def _factory(name: str) -> Factory:
    catalogue = _catalogue()
    if not isinstance(name, str) or name not in catalogue:
        raise ConfigError(
            f"there is no network {name!r}.",
            remedy=f"{suggest(str(name), catalogue)}Known networks: {', '.join(sorted(catalogue))}.",
            where="network.name",
            code="network-name",
        )
    return catalogue[name]


@cache
def _catalogue() -> dict[str, Factory]:
    """Import the files of this folder, once and on first use, and gather their factories."""
    package = import_module("volrec.networks")
    found: dict[str, Factory] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            continue
        for value in vars(import_module(f"{package.__name__}.{module.name}")).values():
            # Looked up in the class itself: a subclass is another network only where it is registered as one.
            facts = vars(value).get("network_spec") if inspect.isclass(value) or inspect.isfunction(value) else None
            if not isinstance(facts, NetworkSpec):
                continue
            if found.setdefault(facts.name, value) is not value:
                raise TypeError(f"two factories are registered as {facts.name!r}")
    return found
