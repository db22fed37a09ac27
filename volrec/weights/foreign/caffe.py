"""Caffe's two binary files: a caffemodel (layers with their blobs) and a binaryproto (one blob, such as a mean image).

Read from the wire format, without Caffe or its schema. Field numbers are those of ``caffe.proto``, in its versions with
``layers`` (field 2, V1LayerParameter) and ``layer`` (field 100, LayerParameter). A blob has its shape in one of three
ways: ``shape`` (field 7); num, channels, height, width (fields 1 to 4); or, in the fork of C3D, num, channels, length,
height, width (fields 1 to 5) with the values one field further on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from volrec.errors import RunError
from volrec.weights.foreign.protobuf import BYTES, FIXED32, FIXED64, VARINT, Malformed, checked_shape, fields, integers

__all__ = ["read_binaryproto", "read_caffemodel"]

# Field of the net -> fields of the layer's name and blobs.
_LAYERS = {2: (4, 6), 100: (1, 7)}


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """Read the blobs of every layer.

    Parameters
    ----------
    path : path
        A caffemodel.

    Returns
    -------
    dict
        ``LAYER/0`` (weights), ``LAYER/1`` (bias) … to float32 tensors of the shapes that the file gives.

    Raises
    ------
    RunError
        When the file is damaged, or no caffemodel.
    """
    blobs: dict[str, Tensor] = {}
    try:
        for number, kind, value in fields(memoryview(path.read_bytes())):
            if number not in _LAYERS or kind != BYTES or isinstance(value, int):
                continue
            name_field, blob_field = _LAYERS[number]
            name, held = "", []
            for inner, inner_kind, content in fields(value):
                if isinstance(content, int) or inner_kind != BYTES:
                    continue
                if inner == name_field:
                    name = bytes(content).decode("utf-8", "replace")
                elif inner == blob_field:
                    held.append(content)
            for index, content in enumerate(held):
                if blobs.setdefault(f"{name}/{index}", tensor := _blob(content)) is not tensor:
                    raise Malformed(f"two layers are called {name!r}")
    except (Malformed, OSError) as error:
        raise _damaged(path, "caffemodel", error) from error
    if not blobs:
        raise _damaged(path, "caffemodel", "no layer has weights")
    return blobs


def read_binaryproto(path: Path) -> Tensor:
    """Read one blob: the mean volume of C3D is (1, C, T, H, W).

    Raises
    ------
    RunError
        When the file is damaged, or no binaryproto.
    """
    try:
        blob = _blob(memoryview(path.read_bytes()))
    except (Malformed, OSError) as error:
        raise _damaged(path, "binaryproto", error) from error
    if not blob.numel():
        raise _damaged(path, "binaryproto", "it holds no values")
    return blob


def _blob(data: memoryview) -> Tensor:
    parts = list(fields(data))
    kinds = {number: kind for number, kind, _ in parts}
    longer = kinds.get(5) == VARINT  # the fork of C3D: width, where Caffe has the values
    places = {6: "<f4"} if longer else {5: "<f4", 8: "<f8"}
    sizes: dict[int, int] = {}
    shape: list[int] | None = None
    values: list[np.ndarray] = []
    for number, kind, value in parts:
        if isinstance(value, int):
            sizes[number] = value
        elif number in places:
            dtype = np.dtype(places[number])
            if kind not in {BYTES, FIXED32, FIXED64} or len(value) % dtype.itemsize:
                raise Malformed("the values of a blob are no whole numbers of floats")
            values.append(np.frombuffer(value, dtype))
        elif number == 7 and kind == BYTES and not longer:
            shape = [
                size
                for inner, inner_kind, content in fields(value)
                if inner == 1
                for size in integers(inner_kind, content)
            ]
    array = np.concatenate(values) if values else np.zeros(0, "<f4")
    if shape is None:
        shape = [sizes.get(number, 1) for number in range(1, 6 if longer else 5)]
        if not array.size and not sizes:
            shape = [0]
    return torch.from_numpy(array.astype(np.float32)).reshape(checked_shape(shape, array.size))


def _damaged(path: Path, kind: str, why: object) -> RunError:
    reason = (why.strerror or str(why)) if isinstance(why, OSError) else str(why)
    return RunError(
        f"it is no {kind} or is damaged ({reason}).",
        remedy="Fetch it again, and compare its size with the one at its source.",
        where=path,
        code="foreign-damaged",
    )
