"""The protocols that come with the package: YAML files in ``protocols/``, one a system and variant of a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from volrec.config.benchmark import StreamProtocol, VideoProtocol
from volrec.config.text import parse_config
from volrec.errors import ConfigError
from volrec.networks.facts import suggest

__all__ = ["list_protocols", "load_protocol", "paper_of", "stream_channels"]

_FOLDER = Path(__file__).parent / "protocols"
_DEPTH = 8  # files that build on one another; more is a circle


def list_protocols() -> tuple[str, ...]:
    """Return the names of the protocols that come with the package, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load_protocol(name_or_path: str | Path) -> VideoProtocol:
    """Read a protocol by its name, or from a file of one's own.

    Parameters
    ----------
    name_or_path : str or Path
        One of `list_protocols`, or a YAML file (anything that ends in ``.yaml`` or ``.yml``, or has a folder).

    Returns
    -------
    VideoProtocol
        Checked. A file may begin with ``extends:`` and the name of another protocol, or several: its own keys then
        replace theirs, key by key, and streams of the same name are taken together in the same way.

    Raises
    ------
    ConfigError
        For a name that there is none of (with the nearest), a file that cannot be read, or a value that is not
        allowed.
    """
    values = _resolved(name_or_path, depth=0)
    try:
        return parse_config(values, where=str(name_or_path), schema=VideoProtocol)
    except ConfigError as error:
        raise ConfigError(
            error.problem,
            remedy="The protocols that come with the package show every key; `extends: NAME` begins with one of them.",
            where=error.where,
            code="protocol",
        ) from None


def paper_of(name_or_path: str | Path) -> VideoProtocol:
    """Return the protocol that one is compared with: itself where it comes with the package.

    A file of one's own is compared with the first protocol of the package that it builds on (``extends``), or with
    itself where it builds on none.

    Raises
    ------
    ConfigError
        As `load_protocol`.
    """
    place: str | Path = name_or_path
    for _ in range(_DEPTH):
        path = _path(place)
        if path.parent == _FOLDER:
            return load_protocol(path.stem)
        bases = _read(path).get("extends") or []
        first = bases if isinstance(bases, str) else next(iter(bases), None)
        if first is None:
            break
        place = first
    return load_protocol(name_or_path)


def stream_channels(stream: StreamProtocol) -> int:
    """Return how many channels the network of a stream reads: 3 of RGB, 2 or 3 a field, 3 a difference."""
    stack = stream.motion.stack if stream.motion is not None else 0
    field = 3 if stream.motion is not None and stream.motion.third != "none" else 2
    size = {"rgb": 3, "flow": field * stack, "warped": field * stack, "difference": 3 * stack}
    return sum(size[kind] for kind in stream.reads)


def _resolved(name_or_path: str | Path, *, depth: int) -> dict[str, Any]:
    """Return the keys of a protocol with those that it builds on beneath them."""
    path = _path(name_or_path)
    values = _read(path)
    bases = values.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases) or depth >= _DEPTH:
        raise ConfigError(
            f"extends names protocols that end somewhere, got {bases!r}.",
            remedy=f"Name one or several of: {', '.join(list_protocols())}.",
            where=path,
            code="protocol-extends",
        )
    merged: dict[str, Any] = {}
    for base in bases:
        merged = _merged(merged, _resolved(base, depth=depth + 1))
    return _merged(merged, values)


def _path(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    known = list_protocols()
    if str(name_or_path) not in known:
        raise ConfigError(
            f"there is no protocol {str(name_or_path)!r}.",
            remedy=f"{suggest(str(name_or_path), known)}Known protocols: {', '.join(known)}; or give a YAML file.",
            where="protocol",
            code="protocol-name",
        )
    return _FOLDER / f"{name_or_path}.yaml"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        cause = f"no valid YAML at line {mark.line + 1}" if mark else getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"it cannot be read as a protocol ({cause}).",
            remedy="Give a YAML text file; `volrec benchmark` with --protocol and a name takes one that is there.",
            where=path,
            code="protocol-file",
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"it holds {type(values).__name__}, not keys and values.",
            remedy="Begin with `extends: two-stream`, for example.",
            where=path,
            code="protocol-file",
        )
    return values


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            out[key] = _merged(old, value)
        elif key == "streams" and isinstance(old, list) and isinstance(value, list):
            out[key] = _merged_streams(old, value)
        else:
            out[key] = value
    return out


def _merged_streams(base: Sequence[Any], over: Sequence[Any]) -> list[Any]:
    out = list(base)
    for stream in over:
        name = stream.get("name") if isinstance(stream, Mapping) else None
        place = next((i for i, old in enumerate(out) if isinstance(old, Mapping) and old.get("name") == name), None)
        if name is None or place is None:
            out.append(stream)
        else:
            out[place] = _merged(out[place], stream)
    return out
