"""First weights of a training from weights that exist: where they lie, and what of them fits.

A source is what ``init.source`` says: the folder of a run (`volrec train`: its first finished member; `volrec
transfer`: ``student``), the folder of one member, or a weights file; with ``inflate:`` before it, a run of `volrec
pretrain` (``teacher``) or the weights file of a 2D network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from volrec.errors import RunError
from volrec.networks import SequenceNetwork, SlicewiseNetwork
from volrec.weights.accounting import KeyTable
from volrec.weights.files import load_weights, read_card
from volrec.weights.fitting import fit_state
from volrec.weights.inflate import inflate_state

__all__ = [
    "INFLATE",
    "find_weights",
    "fit_source",
    "init_network",
    "is_2d",
    "read_source_card",
    "short_source",
    "split_source",
    "still_training",
]

INFLATE = "inflate:"
"""Before the path of 2D weights whose kernels are to get a time axis."""

_FILE = "weights.safetensors"
_PARTS = {"student": "transfer", "teacher": "pretrain"}
"""Members of the runs that learn without labels, and their commands."""


def split_source(source: str | Path) -> tuple[bool, Path]:
    """Return whether ``inflate:`` stands before it, and the path, with ``~`` resolved."""
    text = str(source)
    return text.startswith(INFLATE), Path(text.removeprefix(INFLATE).strip()).expanduser()


def short_source(source: str | Path) -> str:
    """Return what a source is called in reasons, notes and cards: the last two parts of its path."""
    inflate, path = split_source(source)
    return f"{INFLATE if inflate else ''}{'/'.join(path.absolute().parts[-2:])}"


def is_2d(card: dict[str, Any]) -> bool:
    """Tell whether a card describes a 2D network, which encodes slices."""
    return "backbone" in (card.get("architecture") or {})


def still_training(weights: Path) -> bool:
    """Tell whether a member's weights are those of some epoch on the way: it can be gone on with, and has no end."""
    return (weights.parent / "last.ckpt").is_file() and not (weights.parent / "finished").is_file()


def find_weights(source: str | Path) -> Path:
    """Return the weights file that a source means; nothing of it is read.

    Raises
    ------
    RunError
        When there is none, or only those of a training that was interrupted: with what was looked for.
    """
    inflate, path = split_source(source)
    if path.is_file():
        return path
    if not path.is_dir():
        raise RunError(
            "there is no such file or folder to take first weights from.",
            remedy="Give a run folder (runs/…) or a weights.safetensors; a relative path starts at the working folder.",
            where=path,
            code="init-missing",
        )
    places = [path / part / _FILE for part in (reversed(_PARTS) if inflate else _PARTS)]
    members = [child for child in path.iterdir() if (child / "finished").is_file() and (child / _FILE).is_file()]
    places[1:1] = [member / _FILE for member in sorted(members, key=_natural)]
    for place in (path / _FILE, *places):
        if place.is_file() and (place.parent == path or not still_training(place)):
            return place
    begun = next((_PARTS.get(each.parent.name, "train") for each in sorted(path.glob("*/last.ckpt"))), None)
    raise RunError(
        f"it holds no weights to begin with: neither {_FILE}, nor student or teacher with one, nor a finished member.",
        remedy=f"Finish that run first (`volrec {begun} --resume {path}`)." if begun else "Give a finished run.",
        where=path,
        code="init-missing",
    )


def read_source_card(source: str | Path) -> dict[str, Any]:
    """Return the card of a source's weights.

    Raises
    ------
    RunError
        As `find_weights`, and when the file has no card or is no safetensors file.
    """
    return read_card(find_weights(source))


