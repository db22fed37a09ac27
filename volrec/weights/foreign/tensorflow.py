"""TensorFlow checkpoints (format 2): ``NAME.index``, a sorted table of names, and ``NAME.data-00000-of-00001``.

The index is a table as LevelDB writes it: blocks of keys that share prefixes, a block of block positions, and a footer
of 48 bytes that ends in a magic number. Its values are messages: the header at the empty key (number of shards), and
type, shape, shard, offset and size for every tensor. Read here without TensorFlow; check sums of the values are not
compared, sizes are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from volrec.errors import RunError
from volrec.weights.foreign.protobuf import BYTES, VARINT, Malformed, checked_shape, fields, varint

__all__ = ["bundle_prefix", "is_bundle", "read_bundle"]

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5
"""Bytes after a block: how it is packed, and a check sum."""
_MOST_KEYS, _LONGEST_KEY = 100_000, 1024
_TYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    9: torch.int64,
    14: torch.bfloat16,
    19: torch.float16,
}


def bundle_prefix(path: Path) -> Path:
    """Return ``NAME`` of ``NAME``, ``NAME.index``, ``NAME.meta`` or ``NAME.data-00000-of-00001``."""
    if path.suffix in {".index", ".meta"} or path.suffix.startswith(".data-"):
        return path.with_suffix("")
    return path


def is_bundle(path: Path) -> bool:
    """Tell whether a path names a checkpoint of TensorFlow, by itself or by one of its files."""
    return _index(bundle_prefix(path)).is_file()


def read_bundle(path: Path) -> tuple[dict[str, Tensor], list[tuple[str, str]], tuple[Path, ...]]:
    """Read every tensor of a checkpoint.

    Parameters
    ----------
    path : path
        Its common name, or one of its files.

    Returns
    -------
    tensors : dict
        Name of the variable to tensor.
    left : list of (str, str)
        Variables that cannot be read, with the reason.
    files : tuple of path
        Index and shards.

    Raises
    ------
    RunError
        When a file is missing, damaged, compressed or of the first format.
    """
    prefix = bundle_prefix(path)
    index = _index(prefix)
    try:
        data = memoryview(index.read_bytes())
        entries = dict(_table(data))
        shards = [
            prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{count:05d}")
            for count in [_shards(entries.pop(b"", b""))]
            for number in range(count)
        ]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise RunError(
                f"its shard {missing[0]} is not beside it.",
                remedy="Put the .index and every .data file of a checkpoint into one folder.",
                where=index,
                code="missing",
            )
        tensors, left = _tensors(entries, shards)
    except (Malformed, OSError, struct.error) as error:
        raise RunError(
            f"it is no TensorFlow checkpoint or is damaged ({error}).",
            remedy="Fetch .index and .data files again, and compare their sizes with those at their source.",
            where=index,
            code="foreign-damaged",
        ) from error
    return tensors, left, (index, *shards)


def _index(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def _table(data: memoryview) -> Iterator[tuple[bytes, bytes]]:
    """Go through the keys and values of a sorted table."""
    if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise Malformed("the index does not end as one does")
    position = len(data) - _FOOTER
    for _ in range(2):  # where the meta block lies is not needed
        _, position = varint(data, position)
    count = 0
    for _, handle in _entries(_block(data, data[position:-8])):
        for key, value in _entries(_block(data, handle)):
            count += 1
            if count > _MOST_KEYS:
                raise Malformed(f"it names more than {_MOST_KEYS} variables")
            yield key, bytes(value)


def _block(data: memoryview, handle: memoryview) -> memoryview:
    """Return the entries of a block, without the restart points that stand behind them."""
    offset, position = varint(handle, 0)
    size, _ = varint(handle, position)
    if size < 4 or offset + size + _TRAILER > len(data):
        raise Malformed(f"a block of {size} bytes at {offset} lies outside of the file")
    if data[offset + size] != 0:
        raise Malformed("its blocks are compressed; save it again with TensorFlow 1.2 or later, which does not")
    block = data[offset : offset + size]
    restarts = 4 * (struct.unpack("<I", block[-4:])[0] + 1)
    if restarts > size:
        raise Malformed("a block holds more restart points than bytes")
    return block[:-restarts]


def _entries(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    position, key = 0, b""
    while position < len(block):
        shared, position = varint(block, position)
        fresh, position = varint(block, position)
        length, position = varint(block, position)
        end = position + fresh + length
        if shared > len(key) or end > len(block) or shared + fresh > _LONGEST_KEY:
            raise Malformed("an entry of the index is longer than its block")
        key = key[:shared] + bytes(block[position : position + fresh])
        yield key, block[position + fresh : end]
        position = end


def _shards(header: bytes) -> int:
    numbers = {number: value for number, kind, value in fields(memoryview(header)) if kind == VARINT}
    count = int(numbers.get(1, 0))
    if not 1 <= count <= 1000:
        raise Malformed(f"its header names {count} shards")
    if numbers.get(2, 0):
        raise Malformed("its values are stored big-endian")
    return count


def _tensors(entries: dict[bytes, bytes], shards: list[Path]) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    sizes = [shard.stat().st_size for shard in shards]
    budget = sum(sizes)  # what several names point to would be read several times
    tensors: dict[str, Tensor] = {}
    left: list[tuple[str, str]] = []
    for key, value in entries.items():
        name = key.decode("utf-8", "replace")
        numbers = dict.fromkeys((1, 3, 4, 5), 0)
        shape: list[int] = []
        partitioned = False
        for number, kind, content in fields(memoryview(value)):
            if isinstance(content, int):
                numbers[number] = content
            elif number == 2 and kind == BYTES:
                shape = [size for inner, _, dim in fields(content) if inner == 2 for size in _size(dim)]
            partitioned |= number == 7
        dtype = _TYPES.get(numbers[1])
        if dtype is None or partitioned:
            left.append((name, "stored in several parts" if partitioned else f"no numbers (type {numbers[1]})"))
            continue
        shard, offset, size = numbers[3], numbers[4], numbers[5]
        budget -= size
        if shard >= len(shards) or offset + size > sizes[shard] or budget < 0:
            raise Malformed(f"the {size} bytes of {name} at {offset} lie outside of its shard")
        if size % dtype.itemsize:
            raise Malformed(f"the {size} bytes of {name} are no whole numbers")
        whole = checked_shape(shape, size // dtype.itemsize)
        if not math.prod(whole):
            tensors[name] = torch.zeros(whole, dtype=dtype)
            continue
        with open(shards[shard], "rb") as file:
            file.seek(offset)
            tensors[name] = torch.frombuffer(bytearray(file.read(size)), dtype=dtype).reshape(whole)
    return tensors, left


def _size(dim: int | memoryview) -> list[int]:
    """Return the size of one axis; a message without one is of size 0."""
    if isinstance(dim, int):
        raise Malformed("an axis has no message")
    return [next((int(value) for number, kind, value in fields(dim) if number == 1 and kind == VARINT), 0)]
