"""What a plan takes over from the weights that a training begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from volrec.weights import read_source_card
from volrec.weights.initial import is_2d, short_source

__all__ = ["Inherited", "inherit"]

INFLATED = "inflated"
"""The network that has a time axis for any 2D backbone."""


@dataclass(frozen=True)
class Inherited:
    """Taken over from a source.

    Attributes
    ----------
    sections : dict
        Whole sections.
    keys : dict
        Dotted keys; the rest of their sections is planned for the data.
    reasons : dict
        Dotted key or section -> one line.
    note : str
        What the training begins with; empty without a source.
    """

    sections: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    note: str = ""


def inherit(source: str | None, given: Mapping[str, Any], overrides: Mapping[str, Any]) -> Inherited:
    """Return what the user has left to the source: network, streams, preprocessing and intensity.

    Weights know the slices that they were trained on, so a run of volrec hands on its grid and its intensities. How
    long a clip is follows from the data. Of a 2D network the 3D one takes backbone and width, and its strides along
    time are planned.

    Parameters
    ----------
    source : str, optional
        As in ``init.source``.
    given : mapping
        Sections that the user wrote: they stay as they are.
    overrides : mapping
        Dotted keys that the user set: they win over keys of the source.

    Raises
    ------
    RunError
        There is no such source, or it is no weights file.
    ConfigError
        For a network that does not exist.
    """
    if source is None:
        return Inherited()
    card = read_source_card(source)
    why = f"as in {short_source(source)}"
    sections = {name: card[name] for name in ("preprocess", "intensity") if card.get(name) and name not in given}
    reasons = dict.fromkeys(sections, why)
    architecture = card.get("architecture") or {}
    wanted = overrides.get("network.name")
    keys: dict[str, Any] = {}
    if "network" not in given and is_2d(card):
        keys = _keys_of_2d(card, str(wanted or INFLATED))
        reasons |= dict.fromkeys(keys, why)
    elif "network" not in given and wanted in (None, architecture.get("name")) and architecture:
        sections["network"] = card.get("network") or _network_of(architecture)
        reasons["network"] = why
        if card.get("streams") and "streams" not in given:  # what its channels are
            sections["streams"] = card["streams"]
            reasons["streams"] = why
    keys = {key: value for key, value in keys.items() if key not in overrides}
    name = architecture.get("backbone") or architecture.get("name") or "weights"
    note = f"First weights: {name} from {short_source(source)}"
    contract = card.get("input")
    if contract and "intensity" not in sections:
        note += (
            f". They were trained on {contract['channels']} input in {contract['range']} less {contract['mean']} over "
            f"{contract['std']}; clips are normalised as planned for these data, and training adapts the weights"
        )
    return Inherited(sections, keys, reasons, note)


def _keys_of_2d(card: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the keys with which a network holds the 2D one: kernels of the same names and sizes."""
    from volrec.networks import spec

    architecture = card["architecture"]
    options = spec(name).options
    keys = {"network.name": name, "network.width": architecture.get("width", 1.0)}
    for key in ("backbone", "norm", "stem_stride"):
        value = architecture.get(key)
        if key in options and value is not None and (key == "backbone" or value != options[key].default):
            keys[f"network.options.{key}"] = value
    return keys


def _network_of(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section that rebuilds a network of the registry."""
    options = {key: value for key, value in architecture.get("options", {}).items() if value is not None}
    return {"name": architecture["name"], "width": architecture.get("width", 1.0), "options": options}
