"""The wire format of protocol buffers, as far as Caffe and TensorFlow use it; nothing is trusted.

https://protobuf.dev/programming-guides/encoding: a message is a run of fields, each a number, a wire type, and a
variable-length integer, eight bytes, four bytes, or a length with that many bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

__all__ = ["BYTES", "FIXED32", "FIXED64", "VARINT", "Malformed", "checked_shape", "fields", "integers", "varint"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_LONGEST = 10
"""Bytes of a varint of 64 bits."""


class Malformed(ValueError):
    """Bytes that are not what they should be; readers turn it into an error that names the file."""


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return the variable-length integer at `position` (64 bits, unsigned) and the position after it.

    Raises
    ------
    Malformed
        When it does not end within ten bytes, or the data do.
    """
    value = 0
    for index, byte in enumerate(data[position : position + _LONGEST]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & (2**64 - 1), position + index + 1
    raise Malformed(f"an integer at byte {position} does not end")


def fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Go through the fields of a message.

    Parameters
    ----------
    data : memoryview of bytes
        The message.

    Yields
    ------
    number : int
        Of the field.
    kind : int
        Wire type: `VARINT`, `FIXED64`, `BYTES` or `FIXED32`.
    value : int or memoryview
        The integer of a varint; the bytes of the others.

    Raises
    ------
    Malformed
        When a field is longer than what is left, or of an unknown wire type.
    """
    position = 0
    while position < len(data):
        tag, position = varint(data, position)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise Malformed("a field has the number 0")
        if kind == VARINT:
            value, position = varint(data, position)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, position = varint(data, position)
        elif kind in {FIXED32, FIXED64}:
            length = 4 if kind == FIXED32 else 8
        else:
            raise Malformed(f"field {number} has the unknown wire type {kind}")
        if length > len(data) - position:
            raise Malformed(f"field {number} has {length} bytes where {len(data) - position} are left")
        yield number, kind, data[position : position + length]
        position += length


def integers(kind: int, value: int | memoryview) -> list[int]:
    """Return the values of one occurrence of a repeated integer field, packed or not.

    Raises
    ------
    Malformed
        For another wire type than varints have.
    """
    if kind == VARINT and isinstance(value, int):
        return [value]
    if kind != BYTES or isinstance(value, int):
        raise Malformed("integers are not stored as varints")
    found, position = [], 0
    while position < len(value):
        number, position = varint(value, position)
        found.append(number)
    return found


def checked_shape(sizes: list[int], count: int) -> tuple[int, ...]:
    """Return a shape that holds `count` values.

    Raises
    ------
    Malformed
        When it does not, or has more axes than a kernel can have.
    """
    if len(sizes) > 8 or math.prod(sizes) != count:
        shown = " x ".join(map(str, sizes[:8])) or "one value"
        raise Malformed(f"{count} values are said to have the shape {shown}")
    return tuple(sizes)
