"""One safetensors file holds the tensors and the card; a readable copy of the card lies beside it.

The card within the file is the one that counts: file and card are replaced in one step and cannot part. Besides what
the caller says (preprocessing, task, classes, split, data signature) it holds

``architecture``
    The arguments of `volrec.networks.create` that rebuild the network.
``tensors``
    Number of tensors, of parameters, and the SHA-256 over all of them, checked on reading.
``versions``
    Of volrec and torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from volrec.errors import ConfigError, RunError
from volrec.files import is_disk_full, write_atomically
from volrec.networks import SequenceNetwork, create

if TYPE_CHECKING:
    from volrec.networks.backbones.contract import Backbone

__all__ = [
    "OWN_KEYS",
    "card_path",
    "has_card",
    "load_backbone",
    "load_network",
    "load_state",
    "load_weights",
    "read_card",
    "save_weights",
]

log = logging.getLogger(__name__)

_KEY = "volrec_card"
OWN_KEYS = ("architecture", "tensors", "versions")
"""Keys of a card that `save_weights` adds."""


def card_path(path: Path | str) -> Path:
    """Return the place of the readable copy: ``card.json`` beside ``weights.safetensors``, ``NAME.json`` otherwise."""
    path = Path(path)
    return path.with_name("card.json") if path.stem == "weights" else path.with_suffix(".json")


def save_weights(path: Path | str, network: nn.Module, card: Mapping[str, Any]) -> None:
    """Write the weights of a network with its card, all or nothing.

    Parameters
    ----------
    path : path
        ``….safetensors``; the folder must exist. An older file is replaced.
    network : SequenceNetwork
        Its state (parameters and buffers) is saved as it is, from any device.
    card : mapping
        JSON types only: preprocessing contract, task, targets, classes, regression scaling, split, data signature …
        The keys ``architecture``, ``tensors`` and ``versions`` are added here.

    Raises
    ------
    RunError
        When the file cannot be written.
    ConfigError
        When the card holds something that JSON does not know, or one of the keys that are added here.
    """
    path = Path(path)
    taken = [key for key in OWN_KEYS if key in card]
    if taken:
        raise ConfigError(
            f"the card already holds {', '.join(taken)}.", remedy="These keys are written by save_weights.", code="card"
        )
    # A copy each: safetensors refuses tensors that share memory.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    whole = {
        **card,
        "architecture": getattr(network, "architecture", None),
        "tensors": {
            "count": len(state),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "sha256": _digest(state),
        },
        "versions": {"volrec": _version("volrec"), "torch": torch.__version__.split("+")[0]},
    }
    try:
        text = json.dumps(whole, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the card cannot be written as JSON ({error}).",
            remedy="Use text, finite numbers, lists and mappings only.",
            code="card",
        ) from error
    try:
        write_atomically(path, to_bytes(state, metadata={_KEY: text}))
        write_atomically(card_path(path), json.dumps(whole, indent=2) + "\n")
    except OSError as error:
        full = is_disk_full(error)
        raise RunError(
            "it cannot be written: the disk is full." if full else f"it cannot be written ({error.strerror or error}).",
            remedy="Make room and go on." if full else "Choose a folder that exists and that you may write to.",
            where=path,
            code="disk-full" if full else "unwritable",
        ) from error


def load_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights and card.

    Parameters
    ----------
    path : path
        A file that `save_weights` wrote.

    Returns
    -------
    state : dict
        From parameter and buffer name to tensor, on the CPU.
    card : dict
        As in the head of this file.

    Raises
    ------
    RunError
        When the file is missing, is no safetensors file (pickles are not read), has no card, or is damaged.
    """
    path = Path(path)
    card = read_card(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if _digest(state) != card["tensors"]["sha256"]:
        raise _damaged(path, "its tensors are not the ones that were written")
    copy = card_path(path)
    if copy.is_file() and _read(copy) != card:
        log.warning("%s was changed or belongs to other weights; the card within %s counts.", copy, path.name)
    return state, card


def read_card(path: Path | str) -> dict[str, Any]:
    """Read the card within a weights file, and nothing of its tensors.

    Raises
    ------
    RunError
        When the file is missing, is no safetensors file, or has no card.
    """
    path = Path(path)
    _check_kind(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, str(error)) from error
    if text is None:
        raise RunError(
            "it holds tensors but no volrec card.", remedy="Give weights that volrec wrote.", where=path, code="no-card"
        )
    try:
        card: dict[str, Any] = json.loads(text)
        card["tensors"]["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, "its card cannot be read") from error
    return card


def has_card(path: Path | str) -> bool:
    """Tell whether a safetensors file is one of volrec's."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return _KEY in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(Path(path), str(error)) from error


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, where: Path | str | None = None) -> None:
    """Load a state into a network, strictly.

    Raises
    ------
    RunError
        With every name that is missing, unexpected, or of another shape. The network is then unchanged.
    """
    own = network.state_dict()
    faults = [f"{name} is missing" for name in own if name not in state]
    faults += [f"{name} is unexpected" for name in state if name not in own]
    faults += [
        f"{name} has shape {tuple(state[name].shape)} where {tuple(tensor.shape)} is needed"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        raise RunError(
            f"the weights do not fit the network: {'; '.join(faults)}.",
            remedy="Build the network with the arguments in the card's 'architecture'.",
            where=where,
            code="weights-mismatch",
        )
    network.load_state_dict(dict(state), strict=True)


def load_network(path: Path | str, *, device: torch.device | str = "cpu") -> tuple[SequenceNetwork, dict[str, Any]]:
    """Rebuild the network that a card describes and load its weights.

    Returns
    -------
    network : SequenceNetwork
        In evaluation mode, on `device`.
    card : dict
        Its card.

    Raises
    ------
    RunError
        As `load_weights` and `load_state`, and when this version of volrec cannot build the network.
    """
    card = read_card(path)
    arguments = _architecture(path, card)
    if "backbone" in arguments:
        raise RunError(
            f"it holds the 2D network {arguments['backbone']}, which encodes slices, not volumes.",
            remedy=f"Train a 3D network from it with `volrec train --init inflate:{path}`, or use load_backbone.",
            where=path,
            code="weights-2d",
        )
    state, card = load_weights(path)
    try:
        options = arguments.pop("options", {})
        network = create(arguments.pop("name"), **arguments, **options)
    except (ConfigError, KeyError, TypeError) as error:
        raise _unknown(path, card, error) from error
    load_state(network, state, where=path)
    return network.to(device).eval(), card


def load_backbone(path: Path | str, *, device: torch.device | str = "cpu") -> tuple[Backbone, dict[str, Any]]:
    """Rebuild the 2D network that a card describes and load its weights.

    Returns
    -------
    backbone : Backbone
        In evaluation mode, on `device`.
    card : dict
        Its card; ``card["architecture"]`` has the arguments of `volrec.networks.backbones.create_backbone`, the name
        under ``backbone``.

    Raises
    ------
    RunError
        As `load_weights` and `load_state`, when the file holds a network of sequences, and when this version of volrec
        cannot build the 2D network.
    """
    from volrec.networks.backbones import create_backbone

    card = read_card(path)
    arguments = _architecture(path, card)
    if "backbone" not in arguments:
        raise RunError(
            f"it holds {arguments.get('name', 'another network')}, a network of sequences, not a 2D network.",
            remedy="Give weights of `volrec pretrain` or of a 2D network, or use load_network.",
            where=path,
            code="weights-3d",
        )
    state, card = load_weights(path)
    try:
        backbone = create_backbone(arguments.pop("backbone"), **arguments)
    except (ConfigError, TypeError) as error:
        raise _unknown(path, card, error) from error
    load_state(backbone, state, where=path)
    return backbone.to(device).eval(), card


def _architecture(path: Path | str, card: Mapping[str, Any]) -> dict[str, Any]:
    architecture = card.get("architecture")
    if not isinstance(architecture, dict):
        raise RunError(
            "its card names no network of the registry.",
            remedy="Build the network yourself and use load_weights and load_state.",
            where=path,
            code="no-architecture",
        )
    return dict(architecture)


def _unknown(path: Path | str, card: Mapping[str, Any], error: Exception) -> RunError:
    return RunError(
        f"this version of volrec cannot build its network ({error}).",
        remedy=f"It was written by volrec {card.get('versions', {}).get('volrec', '?')}; use that version.",
        where=path,
        code="architecture",
    )


def _check_kind(path: Path) -> None:
    """Tell a safetensors file by its first bytes, so that the message names what was given instead."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise RunError(
            "there is no such file.", remedy="Give a weights.safetensors that volrec wrote.", where=path, code="missing"
        ) from None
    except OSError as error:
        raise RunError(
            f"it cannot be read ({error.strerror or error}).", remedy="Check the path.", where=path, code="unreadable"
        ) from error
    # The first eight bytes of a safetensors file are a length and may look like anything.
    if head[8:9] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise RunError(
            "it is a PyTorch pickle, which can run code and is not read.",
            remedy=f"Give a safetensors file; `volrec import-weights {path} --as NETWORK` makes one of others.",
            where=path,
            code="pickle",
        )
    if len(head) < 9 or head[8:9] != b"{" or struct.unpack("<Q", head[:8])[0] > path.stat().st_size:
        raise _damaged(path, "its head is not one of a safetensors file")


def _damaged(path: Path, why: str) -> RunError:
    return RunError(
        f"it is no safetensors file or is damaged ({why}).",
        remedy="Restore it from a copy, or train again.",
        where=path,
        code="weights-damaged",
    )


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        # Bytes as they are: NumPy knows no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
