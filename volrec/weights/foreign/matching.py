"""From the tensors of a file to those of a network: every key on either side is accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from volrec.errors import ConfigError, RunError
from volrec.networks import create, spec
from volrec.networks.backbones import BACKBONES, create_backbone
from volrec.weights.accounting import KeyRow, KeyTable
from volrec.weights.foreign.containers import Source
from volrec.weights.foreign.formats import COUNTER, Drop, Format, strip

__all__ = ["Match", "match", "no_format", "stripped"]

_MOST_FAULTS = 40


class Match(NamedTuple):
    """A network with the weights of a file, and what became of every key."""

    network: nn.Module
    table: KeyTable
    in_channels: int
    num_classes: int | None


class _Given(NamedTuple):
    """A tensor of the file on its way into the network."""

    source: str
    tensor: Tensor
    reason: str
    shape: tuple[int, ...]


def stripped(source: Source) -> dict[str, tuple[str, Tensor]]:
    """Return key without the prefixes of wrappers -> (key in the file, tensor).

    Raises
    ------
    RunError
        When two keys differ in their prefix only: the file holds two networks.
    """
    found: dict[str, tuple[str, Tensor]] = {}
    for key, tensor in source.tensors.items():
        short = strip(key)
        if short in found:
            raise RunError(
                f"it holds two networks: {found[short][0]} and {key}.",
                remedy="Save each of them to a file of its own.",
                where=source.path,
                code="foreign-mismatch",
            )
        found[short] = (key, tensor)
    return found


def match(source: Source, entry: Format, name: str) -> Match:
    """Build the network that a file was saved from and give it the file's weights.

    Parameters
    ----------
    source : Source
        The file.
    entry : Format
        What its keys are called.
    name : str
        The network, of the registry or a backbone.

    Returns
    -------
    Match
        In evaluation mode, on the CPU, in float32.

    Raises
    ------
    RunError
        With every key that is unknown, missing, or of another shape.
    """
    keys = stripped(source)
    given: dict[str, _Given] = {}
    rows = [KeyRow(key, "", "dropped", reason) for key, reason in source.left]
    unknown: dict[str, _Given] = {}
    for short, (key, tensor) in keys.items():
        shape = tuple(tensor.shape)
        target = entry.rename(short)
        if isinstance(target, Drop):
            rows.append(KeyRow(key, "", "dropped", target.reason, shape))
        elif target is None or target in given:
            unknown[target or key] = _Given(key, tensor, "", shape)
        else:
            given[target] = _Given(key, *entry.adapt(short, tensor), shape)
    tensors = {target: held.tensor for target, held in given.items()}
    classes = entry.classes({short: tensor for short, (_, tensor) in keys.items()})
    arguments = _arguments(entry, name, tensors, classes)
    network, expected = _best_width(arguments, tensors, entry)
    faults: list[str] = []
    for target in [target for target in given if target not in expected]:
        unknown[target] = given.pop(target)
    for held in unknown.values():
        if held.source.endswith(COUNTER):
            rows.append(KeyRow(held.source, "", "dropped", "a count of batches, which nothing depends on", held.shape))
        else:
            faults.append(f"{held.source} {held.shape} is unknown")
    state: dict[str, Tensor] = {}
    for target, wanted in expected.items():
        shape = tuple(wanted.shape)
        if target in given:
            held = given[target]
            if tuple(held.tensor.shape) != shape:
                faults.append(f"{held.source} has shape {held.shape} where {target} needs {shape}")
                continue
            state[target], cast = _cast(held.tensor, wanted.dtype)
            reason = ", ".join(part for part in (held.reason, cast) if part)
            rows.append(KeyRow(held.source, target, "adapted" if reason else "loaded", reason, shape))
            continue
        why = "not in older files; nothing depends on it" if target.endswith(COUNTER) else entry.absent(target)
        if why:
            rows.append(KeyRow("", target, "missing", why, shape))
        else:
            faults.append(f"{target} {shape} is missing")
    if faults:
        raise _mismatch(source, entry, name, faults)
    built = _build(network)
    own = built.state_dict()
    built.load_state_dict({target: state.get(target, tensor) for target, tensor in own.items()}, strict=True)
    return Match(built.eval(), KeyTable.of(rows), arguments["in_channels"], classes)


def _arguments(entry: Format, name: str, tensors: Mapping[str, Tensor], classes: int | None) -> dict[str, Any]:
    """Return what to build the network with, except for its width."""
    stem = tensors.get(entry.stem.target)
    channels = int(stem.shape[1]) if stem is not None and stem.ndim > 1 and stem.shape[1] else 3
    if name in BACKBONES:
        return {"name": name, "in_channels": channels, "tail": "last", **entry.options(tensors)}
    classes = classes or spec(name).num_classes
    return {"name": name, "in_channels": channels, "num_classes": classes, **entry.options(tensors)}


def _best_width(
    arguments: dict[str, Any], tensors: Mapping[str, Tensor], entry: Format
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Try the paper's width, and the one of the first layer; return the arguments and state that fit better.

    One wrong layer, the first included, must not turn every other into a fault.
    """
    widths = [1.0]
    stem = tensors.get(entry.stem.target)
    if stem is not None and stem.ndim and 0 < stem.shape[0] < entry.stem.channels:
        widths.append(stem.shape[0] / entry.stem.channels)
    tried = []
    for width in widths:
        whole = {**arguments, "width": width}
        with torch.device("meta"):
            state = _build(whole).state_dict()
        wrong = sum(target in tensors and tensors[target].shape != wanted.shape for target, wanted in state.items())
        tried.append((wrong, whole, state))
    _, whole, state = min(tried, key=lambda trial: trial[0])
    return whole, state


def _build(arguments: Mapping[str, Any]) -> nn.Module:
    options = dict(arguments)
    name = options.pop("name")
    if name in BACKBONES:
        return create_backbone(name, faithful=True, **options)
    return create(name, faithful=True, **options)


def _cast(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, str]:
    """Return a tensor in the type of the network's, and what was done."""
    if tensor.dtype == dtype:
        return tensor.contiguous(), ""
    kind = f"{tensor.dtype} to {dtype}".replace("torch.", "")
    return tensor.to(dtype).contiguous(), kind


def _mismatch(source: Source, entry: Format, name: str, faults: list[str]) -> RunError:
    shown = "; ".join(faults[:_MOST_FAULTS])
    more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
    return RunError(
        f"its keys do not fit {name} in the format {entry.name} ({entry.title}): {shown}{more}.",
        remedy="Check that the file is whole and was saved from this network, or name another with --as or --format.",
        where=source.path,
        code="foreign-mismatch",
    )


def no_format(source: Source, name: str, known: list[Format], keys: list[str]) -> ConfigError:
    """Return the error for keys that no format of a network has."""
    shown = ", ".join(keys[:5]) or "none"
    formats = "; ".join(f"{entry.name} ({entry.title}, {' or '.join(entry.container)})" for entry in known)
    return ConfigError(
        f"its keys are those of no known format of {name}: it is a {source.container} file with {shown}"
        f"{' …' if len(keys) > 5 else ''}",
        remedy=f"Known formats of {name}: {formats}. --format names one of them.",
        where=source.path,
        code="foreign-format",
    )
