"""DICOM data elements to allow-listed facts: a fast reader for the usual encodings, pydicom for every other.

Reading about thirty tags with pydicom costs .4 ms a file, most of it spent on tags that are skipped. The usual files
(preamble, little endian, not deflated) are therefore walked here; whatever looks odd is left to pydicom, and the tests
hold the two equal on every file they have.
"""

from __future__ import annotations

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from volrec.io.tags import (
    DEFLATED,
    ENCAPSULATED_PREFIX,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    LONG_VRS,
    PIXEL_TAGS,
    PRIVATE,
    PRIVATE_GROUPS,
    RLE,
    SEQUENCES,
    SHORT_VRS,
    TAGS,
)

__all__ = ["Elements", "quiet_pydicom", "read_elements"]

_BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d"}
_UNDEFINED = 0xFFFFFFFF
_WINDOW = 1 << 15
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


@dataclass
class Elements:
    """Facts of one DICOM file.

    Attributes
    ----------
    values : dict
        Name (see `TAGS`) to a tuple of values; a missing or empty element has no entry.
    bad : list of str
        Names whose value breaks the rules of its type; they have no entry in `values`.
    present : set of str
        Sequences that exist (see `SEQUENCES`).
    transfer_syntax : str
        UID, empty where nothing says it.
    assumed_syntax : bool
        The file does not name its transfer syntax.
    pixel_kind : str
        ``"int"``, ``"float"``, ``"double"``, or empty: no pixels.
    pixel_offset, pixel_length : int
        Where the value of the pixel element starts; bytes, -1 for undefined length (compressed).
    located : bool
        Whether the offset is one in the file (not in a deflated stream).
    truncated : bool
        The file ends inside an element before the pixels.
    """

    values: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    present: set[str] = field(default_factory=set)
    transfer_syntax: str = ""
    assumed_syntax: bool = False
    pixel_kind: str = ""
    pixel_offset: int = 0
    pixel_length: int = 0
    located: bool = True
    truncated: bool = False

    def first(self, name: str, default: Any = None) -> Any:
        """Return the first value, or `default`."""
        values = self.values.get(name)
        return values[0] if values else default


def read_elements(handle: BinaryIO, size: int, head: bytes) -> Elements | None:
    """Read the allow-listed facts of a DICOM file.

    Parameters
    ----------
    handle : binary file
        Open for reading, at any position.
    size : int
        Bytes of the file.
    head : bytes
        Its first 32 KiB or more (all of a shorter file).

    Returns
    -------
    Elements or None
        None when the bytes are no DICOM.

    Raises
    ------
    Exception
        Whatever pydicom raises on a file that it cannot parse.
    """
    if head[128:132] == b"DICM":
        found = _walk(handle, size, head)
        return found if found is not None else _ask_pydicom(handle, size)
    if not _plausible_start(head, size):
        return None
    found = _ask_pydicom(handle, size)
    return found if "sop_class" in found.values or "rows" in found.values else None


def _plausible_start(head: bytes, size: int) -> bool:
    """Whether a data set without preamble begins here: a low tag of group 2 or 8 with a sane length."""
    if len(head) < 16:
        return False
    for order in "<>":
        group, element, length = struct.unpack_from(f"{order}HHL", head)
        if group not in (0x0002, 0x0008) or element > 0x0100:
            continue
        if head[4:6] in SHORT_VRS or head[4:6] in LONG_VRS:
            return True
        if length < min(size, 4096):
            return True
    return False


def _walk(handle: BinaryIO, size: int, head: bytes) -> Elements | None:
    """Walk an explicit or implicit little-endian data set; None where pydicom should look instead."""
    found = Elements()
    position = 132
    explicit = struct.Struct("<HH2sH").unpack_from
    syntax = ""
    while position + 12 <= len(head):  # group 2 is always explicit little endian
        group, element, vr, length = explicit(head, position)
        if group != 2:
            break
        start = position + 8
        if vr in LONG_VRS:
            length = int.from_bytes(head[start : start + 4], "little")
            start += 4
        elif vr not in SHORT_VRS:
            return None
        if element == 0x0010:
            syntax = head[start : start + length].decode("ascii", "replace").strip("\0 ")
        elif element == 0x0002:
            stated = head[start : start + length].decode("ascii", "replace").strip("\0 ")
            if stated:
                found.values["sop_class"] = (stated,)
        position = start + length
    is_implicit = syntax == IMPLICIT_LITTLE
    if not is_implicit and syntax != EXPLICIT_LITTLE and syntax != RLE and not syntax.startswith(ENCAPSULATED_PREFIX):
        return None
    found.transfer_syntax = syntax
    raw: dict[int, tuple[str, bytes]] = {}
    if _walk_data_set(handle, size, head, position, is_implicit, found, raw) is None:
        return None
    _convert(raw, found)
    return found


