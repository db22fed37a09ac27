"""Headers once read are kept on disk: a second scan of an unchanged tree opens none of its files.

One folder per scanned root, ``headers/<hash of the root>/`` in volrec's cache, with files of lines; a line holds the
headers of some dozen files, column by column, behind a checksum. Nothing in it can run code. Files are only ever added
or replaced as a whole, so several processes may scan one tree at once; whatever is damaged, cut off or written by
another version is read anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import islice, repeat
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from volrec.errors import Problem
from volrec.io import HEADER_SCHEMA, FileScan, Header

__all__ = ["HeaderCache", "cache_folder", "decode_scans", "encode_scans"]

log = logging.getLogger(__name__)

LAYOUT = 1
"""Version of the lines; the version of what they hold is `HEADER_SCHEMA`, and the code that read it."""
CHUNK = 64
"""Files a line: enough that what a series shares is written once, few enough that a kill costs little."""
_COLUMNS = tuple(name for name in (field.name for field in fields(Header)) if name not in {"path", "size", "mtime_ns"})
_DAY = 24 * 3600.0


def cache_folder(folder: Path | str | None = None) -> Path:
    """Return volrec's cache: the folder given, else ``$VOLREC_CACHE``, else ``~/.cache/volrec``."""
    if folder is not None:
        return Path(folder).expanduser()
    named = os.environ.get("VOLREC_CACHE")
    return Path(named).expanduser() if named else Path(os.path.expanduser("~"), ".cache", "volrec")


