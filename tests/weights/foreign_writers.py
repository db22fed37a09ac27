"""Files of Caffe and TensorFlow, written from their descriptions with nothing of volrec."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

MAGIC = 0xDB4775248B80FB57
TYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray, *, form: str = "shape", values: bytes | None = None) -> bytes:
    """One blob: ``shape`` (Caffe today), ``four`` (num … width) or ``five`` (the fork of C3D, with length)."""
    packed = array.astype("<f4").tobytes() if values is None else values
    if form == "shape":
        return message(5, packed) + message(7, message(1, b"".join(varint(size) for size in array.shape)))
    axes = {"four": 4, "five": 5}[form]
    shape = (1,) * (axes - array.ndim) + array.shape
    return b"".join(number(1 + index, size) for index, size in enumerate(shape)) + message(axes + 1, packed)


def caffemodel(layers: dict[str, list[bytes]], *, old: bool) -> bytes:
    """A net of layers with blobs; `old` is V1LayerParameter."""
    name_field, blob_field, field = (4, 6, 2) if old else (1, 7, 100)
    whole = message(1, b"a net") + message(field, message(name_field, b"data"))
    for name, blobs in layers.items():
        content = message(name_field, name.encode()) + number(5, 1) * old
        whole += message(field, content + b"".join(message(blob_field, held) for held in blobs))
    return whole


def table(entries: list[tuple[bytes, bytes]], *, block_size: int = 2000, packed: int = 0) -> bytes:
    """A sorted table of LevelDB: keys share prefixes within a block, every 16th is whole."""

    def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
        out, restarts, last = b"", [], b""
        for index, (key, value) in enumerate(pairs):
            shared = 0
            if index % 16 == 0:
                restarts.append(len(out))
            else:
                while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                    shared += 1
            out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
            last = key
        restarts = restarts or [0]
        return out + b"".join(struct.pack("<I", place) for place in [*restarts, len(restarts)])

    whole, handles, pending = b"", [], []

    def write(pairs: list[tuple[bytes, bytes]]) -> bytes:
        nonlocal whole
        content = block(pairs)
        handle = varint(len(whole)) + varint(len(content))
        whole += content + bytes([packed]) + b"\0" * 4
        return handle

    for key, value in sorted(entries):
        pending.append((key, value))
        if sum(len(a) + len(b) for a, b in pending) > block_size:
            handles.append((key, write(pending)))
            pending = []
    if pending:
        handles.append((pending[-1][0], write(pending)))
    meta = write([])
    footer = meta + write(handles)
    return whole + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def write_bundle(
    prefix: Path,
    tensors: dict[str, np.ndarray],
    *,
    shards: int = 1,
    packed: int = 0,
    extra: dict[str, bytes] | None = None,
    endian: int = 0,
) -> Path:
    """A checkpoint of TensorFlow under ``prefix``; returns its index."""
    data = [b""] * shards
    header = number(1, shards) + (number(2, endian) if endian else b"") + message(3, number(1, 1))
    entries = [(b"", header), *((name.encode(), value) for name, value in (extra or {}).items())]
    for index, (name, array) in enumerate(sorted(tensors.items())):
        shard = index % shards
        dims = b"".join(message(2, number(1, size)) for size in array.shape)
        content = array.tobytes()
        entry = number(1, TYPES[str(array.dtype)]) + message(2, dims) + number(3, shard) * bool(shard)
        entry += number(4, len(data[shard])) + number(5, len(content)) + varint(6 << 3 | 5) + b"\1\2\3\4"
        entries.append((name.encode(), entry))
        data[shard] += content
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    place = prefix.with_name(f"{prefix.name}.index")
    place.write_bytes(table(entries, packed=packed))
    return place