def _walk_data_set(
    handle: BinaryIO,
    size: int,
    window: bytes,
    at: int,
    is_implicit: bool,
    found: Elements,
    raw: dict[int, tuple[str, bytes]],
) -> bool | None:
    """Collect raw values up to the pixels. `window` holds the bytes from `base`, `at` counts within it."""
    unpack = struct.Struct("<HHL").unpack_from if is_implicit else struct.Struct("<HH2sH").unpack_from
    long_length = struct.Struct("<L").unpack_from
    tags, sequences, wanted_groups = TAGS, SEQUENCES, PRIVATE_GROUPS
    creators: dict[tuple[int, int], str] = {}
    base, available, last = 0, len(window), 0
    while True:
        if at + 12 > available:
            base += at
            if base + 8 > size:
                # Fewer bytes than an element needs: only padding may be left.
                found.truncated = base < size and is_implicit is False and size - base >= 2 and last < 0xFFFC0000
                return True
            handle.seek(base)
            window = handle.read(_WINDOW)
            at, available = 0, len(window)
            if available < 12:
                window = window.ljust(12, b"\0")
        if is_implicit:
            group, element, length = unpack(window, at)
            vr = None
            start = at + 8
        else:
            group, element, vr, length = unpack(window, at)
            start = at + 8
            if vr in LONG_VRS:
                (length,) = long_length(window, start)
                start += 4
            elif vr not in SHORT_VRS:
                return None
        tag = group << 16 | element
        if tag < last:
            return None  # out of order, or no longer a data set
        last = tag
        if tag >= 0x7FE00008 and tag in PIXEL_TAGS:
            found.pixel_kind = PIXEL_TAGS[tag]
            found.pixel_offset = base + start
            found.pixel_length = -1 if length == _UNDEFINED else length
            return True
        if tag in sequences:
            found.present.add(sequences[tag])
        if length == _UNDEFINED:
            end = _skip_items(handle, size, base + start, is_implicit or vr == b"UN")
            if end is None:
                return None
            if end < 0:
                found.truncated = True
                return True
            at = end - base
            continue
        if base + start + length > size:
            found.truncated = True
            return True
        private = group in wanted_groups
        if (tag in tags or private) and length and length < 4096:
            if start + length > available:
                base += start
                handle.seek(base)
                window = handle.read(_WINDOW)
                start, available = 0, len(window)
            value = window[start : start + length]
            if not private:
                raw[tag] = (tags[tag][1] if vr is None or vr == b"UN" else vr.decode("ascii"), value)
            elif 0x10 <= element <= 0xFF:
                creators[group, element] = value.decode("ascii", "replace").strip("\0 ")
            else:
                known = PRIVATE.get((group, element & 0xFF))
                if known is not None and creators.get((group, element >> 8)) == known[2]:
                    stated = known[1] if vr is None or vr == b"UN" else vr.decode("ascii")
                    raw[group << 16 | element & 0xFF | 0x1000] = (stated, value)
        at = start + length


def _skip_items(handle: BinaryIO, size: int, position: int, is_implicit: bool) -> int | None:
    """Return where a sequence of undefined length ends; -1 past the end of the file, None where it makes no sense."""
    # One stack entry a nesting level: True inside an item (elements follow), False inside a sequence (items follow).
    inside_item = [False]
    implicit = [is_implicit]
    window, base = b"", position
    while True:
        if position + 12 > base + len(window):
            if position + 8 > size:
                return -1
            handle.seek(position)
            base, window = position, handle.read(_WINDOW).ljust(12, b"\0")
        at = position - base
        group, element, length = struct.unpack_from("<HHL", window, at)
        tag = group << 16 | element
        if tag in (_SEQUENCE_END, _ITEM_END):
            position += 8
            if inside_item[-1] != (tag == _ITEM_END):
                return None
            inside_item.pop()
            implicit.pop()
            if not inside_item:
                return position
            continue
        if tag == _ITEM:
            if inside_item[-1]:
                return None
            position += 8
            if length == _UNDEFINED:
                inside_item.append(True)
                implicit.append(implicit[-1])
            else:
                position += length
            continue
        if not inside_item[-1]:
            return None
        start = position + 8
        vr = window[at + 4 : at + 6]
        if not implicit[-1]:
            if vr in LONG_VRS:
                (length,) = struct.unpack_from("<L", window, at + 8)
                start += 4
            elif vr in SHORT_VRS:
                length = int.from_bytes(window[at + 6 : at + 8], "little")
            else:
                return None
        position = start
        if length == _UNDEFINED:
            inside_item.append(False)
            implicit.append(implicit[-1] or vr == b"UN")
        else:
            position += length
        if len(inside_item) > 64:
            return None


