"""A state of one network for another: which key goes where, in which form, and what is left."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Literal

from torch import Tensor

from volrec.networks import SequenceNetwork
from volrec.weights.accounting import KeyRow, KeyTable
from volrec.weights.adapt import adapt_channels

__all__ = ["canonical_name", "fit_state"]

Inflation = Callable[[Tensor, int], Tensor]

# Modules that hold nearly everything: the same layer lies in another one of them from network to network.
_CONTAINERS = ("backbone.", "trunk.", "features.", "encoder.")
# Endpoints of Inception; layers of volrec's 2D DenseNet, which its 3D one calls as the common checkpoints do.
_RULES = (
    (re.compile(r"^Conv2d_"), "Conv3d_"),
    (re.compile(r"^block(\d+)\.layer(\d+)\."), r"denseblock\1.denselayer\2."),
)


def canonical_name(name: str) -> str:
    """Return the name of a parameter or buffer without containers, 2D names as in 3D.

    ``trunk.block1.layer2.norm1.weight`` and ``features.denseblock1.denselayer2.norm1.weight`` are one and the same.
    """
    while True:
        container = next((prefix for prefix in _CONTAINERS if name.startswith(prefix)), None)
        if container is None:
            break
        name = name.removeprefix(container)
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


def fit_state(
    state: Mapping[str, Tensor],
    network: SequenceNetwork,
    *,
    in_channels: int | None = None,
    first_layer: Literal["sum", "mean"] = "sum",
    inflate: Inflation | None = None,
    drop: Mapping[str, str] | None = None,
    keep: Mapping[str, str] | None = None,
    absent: str = "",
) -> tuple[dict[str, Tensor], KeyTable]:
    """Find for every key of a network its counterpart in a state, by name.

    Identical names go together, then those that are identical by `canonical_name`. Towers side by side
    (`SequenceNetwork.tower_names`) are filled one by one: a 2D network fills all of them, the first layer of each for
    the channels that it reads (TSN starts its flow network from one of RGB so).

    Parameters
    ----------
    state : mapping
        Parameters and buffers of the source.
    network : SequenceNetwork
        The target, on any device; it stays as it is.
    in_channels : int, optional
        Input channels of the source: what tells its first convolution. None: those of its first kernel.
    first_layer : {"sum", "mean"}
        See `adapt_channels`.
    inflate : callable, optional
        From a kernel (O, I, h, w) and a depth t to (O, I, t, h, w), where the source is 2D.
    drop : mapping, optional
        Keys of the source that are left out, with the reason.
    keep : mapping, optional
        Keys of the network that keep their own in any case, with the reason.
    absent : str
        Reason given for keys of the network that have no counterpart.

    Returns
    -------
    state : dict
        From keys of the network to tensors of its shapes.
    table : KeyTable
        What became of every key of both.
    """
    drop, keep = drop or {}, keep or {}
    own = network.state_dict()
    usable = [name for name in state if name not in drop]
    groups = _groups(network, [name for name in own if name not in keep])
    sources = {target: source for names in groups.values() for target, source in _counterparts(usable, names).items()}
    channels = {name: _channels_read(network, tower, own) for tower, names in groups.items() for name in names}
    if in_channels is None:
        in_channels = next((int(tensor.shape[1]) for tensor in state.values() if tensor.ndim > 3), 0)
    found: dict[str, Tensor] = {}
    rows: list[KeyRow] = []
    for target, tensor in own.items():
        shape = tuple(tensor.shape)
        source = sources.get(target)
        if source is None:
            rows.append(KeyRow("", target, "missing", keep.get(target, absent), shape))
            continue
        value, how = state[source], []
        reads = channels[target]
        reads_input = value.ndim > 3 and value.shape[1] == in_channels != reads
        if reads_input and len(shape) > 3 and shape[1] == reads and shape[0] == value.shape[0]:
            how.append(f"{in_channels} to {reads} input channel(s) by {first_layer}")
            value = adapt_channels(value, reads, first_layer)
        if inflate is not None and value.ndim == 4 and len(shape) == 5:
            how.append(f"inflated to {shape[2]} slice(s)")
            value = inflate(value, shape[2])
        if tuple(value.shape) != shape:
            was = tuple(state[source].shape)
            rows.append(KeyRow(source, target, "dropped", f"shape {was} in the source, {shape} in the network", was))
            continue
        found[target] = value
        rows.append(KeyRow(source, target, "adapted" if how else "loaded", "; ".join(how), shape))
    used = set(sources.values())
    for name, tensor in state.items():
        if name not in used:
            reason = drop.get(name, "the network has no such key")
            rows.append(KeyRow(name, "", "dropped", reason, tuple(tensor.shape)))
    return found, KeyTable.of(rows)


def _groups(network: SequenceNetwork, names: Collection[str]) -> dict[str, dict[str, str]]:
    """Return names by tower, those of none under "", each with the part that does not name the tower."""
    groups: dict[str, dict[str, str]] = {"": {}, **{tower: {} for tower in network.tower_names}}
    for name in names:
        tower = next((tower for tower in network.tower_names if name.startswith(f"{tower}.")), "")
        groups[tower][name] = name.removeprefix(f"{tower}.") if tower else name
    return groups


def _channels_read(network: SequenceNetwork, tower: str, own: Mapping[str, Tensor]) -> int:
    """Return the input channels of a tower, by its first kernel, or of the whole network."""
    if not tower:
        return network.in_channels
    kernels = (int(t.shape[1]) for name, t in own.items() if name.startswith(f"{tower}.") and t.ndim > 3)
    return next(kernels, network.in_channels)


def _counterparts(sources: Collection[str], targets: Mapping[str, str]) -> dict[str, str]:
    """Return for names of the network (each with its part within a tower) those of the source.

    A name that could mean two is not guessed at.
    """
    found = {name: name for name in targets if name in set(sources)}
    left = [name for name in sources if name not in found]
    wanted = [name for name in targets if name not in found]
    meant = Counter(map(canonical_name, left)), Counter(canonical_name(targets[name]) for name in wanted)
    by_name = {canonical_name(name): name for name in left}
    for name in wanted:
        short = canonical_name(targets[name])
        if meant[0][short] == meant[1][short] == 1:
            found[name] = by_name[short]
    return found
