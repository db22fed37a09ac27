"""Vocabularies and classifiers on disk: arrays in a safetensors file with their facts, a readable copy beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from volrec.errors import RunError
from volrec.files import is_disk_full, write_atomically

__all__ = ["load_arrays", "save_arrays"]

_KEY = "volrec_encoding"


def save_arrays(path: Path | str, arrays: Mapping[str, np.ndarray], *, kind: str, facts: Mapping[str, Any]) -> None:
    """Write arrays and facts, all or nothing; ``NAME.json`` beside ``NAME.safetensors`` is for reading.

    Parameters
    ----------
    path : path
        ``….safetensors``; its folder must exist.
    arrays : mapping
        From name to array, kept bit for bit.
    kind : str
        What it is ("fisher", "linear-svm" …): asked for when it is read.
    facts : mapping
        Plain JSON.

    Raises
    ------
    RunError
        When it cannot be written.
    """
    from safetensors.numpy import save

    path = Path(path)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    card = {"kind": kind, "facts": dict(facts), "sha256": _digest(whole)}
    try:
        write_atomically(path, save(whole, metadata={_KEY: json.dumps(card, allow_nan=False)}))
        shapes = {name: [str(array.dtype), *array.shape] for name, array in sorted(whole.items())}
        write_atomically(path.with_suffix(".json"), json.dumps({**card, "arrays": shapes}, indent=2) + "\n")
    except OSError as error:
        raise RunError(
            "it cannot be written: the disk is full."
            if is_disk_full(error)
            else f"it cannot be written ({error.strerror or error}).",
            remedy="Make room, or choose a folder that exists and that you may write to.",
            where=path,
            code="unwritable",
        ) from error


def load_arrays(path: Path | str, *, kinds: tuple[str, ...]) -> tuple[dict[str, np.ndarray], str, dict[str, Any]]:
    """Read what `save_arrays` wrote.

    Returns
    -------
    arrays : dict
        From name to array.
    kind : str
        One of `kinds`.
    facts : dict

    Raises
    ------
    RunError
        A missing or damaged file, or one of another kind. Pickles are not read.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as file:
            card = json.loads((file.metadata() or {})[_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        kind, facts, digest = str(card["kind"]), dict(card["facts"]), card["sha256"]
    except FileNotFoundError:
        raise RunError(
            "there is no such file.", remedy="Give one that volrec benchmark wrote.", where=path, code="missing"
        ) from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"it holds no vocabulary or classifier of volrec, or is damaged ({error}).",
            remedy="Fit it again.",
            where=path,
            code="encoding-damaged",
        ) from error
    if digest != _digest(arrays):
        raise RunError(
            "its arrays are not those that were written.", remedy="Fit it again.", where=path, code="encoding-damaged"
        )
    if kind not in kinds:
        raise RunError(
            f"it holds {kind!r}, and {' or '.join(repr(each) for each in kinds)} is needed.",
            remedy="Give the other file.",
            where=path,
            code="encoding-kind",
        )
    return arrays, kind, facts


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()