def _convert(raw: dict[int, tuple[str, bytes]], found: Elements) -> None:
    for tag, (vr, value) in raw.items():
        name = TAGS[tag][0] if tag in TAGS else PRIVATE[tag >> 16, tag & 0xFF][0]
        try:
            values = _decode(vr, value)
        except (ValueError, struct.error):
            found.bad.append(name)
            continue
        if values:
            found.values[name] = values


def _decode(vr: str, value: bytes) -> tuple[Any, ...]:
    code = _BINARY.get(vr)
    if code is not None:
        count = len(value) // struct.calcsize(f"<{code}")
        return struct.unpack_from(f"<{count}{code}", value)
    # Identifiers are compared, never shown in another alphabet: latin-1 keeps every byte apart.
    text = value.decode("latin-1").strip("\0 ")
    if not text:
        return ()
    if vr == "DS":
        return tuple(float(part) for part in text.split("\\"))
    if vr == "IS":
        return tuple(int(float(part)) for part in text.split("\\"))
    if vr == "UI":
        return tuple(part.strip("\0 ") for part in text.split("\\"))
    return tuple(part.strip() for part in text.split("\\"))


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence what pydicom says about values that break the rules: it quotes them, and they may be names."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@quiet_pydicom()
def _ask_pydicom(handle: BinaryIO, size: int) -> Elements:
    """Read the same facts with pydicom: big endian, deflated, no meta header, broken encodings."""
    import pydicom

    found = Elements()
    wanted = [*TAGS, *SEQUENCES, *(group << 16 | 0x1000 | low for group, low in PRIVATE)]
    wanted += [group << 16 | 0x10 for group in PRIVATE_GROUPS]
    handle.seek(0)
    data = pydicom.dcmread(handle, stop_before_pixels=True, force=True, specific_tags=wanted)
    end = handle.tell()
    _facts_of(data, found)
    meta = data.file_meta
    is_implicit, is_little = data.original_encoding
    syntax = str(meta.get("TransferSyntaxUID", "") or "")
    if not syntax:
        found.assumed_syntax = True
        syntax = IMPLICIT_LITTLE if is_implicit else EXPLICIT_LITTLE if is_little else EXPLICIT_BIG
    found.transfer_syntax = syntax
    if "sop_class" not in found.values and meta.get("MediaStorageSOPClassUID"):
        found.values["sop_class"] = (str(meta.MediaStorageSOPClassUID),)
    if syntax == DEFLATED:
        handle.seek(0)
        full = pydicom.dcmread(handle, force=True, specific_tags=list(PIXEL_TAGS))
        found.located = False
        for tag, kind in PIXEL_TAGS.items():
            if tag in full:
                found.pixel_kind, found.pixel_length = kind, len(full[tag].value)
        return found
    _locate_pixels(handle, size, end, bool(is_implicit), bool(is_little), found)
    return found


def _facts_of(data: Any, found: Elements) -> None:
    for tag, name in SEQUENCES.items():
        if tag in data:
            found.present.add(name)
    names = dict(TAGS)
    for (group, low), (name, vr, creator) in PRIVATE.items():
        block = data.get(group << 16 | 0x10)
        if block is not None and str(block.value).strip() == creator:
            names[group << 16 | 0x1000 | low] = (name, vr)
    for tag, (name, vr) in names.items():
        if tag not in data:
            continue
        try:
            value = data[tag].value
            values = list(value) if isinstance(value, (list, tuple)) or _is_multi(value) else [value]
            plain = tuple(_plain(item, vr) for item in values if item is not None)
        except Exception:  # noqa: BLE001 - pydicom raises many kinds on values that break the rules
            found.bad.append(name)
            continue
        if any(item != "" for item in plain):
            found.values[name] = plain


def _is_multi(value: Any) -> bool:
    from pydicom.multival import MultiValue

    return isinstance(value, MultiValue)


def _plain(value: Any, vr: str) -> Any:
    if vr in ("DS", "FD", "FL"):
        return float(value)
    if vr in ("IS", "US"):
        return int(value)
    if isinstance(value, bytes):
        raise ValueError("bytes where text is due")
    return str(value).strip("\0 ")


def _locate_pixels(handle: BinaryIO, size: int, end: int, is_implicit: bool, is_little: bool, found: Elements) -> None:
    order = "little" if is_little else "big"
    handle.seek(end)
    start = handle.read(12)
    if len(start) < 8:
        return
    sign = "<" if is_little else ">"
    group, element = struct.unpack_from(f"{sign}HH", start)
    kind = PIXEL_TAGS.get(group << 16 | element)
    if kind is None:
        return
    found.pixel_kind = kind
    if is_implicit or start[4:6] not in LONG_VRS:
        offset, length = end + 8, int.from_bytes(start[4:8], order)  # type: ignore[arg-type]
    else:
        offset, length = end + 12, int.from_bytes(start[8:12], order)  # type: ignore[arg-type]
    found.pixel_offset = offset
    found.pixel_length = -1 if length == _UNDEFINED else length