class HeaderCache:
    """The headers of one root.

    Parameters
    ----------
    root : Path
        Scanned folder, resolved.
    folder : path, optional
        See `cache_folder`.
    """

    def __init__(self, root: Path, *, folder: Path | str | None = None) -> None:
        self.root = root
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:20]
        self.folder = cache_folder(folder) / "headers" / name
        self._loaded: list[Path] = []
        self._entries = 0
        self._damaged = False

    def load(self, files: Mapping[str, tuple[int, int]]) -> dict[str, FileScan]:
        """Return what is known of these files, where size and time still agree.

        Parameters
        ----------
        files : mapping
            From relative path to (bytes, modification time in ns), as the tree is now.
        """
        known: dict[str, FileScan] = {}
        for path in self._parts():
            self._loaded.append(path)
            for payload in self._lines(path):
                try:
                    scans = decode_scans(payload, self.root)
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    log.debug("%s: a line cannot be used (%s)", path, error)
                    self._damaged = True
                    continue
                self._entries += len(scans)
                for relative, scan in scans:
                    if files.get(relative) == (scan.size, scan.mtime_ns):
                        known[relative] = scan
        return known

    def writer(self) -> _Writer:
        """Return a context in which lines are added; what was added is kept even if the process is killed."""
        return _Writer(self.folder, self._first_line(), self._loaded)

    def tidy(self, scans: Mapping[str, FileScan], *, added: int, replace: bool = False) -> None:
        """Write everything anew in one file where much is stale, scattered or damaged.

        Parameters
        ----------
        scans : mapping
            All that is known now, from relative path.
        added : int
            How many of them were added since `load`.
        replace : bool
            Do it in any case.
        """
        stale = self._entries + added - len(scans)
        if not (replace or self._damaged or len(self._loaded) > 8 or stale > max(1000, len(scans) // 2)):
            return
        pairs = list(scans.items())
        with _Writer(self.folder, self._first_line(), []) as out:
            for start in range(0, len(pairs), CHUNK):
                out.add(encode_scans(pairs[start : start + CHUNK]))
        if not out.sound:
            return
        for path in self._loaded:
            with suppress(OSError):
                # Another process may still be writing an .open file; one a day old was left by a kill.
                if path.suffix != ".open" or time.time() - path.stat().st_mtime > _DAY:
                    path.unlink()

    def _parts(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix in {".jsonl", ".open"})
        except OSError:
            return []

    def _lines(self, path: Path) -> Iterator[str]:
        try:
            with path.open(encoding="ascii", errors="replace") as lines:
                if next(lines, "") != self._first_line():
                    self._damaged = True
                    return
                for line in lines:
                    checksum, _, payload = line.rstrip("\n").partition(" ")
                    if checksum == _checksum(payload):
                        yield payload
                    elif path.suffix != ".open":
                        self._damaged = True
        except OSError as error:
            log.debug("%s: the cache of headers cannot be read (%s)", path, error)
            self._damaged = True

    def _first_line(self) -> str:
        return f"volrec headers {LAYOUT}.{HEADER_SCHEMA} {_reader()}\n"


class _Writer:
    """Adds lines to a file of its own; a cache that cannot be written costs time later, nothing else."""

    def __init__(self, folder: Path, first_line: str, written: list[Path]) -> None:
        self.sound = True
        self._written = written
        self._first_line = first_line
        self._open = folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}.open"
        self._file: IO[str] | None = None

    def __enter__(self) -> _Writer:
        return self

    def add(self, payload: str) -> None:
        """Append one line, and hand it to the operating system at once."""
        if not self.sound:
            return
        try:
            if self._file is None:
                self._open.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = self._open.open("x", encoding="ascii")
                self._file.write(self._first_line)
            self._file.write(f"{_checksum(payload)} {payload}\n")
            self._file.flush()
        except OSError as error:
            self.sound = False
            log.warning(
                "The cache of headers cannot be written (%s: %s); the next scan reads this folder again. "
                "Set VOLREC_CACHE to a folder with room.",
                self._open.parent,
                error.strerror or error,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
            self._written.append(self._open.replace(self._open.with_suffix(".jsonl")))
        except OSError:
            self.sound = False


def encode_scans(scans: Iterable[tuple[str, FileScan]]) -> str:
    """Write some files' scans, by relative path, as one line of JSON: facts that they share once."""
    pairs = list(scans)
    headers = [header for _, scan in pairs for header in scan.headers]
    return json.dumps(
        {
            "path": [relative for relative, _ in pairs],
            "size": [scan.size for _, scan in pairs],
            "mtime_ns": [scan.mtime_ns for _, scan in pairs],
            "kind": _pack([scan.kind for _, scan in pairs]),
            "headers": [len(scan.headers) for _, scan in pairs],
            "problem": {
                str(number): scan.problem.as_dict()
                for number, (_, scan) in enumerate(pairs)
                if scan.problem is not None
            },
            "columns": [_pack([getattr(header, name) for header in headers]) for name in _COLUMNS] if headers else [],
        },
        separators=(",", ":"),
    )


def decode_scans(payload: str, root: Path | str) -> list[tuple[str, FileScan]]:
    """Rebuild what `encode_scans` wrote, with paths below `root`."""
    values = json.loads(payload)
    base = str(root).rstrip(os.sep) + os.sep
    relatives: list[str] = values["path"]
    counts: list[int] = values["headers"]
    paths = [base + relative for relative in relatives]
    owners = [number for number, count in enumerate(counts) for _ in range(count)]
    columns = [_unpack(packed, len(owners)) for packed in values["columns"]]
    if owners and len(columns) != len(_COLUMNS):
        raise ValueError(f"{len(columns)} columns instead of {len(_COLUMNS)}")
    sizes, times = values["size"], values["mtime_ns"]
    headers = map(
        Header,
        (paths[owner] for owner in owners),
        (sizes[owner] for owner in owners),
        (times[owner] for owner in owners),
        *columns,
    )
    problems = values["problem"]
    result: list[tuple[str, FileScan]] = []
    for number, kind in zip(range(len(relatives)), _unpack(values["kind"], len(relatives)), strict=False):
        problem = problems.get(str(number))
        scan = FileScan(
            paths[number],
            sizes[number],
            times[number],
            kind,
            tuple(islice(headers, counts[number])),
            None if problem is None else Problem(**problem),
        )
        result.append((relatives[number], scan))
    return result


def _pack(values: Sequence[Any]) -> list[Any]:
    """``[value]`` where all agree, ``[table, indices]`` where few differ, else ``[values, null]``."""
    table: dict[tuple[type, Any], int] = {}
    indices = [table.setdefault((type(value), value), len(table)) for value in values]
    distinct = [value for _, value in table]
    if len(distinct) == 1:
        return distinct
    if len(distinct) <= len(values) // 2:
        return [distinct, indices]
    return [list(values), None]


def _unpack(packed: list[Any], count: int) -> Iterable[Any]:
    if len(packed) == 1:
        return repeat(_frozen(packed[0]), count)
    values, indices = packed
    if any(type(value) is list for value in values):
        values = [_frozen(value) for value in values]
    return values if indices is None else [values[index] for index in indices]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if type(value) is list else value


def _checksum(payload: str) -> str:
    return f"{zlib.crc32(payload.encode('ascii', 'replace')):08x}"


def _reader() -> str:
    """Return a hash of the code that reads headers: what an older version saw is not trusted."""
    if not _READER:
        import volrec.io

        code = hashlib.sha256()
        folder = Path(volrec.io.__file__).parent
        with suppress(OSError):  # not plain files (a zipped package): HEADER_SCHEMA alone has to do
            for path in sorted(folder.glob("*.py")):
                code.update(path.read_bytes())
        _READER.append(code.hexdigest()[:12])
    return _READER[0]


_READER: list[str] = []
