"""What lies in a file of foreign weights: names and tensors, whatever it was saved with. Nothing is executed.

========================  =============================================================================
container                 how it is read
========================  =============================================================================
``torch``                 ``torch.load(weights_only=True)``; wrappers such as ``{"state_dict": …}`` are taken off
``safetensors``           the library of that name
``caffe``                 `volrec.weights.foreign.caffe`
``tensorflow``            `volrec.weights.foreign.tensorflow`
========================  =============================================================================
"""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from volrec.errors import RunError
from volrec.weights.foreign.caffe import read_caffemodel
from volrec.weights.foreign.tensorflow import is_bundle, read_bundle

__all__ = ["Source", "read_source"]

_WRAPPERS = ("state_dict", "model_state", "model", "model_state_dict")
# What torch.load raises for bytes that it did not write.
_BAD_TORCH = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    MemoryError,
    OSError,
    struct.error,
    zipfile.BadZipFile,
    NotImplementedError,
)


@dataclass(frozen=True)
class Source:
    """What a file holds.

    Attributes
    ----------
    path : path
        As it was given.
    container : str
        ``torch``, ``safetensors``, ``caffe`` or ``tensorflow``.
    tensors : dict
        Key to tensor, on the CPU, as stored.
    left : tuple of (str, str)
        Keys whose values are no tensors, with the reason.
    files : tuple of path
        That were read.
    """

    path: Path
    container: str
    tensors: dict[str, Tensor]
    left: tuple[tuple[str, str], ...]
    files: tuple[Path, ...]

    def sha256(self) -> str:
        """Return the SHA-256 over the files, one after the other."""
        digest = hashlib.sha256()
        for path in self.files:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()


def read_source(path: Path | str) -> Source:
    """Read a file of weights, recognised by its first bytes.

    Raises
    ------
    RunError
        When it is missing, damaged, of an unknown kind, or would run code.
    """
    path = Path(path)
    if is_bundle(path):
        tensors, left, files = read_bundle(path)
        return Source(path, "tensorflow", tensors, tuple(left), files)
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            size = path.stat().st_size
    except FileNotFoundError:
        raise RunError("there is no such file.", remedy="Check the path.", where=path, code="missing") from None
    except OSError as error:
        raise RunError(
            f"it cannot be read ({error.strerror or error}).", remedy="Check the path.", where=path, code="unreadable"
        ) from error
    # The length of a safetensors header may begin like a pickle, so its brace is looked for first.
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size:
        return Source(path, "safetensors", _safetensors(path), (), (path,))
    if head[:2] == b"PK" or head[:1] == b"\x80":
        tensors, left = _torch(path, size)
        return Source(path, "torch", tensors, tuple(left), (path,))
    if head[:4] == b"\x89HDF":
        raise RunError(
            "it is an HDF5 file, as Keras writes it, which is not read.",
            remedy="Convert it to a state dict of PyTorch, or take the weights from another source.",
            where=path,
            code="foreign-container",
        )
    # A protocol buffer has no mark of its own: what is none of the others may be one, under any name.
    try:
        return Source(path, "caffe", read_caffemodel(path), (), (path,))
    except RunError as error:
        if path.suffix == ".caffemodel":
            raise
        raise RunError(
            "it is no state dict of PyTorch, safetensors file, caffemodel or checkpoint of TensorFlow, or is damaged.",
            remedy="Fetch it again, and compare its size with the one at its source.",
            where=path,
            code="foreign-container",
        ) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        raise _damaged(path, "safetensors file", error) from error


def _torch(path: Path, size: int) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch packs without compression: what unpacks to more than the file is no checkpoint.
                if sum(entry.file_size for entry in archive.infolist()) > size:
                    raise ValueError("its parts are larger than the file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the protocol of a pickle, which is read or refused all the same
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _BAD_TORCH as error:
        wanted = sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error))))
        if wanted or "unsupported" in str(error).lower():
            what = f"to load {', '.join(wanted)}" if wanted else "to run code"
            raise RunError(
                f"its pickle asks {what}, which can run code and is not done.",
                remedy="Save the state dict alone: torch.save(model.state_dict(), file).",
                where=path,
                code="pickle",
            ) from error
        raise _damaged(path, "checkpoint of PyTorch", error) from error
    return _state(path, content, size)


def _state(path: Path, content: Any, size: int) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Take the wrappers off, and leave out what is no tensor."""
    for _ in range(3):
        inner = (
            [content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
            if isinstance(content, Mapping)
            else []
        )
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        raise RunError(
            f"it holds a {type(content).__name__} where names and tensors are expected.",
            remedy="Save the state dict: torch.save(model.state_dict(), file).",
            where=path,
            code="foreign-container",
        )
    tensors: dict[str, Tensor] = {}
    left: list[tuple[str, str]] = []
    for key, value in content.items():
        if not isinstance(value, Tensor):
            left.append((str(key), f"no tensor ({type(value).__name__})"))
        elif value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            left.append((str(key), f"no plain tensor ({value.layout}, {value.device.type})"))
        elif value.numel() * value.element_size() > size:
            # A tensor may repeat one stored number for ever; copying it would fill the memory.
            raise _damaged(path, "checkpoint of PyTorch", f"{key} is larger than the file")
        else:
            tensors[str(key)] = value.detach()
    return tensors, left


def _damaged(path: Path, kind: str, why: object) -> RunError:
    lines = str(why).strip().splitlines()
    return RunError(
        f"it is no {kind} or is damaged ({lines[0][:200] if lines else type(why).__name__}).",
        remedy="Fetch it again, and compare its size with the one at its source.",
        where=path,
        code="foreign-damaged",
    )
