"""What a format of foreign weights is: one entry that says how to recognise it and what its keys are called here.

The families lie beside this file (``i3d.py``, ``c3d.py``, ``dense.py``, ``frames.py``); each hands out its ``FORMATS``.
A new format is one more entry there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["CLASSIFIER", "COUNTER", "Drop", "Format", "Inputs", "Stem", "holds", "strip"]

COUNTER = "num_batches_tracked"
"""Last part of the keys that count batches: older files have none, and nothing depends on them."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Drop:
    """A key that is known and left out, with the reason."""

    reason: str


CLASSIFIER = Drop("the classifier of the frames it was trained on; a backbone ends in features")


@dataclass(frozen=True)
class Inputs:
    """What the weights were trained to read; see ``card["input"]``.

    A value v in [0, 1] becomes ``(lo + v * (hi - lo) - mean) / std``.

    Attributes
    ----------
    channels : str
        ``RGB``, ``BGR``, ``gray`` or ``flow``.
    range : tuple of float
        (lo, hi) of the values before mean and deviation.
    mean, std : tuple of float
        One for every channel, or one for all.
    size : tuple of int
        (T, H, W), or (H, W) of a network of frames.
    frame_rate : float, optional
        Frames a second, where the weights have one.
    """

    channels: str
    range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, ...]
    frame_rate: float | None = None

    def as_card(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


class Stem(NamedTuple):
    """The first convolution: its weight in the network, and the paper's channels behind it."""

    target: str
    channels: int


def _as_it_is(key: str, tensor: Tensor) -> tuple[Tensor, str]:
    return tensor, ""


def _no_options(tensors: Tensors) -> dict[str, Any]:
    return {}


def _needed(target: str) -> str:
    return ""


@dataclass(frozen=True)
class Format:
    """One form in which the weights of some networks are handed around.

    Attributes
    ----------
    name : str
        For ``--format``; unique among the formats of one network.
    title : str
        Whose form it is.
    networks : tuple of str
        Names of the registry or of backbones whose weights it holds.
    container : tuple of str
        Of `volrec.weights.foreign.containers`.
    detect : callable
        Tensors by key, without the prefixes of wrappers (`strip`) -> whether they are in this format.
    rename : callable
        Such a key -> key in the network, `Drop`, or None for one that the format does not know.
    stem : Stem
        Tells input channels and width.
    head : tuple of str
        Keys of the last layer's weight, of which the first that is there tells the number of classes.
    inputs : callable
        Input channels -> `Inputs`.
    adapt : callable
        (key, tensor) -> (tensor as the network has it, what was done; "" for nothing).
    options : callable
        Tensors by key in the network -> options to build it with, beside ``faithful=True``.
    absent : callable
        Key in the network -> why the format lacks it; "" where it must be there.
    mean_volume : bool
        Whether a mean volume of Caffe belongs to it.
    notes : tuple of str
        What a user should know; kept in the card.
    """

    name: str
    title: str
    networks: tuple[str, ...]
    detect: Callable[[Tensors], bool]
    rename: Callable[[str], str | Drop | None]
    stem: Stem
    head: tuple[str, ...]
    inputs: Callable[[int], Inputs]
    container: tuple[str, ...] = ("torch", "safetensors")
    adapt: Callable[[str, Tensor], tuple[Tensor, str]] = _as_it_is
    options: Callable[[Tensors], dict[str, Any]] = _no_options
    absent: Callable[[str], str] = _needed
    mean_volume: bool = False
    notes: tuple[str, ...] = ()

    def classes(self, tensors: Tensors) -> int | None:
        """Return the outputs of the last layer; None where the file has none."""
        for key in self.head:
            if key in tensors:
                shape = self.adapt(key, tensors[key])[0].shape
                return int(shape[0]) if len(shape) else None
        return None


_PREFIX = re.compile(r"^(?:(?:module|backbone|base_model|model)\.)+|^(?:RGB|Flow)/inception_i3d/")


def strip(key: str) -> str:
    """Return a key without what wrappers put before it (``module.``), and without the ``.net`` of temporal shifts."""
    return _PREFIX.sub("", key).replace(".net.", ".")


def holds(*keys: str) -> Callable[[Tensors], bool]:
    """Return a `Format.detect` that looks for all of these keys."""
    return lambda tensors: all(key in tensors for key in keys)