def init_network(
    network: SequenceNetwork,
    source: str | Path,
    *,
    first_layer: Literal["sum", "mean"] = "sum",
    inflate: Literal["average", "center"] = "average",
    classes: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> KeyTable:
    """Load what fits of a source into a network; the rest keeps its drawn weights.

    Keys go by name (`volrec.weights.fitting.canonical_name`): the same shape is loaded, the first convolution of
    another number of channels is adapted, 2D kernels are inflated where the source says so. The classifier is taken
    only from a run with the same targets and classes.

    Parameters
    ----------
    network : SequenceNetwork
        Is changed in place.
    source : str or path
        See the head of this file.
    first_layer : {"sum", "mean"}
        See `volrec.weights.adapt.adapt_channels`.
    inflate : {"average", "center"}
        See `volrec.weights.inflate.inflate_kernel`.
    classes, targets : sequence of str
        What the network's outputs mean; without classes the classifier keeps its drawn weights.

    Returns
    -------
    KeyTable
        What became of every key of the source and of the network.

    Raises
    ------
    RunError
        There is no such source, it is 2D where a 3D one is needed or the other way round, or less than half of the
        network's parameters would be filled. Of 2D weights, parameters without a counterpart in 2D do not count. The
        network is then unchanged.
    """
    found, table = fit_source(
        network, source, first_layer=first_layer, inflate=inflate, classes=classes, targets=targets
    )
    network.load_state_dict(found, strict=False)
    return table


def fit_source(
    network: SequenceNetwork,
    source: str | Path,
    *,
    first_layer: Literal["sum", "mean"] = "sum",
    inflate: Literal["average", "center"] = "average",
    classes: Sequence[str] = (),
    targets: Sequence[str] = (),
) -> tuple[dict[str, Tensor], KeyTable]:
    """Return what `init_network` would load; the network may be on the meta device and stays as it is."""
    path = find_weights(source)
    card = read_card(path)
    _check_kind(network, source, path, card)
    state, card = load_weights(path)
    architecture = card.get("architecture") or {}
    channels = architecture.get("in_channels")
    if is_2d(card):
        found, table = inflate_state(state, network, in_channels=channels, first_layer=first_layer, mode=inflate)
    else:
        last = tuple(name for name in network.state_dict() if name.startswith(f"{network.classifier_name}."))
        why = _other_outputs(card, classes, targets)
        found, table = fit_state(
            state,
            network,
            in_channels=channels,
            first_layer=first_layer,
            drop={name: why for name in last if why and name in state},
            keep={name: why for name in last if why},
            absent="not in the source",
        )
    _check_share(network, table, card, path)
    return found, table


def _other_outputs(card: dict[str, Any], classes: Sequence[str], targets: Sequence[str]) -> str:
    """Return why the source's classifier means something else; empty where it means the same."""
    theirs = list(card.get("classes") or [])
    if theirs and theirs == list(classes) and list(card.get("targets") or []) == list(targets):
        return ""
    return f"the classifier of another question ({', '.join(map(str, theirs)) or 'no classes'})"


def _check_kind(network: SequenceNetwork, source: str | Path, path: Path, card: dict[str, Any]) -> None:
    inflate, given = split_source(source)
    if inflate and not is_2d(card):
        raise RunError(
            f"it holds {_describe(card)}, which has its time axis already.",
            remedy=f"Say {given} without '{INFLATE}'.",
            where=path,
            code="init-kind",
        )
    if not inflate and is_2d(card) and not (isinstance(network, SlicewiseNetwork) or network.tower_names):
        raise RunError(
            f"it holds the 2D network {_describe(card)}; the kernels of {network.registry_name} have a time axis.",
            remedy=f"Say {INFLATE}{given} to inflate it.",
            where=path,
            code="init-kind",
        )


def _check_share(network: SequenceNetwork, table: KeyTable, card: dict[str, Any], path: Path) -> None:
    """Make sure that the training starts from the source in more than name."""
    sizes = {
        name: parameter.numel()
        for name, parameter in network.named_parameters()
        if not name.startswith(f"{network.classifier_name}.")
    }
    # A whole network is compared with a whole network. A 2D one has no counterpart of what works along time.
    counted = [row for row in table.rows if row.target in sizes and not (is_2d(card) and row.action == "missing")]
    filled = sum(sizes[row.target] for row in counted if row.action in ("loaded", "adapted"))
    share = filled / max(1, sum(sizes[row.target] for row in counted))
    if share >= 0.5:
        return
    architecture = card.get("architecture") or {}
    name = "backbone" if is_2d(card) else "name"
    width = architecture.get("width", 1.0)
    advice = (
        f"Take a network that holds it (--network inflated --set network.options.backbone={architecture.get(name)} "
        f"--set network.width={width:g})"
        if is_2d(card)
        else f"Take its network (--network {architecture.get(name)} --set network.width={width:g})"
    )
    raise RunError(
        f"{share:.0%} of the weights of {network.registry_name} would come from it: {_mismatch(network, table, card)}.",
        remedy=f"{advice}, or another source.",
        where=path,
        code="init-mismatch",
    )


def _mismatch(network: SequenceNetwork, table: KeyTable, card: dict[str, Any]) -> str:
    """Return the main reason why little fits."""
    mine, theirs = _describe_network(network), _describe(card)
    if mine != theirs:
        return f"the source is {theirs}, yours is {mine}"
    own = getattr(network, "architecture", {}).get("options", {})
    other = (card.get("architecture") or {}).get("options", {})
    apart = [key for key in own if key in other and other[key] != own[key]]
    if apart:
        return "options differ: " + ", ".join(f"{key} is {other[key]} there, {own[key]} here" for key in apart)
    first = next((row for row in table.rows if row.target and row.action in ("dropped", "missing")), None)
    return f"{first.target}: {first.reason}" if first else "it holds nothing of the kind"


def _describe(card: dict[str, Any]) -> str:
    architecture = card.get("architecture") or {}
    name = architecture.get("backbone") or architecture.get("name") or "a network that its card does not name"
    return f"{name} at width {architecture.get('width', 1.0):g}"


def _describe_network(network: SequenceNetwork) -> str:
    return f"{network.registry_name} at width {getattr(network, 'architecture', {}).get('width', 1.0):g}"


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sort ``fold-2`` before ``fold-10``."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in _parts(path.name)]


def _parts(name: str) -> Iterator[str]:
    return (part for part in re.split(r"(\d+)", name) if part)
